//! Stages that TensorRT computes, on our streams and in our memory: nothing is copied between them and ours.
//!
//! Promises: a stage runs only if every tensor of it agreed with its place ([`Room::places`]); rows lie as our own
//! stages leave them, so that any stage may be followed by any other.
//!
//! | tensor | lies in |
//! |---|---|
//! | `pixels` | the images as they came, as f32; those of absent cameras are of earlier observations, or 0 |
//! | `features`, `embs` | a slot of the features; the prompt's rows are written behind the present cameras' |
//! | `k.{i}`, `v.{i}` | the cache; rows of the prefix that do not count are masked |
//! | `cos`, `sin` of the prefix | the cache's tables |
//! | `x`, `velocity`, `modulation` | the sampler's vectors, the schedule's modulations |
//! | `mask`, `clean`, and `cos`, `sin` of the action tokens | buffers that one kernel fills from the request |
//!
//! One more kernel follows where the fused expert wants values transposed.

use super::driver::{Buffer, Gpu, failed};
use super::expert::ACTIONS;
use super::lane::Lane;
use super::load::Loader;
use super::prefix::{Cache, Layout};
use super::room::Room;
use crate::engine::EngineError;
use crate::engine::probe::Tap;
use crate::engine::tensorrt::boundary::{Place, StageEngine, agree};
use crate::engine::tensorrt::stages::{Sizes, Stage};
use crate::model::dims::Dims;
use crate::model::tensors::TOKEN_EMBEDDING;

/// What TensorRT asks of addresses, in bytes.
const ALIGNMENT: u64 = 256;

/// The input of denoise stages that were built for clean actions.
const CLEAN: &str = "clean";

/// A stage by kernels of ours, or not.
pub enum Part<T, F> {
    Own(Box<T>),
    Foreign(Box<F>),
}

impl<T, F> Part<T, F> {
    pub fn is_foreign(&self) -> bool {
        matches!(self, Part::Foreign(_))
    }
}

/// A stage whose tensors have been seen to fit.
struct Bound {
    stage: Stage,
    engine: Box<dyn StageEngine>,
    places: Vec<Place>,
}

impl Bound {
    fn new(
        stage: Stage,
        engine: Box<dyn StageEngine>,
        dims: &Dims,
        room: &Room,
    ) -> Result<Self, EngineError> {
        let (sizes, ports) = (fixed(room)?, engine.ports()?);
        let trained = ports.iter().any(|(_, port)| port.name == CLEAN);
        let places = room.places(stage, dims, &sizes, trained);
        agree(stage, &ports, &places)?;
        // Slots of features and modulations of times lie one behind the other, in rows of these widths.
        let widths = [dims.language.width, dims.expert.width];
        if let Some(width) = widths.into_iter().find(|width| width * 4 % ALIGNMENT as usize != 0) {
            let reason =
                format!("{stage}: a width of {width}: TensorRT's tensors begin at multiples of 256 bytes");
            return Err(failed("bind", reason + "; use --backend cuda"));
        }
        Ok(Self { stage, engine, places })
    }

    fn has(&self, name: &str) -> bool {
        self.places.iter().any(|place| place.port.name == name)
    }

    fn bind(&self, name: &str, address: u64) -> Result<(), EngineError> {
        if !self.has(name) || address == 0 || !address.is_multiple_of(ALIGNMENT) {
            return Err(failed("bind", format!("{} tensor {name}: not at {address:#x}", self.stage)));
        }
        // SAFETY: `agree` compared the tensor's bytes with what `Room` allocates for this place, which lives as long as
        // the engine that owns both.
        unsafe { self.engine.bind(name, address) }
    }

    fn bind_cache(&self, cache: &Cache) -> Result<(), EngineError> {
        for (i, (k, v)) in cache.k.iter().zip(&cache.v).enumerate() {
            self.bind(&format!("k.{i}"), k.address)?;
            self.bind(&format!("v.{i}"), v.address)?;
        }
        Ok(())
    }

