//! The reference engine: π0.5 in f32, to be read beside spec/PI05.md.
//!
//! Masked cameras and padding never enter the sequence; the last prefix layer computes K and V only; modulation
//! vectors are made once per schedule; weights are used where the file's mapping has them.

mod attention;
mod gemma;
mod linear;
mod math;
pub(super) mod time;
mod vision;

use std::sync::Arc;

pub use linear::peak_flops;

use gemma::{Block, LayerKv, MlpScratch, Norm, Rope, rms_scale};
use linear::Linear;
use thiserror::Error;
use time::{Modulated, Modulation, TimeConditioning};
use vision::Vision;

use super::calibration::Calibration;
use super::probe::Tap;
use super::weights::{Tensor, Weights};
use super::{EngineError, check_leftover};
use crate::model::Pixels;
use crate::model::dims::Dims;
use crate::model::names::{EXPERT, LANGUAGE, language_final_norm};
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{HostField, Sampler};
use crate::model::tensors::TOKEN_EMBEDDING;

/// A network ready to run. One inference at a time (`&mut`); all cores.
pub struct CpuEngine {
    dims: Dims,
    vision: Vision,
    embedding: Tensor,
    language: Vec<PrefixLayer>,
    /// `1 + w` of the norm after the last prefix layer, which only `verify` looks at.
    final_norm: Option<Vec<f32>>,
    expert: Vec<Block>,
    time: TimeConditioning,
    action_in: Linear,
    action_out: Linear,
    rope: Rope,
    rounds: bool,
}

struct PrefixLayer {
    block: Block,
    input_norm: Vec<f32>,
    post_norm: Vec<f32>,
}

/// What a layer computes besides K and V, and inference does not need of the last prefix layer.
const BEYOND_KV: [&str; 5] = ["q_proj", "self_attn", "post_attention_layernorm", "mlp", "out"];

/// Image tokens of all present cameras, `[tokens, language width]`.
pub struct Features(Vec<f32>);

/// Keys and values of every prefix layer.
pub struct KvCache {
    layers: Vec<LayerKv>,
    /// Valid prefix tokens.
    tokens: usize,
}

/// For tests that put another's stage before or behind one of these.
#[cfg(test)]
mod of {
    #![allow(missing_docs)]

    use super::{Features, KvCache, LayerKv};

    impl Features {
        pub fn of(values: Vec<f32>) -> Self {
            Self(values)
        }

        pub fn values(&self) -> &[f32] {
            &self.0
        }
    }

    impl KvCache {
        /// Of each layer K and V, `[tokens, head_dim]`.
        pub fn of(layers: impl Iterator<Item = [Vec<f32>; 2]>, tokens: usize) -> Self {
            Self { layers: layers.map(|[k, v]| LayerKv { k, v }).collect(), tokens }
        }
    }
}

/// A tensor that the engine needs is not among the weights.
#[derive(Debug, Error)]
#[error("tensor {0}: missing")]
pub struct MissingTensor(String);

impl MissingTensor {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// A whole tensor as f32.
fn vector(weights: &Weights, name: &str) -> Result<Vec<f32>, MissingTensor> {
    weights.get(name).map(|tensor| tensor.to_vec()).ok_or_else(|| MissingTensor(name.to_owned()))
}

impl CpuEngine {
    /// Takes the tensors that `dims` implies; shapes were checked by [`Dims::from_tensors`]. `calibration`: of tensors that
    /// are in it, and the matrices that they are multiplied with, numbers are rounded to e4m3 as a GPU's in fp8 are.
    pub fn new(
        weights: &Weights,
        dims: Dims,
        calibration: Option<&Calibration>,
    ) -> Result<Self, MissingTensor> {
        let rounding = |stage: &str, i: usize, part: &str| {
            calibration.and_then(|calibration| calibration.chosen(&format!("{stage}.layer.{i}.{part}")))
        };
        let linear = |name: &str| Linear::new(weights, name).ok_or_else(|| MissingTensor(name.to_owned()));
        let prefix_layer = |i: usize| {
            let at = format!("{LANGUAGE}layers.{i}.");
            Ok(PrefixLayer {
                block: Block::new(weights, &dims.language, &at, |part| rounding("prefix", i, part))?,
                input_norm: rms_scale(weights, &format!("{at}input_layernorm.weight"))?,
                post_norm: rms_scale(weights, &format!("{at}post_attention_layernorm.weight"))?,
            })
        };
        Ok(Self {
            vision: Vision::new(weights, dims.vision, |i, part| rounding("vision", i, part))?,
            embedding: weights
                .get(TOKEN_EMBEDDING)
                .ok_or_else(|| MissingTensor(TOKEN_EMBEDDING.to_owned()))?,
            language: (0..dims.language.layers).map(prefix_layer).collect::<Result<_, _>>()?,
            final_norm: rms_scale(weights, &language_final_norm()).ok(),
            expert: (0..dims.expert.layers)
                .map(|i| Block::new(weights, &dims.expert, &format!("{EXPERT}layers.{i}."), |_| None))
                .collect::<Result<_, _>>()?,
            time: TimeConditioning::new(weights, &dims)?,
            action_in: linear("action_in_proj")?,
            action_out: linear("action_out_proj")?,
            rope: Rope::new(dims.language.head_dim, 0),
            rounds: calibration.is_some(),
            dims,
        })
    }

