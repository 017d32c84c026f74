//! Gemma-2B over image and prompt tokens, to keys and values (spec/PI05.md §5).
//!
//! Missing cameras are not there. Prompts are padded to a multiple of [`BUCKET`] rows, so that few graphs do for all
//! lengths; padding is never a key.

use super::driver::{Arg, Buffer, Gpu, Matrix};
use super::fp8::Product;
use super::gemm::{Operands, Shape};
use super::lane::{Lane, PREFIX_KEYS, PREFIX_QUERIES, prefix_attention};
use super::load::{Loader, Weight};
use super::order;
use super::product::{After, Fused};
use crate::engine::EngineError;
use crate::engine::probe::Tap;
use crate::model::dims::{Dims, GemmaDims};
use crate::model::names::LANGUAGE;
use crate::model::tensors::TOKEN_EMBEDDING;

/// Rows by which prompts are padded.
pub const BUCKET: usize = 16;

/// How a chunk lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Rows of images.
    pub image_rows: usize,
    /// Rows of images and prompt, padding included.
    pub rows: usize,
}

impl Layout {
    /// `most`: tokens that there is room for; they are the last bucket.
    pub fn new(image_rows: usize, tokens: usize, most: usize) -> Self {
        Self { image_rows, rows: image_rows + tokens.next_multiple_of(BUCKET).min(most) }
    }
}

/// Keys and values of all layers, and what tells positions.
pub struct Cache {
    /// Keys that fit; a multiple of 128.
    pub capacity: usize,
    /// Per layer `[capacity, head_dim]`.
    pub k: Vec<Buffer>,
    /// Like `k`.
    pub v: Vec<Buffer>,
    /// Per layer `[head_dim, capacity]`, for the fused expert.
    pub vt: Vec<Buffer>,
    /// `[positions, head_dim / 2]`
    pub cos: Buffer,
    pub sin: Buffer,
    /// Valid rows, which features, prompt tokens.
    pub request: Buffer,
}

impl Cache {
    pub fn new(
        gpu: &Gpu,
        dims: &Dims,
        keys: usize,
        transposed: bool,
        size: usize,
    ) -> Result<Self, EngineError> {
        let GemmaDims { head_dim, layers, .. } = dims.language;
        let capacity = keys.next_multiple_of(128);
        let all = |count: usize| {
            (0..count).map(|_| gpu.zeros(capacity * head_dim * size)).collect::<Result<Vec<_>, _>>()
        };
        let (cos, sin) = angles(head_dim, capacity);
        Ok(Self {
            capacity,
            k: all(layers)?,
            v: all(layers)?,
            vt: all(if transposed { layers } else { 0 })?,
            cos: gpu.buffer(&cos)?,
            sin: gpu.buffer(&sin)?,
            request: gpu.zeros((2 + capacity) * 4)?,
        })
    }

    pub fn vt(&self, layer: usize) -> u64 {
        self.vt.get(layer).map_or(0, |buffer| buffer.address)
    }
}

/// cos and sin of `position * 10000^(-2j / head_dim)`; f32 with an unrounded `inv_freq` (spec/PI05.md §10).
fn angles(head_dim: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let inv_freq: Vec<f32> =
        (0..head_dim / 2).map(|j| 1.0 / 10_000f32.powf((2 * j) as f32 / head_dim as f32)).collect();
    let angles = (0..positions).flat_map(|p| inv_freq.iter().map(move |f| p as f32 * f));
    angles.map(|angle| (angle.cos(), angle.sin())).unzip()
}

/// The same as the sums of a product lie that has packed rows of W: for each 8 positions and 8 columns each lane's cos, cos,
/// sin, sin of its two positions and column.
fn rotations(head_dim: usize, positions: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let (cos, sin) = angles(head_dim, positions.next_multiple_of(8));
    let lane = |first: usize, column: usize, lane: usize| {
        let at = (first + lane % 4 * 2) * half + column + lane / 4;
        [cos[at], cos[at + half], sin[at], sin[at + half]]
    };
    let eights = |count: usize| (0..count).step_by(8);
    eights(cos.len() / half)
        .flat_map(|first| eights(half).map(move |column| (first, column)))
        .flat_map(|(first, column)| (0..32).flat_map(move |i| lane(first, column, i)))
        .collect()
}

