//! The three stages as an engine: fills inputs, runs stages, and takes the sampler's steps on the host between runs of
//! the denoise stage (an action chunk is a few thousand numbers). Features, K and V stay where the stages run.
//!
//! Called through [`Engine`](crate::engine::Engine). Trained real-time chunking is refused: it needs two times in one
//! evaluation, which the denoise stage does not take.

use super::feed::{self, Slots, Tables};
use super::stages::{Sizes, Stage};
use crate::engine::cpu::time::{Modulation, TimeConditioning};
use crate::engine::probe::Tap;
use crate::engine::weights::{Tensor, Weights};
use crate::engine::{EngineError, check_latest, check_leftover};
use crate::model::Pixels;
use crate::model::dims::Dims;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{HostField, Sampler};
use crate::model::tensors::TOKEN_EMBEDDING;

/// Where stages run. Outputs of one are the inputs of the same name of the next: `features`, `k.{i}`, `v.{i}`.
pub trait Device: Send {
    /// Fills an input of a stage.
    fn put(&mut self, stage: Stage, name: &str, values: &[f32]) -> Result<(), EngineError>;
    /// Runs a stage on what is there.
    fn run(&mut self, stage: Stage) -> Result<(), EngineError>;
    /// What a stage gave, in f32.
    fn get(&mut self, stage: Stage, name: &str) -> Result<Vec<f32>, EngineError>;
}

/// A network whose stages are TensorRT's. One inference at a time.
pub struct TensorRtEngine {
    dims: Dims,
    sizes: Sizes,
    embedding: Tensor,
    time: TimeConditioning,
    device: Box<dyn Device>,
    /// How often features and keys were made: what a caller holds must be the latest.
    generation: u64,
}

/// Image tokens of the last vision pass.
pub struct Features {
    present: Vec<bool>,
    generation: u64,
}

/// Keys and values of the last prefix pass.
pub struct KvCache {
    slots: Slots,
    generation: u64,
}

impl TensorRtEngine {
    /// Stages on `device`, which were built for `sizes` from these weights.
    pub fn new(
        weights: &Weights,
        dims: Dims,
        sizes: Sizes,
        device: Box<dyn Device>,
    ) -> Result<Self, EngineError> {
        let time = TimeConditioning::new(weights, &dims.expert);
        let embedding = weights.get(TOKEN_EMBEDDING);
        Ok(Self {
            dims,
            sizes,
            embedding: embedding.ok_or_else(|| EngineError::Missing(TOKEN_EMBEDDING.to_owned()))?,
            time: time.map_err(|e| EngineError::Missing(e.name().to_owned()))?,
            device,
            generation: 0,
        })
    }

    /// The network's dimensions.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Stage 1: image tokens of the present cameras.
    pub fn vision(&mut self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Features, EngineError> {
        let present: Vec<bool> = images.iter().map(Option::is_some).collect();
        self.generation += 1;
        if present.contains(&true) {
            self.device.put(Stage::Vision, "pixels", &feed::pixels(&self.dims, &self.sizes, images)?)?;
            self.device.run(Stage::Vision)?;
            if tap.is_listening() {
                let features = self.device.get(Stage::Vision, "features")?;
                let camera = features.chunks_exact(self.dims.vision.tokens() * self.dims.language.width);
                for (slot, rows) in camera.enumerate().filter(|(slot, _)| present.get(*slot) == Some(&true)) {
                    tap.record(format_args!("vision.projected.{slot}"), rows);
                }
            }
        }
        Ok(Features { present, generation: self.generation })
    }

    /// Stage 2: the prefix (image tokens, then prompt tokens) to keys and values.
    pub fn prefix(
        &mut self,
        features: &Features,
        tokens: &[u32],
        tap: &mut Tap,
    ) -> Result<KvCache, EngineError> {
        check_latest("features", features.generation, self.generation)?;
        let Self { dims, sizes, device, .. } = self;
        let slots = Slots::new(dims, sizes, &features.present, tokens.len())?;
        let tables = Tables::new(dims.language.head_dim, slots.positions());
        device.put(Stage::Prefix, "prompt", &feed::prompt(dims, sizes, &self.embedding, tokens)?)?;
        device.put(Stage::Prefix, "cos", &tables.cos)?;
        device.put(Stage::Prefix, "sin", &tables.sin)?;
        device.put(Stage::Prefix, "mask", &slots.mask())?;
        device.run(Stage::Prefix)?;
        if tap.is_listening() {
            for i in 0..dims.language.layers {
                for name in ["k", "v"] {
                    let all = device.get(Stage::Prefix, &format!("{name}.{i}"))?;
                    let rows = all.chunks_exact(dims.language.head_dim).zip(slots.valid());
                    let valid: Vec<f32> =
                        rows.filter(|(_, valid)| **valid).flat_map(|(row, _)| row).copied().collect();
                    tap.record(format_args!("prefix.kv.{i}.{name}"), &valid);
                }
            }
        }
        self.generation += 1;
        Ok(KvCache { slots, generation: self.generation })
    }

    /// Stage 3: from `noise` `[horizon, action_dim]` to actions of the same shape, in model space.
    pub fn denoise(
        &mut self,
        kv: &KvCache,
        noise: &[f32],
        sampler: &Sampler,
        rtc: &Rtc,
        tap: &mut Tap,
    ) -> Result<Vec<f32>, EngineError> {
        check_latest("keys and values", kv.generation, self.generation)?;
        let (horizon, action_dim) = (self.sizes.horizon, self.dims.action_dim);
        let input = |what, expected: String, found: String| Err(EngineError::Input { what, expected, found });
        if noise.len() != horizon * action_dim {
            let expected = format!("[{horizon}, {action_dim}], as the engine was built for");
            return input("noise", expected, format!("{} values", noise.len()));
        }
        check_leftover(rtc, [horizon, action_dim])?;
        if rtc.clean_rows() > 0 {
            let found = "rtc_trained on TensorRT's denoise stage";
            return input("execution", "another mode, or backend cuda or cpu".into(), found.into());
        }
        let modulations = self.time.modulations(&sampler.times(), tap);
        let first = kv.slots.count();
        let tables = Tables::new(self.dims.expert.head_dim, first..first + horizon);
        let device = self.device.as_mut();
        device.put(Stage::Denoise, "cos", &tables.cos)?;
        device.put(Stage::Denoise, "sin", &tables.sin)?;
        device.put(Stage::Denoise, "mask", &kv.slots.mask())?;
        let mut x = rtc.start(noise);
        sampler.run(&mut Steps { device, modulations: &modulations, tap }, &rtc.steering(), &mut x)?;
        Ok(x)
    }
}

/// One chunk's denoising: the engine as a velocity field on host vectors.
struct Steps<'a, 'tap> {
    device: &'a mut dyn Device,
    /// One per evaluation.
    modulations: &'a [Modulation],
    tap: &'a mut Tap<'tap>,
}

impl HostField for Steps<'_, '_> {
    type Error = EngineError;

    fn velocity_at(&mut self, x: &[f32], evaluation: usize) -> Result<Vec<f32>, EngineError> {
        self.tap.record(format_args!("step.{evaluation}.x_t"), x);
        self.device.put(Stage::Denoise, "x", x)?;
        self.device.put(Stage::Denoise, "modulation", self.modulations[evaluation].values())?;
        self.device.run(Stage::Denoise)?;
        let v = self.device.get(Stage::Denoise, "velocity")?;
        self.tap.record(format_args!("step.{evaluation}.v_t"), &v);
        Ok(v)
    }
}
