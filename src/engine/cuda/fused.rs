//! The expert's blocks in bf16 with `kernels/expert.cu`: eight kernels per block, weights packed for them.

use super::driver::{Arg, Buffer, Gpu};
use super::expert::{ACTIONS, Pass};
use super::lane::{EXPERT, Kernels, Lane, compiled};
use super::prefix::{Block, Cache};
use crate::engine::EngineError;
use crate::engine::probe::Tap;
use crate::model::dims::GemmaDims;

/// Shares of the attention's output product and of the MLP's, by blocks that sum in a fixed order later.
const O_SHARES: usize = 4;
const DOWN_SHARES: usize = 4;
/// Keys of a block of attention.
const SHARE_KEYS: usize = 128;

/// Packed weights and activations.
pub struct Fused {
    dims: GemmaDims,
    layers: Vec<[Buffer; 4]>,
    /// By tokens / 8.
    kernels: [Option<Kernels>; ACTIONS / 8 + 1],
    h: Buffer,
    q: Buffer,
    attended: Buffer,
    statistics: Buffer,
    mixed: Buffer,
    hidden: Buffer,
    parts: Buffer,
}

impl Fused {
    /// Whether the kernels fit these widths and this GPU.
    pub fn can(gpu: &Gpu, dims: &GemmaDims) -> bool {
        gpu.arch >= 80
            && [256, 512, 1024].contains(&dims.width)
            && dims.q_width().is_multiple_of(256 * O_SHARES)
            && dims.q_width() <= 1024 * O_SHARES
            && dims.mlp.is_multiple_of(256 * DOWN_SHARES)
            && dims.mlp <= 1024 * DOWN_SHARES
            && dims.head_dim.is_multiple_of(32)
            && attention_shared(dims) + (4 << 10) <= gpu.shared as usize
    }

    pub fn new(gpu: &Gpu, dims: &GemmaDims, keys: usize, blocks: impl Iterator<Item = Result<Block, EngineError>>) -> Result<Self, EngineError> {
        let kernels = compile(gpu, dims, 1)?;
        let orders = [qkv_order(dims), rows(dims.width), gate_up_order(dims), rows(dims.width)];
        let orders = orders.iter().map(|order| Ok((order.len(), gpu.buffer(order)?))).collect::<Result<Vec<_>, EngineError>>()?;
        let inputs = [dims.width, dims.q_width(), dims.width, dims.mlp];
        let mut layers = Vec::with_capacity(dims.layers);
        for block in blocks {
            let Block { qkv, o, gate_up, down } = block?;
            let mut packed = Vec::with_capacity(4);
            for ((from, (rows, order)), k) in [qkv, o, gate_up, down].into_iter().zip(&orders).zip(inputs) {
                let to = gpu.zeros(from.bytes)?;
                let args = [(&from).into(), (&to).into(), order.into(), k.into()];
                gpu.launch(kernels["pack_weights"], [rows / 16, 1, 1], 256, 0, false, &args)?;
                gpu.synchronize()?; // `from` is freed here
                packed.push(to);
            }
            layers.extend(<[Buffer; 4]>::try_from(packed).ok());
        }
        let zeros = |columns: usize, size: usize| gpu.zeros(ACTIONS * columns * size);
        Ok(Self {
            layers,
            kernels: Default::default(),
            h: zeros(dims.width, 2)?,
            q: zeros(dims.q_width(), 2)?,
            attended: zeros(keys.div_ceil(SHARE_KEYS) * dims.q_width(), 4)?,
            statistics: zeros(keys.div_ceil(SHARE_KEYS) * dims.heads, 8)?,
            mixed: zeros(dims.q_width(), 2)?,
            hidden: zeros(dims.mlp, 2)?,
            parts: zeros(O_SHARES.max(DOWN_SHARES) * dims.width, 4)?,
            dims: *dims,
        })
    }

    /// Compiles the kernels for chunks of `horizon`.
    pub fn prepare(&mut self, gpu: &Gpu, horizon: usize) -> Result<(), EngineError> {
        let tiles = horizon.div_ceil(8);
        if self.kernels[tiles].is_none() {
            self.kernels[tiles] = Some(compile(gpu, &self.dims, tiles)?);
        }
        Ok(())
    }

