//! Own matrix products on Hopper, fused with what follows them (kernels/products.cu).
//!
//! Used where they were measured to be faster than the library's product and the kernels that it would need around it.

use super::driver::{Arg, Launch, Matrix};
use super::lane::Lane;
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
const THREADS: usize = 384;
/// Bytes of a bf16.
const SIZE: usize = 2;
/// Columns of the residual stream that are summed by one block for the next norm.
pub const SUMMED: usize = 64;

/// What follows a product.
#[derive(Clone, Copy, Debug)]
pub enum After {
    /// W = [gate; up]: `GELU(x gate^T) * (x up^T)`.
    Geglu,
    /// Plus a bias (f32), perhaps GELU; of normalized rows, if x is what a product has left for a norm.
    Linear { bias: u64, gelu: bool, norm: Option<Norm> },
    /// Plus a bias (f32, or 0) added to y, the residual stream in f32.
    Add { bias: u64, next: Option<Next> },
}

/// A LayerNorm of x that is done after the product.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// f32 `[k / SUMMED, rows, 2]`: sums and sums of squares of x before it was multiplied by the norm's weights.
    pub sums: u64,
    /// f32 `[columns]`: W times the norm's weights.
    pub of_means: u64,
}

/// What the residual stream's next norm needs.
#[derive(Clone, Copy, Debug)]
pub struct Next {
    /// f32: the norm's weights.
    pub weights: u64,
    /// bf16: the residual stream times those.
    pub scaled: u64,
    /// See [`Norm::sums`].
    pub sums: u64,
}

/// `y = f(x W^T)` of bf16: x `[rows, k]`, W `[columns, k]` (GEGLU: twice the columns), y `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub struct Fused {
    pub x: u64,
    pub w: u64,
    pub y: u64,
    pub rows: usize,
    pub columns: usize,
    pub k: usize,
    pub after: After,
}

/// A kernel of `products.cu`: how its blocks divide the work, as its template has it.
#[derive(Clone, Copy, Debug)]
struct Form {
    name: &'static str,
    kind: Kind,
    /// Rows of W in a block's tile.
    columns: usize,
    /// Blocks of a cluster: with different rows, with different columns, with different parts of k.
    cluster: [usize; 3],
    /// Pieces of k on their way, of 128 bytes.
    stages: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Geglu,
    Bias,
    BiasGelu,
    Add,
}

const fn form(name: &'static str, kind: Kind, columns: usize, cluster: [usize; 3], stages: usize) -> Form {
    Form { name, kind, columns, cluster, stages }
}

const FORMS: [Form; 8] = [
    form("geglu_bf16", Kind::Geglu, 256, [2, 1, 1], 4),
    form("bias_112", Kind::Bias, 112, [2, 1, 1], 6),
    form("bias_160", Kind::Bias, 160, [2, 1, 1], 5),
    form("gelu_144", Kind::BiasGelu, 144, [2, 2, 1], 6),
    form("gelu_208", Kind::BiasGelu, 208, [2, 1, 1], 5),
    form("add_64_4", Kind::Add, 64, [2, 2, 1], 8),
    form("add_64_8", Kind::Add, 64, [2, 4, 1], 8),
    form("add_128_8", Kind::Add, 128, [2, 2, 2], 6),
];

/// All kernels, with the shared memory of a block.
pub fn kernels() -> Vec<(&'static str, usize)> {
    FORMS.iter().map(|form| (form.name, form.shared())).collect()
}

impl Form {
    /// Pieces on their way; results that wait to be written, vectors, what other blocks send; counters.
    fn shared(&self) -> usize {
        let Self { columns, cluster: [_, _, split], stages, .. } = *self;
        let beside = match self.kind {
            Kind::Geglu => ROWS * (columns / 2 * SIZE + 16),
            Kind::Bias | Kind::BiasGelu => (columns + ROWS) * 8,
            Kind::Add => (split - 1) * ROWS * (columns / split) * 4,
        };
        stages * (ROWS + columns) * 128 + beside + (2 * stages + 1) * 8
    }

