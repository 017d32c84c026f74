//! Numerical truth: a recorded case of the reference implementation against the engine, stage by stage.
//!
//! A case (spec/PI05.md §14) holds inputs, noise, times, actions and any number of intermediate values. The engine
//! drops masked slots, so recorded prefix rows are compared where they are valid.

mod rtc;

use std::collections::BTreeMap;
use std::path::Path;

use thiserror::Error;

use crate::engine::probe::{Probe, Tap};
use crate::engine::{Engine, EngineError, Precision};
use crate::model::dims::Dims;
use crate::model::sampler::rtc::{Rtc, RtcError};
use crate::model::sampler::{Sampler, TimeRounding};
use crate::model::{ModelInput, Pixels};
use crate::pipeline::{StageTimes, infer};
use crate::policy::checkpoint::safetensors::{Dtype, RawTensor, read_case};
use crate::policy::checkpoint::{CheckpointError, DEFAULT_CAMERAS};
use crate::steps::Start;

/// Why a case could not be run.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The file.
    #[error(transparent)]
    File(#[from] CheckpointError),
    /// Its content.
    #[error("{file}: {what}: expected {expected}, found {found}")]
    Case {
        /// The file.
        file: String,
        /// Which tensor.
        what: String,
        /// What a case has there.
        expected: String,
        /// What this one has.
        found: String,
    },
    /// A leftover that cannot steer as recorded.
    #[error("{file}: {what}: {source}")]
    Rtc {
        /// The file.
        file: String,
        /// Which recorded actions.
        what: String,
        /// What is wrong.
        source: RtcError,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A recorded run of the reference implementation.
pub struct Case {
    dims: Dims,
    recorded: BTreeMap<String, RawTensor>,
    cameras: Vec<String>,
    input: ModelInput,
    /// Which prefix slots are valid: every camera's tokens, then the prompt's slots.
    valid: Vec<bool>,
    noise: Vec<f32>,
    horizon: usize,
    sampler: Sampler,
    /// With a leftover of the previous chunk; empty in a plain case.
    runs: Vec<rtc::Run>,
}

/// The comparison of one recorded tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Key in the case file.
    pub stage: String,
    /// Largest absolute difference; NaN if any value is, or if the shapes differ.
    pub max: f64,
    /// Root mean square of the differences.
    pub rms: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
}

impl Comparison {
    /// Within tolerance. NaN is not.
    pub fn ok(&self) -> bool {
        self.max <= self.tolerance
    }
}

/// How like a recorded chunk one is.
#[derive(Clone, Copy, Debug)]
pub struct Likeness {
    /// Cosine of the angle between them.
    pub cosine: f64,
    /// Mean square of the differences over the mean square of what was recorded.
    pub relative_mse: f64,
}

/// The outcome: one comparison per recorded stage in the order of computation, and what was left alone.
pub struct Outcome {
    /// Compared.
    pub comparisons: Vec<Comparison>,
    /// Recorded, but masked or no stage of this engine (`bf16.actions`, …).
    pub skipped: Vec<String>,
    /// Of the chunk to the recorded one, where that was compared.
    pub likeness: Option<Likeness>,
    /// What the run took, comparisons included.
    pub times: StageTimes,
}

/// Most denoise steps of a case.
const MAX_STEPS: usize = 1000;

impl Case {
    /// Reads a case that fits a network of `dims`.
    pub fn read(path: &Path, dims: &Dims) -> Result<Self, VerifyError> {
        let reader = Reader::open(path)?;
        if reader.recorded.contains_key(rtc::LEFTOVER) {
            return rtc::read(path, reader, dims);
        }
        reader.values("actions")?;
        reader.case(dims)
    }

    /// Runs the engine on the case's inputs and compares everything that was recorded.
    pub fn run(&self, engine: &mut Engine) -> Result<Outcome, VerifyError> {
        if !self.runs.is_empty() {
            return self.run_rtc(engine);
        }
        let mut comparer = Comparer::new(self, Arithmetic::of(engine));
        self.compare_slots(&mut comparer);
        comparer.record("times", &self.sampler.times());
        let mut tap = Tap::new(&mut comparer);
        let (actions, times) = infer(engine, &self.input, &self.noise, &self.sampler, &Rtc::Off, &mut tap)?;
        comparer.record("actions", &actions);
        Ok(comparer.outcome(times))
    }

    /// Runs the engine on the case's inputs again, unobserved: what an inference takes once it is warm.
    pub fn times(&self, engine: &mut Engine) -> Result<StageTimes, VerifyError> {
        Ok(infer(engine, &self.input, &self.noise, &self.sampler, &Rtc::Off, &mut Tap::none())?.1)
    }

    /// What went into the network.
    pub fn start(self) -> Start {
        Start { input: self.input, noise: self.noise }
    }

    /// What dropping masked slots and having no other mask amounts to, as the reference writes it down.
    fn compare_slots(&self, comparer: &mut Comparer<'_>) {
        let Self { valid, horizon, .. } = self;
        let bits = |bits: &[bool]| bits.iter().map(|&b| f32::from(u8::from(b))).collect::<Vec<_>>();
        let positions = |from: usize, count| (from..from + count).map(|p| p as f32).collect::<Vec<_>>();
        let count = valid.iter().filter(|&&v| v).count();
        comparer.compare("prefix.pad_mask", &bits(valid), None);
        comparer.compare("prefix.position_ids", &positions(0, count), Some(valid));
        let square: Vec<bool> = valid.iter().flat_map(|&i| valid.iter().map(move |&j| i && j)).collect();
        comparer.compare("prefix.att_2d_mask", &bits(&square), None);
        let ar_mask: Vec<bool> = (0..*horizon).map(|i| i == 0).collect();
        comparer.compare("suffix.ar_mask", &bits(&ar_mask), None);
        let row = [&valid[..], &vec![true; *horizon]].concat();
        comparer.compare("suffix.att_2d_mask", &bits(&row.repeat(*horizon)), None);
        comparer.compare("suffix.position_ids", &positions(count, *horizon), None);
    }
}

/// A case file while it is being understood.
struct Reader {
    file: String,
    recorded: BTreeMap<String, RawTensor>,
}

impl Reader {
    fn open(path: &Path) -> Result<Self, VerifyError> {
        Ok(Self { file: path.display().to_string(), recorded: read_case(path)? })
    }

    /// A plain case: what went into a network of `dims`.
    fn case(self, dims: &Dims) -> Result<Case, VerifyError> {
        let cameras = self.cameras();
        let mut valid = Vec::new();
        let mut images = Vec::new();
        for camera in &cameras {
            let image = self.image(camera, dims.vision.image)?;
            valid.extend(std::iter::repeat_n(image.is_some(), dims.vision.tokens()));
            images.push(image);
        }
        let prompt = self.prompt(dims.vocab)?;
        valid.extend(prompt.iter().map(Option::is_some));
        let noise = self.noise(dims.action_dim)?;
        Ok(Case {
            dims: *dims,
            horizon: noise.len() / dims.action_dim,
            sampler: self.sampler()?,
            recorded: self.recorded,
            cameras,
            input: ModelInput { images, tokens: prompt.into_iter().flatten().collect() },
            valid,
            noise,
            runs: Vec::new(),
        })
    }

    fn wrong(&self, what: &str, expected: impl Into<String>, found: impl Into<String>) -> VerifyError {
        let (expected, found) = (expected.into(), found.into());
        VerifyError::Case { file: self.file.clone(), what: what.to_owned(), expected, found }
    }

    fn tensor(&self, key: &str) -> Result<&RawTensor, VerifyError> {
        self.recorded.get(key).ok_or_else(|| self.wrong(key, "a recorded tensor", "none"))
    }

    fn values(&self, key: &str) -> Result<Vec<f64>, VerifyError> {
        let tensor = self.tensor(key)?;
        tensor.to_f64().ok_or_else(|| self.wrong(key, "numbers", format!("{:?}", tensor.dtype)))
    }

    /// openpi's cameras in its order, then any others by name.
    fn cameras(&self) -> Vec<String> {
        let masks: Vec<&str> =
            self.recorded.keys().filter_map(|key| key.strip_prefix("in.image_mask.")).collect();
        let known = DEFAULT_CAMERAS.into_iter().filter(|name| masks.contains(name));
        let other = masks.iter().copied().filter(|name| !DEFAULT_CAMERAS.contains(name));
        known.chain(other).map(str::to_owned).collect()
    }

    /// `raw.image_u8.*` `[side, side, 3]`, else `in.image.*` `[1, 3, side, side]`; `None` if the camera is masked.
    fn image(&self, camera: &str, side: usize) -> Result<Option<Pixels>, VerifyError> {
        let mask = self.values(&format!("in.image_mask.{camera}"))?;
        if mask.iter().all(|&m| m == 0.0) {
            return Ok(None);
        }
        let raw = format!("raw.image_u8.{camera}");
        let key = if self.recorded.contains_key(&raw) { &raw } else { &format!("in.image.{camera}") };
        let values = self.values(key)?;
        let plane = side * side;
        if values.len() != plane * 3 {
            let expected = format!("{side}x{side}x3 values");
            return Err(self.wrong(key, expected, format!("{} values", values.len())));
        }
        if *key != raw {
            let pixels = (0..plane).flat_map(|i| [i, plane + i, 2 * plane + i]);
            return Ok(Some(Pixels::F32(pixels.map(|i| values[i] as f32).collect())));
        }
        let tensor = self.tensor(key)?;
        if tensor.dtype != Dtype::U8 {
            return Err(self.wrong(key, "bytes (U8)", format!("{:?}", tensor.dtype)));
        }
        Ok(Some(Pixels::U8(tensor.bytes.clone())))
    }

    /// The prompt's slots: token ids below `vocab`, `None` where masked.
    fn prompt(&self, vocab: usize) -> Result<Vec<Option<u32>>, VerifyError> {
        let (ids, mask) = (self.values("in.tokens")?, self.values("in.token_mask")?);
        if mask.len() != ids.len() {
            let found = format!("{} mask values for {} tokens", mask.len(), ids.len());
            return Err(self.wrong("in.token_mask", "one per token", found));
        }
        let slot = |(&id, &mask): (&f64, &f64)| {
            if mask == 0.0 {
                return Ok(None);
            }
            if !(0.0..vocab as f64).contains(&id) || id.fract() != 0.0 {
                let expected = format!("ids below the embedding's {vocab} rows");
                return Err(self.wrong("in.tokens", expected, id.to_string()));
            }
            Ok(Some(id as u32))
        };
        ids.iter().zip(&mask).map(slot).collect()
    }

    /// `[1, horizon, action_dim]`
    fn noise(&self, action_dim: usize) -> Result<Vec<f32>, VerifyError> {
        let noise = self.values("in.noise")?;
        let shape = &self.tensor("in.noise")?.shape;
        if noise.is_empty() || shape.last() != Some(&action_dim) {
            return Err(self.wrong("in.noise", format!("[1, horizon, {action_dim}]"), format!("{shape:?}")));
        }
        Ok(noise.iter().map(|&x| x as f32).collect())
    }

    /// As many steps as there are times, with the rounding that comes closest to them.
    fn sampler(&self) -> Result<Sampler, VerifyError> {
        let times = self.values("times")?;
        if !(1..=MAX_STEPS).contains(&times.len()) {
            return Err(self.wrong("times", format!("1 to {MAX_STEPS} of them"), times.len().to_string()));
        }
        let [openpi, lerobot] = [TimeRounding::Accumulated, TimeRounding::Direct]
            .map(|rounding| Sampler::euler(times.len(), rounding));
        let distance = |sampler: &Sampler| -> f64 {
            sampler.times().iter().zip(&times).map(|(a, b)| (f64::from(*a) - b).abs()).sum()
        };
        Ok(if distance(&lerobot) < distance(&openpi) { lerobot } else { openpi })
    }
}

/// A recorded tensor and which of a stage's rows it holds.
struct Recorded<'a> {
    key: &'a str,
    tensor: &'a RawTensor,
    slice: Option<Slice>,
}

