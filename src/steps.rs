//! How many steps, of which solver, on which schedule: the distance of each choice from a fine solution of the same
//! flow, and what it costs (`pi05 steps`).
//!
//! The distance is that of the integration alone: same network, same observation, same noise. Whether a nearer solution
//! makes a better robot is another question, which only the robot answers.

use std::time::Instant;

use serde::Serialize;

use crate::engine::probe::Tap;
use crate::engine::{Engine, EngineError, KvCache, check_finite};
use crate::model::ModelInput;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{Sampler, Schedule, Solver, TimeRounding};

/// Where a sampling starts.
pub struct Start {
    /// What the network sees.
    pub input: ModelInput,
    /// `[horizon, action_dim]`
    pub noise: Vec<f32>,
}

/// What every choice is measured on.
pub struct Measurement<'a> {
    /// At least one.
    pub starts: &'a [Start],
    /// Whose rounding of the times.
    pub rounding: TimeRounding,
    /// Columns of a row of actions that count, from the first: those that the robot has.
    pub columns: usize,
    /// Most steps of the fine solution.
    pub fine_steps: usize,
}

/// A choice, its distance from the fine solution in model space (normalised actions), and its cost.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Denoise steps.
    pub steps: usize,
    /// How a step is taken.
    #[serde(serialize_with = "word")]
    pub solver: Solver,
    /// Where the steps lie.
    #[serde(serialize_with = "word")]
    pub schedule: Schedule,
    /// Evaluations of the network.
    pub evaluations: usize,
    /// Root mean square of the differences.
    pub rms: f64,
    /// Largest difference.
    pub max: f64,
    /// Cosine of the angle between the two, all actions as one vector.
    pub cosine: f64,
    /// Median time of the denoise stage.
    pub denoise_ms: f64,
    /// No other choice is nearer with as few evaluations.
    pub nearest: bool,
}

/// All choices.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// The fine solution itself. Its differences are those from another with half the steps, more than its own error.
    pub fine: Row,
    /// In the order that they were asked for.
    pub rows: Vec<Row>,
}

/// Of the fine solution: the highest order there is.
const FINE: Solver = Solver::Rk4;
/// Where its doubling begins.
const FIRST_STEPS: usize = 25;
/// Root mean square change with twice the steps at which it counts as fine; actions are about 1.
const CONVERGED: f64 = 1e-3;
/// A stage that takes less than this is repeated for its time.
const QUICK_MS: f64 = 100.0;
/// How often it is run then.
const RUNS: usize = 6;