    fn blocks(&self) -> usize {
        self.cluster.iter().product()
    }

    /// Clusters that a product takes.
    fn tiles(&self, rows: usize, columns: usize) -> usize {
        let wide = if self.kind == Kind::Geglu { self.columns / 2 } else { self.columns };
        rows.div_ceil(ROWS * self.cluster[0]) * columns.div_ceil(wide).div_ceil(self.cluster[1])
    }
}

impl Fused {
    fn kind(&self) -> Kind {
        match self.after {
            After::Geglu => Kind::Geglu,
            After::Linear { gelu: false, .. } => Kind::Bias,
            After::Linear { gelu: true, .. } => Kind::BiasGelu,
            After::Add { .. } => Kind::Add,
        }
    }

    /// The kernel of this kind that takes the least time: how often all multiprocessors are filled, times its columns.
    fn form(&self, processors: usize) -> &'static Form {
        let time = |form: &Form| {
            let waves = (form.tiles(self.rows, self.columns) * form.blocks()).div_ceil(processors);
            waves * form.columns / form.cluster[2]
        };
        let of_kind = FORMS.iter().filter(|form| form.kind == self.kind());
        if let (Kind::Add, Ok(name)) = (self.kind(), std::env::var("PI05_ADD")) {
            let long = self.k > 2048;
            if let Some(f) = FORMS.iter().find(|f| f.name == name && long) {
                return f;
            }
        }
        of_kind.min_by_key(|form| time(form)).unwrap_or(&FORMS[0]) // invariant: there is one of every kind
    }

    /// Whether it may be used: there are such kernels, and sizes fit.
    pub fn fits(&self, lane: &Lane) -> bool {
        lane.has(FORMS[0].name) && self.k.is_multiple_of(8) && self.columns.is_multiple_of(8)
    }

    /// Whether few of the rows computed are padding.
    pub fn fills(&self) -> bool {
        self.rows.next_multiple_of(2 * ROWS) * 10 <= self.rows * 11
    }

    /// Puts it on the stream.
    pub fn record(&self, lane: &Lane) -> Result<(), EngineError> {
        let Self { x, w, y, rows, columns, k, after } = *self;
        let processors = lane.gpu.processors as usize;
        let form = self.form(processors);
        let [_, along, _] = form.cluster;
        let tiles = form.tiles(rows, columns);
        let clusters = if form.kind == Kind::Geglu { tiles.min(processors / form.blocks()) } else { tiles };
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: k, size: SIZE, box_rows, box_bytes: 128 }.map().map(Arg::Map)
        };
        let (bias, norm, next) = match after {
            After::Geglu => (0, None, None),
            After::Linear { bias, norm, .. } => (bias, norm, None),
            After::Add { bias, next } => (bias, None, next),
        };
        let nothing = Next { weights: 0, scaled: 0, sums: 0 };
        let Next { weights, scaled, sums } = next.unwrap_or(nothing);
        let w_rows = if form.kind == Kind::Geglu { 2 * columns } else { columns };
        let args = [
            map(x, rows, ROWS / along)?,
            map(w, w_rows, form.columns / 2)?,
            rows.into(),
            columns.into(),
            (k * SIZE).div_ceil(128).into(),
            y.into(),
            bias.into(),
            0u64.into(), // multipliers and scale of FP8
            1.0.into(),
            norm.map_or(0, |norm| norm.sums).into(),
            norm.map_or(0, |_| k / SUMMED).into(),
            (1.0 / k as f32).into(),
            norm.map_or(0, |norm| norm.of_means).into(),
            weights.into(),
            scaled.into(),
            sums.into(),
        ];
        let shape = Launch::new([clusters, form.blocks(), 1], THREADS, form.shared()).clusters(form.blocks());
        lane.launch_shaped(form.name, shape, &args)
    }
}
