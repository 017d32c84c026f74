//! What happened so far, counted.

use super::admission::Rejected;
use super::axis::Limited;

/// What happened so far. Values are counted one by one, so that a tick can count several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of [`super::Scheduler::tick`].
    pub ticks: u64,
    /// Ticks that should have come between two that came. They are skipped, never caught up.
    pub skipped_ticks: u64,
    /// Ticks that gave no command: no chunk yet, no measured position, or stopped.
    pub idle_ticks: u64,
    /// Times that something other than a chunk's end made it brake: pause, stop, stale joint states, a fault.
    pub interruptions: u64,
    /// Of these, stale joint states.
    pub joints_stale: u64,
    /// Values that a position limit changed.
    pub position_limited: u64,
    /// Values that a velocity limit changed.
    pub velocity_limited: u64,
    /// Values that an acceleration limit changed.
    pub acceleration_limited: u64,
    /// Values that a jerk limit changed.
    pub jerk_limited: u64,
    /// Desired values that were NaN or infinite.
    pub not_finite: u64,
    /// Chunks that took over.
    pub chunks_accepted: u64,
    /// Chunks refused for their shape, values or times.
    pub chunks_malformed: u64,
    /// Chunks discarded because all their steps had passed.
    pub chunks_late: u64,
    /// Chunks discarded because a newer one was running.
    pub chunks_superseded: u64,
    /// Chunks discarded because they began too far from the measured position.
    pub chunks_too_far: u64,
    /// Chunks discarded because their observation lay ahead of now.
    pub chunks_from_future: u64,
    /// Chunks discarded because they were begun before an interruption.
    pub chunks_of_old_epoch: u64,
    /// Chunks discarded because none is taken: paused, stopped, a fault, stale joint states, or another one
    /// is executed open loop.
    pub chunks_not_wanted: u64,
}

impl Counters {
    /// Name and count of each, for reports and diagnostics.
    pub fn entries(&self) -> [(&'static str, u64); 18] {
        [
            ("ticks", self.ticks),
            ("skipped_ticks", self.skipped_ticks),
            ("idle_ticks", self.idle_ticks),
            ("interruptions", self.interruptions),
            ("joints_stale", self.joints_stale),
            ("position_limited", self.position_limited),
            ("velocity_limited", self.velocity_limited),
            ("acceleration_limited", self.acceleration_limited),
            ("jerk_limited", self.jerk_limited),
            ("not_finite", self.not_finite),
            ("chunks_accepted", self.chunks_accepted),
            ("chunks_malformed", self.chunks_malformed),
            ("chunks_late", self.chunks_late),
            ("chunks_superseded", self.chunks_superseded),
            ("chunks_too_far", self.chunks_too_far),
            ("chunks_from_future", self.chunks_from_future),
            ("chunks_of_old_epoch", self.chunks_of_old_epoch),
            ("chunks_not_wanted", self.chunks_not_wanted),
        ]
    }

    pub(super) fn count_limits(&mut self, limited: &Limited) {
        self.position_limited += u64::from(limited.position);
        self.velocity_limited += u64::from(limited.velocity);
        self.acceleration_limited += u64::from(limited.acceleration);
        self.jerk_limited += u64::from(limited.jerk);
        self.not_finite += u64::from(limited.not_finite);
    }

    pub(super) fn count_rejected(&mut self, rejected: &Rejected) {
        *match rejected {
            Rejected::Malformed(_) => &mut self.chunks_malformed,
            Rejected::Late { .. } => &mut self.chunks_late,
            Rejected::Superseded { .. } => &mut self.chunks_superseded,
            Rejected::FromFuture { .. } => &mut self.chunks_from_future,
            Rejected::OldEpoch { .. } => &mut self.chunks_of_old_epoch,
            Rejected::TooFar { .. } => &mut self.chunks_too_far,
            Rejected::NotWanted { .. }
            | Rejected::JointsStale { .. }
            | Rejected::NotYet { .. }
            | Rejected::SeenInMotion { .. } => &mut self.chunks_not_wanted,
        } += 1;
    }
}
