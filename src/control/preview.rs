//! The way from now to rest, as the points of one trajectory: what a controller that plays trajectories is sent.
//!
//! Promises: the points are the commands that the ticks will give if nothing new comes, one tick apart (in a very long
//! one, a few), the first one the command that was given last; the last one is at rest. A trajectory therefore joins the
//! one before it where that one is by now. Allocates: it is made for a chunk or a brake, and not by the thread that ticks.

use crate::clock::Steady;

use super::counters::Counters;
use super::motion::Motion;

/// Most points of a trajectory: 20 s at 1 kHz, far above most chunks. What takes longer has them further apart.
const POINTS_MAX: usize = 20_000;
/// Most ticks that are looked ahead: three hours at 1 kHz, a few seconds of computing. What would take longer goes
/// straight to its rest from there, which is slower than the limits permit.
const TICKS_MAX: usize = 10_000_000;

/// The motion as it was at a tick, on its own.
#[derive(Clone, Debug)]
pub struct Preview {
    motion: Motion,
    at: Steady,
    period_ns: i64,
}

/// Positions over time, ending at rest.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory {
    /// The time of the first point: that of the tick that gave it.
    pub start: Steady,
    /// The chunk that is followed, or was before it braked.
    pub chunk: u64,
    /// Nanoseconds from `start` to each point, rising from 0.
    pub times_ns: Vec<i64>,
    /// `[points][joints]`.
    pub values: Vec<f64>,
    joints: usize,
}

impl Trajectory {
    /// Nanoseconds from the start, and the values in the order of the limits.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (i64, &[f64])> {
        self.times_ns.iter().copied().zip(self.values.chunks_exact(self.joints.max(1)))
    }

    fn push(&mut self, after_ns: i64, values: &[f64]) {
        self.times_ns.push(after_ns);
        self.values.extend_from_slice(values);
    }

    /// Lets every other point go, from the second one on.
    fn thin_out(&mut self) {
        let (joints, kept) = (self.joints, self.times_ns.len().div_ceil(2));
        for point in 1..kept {
            self.times_ns[point] = self.times_ns[2 * point];
            self.values.copy_within(2 * point * joints..(2 * point + 1) * joints, point * joints);
        }
        self.times_ns.truncate(kept);
        self.values.truncate(kept * joints);
    }
}

impl Preview {
    pub(super) fn new(motion: Motion, at: Steady, period_ns: i64) -> Self {
        Self { motion, at, period_ns }
    }

    /// Plays the motion to its rest.
    pub fn trajectory(mut self) -> Trajectory {
        let mut trajectory = Trajectory {
            start: self.at,
            chunk: self.motion.source().map_or(0, |(id, _)| id),
            times_ns: Vec::new(),
            values: Vec::new(),
            joints: self.motion.command().len(),
        };
        trajectory.push(0, self.motion.command());
        let mut counters = Counters::default(); // of what never happens
        let (mut tick, mut apart, mut after_ns) = (0, 1, 0);
        while !self.motion.is_at_rest() {
            tick += 1;
            after_ns += self.period_ns;
            let now = Steady(self.at.0.saturating_add(after_ns));
            if tick > TICKS_MAX {
                let (end, rest) = self.motion.rest(now);
                trajectory.push(after_ns.max(end.0.saturating_sub(self.at.0)), &rest);
                break;
            }
            if self.motion.step(now, None, f64::INFINITY, &mut counters).is_none() {
                break;
            }
            if tick % apart == 0 || self.motion.is_at_rest() {
                trajectory.push(after_ns, self.motion.command());
            }
            if trajectory.times_ns.len() > POINTS_MAX {
                trajectory.thin_out();
                apart *= 2;
            }
        }
        trajectory
    }
}