/// Every `step`-th row below `end`.
#[derive(Clone, Copy)]
struct Slice {
    end: usize,
    step: usize,
}

impl Slice {
    /// `NAME[:8]`: rows below 8 of NAME; `NAME[::37]`: every 37th row.
    fn of_key(key: &str) -> Option<(&str, Self)> {
        let (stage, rows) = key.strip_suffix(']')?.split_once("[:")?;
        let slice = match rows.strip_prefix(':') {
            Some(step) => Self { end: usize::MAX, step: step.parse().ok().filter(|&step| step > 0)? },
            None => Self { end: rows.parse().ok()?, step: 1 },
        };
        Some((stage, slice))
    }
}

/// Compares what the engine reports with what was recorded.
struct Comparer<'a> {
    case: &'a Case,
    arithmetic: Arithmetic,
    likeness: Option<Likeness>,
    /// Recorded tensors not yet compared, by stage.
    left: BTreeMap<&'a str, Vec<Recorded<'a>>>,
    comparisons: Vec<Comparison>,
    /// Recorded rows that are all masked.
    masked: Vec<String>,
}

impl<'a> Comparer<'a> {
    fn new(case: &'a Case, arithmetic: Arithmetic) -> Self {
        let mut left: BTreeMap<&str, Vec<Recorded<'_>>> = BTreeMap::new();
        for (key, tensor) in &case.recorded {
            if key.starts_with("in.") || key.starts_with("raw.") {
                continue;
            }
            let sliced = Slice::of_key(key);
            let (stage, slice) = sliced.map_or((key.as_str(), None), |(stage, slice)| (stage, Some(slice)));
            left.entry(stage).or_default().push(Recorded { key, tensor, slice });
        }
        Self { case, arithmetic, likeness: None, left, comparisons: Vec::new(), masked: Vec::new() }
    }

