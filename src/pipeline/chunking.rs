//! Real-time chunking around the sampler (spec/PI05.md §12.2): what is left of the chunk before when the next inference
//! begins, and how long that one will take.
//!
//! Promises: an inference is steered by the chunk that the arm follows, row by row at the times of its own rows, or not
//! at all: a chunk of another epoch, one that control refused and one that has ended say nothing. The delay is measured,
//! never assumed. Called by `node` and `replay` around each inference; with modes that do not steer it only measures.

use std::collections::VecDeque;

use crate::clock::{NS_PER_S, Stamp};
use crate::config::{Config, Execution};
use crate::control::plan::cubic;
use crate::model::sampler::rtc::{Leftover, PrefixSchedule, Rtc, RtcError};
use crate::policy::Policy;

/// Inferences whose time is remembered: some seconds.
const WINDOW: usize = 64;
/// The delay is that which so many percent of them stayed within.
const PERCENTILE: f64 = 95.0;
/// A first inference is slow for reasons of its own: memory is touched for the first time, kernels are chosen.
const COLD_STARTS: usize = 1;
/// Chunks in a row that came later than they were conditioned for, before it is given up (as LeRobot does).
pub const LATE_MAX: u32 = 5;

/// A chunk as the network gave it: normalised, relative where the policy is.
#[derive(Clone, Debug)]
pub struct ModelActions {
    /// `[steps][dims]`, the robot's own dimensions.
    values: Vec<f32>,
    dims: usize,
    /// What relative actions are offsets from.
    anchor: Vec<f64>,
}

/// What the chunk before says to the next one. By value: the inference may run on another thread.
#[derive(Clone, Debug)]
pub struct Steering {
    leftover: ModelActions,
    /// Policy steps that will have passed when the chunk is there.
    delay: usize,
    mode: Mode,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Guided { schedule: PrefixSchedule, execution_horizon: usize, max_weight: f32 },
    Trained,
}

/// From one inference to the next.
#[derive(Debug, Default)]
pub struct Chunking {
    latencies: Latencies,
    /// The chunk before.
    last: Option<Last>,
    /// Of the inference that is under way: the clean rows that it was given.
    conditioned: Option<usize>,
    late: u32,
}

#[derive(Debug)]
struct Last {
    id: u64,
    epoch: u64,
    observed: Stamp,
    actions: ModelActions,
}

/// A chunk of a trained prefix that came too late for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooLate {
    /// The next one may be in time.
    #[error(
        "expected the chunk within the {conditioned} steps that it was conditioned for, found {found}; discarded"
    )]
    Once {
        /// Clean rows that it was given.
        conditioned: usize,
        /// Steps that it took.
        found: usize,
    },
    /// It will not.
    #[error(
        "expected chunks within the {conditioned} steps that they were conditioned for, found {LATE_MAX} later ones in a row; the inference is too slow for rtc_trained, use rtc"
    )]
    Always {
        /// Clean rows that the last one was given.
        conditioned: usize,
    },
}

impl ModelActions {
    /// The first `dims` columns of `[steps][action_dim]`.
    pub fn new(actions: &[f32], action_dim: usize, dims: usize, anchor: &[f64]) -> Self {
        let rows = actions.chunks_exact(action_dim.max(1));
        let values = rows.flat_map(|row| &row[..dims.min(action_dim)]).copied().collect();
        Self { values, dims: dims.min(action_dim).max(1), anchor: anchor.to_vec() }
    }

    fn steps(&self) -> usize {
        self.values.len() / self.dims
    }

    /// What is left `elapsed` steps after its first one, at whole steps from there, on the curve that control follows.
    fn left_over(&self, elapsed: f64) -> Self {
        let steps = self.steps();
        let mut values = Vec::new();
        let rows = (0..steps).map(|row| elapsed + row as f64).take_while(|&at| at <= (steps - 1) as f64);
        for at in rows {
            let step = at.floor();
            let (step, fraction) = (step as usize, at - step);
            for dim in 0..self.dims {
                let value = |step: usize| f64::from(self.values[step * self.dims + dim]);
                values.push(match fraction {
                    0.0 => value(step) as f32,
                    _ => cubic(value, steps, step, fraction) as f32,
                });
            }
        }
        Self { values, dims: self.dims, anchor: self.anchor.clone() }
    }
}

impl Steering {
    /// For the sampler, of an observation with this anchor.
    pub fn rtc(mut self, policy: &Policy, anchor: &[f64]) -> Result<Rtc, RtcError> {
        let shape = [policy.shape().horizon, policy.shape().action_dim];
        policy.reanchor(&mut self.leftover.values, &self.leftover.anchor, anchor);
        let leftover = Leftover { values: &self.leftover.values, dims: self.leftover.dims };
        match self.mode {
            Mode::Guided { schedule, execution_horizon, max_weight } => {
                Rtc::guided(leftover, schedule, self.delay, execution_horizon, max_weight, shape)
            }
            Mode::Trained => Rtc::trained(leftover, self.delay, shape),
        }
    }

    /// Policy steps that are expected to pass until the chunk is there.
    pub fn delay(&self) -> usize {
        self.delay
    }
}

