//! Own matrix products on Hopper, fused with what follows them (kernels/products.cu).
//!
//! Used where they were measured to be faster than the library's product and a kernel after it.

use super::driver::{Arg, Launch, Matrix};
use super::lane::Lane;
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
/// Rows of W in a block's tile: half of gate, half of up.
const COLUMNS: usize = 256;
/// Pieces of k on their way, of 128 bytes.
const STAGES: usize = 4;
/// Blocks of a cluster: they have different rows, and share the weights that they read.
const CLUSTER: usize = 2;
const THREADS: usize = 384;
/// Bytes of a bf16.
const SIZE: usize = 2;

/// `GELU(x gate^T) * (x up^T)` of bf16: x `[rows, k]`, W = [gate; up], y `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct Geglu {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
}

impl Geglu {
    /// The kernel.
    pub const NAME: &str = "geglu_bf16";
    /// Shared memory of a block: the pieces on their way, and results that wait to be written.
    pub const SHARED: usize = STAGES * ((ROWS + COLUMNS) * 128 + 16) + ROWS * (COLUMNS / 2 * SIZE + 16);

    /// Whether it may be used, and is faster: sizes fit, and few of the rows computed are padding.
    pub fn suits(&self, lane: &Lane) -> bool {
        lane.has(Self::NAME)
            && self.k.is_multiple_of(8)
            && self.columns.is_multiple_of(COLUMNS / 2)
            && self.rows.next_multiple_of(ROWS * CLUSTER) * 10 <= self.rows * 11
    }

    /// Puts it on the stream.
    pub fn record(&self, lane: &Lane) -> Result<(), EngineError> {
        let Self { x, w, y, rows, columns, k } = *self;
        let tiles = rows.div_ceil(ROWS * CLUSTER) * columns.div_ceil(COLUMNS / 2);
        let clusters = tiles.min(lane.gpu.processors as usize / CLUSTER);
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: k, size: SIZE, box_rows }.map().map(Arg::Map)
        };
        let args = [
            map(x, rows, ROWS)?,
            map(w, 2 * columns, COLUMNS / 2)?,
            rows.into(),
            columns.into(),
            (k * SIZE).div_ceil(128).into(),
            y.into(),
            0u64.into(),
            0u64.into(),
            1.0.into(),
        ];
        let shape = Launch::new([clusters, CLUSTER, 1], THREADS, Self::SHARED).clusters(CLUSTER);
        lane.launch_shaped(Self::NAME, shape, &args)
    }
}
