//! SigLIP and the projector on the GPU (spec/PI05.md §4). Residual stream and norms in f32.

use std::fmt::Arguments;

use super::driver::{Buffer, Gpu};
use super::fp8::Product;
use super::gemm::{Epilogue, Operands, Shape};
use super::heads::{Heads, Taken, kernel_fp8, suit};
use super::lane::{Lane, VISION_SHARED};
use super::load::{Loader, Weight};
use super::product::{After, Fused, Next, Norm as Folded, SUMMED_FIRST, SUMMED_LEAST};
use super::vision_weights::{Fold, Layer, Norm, fold, positions};
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
    /// What the patches' product is added to: see [`positions()`].
    positions: Buffer,
    layers: Vec<Layer>,
    post: Norm,
    projector: [Buffer; 2],
    patches: Buffer,
    x: Buffer,
    /// What is to be added to x, where matrices are e4m3; bf16. Where norms are folded, the norms that a tap wants.
    y: Buffer,
    h: Buffer,
    qkv: Buffer,
    logits: Buffer,
    probabilities: Buffer,
    mixed: Buffer,
    hidden: Buffer,
    /// For norms that are folded into products: see [`Folded::sums`].
    sums: Buffer,
}

/// Images as they are handed over.
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
        let wide = |load: &mut Loader<'_>, name: &str| {
            Ok::<_, EngineError>([
                load.matrix(format!("{name}.weight"))?,
                load.wide(&format!("{name}.bias"), 0.0)?,
            ])
        };
        let mut layers = (0..v.layers).map(|i| Layer::new(load, i)).collect::<Result<Vec<_>, _>>()?;
        fold(gpu, &v, bf16, &mut layers)?;
        let pitch = (3 * v.patch * v.patch).next_multiple_of(8);
        let embedding = format!("{VISION}embeddings.patch_embedding.");
        let (rows, size) = (cameras * v.tokens(), if bf16 { 2 } else { 4 });
        let zeros = |columns: usize, size: usize| gpu.zeros(rows * columns * size);
        Ok(Self {
            patch: load.matrices(&[format!("{embedding}weight")], Some(pitch))?,
            positions: gpu.buffer(&positions(load, &v, cameras, bf16)?)?,
            layers,
            post: Norm::new(load, format!("{VISION}post_layernorm"))?,
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
            sums: zeros(v.width.div_ceil(SUMMED_LEAST), 8)?,
            dims: v,
            outputs,
            pitch,
        })
    }

    /// Puts the stage on the stream: `images`, in the host's memory, to features `out`, f32 `[slots.len() * tokens, outputs]`.
    /// `slots`: the cameras' numbers.
    pub fn record(
        &self,
        lane: &mut Lane,
        images: u64,
        pixel: Pixel,
        slots: &[usize],
        out: u64,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let VisionDims { image, patch, width, .. } = self.dims;
        let rows = slots.len() * self.dims.tokens();
        let (kernel, size) = if pixel == Pixel::U8 { ("patches_u8", 1) } else { ("patches_f32", 4) };
        let args = [images.into(), (&self.patches).into(), image.into(), patch.into(), self.pitch.into()];
        let shape = [image / patch * patch, slots.len(), 1];
        lane.launch(kernel, shape, 128, 3 * image * size, &args)?;
        let mut at = Operands::new(self.patches.address, self.patch.address, self.x.address);
        at.c = self.positions.address;
        at.alpha = 1.0 / 127.5;
        lane.product(Shape::linear(rows, width, self.pitch).wide().add(), at)?;
        self.report(lane, tap, slots, format_args!("embeddings"), &self.x, width)?;

        let mut waiting = None;
        for (i, layer) in self.layers.iter().enumerate() {
            waiting = match &layer.folds {
                Some(folds) => self.folded(lane, i, folds, slots, tap).map(|()| None)?,
                None => self.layer(lane, i, waiting, slots, tap)?,
            };
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

    /// Layer `i`, norms by kernels of their own. A product in e4m3 does not add to the residual stream: its result waits in
    /// y, in bf16, for the next norm. `waiting`, and what is returned: see [`Self::add`].
    fn layer(
        &self,
        lane: &mut Lane,
        i: usize,
        waiting: Option<u64>,
        slots: &[usize],
        tap: &mut Tap,
    ) -> Result<Option<u64>, EngineError> {
        let VisionDims { width, mlp, .. } = self.dims;
        let rows = slots.len() * self.dims.tokens();
        let Layer { norm1, qkv, out, norm2, fc1, fc2, .. } = &self.layers[i];
        let (h, mut mixed) = (self.h.address, self.mixed.address);
        self.norm(lane, norm1, rows, waiting, qkv.0.inverse())?;
        if !qkv.0.is_fp8() {
            self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm1"), &self.h, width)?;
        }
        let (columns, y, inverse) = (3 * width, self.qkv.address, out.0.inverse());
        if qkv.0.is_fp8() && suit(&self.dims) && lane.has(kernel_fp8().0) {
            let taken = Taken::E4m3(qkv.0.multipliers());
            self.heads(&qkv.0, qkv.0.bias(), taken, slots.len(), inverse).record(lane)?;
        } else {
            if qkv.0.is_fp8() {
                Product { x: h, w: &qkv.0, y, rows, columns, k: width }.finished(lane, false)?;
            } else {
                self.biased(lane, qkv, h, y, Shape::linear(rows, columns, width).with(Epilogue::Bias))?;
            }
            if !self.attention(lane, slots.len(), inverse)? && out.0.is_fp8() {
                lane.finish([mixed, 0, self.hidden.address], [rows, width], false, inverse)?;
                mixed = self.hidden.address;
            }
        }
        if !out.0.is_fp8() {
            self.report_narrow(lane, tap, slots, format_args!("layer.{i}.attention"), &self.mixed, width)?;
        }
        let waiting = self.add(lane, out, mixed, rows, width)?;
        self.norm(lane, norm2, rows, waiting, fc1.0.inverse())?;
        if !fc1.0.is_fp8() {
            self.report_narrow(lane, tap, slots, format_args!("layer.{i}.layer_norm2"), &self.h, width)?;
        }
        let hidden = self.hidden(lane, fc1, fc2.0.inverse(), rows)?;
        if !fc2.0.is_fp8() {
            self.report_narrow(lane, tap, slots, format_args!("layer.{i}.hidden"), &self.hidden, mlp)?;
        }
        self.add(lane, fc2, hidden, rows, mlp)
    }

    /// Layer `i` in bf16, norms folded into own products. Where a tap listens, it also gets them whole, from kernels that
    /// nothing else depends on.
    fn folded(
        &self,
        lane: &mut Lane,
        i: usize,
        [first, second]: &[Fold; 2],
        slots: &[usize],
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let VisionDims { width, mlp, .. } = self.dims;
        let rows = slots.len() * self.dims.tokens();
        let sums = self.sums.address;
        let own = |x: &Buffer, w: &Weight, y: &Buffer, columns, k, after| Fused {
            x: x.address,
            w: w.values.address,
            y: y.address,
            rows,
            columns,
            k,
            after,
        };
        let normed = |fold: &Fold, summed| Folded { sums, summed, of_means: fold.of_means.address };
        let added = |bias: &Buffer, next: Option<&Norm>| {
            let next = next.map(|norm| Next { weights: norm.weight.address, scaled: self.h.address, sums });
            After::Add { bias: bias.address, next }
        };
        let Layer { norm1, qkv, out, norm2, fc1, fc2, .. } = &self.layers[i];
        let next = self.layers.get(i + 1).map(|layer| &layer.norm1);
        let fc2_added = own(&self.hidden, &fc2.0, &self.x, width, mlp, added(&fc2.1, next));
        // The first norm is begun by what comes before it, fc2, where that is an own product.
        let (is_own, mut summed) = (fc2_added.fills(lane), fc2_added.summed(lane));
        if i == 0 || !is_own {
            let (h, sums) = ((&self.h).into(), (&self.sums).into());
            let args = [(&self.x).into(), (&norm1.weight).into(), h, sums, width.into()];
            lane.launch("norm_begins", [rows, 1, 1], 128, 0, &args)?;
            summed = SUMMED_FIRST;
        }
        self.report_norm(lane, tap, slots, format_args!("layer.{i}.layer_norm1"), norm1)?;
        let taken = Taken::Bf16(normed(first, summed));
        self.heads(&qkv.0, first.bias.address, taken, slots.len(), 0.0).record(lane)?;
        self.report_narrow(lane, tap, slots, format_args!("layer.{i}.attention"), &self.mixed, width)?;
        let out_added = own(&self.mixed, &out.0, &self.x, width, width, added(&out.1, Some(norm2)));
        out_added.record(lane)?;
        self.report_norm(lane, tap, slots, format_args!("layer.{i}.layer_norm2"), norm2)?;
        let norm = Some(normed(second, out_added.summed(lane)));
        let after = After::Gelu { bias: second.bias.address, norm };
        own(&self.h, &fc1.0, &self.hidden, mlp, width, after).record(lane)?;
        self.report_narrow(lane, tap, slots, format_args!("layer.{i}.hidden"), &self.hidden, mlp)?;
        if is_own {
            return fc2_added.record(lane);
        }
        self.add(lane, fc2, self.hidden.address, rows, mlp).map(drop)
    }

    /// h through q, k, v and attention to `mixed`, in e4m3 if there is an `inverse` of its scale.
    fn heads(&self, qkv: &Weight, bias: u64, taken: Taken, images: usize, inverse: f32) -> Heads {
        let [x, w, y] = [&self.h, &qkv.values, &self.mixed].map(|buffer| buffer.address);
        Heads { x, w, y, images, width: self.dims.width, bias, taken, inverse }
    }

    /// x through a matrix in bf16 or f32 and what its shape adds, to y.
    fn biased(
        &self,
        lane: &mut Lane,
        (w, bias): &(Weight, Buffer),
        x: u64,
        y: u64,
        shape: Shape,
    ) -> Result<(), EngineError> {
        lane.through(w, 0, shape, Operands { bias: bias.address, ..Operands::new(x, 0, y) })
    }

    /// h through fc1 and GELU: where that is, in e4m3 if there is an `inverse` of its scale.
    fn hidden(
        &self,
        lane: &mut Lane,
        fc1: &(Weight, Buffer),
        inverse: f32,
        rows: usize,
    ) -> Result<u64, EngineError> {
        let (x, y, VisionDims { width, mlp, .. }) = (self.h.address, self.hidden.address, self.dims);
        if fc1.0.is_fp8() {
            let product = Product { x, w: &fc1.0, y, rows, columns: mlp, k: width };
            if inverse != 0.0 && product.gelu(lane, inverse)? {
                return Ok(y);
            }
            product.finished(lane, true)?;
        } else {
            self.biased(lane, fc1, x, y, Shape::linear(rows, mlp, width).with(Epilogue::BiasGelu))?;
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
        matrix: &(Weight, Buffer),
        x: u64,
        rows: usize,
        k: usize,
    ) -> Result<Option<u64>, EngineError> {
        let (w, columns) = (&matrix.0, self.dims.width);
        if w.is_fp8() {
            return Product { x, w, y: self.y.address, rows, columns, k }.dense(lane).map(Some);
        }
        let shape = Shape::linear(rows, columns, k).wide().add().with(Epilogue::Bias);
        self.biased(lane, matrix, x, self.x.address, shape).map(|()| None)
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
        self.norm_to(lane, norm, &self.h, rows, waiting, inverse)
    }

    fn norm_to(
        &self,
        lane: &Lane,
        norm: &Norm,
        to: &Buffer,
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
                to.into(),
                self.dims.width.into(),
                inverse.into(),
            ];
            return lane.launch("layer_norm_row", [rows, 1, 1], 128, 0, &args);
        }
        let args = [
            (&self.x).into(),
            (&norm.weight).into(),
            (&norm.bias).into(),
            to.into(),
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

    /// A norm of x that is folded into a product, if somebody wants it: through y, which nothing waits in then.
    fn report_norm(
        &self,
        lane: &Lane,
        tap: &mut Tap,
        slots: &[usize],
        name: Arguments<'_>,
        norm: &Norm,
    ) -> Result<(), EngineError> {
        if slots.iter().any(|slot| tap.wants(format_args!("vision.{name}.{slot}"))) {
            self.norm_to(lane, norm, &self.y, slots.len() * self.dims.tokens(), None, 0.0)?;
            self.report_narrow(lane, tap, slots, name, &self.y, self.dims.width)?;
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
