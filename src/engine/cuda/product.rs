//! Own matrix products on Hopper, fused with what follows them (kernels/products.cu).
//!
//! Used where they were measured to be faster than the library's product and the kernels that it would need around it.

use std::collections::HashMap;

use super::driver::{Arg, Gpu, Launch, Matrix};
use super::lane::{Kernels, Lane};
use crate::engine::EngineError;

/// Rows of a block's tile.
const ROWS: usize = 128;
/// The same where they are the columns of the matrix instruction: of few rows.
pub const TURNED: usize = 184;
/// And of many.
const TURNED_MANY: usize = 168;
const THREADS: usize = 384;
/// Bytes of a bf16.
const SIZE: usize = 2;
/// Bytes of a row of what is handed from products to GEGLU.
pub const HANDED: usize = 256 * 2 + 16;
/// Cycles of a multiprocessor that blocks which share out k take to give each other their sums.
const EXCHANGE: usize = 2500;
/// Columns of the residual stream that are summed by one block for the next norm: the least of any kernel.
pub const SUMMED_LEAST: usize = 48;
/// The same by `norm_begins`, before the first such product.
pub const SUMMED_FIRST: usize = 64;

/// What follows a product.
#[derive(Clone, Copy, Debug)]
pub enum After {
    /// W = [gate; up]: `GELU(x gate^T) * (x up^T)`.
    Geglu,
    /// Plus a bias (f32), GELU; of normalized rows, if x is what a product has left for a norm.
    Gelu { bias: u64, norm: Option<Norm> },
    /// Plus a bias (f32, or 0) added to y, the residual stream in f32.
    Add { bias: u64, next: Option<Next> },
    /// W = [q; k; v], packed (order.rs), of heads of 256: q, in y, and k are rotated by RoPE. `rotations`: see kernels/rope.cu.
    Rope { k: u64, v: u64, heads: usize, rotations: u64 },
}

/// A LayerNorm of x that is done after the product.
#[derive(Clone, Copy, Debug)]
pub struct Norm {
    /// f32 `[k / summed, rows, 2]`: sums and sums of squares of x before it was multiplied by the norm's weights.
    pub sums: u64,
    /// Columns that are summed: see [`Fused::summed`].
    pub summed: usize,
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

/// What of these kernels a GPU runs at once.
pub struct Capacity {
    /// Multiprocessors.
    processors: usize,
    /// Clusters, by kernel.
    clusters: HashMap<&'static str, usize>,
}

impl Capacity {
    /// As the driver says of those kernels that are there.
    pub fn new(gpu: &Gpu, kernels: &Kernels) -> Result<Self, EngineError> {
        let there = FORMS.iter().filter_map(|form| Some((form, *kernels.get(form.name)?)));
        let clusters =
            there.map(|(form, kernel)| Ok((form.name, gpu.clusters_at_once(kernel, form.launch(1))?)));
        Ok(Self {
            processors: gpu.processors as usize,
            clusters: clusters.collect::<Result<_, EngineError>>()?,
        })
    }

