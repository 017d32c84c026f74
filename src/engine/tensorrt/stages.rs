//! The three stages as graphs, from the dimensions (spec/PI05.md §4, §5 and §7; `engine::cpu` is the text beside it).
//!
//! | stage | in | out |
//! |---|---|---|
//! | vision | `pixels` f32 `[cameras, side, side, 3]` in [-1, 1] | `features` f32 `[cameras * tokens, width]` |
//! | prefix | `embs` f32 `[prefix, width]`: features, then the prompt's embeddings × √width; `cos`, `sin` f32 `[prefix, head_dim / 2]`; `mask` f32 `[1, prefix]`: 0 or [`MASKED`] | `k.{i}`, `v.{i}` bf16 `[prefix, head_dim]`, keys after RoPE |
//! | denoise | `x` f32 `[horizon, action_dim]`; `modulation` f32 `[norms, 3, width]`: 1 + scale, shift, gate at one time; `cos`, `sin`, `mask` as above, the tables of the action tokens; `k.{i}`, `v.{i}` | `velocity` f32 `[horizon, action_dim]` |
//!
//! With `trained`, the denoise stage also takes `clean` f32 `[horizon, 1]`, 1 for action tokens that are clean actions, and
//! `modulation.clean`, theirs. It costs a little in every norm, so it is made only for who runs `rtc_trained`.
//!
//! Shapes are fixed: TensorRT then chooses kernels for exactly these, and a run can be captured in a CUDA graph. Rows lie
//! as in the CUDA engine: present cameras, then the prompt, then whatever was there before, finite and masked. The price
//! is that masked rows are computed: build for the robot's cameras and the longest prompt that it has ([`Sizes`]).
//!
//! Weights and operands of products are in the engine's type; norms, softmax, RoPE, the residual stream, the patch
//! embedding and the action projections are f32 (spec §10). With e4m3, the matrices of SigLIP and the prefix and what
//! they multiply go through it; the expert stays bf16, since converting per layer costs more there than it gains.

use super::graph::{Binary, Graph, GraphError, Type, Value};
use crate::choices::choices;
use crate::engine::calibration::{Calibration, Uncalibrated};
use crate::model::dims::{Dims, GemmaDims};
use crate::model::names::{EXPERT, LANGUAGE, PROJECTOR, VISION};

use thiserror::Error;

choices! {
    /// A part of the network that is an engine of its own.
    Stage {
        /// SigLIP and projector.
        #[default]
        Vision = "vision",
        /// Gemma-2B.
        Prefix = "prefix",
        /// One evaluation of the action expert.
        Denoise = "denoise",
    }
}

choices! {
    /// Number format of an engine.
    Format {
        /// bfloat16.
        #[default]
        Bf16 = "bf16",
        /// IEEE half precision.
        Fp16 = "fp16",
        /// e4m3 where it pays, else bfloat16.
        Fp8 = "fp8",
    }
}

impl Stage {
    /// In their order.
    pub const ALL: [Self; 3] = [Stage::Vision, Stage::Prefix, Stage::Denoise];
}

/// What a masked slot's logits get: its weight then underflows to exactly 0.
pub const MASKED: f32 = -1e30;

/// What the shapes are fixed to, besides the checkpoint's dimensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Camera images.
    pub cameras: usize,
    /// Prompt slots.
    pub prompt: usize,
    /// Actions of a chunk.
    pub horizon: usize,
}

/// Why a stage cannot be defined.
#[derive(Debug, Error)]
pub enum DefinitionError {
    /// Shapes.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Ranges of activations.
    #[error(transparent)]
    Calibration(#[from] Uncalibrated),
    /// e4m3 without ranges.
    #[error(
        "--dtype fp8: expected a calibration.safetensors with the ranges of activations; run `pi05 calibrate` first"
    )]
    Uncalibrated,
}

impl Sizes {
    /// Slots of the prefix.
    pub fn prefix(&self, dims: &Dims) -> usize {
        self.cameras * dims.vision.tokens() + self.prompt
    }
}

