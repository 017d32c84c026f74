//! Runs the inferences of a replay: on the player's thread in simulated time, or on a thread of its own.

use std::sync::Arc;
use std::thread::Scope;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};

use crate::clock::Stamp;
use crate::observe::RgbImage;
use crate::pipeline::inference::{Acting, Inference, InferenceError, Request, Response};

/// How an inference ended.
pub type Outcome = Result<Response, InferenceError>;

/// Who runs inferences, one at a time, and when they count as done.
pub enum Worker {
    /// The caller's thread; the response counts as there after a fixed time. What an engine does by itself meanwhile,
    /// it does meanwhile.
    Simulated {
        /// What runs.
        inference: Box<Inference>,
        /// The fixed time.
        latency_ns: i64,
        /// When the response counts as there, and what is under way.
        done: Option<(Stamp, Result<Box<Acting>, InferenceError>)>,
    },
    /// A thread of its own; the response is there when it is there.
    Thread {
        /// To the thread.
        requests: Sender<Request>,
        /// From it.
        responses: Receiver<Outcome>,
    },
}

impl Worker {
    /// An inference takes `latency_ns` of bag time, whatever the machine.
    pub fn simulated(inference: Inference, latency_ns: i64) -> Self {
        Worker::Simulated { inference: Box::new(inference), latency_ns, done: None }
    }

    /// Starts a thread, which ends when this is dropped.
    pub fn thread<'scope>(scope: &'scope Scope<'scope, '_>, mut inference: Inference) -> Self {
        let (requests, to_do) = bounded::<Request>(1);
        let (done, responses) = bounded(1);
        scope.spawn(move || {
            for request in to_do {
                if done.send(inference.run(request)).is_err() {
                    break;
                }
            }
        });
        Worker::Thread { requests, responses }
    }

    /// Begins an inference at `now`; none may be under way.
    pub fn begin(&mut self, request: Request, now: Stamp) -> Result<(), InferenceError> {
        match self {
            Worker::Simulated { inference, latency_ns, done } => {
                let acting = inference.begin(request).and_then(|begun| inference.act(begun)).map(Box::new);
                *done = Some((Stamp(now.0.saturating_add(*latency_ns)), acting));
                Ok(())
            }
            Worker::Thread { requests, .. } => {
                requests.send(request).map_err(|_| InferenceError::ThreadEnded)
            }
        }
    }

    /// The next inference will most likely be of these images: an engine with a stream for vision may begin.
    pub fn foresee(&mut self, images: &[Option<Arc<RgbImage>>]) -> Result<(), InferenceError> {
        match self {
            Worker::Simulated { inference, .. } => inference.foresee(images),
            Worker::Thread { .. } => Ok(()),
        }
    }

    /// When the inference under way will be done, if that is known beforehand.
    pub fn due(&self) -> Option<Stamp> {
        match self {
            Worker::Simulated { done, .. } => done.as_ref().map(|(due, _)| *due),
            Worker::Thread { .. } => None,
        }
    }

    /// How the inference under way ended, if it has at `now`.
    pub fn poll(&mut self, now: Stamp) -> Option<Outcome> {
        match self {
            Worker::Simulated { inference, done, .. } => {
                done.take_if(|(due, _)| *due <= now).map(|(_, acting)| inference.finish(*acting?))
            }
            Worker::Thread { responses, .. } => match responses.try_recv() {
                Ok(outcome) => Some(outcome),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err(InferenceError::ThreadEnded)),
            },
        }
    }
}
