//! A chunk as a function of time: through its steps, with a continuous velocity, from its first to its last.
//!
//! Promises: the storage is allocated once, for a known number of steps and joints; a chunk with a hole, a NaN or a
//! wrong shape is refused whole. Called by the motion, which brakes where the plan ends. It knows nothing of "now": a
//! plan does not change by being sampled.
//!
//! Between two steps it is a cubic Hermite polynomial; the velocity at a step is half the way between its neighbours
//! per period (Catmull and Rom, 1974), at the first and the last step that of the way to the only neighbour.

use crate::clock::{NS_PER_S, Steady};

use super::splice::Sample;

/// Longest time between two steps of a chunk: ten minutes, far above any policy, far below any overflow.
const PERIOD_MAX_NS: i64 = 600 * NS_PER_S;

/// The actions that one inference gave, in robot space.
#[derive(Clone, Debug, PartialEq)]
pub struct Chunk {
    /// Number of the inference.
    pub id: u64,
    /// [`super::Scheduler::epoch`] as its inference began: a chunk begun before an interruption is never followed.
    pub epoch: u64,
    /// Time of the observation that it was computed from: the time of step 0.
    pub observed: Steady,
    /// Nanoseconds between two steps.
    pub period_ns: i64,
    /// `[steps][joints]`: rad or m, or per s for velocity-controlled joints.
    pub actions: Vec<Vec<f64>>,
}

/// Why a chunk cannot become a plan.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// No steps.
    #[error("chunk: expected at least one step, found none; dropped")]
    Empty,
    /// More steps than the plan was made for.
    #[error("chunk: expected at most {expected} steps, found {found}; dropped")]
    TooLong {
        /// The plan's capacity.
        expected: usize,
        /// The chunk's steps.
        found: usize,
    },
    /// A step with another number of values.
    #[error("chunk: step {step}: expected {expected} values, one per joint, found {found}; dropped")]
    Width {
        /// Index of the step.
        step: usize,
        /// The plan's joints.
        expected: usize,
        /// The step's values.
        found: usize,
    },
    /// NaN or infinity.
    #[error("chunk: step {step}, joint {joint}: expected a finite value, found {found}; dropped whole")]
    NotFinite {
        /// Index of the step.
        step: usize,
        /// Index of the joint.
        joint: usize,
        /// The value.
        found: f64,
    },
    /// A period or a time that cannot be.
    #[error(
        "chunk: expected a period from 1 ns to {PERIOD_MAX_NS} ns and times that fit, found {found} ns; dropped"
    )]
    Period {
        /// The chunk's period.
        found: i64,
    },
}

/// One chunk, ready to be sampled at any time.
#[derive(Clone, Debug)]
pub struct Plan {
    joints: usize,
    max_steps: usize,
    start: Steady,
    period_ns: i64,
    steps: usize,
    /// `[steps][joints]`, of which the first `steps` rows are in use.
    values: Vec<f64>,
}

/// A time within a plan.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    step: usize,
    /// `None` before its start and after its end, where it stands still.
    between: Option<Basis>,
}

/// What the way to the next step, the velocity here and the velocity there count, between two steps.
#[derive(Clone, Copy, Debug)]
struct Basis {
    value: [f64; 3],
    rate: [f64; 3],
    acceleration: [f64; 3],
}

impl Basis {
    /// At u from 0, the one step, to 1, the next, `period` seconds later.
    fn at(u: f64, period: f64) -> Self {
        let (first, second) = (1.0 / period, 1.0 / (period * period));
        Self {
            value: [u * u * (3.0 - 2.0 * u), u * (1.0 + u * (u - 2.0)), u * u * (u - 1.0)],
            rate: [6.0 * u * (1.0 - u), 1.0 + u * (3.0 * u - 4.0), u * (3.0 * u - 2.0)].map(|x| x * first),
            acceleration: [6.0 - 12.0 * u, 6.0 * u - 4.0, 6.0 * u - 2.0].map(|x| x * second),
        }
    }
}

impl Place {
    /// The first step.
    pub const START: Self = Self { step: 0, between: None };
}

impl Plan {
    /// Room for chunks of up to `max_steps` steps; at 0 until filled.
    pub fn new(joints: usize, max_steps: usize) -> Self {
        let values = vec![0.0; joints * max_steps];
        Self { joints, max_steps, start: Steady(0), period_ns: 1, steps: 1, values }
    }

