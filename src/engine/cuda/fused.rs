//! The expert's blocks in bf16 with `kernels/expert.cu`, `expert_90.cu` and `expert_attention.cu`: five
//! kernels per block, weights packed for them.

use std::f32::consts::LOG2_E;

use half::bf16;

use super::driver::{Arg, Buffer, Gpu, Launch};
use super::expert::{ACTIONS, Pass};
use super::lane::{EXPERT, Kernels, Lane, compiled};
use super::order;
use super::prefix::{Block, Cache};
use crate::engine::EngineError;
use crate::engine::cpu::time::Modulation;
use crate::engine::probe::Tap;
use crate::model::dims::GemmaDims;

/// Blocks that share the sum of a product that is added to the residual stream.
const SHARES: usize = 8;
/// Blocks that fetch activations for each other.
const SHARED: usize = 4;
/// Rows and keys of a block of attention, and rows with Hopper's matrix instructions.
const TILE: [usize; 2] = [32, 128];
const HOPPER_ROWS: usize = 64;
/// Most values of an action.
const ACTION_DIM: usize = 128;
/// Blocks that share the keys, at most; with Hopper's matrix instructions always so many.
const CLUSTER: usize = 8;
const HOPPER_CLUSTER: usize = 16;

/// Packed weights and activations.
pub struct Fused {
    dims: GemmaDims,
    hopper: bool,
    layers: Vec<[Buffer; 4]>,
    /// By tokens / 8.
    kernels: [Option<Kernels>; ACTIONS / 8 + 1],
    /// x * (1 + scale), and the sums of squares of each 32 columns of x.
    xs: Buffer,
    squares: Buffer,
    q: Buffer,
    /// The action tokens' own keys and values, with Hopper's matrix instructions: else they are in the cache.
    own: [Buffer; 2],
    mixed: Buffer,
    hidden: Buffer,
    action_dim: usize,
    /// Weight, transposed, and bias of the projection from actions.
    begin: [Buffer; 2],
    /// Weight and bias of that to velocities.
    end: [Buffer; 2],
}

/// Where an evaluation begins and ends.
#[derive(Clone, Copy)]
pub struct Ends {
    /// Actions, f32.
    pub action: u64,
    /// They are first moved by `pending` times this.
    pub velocity: u64,
    pub pending: f32,
    /// The velocity there.
    pub out: u64,
}

impl Fused {
    /// Whether the kernels fit these widths, this GPU and so many keys.
    pub fn can(gpu: &Gpu, dims: &GemmaDims, action_dim: usize, keys: usize) -> bool {
        gpu.arch >= 90
            && [256, 512, 1024].contains(&dims.width)
            && dims.q_width().is_multiple_of(128 * SHARES)
            && dims.mlp.is_multiple_of(128 * SHARES)
            && action_dim <= ACTION_DIM
            && dims.head_dim == 256
            && (gpu.arch == 90 || keys <= CLUSTER * TILE[1])
            && block_kernels(gpu.arch == 90, dims, ACTIONS / 8)
                .iter()
                .all(|(_, shared)| shared + (22 << 10) <= gpu.shared as usize)
    }

