//! One Gemma decoder block, for both models: the prefix (RMSNorm) and the action expert (adaRMS), which attends to
//! the prefix's keys and values of the same layer (spec/PI05.md §5.4 and §7).

use rayon::prelude::*;

use super::attention::shared_head;
use super::linear::Linear;
use super::math::{PARALLEL_ELEMENTS, add, add_gated, geglu, rms_norm};
use super::{MissingTensor, vector};
use crate::engine::calibration::{PREFIX, Rounded};
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::dims::GemmaDims;

/// A block's matrices.
pub struct Block {
    heads: usize,
    head_dim: usize,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A norm before a sub-layer, with the gate after it.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// Of every row but the first ones.
    pub channels: Channels<'a>,
    /// Expert only: how many rows come first, and theirs. They are clean actions (training-time RTC, spec §12.3).
    pub first: Option<(usize, Channels<'a>)>,
}

/// What a norm does to the channels of a row: learned weights in the prefix, made from the time in the expert.
#[derive(Clone, Copy)]
pub struct Channels<'a> {
    /// Multiplier per channel: `1 + w`, or `1 + scale`.
    pub scale: &'a [f32],
    /// adaRMS only.
    pub shift: Option<&'a [f32]>,
    /// adaRMS only: multiplies the sub-layer's output.
    pub gate: Option<&'a [f32]>,
}

/// Keys (after RoPE) and values of one layer, `[tokens, head_dim]` each.
#[derive(Clone, Debug, Default)]
pub struct LayerKv {
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
}

/// The MLP's two hidden activations, the largest of all: kept between layers, since fresh pages cost time.
#[derive(Default)]
pub struct MlpScratch {
    hidden: Vec<f32>,
    up: Vec<f32>,
}

impl Block {
    /// `rounding`: of what a matrix multiplies, by the name under which it is reported, where that is to be e4m3.
    pub fn new(
        weights: &Weights,
        dims: &GemmaDims,
        at: &str,
        rounding: impl Fn(&str) -> Option<Rounded>,
    ) -> Result<Self, MissingTensor> {
        let linear = |name: &str, of: &str| {
            let name = format!("{at}{name}");
            let linear = Linear::new(weights, &name).ok_or(MissingTensor(name))?;
            Ok(linear.rounded(rounding(of)))
        };
        let [normed, mixed, post_normed, hidden] = PREFIX;
        Ok(Self {
            heads: dims.heads,
            head_dim: dims.head_dim,
            q: linear("self_attn.q_proj", normed)?,
            k: linear("self_attn.k_proj", normed)?,
            v: linear("self_attn.v_proj", normed)?,
            o: linear("self_attn.o_proj", mixed)?,
            gate: linear("mlp.gate_proj", post_normed)?,
            up: linear("mlp.up_proj", post_normed)?,
            down: linear("mlp.down_proj", hidden)?,
        })
    }

    /// This layer's keys and values for the tokens `x`. `at` names the layer to the tap.
    pub fn kv(&self, x: &[f32], norm: Norm, positions: Positions, at: &str, tap: &mut Tap) -> LayerKv {
        let mut h = vec![0.0; x.len()];
        norm.apply(x, &mut h);
        tap.record(format_args!("{at}.input_layernorm"), &h);
        self.kv_of_normed(&h, positions, at, tap)
    }

    fn kv_of_normed(&self, h: &[f32], positions: Positions, at: &str, tap: &mut Tap) -> LayerKv {
        let mut k = self.k.of(h);
        tap.record(format_args!("{at}.k_proj"), &k);
        positions.rotate(&mut k, 1);
        let v = self.v.of(h);
        tap.record(format_args!("{at}.v_proj"), &v);
        LayerKv { k, v }
    }

    /// `x + gate * attention(norm(x))`. `past`: keys and values that come before the tokens' own. Returns their own.
    pub fn attend(
        &self,
        x: &mut [f32],
        norm: Norm,
        past: Option<&LayerKv>,
        positions: Positions,
        at: &str,
        tap: &mut Tap,
    ) -> LayerKv {
        let mut h = vec![0.0; x.len()];
        norm.apply(x, &mut h);
        tap.record(format_args!("{at}.input_layernorm"), &h);
        let own = self.kv_of_normed(&h, positions, at, tap);
        let mut q = self.q.of(&h);
        tap.record(format_args!("{at}.q_proj"), &q);
        positions.rotate(&mut q, self.heads);
        let mut mixed = vec![0.0; q.len()];
        match past {
            None => shared_head(&q, &own.k, &own.v, self.head_dim, &mut mixed),
            Some(past) => {
                let (k, v) = ([&past.k[..], &own.k].concat(), [&past.v[..], &own.v].concat());
                shared_head(&q, &k, &v, self.head_dim, &mut mixed);
            }
        }
        tap.record(format_args!("{at}.attention"), &mixed);
        self.o.apply(&mixed, &mut h);
        tap.record(format_args!("{at}.self_attn"), &h);
        norm.residual(x, &h);
        own
    }