    fn enqueue(&self, gpu: &Gpu) -> Result<(), EngineError> {
        // SAFETY: every place was bound: those that stay when the engine was made, the others by the caller just now.
        unsafe { self.engine.enqueue(gpu) }
    }
}

fn fixed(room: &Room) -> Result<Sizes, EngineError> {
    room.fixed.ok_or_else(|| failed("bind", "no shapes are known"))
}

/// Stage 1.
pub struct ForeignVision {
    bound: Bound,
    /// Values of a camera's features.
    one: usize,
}

impl ForeignVision {
    pub fn new(engine: Box<dyn StageEngine>, dims: &Dims, room: &Room) -> Result<Self, EngineError> {
        let one = dims.vision.tokens() * dims.language.width;
        Ok(Self { bound: Bound::new(Stage::Vision, engine, dims, room)?, one })
    }

    /// f32 `images` to the features at `out`, present cameras first.
    pub fn record(
        &self,
        lane: &Lane,
        images: u64,
        slots: &[usize],
        out: u64,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        self.bound.bind("pixels", images)?;
        self.bound.bind("features", out)?;
        self.bound.enqueue(&lane.gpu)?;
        for (i, slot) in slots.iter().enumerate() {
            let at = out + (i * self.one * 4) as u64;
            lane.record_wide(tap, format_args!("vision.projected.{slot}"), at, self.one)?;
        }
        Ok(())
    }
}

/// Stage 2.
pub struct ForeignPrefix {
    bound: Bound,
    embedding: Buffer,
    mask: Buffer,
    width: usize,
    head_dim: usize,
    /// Of the engine.
    rows: usize,
}

impl ForeignPrefix {
    pub fn new(
        load: &mut Loader<'_>,
        engine: Box<dyn StageEngine>,
        dims: &Dims,
        room: &Room,
        gpu: &Gpu,
    ) -> Result<Self, EngineError> {
        let rows = fixed(room)?.prefix(dims);
        let bound = Bound::new(Stage::Prefix, engine, dims, room)?;
        let mask = gpu.zeros(rows * 4)?;
        bound.bind("mask", mask.address)?;
        let embedding = load.matrix(TOKEN_EMBEDDING.to_owned())?;
        let (width, head_dim) = (dims.language.width, dims.language.head_dim);
        Ok(Self { bound, embedding, mask, width, head_dim, rows })
    }

    pub fn bind_cache(&self, cache: &Cache) -> Result<(), EngineError> {
        self.bound.bind("cos", cache.cos.address)?;
        self.bound.bind("sin", cache.sin.address)?;
        self.bound.bind_cache(cache)
    }

    /// The features at `embs` and the cache's request to the cache's keys and values. `valid`: rows that the tap hears of.
    pub fn record(
        &self,
        lane: &Lane,
        cache: &Cache,
        embs: u64,
        Layout { image_rows, rows }: Layout,
        valid: usize,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        if rows > image_rows {
            let args = [
                (&cache.request).into(),
                embs.into(),
                (&self.embedding).into(),
                (embs + (image_rows * self.width * 4) as u64).into(),
                0usize.into(), // the images' rows are there already
                0usize.into(),
                self.width.into(),
                (self.width as f32).sqrt().into(),
            ];
            lane.launch("prefix_start", [rows - image_rows, 1, 1], 256, 0, &args)?;
        }
        lane.record_wide(tap, format_args!("prefix.embs"), embs, valid * self.width)?;
        tell(lane, cache, [self.mask.address, 0, 0, 0], [self.rows, 0, self.head_dim / 2, 0])?;
        self.bound.bind("embs", embs)?;
        self.bound.enqueue(&lane.gpu)?;
        for (v, vt) in cache.v.iter().zip(&cache.vt) {
            let sizes = [self.rows.into(), self.head_dim.into(), cache.capacity.into()];
            let args = [[v.into(), vt.into()].as_slice(), &sizes].concat();
            let grid = [self.rows.div_ceil(32), self.head_dim.div_ceil(32), 1];
            lane.launch("transpose_values", grid, 256, 0, &args)?;
        }
        for (i, (k, v)) in cache.k.iter().zip(&cache.v).enumerate() {
            lane.record(tap, format_args!("prefix.kv.{i}.k"), k.address, valid * self.head_dim)?;
            lane.record(tap, format_args!("prefix.kv.{i}.v"), v.address, valid * self.head_dim)?;
        }
        Ok(())
    }
}

