//! SigLIP and the projector on the GPU (spec/PI05.md §4). Residual stream and norms in f32.

use std::fmt::Arguments;

use super::driver::{Buffer, Gpu};
use super::fp8::Product;
use super::gemm::{Epilogue, Operands, Shape};
use super::lane::{Lane, VISION_SHARED};
use super::load::{Loader, Weight};
use crate::engine::EngineError;
use crate::engine::probe::Tap;
use crate::model::dims::{Dims, VisionDims};
use crate::model::names::{PROJECTOR, VISION};

/// The vision stage's weights and activations.
pub struct Vision {
    dims: VisionDims,
    /// Width of the features.
    outputs: usize,
    /// Elements of a patch's row: padded to whole 16 bytes.
    pitch: usize,
    /// `[width, pitch]`
    patch: Buffer,
    /// What the patches' product is added to, f32 `[cameras * tokens, width]`: position + bias - the sum of weights,
    /// since pixels enter as `p = 0..255` and mean `p / 127.5 - 1`.
    positions: Buffer,
    layers: Vec<Layer>,
    post: Norm,
    projector: [Buffer; 2],
    patches: Buffer,
    x: Buffer,
    /// What is to be added to x, where matrices are e4m3; bf16.
    y: Buffer,
    h: Buffer,
    qkv: Buffer,
    logits: Buffer,
    probabilities: Buffer,
    mixed: Buffer,
    hidden: Buffer,
}

struct Norm {
    weight: Buffer,
    bias: Buffer,
}

/// Matrices with their biases.
struct Layer {
    norm1: Norm,
    qkv: (Weight, Buffer),
    out: (Weight, Buffer),
    norm2: Norm,
    fc1: (Weight, Buffer),
    fc2: (Weight, Buffer),
}

/// Images as they lie on the GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pixel {
    U8,
    F32,
}