    fn of(&self, form: &Form) -> usize {
        self.clusters.get(form.name).copied().unwrap_or(0)
    }
}

/// A kernel of `products.cu`: how its blocks divide the work, as its template has it.
#[derive(Clone, Copy, Debug)]
struct Form {
    name: &'static str,
    kind: Kind,
    /// Rows of x in a block's tile.
    rows: usize,
    /// Rows of W in it.
    columns: usize,
    /// Blocks of a cluster: with different rows, which share W, times with different columns, which share x.
    cluster: [usize; 2],
    /// Blocks of it that have the same tile and share out k.
    split: usize,
    /// Pieces of k on their way, of 128 bytes.
    stages: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Geglu,
    BiasGelu,
    Add,
    Rope,
}

const fn form(name: &'static str, kind: Kind, columns: usize, cluster: [usize; 2], stages: usize) -> Form {
    Form { name, kind, rows: ROWS, columns, cluster, split: 1, stages }
}

const FORMS: [Form; 13] = [
    form("geglu_2x1", Kind::Geglu, 256, [2, 1], 3),
    form("geglu_1x2", Kind::Geglu, 256, [1, 2], 3),
    Form { rows: TURNED_MANY, ..form("geglu_168", Kind::Geglu, 256, [2, 1], 4) },
    Form { rows: TURNED, ..form("geglu_184", Kind::Geglu, 256, [1, 2], 4) },
    form("bias_gelu_144", Kind::BiasGelu, 144, [2, 2], 6),
    form("bias_gelu_208", Kind::BiasGelu, 208, [2, 1], 5),
    form("add_64", Kind::Add, 64, [2, 2], 8),
    Form { split: 2, ..form("add_96", Kind::Add, 96, [2, 2], 7) },
    Form { split: 2, ..form("add_128_2x2", Kind::Add, 128, [2, 2], 6) },
    Form { split: 2, ..form("add_128_2x1", Kind::Add, 128, [2, 1], 6) },
    Form { rows: 96, ..form("rope_96", Kind::Rope, 128, [2, 4], 7) },
    form("rope_128", Kind::Rope, 128, [2, 4], 6),
    Form { rows: 168, ..form("rope_168", Kind::Rope, 128, [2, 4], 5) },
];

/// All kernels, with the shared memory of a block.
pub fn kernels() -> Vec<(&'static str, usize)> {
    FORMS.iter().map(|form| (form.name, form.shared())).collect()
}

impl Form {
    /// Pieces on their way; results that are handed on, or vectors, or others' sums; counters.
    fn shared(&self) -> usize {
        let Self { rows, columns, split, stages, .. } = *self;
        let beside = match self.kind {
            Kind::Geglu if self.is_turned() => 0,
            Kind::Geglu => ROWS * HANDED + 16,
            Kind::BiasGelu => (columns + ROWS) * 8,
            Kind::Rope => 0,
            Kind::Add => (split - 1) * ROWS * columns / split * 4 + 16,
        };
        stages * ((rows + columns) * 128 + 16) + beside
    }

    fn blocks(&self) -> usize {
        self.cluster[0] * self.cluster[1] * self.split
    }

    /// Whether rows of x are the columns of the matrix instruction.
    fn is_turned(&self) -> bool {
        self.kind == Kind::Geglu && self.rows != ROWS
    }

    /// Rows of W that are fetched at once: of gate and up in turn, where there are both, for each warpgroup apart if it has
    /// columns of its own.
    fn w_box(&self) -> usize {
        if self.is_turned() { self.columns / 4 } else { self.columns / 2 }
    }

    /// Rows and columns of y that a cluster has at a time.
    fn tile(&self) -> [usize; 2] {
        let wide = if self.kind == Kind::Geglu { self.columns / 2 } else { self.columns };
        [self.rows * self.cluster[0], wide * self.cluster[1]]
    }

    fn launch(&self, clusters: usize) -> Launch {
        Launch::new([clusters, self.blocks(), 1], THREADS, self.shared()).clusters(self.blocks())
    }

    /// Tiles of a product, and how many clusters work on them at a time.
    fn tiles(&self, rows: usize, columns: usize, capacity: &Capacity) -> (usize, usize) {
        let [high, wide] = self.tile();
        let (high, wide) = (rows.div_ceil(high), columns.div_ceil(wide));
        let at_once = if self.is_turned() {
            turned_clusters(high, high * wide, capacity.processors)
        } else {
            capacity.of(self)
        };
        (high * wide, at_once.max(1))
    }

    /// Tiles that a cluster works on one after the other.
    fn turns(&self, rows: usize, columns: usize, capacity: &Capacity) -> usize {
        let (tiles, at_once) = self.tiles(rows, columns, capacity);
        tiles.div_ceil(at_once)
    }
}

/// Clusters that work on so many tiles, `high` of them below each other, where rows of x are the columns of the matrix
/// instruction: a multiple of those, so that a cluster's tiles are of the same rows.
pub fn turned_clusters(high: usize, tiles: usize, processors: usize) -> usize {
    (tiles.min(processors / 2) / high * high).max(high)
}

impl Fused {
    fn kind(&self) -> Kind {
        match self.after {
            After::Geglu => Kind::Geglu,
            After::Gelu { .. } => Kind::BiasGelu,
            After::Add { .. } => Kind::Add,
            After::Rope { .. } => Kind::Rope,
        }
    }

