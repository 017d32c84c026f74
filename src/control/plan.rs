//! A chunk as a function of time: through its steps, with a continuous velocity, from its first to its last.
//!
//! Promises: a chunk with a hole, a NaN or a wrong shape is refused whole, before control sees it ([`Proposal`]); what
//! became a plan is finite wherever it is sampled. Called by who has a chunk to give, and by the motion, which brakes
//! where the plan ends. It knows nothing of "now": a plan does not change by being sampled.
//!
//! Between two steps it is a cubic Hermite polynomial; the velocity at a step is half the way between its neighbours
//! per period (Catmull and Rom, 1974), at the first and the last step that of the way to the only neighbour.

use crate::clock::{NS_PER_S, Steady};

use super::limits::LIMIT_MAX;
use super::samples::{Counts, Part, padded};
use super::splice::Sample;

/// Longest time between two steps of a chunk: ten minutes, far above any policy, far below any overflow.
const PERIOD_MAX_NS: i64 = 600 * NS_PER_S;
/// Beyond it a value is as far out of any limits, but a way to it would overflow.
const VALUE_MAX: f64 = 2.0 * LIMIT_MAX;

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

/// What a chunk must be like to become a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Values of each step.
    pub joints: usize,
    /// Most steps.
    pub max_steps: usize,
}

/// A chunk on its way to control: looked at and laid out by who made it, so that the tick that takes it neither reads it
/// through nor copies it. Afterwards it holds what it replaced, for who made it to free.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// [`Chunk::id`].
    pub id: u64,
    pub(super) epoch: u64,
    pub(super) observed: Steady,
    pub(super) plan: Result<Plan, Malformed>,
}

impl Proposal {
    /// Looks at the chunk: its shape, its values and its times. Allocates.
    pub fn new(chunk: &Chunk, shape: Shape) -> Self {
        let Chunk { id, epoch, observed, .. } = *chunk;
        Self { id, epoch, observed, plan: Plan::new(chunk, shape) }
    }
}

/// One chunk, ready to be sampled at any time.
#[derive(Clone, Debug)]
pub struct Plan {
    joints: usize,
    start: Steady,
    period_ns: i64,
    /// 1 / period, per ns and per s.
    per_period: [f64; 2],
    /// At least one; [`Plan::EMPTY`] is never sampled.
    steps: usize,
    /// `[steps][joints, padded]`; there may be more steps than are in use.
    values: Vec<f64>,
    /// The time of the last step, or later.
    end: Steady,
}

/// A step's neighbours: the one before, the next, and the one after that; at the ends there are none, and what is there
/// counts whole.
#[derive(Clone, Copy, Debug)]
struct Neighbours {
    before: usize,
    next: usize,
    after: usize,
    leaving: f64,
    arriving: f64,
}

impl Neighbours {
    /// `step + 1` is below `steps`.
    fn of(step: usize, steps: usize) -> Self {
        let (before, leaving) = if step == 0 { (0, 1.0) } else { (step - 1, 0.5) };
        let (after, arriving) = if step + 2 < steps { (step + 2, 0.5) } else { (step + 1, 1.0) };
        Self { before, next: step + 1, after, leaving, arriving }
    }

    /// Hermite's cubic basis at u from 0, the step, to 1, the next, of so many steps per second.
    fn counts(&self, u: f64, first: f64) -> Counts {
        let second = first * first;
        let of = |here: f64, way: f64, leaving: f64, arriving: f64| {
            [here, way, self.leaving * leaving, self.arriving * arriving]
        };
        Counts([
            of(1.0, u * u * (3.0 - 2.0 * u), u * (1.0 + u * (u - 2.0)), u * u * (u - 1.0)),
            of(0.0, 6.0 * u * (1.0 - u), 1.0 + u * (3.0 * u - 4.0), u * (3.0 * u - 2.0)).map(|x| x * first),
            of(0.0, 6.0 - 12.0 * u, 6.0 * u - 4.0, 6.0 * u - 2.0).map(|x| x * second),
        ])
    }
}

impl Plan {
    /// The plan that there is before there is one.
    pub const EMPTY: Self = Self {
        joints: 0,
        start: Steady(i64::MIN),
        period_ns: 1,
        per_period: [1.0; 2],
        steps: 1,
        values: Vec::new(),
        end: Steady(i64::MIN),
    };