impl Vision {
    /// For at most `cameras` images at once.
    pub fn new(
        gpu: &Gpu,
        load: &mut Loader<'_>,
        dims: &Dims,
        cameras: usize,
        bf16: bool,
    ) -> Result<Self, EngineError> {
        let (v, outputs) = (dims.vision, dims.language.width);
        let norm = |load: &mut Loader<'_>, name: String| {
            Ok::<_, EngineError>(Norm {
                weight: load.wide(&format!("{name}.weight"), 0.0)?,
                bias: load.wide(&format!("{name}.bias"), 0.0)?,
            })
        };
        // A product with an f32 result takes its bias in f32, another one in the engine's type.
        let wide = |load: &mut Loader<'_>, name: &str| {
            Ok::<_, EngineError>([
                load.matrix(format!("{name}.weight"))?,
                load.wide(&format!("{name}.bias"), 0.0)?,
            ])
        };
        let mut layers = Vec::with_capacity(v.layers);
        for i in 0..v.layers {
            let at = format!("{VISION}encoder.layers.{i}.");
            let parts = |what: &str| ["q", "k", "v"].map(|part| format!("{at}self_attn.{part}_proj.{what}"));
            let of = |what: &str| format!("vision.layer.{i}.{what}");
            let one = |name: &str, what: &str| [format!("{at}{name}.{what}")];
            layers.push(Layer {
                norm1: norm(load, format!("{at}layer_norm1"))?,
                qkv: (
                    load.weight(&parts("weight"), &parts("bias"), &of("layer_norm1"))?,
                    load.vectors(&parts("bias"))?,
                ),
                out: (
                    load.weight(
                        &one("self_attn.out_proj", "weight"),
                        &one("self_attn.out_proj", "bias"),
                        &of("attention"),
                    )?,
                    load.wide(&format!("{at}self_attn.out_proj.bias"), 0.0)?,
                ),
                norm2: norm(load, format!("{at}layer_norm2"))?,
                fc1: (
                    load.weight(&one("mlp.fc1", "weight"), &one("mlp.fc1", "bias"), &of("layer_norm2"))?,
                    load.vectors(&one("mlp.fc1", "bias"))?,
                ),
                fc2: (
                    load.weight(&one("mlp.fc2", "weight"), &one("mlp.fc2", "bias"), &of("hidden"))?,
                    load.wide(&format!("{at}mlp.fc2.bias"), 0.0)?,
                ),
            });
        }
        let pitch = (3 * v.patch * v.patch).next_multiple_of(8);
        let embedding = format!("{VISION}embeddings.patch_embedding.");
        let (rows, size) = (cameras * v.tokens(), if bf16 { 2 } else { 4 });
        let zeros = |columns: usize, size: usize| gpu.zeros(rows * columns * size);
        Ok(Self {
            patch: load.matrices(&[format!("{embedding}weight")], Some(pitch))?,
            positions: gpu.buffer(&positions(load, &v, cameras, bf16)?)?,
            layers,
            post: norm(load, format!("{VISION}post_layernorm"))?,
            projector: wide(load, PROJECTOR)?,
            patches: zeros(pitch, size)?,
            x: zeros(v.width, 4)?,
            y: zeros(v.width, size)?,
            h: zeros(v.width, size)?,
            qkv: zeros(3 * v.width, size)?,
            logits: zeros(v.heads * v.tokens(), 4)?,
            probabilities: zeros(v.heads * v.tokens(), size)?,
            mixed: zeros(v.width, size)?,
            hidden: zeros(v.mlp, size)?,
            dims: v,
            outputs,
            pitch,
        })
    }

    /// Puts the stage on the stream: `images` to features `out`, f32 `[slots.len() * tokens, outputs]`. `slots`: the
    /// cameras' numbers.
    pub fn record(
        &self,
        lane: &mut Lane,
        images: u64,
        pixel: Pixel,
        slots: &[usize],
        out: u64,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let VisionDims { image, patch, width, mlp, .. } = self.dims;
        let rows = slots.len() * self.dims.tokens();
        let kernel = if pixel == Pixel::U8 { "patches_u8" } else { "patches_f32" };
        let sizes = [image.into(), patch.into(), self.pitch.into()];
        lane.launch(
            kernel,
            [rows, 1, 1],
            128,
            0,
            &[[images.into(), (&self.patches).into()].as_slice(), &sizes].concat(),
        )?;
        let mut at = Operands::new(self.patches.address, self.patch.address, self.x.address);
        at.c = self.positions.address;
        at.alpha = 1.0 / 127.5;
        lane.product(Shape::linear(rows, width, self.pitch).wide().add(), at)?;
        self.report(lane, tap, slots, format_args!("embeddings"), &self.x, width)?;

        // A product in e4m3 does not add to the residual stream: its result waits in y, in bf16, for the next norm.
        let mut waiting = None;
        for (i, layer) in self.layers.iter().enumerate() {
            let Layer { norm1, qkv, out, norm2, fc1, fc2 } = layer;
            let (h, mut mixed) = (self.h.address, self.mixed.address);
            self.norm(lane, norm1, rows, waiting, qkv.0.inverse())?;
            if !qkv.0.is_fp8() {
                self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm1"), &self.h, width)?;
            }
            let (columns, y) = (3 * width, self.qkv.address);
            if qkv.0.is_fp8() {
                Product { x: h, w: &qkv.0, y, rows, columns, k: width }.finished(lane, false)?;
            } else {
                let shape = Shape::linear(rows, columns, width).with(Epilogue::Bias);
                lane.through(&qkv.0, 0, shape, Operands { bias: qkv.1.address, ..Operands::new(h, 0, y) })?;
            }
            if !self.attention(lane, slots.len(), out.0.inverse())? && out.0.is_fp8() {
                lane.finish([mixed, 0, self.hidden.address], [rows, width], false, out.0.inverse())?;
                mixed = self.hidden.address;
            }
            if !out.0.is_fp8() {
                let name = format_args!("layer.{i}.attention");
                self.report_narrow(lane, tap, slots, name, &self.mixed, width)?;
            }
            waiting = self.add(lane, out, mixed, rows, width)?;
            self.norm(lane, norm2, rows, waiting, fc1.0.inverse())?;
            if !fc1.0.is_fp8() {
                self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm2"), &self.h, width)?;
            }
            let hidden = self.hidden(lane, fc1, fc2.0.inverse(), rows)?;
            if !fc2.0.is_fp8() {
                self.report_narrow(lane, tap, slots, format_args!("layer.{i}.hidden"), &self.hidden, mlp)?;
            }
            waiting = self.add(lane, fc2, hidden, rows, mlp)?;
            if waiting.is_none() {
                self.report(lane, tap, slots, format_args!("layer.{i}.out"), &self.x, width)?;
            }
        }
        self.norm(lane, &self.post, rows, waiting, 0.0)?;
        self.report_narrow(lane, tap, slots, format_args!("post_layernorm"), &self.h, width)?;
        let at = Operands {
            bias: self.projector[1].address,
            ..Operands::new(self.h.address, self.projector[0].address, out)
        };
        lane.product(Shape::linear(rows, self.outputs, width).wide().with(Epilogue::Bias), at)?;
        for (i, slot) in slots.iter().enumerate() {
            let count = self.dims.tokens() * self.outputs;
            lane.record_wide(
                tap,
                format_args!("vision.projected.{slot}"),
                out + (i * count * 4) as u64,
                count,
            )?;
        }
        Ok(())
    }

    /// h through fc1 and GELU: where that is, in e4m3 if there is an `inverse` of its scale.
    fn hidden(
        &self,
        lane: &mut Lane,
        (w, bias): &(Weight, Buffer),
        inverse: f32,
        rows: usize,
    ) -> Result<u64, EngineError> {
        let (x, y, VisionDims { width, mlp, .. }) = (self.h.address, self.hidden.address, self.dims);
        if w.is_fp8() {
            let product = Product { x, w, y, rows, columns: mlp, k: width };
            if inverse != 0.0 && product.gelu(lane, inverse)? {
                return Ok(y);
            }
            product.finished(lane, true)?;
        } else {
            let at = Operands { bias: bias.address, ..Operands::new(x, 0, y) };
            lane.through(w, 0, Shape::linear(rows, mlp, width).with(Epilogue::BiasGelu), at)?;
        }
        if inverse == 0.0 {
            return Ok(y);
        }
        lane.finish([y, 0, self.qkv.address], [rows, mlp], false, inverse)?;
        Ok(self.qkv.address)
    }

    /// x through a matrix to the residual stream. In e4m3 to y, where it waits for the next norm: then, where biases are that
    /// wait too, or 0.
    fn add(
        &self,
        lane: &mut Lane,
        (w, bias): &(Weight, Buffer),
        x: u64,
        rows: usize,
        k: usize,
    ) -> Result<Option<u64>, EngineError> {
        let shape = Shape::linear(rows, self.dims.width, k);
        if w.is_fp8() {
            let (y, columns) = (self.y.address, self.dims.width);
            return Product { x, w, y, rows, columns, k }.dense(lane).map(Some);
        }
        let at = Operands { bias: bias.address, ..Operands::new(x, 0, self.x.address) };
        lane.through(w, 0, shape.wide().add().with(Epilogue::Bias), at).map(|()| None)
    }

    /// x to h. `waiting`: what is in y comes to x first, and these biases. `inverse`: of h's scale, if not 0.
    fn norm(
        &self,
        lane: &Lane,
        norm: &Norm,
        rows: usize,
        waiting: Option<u64>,
        inverse: f32,
    ) -> Result<(), EngineError> {
        if self.dims.width <= 2048 && lane.has("layer_norm_row") {
            let args = [
                (&self.x).into(),
                waiting.map_or(0, |_| self.y.address).into(),
                waiting.unwrap_or(0).into(),
                (&norm.weight).into(),
                (&norm.bias).into(),
                (&self.h).into(),
                self.dims.width.into(),
                inverse.into(),
            ];
            return lane.launch("layer_norm_row", [rows, 1, 1], 128, 0, &args);
        }
        let args = [
            (&self.x).into(),
            (&norm.weight).into(),
            (&norm.bias).into(),
            (&self.h).into(),
            self.dims.width.into(),
            rows.into(),
        ];
        lane.launch("layer_norm", [rows.div_ceil(4), 1, 1], 128, 0, &args)
    }

    /// `qkv` to `mixed`, image by image, head by head. Whether it is e4m3 now, if `inverse` asks for that.
    fn attention(&self, lane: &mut Lane, images: usize, inverse: f32) -> Result<bool, EngineError> {
        let VisionDims { width, heads, .. } = self.dims;
        let (tokens, dim, size) = (self.dims.tokens(), width / heads, lane.size());
        let scale = 1.0 / (dim as f32).sqrt();
        if (tokens, dim) == (256, 72) && lane.has("vision_attention") {
            let scale = scale * std::f32::consts::LOG2_E;
            let args = [(&self.qkv).into(), (&self.mixed).into(), width.into(), scale.into(), inverse.into()];
            lane.launch("vision_attention", [tokens / 64, heads, images], 128, VISION_SHARED, &args)?;
            return Ok(true);
        }
        for image in 0..images {
            let qkv = self.qkv.address + (image * tokens * 3 * width * size) as u64;
            let part = |i: usize| qkv + (i * width * size) as u64;
            let logits = self.logits.address + (image * heads * tokens * tokens * 4) as u64;
            let shape = Shape {
                ldx: 3 * width,
                ldw: 3 * width,
                batch: heads,
                strides: [dim, dim, tokens * tokens],
                ..Shape::linear(tokens, tokens, dim).wide()
            };
            lane.product(shape, Operands::new(part(0), part(1), logits))?;
        }
        let rows = images * heads * tokens;
        let args = [
            (&self.logits).into(),
            (&self.probabilities).into(),
            0u64.into(),
            rows.into(),
            tokens.into(),
            tokens.into(),
            tokens.into(),
            scale.into(),
        ];
        lane.launch("softmax", [rows.div_ceil(4), 1, 1], 128, 0, &args)?;
        for image in 0..images {
            let v = self.qkv.address + ((image * tokens * 3 + 2) * width * size) as u64;
            let probabilities = self.probabilities.address + (image * heads * tokens * tokens * size) as u64;
            let mixed = self.mixed.address + (image * tokens * width * size) as u64;
            let shape = Shape {
                kn: true,
                ldw: 3 * width,
                ldy: width,
                batch: heads,
                strides: [tokens * tokens, dim, dim],
                ..Shape::linear(tokens, dim, tokens)
            };
            lane.product(shape, Operands::new(probabilities, v, mixed))?;
        }
        Ok(false)
    }

    fn report(
        &self,
        lane: &Lane,
        tap: &mut Tap,
        slots: &[usize],
        name: Arguments<'_>,
        x: &Buffer,
        width: usize,
    ) -> Result<(), EngineError> {
        let count = self.dims.tokens() * width;
        for (i, slot) in slots.iter().enumerate() {
            lane.record_wide(
                tap,
                format_args!("vision.{name}.{slot}"),
                x.address + (i * count * 4) as u64,
                count,
            )?;
        }
        Ok(())
    }

    fn report_narrow(
        &self,
        lane: &Lane,
        tap: &mut Tap,
        slots: &[usize],
        name: Arguments<'_>,
        x: &Buffer,
        width: usize,
    ) -> Result<(), EngineError> {
        let count = self.dims.tokens() * width;
        for (i, slot) in slots.iter().enumerate() {
            let at = x.address + (i * count * lane.size()) as u64;
            lane.record(tap, format_args!("vision.{name}.{slot}"), at, count)?;
        }
        Ok(())
    }
}

/// See [`Vision::positions`].
fn positions(
    load: &Loader<'_>,
    dims: &VisionDims,
    cameras: usize,
    bf16: bool,
) -> Result<Vec<f32>, EngineError> {
    let at = format!("{VISION}embeddings.");
    let bias = load.tensor(&format!("{at}patch_embedding.bias"))?.to_vec();
    let weight = load.tensor(&format!("{at}patch_embedding.weight"))?.to_vec();
    let rounded = |w: f32| if bf16 { half::bf16::from_f32(w).to_f64() } else { f64::from(w) };
    let sums = weight
        .chunks_exact(3 * dims.patch * dims.patch)
        .map(|row| row.iter().map(|&w| rounded(w)).sum::<f64>());
    let offsets: Vec<f64> = bias.iter().zip(sums).map(|(&b, sum)| f64::from(b) - sum).collect();
    let table = load.tensor(&format!("{at}position_embedding.weight"))?.to_vec();
    let one: Vec<f32> = table
        .chunks_exact(dims.width)
        .flat_map(|row| row.iter().zip(&offsets).map(|(&p, o)| (f64::from(p) + o) as f32))
        .collect();
    Ok(one.repeat(cameras))
}
