//! A control thread's tick with everything to do, without the thread: what benchmarks and tests of its time and its
//! allocations run.
//!
//! Promises: a tick here is as much work as one can be in its mode: 14 joints, every plan that is averaged in use, a chunk
//! that takes over in the middle of the one before every fifth policy step, motion that keeps the limits and motion that
//! does not, the flight recorder on. The same ticks in every run. Called by `pi05 bench control` and by tests; never by
//! the node.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{NS_PER_S, Steady};

use super::limits::LimitsError;
use super::recorder::{Capacity, Recorder};
use super::scheduler::ControlError;
use super::thread::{ControlHandle, Due, Form, Options, Outlet, Status, TickClock, Ticker};
use super::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Scheduler, Splice,
};

/// Joints of two arms with grippers.
pub const JOINTS: usize = 14;
/// Steps of a chunk, at 50 Hz.
const STEPS: usize = 50;
const STEP_NS: i64 = NS_PER_S / 50;
/// Between two chunks.
const CHUNK_NS: i64 = 5 * STEP_NS;
/// From a chunk's observation to the tick that takes it.
const AGE_NS: i64 = 2 * STEP_NS;
/// Kept by the recorder, s: as by default.
const RECORDED_S: f64 = 30.0;

/// Every mode of execution.
pub const MODES: [Execution; 5] =
    [Execution::Latest, Execution::Ensemble, Execution::Rtc, Execution::RtcTrained, Execution::OpenLoop];

/// A ticker, those around it, and its time.
#[derive(Debug)]
pub struct Workload {
    ticker: Ticker,
    handle: ControlHandle,
    outlet: Outlet,
    tick_ns: i64,
    now: i64,
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
            measured: JOINTS,
        })?;
        let tick_ns = scheduler.period_ns();
        let capacity = Capacity { seconds: RECORDED_S, rate_hz, commands: JOINTS, measured: JOINTS };
        let recorder = Some(Arc::new(Recorder::new(capacity)));
        let options = Options { recorder, ..Options::new(TickClock::Monotonic, Form::PerTick, NS_PER_S) };
        let (ticker, handle, outlet) = ControlHandle::without_thread(scheduler, options);
        Ok(Self { ticker, handle, outlet, tick_ns, now: NS_PER_S, next_id: 0 })
    }

    /// What other threads do before the next tick. Whether a chunk waits for it.
    pub fn feed(&mut self) -> bool {
        self.now += self.tick_ns;
        let now = Steady(self.now);
        self.handle.put_joints(now, &[0.0; JOINTS]);
        self.handle.outcomes().for_each(drop);
        self.outlet.receive(Duration::ZERO);
        let due = self.now / CHUNK_NS > (self.now - self.tick_ns) / CHUNK_NS;
        let chunk = due.then(|| self.chunk());
        chunk.is_some_and(|chunk| self.handle.send_chunk(&chunk).is_ok())
    }

    /// The tick.
    pub fn tick(&mut self) {
        self.ticker.step(Due { at: Steady(self.now), late_ns: 0, skipped: 0 });
    }

    /// As it is after the last tick.
    pub fn status(&self) -> Status {
        self.handle.status()
    }

    /// Slow and fast sines, of which some leave the limits; each chunk a little beside the one before.
    fn chunk(&mut self) -> Chunk {
        let (id, observed) = (self.next_id, Steady(self.now - AGE_NS));
        self.next_id += 1;
        let begin = (self.now / STEP_NS) as f64;
        let value = |step: usize, joint: usize| {
            let (amplitude, period) = (0.1 + 0.12 * joint as f64, 40.0 - 2.0 * joint as f64);
            let beside = 0.01 * (id % 16) as f64;
            amplitude * ((begin + step as f64) * std::f64::consts::TAU / period).sin() + beside
        };
        let actions = (0..STEPS).map(|step| (0..JOINTS).map(|joint| value(step, joint)).collect()).collect();
        Chunk { id, epoch: 0, observed, period_ns: STEP_NS, actions }
    }
}