    /// Step 0 at the time of its observation.
    pub fn new(chunk: &Chunk, Shape { joints, max_steps }: Shape) -> Result<Self, Malformed> {
        let steps = chunk.actions.len();
        if steps == 0 {
            return Err(Malformed::Empty);
        }
        if steps > max_steps {
            return Err(Malformed::TooLong { expected: max_steps, found: steps });
        }
        let width = padded(joints);
        let mut values = vec![0.0; steps * width];
        for (step, row) in chunk.actions.iter().enumerate() {
            if row.len() != joints {
                return Err(Malformed::Width { step, expected: joints, found: row.len() });
            }
            if let Some(joint) = row.iter().position(|v| !v.is_finite()) {
                return Err(Malformed::NotFinite { step, joint, found: row[joint] });
            }
            let found = values[step * width..].iter_mut();
            found.zip(row).for_each(|(found, value)| *found = value.clamp(-VALUE_MAX, VALUE_MAX));
        }
        let last = chunk.period_ns.checked_mul(steps as i64 - 1); // at most `max_steps`
        let fits = last.is_some_and(|last| chunk.observed.0.checked_add(last).is_some());
        if !(fits && (1..=PERIOD_MAX_NS).contains(&chunk.period_ns)) {
            return Err(Malformed::Period { found: chunk.period_ns });
        }
        let period_ns = chunk.period_ns;
        let per_period = [1.0 / period_ns as f64, 1.0 / seconds(period_ns)];
        let mut plan = Self { joints, period_ns, per_period, steps, values, ..Self::EMPTY };
        plan.lay(chunk.observed, steps as i64 - 1);
        Ok(plan)
    }

    /// Step 0 at `start`, whenever it was observed; of more than `steps` steps the first ones. It ends `least` periods
    /// after that or later, so that there is time to come to the first one.
    pub fn begin(&mut self, start: Steady, steps: usize, least: usize) {
        self.steps = steps.clamp(1, self.steps);
        self.lay(start, (self.steps - 1).max(least) as i64);
    }

    fn lay(&mut self, start: Steady, periods: i64) {
        self.start = start;
        self.end = Steady(start.0.saturating_add(self.period_ns.saturating_mul(periods)));
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// When it has been executed: at the time of the last step, or later.
    pub fn end(&self) -> Steady {
        self.end
    }

    /// Nanoseconds between two steps.
    pub fn period_ns(&self) -> i64 {
        self.period_ns
    }

    /// One step, `[joints]`.
    pub fn row(&self, step: usize) -> &[f64] {
        &self.padded(step)[..self.joints]
    }

    fn padded(&self, step: usize) -> &[f64] {
        let width = padded(self.joints);
        &self.values[step * width..][..width]
    }

    /// `share`, which changes too, of what it is at `time`. Before its start and after its end it stands still.
    pub fn part(&self, time: Steady, share: Sample) -> Part<'_> {
        let elapsed = time.0.saturating_sub(self.start.0);
        let step = usize::try_from(elapsed / self.period_ns).unwrap_or(0);
        if elapsed < 0 || step + 1 >= self.steps {
            let row = self.padded(step.min(self.steps - 1));
            return Part::new(Counts::STILL.shared(share), [row; 4]);
        }
        let [per_ns, per_s] = self.per_period;
        let fraction = (elapsed % self.period_ns) as f64 * per_ns;
        let around = Neighbours::of(step, self.steps);
        let counts = around.counts(fraction, per_s).shared(share);
        let (before, next, after) =
            (self.padded(around.before), self.padded(around.next), self.padded(around.after));
        Part::new(counts, [before, self.padded(step), next, after])
    }
}

/// The value between `step` (u = 0) and the next one (u = 1) of `steps` values. `step + 1` is below `steps`.
pub fn cubic(value: impl Fn(usize) -> f64, steps: usize, step: usize, u: f64) -> f64 {
    let around = Neighbours::of(step, steps);
    let Counts([counts, ..]) = around.counts(u, 1.0);
    let [before, here, next, after] = [around.before, step, around.next, around.after].map(value);
    let ways = [here, next - here, next - before, after - here];
    counts.iter().zip(ways).map(|(count, way)| count * way).sum()
}

/// Nanoseconds as seconds.
pub(super) fn seconds(ns: i64) -> f64 {
    ns as f64 / NS_PER_S as f64
}