    pub fn new(
        gpu: &Gpu,
        dims: &GemmaDims,
        blocks: impl Iterator<Item = Result<Block, EngineError>>,
        begin: [Buffer; 2],
        end: [Buffer; 2],
        action_dim: usize,
    ) -> Result<Self, EngineError> {
        let kernels = compile(gpu, dims, 1)?;
        let qkv = order::partners(dims.heads + 2, dims.head_dim);
        let orders = [qkv, order::natural(dims.width), order::gate_up(dims.mlp), order::natural(dims.width)];
        let orders = orders
            .iter()
            .map(|order| Ok((order.len(), gpu.buffer(order)?)))
            .collect::<Result<Vec<_>, EngineError>>()?;
        let inputs = [dims.width, dims.q_width(), dims.width, dims.mlp];
        let mut layers = Vec::with_capacity(dims.layers);
        for block in blocks {
            let Block { qkv, o, gate_up, down } = block?;
            let mut packed = Vec::with_capacity(4);
            for ((from, (rows, order)), k) in [qkv, o, gate_up, down].into_iter().zip(&orders).zip(inputs) {
                let to = gpu.zeros(from.bytes)?;
                let args = [(&from).into(), (&to).into(), order.into(), k.into()];
                gpu.launch(kernels["pack_weights"], Launch::new([rows / 16, 1, 1], 256, 0), false, &args)?;
                gpu.synchronize()?; // `from` is freed here
                packed.push(to);
            }
            layers.extend(<[Buffer; 4]>::try_from(packed).ok());
        }
        let zeros = |columns: usize, size: usize| gpu.zeros(ACTIONS * columns * size);
        Ok(Self {
            layers,
            kernels: Default::default(),
            xs: zeros(dims.width, 2)?,
            squares: zeros(dims.width / 32, 4)?,
            q: zeros(dims.q_width(), 2)?,
            own: [zeros(dims.head_dim, 2)?, zeros(dims.head_dim, 2)?],
            mixed: zeros(dims.q_width(), 2)?,
            hidden: zeros(dims.mlp, 2)?,
            hopper: gpu.arch == 90,
            action_dim,
            begin,
            end,
            dims: *dims,
        })
    }

    /// Whether it has Hopper's matrix instructions.
    pub fn is_hopper(&self) -> bool {
        self.hopper
    }

    /// Compiles the kernels for chunks of `horizon`.
    pub fn prepare(&mut self, gpu: &Gpu, horizon: usize) -> Result<(), EngineError> {
        let tiles = horizon.div_ceil(8);
        if self.kernels[tiles].is_none() {
            self.kernels[tiles] = Some(compile(gpu, &self.dims, tiles)?);
        }
        Ok(())
    }

    /// Floats of a time's shifts: of every block, those of q, k, v and of gate, up, in the order of packed rows.
    pub fn shift_len(&self) -> usize {
        self.dims.layers * self.shift_of(2)
    }

    /// Where in a block's shifts those of its first (0) or second (1) norm begin.
    fn shift_of(&self, norm: usize) -> usize {
        let qkv = (self.dims.heads + 2) * self.dims.head_dim;
        [0, qkv, qkv + 2 * self.dims.mlp][norm]
    }

    /// Each time's shifts: what the products make of them. `[times, shift_len]`
    pub fn shifts(&mut self, lane: &Lane, modulations: &[Modulation]) -> Result<Buffer, EngineError> {
        self.prepare(&lane.gpu, ACTIONS)?;
        let (width, pitch) = (self.dims.width, self.shift_len());
        let out = lane.gpu.zeros(modulations.len() * pitch * 4)?;
        let Some(kernels) = &self.kernels[ACTIONS / 8] else { return Ok(out) };
        for (first, times) in modulations.chunks(ACTIONS).enumerate() {
            let first = out.address + (first * ACTIONS * pitch * 4) as u64;
            for (i, packed) in self.layers.iter().enumerate() {
                for norm in 0..2 {
                    let channels =
                        |m: &Modulation| m.values()[((2 * i + norm) * 3 + 1) * width..][..width].to_vec();
                    let mut values = vec![0u16; ACTIONS * width];
                    for (token, row) in times.iter().map(channels).enumerate() {
                        for (k, value) in row.into_iter().enumerate() {
                            values[fragment(token, k, ACTIONS / 8)] = bf16::from_f32(value).to_bits();
                        }
                    }
                    lane.gpu.upload_to(self.xs.address, &values)?;
                    let at = first + ((i * self.shift_of(2) + self.shift_of(norm)) * 4) as u64;
                    let count = self.shift_of(norm + 1) - self.shift_of(norm);
                    let args = [
                        (&packed[2 * norm]).into(),
                        (&self.xs).into(),
                        at.into(),
                        times.len().into(),
                        pitch.into(),
                    ];
                    let shape = Launch::new([count / 32, 1, 1], 256, product_shared(ACTIONS / 8, width));
                    lane.launch_of(kernels, "expert_shift", shape, &args)?;
                }
            }
        }
        lane.gpu.synchronize()?;
        Ok(out)
    }

