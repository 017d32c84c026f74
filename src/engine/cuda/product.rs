//! Own matrix products on Hopper, fused with what follows them (kernels/products.cu).
//!
//! Used where they were measured to be faster than the library's product and a kernel after it.

use super::driver::{Arg, Launch, Matrix};
use super::lane::Lane;
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
const THREADS: usize = 384;

/// A kernel: a tile of `n` rows of W, clusters of `cluster` blocks (along rows, along columns), a ring of `stages`.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    pub name: &'static str,
    n: usize,
    cluster: [usize; 2],
    stages: usize,
    /// Gate and up in one tile, and blocks that work on several tiles.
    is_geglu: bool,
}

/// `GELU(x gate^T) * (x up^T)`.
pub const GEGLU: Tile = Tile { name: "geglu_2", n: 256, cluster: [2, 1], stages: 4, is_geglu: true };

/// All of them.
pub const TILES: [Tile; 1] = [GEGLU];

impl Tile {
    /// Shared memory of a block; results of `size` bytes wait in it.
    pub fn shared(&self, size: usize) -> usize {
        let waiting = if self.is_geglu { ROWS * (self.n / 2 * size + 16) } else { 0 };
        self.stages * (ROWS + self.n) * 128 + waiting + self.stages * 16
    }

    /// Rows computed for `rows`.
    pub fn padded(&self, rows: usize) -> usize {
        rows.next_multiple_of(ROWS * self.cluster[0])
    }
}

/// Operands of a product: x `[rows, k]`, W, y `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
}

impl Product {
    /// Puts it on the stream.
    pub fn record(&self, lane: &Lane, tile: Tile) -> Result<(), EngineError> {
        let size = 2;
        let Product { x, w, y, rows, columns, k } = *self;
        let [down, across] = tile.cluster;
        let (wide, w_rows) = if tile.is_geglu { (tile.n / 2, 2 * columns) } else { (tile.n, columns) };
        let tiles = rows.div_ceil(ROWS * down) * columns.div_ceil(wide).div_ceil(across);
        let most = lane.gpu.processors as usize / (down * across);
        let clusters = if tile.is_geglu { tiles.min(most) } else { tiles };
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: k, size, box_rows }.map().map(Arg::Map)
        };
        let args = [
            map(x, rows, ROWS / across)?,
            map(w, w_rows, tile.n / 2)?,
            rows.into(),
            columns.into(),
            (k * size).div_ceil(128).into(),
            0usize.into(),
            0usize.into(),
            y.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            0u64.into(),
            1.0.into(),
        ];
        let shape = Launch::new([clusters, down * across, 1], THREADS, tile.shared(size));
        lane.launch_shaped(tile.name, shape.clusters(down * across), &args)
    }
}
