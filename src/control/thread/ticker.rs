//! The thread's side: one tick after the other, until it is told to end and the arm is at rest.
//!
//! Promises: a tick takes no lock, allocates and frees nothing (but for a trajectory), and makes no system call but the
//! ones that wake. Chunks and requests are taken in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rtrb::{Consumer, Producer};
use triple_buffer::{Input, Output};

use super::clock::{Due, Grid, TickClock, monotonic};
use super::outlet::Inlet;
use super::status::{Status, Timing};
use super::{Form, Joints, Outcome, Request, Shared};
use crate::clock::{FUTURE_TOLERANCE_NS, Steady};
use crate::control::plan::Proposal;
use crate::control::recorder::{Recorder, TickCommand, TickRecord};
use crate::control::{Command, Reason, Scheduler, State};

/// Owns the scheduler and ticks.
#[derive(Debug)]
pub struct Ticker {
    pub(super) scheduler: Scheduler,
    pub(super) form: Form,
    pub(super) joints: Output<Joints>,
    pub(super) chunks: Consumer<Box<Proposal>>,
    pub(super) outcomes: Producer<Outcome>,
    pub(super) requests: Consumer<Request>,
    pub(super) requests_taken: u64,
    pub(super) chunks_taken: u64,
    pub(super) inlet: Inlet,
    pub(super) status: Input<Status>,
    /// The last one that was told.
    pub(super) told: Status,
    pub(super) shared: Arc<Shared>,
    pub(super) timing: Timing,
    pub(super) last_tick: Option<Steady>,
    /// Of the way to rest that was sent last.
    pub(super) sent_revision: u64,
    pub(super) recorder: Option<Arc<Recorder>>,
    /// Time of the measured positions that were recorded last.
    pub(super) recorded_joints: Steady,
    pub(super) leaving: bool,
    /// What outlasts its end, once it is leaving.
    pub(super) latch: Option<Request>,
}

impl Drop for Ticker {
    /// However the thread ends, whoever waits for it hears of it.
    fn drop(&mut self) {
        self.shared.alive.store(false, Ordering::Release);
        self.shared.sent.ring();
        self.shared.changed.ring();
    }
}

impl Ticker {
    /// The thread.
    pub(super) fn run(mut self, clock: TickClock) {
        let mut grid = Grid::new(clock, self.scheduler.period_ns());
        loop {
            let rung = grid.rung();
            if self.shared.given_up.load(Ordering::Acquire) {
                break;
            }
            let goes_on = match grid.poll() {
                Some(due) => self.step(due),
                None => self.look(),
            };
            if !goes_on {
                break;
            }
            grid.wait(rung);
        }
    }

    /// One tick, with everything that it takes in and hands over. False once it has ended. The thread calls it; tests
    /// and benchmarks may do so in its place.
    pub fn step(&mut self, due: Due) -> bool {
        let begin = monotonic();
        self.last_tick = Some(due.at);
        match self.form {
            Form::PerTick => {
                self.take_requests();
                self.take_chunks(due.at);
                self.tick(&due, begin);
            }
            // The command at this tick is a point of the trajectory that was sent before: what is new begins there.
            Form::Trajectory => {
                self.tick(&due, begin);
                self.take_requests();
                self.take_chunks(due.at);
                self.send_trajectory();
            }
        }
        let timing = &mut self.timing;
        timing.ticks += 1;
        timing.overruns += due.skipped;
        timing.late_max_ns = timing.late_max_ns.max(due.late_ns);
        timing.late_total_ns = timing.late_total_ns.saturating_add(due.late_ns);
        let goes_on = self.finish();
        let work_ns = monotonic().0 - begin.0;
        self.timing.work_max_ns = self.timing.work_max_ns.max(work_ns); // told with the next tick
        self.shared.lateness.count(due.late_ns);
        self.shared.work.count(work_ns);
        goes_on
    }

    /// No tick is due: requests change the state at once, the motion with the next tick.
    fn look(&mut self) -> bool {
        if self.requests.is_empty() {
            return true;
        }
        self.take_requests();
        self.send_trajectory(); // before the next tick: it begins at the last one
        self.finish()
    }