/// A decoder block's matrices, q, k and v as one, gate and up as one.
pub struct Block {
    pub qkv: Buffer,
    pub o: Buffer,
    pub gate_up: Buffer,
    pub down: Buffer,
}

impl Block {
    pub fn new(load: &mut Loader<'_>, at: &str) -> Result<Self, EngineError> {
        let names =
            |parts: &[&str]| parts.iter().map(|part| format!("{at}{part}.weight")).collect::<Vec<_>>();
        Ok(Self {
            qkv: load
                .matrices(&names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), None)?,
            o: load.matrices(&names(&["self_attn.o_proj"]), None)?,
            gate_up: load.matrices(&names(&["mlp.gate_proj", "mlp.up_proj"]), None)?,
            down: load.matrices(&names(&["mlp.down_proj"]), None)?,
        })
    }
}

/// The same of the prefix, where they may be e4m3.
struct PrefixBlock {
    qkv: Weight,
    /// Whether its rows are packed.
    is_packed: bool,
    o: Weight,
    gate_up: Weight,
    down: Weight,
}

impl PrefixBlock {
    /// `order`: of the rows of q, k and v as one, if there are kernels for it. In e4m3 they stay as they are.
    fn new(
        load: &mut Loader<'_>,
        i: usize,
        is_last: bool,
        order: Option<&[i32]>,
    ) -> Result<Self, EngineError> {
        let at = format!("{LANGUAGE}layers.{i}.");
        let norm = format!("prefix.layer.{i}.input_layernorm");
        let order = order.filter(|_| !load.is_chosen(&norm));
        let names =
            |parts: &[&str]| parts.iter().map(|part| format!("{at}{part}.weight")).collect::<Vec<_>>();
        let qkv = names(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]);
        let qkv = match order {
            Some(order) => load.packed(&qkv, order)?,
            None => load.weight(&qkv, &[], &norm)?,
        };
        let mut weight = |parts: &[&str], of: &str| {
            // Of the last layer only keys and values are needed.
            let parts = if is_last { &[] } else { parts };
            load.weight(&names(parts), &[], &format!("prefix.layer.{i}.{of}"))
        };
        Ok(Self {
            qkv,
            is_packed: order.is_some(),
            o: weight(&["self_attn.o_proj"], "attention")?,
            gate_up: weight(&["mlp.gate_proj", "mlp.up_proj"], "post_attention_layernorm")?,
            down: weight(&["mlp.down_proj"], "hidden")?,
        })
    }
}

/// Activations of a Gemma's blocks.
pub struct Activations {
    /// Residual stream, f32.
    pub x: Buffer,
    pub h: Buffer,
    pub qkv: Buffer,
    pub q: Buffer,
    pub logits: Buffer,
    pub probabilities: Buffer,
    pub mixed: Buffer,
    pub gate_up: Buffer,
    pub hidden: Buffer,
    /// A sub-layer's output, f32.
    pub y: Buffer,
}

impl Activations {
    pub fn new(
        gpu: &Gpu,
        dims: &GemmaDims,
        rows: usize,
        keys: usize,
        size: usize,
    ) -> Result<Self, EngineError> {
        let zeros = |columns: usize, size: usize| gpu.zeros(rows * columns * size);
        let keys = keys.next_multiple_of(16);
        Ok(Self {
            x: zeros(dims.width, 4)?,
            h: zeros(dims.width, size)?,
            qkv: zeros((dims.heads + 2) * dims.head_dim, size)?,
            q: zeros(dims.q_width(), size)?,
            logits: zeros(dims.heads * keys, 4)?,
            probabilities: zeros(dims.heads * keys, size)?,
            mixed: zeros(dims.q_width(), size)?,
            gate_up: zeros(2 * dims.mlp, size)?,
            hidden: zeros(dims.mlp, size)?,
            y: zeros(dims.width, 4)?,
        })
    }

