//! Numerical truth: a recorded case of the reference implementation against the engine, stage by stage.
//!
//! A case (spec/PI05.md §14) holds inputs, noise, times, actions and any number of intermediate values. The engine
//! drops masked slots, so recorded prefix rows are compared where they are valid.

use std::collections::BTreeMap;
use std::path::Path;

use thiserror::Error;

use crate::engine::EngineError;
use crate::engine::cpu::CpuEngine;
use crate::engine::probe::{Probe, Tap};
use crate::model::dims::Dims;
use crate::model::sampler::{Sampler, TimeRounding};
use crate::model::{ModelInput, Pixels};
use crate::pipeline::{StageTimes, infer};
use crate::policy::checkpoint::CheckpointError;
use crate::policy::checkpoint::safetensors::{RawTensor, read_case};

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

/// The outcome: one comparison per recorded stage in the order of computation, and what was left alone.
pub struct Outcome {
    /// Compared.
    pub comparisons: Vec<Comparison>,
    /// Recorded, but no stage of this engine (`bf16.actions`, …).
    pub skipped: Vec<String>,
    /// What the run took, comparisons included.
    pub times: StageTimes,
}

/// Cameras in openpi's order come first; any others by name.
const CAMERAS: [&str; 3] = crate::policy::checkpoint::DEFAULT_CAMERAS;

impl Case {
    /// Reads a case that fits a network of `dims`.
    pub fn read(path: &Path, dims: &Dims) -> Result<Self, VerifyError> {
        let reader = Reader { file: path.display().to_string(), recorded: read_case(path)? };
        let masks: Vec<&str> =
            reader.recorded.keys().filter_map(|key| key.strip_prefix("in.image_mask.")).collect();
        let known = CAMERAS.iter().copied().filter(|name| masks.contains(name));
        let other = masks.iter().copied().filter(|name| !CAMERAS.contains(name));
        let cameras: Vec<String> = known.chain(other).map(str::to_owned).collect();

        let mut valid = Vec::new();
        let mut images = Vec::new();
        for camera in &cameras {
            let present =
                reader.values(&format!("in.image_mask.{camera}"))?.first().is_some_and(|&m| m != 0.0);
            images.push(if present { Some(reader.image(camera, dims.vision.image)?) } else { None });
            valid.extend(std::iter::repeat_n(present, dims.vision.tokens()));
        }
        let slots = reader.values("in.tokens")?;
        let mask = reader.values("in.token_mask")?;
        if mask.len() != slots.len() {
            let found = format!("{} mask values for {} tokens", mask.len(), slots.len());
            return Err(reader.wrong("in.token_mask", "one per token", found));
        }
        let mut tokens = Vec::new();
        for (&id, &m) in slots.iter().zip(&mask) {
            valid.push(m != 0.0);
            if m != 0.0 {
                let rows = dims.vocab;
                if !(0.0..rows as f64).contains(&id) {
                    let expected = format!("ids below the embedding's {rows} rows");
                    return Err(reader.wrong("in.tokens", &expected, id.to_string()));
                }
                tokens.push(id as u32);
            }
        }
        let noise: Vec<f32> = reader.values("in.noise")?.iter().map(|&x| x as f32).collect();
        if noise.is_empty() || !noise.len().is_multiple_of(dims.action_dim) {
            let expected = format!("[1, horizon, {}]", dims.action_dim);
            return Err(reader.wrong(
                "in.noise",
                &expected,
                format!("{:?}", reader.recorded["in.noise"].shape),
            ));
        }
        let sampler = reader.sampler()?;
        reader.values("actions")?;
        Ok(Self {
            dims: *dims,
            horizon: noise.len() / dims.action_dim,
            recorded: reader.recorded,
            cameras,
            input: ModelInput { images, tokens },
            valid,
            noise,
            sampler,
        })
    }

    /// Runs the engine on the case's inputs and compares everything that was recorded.
    pub fn run(&self, engine: &mut CpuEngine) -> Result<Outcome, VerifyError> {
        let mut probe = Comparer::new(self);
        self.compare_slots(&mut probe);
        probe.record("times", &self.sampler.times());
        let (actions, times) =
            infer(engine, &self.input, &self.noise, &self.sampler, &mut Tap::new(&mut probe))?;
        probe.record("actions", &actions);
        let skipped = probe.left.into_values().flatten().map(|recorded| recorded.key).collect();
        Ok(Outcome { comparisons: probe.comparisons, skipped, times })
    }