    /// The kernel of this kind that takes the least time.
    fn form(&self, capacity: &Capacity) -> &'static Form {
        let steps = (self.k * SIZE).div_ceil(128); // each of the blocks that share out k has one at least
        let time = |form: &Form| {
            // Cycles of a step of 64 k, whichever takes longer: 2048 products in each, or 64 bytes from the cache.
            let step = (form.rows * form.columns / 32).max((form.rows + form.columns) * 2);
            let exchange = if form.split > 1 { EXCHANGE } else { 0 };
            form.turns(self.rows, self.columns, capacity) * (steps.div_ceil(form.split) * step + exchange)
        };
        let of_kind = FORMS.iter().filter(|form| form.kind == self.kind());
        let can = |form: &&Form| form.split <= steps && capacity.of(form) > 0;
        // Invariant: k is not empty, and of every kind there is one whose blocks have all of it, in clusters of 2 to 8.
        of_kind.filter(can).min_by_key(|form| time(form)).unwrap_or(&FORMS[0])
    }

    /// Whether it may be used: there are such kernels, and sizes fit.
    pub fn fits(&self, lane: &Lane) -> bool {
        lane.has(FORMS[0].name) && self.k.is_multiple_of(8) && self.columns.is_multiple_of(8)
    }

    /// Whether it also keeps the GPU busy: at least four fifths of what all its blocks can do in that time is of use, or,
    /// since large clusters take in less, three quarters.
    pub fn fills(&self, lane: &Lane) -> bool {
        self.fits(lane) && self.fills_all(&lane.capacity)
    }

    fn fills_all(&self, capacity: &Capacity) -> bool {
        let form = self.form(capacity);
        let turns = form.turns(self.rows, self.columns, capacity);
        let [high, wide] = form.tile();
        let done = turns * capacity.of(form) * high * wide;
        let least = if form.blocks() > 4 { 0.75 } else { 0.8 };
        done > 0 && (self.rows * self.columns) as f64 >= done as f64 * least
    }

    /// Columns that it sums for the next norm at a time.
    pub fn summed(&self, lane: &Lane) -> usize {
        let form = self.form(&lane.capacity);
        form.columns / form.split
    }

