//! One inference: observation in, the actions of a chunk out. Called by `node` and `replay`, on a thread of their choice.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::chunking::{ModelActions, Steering};
use super::infer;
use crate::engine::probe::Tap;
use crate::engine::{Engine, EngineError};
use crate::model::Pixels;
use crate::model::sampler::rtc::RtcError;
use crate::model::sampler::{Sampler, noise};
use crate::observe::Observation;
use crate::policy::{Policy, PolicyError};

/// What an inference starts from.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of the chunk: selects its noise.
    pub id: u64,
    /// What the robot saw.
    pub observation: Observation,
    /// Its images as [`Policy::resize_image`] gives them, by slot, where that was done already.
    pub resized: Vec<Option<Pixels>>,
    /// The task.
    pub prompt: String,
    /// What the chunk before has to say.
    pub steering: Option<Steering>,
}

/// What an inference gave.
#[derive(Debug)]
pub struct Response {
    /// `[steps][actions]`, robot space.
    pub actions: Vec<Vec<f64>>,
    /// The same in model space.
    pub model: ModelActions,
    /// What the network saw, by camera slot.
    pub images: Vec<Option<Pixels>>,
    /// Prompt tokens that the network read.
    pub tokens: usize,
    /// The prompt was cut.
    pub truncated: bool,
    /// Wall time of each stage.
    pub timings: Timings,
}

/// Wall time of one inference by stage, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timings {
    /// Resize, normalise, tokenise.
    pub encode_ms: f64,
    /// SigLIP and projector, all cameras.
    pub vision_ms: f64,
    /// Prefix to K/V.
    pub prefix_ms: f64,
    /// All denoise steps.
    pub denoise_ms: f64,
    /// Unnormalise and robot adapter.
    pub decode_ms: f64,
}

impl Timings {
    /// Sum of the stages.
    pub fn total_ms(&self) -> f64 {
        self.encode_ms + self.vision_ms + self.prefix_ms + self.denoise_ms + self.decode_ms
    }
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
    /// The chunk before cannot steer this one.
    #[error(transparent)]
    Steering(#[from] RtcError),
    /// Engine and policy do not belong together.
    #[error(transparent)]
    Decode(PolicyError),
    /// The inference thread is gone.
    #[error("the inference thread ended before its inference did")]
    ThreadEnded,
}

/// The policy around the engine.
pub struct Inference {
    /// Network.
    pub engine: Engine,
    /// What surrounds it.
    pub policy: Arc<Policy>,
    /// From noise to actions.
    pub sampler: Sampler,
    /// Of the noise.
    pub seed: u64,
}

impl Inference {
    /// Encode, run, decode.
    pub fn run(&mut self, request: Request) -> Result<Response, InferenceError> {
        let start = Instant::now();
        let Request { id, observation, resized, prompt, steering } = request;
        let encoded = self.policy.encode_resized(&observation, &prompt, resized);
        let encoded = encoded.map_err(InferenceError::Observation)?;
        let rtc = steering.map(|steering| steering.rtc(&self.policy, encoded.anchor())).transpose()?;
        let encode_ms = ms_since(start);
        let shape = self.policy.shape();
        let noise = noise(self.seed, id, shape.horizon * shape.action_dim);
        let rtc = rtc.unwrap_or_default();
        let (raw, stages) =
            infer(&mut self.engine, &encoded.input, &noise, &self.sampler, &rtc, &mut Tap::none())?;
        let decoding = Instant::now();
        let actions = self.policy.decode(&raw, &encoded).map_err(InferenceError::Decode)?;
        Ok(Response {
            actions,
            model: ModelActions::new(
                &raw,
                shape.action_dim,
                self.policy.action_names().len(),
                encoded.anchor(),
            ),
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

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