    /// `q` over the first `keys` keys of a layer to `mixed`; keys from the request's valid rows to `prefix` do not count.
    pub fn attend(
        &self,
        lane: &mut Lane,
        dims: &GemmaDims,
        cache: &Cache,
        layer: usize,
        tokens: usize,
        prefix: usize,
        keys: usize,
    ) -> Result<(), EngineError> {
        let (dim, rows, pitch) = (dims.head_dim, tokens * dims.heads, keys.next_multiple_of(16));
        let shape = Shape { ldy: pitch, ..Shape::linear(rows, keys, dim).wide() };
        lane.product(shape, Operands::new(self.q.address, cache.k[layer].address, self.logits.address))?;
        let scale = 1.0 / (dim as f32).sqrt();
        let args = [
            (&self.logits).into(),
            (&self.probabilities).into(),
            (&cache.request).into(),
            rows.into(),
            prefix.into(),
            keys.into(),
            pitch.into(),
            scale.into(),
        ];
        lane.launch("softmax", [rows.div_ceil(4), 1, 1], 128, 0, &args)?;
        let shape = Shape { kn: true, ldx: pitch, ldw: dim, ..Shape::linear(rows, dim, keys) };
        lane.product(
            shape,
            Operands::new(self.probabilities.address, cache.v[layer].address, self.mixed.address),
        )
    }

    /// `gate_up` to `hidden`.
    pub fn geglu(&self, lane: &Lane, mlp: usize, rows: usize) -> Result<(), EngineError> {
        let args = [(&self.gate_up).into(), (&self.hidden).into(), mlp.into()];
        if lane.bf16 && mlp.is_multiple_of(8) {
            lane.launch("geglu_8", [(mlp / 8).div_ceil(256), rows, 1], 256, 0, &args)
        } else {
            lane.launch("geglu", [mlp.div_ceil(256), rows, 1], 256, 0, &args)
        }
    }
}

/// The prefix model's weights and activations.
pub struct Prefix {
    dims: GemmaDims,
    embedding: Buffer,
    layers: Vec<(PrefixBlock, [Buffer; 2])>,
    /// RoPE's angles for the product of packed rows, if there are any.
    rotations: Option<Buffer>,
    activations: Activations,
}

/// Into how many parts `prefix_attention` shares out `keys`: the fewest with the fewest steps, of those whose clusters, one
/// per block of queries, all run at once; of clusters of 3 and of 4 blocks, `fit` do. Pairs are always taken.
fn parts_of_keys(keys: usize, blocks: usize, fit: [usize; 2]) -> usize {
    let steps = |parts| keys.div_ceil(PREFIX_KEYS).div_ceil(parts);
    (3..)
        .zip(fit)
        .filter(|&(_, fit)| blocks <= fit)
        .map(|(parts, _)| parts)
        .fold(2, |best, parts| if steps(parts) < steps(best) { parts } else { best })
}

impl Prefix {
    /// For at most `rows` rows.
    pub fn new(
        gpu: &Gpu,
        load: &mut Loader<'_>,
        dims: &Dims,
        rows: usize,
        size: usize,
    ) -> Result<Self, EngineError> {
        let language = dims.language;
        let mut layers = Vec::with_capacity(language.layers);
        let is_packed =
            gpu.arch == 90 && size == 2 && language.head_dim == 256 && language.width.is_multiple_of(16);
        let order = is_packed.then(|| order::partners(language.heads + 2, language.head_dim));
        for i in 0..language.layers {
            let at = format!("{LANGUAGE}layers.{i}.");
            let norms = [
                load.wide(&format!("{at}input_layernorm.weight"), 1.0)?,
                load.wide(&format!("{at}post_attention_layernorm.weight"), 1.0)?,
            ];
            layers.push((PrefixBlock::new(load, i, i + 1 == language.layers, order.as_deref())?, norms));
        }
        Ok(Self {
            embedding: load.matrix(TOKEN_EMBEDDING.to_owned())?,
            layers,
            rotations: is_packed.then(|| gpu.buffer(&rotations(language.head_dim, rows))).transpose()?,
            activations: Activations::new(gpu, &language, rows, rows, size)?,
            dims: language,
        })
    }

