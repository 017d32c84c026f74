//! One inference: observation in, the actions of a chunk out. Called by `node` and `replay`, on a thread of their choice.
//!
//! [`Inference::run`] does all of it. Who wants two in flight goes step by step: [`Inference::begin`] (vision starts),
//! [`Inference::act`] once the one before is finished, [`Inference::finish`]. The chunks are the same, bit by bit.

use std::sync::Arc;
use std::time::Instant;

use thiserror::Error;

use super::chunking::{ModelActions, Steering};
use super::infer;
use crate::engine::probe::Tap;
use crate::engine::{Engine, EngineError};
use crate::model::Pixels;
use crate::model::sampler::rtc::{Rtc, RtcError};
use crate::model::sampler::{Sampler, noise};
use crate::observe::{Observation, RgbImage};
use crate::policy::{Encoded, Policy, PolicyError};

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
    /// Where features are that an inference under way reads, or is about to.
    slot: usize,
    foreseen: Option<Foreseen>,
}

/// An inference that has begun: encoded; its vision is under way where the engine has a stream for that.
#[derive(Debug)]
pub struct Begun {
    encoded: Encoded,
    noise: Vec<f32>,
    rtc: Rtc,
    slot: Option<usize>,
    encode_ms: f64,
}

/// An inference whose actions are being computed.
#[derive(Debug)]
pub struct Acting(Begun);

/// Images whose vision was started before anybody asked for an inference of them.
struct Foreseen {
    images: Vec<Option<Arc<RgbImage>>>,
    pixels: Vec<Option<Pixels>>,
    slot: usize,
}

impl Inference {
    /// Nothing under way.
    pub fn new(engine: Engine, policy: Arc<Policy>, sampler: Sampler, seed: u64) -> Self {
        Self { engine, policy, sampler, seed, slot: 0, foreseen: None }
    }

    /// Encode, run, decode.
    pub fn run(&mut self, request: Request) -> Result<Response, InferenceError> {
        let begun = self.begin(request)?;
        let acting = self.act(begun)?;
        self.finish(acting)
    }

    /// Makes everything that inferences of such images could need, whatever the prompt, so that none waits for it later.
    pub fn prepare(&mut self, images: &[Option<Arc<RgbImage>>]) -> Result<(), InferenceError> {
        let pixels = |(slot, image): (usize, &Option<Arc<RgbImage>>)| {
            let resized = image.as_ref().map(|image| self.policy.resize_image(image)).transpose();
            resized.map_err(|reason| InferenceError::Observation(PolicyError::Resize { slot, reason }))
        };
        let pixels = images.iter().enumerate().map(pixels).collect::<Result<Vec<_>, _>>()?;
        Ok(self.engine.prepare(&pixels, self.policy.shape().horizon, &self.sampler)?)
    }

    /// Whether the vision of one inference may run beside the actions of the one before.
    pub fn overlaps(&self) -> bool {
        matches!(self.engine, Engine::Cuda(_))
    }

    /// Whether the CPU computes the model, all of its cores for as long as an inference takes.
    pub fn is_on_cpu(&self) -> bool {
        matches!(self.engine, Engine::Cpu(_))
    }

    /// Encodes, and starts vision where the engine has a stream for that; the inference before may still be acting.
    /// A steered one must have it finished: it takes the engine for itself.
    pub fn begin(&mut self, request: Request) -> Result<Begun, InferenceError> {
        let start = Instant::now();
        let Request { id, observation, mut resized, prompt, steering } = request;
        let foreseen = self.foreseen.take().filter(|foreseen| same(&foreseen.images, &observation.images));
        let seen = foreseen.map(|Foreseen { pixels, slot, .. }| {
            resized = pixels;
            slot
        });
        let encoded = self.policy.encode_resized(&observation, &prompt, resized);
        let encoded = encoded.map_err(InferenceError::Observation)?;
        let rtc = steering.map(|steering| steering.rtc(&self.policy, encoded.anchor())).transpose()?;
        let rtc = rtc.unwrap_or_default();
        let shape = self.policy.shape();
        let noise = noise(self.seed, id, shape.horizon * shape.action_dim);
        let encode_ms = ms_since(start);
        let slot = match (&mut self.engine, &rtc) {
            (Engine::Cuda(engine), Rtc::Off) => {
                let free = 1 - self.slot;
                if seen != Some(free) {
                    engine.start_vision(free, &encoded.input.images)?;
                }
                Some(free)
            }
            (Engine::Cuda(_) | Engine::Cpu(_), _) => None,
        };
        Ok(Begun { encoded, noise, rtc, slot, encode_ms })
    }

    /// Starts the actions of an inference that has begun; the one before must have been finished.
    pub fn act(&mut self, begun: Begun) -> Result<Acting, InferenceError> {
        if let (Engine::Cuda(engine), Some(slot)) = (&mut self.engine, begun.slot) {
            engine.start_actions(slot, &begun.encoded.input.tokens, &begun.noise, &self.sampler)?;
            self.slot = slot;
        }
        Ok(Acting(begun))
    }

    /// These images are likely to be those of the next inference: their vision may start, if it can run beside the
    /// actions under way. Changes no result.
    pub fn foresee(&mut self, images: &[Option<Arc<RgbImage>>]) -> Result<(), InferenceError> {
        let known = self.foreseen.as_ref().is_some_and(|foreseen| same(&foreseen.images, images));
        let Engine::Cuda(engine) = &mut self.engine else { return Ok(()) };
        if known || images.iter().all(Option::is_none) {
            return Ok(());
        }
        let resize = |image: &Option<Arc<RgbImage>>| {
            image.as_ref().map(|image| self.policy.resize_image(image)).transpose()
        };
        // One that cannot be resized is left to the inference, which says why.
        let Ok(pixels) = images.iter().map(resize).collect::<Result<Vec<_>, _>>() else { return Ok(()) };
        let slot = 1 - self.slot;
        engine.start_vision(slot, &pixels)?;
        self.foreseen = Some(Foreseen { images: images.to_vec(), pixels, slot });
        Ok(())
    }

    /// The chunk. Waits for it, or computes it where the engine has no streams.
    pub fn finish(&mut self, Acting(begun): Acting) -> Result<Response, InferenceError> {
        let Begun { encoded, noise, rtc, slot, encode_ms } = begun;
        let (raw, stages) = match (&mut self.engine, slot) {
            (Engine::Cuda(engine), Some(_)) => {
                let (raw, measured) = engine.finish()?;
                (raw, measured.into())
            }
            (engine, _) => infer(engine, &encoded.input, &noise, &self.sampler, &rtc, &mut Tap::none())?,
        };
        let decoding = Instant::now();
        let actions = self.policy.decode(&raw, &encoded).map_err(InferenceError::Decode)?;
        let (dims, names) = (self.policy.shape().action_dim, self.policy.action_names().len());
        Ok(Response {
            actions,
            model: ModelActions::new(&raw, dims, names, encoded.anchor()),
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

/// The very same images.
fn same(a: &[Option<Arc<RgbImage>>], b: &[Option<Arc<RgbImage>>]) -> bool {
    let same = |pair: (&Option<Arc<RgbImage>>, &Option<Arc<RgbImage>>)| match pair {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

fn ms_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}