impl Chunking {
    /// An inference begins, of what was observed then; its chunk will bear this number and epoch.
    pub fn begin(
        &mut self,
        id: u64,
        epoch: u64,
        observed: Stamp,
        config: &Config,
        policy: &Policy,
    ) -> Option<Steering> {
        self.conditioned = None;
        let execution = config.control.execution;
        if !matches!(execution, Execution::Rtc | Execution::RtcTrained) {
            return None;
        }
        // Numbers begin anew with every activation.
        let last = self.last.as_ref().filter(|last| last.epoch == epoch && last.id < id)?;
        let rate = config.control.policy_rate_hz;
        let elapsed = observed.since(last.observed) as f64 / NS_PER_S as f64 * rate;
        let leftover = last.actions.left_over(elapsed.max(0.0));
        let rows = leftover.steps();
        if rows == 0 {
            return None;
        }
        let (delay, mode) = match execution {
            Execution::RtcTrained => {
                let most = policy.trained_delay().min(rows).min(policy.shape().horizon.saturating_sub(1));
                let delay = self.latencies.steps(100.0, rate).unwrap_or(most).min(most);
                self.conditioned = Some(delay);
                (delay, Mode::Trained)
            }
            _ => {
                let rtc = &config.rtc;
                let mode = Mode::Guided {
                    schedule: rtc.schedule,
                    execution_horizon: rtc.execution_horizon,
                    max_weight: rtc.max_guidance_weight as f32,
                };
                (self.latencies.steps(PERCENTILE, rate).unwrap_or(0), mode)
            }
        };
        Some(Steering { leftover, delay, mode })
    }

    /// The inference is done and its chunk there at `now`. Refuses a chunk that was conditioned for less time.
    pub fn finish(
        &mut self,
        id: u64,
        epoch: u64,
        observed: Stamp,
        now: Stamp,
        actions: ModelActions,
        policy_rate_hz: f64,
    ) -> Result<(), TooLate> {
        let latency_ns = now.since(observed).max(0);
        self.latencies.add(latency_ns);
        if let Some(conditioned) = self.conditioned.take() {
            let found = steps(latency_ns, policy_rate_hz);
            if found > conditioned {
                self.late += 1;
                let always = self.late >= LATE_MAX;
                return Err(if always {
                    TooLate::Always { conditioned }
                } else {
                    TooLate::Once { conditioned, found }
                });
            }
            self.late = 0;
        }
        let finite = actions.values.iter().all(|value| value.is_finite());
        self.last = finite.then_some(Last { id, epoch, observed, actions });
        Ok(())
    }

    /// Control does not follow this chunk.
    pub fn refused(&mut self, id: u64) {
        self.last.take_if(|last| last.id == id);
    }
}

/// How long inferences took, from the observation to the chunk.
#[derive(Debug, Default)]
struct Latencies {
    cold: usize,
    recent_ns: VecDeque<i64>,
}

impl Latencies {
    fn add(&mut self, ns: i64) {
        if self.cold < COLD_STARTS {
            self.cold += 1;
            return;
        }
        if self.recent_ns.len() == WINDOW {
            self.recent_ns.pop_front();
        }
        self.recent_ns.push_back(ns);
    }

    /// Policy steps that so many percent stayed within; `None` before the first that counts.
    fn steps(&self, percent: f64, policy_rate_hz: f64) -> Option<usize> {
        let mut sorted: Vec<i64> = self.recent_ns.iter().copied().collect();
        sorted.sort_unstable();
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).map(|&ns| steps(ns, policy_rate_hz))
    }
}

/// Policy steps that have passed after so long: those whose time is before then.
fn steps(ns: i64, policy_rate_hz: f64) -> usize {
    let period_ns = (NS_PER_S as f64 / policy_rate_hz).round().max(1.0) as u64;
    ns.max(0).unsigned_abs().div_ceil(period_ns) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::NS_PER_MS;

    #[test]
    fn the_delay_is_a_high_percentile_without_the_cold_start() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.steps(PERCENTILE, 50.0), None);
        latencies.add(5_000 * NS_PER_MS);
        assert_eq!(latencies.steps(PERCENTILE, 50.0), None, "a cold start does not count");
        (1..=100).for_each(|ms| latencies.add(ms * NS_PER_MS));
        // The last 64: 37 to 100 ms, of which 61 are at most 97.
        assert_eq!(latencies.steps(PERCENTILE, 1000.0), Some(97));
        assert_eq!(latencies.steps(PERCENTILE, 50.0), Some(5));
        assert_eq!(latencies.steps(100.0, 50.0), Some(5));
        assert_eq!((steps(0, 50.0), steps(1, 50.0), steps(20 * NS_PER_MS, 50.0)), (0, 1, 1));
    }

    #[test]
    fn what_is_left_over_is_at_the_times_of_the_next_chunk() {
        let raw: Vec<f32> = (0..6).flat_map(|step| [step as f32, 10.0 - step as f32, 99.0]).collect();
        let actions = ModelActions::new(&raw, 3, 2, &[]);
        assert_eq!(actions.left_over(4.0).values, [4.0, 6.0, 5.0, 5.0]);
        assert_eq!(actions.left_over(3.25).values, [3.25, 6.75, 4.25, 5.75]);
        assert_eq!(actions.left_over(5.0).steps(), 1);
        assert_eq!(actions.left_over(5.1).steps(), 0);
    }
}