    /// Puts an evaluation on the stream. `x`: residual stream, f32 `[horizon, width]`.
    pub fn record(
        &self,
        lane: &Lane,
        cache: &Cache,
        pass: Pass,
        x: &Buffer,
        ends: Ends,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let GemmaDims { width, heads, head_dim, mlp, layers, .. } = self.dims;
        let tokens = pass.horizon;
        let Some(kernels) = &self.kernels[tokens.div_ceil(8)] else {
            return Err(super::driver::failed("denoise", "this horizon was not prepared"));
        };
        let clean: [Arg; 2] = [pass.clean.into(), pass.to_clean.into()];
        let clean_shift: [Arg; 2] = [pass.clean.into(), pass.to_clean_shift.into()];
        let normed: [Arg; 2] = [(&self.xs).into(), (&self.squares).into()];
        let count: [Arg; 1] = [tokens.into()];
        let shift = |i: usize, norm: usize| {
            Arg::Address(pass.shifts + ((i * self.shift_of(2) + self.shift_of(norm)) * 4) as u64)
        };
        // A part of a matrix, for the cache: not on Hopper, where memory is fast enough without.
        let ask = |buffer: &Buffer, part: usize, parts: usize| -> Vec<Arg> {
            let each = buffer.bytes / parts;
            let asks = [(buffer.address + (part * each) as u64).into(), (each / 1024).into()];
            if self.hopper { Vec::new() } else { asks.into() }
        };
        let first = pass.layout.rows;
        let (keys, rows) = (first + tokens, tokens * heads);
        let [qkv_kernel, attention, o_kernel, gate_up_kernel, down_kernel] =
            block_kernels(self.hopper, &self.dims, tokens.div_ceil(8));
        let put = |(name, room), grid, block, cluster, args: &[&[Arg]]| {
            let shape = Launch::new(grid, block, room).clusters(cluster);
            lane.launch_of(kernels, name, shape, &args.concat())
        };
        let [w, b] = &self.begin;
        let args: [Arg; 7] = [
            ends.action.into(),
            ends.velocity.into(),
            ends.pending.into(),
            w.into(),
            b.into(),
            x.into(),
            pass.channels(width, 0, 0).into(),
        ];
        let dim: [Arg; 1] = [self.action_dim.into()];
        put(("expert_begin", 0), [tokens, 1, 1], width / 4, 1, &[&args, &clean, &normed, &dim])?;
        lane.record_wide(tap, format_args!("suffix.embs"), x.address, tokens * width)?;
        for (i, [qkv, o, gate_up, down]) in self.layers.iter().enumerate() {
            let scale = 1.0 / (head_dim as f32).sqrt();
            let [k, v] = match self.hopper {
                true => [&cache.k[i], &cache.v[i]].map(|buffer| buffer.address),
                false => [cache.k[i].address, cache.vt(i)],
            };
            // Where the tokens' own go; not on Hopper, how far the next token's and the next column's value is.
            let [own_k, own_v] =
                if self.hopper { self.own.each_ref().map(|own| own.address) } else { [k, v] };
            let args = [
                (&self.q).into(),
                own_k.into(),
                own_v.into(),
                1usize.into(),
                cache.capacity.into(),
                (&cache.cos).into(),
                (&cache.sin).into(),
                (&cache.request).into(),
                heads.into(),
                first.into(),
                tokens.into(),
                scale.into(),
            ];
            let grid = [(heads + 2) * head_dim / 128, SHARED, 1];
            let weight: [Arg; 1] = [qkv.into()];
            let args: [&[Arg]; 6] =
                [&weight, &normed, &[shift(i, 0)], &clean_shift, &args, &ask(gate_up, 0, 2)];
            put(qkv_kernel, grid, 256, SHARED, &args)?;

            let args = [
                (&self.q).into(),
                k.into(),
                v.into(),
                (&self.mixed).into(),
                (&cache.request).into(),
                heads.into(),
                rows.into(),
                first.into(),
                keys.into(),
            ];
            let on_hopper: [Arg; 3] = [LOG2_E.into(), own_k.into(), own_v.into()];
            let elsewhere: [Arg; 1] = [cache.capacity.into()];
            let (grid, block, last) = match self.hopper {
                true => ([rows.div_ceil(HOPPER_ROWS), HOPPER_CLUSTER, 1], 128, &on_hopper[..]),
                false => ([rows.div_ceil(TILE[0]), keys.div_ceil(TILE[1]), 1], 256, &elsewhere[..]),
            };
            put(attention, grid, block, grid[1], &[&args, last, &ask(gate_up, 1, 2)])?;

            let residual = |weight: &Buffer, from: &Buffer, n: usize| -> [Arg; 5] {
                let channels = [pass.channels(width, n, 2).into(), pass.channels(width, n + 1, 0).into()];
                [weight.into(), from.into(), x.into(), channels[0], channels[1]]
            };
            let grid = [width / 64, SHARES, 1];
            let args: [&[Arg]; 5] =
                [&residual(o, &self.mixed, 2 * i), &clean, &normed, &count, &ask(down, 0, 1)];
            put(o_kernel, grid, 256, SHARES, &args)?;

            let next = &self.layers[(i + 1) % layers];
            let to: [Arg; 1] = [(&self.hidden).into()];
            let args: [&[Arg]; 7] =
                [&[gate_up.into()], &normed, &[shift(i, 1)], &clean_shift, &to, &count, &ask(&next[0], 0, 1)];
            let together = if self.hopper { gate_up_blocks(tokens.div_ceil(8)) } else { 2 };
            put(gate_up_kernel, [mlp / 64, 2, 1], 256, together, &args)?;

            let args: [&[Arg]; 5] =
                [&residual(down, &self.hidden, 2 * i + 1), &clean, &normed, &count, &ask(&next[1], 0, 1)];
            put(down_kernel, grid, 256, SHARES, &args)?;
            lane.record_wide(tap, format_args!("suffix.layer.{i}.out"), x.address, tokens * width)?;
        }
        let [w, b] = &self.end;
        let channels = |part| pass.channels(width, 2 * layers, part);
        let args: [Arg; 3] = [x.into(), channels(0).into(), channels(1).into()];
        let out: [Arg; 4] = [w.into(), b.into(), ends.out.into(), self.action_dim.into()];
        put(("expert_end", 0), [tokens, self.action_dim.div_ceil(16), 1], 256, 1, &[&args, &clean, &out])
    }
}

