//! What the engine reports against what was recorded, as it comes.

use std::collections::BTreeMap;

use super::reader::{is_shape, telling};
use super::{Arithmetic, Case, Comparison, Likeness, Outcome, tolerance};
use crate::engine::probe::Probe;
use crate::pipeline::StageTimes;
use crate::policy::checkpoint::safetensors::RawTensor;

/// A recorded tensor and which of a stage's rows it holds.
struct Recorded<'a> {
    key: &'a str,
    tensor: &'a RawTensor,
    slice: Slice,
}

/// Every `step`-th row below `end`.
#[derive(Clone, Copy)]
struct Slice {
    end: usize,
    step: usize,
}

/// What a stage's values are rows of.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// So many.
    All(usize),
    /// One per slot of the prefix, of which there are only the valid ones.
    Slots(&'a [bool]),
}

/// Values that belong to one token, step or chunk, and not to one row each.
const SINGLE: [&str; 5] = ["times", "gate_attn", "gate_mlp", "time_sincos", "adarms_cond"];

impl Slice {
    const ALL: Self = Self { end: usize::MAX, step: 1 };

    /// `NAME[:8]`: rows below 8 of NAME; `NAME[::37]`: every 37th row.
    fn of_key(key: &str) -> Option<(&str, Self)> {
        let (stage, rows) = key.strip_suffix(']')?.split_once("[:")?;
        let slice = match rows.strip_prefix(':') {
            Some(step) => Self { step: step.parse().ok().filter(|&step| step > 0)?, ..Self::ALL },
            None => Self { end: rows.parse().ok()?, ..Self::ALL },
        };
        Some((stage, slice))
    }
}

/// Compares what the engine reports with what was recorded.
pub(super) struct Comparer<'a> {
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
    pub(super) fn new(case: &'a Case, arithmetic: Arithmetic) -> Self {
        let mut left: BTreeMap<&str, Vec<Recorded<'_>>> = BTreeMap::new();
        for (key, tensor) in &case.recorded {
            if key.starts_with("in.") || key.starts_with("raw.") {
                continue;
            }
            let (stage, slice) = Slice::of_key(key).unwrap_or((key, Slice::ALL));
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

    /// What an engine's stage is rows of.
    fn rows(&self, stage: &str) -> Rows<'a> {
        let last = stage.rsplit('.').next().unwrap_or(stage);
        match stage.split('.').next() {
            Some("prefix") => Rows::Slots(&self.case.valid),
            Some("vision") => Rows::All(self.case.dims.vision.tokens()),
            _ if SINGLE.contains(&last) => Rows::All(1),
            _ => Rows::All(self.case.horizon),
        }
    }

    pub(super) fn compare(&mut self, stage: &str, values: &[f32], rows: Rows<'_>) {
        let tight = tolerance(stage, &self.case.dims);
        for recorded in self.left.remove(stage).unwrap_or_default() {
            let mut comparison = Comparison {
                stage: recorded.key.to_owned(),
                max: f64::NAN,
                rms: f64::NAN,
                tolerance: tight,
                misfit: None,
            };
            match recorded.differences(values, rows) {
                Ok(Differences { differences, .. }) if differences.is_empty() => {
                    self.masked.push(comparison.stage);
                    continue;
                }
                Ok(Differences { expected, differences }) => {
                    (comparison.max, comparison.rms) = spread(&differences);
                    comparison.tolerance =
                        self.arithmetic.tolerance(recorded.key, tight, &self.case.dims, &expected);
                    if recorded.key == "actions" {
                        self.likeness = Likeness::of(values, &expected);
                    }
                }
                Err(misfit) => comparison.misfit = Some(misfit),
            }
            self.comparisons.push(comparison);
        }
    }

    pub(super) fn outcome(self, times: StageTimes) -> Outcome {
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
        self.compare(&stage, data, self.rows(&stage));
    }
}

/// Of a recorded tensor.
struct Differences {
    /// What was recorded.
    expected: Vec<f64>,
    /// Found minus recorded, element by element, but for masked slots.
    differences: Vec<f64>,
}

impl Recorded<'_> {
    /// What does not fit is told in words; nothing is made of it.
    fn differences(&self, values: &[f32], rows: Rows<'_>) -> Result<Differences, String> {
        let (count, there) = match rows {
            Rows::All(count) => (count, count),
            Rows::Slots(valid) => (valid.len(), valid.iter().filter(|&&v| v).count()),
        };
        let width = values.len() / there.max(1);
        let chosen = (0..count.min(self.slice.end)).step_by(self.slice.step);
        let shape = [chosen.len(), width];
        if !is_shape(&self.tensor.shape, &shape) || there * width != values.len() {
            return Err(format!("expected {:?}, found {:?}", telling(&shape), self.tensor.shape));
        }
        let expected = self.tensor.to_f64();
        let expected = expected.ok_or_else(|| format!("expected numbers, found {:?}", self.tensor.dtype))?;
        let mut found = values.chunks_exact(width.max(1));
        let by_slot: Vec<Option<&[f32]>> = match rows {
            Rows::All(_) => found.map(Some).collect(),
            Rows::Slots(valid) => {
                valid.iter().map(|&valid| if valid { found.next() } else { None }).collect()
            }
        };
        let mut differences = Vec::with_capacity(expected.len());
        for (slot, expected) in chosen.zip(expected.chunks_exact(width.max(1))) {
            let found = by_slot[slot].unwrap_or_default(); // masked: nothing to compare
            differences
                .extend(found.iter().zip(expected).map(|(&found, expected)| f64::from(found) - expected));
        }
        Ok(Differences { expected, differences })
    }
}

/// Largest absolute value and root mean square; NaN if any value is.
fn spread(differences: &[f64]) -> (f64, f64) {
    // `f64::max` would drop a NaN.
    let larger = |max: f64, d: &f64| if d.abs() > max || d.is_nan() { d.abs() } else { max };
    let squares: f64 = differences.iter().map(|d| d * d).sum();
    (differences.iter().fold(0.0, larger), (squares / differences.len() as f64).sqrt())
}
