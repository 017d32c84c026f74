//! SigLIP So400m/14 and the projector to Gemma's width (spec/PI05.md §4).

use rayon::prelude::*;

use super::attention::own_heads;
use super::linear::Linear;
use super::math::{add, gelu, layer_norm};
use super::{MissingTensor, vector};
use crate::engine::EngineError;
use crate::engine::calibration::{Rounded, VISION as REPORTED};
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::Pixels;
use crate::model::dims::VisionDims;
use crate::model::names::{PROJECTOR, VISION};

/// The vision stage's weights.
pub struct Vision {
    dims: VisionDims,
    patch_embedding: Linear,
    /// `[tokens, width]`
    position_embedding: Vec<f32>,
    layers: Vec<Layer>,
    post_layernorm: LayerNorm,
    projector: Linear,
}

struct Layer {
    norm1: LayerNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Vision {
    /// `rounding`: of what a matrix multiplies, by layer and the name under which it is reported, where that is to be e4m3.
    pub fn new(
        weights: &Weights,
        dims: VisionDims,
        rounding: impl Fn(usize, &str) -> Option<Rounded>,
    ) -> Result<Self, MissingTensor> {
        let linear = |name: String| Linear::new(weights, &name).ok_or(MissingTensor(name));
        let norm = |name: String| LayerNorm::new(weights, &name);
        let layer = |i: usize| {
            let at = format!("{VISION}encoder.layers.{i}.");
            let part = |name: &str, of| Ok(linear(format!("{at}{name}"))?.rounded(rounding(i, of)));
            let [normed, mixed, post_normed, hidden] = REPORTED;
            Ok(Layer {
                norm1: norm(format!("{at}layer_norm1"))?,
                q: part("self_attn.q_proj", normed)?,
                k: part("self_attn.k_proj", normed)?,
                v: part("self_attn.v_proj", normed)?,
                out: part("self_attn.out_proj", mixed)?,
                norm2: norm(format!("{at}layer_norm2"))?,
                fc1: part("mlp.fc1", post_normed)?,
                fc2: part("mlp.fc2", hidden)?,
            })
        };
        Ok(Self {
            dims,
            patch_embedding: linear(format!("{VISION}embeddings.patch_embedding"))?,
            position_embedding: vector(weights, &format!("{VISION}embeddings.position_embedding.weight"))?,
            layers: (0..dims.layers).map(layer).collect::<Result<_, _>>()?,
            post_layernorm: norm(format!("{VISION}post_layernorm"))?,
            projector: linear(PROJECTOR.to_owned())?,
        })
    }

    /// Tokens of all present cameras, in slot order: `[cameras * tokens, language width]`. Not scaled.
    /// Intermediate values are reported per camera, with the slot's number as the last part of the name.
    pub fn run(&self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Vec<f32>, EngineError> {
        let present: Vec<(usize, &Pixels)> =
            images.iter().enumerate().filter_map(|(slot, image)| Some((slot, image.as_ref()?))).collect();
        let (width, tokens) = (self.dims.width, self.dims.tokens());
        let mut patches = Vec::with_capacity(present.len() * tokens * 3 * self.dims.patch * self.dims.patch);
        for (_, image) in &present {
            self.patches(image, &mut patches)?;
        }
        let mut x = self.patch_embedding.of(&patches);
        x.chunks_exact_mut(tokens * width).for_each(|x| add(x, &self.position_embedding));

        let report = |tap: &mut Tap, name: &str, x: &[f32], width: usize| {
            for ((slot, _), x) in present.iter().zip(x.chunks_exact(tokens * width)) {
                tap.record(format_args!("vision.{name}.{slot}"), x);
            }
        };
        report(tap, "embeddings", &x, width);
        for i in 0..self.layers.len() {
            self.layer(i, &mut x, |name, x, width| report(tap, &format!("layer.{i}.{name}"), x, width));
        }
        let mut h = vec![0.0; x.len()];
        self.post_layernorm.apply(&x, &mut h);
        report(tap, "post_layernorm", &h, width);
        let projected = self.projector.of(&h);
        report(tap, "projected", &projected, self.projector.outputs());
        Ok(projected)
    }

    /// One layer over the residual stream `x` of any number of images; `report` hears of values by their names in a layer.
    pub fn layer(&self, i: usize, x: &mut [f32], mut report: impl FnMut(&str, &[f32], usize)) {
        let (layer, width) = (&self.layers[i], self.dims.width);
        let image = self.dims.tokens() * width;
        let mut h = vec![0.0; x.len()];
        layer.norm1.apply(x, &mut h);
        report("layer_norm1", &h, width);
        let (q, k, v) = (layer.q.of(&h), layer.k.of(&h), layer.v.of(&h));
        let mut mixed = vec![0.0; x.len()];
        for (c, mixed) in mixed.chunks_exact_mut(image).enumerate() {
            let image = c * image..(c + 1) * image;
            own_heads(&q[image.clone()], &k[image.clone()], &v[image], width, self.dims.heads, mixed);
        }
        report("attention", &mixed, width);
        layer.out.apply(&mixed, &mut h);
        report("self_attn", &h, width);
        add(x, &h);

        layer.norm2.apply(x, &mut h);
        report("layer_norm2", &h, width);
        let mut hidden = layer.fc1.of(&h);
        hidden.par_chunks_mut(self.dims.mlp).for_each(gelu);
        report("hidden", &hidden, self.dims.mlp);
        layer.fc2.apply(&hidden, &mut h);
        report("mlp", &h, width);
        add(x, &h);
        report("out", x, width);
    }

    /// Appends an image as rows of `(c, i, j)` patches, row-major over the grid, in [-1, 1].
    fn patches(&self, image: &Pixels, rows: &mut Vec<f32>) -> Result<(), EngineError> {
        let (side, patch) = (self.dims.image, self.dims.patch);
        let len = match image {
            Pixels::U8(data) => data.len(),
            Pixels::F32(data) => data.len(),
        };
        if len != side * side * 3 {
            return Err(EngineError::Input {
                what: "camera image",
                expected: format!("{side}x{side}x3 values"),
                found: format!("{len} values"),
            });
        }
        let at = |y: usize, x: usize, c: usize| {
            let i = (y * side + x) * 3 + c;
            match image {
                Pixels::U8(data) => f32::from(data[i]) / 255.0 * 2.0 - 1.0,
                Pixels::F32(data) => data[i],
            }
        };
        for top in (0..side).step_by(patch) {
            for left in (0..side).step_by(patch) {
                for c in 0..3 {
                    for i in 0..patch {
                        rows.extend((0..patch).map(|j| at(top + i, left + j, c)));
                    }
                }
            }
        }
        Ok(())
    }
}

impl LayerNorm {
    fn new(weights: &Weights, name: &str) -> Result<Self, MissingTensor> {
        Ok(Self {
            weight: vector(weights, &format!("{name}.weight"))?,
            bias: vector(weights, &format!("{name}.bias"))?,
        })
    }

    fn apply(&self, x: &[f32], out: &mut [f32]) {
        let width = self.weight.len();
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            layer_norm(x, &self.weight, &self.bias, out);
        }
    }
}