    /// Puts it on the stream.
    pub fn record(&self, lane: &Lane) -> Result<(), EngineError> {
        let Self { x, w, y, rows, columns, k, after } = *self;
        let form = self.form(&lane.capacity);
        let (tiles, at_once) = form.tiles(rows, columns, &lane.capacity);
        let clusters = if form.kind == Kind::Geglu { tiles.min(at_once) } else { tiles };
        let map = |address, rows, box_rows| {
            Matrix { address, rows, columns: k, size: SIZE, box_rows }.map().map(Arg::Map)
        };
        let (bias, norm, next) = match after {
            After::Geglu | After::Rope { .. } => (0, None, None),
            After::Gelu { bias, norm } => (bias, norm, None),
            After::Add { bias, next } => (bias, None, next),
        };
        let nothing = Next { weights: 0, scaled: 0, sums: 0 };
        let Next { weights, scaled, sums } = next.unwrap_or(nothing);
        let w_rows = if form.kind == Kind::Geglu { 2 * columns } else { columns };
        let common = [
            map(x, rows, (form.rows / form.cluster[1]).next_multiple_of(8))?,
            map(w, w_rows, form.w_box())?,
            rows.into(),
            columns.into(),
            (k * SIZE).div_ceil(128).into(),
            y.into(),
        ];
        let args = [
            bias.into(),
            norm.map_or(0, |norm| norm.sums).into(),
            norm.map_or(0, |norm| k.div_ceil(norm.summed)).into(),
            (1.0 / k as f32).into(),
            norm.map_or(0, |norm| norm.of_means).into(),
            weights.into(),
            scaled.into(),
            sums.into(),
        ];
        let own = match after {
            After::Rope { k, v, heads, rotations } => {
                &[k.into(), v.into(), heads.into(), rotations.into()][..]
            }
            _ => &args,
        };
        lane.launch_shaped(form.name, form.launch(clusters), &[&common[..], own].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Of the GPU on which kernels were measured.
    fn capacity() -> Capacity {
        let clusters = |form: &Form| match form.blocks() {
            8 => 15,
            4 => 30,
            blocks => 132 / blocks,
        };
        Capacity { processors: 132, clusters: FORMS.iter().map(|f| (f.name, clusters(f))).collect() }
    }

    fn product(rows: usize, columns: usize, k: usize, after: After) -> Fused {
        Fused { x: 0, w: 0, y: 0, rows, columns, k, after }
    }

    #[test]
    fn the_form_is_the_one_that_was_measured_to_be_fastest() {
        let (gelu, added) = (After::Gelu { bias: 0, norm: None }, After::Add { bias: 0, next: None });
        let rope = After::Rope { k: 0, v: 0, heads: 8, rotations: 0 };
        // Of vision with three, two and one cameras and of the prefix: and whether it is better than the library's.
        for (rows, columns, k, after, fastest, fills) in [
            (768, 4304, 1152, gelu, "bias_gelu_208", true),
            (512, 4304, 1152, gelu, "bias_gelu_144", true),
            (768, 1152, 1152, added, "add_64", true),
            (512, 1152, 1152, added, "add_96", true),
            (768, 1152, 4304, added, "add_128_2x2", true),
            (512, 1152, 4304, added, "add_96", true),
            (256, 1152, 4304, added, "add_96", false),
            (968, 16384, 2048, After::Geglu, "geglu_168", true),
            (544, 16384, 2048, After::Geglu, "geglu_184", true),
            (712, 16384, 2048, After::Geglu, "geglu_184", true),
            (300, 16384, 2048, After::Geglu, "geglu_168", true),
            (968, 2560, 2048, rope, "rope_168", true),
            (800, 2560, 2048, rope, "rope_168", true),
            (712, 2560, 2048, rope, "rope_128", true),
            (544, 2560, 2048, rope, "rope_96", true),
            (300, 2560, 2048, rope, "rope_96", false),
        ] {
            let product = product(rows, columns, k, after);
            assert_eq!(product.form(&capacity()).name, fastest, "{rows} x {columns}");
            assert_eq!(product.fills_all(&capacity()), fills, "{rows} x {columns}");
        }
    }

    #[test]
    fn k_is_shared_out_where_that_is_worth_an_exchange() {
        let added = |k| product(512, 1152, k, After::Add { bias: 0, next: None }).form(&capacity()).name;
        assert_eq!(([64, 128, 896].map(added), added(1152)), (["add_64"; 3], "add_96"));
    }

    #[test]
    fn shared_memory_of_a_block_is_there_and_boxes_are_what_the_copy_engine_takes() {
        for form in &FORMS {
            assert!(form.shared() <= 227 << 10, "{}: {}", form.name, form.shared());
            let [down, across] = form.cluster;
            // Parts of a stage begin where the pattern of swizzled rows does, every 8 rows; boxes have at most 256 rows.
            for rows in [(form.rows / across).next_multiple_of(8), form.rows, form.w_box()] {
                assert!(rows.is_multiple_of(8) && rows <= 256, "{}", form.name);
            }
            // A block fetches its part of x, and one half of W for its column, or both if nobody shares it.
            assert!(down == 2 || down == 1, "{}", form.name);
            // What waits to be written lies where operands were: a warp's 16 rows in a stage's 64 rows of x.
            if form.kind != Kind::Geglu {
                let share = form.columns / form.split;
                let pitch = if form.kind == Kind::Add { share * 4 + 32 } else { share * 2 + 16 };
                // … and of q, k and v, everywhere.
                let waits = if form.kind == Kind::Rope {
                    form.rows * pitch <= form.stages * (form.rows + form.columns) * 128
                } else {
                    16 * pitch <= 64 * 128 && form.stages >= 4
                };
                assert!(waits, "{}", form.name);
                assert!(pitch.is_multiple_of(16), "{}", form.name);
            }
            assert!(
                form.kind != Kind::Add || (SUMMED_LEAST..=64).contains(&(form.columns / form.split)),
                "{}",
                form.name
            );
        }
    }

    proptest! {
        /// As kernels/products.cu numbers tiles and blocks.
        #[test]
        fn every_value_is_one_blocks(rows in 1usize..1100, eights in 1usize..700, which in 0..FORMS.len()) {
            let (form, columns) = (&FORMS[which], eights * 8);
            let [down, across] = form.cluster;
            let wide = form.tile()[1] / across;
            let (tiles, _) = form.tiles(rows, columns, &capacity());
            let tiles_m = rows.div_ceil(form.rows * down);
            let mut seen = vec![0; rows.div_ceil(form.rows) * columns.div_ceil(wide)];
            for (tile, block) in (0..tiles).flat_map(|tile| (0..form.blocks()).map(move |block| (tile, block))) {
                let m = tile % tiles_m * down + block % down;
                let n = tile / tiles_m * across + block / down % across;
                if m < rows.div_ceil(form.rows) && n < columns.div_ceil(wide) {
                    seen[m * columns.div_ceil(wide) + n] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&count| count == form.split));
        }
    }
}