    /// Whether `chunk` can become this plan: its shape, its values and its times.
    pub fn check(&self, chunk: &Chunk) -> Result<(), Malformed> {
        if chunk.actions.is_empty() {
            return Err(Malformed::Empty);
        }
        if chunk.actions.len() > self.max_steps {
            return Err(Malformed::TooLong { expected: self.max_steps, found: chunk.actions.len() });
        }
        for (step, row) in chunk.actions.iter().enumerate() {
            if row.len() != self.joints {
                return Err(Malformed::Width { step, expected: self.joints, found: row.len() });
            }
            if let Some(joint) = row.iter().position(|v| !v.is_finite()) {
                return Err(Malformed::NotFinite { step, joint, found: row[joint] });
            }
        }
        let fits = (1..=PERIOD_MAX_NS).contains(&chunk.period_ns) && end_of(chunk).is_some();
        if !fits {
            return Err(Malformed::Period { found: chunk.period_ns });
        }
        Ok(())
    }

    /// Becomes `chunk`, which [`Plan::check`] has checked: its first `steps` steps, the first one at `start`.
    pub fn fill(&mut self, chunk: &Chunk, start: Steady, steps: usize) {
        self.start = start;
        self.period_ns = chunk.period_ns;
        self.steps = steps.clamp(1, chunk.actions.len());
        for (row, actions) in self.values.chunks_exact_mut(self.joints).zip(&chunk.actions) {
            row.iter_mut().zip(actions).for_each(|(value, &action)| *value = action);
        }
    }

    /// The time of the last step.
    pub fn end(&self) -> Steady {
        let length = self.period_ns.saturating_mul(self.steps as i64 - 1);
        Steady(self.start.0.saturating_add(length))
    }

    /// Nanoseconds between two steps.
    pub fn period_ns(&self) -> i64 {
        self.period_ns
    }

    /// Where `time` is in it.
    pub fn place(&self, time: Steady) -> Place {
        if time >= self.end() {
            return Place { step: self.steps - 1, between: None };
        }
        let elapsed = time.0.saturating_sub(self.start.0);
        if elapsed < 0 {
            return Place::START;
        }
        let step = (elapsed / self.period_ns) as usize; // below `steps - 1`, for `time` is before the end
        let fraction = (elapsed % self.period_ns) as f64 / self.period_ns as f64;
        Place { step, between: Some(Basis::at(fraction, seconds(self.period_ns))) }
    }

    /// One joint there.
    pub fn sample(&self, place: Place, joint: usize) -> Sample {
        let value = |step: usize| self.values[step * self.joints + joint];
        match place.between {
            None => Sample { value: value(place.step), ..Sample::default() },
            Some(basis) => sample(value, self.steps, place.step, &basis),
        }
    }
}

/// Between `step` (u = 0) and the next one (u = 1) of `steps` values; rate and acceleration are per step. `step + 1` is
/// below `steps`.
pub fn cubic(value: impl Fn(usize) -> f64, steps: usize, step: usize, u: f64) -> Sample {
    sample(value, steps, step, &Basis::at(u, 1.0))
}

fn sample(value: impl Fn(usize) -> f64, steps: usize, step: usize, basis: &Basis) -> Sample {
    let (here, next) = (value(step), value(step + 1));
    let way = next - here;
    let leaving = if step == 0 { way } else { 0.5 * (next - value(step - 1)) };
    let arriving = if step + 2 < steps { 0.5 * (value(step + 2) - here) } else { way };
    let of = |basis: &[f64; 3]| way * basis[0] + leaving * basis[1] + arriving * basis[2];
    Sample { value: here + of(&basis.value), rate: of(&basis.rate), acceleration: of(&basis.acceleration) }
}

/// The time of the chunk's last step, if it can be said.
pub(super) fn end_of(chunk: &Chunk) -> Option<Steady> {
    let last = i64::try_from(chunk.actions.len()).ok()?.checked_sub(1)?;
    chunk.observed.0.checked_add(chunk.period_ns.checked_mul(last)?).map(Steady)
}

/// Nanoseconds as seconds.
pub(super) fn seconds(ns: i64) -> f64 {
    ns as f64 / NS_PER_S as f64
}