    /// The engine numbers cameras; cases name them.
    fn stage_of(&self, name: &str) -> String {
        let camera = || {
            let (stage, slot) = name.rsplit_once('.')?;
            let camera = self.case.cameras.get(slot.parse::<usize>().ok()?)?;
            name.starts_with("vision.").then(|| format!("{stage}.{camera}"))
        };
        camera().unwrap_or_else(|| name.to_owned())
    }

    /// `values`: one row per slot, or per valid slot where `valid` tells which those are.
    fn compare(&mut self, stage: &str, values: &[f32], valid: Option<&[bool]>) {
        let tight = tolerance(stage, &self.case.dims);
        for recorded in self.left.remove(stage).unwrap_or_default() {
            let stage = recorded.key.to_owned();
            let (max, rms) = match recorded.differences(values, valid) {
                Some(differences) if differences.is_empty() => {
                    self.masked.push(stage);
                    continue;
                }
                Some(differences) => spread(&differences),
                None => (f64::NAN, f64::NAN),
            };
            let expected = recorded.tensor.to_f64().unwrap_or_default();
            let tolerance = self.arithmetic.tolerance(recorded.key, tight, &self.case.dims, &expected);
            if recorded.key == "actions" {
                self.likeness = Likeness::of(values, &expected);
            }
            self.comparisons.push(Comparison { stage, max, rms, tolerance });
        }
    }