impl Format {
    /// The type of operands, and of K and V.
    pub fn operands(self) -> Type {
        match self {
            Format::Bf16 | Format::Fp8 => Type::Bf16,
            Format::Fp16 => Type::F16,
        }
    }
}

/// A stage's network. `trained`: for trained real-time chunking, of which only the denoise stage knows.
pub fn define(
    stage: Stage,
    dims: &Dims,
    sizes: &Sizes,
    format: Format,
    calibration: Option<&Calibration>,
    trained: bool,
) -> Result<Graph, DefinitionError> {
    let small = format == Format::Fp8 && stage != Stage::Denoise;
    if small && calibration.is_none() {
        return Err(DefinitionError::Uncalibrated);
    }
    let mut stages =
        Stages { g: Graph::default(), operands: format.operands(), ranges: calibration.filter(|_| small) };
    match stage {
        Stage::Vision => stages.vision(dims, sizes)?,
        Stage::Prefix => stages.prefix(dims, sizes)?,
        Stage::Denoise => stages.denoise(dims, sizes, trained)?,
    }
    Ok(stages.g)
}

struct Stages<'a> {
    g: Graph,
    operands: Type,
    /// Given if products are to go through e4m3.
    ranges: Option<&'a Calibration>,
}

/// What adaRMS takes: all norms' multipliers, offsets and gates; those of clean rows, with 1 for rows that are not and
/// for rows that are.
#[derive(Clone, Copy)]
struct Modulation {
    all: Value,
    clean: Option<(Value, [Value; 2])>,
}

/// What the attention of every Gemma layer of a stage shares.
struct Attention<'a> {
    dims: &'a GemmaDims,
    tokens: usize,
    /// f32 `[tokens, 1, half]`
    cos: Value,
    sin: Value,
    /// f32 `[1, keys]`
    mask: Value,
}

type Defined<T = Value> = Result<T, DefinitionError>;