/// What the kernels of a network need to know when they are compiled.
pub fn defines(dims: &GemmaDims, tiles: usize) -> Vec<String> {
    let values = [
        ("HEAD_DIM", dims.head_dim),
        ("WIDTH", dims.width),
        ("MLP", dims.mlp),
        ("QWIDTH", dims.q_width()),
        ("NT", tiles),
        ("GATE_UP_BLOCKS", gate_up_blocks(tiles)),
    ];
    let values = values.iter().map(|(name, value)| format!("{name}={value}"));
    std::iter::once("BF16".to_owned()).chain(values).collect()
}

/// Blocks that share the k of gate and up on Hopper.
fn gate_up_blocks(tiles: usize) -> usize {
    if tiles > 2 { 2 } else { 1 }
}

fn compile(gpu: &Gpu, dims: &GemmaDims, tiles: usize) -> Result<Kernels, EngineError> {
    let shift = ("expert_shift", product_shared(tiles, dims.width));
    let others = [("pack_weights", 0), ("expert_begin", 0), ("expert_end", 0), shift];
    let block = block_kernels(gpu.arch == 90, dims, tiles);
    let kernels = compiled(gpu, EXPERT, &defines(dims, tiles), &[&others[..], &block].concat())?;
    if gpu.arch == 90 && tiles == 7 {
        // Attention has 112 multiprocessors. Measured: faster if what follows cannot share the others at will.
        for (name, _) in &block[2..] {
            kernels[name].divides_anew()?;
        }
    }
    Ok(kernels)
}