impl Measurement<'_> {
    /// Measures each of `choices` (steps, solver, schedule). `progress` hears of (evaluations made, all).
    pub fn run(
        &self,
        engine: &mut Engine,
        choices: &[(usize, Solver, Schedule)],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Table, EngineError> {
        let samplers: Vec<Sampler> = choices
            .iter()
            .map(|&(steps, solver, schedule)| Sampler { steps, schedule, solver, rounding: self.rounding })
            .collect();
        let mut caches = Vec::with_capacity(self.starts.len());
        for Start { input, .. } in self.starts {
            let features = engine.vision(&input.images, &mut Tap::none())?;
            caches.push(engine.prefix(&features, &input.tokens, &mut Tap::none())?);
        }
        let evaluations = |sampler: &Sampler| sampler.times().len() * self.starts.len();
        let all: usize = samplers.iter().map(evaluations).sum();
        let mut made = 0;
        let (fine, reference) = self.fine(engine, &caches, |more| {
            made += more;
            progress(made, made + all);
        })?;
        let all = made + all;
        let mut solutions = Vec::with_capacity(samplers.len());
        for sampler in &samplers {
            solutions.push(self.solve(engine, &caches, sampler, RUNS)?);
            made += evaluations(sampler);
            progress(made, all);
        }
        let mut rows: Vec<Row> = samplers
            .iter()
            .zip(&solutions)
            .map(|(sampler, solution)| row(sampler, solution, &reference))
            .collect();
        let nearest: Vec<bool> = rows.iter().map(|row| !rows.iter().any(|other| other.beats(row))).collect();
        for (row, nearest) in rows.iter_mut().zip(nearest) {
            row.nearest = nearest;
        }
        Ok(Table { fine, rows })
    }

    /// The fine solution: twice as many steps until that changes next to nothing, or `fine_steps` are reached.
    fn fine(
        &self,
        engine: &mut Engine,
        caches: &[KvCache],
        mut progress: impl FnMut(usize),
    ) -> Result<(Row, Vec<f32>), EngineError> {
        let sampler =
            |steps| Sampler { steps, schedule: Schedule::Linear, solver: FINE, rounding: self.rounding };
        let most = self.fine_steps.max(2);
        let mut steps = FIRST_STEPS.min(most / 2);
        let mut last = self.solve(engine, caches, &sampler(steps), 1)?.actions;
        loop {
            steps = (2 * steps).min(most);
            let solution = self.solve(engine, caches, &sampler(steps), 1)?;
            let mut fine = row(&sampler(steps), &solution, &last);
            fine.nearest = true;
            progress(fine.evaluations * self.starts.len());
            if steps == most || fine.rms <= CONVERGED {
                return Ok((fine, solution.actions));
            }
            last = solution.actions;
        }
    }

    /// From every start, each so often (where it is quick) that the time can be believed.
    fn solve(
        &self,
        engine: &mut Engine,
        caches: &[KvCache],
        sampler: &Sampler,
        runs: usize,
    ) -> Result<Solution, EngineError> {
        let action_dim = engine.dims().action_dim;
        let columns = self.columns.min(action_dim);
        let (mut actions, mut times) = (Vec::new(), Vec::new());
        for (Start { noise, .. }, kv) in self.starts.iter().zip(caches) {
            let mut timed = || {
                let begin = Instant::now();
                let actions = engine.denoise(kv, noise, sampler, &Rtc::Off, &mut Tap::none())?;
                Ok::<_, EngineError>((actions, begin.elapsed().as_secs_f64() * 1e3))
            };
            let (solved, mut ms) = timed()?;
            check_finite("actions", &solved)?; // a difference from NaN would be nearest of all
            // The first run of a schedule also makes its modulation vectors: where it is quick, only others count.
            if ms < QUICK_MS && runs > 1 {
                let mut warm = (1..runs).map(|_| Ok(timed()?.1)).collect::<Result<Vec<_>, EngineError>>()?;
                ms = median(&mut warm);
            }
            times.push(ms);
            actions.extend(solved.chunks_exact(action_dim).flat_map(|row| &row[..columns]));
        }
        Ok(Solution { actions, denoise_ms: median(&mut times) })
    }
}

/// What one sampler gave, over all starts.
struct Solution {
    actions: Vec<f32>,
    denoise_ms: f64,
}

impl Row {
    /// Nearer with as few evaluations, or as near with fewer.
    fn beats(&self, other: &Row) -> bool {
        self.evaluations <= other.evaluations
            && self.rms <= other.rms
            && (self.evaluations < other.evaluations || self.rms < other.rms)
    }
}

fn row(sampler: &Sampler, solution: &Solution, reference: &[f32]) -> Row {
    let (mut squares, mut max, mut dot, mut own, mut theirs) = (0.0, 0f64, 0.0, 0.0, 0.0);
    for (&a, &b) in solution.actions.iter().zip(reference) {
        let (a, b) = (f64::from(a), f64::from(b));
        squares += (a - b) * (a - b);
        // `f64::max` would drop a NaN.
        max = if (a - b).abs() <= max { max } else { (a - b).abs() };
        dot += a * b;
        own += a * a;
        theirs += b * b;
    }
    Row {
        steps: sampler.steps,
        solver: sampler.solver,
        schedule: sampler.schedule,
        evaluations: sampler.times().len(),
        rms: (squares / solution.actions.len().max(1) as f64).sqrt(),
        max,
        cosine: dot / (own.sqrt() * theirs.sqrt()),
        denoise_ms: solution.denoise_ms,
        nearest: false,
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// As in parameter files.
fn word<S: serde::Serializer>(word: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(word)
}