    /// Puts the stage on the stream: features and the cache's request to the cache's keys and values. `slot_rows`: rows
    /// of each of the two sets of features. `valid`: rows that the tap hears of.
    pub fn record(
        &self,
        lane: &mut Lane,
        cache: &Cache,
        features: &Buffer,
        slot_rows: usize,
        layout: Layout,
        valid: usize,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let GemmaDims { width, heads, head_dim, mlp, .. } = self.dims;
        let a = &self.activations;
        let Layout { image_rows, rows } = layout;
        let args = [
            (&cache.request).into(),
            features.into(),
            (&self.embedding).into(),
            (&a.x).into(),
            image_rows.into(),
            slot_rows.into(),
            width.into(),
            (width as f32).sqrt().into(),
        ];
        lane.launch("prefix_start", [rows, 1, 1], 256, 0, &args)?;
        lane.record_wide(tap, format_args!("prefix.embs"), a.x.address, valid * width)?;
        let last = self.layers.len() - 1;
        let blocks = (rows * heads).div_ceil(PREFIX_QUERIES);
        let parts = parts_of_keys(rows, blocks, lane.prefix_clusters);
        // A product in e4m3 does not add to the residual stream: its result waits in y, in bf16, for the next norm.
        let mut waiting = None;
        for (i, (block, norms)) in self.layers.iter().enumerate() {
            self.norm(lane, &norms[0], rows, waiting, block.qkv.inverse())?;
            if !block.qkv.is_fp8() {
                let name = format_args!("prefix.layer.{i}.input_layernorm");
                lane.record(tap, name, a.h.address, valid * width)?;
            }
            self.qkv(lane, cache, i, rows)?;
            lane.record(tap, format_args!("prefix.kv.{i}.k"), cache.k[i].address, valid * head_dim)?;
            lane.record(tap, format_args!("prefix.kv.{i}.v"), cache.v[i].address, valid * head_dim)?;
            if i == last {
                break;
            }
            let mut mixed = a.mixed.address;
            if head_dim == 256 && lane.has("prefix_attention") {
                let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
                let map = |buffer: &Buffer, rows, box_rows| {
                    let address = buffer.address;
                    let matrix = Matrix { address, rows, columns: head_dim, size: 2, box_rows };
                    matrix.map().map(Arg::Map)
                };
                let args = [
                    map(&a.q, rows * heads, PREFIX_QUERIES)?,
                    map(&cache.k[i], cache.capacity, PREFIX_KEYS)?,
                    map(&cache.v[i], cache.capacity, PREFIX_KEYS)?,
                    (&a.mixed).into(),
                    (&cache.request).into(),
                    (rows * heads).into(),
                    scale.into(),
                    block.o.inverse().into(),
                ];
                lane.launch_shaped("prefix_attention", prefix_attention(blocks, parts), &args)?;
            } else {
                a.attend(lane, &self.dims, cache, i, rows, rows, rows)?;
                if block.o.is_fp8() {
                    let at = [a.mixed.address, 0, a.gate_up.address];
                    lane.finish(at, [rows, heads * head_dim], false, block.o.inverse())?;
                    mixed = a.gate_up.address;
                }
            }
            if !block.o.is_fp8() {
                let name = format_args!("prefix.layer.{i}.attention");
                lane.record(tap, name, a.mixed.address, valid * heads * head_dim)?;
            }
            let waiting_o = self.add(lane, &block.o, mixed, rows, heads * head_dim)?;
            self.norm(lane, &norms[1], rows, waiting_o, block.gate_up.inverse())?;
            if !block.gate_up.is_fp8() {
                let name = format_args!("prefix.layer.{i}.post_attention_layernorm");
                lane.record(tap, name, a.h.address, valid * width)?;
            }
            let hidden = self.mlp(lane, block, rows)?;
            if !block.down.is_fp8() {
                lane.record(tap, format_args!("prefix.layer.{i}.hidden"), hidden, valid * mlp)?;
            }
            waiting = self.add(lane, &block.down, hidden, rows, mlp)?;
            if waiting.is_none() {
                lane.record_wide(tap, format_args!("prefix.layer.{i}.out"), a.x.address, valid * width)?;
            }
        }
        Ok(())
    }