    fn tick(&mut self, due: &Due, begin: Steady) {
        let now = due.at;
        let Joints { at, positions } = self.joints.read();
        let age_ns = now.0.saturating_sub(at.0);
        // Stamped in the future they would be fresh for so long, whatever came after them.
        let fresh = -FUTURE_TOLERANCE_NS..=self.shared.joints_max_age_ns.load(Ordering::Relaxed);
        let measured = fresh.contains(&age_ns).then_some(positions.as_slice());
        if let Some(recorder) = &self.recorder
            && *at != self.recorded_joints
        {
            recorder.measured(*at, positions);
            self.recorded_joints = *at;
        }
        let (before, epoch) = (self.scheduler.state(), self.scheduler.epoch());
        let given = match self.form {
            Form::PerTick => self.scheduler.tick_with_state(now, measured),
            Form::Trajectory => self.scheduler.tick_as_shown(now, measured),
        };
        if let (Form::PerTick, Some((command, state))) = (self.form, &given) {
            let lost = self.inlet.put_command(now, command, *state);
            self.timing.sent += 1;
            self.timing.lost += u64::from(lost);
        }
        if let Some(recorder) = &self.recorder {
            recorder.tick(&TickRecord {
                at: now,
                late_ns: due.late_ns,
                work_ns: monotonic().0 - begin.0,
                state: given.as_ref().map_or(before, |(_, state)| *state),
                epoch,
                command: given.as_ref().map(|(command, _)| recorded(command)),
            });
        }
    }

    fn send_trajectory(&mut self) {
        let revision = self.scheduler.revision();
        if self.form == Form::PerTick || revision == self.sent_revision {
            return;
        }
        if let Some(preview) = self.scheduler.preview() {
            let lost = self.inlet.put_trajectory(preview);
            self.timing.sent += 1;
            self.timing.lost += u64::from(lost);
            self.sent_revision = revision;
        }
    }

    fn take_chunks(&mut self, now: Steady) {
        // What is taken must go back to where it came from, to be freed there.
        while !self.outcomes.is_full() {
            let Ok(mut proposal) = self.chunks.pop() else { return };
            self.chunks_taken += 1;
            let result = self.scheduler.take(&mut proposal, now);
            let outcome = Outcome { chunk: proposal.id, at: now, result, _spent: proposal };
            let _ = self.outcomes.push(outcome); // there is room: nobody else sends
        }
    }

    fn take_requests(&mut self) {
        while let Ok(request) = self.requests.pop() {
            self.requests_taken += 1;
            let scheduler = &mut self.scheduler;
            if self.leaving {
                // Its end is all that is left to it; what must outlast that does.
                if let Request::Stop(_) | Request::Fault(_) = request {
                    self.latch = stronger(self.latch, Some(request));
                }
                continue;
            }
            match request {
                Request::Pause => scheduler.pause(),
                Request::Resume => scheduler.resume(),
                Request::Stop(why) => scheduler.stop(why),
                Request::Reset => scheduler.reset(),
                Request::Brake(why) => scheduler.brake(why),
                Request::Fault(why) => scheduler.fault(why),
                Request::BeginAnew(why) => scheduler.begin_anew(why),
                Request::Splice(splice, guards) => {
                    scheduler.set_splice(splice);
                    scheduler.set_guards(guards);
                }
                Request::Deactivate => {
                    self.latch = latch(scheduler);
                    scheduler.stop(Reason::new("deactivated"));
                    self.leaving = true;
                }
            }
        }
    }

    /// Tells the status. False if nothing is left to do.
    fn finish(&mut self) -> bool {
        let ends = self.leaving && self.scheduler.is_silent();
        if ends {
            if self.scheduler.state() == State::Fault {
                self.latch = stronger(self.latch, latch(&self.scheduler));
            }
            self.scheduler.disarm();
        }
        let status = Status {
            tick: self.last_tick,
            timing: self.timing,
            requests_taken: self.requests_taken,
            chunks_taken: self.chunks_taken,
            latch: self.latch,
            ..Status::of(&self.scheduler)
        };
        self.status.write(status);
        let state = |status: &Status| (status.state, status.reason);
        let changed = state(&status) != state(&self.told);
        if changed || status.requests_taken != self.told.requests_taken {
            self.shared.changed.ring();
        }
        self.told = status;
        if let (Some(recorder), Some(at)) = (&self.recorder, self.last_tick)
            && (changed || self.timing.ticks == 1)
        {
            recorder.change(at, status.state, status.epoch, &status.reason);
        }
        !ends
    }
}

/// The pause, stop or fault that it is in: only a person's word ends it.
fn latch(scheduler: &Scheduler) -> Option<Request> {
    match scheduler.state() {
        State::Paused => Some(Request::Pause),
        State::Stopped => Some(Request::Stop(*scheduler.reason())),
        State::Fault => Some(Request::Fault(*scheduler.reason())),
        _ => None,
    }
}

/// Which of two latches holds: a fault rather than a stop, a stop rather than a pause; of equals the first.
pub fn stronger(one: Option<Request>, other: Option<Request>) -> Option<Request> {
    let strength = |latch: &Option<Request>| match latch {
        Some(Request::Fault(_)) => 3,
        Some(Request::Stop(_)) => 2,
        Some(_) => 1,
        None => 0,
    };
    if strength(&other) > strength(&one) { other } else { one }
}

fn recorded<'a>(command: &Command<'a>) -> TickCommand<'a> {
    let Command { values, chunk, resting, limited } = *command;
    TickCommand { values, chunk, resting, limited }
}
