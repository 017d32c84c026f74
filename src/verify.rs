//! Numerical truth: a recorded case of the reference implementation against the engine, stage by stage.
//!
//! A case (spec/PI05.md §14) holds inputs, noise, times, actions and any number of intermediate values. The engine
//! drops masked slots, so recorded prefix rows are compared where they are valid.

mod comparer;
mod reader;
mod rtc;

use std::collections::BTreeMap;
use std::path::Path;

use thiserror::Error;

use comparer::{Comparer, Rows};
use reader::Reader;

use crate::engine::probe::{Probe, Tap};
use crate::engine::{Engine, EngineError, Precision};
use crate::model::dims::Dims;
use crate::model::sampler::Sampler;
use crate::model::sampler::rtc::{Rtc, RtcError};
use crate::model::{ModelInput, Pixels};
use crate::pipeline::{LoadError, Model, StageTimes, infer};
use crate::policy::checkpoint::CheckpointError;
use crate::policy::checkpoint::safetensors::RawTensor;
use crate::printable::printable;
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
    /// The network that it is read for.
    #[error(transparent)]
    Network(#[from] LoadError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// A recorded run of the reference implementation.
pub struct Case {
    /// Of its inputs.
    file: String,
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
    /// Largest absolute difference; NaN if any value is, or if there is a misfit.
    pub max: f64,
    /// Root mean square of the differences.
    pub rms: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
    /// Why nothing could be compared: what was expected, and what was recorded.
    pub misfit: Option<String>,
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

impl Case {
    /// Reads a case that fits the network of `model`, whose order of the cameras it takes.
    pub fn read(path: &Path, model: &Model) -> Result<Self, VerifyError> {
        let reader = Reader::open(path)?;
        if reader.recorded.contains_key(rtc::LEFTOVER) {
            return rtc::read(path, reader, model);
        }
        reader.tensor("actions")?;
        reader.case(model)
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

    /// What went into the network: numbers, all of it.
    pub fn start(self) -> Result<Start, VerifyError> {
        let check = |what: String, values: &[f32]| match values.iter().find(|value| !value.is_finite()) {
            Some(value) => {
                let (expected, found) = ("finite numbers".to_owned(), value.to_string());
                Err(VerifyError::Case { file: self.file.clone(), what, expected, found })
            }
            None => Ok(()),
        };
        check("in.noise".to_owned(), &self.noise)?;
        for (camera, image) in self.cameras.iter().zip(&self.input.images) {
            if let Some(Pixels::F32(values)) = image {
                check(format!("in.image.{}", printable(camera)), values)?;
            }
        }
        Ok(Start { input: self.input, noise: self.noise })
    }

    /// What dropping masked slots and having no other mask amounts to, as the reference writes it down.
    fn compare_slots(&self, comparer: &mut Comparer<'_>) {
        let Self { valid, horizon, .. } = self;
        let (slots, horizon) = (valid.len(), *horizon);
        let bits = |bits: &[bool]| bits.iter().map(|&b| f32::from(u8::from(b))).collect::<Vec<_>>();
        let positions = |from: usize, count| (from..from + count).map(|p| p as f32).collect::<Vec<_>>();
        let count = valid.iter().filter(|&&v| v).count();
        comparer.compare("prefix.pad_mask", &bits(valid), Rows::All(slots));
        comparer.compare("prefix.position_ids", &positions(0, count), Rows::Slots(valid));
        // The masks take the square of the rest: only where they were recorded.
        if comparer.wants("prefix.att_2d_mask") {
            let square: Vec<bool> = valid.iter().flat_map(|&i| valid.iter().map(move |&j| i && j)).collect();
            comparer.compare("prefix.att_2d_mask", &bits(&square), Rows::All(slots));
        }
        let ar_mask: Vec<bool> = (0..horizon).map(|i| i == 0).collect();
        comparer.compare("suffix.ar_mask", &bits(&ar_mask), Rows::All(horizon));
        if comparer.wants("suffix.att_2d_mask") {
            let row = [&valid[..], &vec![true; horizon]].concat();
            comparer.compare("suffix.att_2d_mask", &bits(&row.repeat(horizon)), Rows::All(horizon));
        }
        comparer.compare("suffix.position_ids", &positions(count, horizon), Rows::All(horizon));
    }
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