    /// The network's dimensions.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Whether some numbers are rounded to e4m3.
    pub fn rounds(&self) -> bool {
        self.rounds
    }

    /// One layer of vision over the residual stream `x` of whole images.
    pub fn vision_layer(&self, i: usize, x: &mut [f32]) {
        self.vision.layer(i, x, |_, _, _| ());
    }

    /// One layer of the prefix over the residual stream `x` of all its tokens; of the last layer, which makes keys and values
    /// only, `x` becomes these.
    pub fn prefix_layer(&mut self, i: usize, x: &mut Vec<f32>) {
        self.grow_rope(x.len() / self.dims.language.width);
        let PrefixLayer { block, input_norm, post_norm } = &self.language[i];
        let (input, post, positions) = (Norm::rms(input_norm), Norm::rms(post_norm), self.rope.from(0));
        let nobody = &mut Tap::none();
        if i + 1 < self.language.len() {
            block.attend(x, input, None, positions, "", nobody);
            block.mlp(x, post, &mut MlpScratch::default(), "", nobody);
        } else {
            let LayerKv { k, v } = block.kv(x, input, positions, "", nobody);
            *x = [k, v].concat();
        }
    }

    /// Stage 1: image tokens of the present cameras.
    pub fn vision(&mut self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Features, EngineError> {
        Ok(Features(self.vision.run(images, tap)?))
    }

    /// Stage 2: the prefix (image tokens, then prompt tokens) to keys and values. Every token sees every token.
    pub fn prefix(
        &mut self,
        features: &Features,
        tokens: &[u32],
        tap: &mut Tap,
    ) -> Result<KvCache, EngineError> {
        let width = self.dims.language.width;
        let mut x = features.0.clone();
        x.extend(self.embed(tokens)?);
        if x.is_empty() {
            return Err(EngineError::Input {
                what: "prefix",
                expected: "at least one image or prompt token".into(),
                found: "none".into(),
            });
        }
        tap.record(format_args!("prefix.embs"), &x);
        let valid = x.len() / width;
        self.grow_rope(valid);
        let positions = self.rope.from(0);

        let last = self.language.len() - 1;
        let beyond_kv = tap.wants(format_args!("prefix.final_norm"))
            || BEYOND_KV.iter().any(|part| tap.wants(format_args!("prefix.layer.{last}.{part}")));
        let mut scratch = MlpScratch::default();
        let mut layers = Vec::with_capacity(self.language.len());
        for (i, layer) in self.language.iter().enumerate() {
            let at = format!("prefix.layer.{i}");
            let (input, post) = (Norm::rms(&layer.input_norm), Norm::rms(&layer.post_norm));
            let kv = if i < last || beyond_kv {
                let kv = layer.block.attend(&mut x, input, None, positions, &at, tap);
                layer.block.mlp(&mut x, post, &mut scratch, &at, tap);
                kv
            } else {
                layer.block.kv(&x, input, positions, &at, tap)
            };
            tap.record(format_args!("prefix.kv.{i}.k"), &kv.k);
            tap.record(format_args!("prefix.kv.{i}.v"), &kv.v);
            layers.push(kv);
        }
        if let Some(scale) = self.final_norm.as_deref().filter(|_| beyond_kv) {
            let mut h = vec![0.0; x.len()];
            Norm::rms(scale).apply(&x, &mut h);
            tap.record(format_args!("prefix.final_norm"), &h);
        }
        Ok(KvCache { layers, tokens: valid })
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
        let action_dim = self.dims.action_dim;
        if noise.is_empty() || !noise.len().is_multiple_of(action_dim) {
            return Err(EngineError::Input {
                what: "noise",
                expected: format!("[horizon, {action_dim}]"),
                found: format!("{} values", noise.len()),
            });
        }
        let shape = [noise.len() / action_dim, action_dim];
        check_leftover(rtc, shape)?;
        self.grow_rope(kv.tokens + shape[0]);
        let mut times = sampler.times();
        let clean_rows = rtc.clean_rows();
        if clean_rows > 0 {
            times.push(0.0);
        }
        let modulations = self.time.modulations(&times, tap);
        let mut x = rtc.start(noise);
        sampler.run(
            &mut Steps { engine: self, kv, modulations, clean_rows, tap },
            &rtc.steering(),
            &mut x,
        )?;
        Ok(x)
    }

    /// `E[token] * √width`
    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let width = self.dims.language.width;
        let scale = (width as f32).sqrt();
        let mut rows = vec![0.0; tokens.len() * width];
        for (row, &token) in rows.chunks_exact_mut(width).zip(tokens) {
            let token = token as usize;
            if token >= self.dims.vocab {
                return Err(EngineError::Input {
                    what: "prompt token",
                    expected: format!("below the embedding's {} rows", self.dims.vocab),
                    found: token.to_string(),
                });
            }
            self.embedding.convert(token * width..(token + 1) * width, row);
            row.iter_mut().for_each(|e| *e *= scale);
        }
        Ok(rows)
    }

