//! Own e4m3 products on Hopper, fused with what follows them (kernels/products_fp8.cu), and which of them, or the
//! library's, takes a matrix.

use super::driver::{Arg, Launch, Matrix};
use super::gemm::{Operands, Shape};
use super::lane::Lane;
use super::load::Weight;
use super::product::{HANDED, TURNED, turned_clusters};
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
const THREADS: usize = 384;
/// Longest rows of W for which own products were measured to be faster than the library's.
const LONGEST: usize = 8192;
/// What a tile costs besides its columns, in columns.
const OVERHEAD: usize = 64;

/// A kernel: a block's tile has `rows` of x and `n` of W; `stages` pieces of k are on their way; clusters are of so many
/// tiles of rows and columns.
#[derive(Clone, Copy, Debug)]
struct Tile {
    name: &'static str,
    rows: usize,
    n: usize,
    cluster: [usize; 2],
    stages: usize,
}

const fn tile(name: &'static str, n: usize, cluster: [usize; 2], stages: usize) -> Tile {
    Tile { name, rows: ROWS, n, cluster, stages }
}

/// `x W^T + bias` to bf16.
const DENSE: [Tile; 6] = [
    tile("dense_64_2x2", 64, [2, 2], 8),
    tile("dense_64_1x2", 64, [1, 2], 8),
    tile("dense_128_2x1", 128, [2, 1], 6),
    tile("dense_128_1x2", 128, [1, 2], 6),
    tile("dense_160_2x1", 160, [2, 1], 5),
    tile("dense_160_1x2", 160, [1, 2], 5),
];
/// `GELU(x W^T + bias)` to e4m3.
const GELU: [Tile; 2] = [tile("gelu_144_2x2", 144, [2, 2], 6), tile("gelu_208_2x1", 208, [2, 1], 5)];
/// `GELU(x gate^T) * (x up^T)` to e4m3, W = [gate; up].
const GEGLU: [Tile; 3] = [
    tile("geglu_256_2x1", 256, [2, 1], 3),
    tile("geglu_256_1x2", 256, [1, 2], 3),
    Tile { rows: TURNED, ..tile("geglu_184_1x2", 256, [1, 2], 4) },
];

/// All kernels, with the shared memory of a block.
pub fn kernels() -> Vec<(&'static str, usize)> {
    DENSE.iter().chain(&GELU).chain(&GEGLU).map(|tile| (tile.name, tile.shared())).collect()
}

/// A product: x `[rows, k]` in e4m3 to y `[rows, columns]`.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    pub x: u64,
    pub w: &'a Weight,
    pub y: u64,
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
}

impl Product<'_> {
    /// To bf16. Where the biases are if they were left for whoever reads y, else 0.
    pub fn dense(&self, lane: &mut Lane) -> Result<u64, EngineError> {
        let processors = lane.gpu.processors as usize;
        let tile = best(&DENSE, self.rows, self.columns, processors);
        if self.suits(lane, tile) {
            return self.launch(lane, tile, self.columns, 0.0).map(|()| 0);
        }
        let Self { x, w, y, rows, columns, k } = *self;
        lane.through(w, 0, Shape::linear(rows, columns, k), Operands::new(x, 0, y))?;
        Ok(w.bias())
    }

    /// The same, biases and all.
    pub fn finished(&self, lane: &mut Lane, gelu: bool) -> Result<(), EngineError> {
        let left = self.dense(lane)?;
        if left == 0 && !gelu {
            return Ok(());
        }
        lane.finish([self.y, left, self.y], [self.rows, self.columns], gelu, 0.0)
    }

    /// GELU of it to e4m3, multiplied by `inverse`; false: there is no kernel for that.
    pub fn gelu(&self, lane: &Lane, inverse: f32) -> Result<bool, EngineError> {
        let tile = best(&GELU, self.rows, self.columns, lane.gpu.processors as usize);
        let suits = self.suits(lane, tile);
        if suits {
            self.launch(lane, tile, self.columns, inverse)?;
        }
        Ok(suits)
    }

    /// GEGLU to e4m3, multiplied by `inverse`, W = [gate; up]; false: there is no kernel for that.
    pub fn geglu(&self, lane: &Lane, inverse: f32) -> Result<bool, EngineError> {
        let tile = best(&GEGLU, self.rows, 2 * self.columns, lane.gpu.processors as usize);
        let suits = self.suits(lane, tile) && self.columns.is_multiple_of(tile.n / 2 * tile.cluster[1]);
        if suits {
            self.launch(lane, tile, 2 * self.columns, inverse)?;
        }
        Ok(suits)
    }

    fn suits(&self, lane: &Lane, tile: &Tile) -> bool {
        let fits = self.k.is_multiple_of(16) && self.columns.is_multiple_of(16);
        fits && self.k <= LONGEST && lane.has(tile.name)
    }

    /// `w_rows`: of W.
    fn launch(&self, lane: &Lane, tile: &Tile, w_rows: usize, inverse: f32) -> Result<(), EngineError> {
        let [down, across] = tile.cluster;
        let (tiles, processors) = (tile.clusters(self.rows, w_rows), lane.gpu.processors as usize);
        // Of GEGLU, blocks work on tiles one after the other.
        let is_turned = tile.rows == TURNED;
        let clusters = match w_rows == self.columns {
            true => tiles,
            false if is_turned => turned_clusters(self.rows.div_ceil(TURNED), tiles, processors),
            false => tiles.min(processors / (down * across)),
        };
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: self.k, size: 1, box_rows }.map().map(Arg::Map)
        };
        let args = [
            map(self.x, self.rows, (tile.rows / across).next_multiple_of(8))?,
            map(self.w.values.address, w_rows, if is_turned { tile.n / 4 } else { tile.n / 2 })?,
            self.rows.into(),
            self.columns.into(),
            self.k.div_ceil(128).into(),
            self.y.into(),
            self.w.bias().into(),
            self.w.multipliers().into(),
            inverse.into(),
        ];
        let shape = Launch::new([clusters, down * across, 1], THREADS, tile.shared()).clusters(down * across);
        lane.launch_shaped(tile.name, shape, &args)
    }
}