    /// h to q, and to the cache's keys and values of layer `i`.
    fn qkv(&self, lane: &mut Lane, cache: &Cache, i: usize, rows: usize) -> Result<(), EngineError> {
        let GemmaDims { width, heads, head_dim, .. } = self.dims;
        let (a, (block, _)) = (&self.activations, &self.layers[i]);
        // Of the last layer only keys and values are needed; the rest of what is copied then is stale.
        let q_rows = if i + 1 < self.layers.len() { 0 } else { heads * head_dim };
        let columns = (heads + 2) * head_dim;
        let offset = (q_rows * lane.size()) as u64;
        if let (0, true, Some(rotations)) = (q_rows, block.is_packed, &self.rotations) {
            let (k, v) = (cache.k[i].address, cache.v[i].address);
            let after = After::Rope { k, v, heads, rotations: rotations.address };
            let (x, w, y) = (a.h.address, block.qkv.values.address, a.q.address);
            let fused = Fused { x, w, y, rows, columns, k: width, after };
            if fused.fills(lane) {
                return fused.record(lane);
            }
        }
        if block.qkv.is_fp8() {
            let (x, w, y) = (a.h.address, &block.qkv, a.qkv.address);
            Product { x, w, y, rows, columns, k: width }.finished(lane, false)?;
        } else {
            let shape = Shape { ldy: columns, ..Shape::linear(rows, columns - q_rows, width) };
            let at = Operands::new(a.h.address, 0, a.qkv.address + offset);
            lane.through(&block.qkv, q_rows, shape, at)?;
        }
        // Where rows are packed values are never needed transposed: both are Hopper's.
        if cache.vt.is_empty() && head_dim.is_multiple_of(16) && lane.has("split_rope_8") {
            let args = [
                (&a.qkv).into(),
                (&a.q).into(),
                (&cache.k[i]).into(),
                (&cache.v[i]).into(),
                (&cache.cos).into(),
                (&cache.sin).into(),
                heads.into(),
                head_dim.into(),
                usize::from(block.is_packed).into(),
            ];
            let threads = (heads + 1) * head_dim / 16 + head_dim / 8;
            lane.launch("split_rope_8", [rows, 1, 1], threads, 0, &args)
        } else {
            let args = [
                (&a.qkv).into(),
                (&a.q).into(),
                (&cache.k[i]).into(),
                (&cache.v[i]).into(),
                cache.vt(i).into(),
                (&cache.cos).into(),
                (&cache.sin).into(),
                (&cache.request).into(),
                0usize.into(),
                heads.into(),
                head_dim.into(),
                0usize.into(),
                cache.capacity.into(),
            ];
            lane.launch("split_rope", [rows, 1, 1], 256, 0, &args)
        }
    }