    /// What dropping masked slots and having no other mask amounts to, as the reference writes it down.
    fn compare_slots(&self, probe: &mut Comparer<'_>) {
        let bit = |b: bool| f32::from(u8::from(b));
        let valid = &self.valid;
        let count = valid.iter().filter(|&&v| v).count();
        let pad_mask: Vec<f32> = valid.iter().map(|&v| bit(v)).collect();
        let positions: Vec<f32> = (0..count).map(|p| p as f32).collect();
        let square = valid.iter().flat_map(|&i| valid.iter().map(move |&j| bit(i && j)));
        let to_prefix_and_actions = || pad_mask.iter().copied().chain(std::iter::repeat_n(1.0, self.horizon));
        probe.record_slots("prefix.pad_mask", &pad_mask);
        probe.record_slots("prefix.position_ids", &positions);
        probe.record_slots("prefix.att_2d_mask", &square.collect::<Vec<_>>());
        let ar: Vec<f32> = (0..self.horizon).map(|i| bit(i == 0)).collect();
        probe.record_slots("suffix.ar_mask", &ar);
        let rows: Vec<f32> = (0..self.horizon).flat_map(|_| to_prefix_and_actions()).collect();
        probe.record_slots("suffix.att_2d_mask", &rows);
        let positions: Vec<f32> = (0..self.horizon).map(|i| (count + i) as f32).collect();
        probe.record_slots("suffix.position_ids", &positions);
    }
}

/// A case file while it is being understood.
struct Reader {
    file: String,
    recorded: BTreeMap<String, RawTensor>,
}

impl Reader {
    fn wrong(&self, what: &str, expected: &str, found: String) -> VerifyError {
        VerifyError::Case { file: self.file.clone(), what: what.into(), expected: expected.into(), found }
    }

    fn values(&self, key: &str) -> Result<Vec<f64>, VerifyError> {
        let tensor =
            self.recorded.get(key).ok_or_else(|| self.wrong(key, "a recorded tensor", "none".into()))?;
        tensor.to_f64().ok_or_else(|| self.wrong(key, "numbers", format!("{:?}", tensor.dtype)))
    }

    /// `raw.image_u8.*` `[side, side, 3]`, else `in.image.*` `[1, 3, side, side]`.
    fn image(&self, camera: &str, side: usize) -> Result<Pixels, VerifyError> {
        let raw = format!("raw.image_u8.{camera}");
        let (key, pixels) = match self.recorded.get(&raw) {
            Some(tensor) => (raw, Pixels::U8(tensor.bytes.clone())),
            None => {
                let key = format!("in.image.{camera}");
                let planes = self.values(&key)?;
                let plane = planes.len() / 3;
                let pixels = (0..plane).flat_map(|i| (0..3).map(move |c| (i, c)));
                let pixels = pixels.map(|(i, c)| planes[c * plane + i] as f32).collect();
                (key, Pixels::F32(pixels))
            }
        };
        let len = match &pixels {
            Pixels::U8(data) => data.len(),
            Pixels::F32(data) => data.len(),
        };
        if len != side * side * 3 {
            let expected = format!("{side}x{side}x3 values");
            return Err(self.wrong(&key, &expected, format!("{len} values")));
        }
        Ok(pixels)
    }

    /// As many steps as there are times, with the rounding that comes closest to them.
    fn sampler(&self) -> Result<Sampler, VerifyError> {
        let times = self.values("times")?;
        if !(1..=1000).contains(&times.len()) {
            return Err(self.wrong("times", "1 to 1000 of them", times.len().to_string()));
        }
        let candidates = [TimeRounding::Accumulated, TimeRounding::Direct]
            .map(|rounding| Sampler { steps: times.len(), rounding });
        let distance = |sampler: &Sampler| -> f64 {
            sampler.times().iter().zip(&times).map(|(a, b)| (f64::from(*a) - b).abs()).sum()
        };
        let [openpi, lerobot] = candidates;
        Ok(if distance(&lerobot) < distance(&openpi) { lerobot } else { openpi })
    }
}

/// A recorded tensor and which of a stage's rows it holds.
struct Recorded<'a> {
    key: String,
    tensor: &'a RawTensor,
    /// `[:8]` or `[::37]` in the key: (end, step).
    slice: Option<(usize, usize)>,
}

struct Comparer<'a> {
    case: &'a Case,
    /// Recorded tensors not yet compared, by stage.
    left: BTreeMap<String, Vec<Recorded<'a>>>,
    comparisons: Vec<Comparison>,
}

