//! Recorded real-time chunking (spec/PI05.md §12, §14): one leftover, and for each way of using it the actions.
//!
//! | tensor | is |
//! |---|---|
//! | `prev_chunk_left_over` | the previous chunk's end in model space, `[rows, dims]` |
//! | `SCHEDULE.dDELAY.hHORIZON.{weights,actions}` | guided, with these parameters |
//! | `dDELAY.actions` | trained; `d0` is plain |
//! | `plain_actions` | without a leftover |
//!
//! LeRobot recorded them, so its times hold. A JSON file of the same name may say the guided ones' parameters
//! (`cases.NAME`). Inputs are in the file itself, or those of `case_a_f32.safetensors` beside it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;

use super::comparer::{Comparer, Rows};
use super::reader::{MAX_HORIZON, Reader};
use super::{Arithmetic, Case, Outcome, VerifyError};
use crate::engine::Engine;
use crate::engine::probe::{Probe, Tap};
use crate::model::sampler::TimeRounding;
use crate::model::sampler::rtc::{Leftover, MAX_GUIDANCE_WEIGHT, PrefixSchedule, Rtc, RtcError};
use crate::pipeline::{Model, StageTimes};
use crate::printable::printable;

/// The tensor that makes a file one of these.
pub(super) const LEFTOVER: &str = "prev_chunk_left_over";
/// Where the inputs are, if not in the file itself.
const INPUTS: &str = "case_a_f32.safetensors";
/// Most ways of using a leftover, each of which is run; the known file has 13.
const MAX_RUNS: usize = 100;
/// Longest file of parameters; the known one has 23 kB.
const PARAMETERS_MAX: u64 = 4 << 20;

/// One recorded way of using the leftover.
pub(super) struct Run {
    /// Key of its actions.
    actions: String,
    /// Key of its weights.
    weights: String,
    rtc: Rtc,
}

/// A guided run's parameters.
#[derive(Deserialize)]
struct Guided {
    delay: usize,
    execution_horizon: usize,
    schedule: String,
    max_guidance_weight: f32,
}

/// The JSON file beside.
#[derive(Deserialize)]
struct Parameters {
    cases: BTreeMap<String, Guided>,
}

/// The case that `own`, read from `path`, is.
pub(super) fn read(path: &Path, own: Reader, model: &Model) -> Result<Case, VerifyError> {
    let beside = path.with_file_name(INPUTS);
    let mut case = if own.recorded.contains_key("in.noise") {
        Reader { file: own.file.clone(), recorded: own.recorded.clone() }.case(model)?
    } else if beside.exists() {
        Reader::open(&beside)?.case(model)?
    } else {
        return Err(own.wrong("in.noise", format!("it, or {INPUTS} beside the file"), "neither"));
    };
    case.sampler.rounding = TimeRounding::Direct;
    let parameters = parameters(path)?;
    let (elements, most) =
        (own.tensor(LEFTOVER)?.shape.iter().product::<usize>(), MAX_HORIZON * case.dims.action_dim);
    if elements > most {
        return Err(own.wrong(LEFTOVER, format!("at most {most} values"), elements.to_string()));
    }
    let values: Vec<f32> = own.values(LEFTOVER)?.into_iter().map(|v| v as f32).collect();
    let dims_per_row = own.tensor(LEFTOVER)?.shape.last().copied().unwrap_or_default();
    let leftover = Leftover { values: &values, dims: dims_per_row };
    let shape = [case.horizon, case.dims.action_dim];
    let keys: Vec<_> = own.recorded.keys().filter(|key| key.ends_with("actions")).collect();
    if keys.len() > MAX_RUNS {
        let expected = format!("at most {MAX_RUNS} recorded actions that it led to");
        return Err(own.wrong(LEFTOVER, expected, keys.len().to_string()));
    }
    for key in keys {
        let name = key.trim_end_matches("actions").trim_end_matches(['.', '_']);
        let refused = |source| VerifyError::Rtc { file: own.file.clone(), what: printable(key), source };
        let rtc = parameters.get(name).map_or_else(|| by_name(name), guided);
        let Some(rtc) = rtc else {
            let expected = "a name such as linear.d2.h6.actions, d3.actions or plain_actions";
            return Err(own.wrong(key, expected, "neither that nor its parameters in a JSON file beside"));
        };
        let rtc = rtc.over(leftover, shape).map_err(refused)?;
        case.runs.push(Run { actions: key.clone(), weights: format!("{name}.weights"), rtc });
    }
    if case.runs.is_empty() {
        return Err(own.wrong(LEFTOVER, "recorded actions that it led to", "none"));
    }
    case.recorded = own.recorded;
    case.recorded.remove(LEFTOVER);
    Ok(case)
}

