//! A chunk as a function of time: its steps, linearly between them, and a tail that ends at rest.
//!
//! Promises: the storage is allocated once, for a known number of steps and joints; a chunk with a hole, a NaN or a
//! wrong shape is refused whole. Called by the scheduler. It knows nothing of "now": a plan does not change by being
//! sampled.

use crate::clock::{NS_PER_S, Steady};

use super::brake::Brake;
use super::limits::JointLimits;

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
    /// `[joints]`: each tail and when it begins.
    tails: Vec<(Steady, Brake)>,
}

impl Plan {
    /// Room for chunks of up to `max_steps` steps; at rest at 0 until filled.
    pub fn new(joints: usize, max_steps: usize) -> Self {
        Self {
            joints,
            max_steps,
            start: Steady(0),
            period_ns: 1,
            steps: 1,
            values: vec![0.0; joints * max_steps],
            tails: vec![(Steady(0), Brake::at_rest(0.0)); joints],
        }
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

    /// Becomes `chunk`, with a tail that brakes from the last step's velocity. Refuses what [`Plan::check`] refuses,
    /// and is then unchanged.
    pub fn fill(&mut self, chunk: &Chunk, limits: &JointLimits) -> Result<(), Malformed> {
        self.check(chunk)?;
        self.start = chunk.observed;
        self.period_ns = chunk.period_ns;
        self.steps = chunk.actions.len();
        for (row, actions) in self.values.chunks_exact_mut(self.joints).zip(&chunk.actions) {
            row.copy_from_slice(actions);
        }
        let end = self.end();
        let last = (self.steps - 1) * self.joints;
        for (joint, limit) in limits.as_slice().iter().enumerate() {
            let value = self.values[last + joint];
            let before = if self.steps > 1 { self.values[last - self.joints + joint] } else { value };
            let rate = (value - before) / seconds(self.period_ns);
            self.tails[joint] = (end, Brake::new(limit, value, rate));
        }
        Ok(())
    }

    /// Becomes standing still at `values`.
    pub fn hold(&mut self, values: &[f64], at: Steady) {
        self.start = at;
        self.period_ns = 1;
        self.steps = 1;
        for ((kept, tail), &value) in self.values.iter_mut().zip(&mut self.tails).zip(values) {
            *kept = value;
            *tail = (at, Brake::at_rest(value));
        }
    }

    /// Replaces one joint's tail: as if it had begun at `from`.
    pub fn set_tail(&mut self, joint: usize, from: Steady, brake: Brake) {
        self.tails[joint] = (from, brake);
    }

    /// Puts all tails off by `ns`.
    pub fn delay_tails(&mut self, ns: i64) {
        for (from, _) in &mut self.tails {
            from.0 = from.0.saturating_add(ns.max(0));
        }
    }

    /// Whether every tail has come to its end by `time`.
    pub fn is_at_rest(&self, time: Steady) -> bool {
        let ended =
            |(from, tail): &(Steady, Brake)| seconds(time.0.saturating_sub(from.0)) >= tail.duration();
        time >= self.end() && self.tails.iter().all(ended)
    }

    /// When the last tail has come to its end.
    pub fn rest_time(&self) -> Steady {
        let end = |(from, tail): &(Steady, Brake)| {
            Steady(from.0.saturating_add((tail.duration() * NS_PER_S as f64).ceil() as i64)) // saturates
        };
        self.tails.iter().map(end).max().map_or(self.end(), |rest| rest.max(self.end()))
    }

    /// The time of the last step, where the tail begins.
    pub fn end(&self) -> Steady {
        Steady(self.start.0 + self.period_ns * (self.steps as i64 - 1)) // fits: checked in `check`
    }

    /// Nanoseconds between two steps.
    pub fn period_ns(&self) -> i64 {
        self.period_ns
    }

    /// The values at `time`, into `out` `[joints]`: step 0 before the start, interpolated between the steps, the tail
    /// after the last.
    pub fn sample(&self, time: Steady, out: &mut [f64]) {
        if time >= self.end() {
            for (value, (from, tail)) in out.iter_mut().zip(&self.tails) {
                *value = tail.value(seconds(time.0.saturating_sub(from.0)));
            }
            return;
        }
        let elapsed = time.0.saturating_sub(self.start.0).max(0);
        let step = (elapsed / self.period_ns) as usize; // below `steps - 1`, for `time` is before the end
        let fraction = (elapsed % self.period_ns) as f64 / self.period_ns as f64;
        let (here, next) = self.values[step * self.joints..].split_at(self.joints);
        for ((value, a), b) in out.iter_mut().zip(here).zip(next) {
            *value = a + (b - a) * fraction;
        }
    }
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