/// Stage 3: one evaluation of the velocity.
pub struct ForeignExpert {
    bound: Bound,
    mask: Buffer,
    cos: Buffer,
    sin: Buffer,
    /// 1 for rows that are clean actions.
    clean: Buffer,
    half: usize,
    /// Of the engine.
    rows: usize,
    /// Actions of a chunk, fixed.
    pub horizon: usize,
}

impl ForeignExpert {
    pub fn new(
        engine: Box<dyn StageEngine>,
        dims: &Dims,
        room: &Room,
        gpu: &Gpu,
    ) -> Result<Self, EngineError> {
        let (sizes, half) = (fixed(room)?, dims.expert.head_dim / 2);
        let bound = Bound::new(Stage::Denoise, engine, dims, room)?;
        let rows = sizes.prefix(dims);
        let table = || gpu.zeros(ACTIONS * half * 4);
        let (mask, cos, sin) = (gpu.zeros(rows * 4)?, table()?, table()?);
        let clean = gpu.zeros(ACTIONS * 4)?;
        for (name, buffer) in [("mask", &mask), ("cos", &cos), ("sin", &sin), (CLEAN, &clean)] {
            if name != CLEAN || bound.has(CLEAN) {
                bound.bind(name, buffer.address)?;
            }
        }
        Ok(Self { bound, mask, cos, sin, clean, half, rows, horizon: sizes.horizon })
    }

    pub fn bind_cache(&self, cache: &Cache) -> Result<(), EngineError> {
        self.bound.bind_cache(cache)
    }

    /// Whether it was built for actions that are clean.
    pub fn takes_clean(&self) -> bool {
        self.bound.has(CLEAN)
    }

    /// What all evaluations of a chunk are told: which keys count, where the action tokens stand, and how many of them
    /// come first as clean actions.
    pub fn begin(&self, lane: &Lane, cache: &Cache, clean: usize) -> Result<(), EngineError> {
        let to = [&self.mask, &self.cos, &self.sin, &self.clean].map(|buffer| buffer.address);
        tell(lane, cache, to, [self.rows, self.horizon, self.half, clean])
    }

    /// The velocity of the actions at `x` to `out`. `modulations`: of the evaluation's time, and of clean actions'.
    pub fn record(&self, lane: &Lane, x: u64, modulations: [u64; 2], out: u64) -> Result<(), EngineError> {
        self.bound.bind("x", x)?;
        self.bound.bind("modulation", modulations[0])?;
        if self.takes_clean() {
            self.bound.bind("modulation.clean", modulations[1])?;
        }
        self.bound.bind("velocity", out)?;
        self.bound.enqueue(&lane.gpu)
    }
}

/// From the cache's request: the mask of `rows` keys, the tables of `tokens` positions behind those that count, and
/// which of these tokens are clean.
fn tell(lane: &Lane, cache: &Cache, to: [u64; 4], sizes: [usize; 4]) -> Result<(), EngineError> {
    let [rows, tokens, half, _] = sizes;
    let from = [(&cache.request).into(), (&cache.cos).into(), (&cache.sin).into()];
    let args = [&from[..], &to.map(Into::into), &sizes.map(Into::into)].concat();
    lane.launch("mask_and_positions", [rows.max(tokens * half).div_ceil(256), 1, 1], 256, 0, &args)
}
