//! SigLIP and the projector on the GPU (spec/PI05.md §4). Residual stream and norms in f32.

use std::fmt::Arguments;

use super::driver::{Arg, Buffer, Gpu, Launch, Matrix};
use super::gemm::{Epilogue, Operands, Shape};
use super::lane::{Lane, STAGES, VISION_QUERIES, VISION_SHARED, VISION_SHARED_90, compiled};
use super::load::Loader;
use super::product::{After, Fused, Next, Norm as Folded, SUMMED};
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
    h: Buffer,
    qkv: Buffer,
    logits: Buffer,
    probabilities: Buffer,
    mixed: Buffer,
    hidden: Buffer,
    /// For norms that are folded into products: see [`Folded::sums`].
    sums: Buffer,
}

struct Norm {
    weight: Buffer,
    bias: Buffer,
}

struct Layer {
    norm1: Norm,
    qkv: [Buffer; 2],
    out: [Buffer; 2],
    norm2: Norm,
    fc1: [Buffer; 2],
    fc2: [Buffer; 2],
    /// Of q, k, v and of fc1 with the norms before them, where they are folded.
    folds: Option<[Fold; 2]>,
}

/// A norm's part in the product after it: see [`Folded::of_means`], and the bias with what the norm's own adds to it.
struct Fold {
    of_means: Buffer,
    bias: Buffer,
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
        // Own products take and leave norms half done.
        let folds = bf16 && gpu.arch == 90 && v.width.is_multiple_of(2 * SUMMED) && v.mlp.is_multiple_of(8);
        let kernels = match folds {
            true => compiled(gpu, STAGES, &["BF16".to_owned()], &[("fold_norm", 0)])?,
            false => Default::default(),
        };
        let fold = |norm: &Norm, product: &[Buffer; 2], columns: usize| {
            let vector = || gpu.zeros(columns * 4);
            let fold = Fold { of_means: vector()?, bias: vector()? };
            let [w, b] = product;
            let args = [
                w.into(),
                b.into(),
                (&norm.weight).into(),
                (&norm.bias).into(),
                (&fold.of_means).into(),
                (&fold.bias).into(),
                v.width.into(),
            ];
            gpu.launch(kernels["fold_norm"], Launch::new([columns, 1, 1], 128, 0), false, &args)?;
            Ok::<_, EngineError>(fold)
        };
        let mut layers = Vec::with_capacity(v.layers);
        for i in 0..v.layers {
            let at = format!("{VISION}encoder.layers.{i}.");
            let parts = |what: &str| ["q", "k", "v"].map(|part| format!("{at}self_attn.{part}_proj.{what}"));
            let mut layer = Layer {
                norm1: norm(load, format!("{at}layer_norm1"))?,
                qkv: [load.matrices(&parts("weight"), None)?, load.vectors(&parts("bias"))?],
                out: wide(load, &format!("{at}self_attn.out_proj"))?,
                norm2: norm(load, format!("{at}layer_norm2"))?,
                fc1: [
                    load.matrix(format!("{at}mlp.fc1.weight"))?,
                    load.vectors(&[format!("{at}mlp.fc1.bias")])?,
                ],
                fc2: wide(load, &format!("{at}mlp.fc2"))?,
                folds: None,
            };
            if folds {
                let qkv = fold(&layer.norm1, &layer.qkv, 3 * v.width)?;
                layer.folds = Some([qkv, fold(&layer.norm2, &layer.fc1, v.mlp)?]);
            }
            layers.push(layer);
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
            h: zeros(v.width, size)?,
            qkv: zeros(3 * v.width, size)?,
            logits: zeros(v.heads * v.tokens(), 4)?,
            probabilities: zeros(v.heads * v.tokens(), size)?,
            mixed: zeros(v.width, size)?,
            hidden: zeros(v.mlp, size)?,
            sums: zeros(v.width.div_ceil(SUMMED), 8)?,
            dims: v,
            outputs,
            pitch,
        })
    }

    /// Puts the stage on the stream: `images` to features `out`, f32 `[slots.len() * tokens, outputs]`. `slots`: the
    /// cameras' numbers. Norms that are folded into products are not there for the tap to hear of.
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

        let sums = self.sums.address;
        let own = |x: &Buffer, w: &Buffer, y: &Buffer, columns, k, after| Fused {
            x: x.address,
            w: w.address,
            y: y.address,
            rows,
            columns,
            k,
            after,
        };
        let normed = |fold: &Fold, gelu| {
            let (bias, of_means) = (fold.bias.address, fold.of_means.address);
            After::Linear { bias, gelu, norm: Some(Folded { sums, of_means }) }
        };
        let added = |b: &Buffer, next: Option<&Norm>| {
            let next = next.map(|norm| Next { weights: norm.weight.address, scaled: self.h.address, sums });
            After::Add { bias: b.address, next }
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let biased = |w: &[Buffer; 2], x: &Buffer, y: &Buffer| Operands {
                bias: w[1].address,
                ..Operands::new(x.address, w[0].address, y.address)
            };
            let wide = |k| Shape::linear(rows, width, k).wide().add().with(Epilogue::Bias);
            let Layer { norm1, qkv, out: o, norm2, fc1, fc2, .. } = layer;
            let next = self.layers.get(i + 1).map(|layer| &layer.norm1);
            let fc2_added = own(&self.hidden, &fc2[0], &self.x, width, mlp, added(&fc2[1], next));
            // The first norm is folded where what comes before it, fc2, is an own product.
            let is_folded = layer.folds.is_some() && fc2_added.fills(lane);
            if let Some([fold, _]) = layer.folds.as_ref().filter(|_| is_folded) {
                if i == 0 {
                    let args = [
                        (&self.x).into(),
                        (&norm1.weight).into(),
                        (&self.h).into(),
                        (&self.sums).into(),
                        width.into(),
                    ];
                    lane.launch("norm_begins", [rows, 1, 1], 128, 0, &args)?;
                }
                own(&self.h, &qkv[0], &self.qkv, 3 * width, width, normed(fold, false)).record(lane)?;
            } else {
                self.norm(lane, norm1, rows)?;
                self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm1"), &self.h)?;
                let shape = Shape::linear(rows, 3 * width, width).with(Epilogue::Bias);
                lane.product(shape, biased(qkv, &self.h, &self.qkv))?;
            }
            self.attention(lane, slots.len())?;
            if let Some([_, fold]) = &layer.folds {
                own(&self.mixed, &o[0], &self.x, width, width, added(&o[1], Some(norm2))).record(lane)?;
                own(&self.h, &fc1[0], &self.hidden, mlp, width, normed(fold, true)).record(lane)?;
            } else {
                lane.product(wide(width), biased(o, &self.mixed, &self.x))?;
                self.norm(lane, norm2, rows)?;
                self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm2"), &self.h)?;
                let shape = Shape::linear(rows, mlp, width).with(Epilogue::BiasGelu);
                lane.product(shape, biased(fc1, &self.h, &self.hidden))?;
            }
            if is_folded {
                fc2_added.record(lane)?;
            } else {
                lane.product(wide(mlp), biased(fc2, &self.hidden, &self.x))?;
            }
            self.report(lane, tap, slots, format_args!("layer.{i}.out"), &self.x, width)?;
        }
        self.norm(lane, &self.post, rows)?;
        self.report_narrow(lane, tap, slots, format_args!("post_layernorm"), &self.h)?;
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

    fn norm(&self, lane: &Lane, norm: &Norm, rows: usize) -> Result<(), EngineError> {
        if self.dims.width <= 2048 && lane.has("layer_norm_row") {
            let args = [
                (&self.x).into(),
                (&norm.weight).into(),
                (&norm.bias).into(),
                (&self.h).into(),
                self.dims.width.into(),
                0.0.into(),
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

    /// `qkv` to `mixed`, image by image, head by head.
    fn attention(&self, lane: &mut Lane, images: usize) -> Result<(), EngineError> {
        let VisionDims { width, heads, .. } = self.dims;
        let (tokens, dim, size) = (self.dims.tokens(), width / heads, lane.size());
        let scale = 1.0 / (dim as f32).sqrt();
        let is_own = (tokens, dim) == (256, 72);
        if is_own && lane.has("vision_attention_90") {
            let map = |box_bytes| {
                let (address, rows, columns) = (self.qkv.address, images * tokens, 3 * width);
                Matrix { address, rows, columns, size, box_rows: VISION_QUERIES, box_bytes }
                    .map()
                    .map(Arg::Map)
            };
            let scale = scale * std::f32::consts::LOG2_E;
            let args = [map(128)?, map(16)?, (&self.mixed).into(), width.into(), scale.into()];
            let parts = tokens / VISION_QUERIES;
            let shape = Launch::new([heads, parts, images], 2 * VISION_QUERIES, VISION_SHARED_90);
            return lane.launch_shaped("vision_attention_90", shape.clusters(parts), &args);
        }
        if is_own && lane.has("vision_attention") {
            let scale = scale * std::f32::consts::LOG2_E;
            let args = [(&self.qkv).into(), (&self.mixed).into(), width.into(), scale.into()];
            return lane.launch("vision_attention", [tokens / 64, heads, images], 128, VISION_SHARED, &args);
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
        Ok(())
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
    ) -> Result<(), EngineError> {
        let count = self.dims.tokens() * self.dims.width;
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