    /// `x + gate * mlp(norm(x))`
    pub fn mlp(&self, x: &mut [f32], norm: Norm, scratch: &mut MlpScratch, at: &str, tap: &mut Tap) {
        let mut h = vec![0.0; x.len()];
        norm.apply(x, &mut h);
        tap.record(format_args!("{at}.post_attention_layernorm"), &h);
        let MlpScratch { hidden, up } = scratch;
        self.gate.apply_to(&h, hidden);
        self.up.apply_to(&h, up);
        if hidden.len() < PARALLEL_ELEMENTS {
            geglu(hidden, up);
        } else {
            let part = PARALLEL_ELEMENTS;
            hidden.par_chunks_mut(part).zip(up.par_chunks(part)).for_each(|(gate, up)| geglu(gate, up));
        }
        tap.record(format_args!("{at}.hidden"), hidden);
        self.down.apply(hidden, &mut h);
        tap.record(format_args!("{at}.mlp"), &h);
        norm.residual(x, &h);
        tap.record(format_args!("{at}.out"), x);
    }
}

impl<'a> Norm<'a> {
    /// RMSNorm with learned weights, given as `1 + w`.
    pub fn rms(scale: &'a [f32]) -> Self {
        Self { channels: Channels { scale, shift: None, gate: None }, first: None }
    }

    fn of_row(&self, row: usize) -> Channels<'a> {
        match self.first {
            Some((rows, channels)) if row < rows => channels,
            _ => self.channels,
        }
    }

    /// Normalises each row of `x`.
    pub fn apply(&self, x: &[f32], out: &mut [f32]) {
        let width = self.channels.scale.len();
        for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let Channels { scale, shift, .. } = self.of_row(row);
            rms_norm(x, scale, shift, out);
        }
    }

    fn residual(&self, x: &mut [f32], y: &[f32]) {
        let width = self.channels.scale.len();
        for (row, (x, y)) in x.chunks_exact_mut(width).zip(y.chunks_exact(width)).enumerate() {
            match self.of_row(row).gate {
                None => add(x, y),
                Some(gate) => add_gated(x, gate, y),
            }
        }
    }
}

/// RMSNorm multipliers `1 + w` of the prefix model.
pub fn rms_scale(weights: &Weights, name: &str) -> Result<Vec<f32>, MissingTensor> {
    Ok(vector(weights, name)?.into_iter().map(|w| 1.0 + w).collect())
}

/// Rotary embedding, half-split, θ = 10000: tables of cos and sin, `[positions, head_dim / 2]`.
pub struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Tables for positions `0..positions`; angles in f32 with an unrounded `inv_freq` (spec/PI05.md §10).
    pub fn new(head_dim: usize, positions: usize) -> Self {
        let half = head_dim / 2;
        let inv_freq: Vec<f32> =
            (0..half).map(|j| 1.0 / 10_000f32.powf((2 * j) as f32 / head_dim as f32)).collect();
        let angles = (0..positions).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half, cos, sin }
    }

    /// Number of positions in the tables.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// The positions from `first` on.
    pub fn from(&self, first: usize) -> Positions<'_> {
        Positions { rope: self, first }
    }
}

/// Where tokens stand: token `i` at position `first + i`, all of them in the tables.
#[derive(Clone, Copy)]
pub struct Positions<'a> {
    rope: &'a Rope,
    first: usize,
}

impl Positions<'_> {
    /// Rotates `x` `[tokens, heads * head_dim]` in place.
    fn rotate(&self, x: &mut [f32], heads: usize) {
        let Rope { half, cos, sin } = self.rope;
        let end = self.first + x.len() / (heads * 2 * half);
        assert!(
            end <= self.rope.positions(),
            "invariant of the engine: the tables grow before they are used"
        );
        let tables = cos.chunks_exact(*half).zip(sin.chunks_exact(*half)).skip(self.first);
        for (token, (cos, sin)) in x.chunks_exact_mut(heads * 2 * half).zip(tables) {
            for head in token.chunks_exact_mut(2 * half) {
                let (x1, x2) = head.split_at_mut(*half);
                for (((x1, x2), cos), sin) in x1.iter_mut().zip(x2).zip(cos).zip(sin) {
                    (*x1, *x2) = (*x1 * cos - *x2 * sin, *x2 * cos + *x1 * sin);
                }
            }
        }
    }
}