    /// Puts all blocks on the stream: `x` f32 `[horizon, width]`, in place.
    pub fn record(&self, lane: &Lane, cache: &Cache, pass: Pass, x: &Buffer, tap: &mut Tap) -> Result<(), EngineError> {
        let GemmaDims { width, heads, head_dim, mlp, .. } = self.dims;
        let tokens = pass.horizon;
        let Some(kernels) = &self.kernels[tokens.div_ceil(8)] else {
            return Err(super::driver::failed("denoise", "this horizon was not prepared"));
        };
        let put = |name, grid, block, shared, args: &[Arg]| lane.launch_of(kernels, name, grid, block, shared, args);
        // x += gates of norm `gated` * the shares' sum, then norm `n`.
        let norm = |gated: Option<usize>, shares: usize, n: usize| {
            let args = [
                x.into(), (&self.parts).into(), shares.into(), pass.channels(width, gated.unwrap_or(0), 2).into(),
                pass.channels(width, n, 0).into(), pass.channels(width, n, 1).into(), pass.clean[0].into(),
                pass.clean[1].into(), (&self.h).into(),
            ];
            put("expert_norm", [tokens, 1, 1], width / 4, 0, &args)
        };
        let first = pass.layout.rows;
        let (keys, rows) = (first + tokens, tokens * heads);
        let shares = keys.div_ceil(SHARE_KEYS);
        let sums = product_shared(tokens.div_ceil(8));
        norm(None, 0, 0)?;
        for (i, [qkv, o, gate_up, down]) in self.layers.iter().enumerate() {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let args = [
                qkv.into(), (&self.h).into(), (&self.q).into(), (&cache.k[i]).into(), cache.vt(i).into(), (&cache.cos).into(),
                (&cache.sin).into(), (&cache.request).into(), heads.into(), first.into(), cache.capacity.into(),
                tokens.into(), scale.into(),
            ];
            put("expert_qkv", [(heads + 2) * head_dim / 32, 1, 1], 256, sums, &args)?;
            let args = [
                (&self.q).into(), (&cache.k[i]).into(), cache.vt(i).into(), (&self.attended).into(), (&self.statistics).into(),
                (&cache.request).into(), rows.into(), first.into(), keys.into(), cache.capacity.into(),
            ];
            put("expert_attention", [rows.div_ceil(32), shares, 1], 256, attention_shared(&self.dims), &args)?;
            let args = [(&self.attended).into(), (&self.statistics).into(), (&self.mixed).into(), rows.into(), shares.into()];
            put("expert_combine", [rows.div_ceil(4), 1, 1], head_dim, 0, &args)?;
            let args = [o.into(), (&self.mixed).into(), (&self.parts).into(), tokens.into()];
            put("expert_o", [width / 32, O_SHARES, 1], 256, sums, &args)?;
            norm(Some(2 * i), O_SHARES, 2 * i + 1)?;
            let args = [gate_up.into(), (&self.h).into(), (&self.hidden).into(), tokens.into()];
            put("expert_gate_up", [mlp / 16, 1, 1], 256, sums, &args)?;
            let args = [down.into(), (&self.hidden).into(), (&self.parts).into(), tokens.into()];
            put("expert_down", [width / 32, DOWN_SHARES, 1], 256, sums, &args)?;
            norm(Some(2 * i + 1), DOWN_SHARES, 2 * i + 2)?;
            lane.record_wide(tap, format_args!("suffix.layer.{i}.out"), x.address, tokens * width)?;
        }
        Ok(())
    }
}

/// What the kernels of a network need to know when they are compiled.
pub fn defines(dims: &GemmaDims, tiles: usize) -> Vec<String> {
    let values = [
        ("HEAD_DIM", dims.head_dim),
        ("WIDTH", dims.width),
        ("MLP", dims.mlp),
        ("QWIDTH", dims.q_width()),
        ("O_SHARES", O_SHARES),
        ("DOWN_SHARES", DOWN_SHARES),
        ("NT", tiles),
    ];
    let values = values.iter().map(|(name, value)| format!("{name}={value}"));
    std::iter::once("BF16".to_owned()).chain(values).collect()
}

fn compile(gpu: &Gpu, dims: &GemmaDims, tiles: usize) -> Result<Kernels, EngineError> {
    let sums = product_shared(tiles);
    let names = [
        ("pack_weights", 0),
        ("expert_qkv", sums),
        ("expert_gate_up", sums),
        ("expert_o", sums),
        ("expert_down", sums),
        ("expert_norm", 0),
        ("expert_attention", attention_shared(dims)),
        ("expert_combine", 0),
    ];
    compiled(gpu, EXPERT, &defines(dims, tiles), &names)
}

/// Eight warps' sums of 32 rows.
fn product_shared(tiles: usize) -> usize {
    8 * 32 * tiles * 8 * 4
}

/// Four groups' numerators of 32 rows.
fn attention_shared(dims: &GemmaDims) -> usize {
    4 * 32 * (dims.head_dim + 4) * 4
}

fn rows(count: usize) -> Vec<i32> {
    (0..count as i32).collect()
}

/// Tiles of 16 rows of a head's first half with their partners of the second.
fn qkv_order(dims: &GemmaDims) -> Vec<i32> {
    let half = dims.head_dim / 2;
    let tile = |head: usize, j: usize| {
        (0..32).map(move |r| (head * 2 * half + j + if r < 16 { r } else { half + r - 16 }) as i32)
    };
    (0..dims.heads + 2).flat_map(|head| (0..half).step_by(16).flat_map(move |j| tile(head, j))).collect()
}

/// Tiles of 16 rows of gate with the same of up.
fn gate_up_order(dims: &GemmaDims) -> Vec<i32> {
    let tile = |first: usize| (0..32).map(move |r| if r < 16 { first + r } else { dims.mlp + first + r - 16 });
    (0..dims.mlp).step_by(16).flat_map(tile).map(|row| row as i32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dims::Dims;

    #[test]
    fn packed_rows_are_all_rows_once() {
        for order in [qkv_order(&Dims::FULL.expert), gate_up_order(&Dims::FULL.expert)] {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, rows(order.len()));
        }
        assert_eq!(qkv_order(&Dims::FULL.expert).len(), 2560);
        assert_eq!(gate_up_order(&Dims::FULL.expert)[15..18], [15, 4096, 4097]);
    }
}