impl<'a> Comparer<'a> {
    fn new(case: &'a Case) -> Self {
        let mut left: BTreeMap<String, Vec<Recorded<'a>>> = BTreeMap::new();
        for (key, tensor) in &case.recorded {
            if key.starts_with("in.") || key.starts_with("raw.") {
                continue;
            }
            let (stage, slice) = match key.split_once('[') {
                Some((stage, slice)) => (stage, parse_slice(slice)),
                None => (key.as_str(), None),
            };
            left.entry(stage.to_owned()).or_default().push(Recorded { key: key.clone(), tensor, slice });
        }
        Self { case, left, comparisons: Vec::new() }
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

    /// `values` hold one row per slot, or (prefix stages) one per valid slot.
    fn compare(&mut self, stage: &str, values: &[f32], rows_are_valid_slots: bool) {
        for Recorded { key, tensor, slice } in self.left.remove(stage).unwrap_or_default() {
            let tolerance = tolerance(stage, &self.case.dims);
            let difference = difference(self.case, tensor, slice, values, rows_are_valid_slots);
            let (max, rms) = difference.unwrap_or((f64::NAN, f64::NAN));
            self.comparisons.push(Comparison { stage: key, max, rms, tolerance });
        }
    }

    fn record_slots(&mut self, stage: &str, values: &[f32]) {
        self.compare(stage, values, stage == "prefix.position_ids");
    }
}

impl Probe for Comparer<'_> {
    fn wants(&self, name: &str) -> bool {
        self.left.contains_key(&self.stage_of(name))
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        let stage = self.stage_of(name);
        self.compare(&stage, data, stage.starts_with("prefix."));
    }
}

/// `:8]` → rows below 8; `::37]` → every 37th row.
fn parse_slice(text: &str) -> Option<(usize, usize)> {
    let text = text.strip_suffix(']')?;
    if let Some(step) = text.strip_prefix("::") {
        return Some((usize::MAX, step.parse().ok().filter(|&step| step > 0)?));
    }
    Some((text.strip_prefix(':')?.parse().ok()?, 1))
}

/// Largest and rms difference between a recorded tensor and the engine's rows; `None` if they do not fit together.
fn difference(
    case: &Case,
    tensor: &RawTensor,
    slice: Option<(usize, usize)>,
    values: &[f32],
    rows_are_valid_slots: bool,
) -> Option<(f64, f64)> {
    let expected = tensor.to_f64()?;
    if !rows_are_valid_slots && slice.is_none() {
        return (expected.len() == values.len())
            .then(|| spread(expected.iter().copied().zip(values.iter().copied())));
    }
    // Rows: the engine's row of each slot, `None` where the slot is masked.
    let slots = if rows_are_valid_slots { case.valid.len() } else { usize::MAX };
    let mut next = 0;
    let mut row_of = Vec::new();
    if rows_are_valid_slots {
        for &valid in &case.valid {
            row_of.push(valid.then_some(next));
            next += usize::from(valid);
        }
    }
    let rows_recorded = match slice {
        None => slots,
        Some(_) => *tensor.shape.get(tensor.shape.len().checked_sub(2)?)?,
    };
    let width = expected.len().checked_div(rows_recorded)?;
    let (end, step) = slice.unwrap_or((slots, 1));
    let mut pairs = Vec::with_capacity(expected.len());
    let mut used = 0;
    for (slot, expected) in (0..end.min(slots)).step_by(step).zip(expected.chunks_exact(width.max(1))) {
        used += 1;
        let row = if rows_are_valid_slots { *row_of.get(slot)? } else { Some(slot) };
        if let Some(row) = row {
            pairs.extend(
                expected.iter().copied().zip(values.get(row * width..(row + 1) * width)?.iter().copied()),
            );
        }
    }
    let all_values = slice.is_some() || next * width == values.len();
    (used == rows_recorded && used * width == expected.len() && all_values).then(|| spread(pairs.into_iter()))
}

fn spread(pairs: impl Iterator<Item = (f64, f32)>) -> (f64, f64) {
    let (mut max, mut squares, mut count) = (0f64, 0f64, 0usize);
    for (expected, found) in pairs {
        let difference = (f64::from(found) - expected).abs();
        // `f64::max` would drop a NaN.
        max = if difference > max || difference.is_nan() { difference } else { max };
        squares += difference * difference;
        count += 1;
    }
    (max, (squares / count.max(1) as f64).sqrt())
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
        _ => (2e-5, 5e-5),
    };
    if dims.expert.layers < DEEP { shallow } else { deep }
}

/// Layers from which on a network counts as deep.
const DEEP: usize = 12;