    /// h through gate, up and GEGLU: where that is, in the type that `down` takes.
    fn mlp(&self, lane: &mut Lane, block: &PrefixBlock, rows: usize) -> Result<u64, EngineError> {
        let (a, GemmaDims { width, mlp, .. }) = (&self.activations, self.dims);
        let (x, hidden, is_fp8) = (a.h.address, a.hidden.address, block.gate_up.is_fp8());
        let product = Product { x, w: &block.gate_up, y: hidden, rows, columns: mlp, k: width };
        if is_fp8 && block.down.is_fp8() && product.geglu(lane, block.down.inverse())? {
            return Ok(hidden);
        }
        let w = block.gate_up.values.address;
        let fused = Fused { x, w, y: hidden, rows, columns: mlp, k: width, after: After::Geglu };
        if !is_fp8 && fused.fills(lane) {
            fused.record(lane)?;
        } else {
            let y = a.gate_up.address;
            if is_fp8 {
                Product { y, columns: 2 * mlp, ..product }.finished(lane, false)?;
            } else {
                lane.through(&block.gate_up, 0, Shape::linear(rows, 2 * mlp, width), Operands::new(x, 0, y))?;
            }
            a.geglu(lane, mlp, rows)?;
        }
        if !block.down.is_fp8() {
            return Ok(hidden);
        }
        lane.finish([hidden, 0, a.gate_up.address], [rows, mlp], false, block.down.inverse())?;
        Ok(a.gate_up.address)
    }

    /// `from` through a matrix to the residual stream. In e4m3 to y, where it waits for the next norm: then, where biases
    /// are that wait too, or 0.
    fn add(
        &self,
        lane: &mut Lane,
        w: &Weight,
        from: u64,
        rows: usize,
        k: usize,
    ) -> Result<Option<u64>, EngineError> {
        let (a, columns) = (&self.activations, self.dims.width);
        if w.is_fp8() {
            return Product { x: from, w, y: a.y.address, rows, columns, k }.dense(lane).map(Some);
        }
        let shape = Shape::linear(rows, columns, k).wide().add();
        lane.through(w, 0, shape, Operands::new(from, 0, a.x.address)).map(|()| None)
    }

    /// x to h. `waiting`: what is in y comes to x first, and these biases. `inverse`: of h's scale, if not 0.
    fn norm(
        &self,
        lane: &Lane,
        scale: &Buffer,
        rows: usize,
        waiting: Option<u64>,
        inverse: f32,
    ) -> Result<(), EngineError> {
        let a = &self.activations;
        if self.dims.width <= 2048 && lane.has("rms_norm_row") {
            let (y, biases) = waiting.map_or((0, 0), |biases| (a.y.address, biases));
            let (x, h, width) = ((&a.x).into(), (&a.h).into(), self.dims.width.into());
            let args = [x, y.into(), biases.into(), scale.into(), h, width, inverse.into()];
            return lane.launch("rms_norm_row", [rows, 1, 1], 128, 0, &args);
        }
        let args = [
            (&a.x).into(),
            scale.into(),
            0u64.into(),
            0usize.into(),
            0usize.into(),
            (&a.h).into(),
            self.dims.width.into(),
            rows.into(),
        ];
        lane.launch("rms_norm", [rows.div_ceil(4), 1, 1], 128, 0, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As kernels/rope.cu asks for them.
    #[test]
    fn every_lane_finds_its_rotations() {
        let (rotations, (cos, sin)) = (rotations(256, 40), angles(256, 48));
        assert_eq!(rotations.len(), 40 * 128 * 2);
        for (row, column) in [(0, 0), (7, 127), (8, 2), (39, 66), (34, 126)] {
            let lane = column % 8 * 4 + row % 8 / 2;
            let at = ((row / 8 * 16 + column / 8) * 32 + lane) * 4 + row % 2;
            assert_eq!(
                [rotations[at], rotations[at + 2]],
                [cos[row * 128 + column], sin[row * 128 + column]]
            );
        }
    }

    #[test]
    fn keys_are_shared_out_as_far_as_blocks_fit() {
        // An H200.
        let parts = |rows: usize| parts_of_keys(rows, (rows * 8).div_ceil(PREFIX_QUERIES), [39, 30]);
        assert_eq!([16, 300, 400, 544, 624, 640, 968].map(parts), [2, 3, 4, 3, 3, 2, 2]);
        assert_eq!(parts_of_keys(544, 34, [0; 2]), 2);
    }
}
