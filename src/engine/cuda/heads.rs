//! SigLIP's q, k, v and attention in one kernel on Hopper (kernels/heads.cu).

use std::f32::consts::LOG2_E;

use super::driver::{Arg, Launch, Matrix};
use super::lane::Lane;
use super::product::Norm;
use crate::engine::EngineError;
use crate::model::dims::VisionDims;

/// Tokens of an image, and those of a block.
const TOKENS: usize = 256;
const ROWS: usize = TOKENS / 2;
/// Columns of a head.
const HEAD: usize = 72;
/// Blocks of a cluster: with an image's halves, times with different heads.
const CLUSTER: [usize; 2] = [2, 2];
/// Pieces of k on their way, of 128 bytes.
const STAGES: usize = 4;
const THREADS: usize = 384;
/// Of bf16 and of e4m3.
const NAMES: [&str; 2] = ["vision_heads", "vision_heads_e4m3"];

/// A layer's q, k, v and attention: x `[images * tokens, width]` to y, the same.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    pub x: u64,
    /// `[3 * width, width]`: q, k, v.
    pub w: u64,
    pub y: u64,
    pub images: usize,
    pub width: usize,
    /// f32 `[3 * width]`.
    pub bias: u64,
    pub taken: Taken,
    /// y is e4m3, multiplied by this; 0: bf16.
    pub inverse: f32,
}

/// What x and W are.
#[derive(Clone, Copy, Debug)]
pub enum Taken {
    /// bf16; x before a norm that is done after the product.
    Bf16(Norm),
    /// e4m3; f32 multipliers of rows of W.
    E4m3(u64),
}

/// The kernel of bf16, with the shared memory of a block.
pub fn kernel() -> (&'static str, usize) {
    (NAMES[0], shared())
}

/// That of e4m3.
pub fn kernel_fp8() -> (&'static str, usize) {
    (NAMES[1], shared())
}

/// Whether there are such kernels for a SigLIP.
pub fn suit(v: &VisionDims) -> bool {
    v.tokens() == TOKENS && v.width == v.heads * HEAD && v.heads.is_multiple_of(CLUSTER[1])
}

// A block's own keys and values lie in one stage, and its rows of y in another.
const _: () = assert!(2 * ROWS * HEAD * 2 <= (ROWS + 3 * HEAD) * 128);

/// Pieces on their way; keys and values of the image's other half; vectors of columns and rows; counters.
fn shared() -> usize {
    STAGES * ((ROWS + 3 * HEAD) * 128 + 16) + 2 * ROWS * HEAD * 2 + (3 * HEAD + ROWS) * 8 + 16
}

/// Images, blocks of a cluster, heads by clusters.
fn grid(images: usize, heads: usize) -> [usize; 3] {
    [images, CLUSTER[0] * CLUSTER[1], heads / CLUSTER[1]]
}

impl Heads {
    /// Puts it on the stream.
    pub fn record(&self, lane: &Lane) -> Result<(), EngineError> {
        let Self { x, w, y, images, width, bias, taken, inverse } = *self;
        let (name, size, of_columns, norm) = match taken {
            Taken::Bf16(norm) => (NAMES[0], 2, norm.of_means, Some(norm)),
            Taken::E4m3(multipliers) => (NAMES[1], 1, multipliers, None),
        };
        let rows = images * TOKENS;
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: width, size, box_rows }.map().map(Arg::Map)
        };
        let args = [
            map(x, rows, ROWS / CLUSTER[1])?,
            map(w, 3 * width, HEAD)?,
            rows.into(),
            width.into(),
            (width * size).div_ceil(128).into(),
            y.into(),
            bias.into(),
            of_columns.into(),
            norm.map_or(0, |norm| norm.sums).into(),
            norm.map_or(0, |norm| width.div_ceil(norm.summed)).into(),
            (1.0 / width as f32).into(),
            (LOG2_E / (HEAD as f32).sqrt()).into(),
            inverse.into(),
        ];
        let grid = grid(images, width / HEAD);
        lane.launch_shaped(name, Launch::new(grid, THREADS, shared()).clusters(grid[1]), &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::dims::Dims;

    #[test]
    fn they_suit_siglip_and_no_other() {
        let v = Dims::FULL.vision;
        assert!(suit(&v));
        for other in [
            VisionDims { image: 448, ..v },
            VisionDims { heads: 18, ..v },
            VisionDims { width: 15 * HEAD, heads: 15, ..v },
            Dims::TINY.vision,
        ] {
            assert!(!suit(&other), "{other:?}");
        }
    }

    #[test]
    fn shared_memory_of_a_block_is_there_and_boxes_are_what_the_copy_engine_takes() {
        assert!(shared() <= 227 << 10, "{}", shared());
        // Parts of a stage begin where the pattern of swizzled rows does, every 8 rows.
        assert!((ROWS / CLUSTER[1]).is_multiple_of(8) && HEAD.is_multiple_of(8));
    }

    /// As kernels/heads.cu numbers them.
    #[test]
    fn every_half_of_an_image_and_head_is_one_blocks() {
        for (images, heads) in [(1, 16), (2, 16), (3, 16), (5, 2)] {
            let [across, blocks, deep] = grid(images, heads);
            let mut seen = vec![0; 2 * images * heads];
            for i in 0..across * blocks * deep {
                let (x, y, z) = (i % across, i / across % blocks, i / across / blocks);
                let half = x * CLUSTER[0] + y % CLUSTER[0];
                let head = z * CLUSTER[1] + y / CLUSTER[0];
                seen[half * heads + head] += 1;
            }
            assert!(seen.iter().all(|&count| count == 1), "{images} images, {heads} heads: {seen:?}");
        }
    }
}