    fn outcome(self, times: StageTimes) -> Outcome {
        let left = self.left.into_values().flatten().map(|recorded| recorded.key.to_owned());
        let skipped = self.masked.into_iter().chain(left).collect();
        Outcome { comparisons: self.comparisons, skipped, likeness: self.likeness, times }
    }
}

impl Probe for Comparer<'_> {
    fn wants(&self, name: &str) -> bool {
        self.left.contains_key(self.stage_of(name).as_str())
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        let stage = self.stage_of(name);
        let valid = stage.starts_with("prefix.").then_some(self.case.valid.as_slice());
        self.compare(&stage, data, valid);
    }
}

impl Recorded<'_> {
    /// Found minus recorded, element by element, but for masked slots; `None` if the shapes do not fit together.
    /// `values` and `valid` as in [`Comparer::compare`].
    fn differences(&self, values: &[f32], valid: Option<&[bool]>) -> Option<Vec<f64>> {
        let expected = self.tensor.to_f64()?;
        let width = match (valid, self.slice) {
            (Some(valid), _) => values.len() / valid.iter().filter(|&&v| v).count().max(1),
            (None, Some(_)) => *self.tensor.shape.last()?,
            (None, None) => values.len(),
        };
        if width == 0 || !values.len().is_multiple_of(width) {
            return None;
        }
        let mut rows = values.chunks_exact(width);
        let by_slot: Vec<Option<&[f32]>> = match valid {
            Some(valid) => valid.iter().map(|&valid| if valid { rows.next() } else { None }).collect(),
            None => rows.map(Some).collect(),
        };
        let Slice { end, step } = self.slice.unwrap_or(Slice { end: usize::MAX, step: 1 });
        let chosen: Vec<_> = by_slot.into_iter().take(end).step_by(step).collect();
        if chosen.len() * width != expected.len() {
            return None;
        }
        let mut differences = Vec::with_capacity(expected.len());
        for (row, expected) in chosen.into_iter().zip(expected.chunks_exact(width)) {
            let found = row.unwrap_or_default(); // masked: nothing to compare
            differences
                .extend(found.iter().zip(expected).map(|(&found, expected)| f64::from(found) - expected));
        }
        Some(differences)
    }
}

