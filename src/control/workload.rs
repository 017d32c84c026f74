//! A scheduler with everything to do: what benchmarks and tests of the tick's time and allocations run.
//!
//! Promises: a tick here is as much work as a tick can be in its mode: 14 joints, every plan that is averaged in use,
//! chunks that arrive in the middle of the one before, motion that keeps the limits and motion that does not. After
//! [`Workload::new`] nothing is allocated. Called by `pi05 bench control` and by tests; never by the node.

use std::time::Instant;

use crate::clock::{NS_PER_S, Steady};

use super::limits::LimitsError;
use super::scheduler::ControlError;
use super::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Scheduler, Splice,
};

/// Joints of two arms with grippers.
pub const JOINTS: usize = 14;
/// Steps of a chunk, at 50 Hz.
const STEPS: usize = 50;
const STEP_NS: i64 = NS_PER_S / 50;
/// Chunks that are made beforehand and come again and again.
const CHUNKS: usize = 16;

/// Every mode of execution.
pub const MODES: [Execution; 5] =
    [Execution::Latest, Execution::Ensemble, Execution::Rtc, Execution::RtcTrained, Execution::OpenLoop];

/// A scheduler, the chunks that come to it, and its time.
#[derive(Debug)]
pub struct Workload {
    scheduler: Scheduler,
    chunks: Vec<Chunk>,
    measured: Vec<f64>,
    ticks: i64,
    next_id: u64,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum WorkloadError {
    /// Cannot be.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// A rate that no control loop has.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl Workload {
    /// In this mode, at so many ticks per second; with limited jerk or without.
    pub fn new(execution: Execution, rate_hz: f64, jerk_max: f64) -> Result<Self, WorkloadError> {
        let limit = JointLimit {
            mode: ControlMode::Position,
            position_min: -1.0,
            position_max: 1.0,
            velocity_max: 3.0,
            acceleration_max: 15.0,
            jerk_max,
        };
        let scheduler = Scheduler::new(ControlConfig {
            rate_hz,
            splice: Splice { execution, open_loop_steps: 10, ..Splice::default() },
            guards: Guards::default(),
            max_steps: STEPS,
            limits: JointLimits::new(vec![limit; JOINTS])?,
            measured_index: (0..JOINTS).map(Some).collect(),
        })?;
        let chunks = (0..CHUNKS).map(chunk).collect();
        Ok(Self { scheduler, chunks, measured: vec![0.0; JOINTS], ticks: 0, next_id: 0 })
    }

    /// One tick; every fifth policy step with a chunk that takes over.
    pub fn tick(&mut self) {
        let now = Steady(self.ticks.saturating_mul(self.scheduler.period_ns()));
        if self.next_chunk_is_due(now) && self.scheduler.wants_chunk() {
            let chunk = &mut self.chunks[self.next_id as usize % CHUNKS];
            // Two steps old as it comes.
            chunk.observed = Steady(now.0 - 2 * STEP_NS);
            (chunk.id, chunk.epoch) = (self.next_id, self.scheduler.epoch());
            self.next_id += 1;
            let _ = self.scheduler.accept(chunk, now); // counted
        }
        self.scheduler.tick(now, Some(&self.measured));
        self.ticks += 1;
    }

    /// What it did.
    pub fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Time of each of so many ticks, ns, in order.
    pub fn time(&mut self, ticks: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(ticks);
        for _ in 0..ticks {
            let begin = Instant::now();
            self.tick();
            times.push(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        times
    }

    fn next_chunk_is_due(&self, now: Steady) -> bool {
        now.0 / (5 * STEP_NS) >= self.next_id as i64
    }
}

/// Slow and fast sines, of which some leave the limits.
fn chunk(index: usize) -> Chunk {
    let value = |step: usize, joint: usize| {
        let t = (5 * index + step) as f64;
        let amplitude = 0.1 + 0.12 * joint as f64;
        amplitude * (t * std::f64::consts::TAU / (40.0 - 2.0 * joint as f64)).sin() + 0.01 * index as f64
    };
    let actions = (0..STEPS).map(|step| (0..JOINTS).map(|joint| value(step, joint)).collect()).collect();
    Chunk { id: 0, epoch: 0, observed: Steady(0), period_ns: STEP_NS, actions }
}