impl Stages<'_> {
    fn vision(&mut self, dims: &Dims, sizes: &Sizes) -> Defined<()> {
        let v = &dims.vision;
        let (images, tokens, grid, patch) = (sizes.cameras, v.tokens(), v.image / v.patch, v.patch);
        let rows = images * tokens;
        let pixels = self.g.input("pixels", Type::F32, &[images, v.image, v.image, 3]);
        // Rows of (c, i, j), as the convolution's weights have them.
        let split = self.g.reshape(pixels, &[images, grid, patch, grid, patch, 3])?;
        let patches = self.g.transpose(split, &[0, 1, 3, 5, 2, 4])?;
        let patches = self.g.reshape(patches, &[rows, 3 * patch * patch])?;
        let at = format!("{VISION}embeddings.patch_embedding");
        let weight = self.g.weight(format!("{at}.weight"), Type::F32, &[v.width, 3 * patch * patch]);
        let bias = self.g.weight(format!("{at}.bias"), Type::F32, &[1, v.width]);
        let x = self.g.matmul(patches, weight, true)?;
        let x = self.g.add(x, bias)?;
        let x = self.g.reshape(x, &[images, tokens, v.width])?;
        let position = format!("{VISION}embeddings.position_embedding.weight");
        let position = self.g.weight(position, Type::F32, &[1, tokens, v.width]);
        let x = self.g.add(x, position)?;
        let mut x = self.g.reshape(x, &[rows, v.width])?;

        let head_dim = v.width / v.heads;
        let scale = self.g.constant(vec![1.0 / (head_dim as f32).sqrt()], &[1, 1, 1, 1])?;
        for i in 0..v.layers {
            let at = format!("{VISION}encoder.layers.{i}.");
            let seen = |part: &str| format!("vision.layer.{i}.{part}");
            let h = self.layer_norm(x, &format!("{at}layer_norm1"), v.width)?;
            let h = self.operand(h, &seen("layer_norm1"))?;
            let mut heads = [h; 3];
            for (head, name) in heads.iter_mut().zip(["q", "k", "v"]) {
                let y = self.biased(h, &format!("{at}self_attn.{name}_proj"), v.width, v.width)?;
                let y = self.g.reshape(y, &[images, tokens, v.heads, head_dim])?;
                *head = self.g.transpose(y, &[0, 2, 1, 3])?;
            }
            let mixed = self.attend(heads, |g, logits| g.mul(logits, scale))?;
            let mixed = self.g.transpose(mixed, &[0, 2, 1, 3])?;
            let mixed = self.g.reshape(mixed, &[rows, v.width])?;
            let mixed = self.operand(mixed, &seen("attention"))?;
            let y = self.biased(mixed, &format!("{at}self_attn.out_proj"), v.width, v.width)?;
            x = self.residual(x, y, None)?;

            let h = self.layer_norm(x, &format!("{at}layer_norm2"), v.width)?;
            let h = self.operand(h, &seen("layer_norm2"))?;
            let hidden = self.biased(h, &format!("{at}mlp.fc1"), v.mlp, v.width)?;
            let hidden = self.g.gelu(hidden);
            let hidden = self.operand(hidden, &seen("hidden"))?;
            let y = self.biased(hidden, &format!("{at}mlp.fc2"), v.width, v.mlp)?;
            x = self.residual(x, y, None)?;
        }
        let h = self.layer_norm(x, &format!("{VISION}post_layernorm"), v.width)?;
        let h = self.operand(h, "vision.post_layernorm")?;
        let projected = self.biased(h, PROJECTOR, dims.language.width, v.width)?;
        let features = self.g.cast(projected, Type::F32);
        self.g.output("features", features);
        Ok(())
    }

    fn prefix(&mut self, dims: &Dims, sizes: &Sizes) -> Defined<()> {
        let (lm, rows) = (&dims.language, sizes.prefix(dims));
        let mut x = self.g.input("embs", Type::F32, &[rows, lm.width]);
        let attention = self.attention(lm, rows, rows)?;
        for i in 0..lm.layers {
            let at = format!("{LANGUAGE}layers.{i}.");
            let seen = |part: &str| format!("prefix.layer.{i}.{part}");
            let h = self.rms_norm(x, &format!("{at}input_layernorm.weight"), lm.width)?;
            let h = self.operand(h, &seen("input_layernorm"))?;
            let (k, v) = self.keys_and_values(h, &attention, &at)?;
            for (name, value) in [("k", k), ("v", v)] {
                let value = self.g.cast(value, Type::Bf16);
                self.g.output(format!("{name}.{i}"), value);
            }
            if i + 1 == lm.layers {
                break; // of the last layer only K and V are read
            }
            let mixed = self.attend_shared(h, k, v, &attention, &at)?;
            let mixed = self.operand(mixed, &seen("attention"))?;
            let y = self.linear(mixed, &format!("{at}self_attn.o_proj"), lm.width, lm.q_width())?;
            x = self.residual(x, y, None)?;
            let h = self.rms_norm(x, &format!("{at}post_attention_layernorm.weight"), lm.width)?;
            let h = self.operand(h, &seen("post_attention_layernorm"))?;
            let hidden = self.gated(h, lm, &at)?;
            let hidden = self.operand(hidden, &seen("hidden"))?;
            let y = self.linear(hidden, &format!("{at}mlp.down_proj"), lm.width, lm.mlp)?;
            x = self.residual(x, y, None)?;
        }
        Ok(())
    }

    fn denoise(&mut self, dims: &Dims, sizes: &Sizes, trained: bool) -> Defined<()> {
        let (ex, rows, past) = (&dims.expert, sizes.horizon, sizes.prefix(dims));
        let noisy = self.g.input("x", Type::F32, &[rows, dims.action_dim]);
        let modulation = self.modulation(ex, rows, trained)?;
        let attention = self.attention(ex, rows, past)?;
        // The action tokens see each other.
        let own = self.g.constant(vec![0.0; rows], &[1, rows])?;
        let mask = self.g.concat(&[attention.mask, own], 1)?;
        let attention = Attention { mask, ..attention };

        let mut x = self.projection(noisy, "action_in_proj", ex.width, dims.action_dim)?;
        for i in 0..ex.layers {
            let at = format!("{EXPERT}layers.{i}.");
            let (h, gate) = self.adaptive_norm(x, modulation, 2 * i, ex.width)?;
            let h = self.g.cast(h, self.operands);
            let (k, v) = self.keys_and_values(h, &attention, &at)?;
            let [k, v] = [("k", k), ("v", v)].map(|(name, own)| {
                let past = self.g.input(&format!("{name}.{i}"), Type::Bf16, &[past, ex.head_dim]);
                let past = self.g.cast(past, self.operands);
                self.g.concat(&[past, own], 0)
            });
            let mixed = self.attend_shared(h, k?, v?, &attention, &at)?;
            let y = self.linear(mixed, &format!("{at}self_attn.o_proj"), ex.width, ex.q_width())?;
            x = self.residual(x, y, Some(gate))?;
            let (h, gate) = self.adaptive_norm(x, modulation, 2 * i + 1, ex.width)?;
            let h = self.g.cast(h, self.operands);
            let hidden = self.gated(h, ex, &at)?;
            let y = self.linear(hidden, &format!("{at}mlp.down_proj"), ex.width, ex.mlp)?;
            x = self.residual(x, y, Some(gate))?;
        }
        let (h, _) = self.adaptive_norm(x, modulation, 2 * ex.layers, ex.width)?;
        let velocity = self.projection(h, "action_out_proj", dims.action_dim, ex.width)?;
        self.g.output("velocity", velocity);
        Ok(())
    }

    fn attention<'d>(&mut self, dims: &'d GemmaDims, tokens: usize, keys: usize) -> Defined<Attention<'d>> {
        let half = dims.head_dim / 2;
        let [cos, sin] = ["cos", "sin"].map(|name| {
            let table = self.g.input(name, Type::F32, &[tokens, half]);
            self.g.reshape(table, &[tokens, 1, half])
        });
        let mask = self.g.input("mask", Type::F32, &[1, keys]);
        Ok(Attention { dims, tokens, cos: cos?, sin: sin?, mask })
    }

    /// K after RoPE and V of the normed tokens `h`, `[tokens, head_dim]` each.
    fn keys_and_values(&mut self, h: Value, attention: &Attention<'_>, at: &str) -> Defined<(Value, Value)> {
        let dims = attention.dims;
        let k = self.linear(h, &format!("{at}self_attn.k_proj"), dims.head_dim, dims.width)?;
        let k = self.g.cast(k, Type::F32);
        let k = self.rotate(k, 1, attention)?;
        let v = self.linear(h, &format!("{at}self_attn.v_proj"), dims.head_dim, dims.width)?;
        Ok((self.g.cast(k, self.operands), v))
    }

    /// All heads' attention to the one K and V that they share: since they do, queries are `[tokens * heads, head_dim]`.
    fn attend_shared(
        &mut self,
        h: Value,
        k: Value,
        v: Value,
        attention: &Attention<'_>,
        at: &str,
    ) -> Defined {
        let dims = attention.dims;
        let q = self.linear(h, &format!("{at}self_attn.q_proj"), dims.q_width(), dims.width)?;
        let q = self.g.cast(q, Type::F32);
        let q = self.rotate(q, dims.heads, attention)?;
        let scale = self.g.constant(vec![1.0 / (dims.head_dim as f32).sqrt()], &[1, 1])?;
        let q = self.g.mul(q, scale)?;
        let q = self.g.cast(q, self.operands);
        let keys = self.g.node(k).shape[0];
        let q = self.g.reshape(q, &[1, 1, attention.tokens * dims.heads, dims.head_dim])?;
        let k = self.g.reshape(k, &[1, 1, keys, dims.head_dim])?;
        let v = self.g.reshape(v, &[1, 1, keys, dims.head_dim])?;
        let mask = self.g.reshape(attention.mask, &[1, 1, 1, keys])?;
        let mixed = self.attend([q, k, v], |g, logits| g.add(logits, mask))?;
        Ok(self.g.reshape(mixed, &[attention.tokens, dims.q_width()])?)
    }

    /// `softmax(adjust(q kᵀ)) v`, the softmax in f32.
    fn attend(
        &mut self,
        [q, k, v]: [Value; 3],
        adjust: impl FnOnce(&mut Graph, Value) -> Result<Value, GraphError>,
    ) -> Defined {
        let logits = self.g.matmul(q, k, true)?;
        let logits = self.g.cast(logits, Type::F32);
        let logits = adjust(&mut self.g, logits)?;
        let weights = self.g.softmax(logits);
        let weights = self.g.cast(weights, self.operands);
        Ok(self.g.matmul(weights, v, false)?)
    }

    /// RoPE on f32 `[tokens, heads * head_dim]`: the halves (a, b) become (a cos − b sin, b cos + a sin).
    fn rotate(&mut self, x: Value, heads: usize, attention: &Attention<'_>) -> Defined {
        let (tokens, half) = (attention.tokens, attention.dims.head_dim / 2);
        let halves = self.g.reshape(x, &[tokens, heads, 2 * half])?;
        let a = self.g.slice(halves, &[0, 0, 0], &[tokens, heads, half])?;
        let b = self.g.slice(halves, &[0, 0, half], &[tokens, heads, half])?;
        let (a_cos, b_sin) = (self.g.mul(a, attention.cos)?, self.g.mul(b, attention.sin)?);
        let (b_cos, a_sin) = (self.g.mul(b, attention.cos)?, self.g.mul(a, attention.sin)?);
        let first = self.g.binary(Binary::Sub, a_cos, b_sin)?;
        let second = self.g.add(b_cos, a_sin)?;
        let rotated = self.g.concat(&[first, second], 2)?;
        Ok(self.g.reshape(rotated, &[tokens, heads * 2 * half])?)
    }

    /// `GELU(gate h) * up h`
    fn gated(&mut self, h: Value, dims: &GemmaDims, at: &str) -> Defined {
        let gate = self.linear(h, &format!("{at}mlp.gate_proj"), dims.mlp, dims.width)?;
        let gate = self.g.gelu(gate);
        let up = self.linear(h, &format!("{at}mlp.up_proj"), dims.mlp, dims.width)?;
        Ok(self.g.mul(gate, up)?)
    }

    /// `x + gate * y` in f32.
    fn residual(&mut self, x: Value, y: Value, gate: Option<Value>) -> Defined {
        let y = self.g.cast(y, Type::F32);
        let y = match gate {
            Some(gate) => self.g.mul(y, gate)?,
            None => y,
        };
        Ok(self.g.add(x, y)?)
    }

    /// `x Wᵀ` in the operands' type. Where [`Stages::operand`] put x through e4m3, so goes W, by rows.
    fn linear(&mut self, x: Value, name: &str, outputs: usize, inputs: usize) -> Defined {
        let name = format!("{name}.weight");
        let mut weight = self.g.weight(&name, self.operands, &[outputs, inputs]);
        if self.ranges.is_some() {
            let scales = self.g.row_scales(&name, outputs);
            weight = self.g.through_fp8(weight, scales)?;
        }
        Ok(self.g.matmul(x, weight, true)?)
    }

    /// `x Wᵀ + b`
    fn biased(&mut self, x: Value, name: &str, outputs: usize, inputs: usize) -> Defined {
        let y = self.linear(x, name, outputs, inputs)?;
        let bias = self.g.weight(format!("{name}.bias"), self.operands, &[1, outputs]);
        Ok(self.g.add(y, bias)?)
    }

    /// `x Wᵀ + b` in f32.
    fn projection(&mut self, x: Value, name: &str, outputs: usize, inputs: usize) -> Defined {
        let weight = self.g.weight(format!("{name}.weight"), Type::F32, &[outputs, inputs]);
        let bias = self.g.weight(format!("{name}.bias"), Type::F32, &[1, outputs]);
        let y = self.g.matmul(x, weight, true)?;
        Ok(self.g.add(y, bias)?)
    }

    /// `x` as products take it: in the operands' type, and through e4m3 by the range that was seen as `seen`.
    fn operand(&mut self, x: Value, seen: &str) -> Defined {
        let x = self.g.cast(x, self.operands);
        let Some(ranges) = self.ranges else { return Ok(x) };
        let scale = self.g.constant(vec![ranges.scale(seen)?], &[])?;
        Ok(self.g.through_fp8(x, scale)?)
    }

    /// `(x − mean) / √(var + ε) * w + b` over rows of f32.
    fn layer_norm(&mut self, x: Value, name: &str, width: usize) -> Defined {
        let mean = self.g.mean(x);
        let centred = self.g.binary(Binary::Sub, x, mean)?;
        let normed = self.unit_rms(centred)?;
        let weight = self.g.weight(format!("{name}.weight"), Type::F32, &[1, width]);
        let bias = self.g.weight(format!("{name}.bias"), Type::F32, &[1, width]);
        let scaled = self.g.mul(normed, weight)?;
        Ok(self.g.add(scaled, bias)?)
    }

    /// RMSNorm with the learned `1 + w`.
    fn rms_norm(&mut self, x: Value, name: &str, width: usize) -> Defined {
        let normed = self.unit_rms(x)?;
        let weight = self.g.weight(name, Type::F32, &[1, width]);
        let one = self.g.constant(vec![1.0], &[1, 1])?;
        let scale = self.g.add(weight, one)?;
        Ok(self.g.mul(normed, scale)?)
    }

    /// What norms are modulated by, token by token if rows may be clean.
    fn modulation(&mut self, ex: &GemmaDims, rows: usize, trained: bool) -> Defined<Modulation> {
        let shape = [2 * ex.layers + 1, 3, ex.width];
        let all = self.g.input("modulation", Type::F32, &shape);
        if !trained {
            return Ok(Modulation { all, clean: None });
        }
        let clean = self.g.input("modulation.clean", Type::F32, &shape);
        let is_clean = self.g.input("clean", Type::F32, &[rows, 1]);
        let one = self.g.constant(vec![1.0], &[1, 1])?;
        let is_free = self.g.binary(Binary::Sub, one, is_clean)?;
        Ok(Modulation { all, clean: Some((clean, [is_free, is_clean])) })
    }

    /// adaRMS with modulation number `norm`; its gate beside.
    fn adaptive_norm(
        &mut self,
        x: Value,
        modulation: Modulation,
        norm: usize,
        width: usize,
    ) -> Defined<(Value, Value)> {
        let mut rows = [x; 3];
        for (i, row) in rows.iter_mut().enumerate() {
            let mut part = |all: Value| {
                let part = self.g.slice(all, &[norm, i, 0], &[1, 1, width])?;
                self.g.reshape(part, &[1, width])
            };
            *row = part(modulation.all)?;
            if let Some((clean, [is_free, is_clean])) = modulation.clean {
                let clean = part(clean)?;
                let (free, clean) = (self.g.mul(is_free, *row)?, self.g.mul(is_clean, clean)?);
                *row = self.g.add(free, clean)?;
            }
        }
        let [scale, shift, gate] = rows;
        let normed = self.unit_rms(x)?;
        let scaled = self.g.mul(normed, scale)?;
        Ok((self.g.add(scaled, shift)?, gate))
    }

    /// `x / √(mean(x²) + ε)`
    fn unit_rms(&mut self, x: Value) -> Defined {
        const EPSILON: f32 = 1e-6;
        let squared = self.g.mul(x, x)?;
        let mean = self.g.mean(squared);
        let epsilon = self.g.constant(vec![EPSILON], &[1, 1])?;
        let moved = self.g.add(mean, epsilon)?;
        let factor = self.g.rsqrt(moved);
        Ok(self.g.mul(x, factor)?)
    }
}
