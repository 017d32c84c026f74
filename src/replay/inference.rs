//! One inference at a time: observation in, chunk out, on the caller's thread or on one of its own.

use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use thiserror::Error;

use super::recording::Timings;
use crate::engine::EngineError;
use crate::engine::cpu::CpuEngine;
use crate::engine::probe::Tap;
use crate::model::Pixels;
use crate::model::sampler::{Sampler, noise};
use crate::observe::Observation;
use crate::pipeline::infer;
use crate::policy::{Policy, PolicyError};

/// What an inference starts from.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the chunk: selects its noise.
    pub id: u64,
    /// What the robot saw.
    pub observation: Observation,
    /// The task.
    pub prompt: String,
}

/// What an inference gave.
#[derive(Debug)]
pub struct Response {
    /// `[steps][actions]`, robot space.
    pub actions: Vec<Vec<f64>>,
    /// What the network saw, by camera slot.
    pub images: Vec<Option<Pixels>>,
    /// Prompt tokens that the network read.
    pub tokens: usize,
    /// The prompt was cut.
    pub truncated: bool,
    /// Wall time of each stage.
    pub timings: Timings,
}

/// Why an inference failed.
#[derive(Debug, Error)]
pub enum InferenceError {
    /// This observation cannot be used; the next one may.
    #[error(transparent)]
    Observation(PolicyError),
    /// The engine is broken.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Engine and policy do not belong together.
    #[error(transparent)]
    Decode(PolicyError),
    /// The inference thread is gone.
    #[error("the inference thread ended before its inference did")]
    ThreadEnded,
}

/// The policy around the engine.
pub struct Inference<'a> {
    /// Network.
    pub engine: CpuEngine,
    /// What surrounds it.
    pub policy: &'a Policy,
    /// From noise to actions.
    pub sampler: Sampler,
    /// Of the noise.
    pub seed: u64,
}

impl Inference<'_> {
    /// Encode, run, decode.
    pub fn run(&mut self, request: &Request) -> Result<Response, InferenceError> {
        let start = Instant::now();
        let encoded =
            self.policy.encode(&request.observation, &request.prompt).map_err(InferenceError::Observation)?;
        let encode_ms = ms_since(start);
        let shape = self.policy.shape();
        let noise = noise(self.seed, request.id, shape.horizon * shape.action_dim);
        let (actions, stages) =
            infer(&mut self.engine, &encoded.input, &noise, &self.sampler, &mut Tap::none())?;
        let decoding = Instant::now();
        let actions = self.policy.decode(&actions, &encoded).map_err(InferenceError::Decode)?;
        Ok(Response {
            actions,
            tokens: encoded.input.tokens.len(),
            images: encoded.input.images,
            truncated: encoded.truncated,
            timings: Timings {
                encode_ms,
                vision_ms: stages.vision_ms,
                prefix_ms: stages.prefix_ms,
                denoise_ms: stages.denoise_ms,
                decode_ms: ms_since(decoding),
            },
        })
    }
}

/// An inference thread that takes one request at a time.
pub struct InferenceThread {
    requests: Sender<Request>,
    responses: Receiver<Result<Response, InferenceError>>,
}

impl InferenceThread {
    /// Starts it; it ends when this is dropped.
    pub fn start<'scope>(scope: &'scope thread::Scope<'scope, '_>, mut inference: Inference<'scope>) -> Self {
        let (requests, to_do) = bounded::<Request>(1);
        let (done, responses) = bounded(1);
        scope.spawn(move || {
            for request in to_do {
                if done.send(inference.run(&request)).is_err() {
                    break;
                }
            }
        });
        Self { requests, responses }
    }

    /// Hands over a request; the thread must be idle.
    pub fn begin(&self, request: Request) -> Result<(), InferenceError> {
        self.requests.send(request).map_err(|_| InferenceError::ThreadEnded)
    }

    /// The response, if it is there.
    pub fn poll(&self) -> Option<Result<Response, InferenceError>> {
        match self.responses.try_recv() {
            Ok(response) => Some(response),
            Err(crossbeam_channel::TryRecvError::Empty) => None,
            Err(crossbeam_channel::TryRecvError::Disconnected) => Some(Err(InferenceError::ThreadEnded)),
        }
    }
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