/// A block's kernels in their order, and what shared memory each asks for.
fn block_kernels(hopper: bool, dims: &GemmaDims, tiles: usize) -> [(&'static str, usize); 5] {
    if hopper {
        let activations = |k: usize| k / 32 * tiles * 512;
        // Weights that registers have no room for.
        let behind = |units: usize| units.saturating_sub(10) * 8192;
        // With what two warpgroups give each other.
        let product = |k: usize| activations(k) + behind(k / 64) + tiles * 2048;
        // Who shares a multiprocessor with whom decides when blocks can start, so some ask for more than they need. Two
        // blocks of q, k and v together would leave no room for one of attention, whose cluster would wait for it. Gate
        // and up beside attention would be in the way of o; and of few tokens o beside attention.
        let few = tiles <= 3;
        let at_least = |room: usize, kilobytes: usize| room.max(kilobytes << 10);
        let beside_attention = (130 << 10) - tiles.div_ceil(2) * 4096 - tiles * 544;
        let gate_up = match gate_up_blocks(tiles) {
            1 => product(dims.width),
            _ => activations(dims.width / 2) + behind(dims.width / 64),
        };
        [
            ("expert_qkv_90", at_least(product(dims.width / 2), if tiles > 4 { 103 } else { 0 })),
            // Queries, keys and values.
            ("expert_attention_90", 3 * 32768 + 1024 + if few { 48 << 10 } else { 0 }),
            ("expert_o_90", at_least(product(dims.q_width() / SHARES), if few { 84 } else { 60 })),
            ("expert_gate_up_90", gate_up.max(if few { 88 << 10 } else { beside_attention })),
            ("expert_down_90", product(dims.mlp / SHARES)),
        ]
    } else {
        [
            ("expert_qkv", product_shared(tiles, dims.width)),
            ("expert_attention", 4 * 32 * (dims.head_dim + 4) * 4),
            ("expert_o", product_shared(tiles, dims.q_width() / SHARES)),
            ("expert_gate_up", product_shared(tiles, dims.width)),
            ("expert_down", product_shared(tiles, dims.mlp / SHARES)),
        ]
    }
}

/// Activations of `k` columns, then eight warps' sums of 32 rows.
fn product_shared(tiles: usize, k: usize) -> usize {
    (k / 32 * tiles * 512).max(8 * tiles * 8 * 36 * 4)
}

/// Where a value of the activations of a product is, tokens in `tiles` of 8.
fn fragment(token: usize, k: usize, tiles: usize) -> usize {
    (k / 8 * tiles * 8 + token) * 8 + k % 8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dims::Dims;

    /// What `Fused::can` asks of the longest chunks holds for shorter ones too; of Hopper's 227 KB and Thor's as well.
    #[test]
    fn every_chunks_kernels_fit_a_multiprocessor() {
        for (hopper, tiles) in [true, false].into_iter().flat_map(|h| (1..=ACTIONS / 8).map(move |t| (h, t)))
        {
            for (name, shared) in block_kernels(hopper, &Dims::FULL.expert, tiles) {
                assert!(shared + (22 << 10) <= 227 << 10, "{name} of {tiles} tiles asks for {shared} bytes");
            }
        }
    }

    #[test]
    fn every_value_of_activations_has_a_place_of_its_own() {
        for tiles in 1..=ACTIONS / 8 {
            let mut places: Vec<_> =
                (0..tiles * 8).flat_map(|token| (0..64).map(move |k| fragment(token, k, tiles))).collect();
            places.sort_unstable();
            assert!(places.iter().copied().eq(0..tiles * 8 * 64), "{tiles} tiles");
        }
    }
}