impl Case {
    /// Runs the two first stages once, then the third for each recorded run.
    pub(super) fn run_rtc(&self, engine: &mut Engine) -> Result<Outcome, VerifyError> {
        let mut comparer = Comparer::new(self, Arithmetic::of(engine));
        comparer.record("times", &self.sampler.times());
        let nobody = &mut Tap::none();
        let start = Instant::now();
        let features = engine.vision(&self.input.images, nobody)?;
        let seen = Instant::now();
        let kv = engine.prefix(&features, &self.input.tokens, nobody)?;
        let cached = Instant::now();
        for Run { actions, weights, rtc } in &self.runs {
            comparer.compare(weights, rtc.weights().unwrap_or_default(), Rows::All(1));
            let found = engine.denoise(&kv, &self.noise, &self.sampler, rtc, nobody)?;
            comparer.compare(actions, &found, Rows::All(self.horizon));
        }
        Ok(comparer.outcome(StageTimes {
            vision_ms: (seen - start).as_secs_f64() * 1e3,
            prefix_ms: (cached - seen).as_secs_f64() * 1e3,
            denoise_ms: cached.elapsed().as_secs_f64() * 1e3 / self.runs.len() as f64,
        }))
    }
}

/// What a run does with the leftover.
enum Use {
    Not,
    Guided { schedule: PrefixSchedule, delay: usize, horizon: usize, max_weight: f32 },
    Trained { delay: usize },
}

impl Use {
    fn over(self, leftover: Leftover<'_>, shape: [usize; 2]) -> Result<Rtc, RtcError> {
        match self {
            Use::Not => Ok(Rtc::Off),
            Use::Guided { schedule, delay, horizon, max_weight } => {
                Rtc::guided(leftover, schedule, delay, horizon, max_weight, shape)
            }
            Use::Trained { delay } => Rtc::trained(leftover, delay, shape),
        }
    }
}

fn guided(parameters: &Guided) -> Option<Use> {
    Some(Use::Guided {
        schedule: PrefixSchedule::from_name(&parameters.schedule.to_ascii_lowercase())?,
        delay: parameters.delay,
        horizon: parameters.execution_horizon,
        max_weight: parameters.max_guidance_weight,
    })
}

/// `plain`, `d3` or `linear.d2.h6`.
fn by_name(name: &str) -> Option<Use> {
    let number = |part: &str, letter| part.strip_prefix(letter)?.parse::<usize>().ok();
    match *name.split('.').collect::<Vec<_>>() {
        ["plain"] => Some(Use::Not),
        [delay] => Some(Use::Trained { delay: number(delay, 'd')? }),
        [schedule, delay, horizon] => Some(Use::Guided {
            schedule: PrefixSchedule::from_name(schedule)?,
            delay: number(delay, 'd')?,
            horizon: number(horizon, 'h')?,
            max_weight: MAX_GUIDANCE_WEIGHT,
        }),
        _ => None,
    }
}

/// What the JSON file beside `path` says, if there is one.
fn parameters(path: &Path) -> Result<BTreeMap<String, Guided>, VerifyError> {
    let path = path.with_extension("json");
    if !path.is_file() {
        return Ok(BTreeMap::new());
    }
    let unreadable = |why: String| VerifyError::Case {
        file: path.display().to_string(),
        what: "the whole file".to_owned(),
        expected: "the guided runs' parameters as JSON, or no such file".to_owned(),
        found: printable(&why),
    };
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(PARAMETERS_MAX).read_to_end(&mut bytes))
        .map_err(|e| unreadable(e.to_string()))?;
    let parameters: Parameters = serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()))?;
    Ok(parameters.cases)
}