    /// Velocity of the action tokens `x` `[horizon, action_dim]`: every one sees the prefix and every other.
    fn velocity(&self, x: &[f32], kv: &KvCache, modulation: Modulated, tap: &mut Tap) -> Vec<f32> {
        let mut h = self.action_in.of(x);
        tap.record(format_args!("suffix.embs"), &h);
        let mut scratch = MlpScratch::default();
        for (i, (block, past)) in self.expert.iter().zip(&kv.layers).enumerate() {
            let at = format!("suffix.layer.{i}");
            let (input, post) = (modulation.norm(2 * i), modulation.norm(2 * i + 1));
            if let (Some(attn), Some(mlp)) = (input.channels.gate, post.channels.gate) {
                tap.record(format_args!("{at}.gate_attn"), attn);
                tap.record(format_args!("{at}.gate_mlp"), mlp);
            }
            block.attend(&mut h, input, Some(past), self.rope.from(kv.tokens), &at, tap);
            block.mlp(&mut h, post, &mut scratch, &at, tap);
        }
        let mut normed = vec![0.0; h.len()];
        modulation.norm(2 * self.expert.len()).apply(&h, &mut normed);
        tap.record(format_args!("suffix.final_norm"), &normed);
        self.action_out.of(&normed)
    }

    fn grow_rope(&mut self, positions: usize) {
        if self.rope.positions() < positions {
            self.rope = Rope::new(self.dims.language.head_dim, positions);
        }
    }
}

/// One chunk's denoising: the engine as a velocity field.
struct Steps<'a, 'tap> {
    engine: &'a CpuEngine,
    kv: &'a KvCache,
    /// One per evaluation; then, if rows are clean, the one at time 0.
    modulations: Arc<[Modulation]>,
    /// Rows that are clean actions.
    clean_rows: usize,
    tap: &'a mut Tap<'tap>,
}

impl HostField for Steps<'_, '_> {
    type Error = EngineError;

    fn velocity_at(&mut self, x: &[f32], evaluation: usize) -> Result<Vec<f32>, EngineError> {
        self.tap.record(format_args!("step.{evaluation}.x_t"), x);
        // The fixtures record the inside of the first step only.
        let mut nobody = Tap::none();
        let inside = if evaluation == 0 { &mut *self.tap } else { &mut nobody };
        let clean = self.modulations.last().filter(|_| self.clean_rows > 0);
        let modulation = Modulated {
            all: &self.modulations[evaluation],
            clean: clean.map(|modulation| (self.clean_rows, modulation)),
        };
        let v = self.engine.velocity(x, self.kv, modulation, inside);
        self.tap.record(format_args!("step.{evaluation}.v_t"), &v);
        Ok(v)
    }
}
