//! What the control thread tells about itself, as one value that is copied.

use super::Request;
use crate::clock::Steady;
use crate::control::{Counters, Reason, Scheduler, State, Wants};

/// The control thread as it was after its last tick or request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    /// What it is doing.
    pub state: State,
    /// Why it rests or waits; empty while all is well.
    pub reason: Reason,
    /// How often the motion was interrupted. An inference notes it as it begins ([`crate::control::Chunk::epoch`]).
    pub epoch: u64,
    /// Time of the last tick.
    pub tick: Option<Steady>,
    /// What happened to chunks and values.
    pub counters: Counters,
    /// How punctual it is.
    pub timing: Timing,
    /// Requests that were carried out, in the order in which they were made.
    pub requests_taken: u64,
    /// Chunks that were looked at, in the order in which they were sent.
    pub chunks_taken: u64,
    /// From which observations an inference may begin.
    pub wants: Wants,
    /// The last command is where the arm rests, or there is none.
    pub at_rest: bool,
    /// The pause, stop or fault that outlasts control's end.
    pub latch: Option<Request>,
}

impl Status {
    /// Of a control that has not ticked yet.
    pub(super) fn of(scheduler: &Scheduler) -> Self {
        Self {
            state: scheduler.state(),
            reason: *scheduler.reason(),
            epoch: scheduler.epoch(),
            tick: None,
            counters: *scheduler.counters(),
            timing: Timing::default(),
            requests_taken: 0,
            chunks_taken: 0,
            wants: scheduler.wants(),
            at_rest: scheduler.is_at_rest(),
            latch: None,
        }
    }
}

/// How punctual the ticks are, and what became of what they gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Ticks that ran.
    pub ticks: u64,
    /// Ticks that were skipped since their time had passed when the thread came to them.
    pub overruns: u64,
    /// Latest start of a tick after its time, ns.
    pub late_max_ns: i64,
    /// Sum of these, ns; divided by `ticks` the mean.
    pub late_total_ns: i64,
    /// Longest computation of a tick, hand-over included, ns.
    pub work_max_ns: i64,
    /// Commands or trajectories that were handed over.
    pub sent: u64,
    /// Of these, those that a newer one replaced before the publisher took them.
    pub lost: u64,
}