/// The tile that takes the least time for so many rows of x and of W.
fn best(tiles: &'static [Tile], rows: usize, columns: usize, processors: usize) -> &'static Tile {
    let cost = |tile: &&Tile| tile.cost(rows, columns, processors);
    tiles.iter().min_by_key(cost).unwrap_or(&DENSE[0]) // invariant: there is one
}

impl Tile {
    /// Pieces on their way, counters; results that are handed on, or columns' vectors.
    fn shared(&self) -> usize {
        let beside = match self {
            tile if tile.rows == TURNED => 0,
            tile if tile.name.starts_with("geglu") => ROWS * HANDED + 16,
            tile => tile.n * 8,
        };
        self.stages * ((self.rows + self.n) * 128 + 16) + beside
    }

    /// Clusters for so many rows of x and of W.
    fn clusters(&self, rows: usize, columns: usize) -> usize {
        let [down, across] = self.cluster;
        rows.div_ceil(self.rows * down) * columns.div_ceil(self.n).div_ceil(across)
    }

    /// Time, in values of a row of k: of all rounds that the multiprocessors work through; then how many blocks, since some
    /// are padding.
    fn cost(&self, rows: usize, columns: usize, processors: usize) -> (usize, usize) {
        let blocks = self.clusters(rows, columns) * self.cluster[0] * self.cluster[1];
        (blocks.div_ceil(processors) * (self.n + OVERHEAD) * self.rows, blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tile_is_the_one_that_was_measured_to_be_fastest() {
        // On 132 multiprocessors: rows, columns of vision's and the prefix's matrices.
        for (rows, columns, fastest) in [
            (768, 1152, "dense_64_2x2"),
            (512, 1152, "dense_64_2x2"),
            (768, 3456, "dense_160_2x1"),
            (512, 3456, "dense_128_2x1"),
            (968, 2560, "dense_160_2x1"),
            (544, 2560, "dense_128_1x2"),
            (968, 2048, "dense_128_2x1"),
            (544, 2048, "dense_128_1x2"),
        ] {
            assert_eq!(best(&DENSE, rows, columns, 132).name, fastest, "{rows} x {columns}");
        }
        for (rows, fastest) in [(768, "gelu_208_2x1"), (512, "gelu_144_2x2"), (256, "gelu_144_2x2")] {
            assert_eq!(best(&GELU, rows, 4304, 132).name, fastest, "{rows}");
        }
        for (rows, fastest) in [(968, "geglu_256_2x1"), (544, "geglu_184_1x2"), (300, "geglu_184_1x2")] {
            assert_eq!(best(&GEGLU, rows, 2 * 16384, 132).name, fastest, "{rows}");
        }
    }

    #[test]
    fn shared_memory_of_a_block_is_there() {
        for (name, shared) in kernels() {
            assert!(shared <= 227 << 10, "{name}: {shared}");
        }
    }
}