/// Largest absolute value and root mean square; NaN if any value is.
fn spread(differences: &[f64]) -> (f64, f64) {
    // `f64::max` would drop a NaN.
    let larger = |max: f64, d: &f64| if d.abs() > max || d.is_nan() { d.abs() } else { max };
    let squares: f64 = differences.iter().map(|d| d * d).sum();
    (differences.iter().fold(0.0, larger), (squares / differences.len() as f64).sqrt())
}

/// How an engine computes, and so how near it has to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arithmetic {
    /// The reference.
    Reference,
    /// Another order of sums, and the GPU's own functions.
    GpuF32,
    /// Rounded to 8 bits between products.
    Bf16,
    /// Rounded to 4 bits before most products of vision and prefix.
    Fp8,
}

impl Arithmetic {
    fn of(engine: &Engine) -> Self {
        match (engine, engine.precision()) {
            (_, Precision::Bf16) => Self::Bf16,
            (_, Precision::Fp8) => Self::Fp8,
            (Engine::Cuda(_), Precision::F32) => Self::GpuF32,
            (Engine::Cpu(_), Precision::F32) => Self::Reference,
        }
    }

    /// `tight`: the reference's own. `expected`: what was recorded.
    fn tolerance(self, stage: &str, tight: f64, dims: &Dims, expected: &[f64]) -> f64 {
        let is_deep = dims.expert.layers >= DEEP;
        let is_chunk = stage.ends_with("actions") || stage.ends_with("x_t") || stage.ends_with("v_t");
        let largest = expected.iter().fold(0.0, |max: f64, e| max.max(e.abs()));
        // Made by the CPU for every engine, or not rounded at all.
        let made_by_cpu = stage == "times" || stage.contains("time_sincos") || stage.contains("adarms_cond");
        match self {
            Self::Reference => tight,
            _ if made_by_cpu || tight == 0.0 => tight,
            Self::GpuF32 if is_chunk => {
                if is_deep {
                    1e-3
                } else {
                    2e-4
                }
            }
            Self::GpuF32 => tight.max(2e-5 * largest) * if is_deep { 20.0 } else { 4.0 },
            Self::Bf16 if is_chunk => {
                if stage.ends_with("v_t") {
                    0.1
                } else {
                    5e-2
                }
            }
            Self::Bf16 => 5e-2 * largest,
            // A deep network's chunk is judged by its likeness.
            Self::Fp8 if stage.ends_with("actions") && !is_deep => 0.15,
            Self::Fp8 => 0.25 * largest,
        }
    }
}

impl Likeness {
    /// `None` if there are not as many values as expected.
    pub fn of(values: &[f32], expected: &[f64]) -> Option<Self> {
        let (mut dot, mut own, mut theirs, mut wrong) = (0.0, 0.0, 0.0, 0.0);
        for (&a, &b) in values.iter().zip(expected) {
            let a = f64::from(a);
            dot += a * b;
            own += a * a;
            theirs += b * b;
            wrong += (a - b) * (a - b);
        }
        let likeness = Self { cosine: dot / (own.sqrt() * theirs.sqrt()), relative_mse: wrong / theirs };
        (values.len() == expected.len()).then_some(likeness)
    }
}

/// Largest difference that f32 arithmetic in another order explains (spec/PI05.md §10). Errors grow with depth: the
/// first figure is for networks like the fixtures' tiny one, the second for π0.5's own 18 layers.
fn tolerance(stage: &str, dims: &Dims) -> f64 {
    let last = stage.rsplit('.').next().unwrap_or(stage);
    let (shallow, deep) = match (stage, last) {
        ("times", _) => (1e-6, 1e-6),
        (_, "pad_mask" | "position_ids" | "att_2d_mask" | "ar_mask") => (0.0, 0.0),
        (_, "v_t") => (1e-5, 5e-5),
        ("actions", _) | (_, "x_t") => (5e-5, 1e-4),
        (_, "weights") => (1e-6, 1e-6),
        ("plain_actions", _) | (_, "actions") => (2e-5, 1e-4), // real-time chunking
        _ => (2e-5, 5e-5),
    };
    if dims.expert.layers < DEEP { shallow } else { deep }
}

/// Layers from which on a network counts as deep.
const DEEP: usize = 12;
