//! Which plan is followed, and the tick that turns it into commands.
//!
//! Promises: no command before there are a chunk and a measured position to start from; from then on one command per
//! tick, each within the limits of the ones before it. A new chunk takes over from now on: its elapsed steps are dropped
//! by time, never replayed (but `open_loop`, which begins a chunk as it comes), and the commands go over to it without a
//! jump in speed. If none comes, the commands brake and rest. They brake at once, too, when somebody asks for it or when
//! the measured positions are stale; what was begun before that is never followed. [`State::after`] has the whole table.
//! Called by `replay` and by the control thread, which pass the time in.

use crate::clock::{NS_PER_S, Steady};

use super::admission::{Accepted, Gate, Rejected, Wants};
use super::counters::Counters;
use super::limits::JointLimits;
use super::motion::{Motion, Moved};
use super::plan::{Chunk, Malformed, Proposal, Shape};
use super::preview::Preview;
use super::reason::Reason;
use super::splice::Splice;
use super::state::{Event, State};

/// Most steps that a chunk may have: what a plan allocates is bounded by it.
pub const STEPS_MAX: usize = 10_000;

/// So many chunks in a row with NaN or infinity are a fault: the model or what feeds it is broken.
pub const NOT_FINITE_MAX: u32 = 3;

const NO_CHUNK_YET: &str = "no chunk yet";
const EXHAUSTED: &str = "the chunk has ended and no newer one came";
const TOO_LATE: &str = "chunks come too late: an inference takes longer than a chunk lasts";
const JOINTS_STALE: &str = "joint states are stale";
const JOINTS_GONE: &str = "joint states were stale for longer than joints.fault_after_ms";
const NOT_FINITE: &str = "three chunks in a row had NaN or infinity";
const TOO_FAR: &str = "the chunk begins too far from the measured position";
const NO_START: &str = "no fresh joint states to start from";

/// What a scheduler needs to know of the robot and the policy.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Ticks per second.
    pub rate_hz: f64,
    /// How chunks follow each other.
    pub splice: Splice,
    /// What is not believed.
    pub guards: Guards,
    /// Steps of the longest chunk.
    pub max_steps: usize,
    /// One per command value.
    pub limits: JointLimits,
    /// For each command value, its index in the measured positions, if it is measured.
    pub measured_index: Vec<Option<usize>>,
    /// Number of measured positions; 0: the robot measures none, and none are missed. What is measured may all be of other
    /// joints than are commanded; that it is there is needed all the same.
    pub measured: usize,
}

/// What is not believed: bounds on what comes in, beside those on what goes out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guards {
    /// A chunk whose first step is further than this (rad or m) from a measured position is refused; infinite: none is.
    pub first_step_max: f64,
    /// Joint states that are stale for so long are a fault.
    pub joints_fault_after_ns: i64,
}

impl Default for Guards {
    /// None.
    fn default() -> Self {
        Self { first_step_max: f64::INFINITY, joints_fault_after_ns: i64::MAX }
    }
}

/// Why a scheduler cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// A rate that no control loop has.
    #[error("control: expected a rate above 0 and up to 1000 Hz, found {0}; correct control.rate_hz")]
    Rate(f64),
    /// No room for a chunk, or too much.
    #[error("control: expected chunks of 1 to {STEPS_MAX} steps, found {0}; check the policy's horizon")]
    Steps(usize),
    /// `measured_index` of another length than `limits`.
    #[error(
        "control: expected a measured index for each of {expected} joints, found {found}; give one per joint"
    )]
    Joints {
        /// Number of limits.
        expected: usize,
        /// Number of indices.
        found: usize,
    },
}

/// One tick's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Command<'a> {
    /// One per joint, in the order of the limits: finite and within limits.
    pub values: &'a [f64],
    /// The chunk whose plan is followed, or was before it braked.
    pub chunk: u64,
    /// The plan's last step is reached or passed, or something made it brake: braking or holding.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

/// Control: a [`State`], the motion, and what is counted. It is armed from the beginning.
#[derive(Clone, Debug)]
pub struct Scheduler {
    motion: Motion,
    period_ns: i64,
    max_steps: usize,
    last_tick: Option<Steady>,
    /// Of the last tick that did not end at rest.
    moved_at: Steady,
    state: State,
    reason: Reason,
    epoch: u64,
    /// At the last tick. False before the first: positions that never came are not stale.
    joints_fresh: bool,
    /// When they went stale, while commands are sent.
    joints_stale_since: Option<Steady>,
    /// At the last tick that had them, one per joint that is measured.
    measured: Vec<Option<f64>>,
    /// Chunks in a row with NaN or infinity.
    not_finite: u32,
    guards: Guards,
    counters: Counters,
}

impl Scheduler {
    /// Allocates everything that it will ever need.
    pub fn new(config: ControlConfig) -> Result<Self, ControlError> {
        let ControlConfig { rate_hz, splice, guards, max_steps, limits, measured_index, measured } = config;
        let joints = limits.as_slice().len();
        if !(rate_hz > 0.0 && rate_hz <= 1000.0) {
            return Err(ControlError::Rate(rate_hz));
        }
        if !(1..=STEPS_MAX).contains(&max_steps) {
            return Err(ControlError::Steps(max_steps));
        }
        if measured_index.len() != joints {
            return Err(ControlError::Joints { expected: joints, found: measured_index.len() });
        }
        let period_ns = (NS_PER_S as f64 / rate_hz).round() as i64;
        Ok(Self {
            motion: Motion::new(limits, measured_index, measured > 0, period_ns, splice),
            period_ns,
            max_steps,
            last_tick: None,
            moved_at: Steady(i64::MIN),
            state: State::Idle.after(Event::Arm),
            reason: Reason::new(NO_CHUNK_YET),
            epoch: 0,
            joints_fresh: false,
            joints_stale_since: None,
            measured: vec![None; joints],
            not_finite: 0,
            guards,
            counters: Counters::default(),
        })
    }

    /// Nanoseconds between two ticks.
    pub fn period_ns(&self) -> i64 {
        self.period_ns
    }

    /// Number of values of a command.
    pub fn joints(&self) -> usize {
        self.motion.command().len()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        self.state
    }

    /// Why it rests or waits; empty while it runs.
    pub fn reason(&self) -> &Reason {
        &self.reason
    }

    /// How often the motion was interrupted. An inference notes it as it begins ([`Chunk::epoch`]).
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// There is no command to send, and none will come without a new chunk.
    pub fn is_silent(&self) -> bool {
        self.motion.is_silent()
    }

    /// The last command is where it rests, or there is none; only a new chunk changes that.
    pub fn is_at_rest(&self) -> bool {
        self.motion.is_silent() || self.motion.is_at_rest()
    }

    /// Whether an inference may begin now. Executing open loop, none does before the chunk is executed and the arm rests.
    pub fn wants(&self) -> Wants {
        self.gate().wants()
    }

    /// What a chunk must be like.
    pub fn shape(&self) -> Shape {
        Shape { joints: self.joints(), max_steps: self.max_steps }
    }

    /// [`Scheduler::take`] for who does not tick by a clock.
    pub fn accept(&mut self, chunk: &Chunk, now: Steady) -> Result<Accepted, Rejected> {
        self.take(&mut Proposal::new(chunk, self.shape()), now)
    }

    /// Takes a new chunk over from `now` on, or refuses it and goes on as before. Allocates and frees nothing: what was
    /// taken is swapped for what it replaced.
    pub fn take(&mut self, proposal: &mut Proposal, now: Steady) -> Result<Accepted, Rejected> {
        let outcome = self.admit(proposal, now);
        match &outcome {
            Ok(_) => {
                self.counters.chunks_accepted += 1;
                self.not_finite = 0;
            }
            Err(rejected) => {
                self.counters.count_rejected(rejected);
                let waits = [NO_CHUNK_YET, EXHAUSTED, TOO_LATE, TOO_FAR].contains(&self.reason.as_str());
                match rejected {
                    Rejected::Late { .. } if waits => self.reason = Reason::new(TOO_LATE),
                    Rejected::TooFar { .. } if waits => self.reason = Reason::new(TOO_FAR),
                    _ => {}
                }
                if matches!(rejected, Rejected::Malformed(Malformed::NotFinite { .. })) {
                    self.not_finite += 1;
                    if self.not_finite >= NOT_FINITE_MAX {
                        self.not_finite = 0;
                        self.fault(Reason::new(NOT_FINITE));
                    }
                }
            }
        }
        outcome
    }

    /// One control tick.
    ///
    /// `measured` are the robot's positions in the order of the configured state; `None` if they are stale. They are
    /// needed to start: the first command is at most one tick's movement away from them. A position that is not measured
    /// starts where it was last sent, or where the plan is; velocities start at 0. Once they were there, their absence
    /// is a brake, and after a while a fault.
    ///
    /// A tick moves for one period, whenever it comes. Ticks that should have come before it count as skipped: then the
    /// plan has gone on, and the command follows within the limits; what an overrun missed is not caught up with a jump.
    /// One that comes less than half a period after the last one gives the last command again.
    pub fn tick(&mut self, now: Steady, measured: Option<&[f64]>) -> Option<Command<'_>> {
        self.tick_with_state(now, measured).map(|(command, _)| command)
    }

    /// [`Scheduler::tick`], and the state after it.
    pub fn tick_with_state(&mut self, now: Steady, measured: Option<&[f64]>) -> Option<(Command<'_>, State)> {
        self.watch_joints(measured, now);
        let moved = self.advance(now, measured)?;
        Some(self.told(moved))
    }

    /// The same for an arm that plays what [`Scheduler::preview`] showed, and has gone on where ticks before this one
    /// were skipped: so does the motion. The command is a point of the way that was shown; where joint states are stale
    /// from this tick on, the brake begins after it.
    pub fn tick_as_shown(&mut self, now: Steady, measured: Option<&[f64]>) -> Option<(Command<'_>, State)> {
        self.catch_up(now);
        let moved = self.advance(now, measured);
        self.watch_joints(measured, now);
        Some(self.told(moved?))
    }

    fn told(&self, moved: Moved) -> (Command<'_>, State) {
        let Moved { chunk, resting, limited, .. } = moved;
        (Command { values: self.motion.command(), chunk, resting, limited }, self.state)
    }

    fn advance(&mut self, now: Steady, measured: Option<&[f64]>) -> Option<Moved> {
        let is_due = self.is_due(now);
        self.counters.ticks += 1;
        let moved = match is_due {
            true => self.motion.step(now, measured, self.guards.first_step_max, &mut self.counters),
            false => self.motion.stay(),
        };
        let Some(moved) = moved else {
            self.counters.idle_ticks += 1;
            self.settle();
            if self.state == State::Armed && !self.motion.is_silent() {
                self.reason = Reason::new(NO_START);
            } else if self.motion.was_too_far() {
                self.reason = Reason::new(TOO_FAR);
            }
            return None;
        };
        if !moved.resting {
            self.happened(Event::Follow, Reason::NONE);
        } else if self.state == State::Running {
            self.happened(Event::Exhausted, Reason::new(EXHAUSTED));
        }
        if !self.motion.is_at_rest() {
            self.moved_at = now;
        }
        self.settle();
        Some(moved)
    }

    fn catch_up(&mut self, now: Steady) {
        let Some(last) = self.last_tick.filter(|_| self.motion.is_sending()) else { return };
        let mut at = last.0.saturating_add(self.period_ns);
        while at < now.0 && !self.motion.is_at_rest() {
            let _ = self.motion.step(Steady(at), None, f64::INFINITY, &mut self.counters);
            at = at.saturating_add(self.period_ns);
        }
    }

    /// From the next tick on: decelerates within limits to rest, and holds. Plan and fade are dropped; a chunk that was
    /// begun before is not followed any more, one begun after takes over.
    pub fn brake(&mut self, why: Reason) {
        self.interrupt(Event::Brake, why);
    }

    /// Brakes, and lets go of where it sent the arm: the next chunk that is begun from now on sets out from the measured
    /// positions. For an arm that may not have done what it was sent.
    pub fn begin_anew(&mut self, why: Reason) {
        self.interrupt(Event::Brake, why);
        self.motion.be_silent_at_rest(true);
        self.settle();
    }

    /// Brakes and holds; takes no chunk until [`Scheduler::resume`].
    pub fn pause(&mut self) {
        self.interrupt(Event::Pause, Reason::new("paused"));
    }

    /// Ends a pause. The next chunk that is begun from now on takes over.
    pub fn resume(&mut self) {
        self.happened(Event::Resume, Reason::new("resumed; no chunk yet"));
        self.settle();
    }

    /// Brakes, then is silent; takes no chunk until [`Scheduler::reset`].
    pub fn stop(&mut self, why: Reason) {
        self.interrupt(Event::Stop, why);
        self.motion.be_silent_at_rest(true);
    }

    /// Brakes and holds; takes no chunk until [`Scheduler::reset`].
    pub fn fault(&mut self, why: Reason) {
        self.interrupt(Event::Fault, why);
    }

    /// Ends a stop or a fault. The next chunk that is begun from now on takes over. Joint states that are stale count as
    /// stale from now on, whatever the state.
    pub fn reset(&mut self) {
        let before = self.state;
        self.joints_stale_since = None;
        self.happened(Event::Reset, Reason::new("reset; no chunk yet"));
        if self.state != before {
            self.motion.be_silent_at_rest(false);
        }
        self.settle();
    }

    /// Control ends: whoever asks finds it idle. To be called once it is at rest.
    pub fn disarm(&mut self) {
        self.interrupt(Event::Disarm, Reason::NONE);
    }

    /// From the next chunk on, chunks follow each other so.
    pub fn set_splice(&mut self, splice: Splice) {
        self.motion.set_splice(splice);
    }

    /// What is not believed from now on.
    pub fn set_guards(&mut self, guards: Guards) {
        self.guards = guards;
    }

    /// The way from the last tick to rest, if each tick gives a command.
    pub fn preview(&self) -> Option<Preview> {
        let at = self.last_tick.filter(|_| self.motion.is_sending())?;
        Some(Preview::new(self.motion.clone(), at, self.period_ns))
    }

    /// Changes whenever [`Scheduler::preview`] shows another way than the one before it went on to: a chunk took over,
    /// or a brake began.
    pub fn revision(&self) -> u64 {
        self.motion.revision()
    }

    fn gate(&self) -> Gate {
        Gate {
            state: self.state,
            at_rest: self.is_at_rest(),
            moved_at: self.moved_at,
            epoch: self.epoch,
            joints_fresh: self.joints_fresh,
            running: self.motion.source(),
            execution: self.motion.splice().execution,
        }
    }

    fn admit(&mut self, proposal: &mut Proposal, now: Steady) -> Result<Accepted, Rejected> {
        let Proposal { id, epoch, observed, ref mut plan } = *proposal;
        let plan = plan.as_mut().map_err(|malformed| malformed.clone())?;
        let accepted = self.gate().admit(id, epoch, observed, plan, now)?;
        if accepted.dropped_steps < plan.steps() {
            let first = plan.row(accepted.dropped_steps);
            self.motion.check_first(id, first, &self.measured, self.guards.first_step_max)?;
        }
        self.motion.take(id, observed, plan, now);
        Ok(accepted)
    }

    /// Brakes when measured positions that were there are there no longer, and gives up when they stay away. A chunk that
    /// waits to start goes on waiting.
    fn watch_joints(&mut self, measured: Option<&[f64]>, now: Steady) {
        let fresh = self.motion.can_locate(measured);
        self.motion.locate(measured.filter(|_| fresh), &mut self.measured);
        if self.joints_fresh && !fresh && self.motion.is_sending() {
            self.counters.joints_stale += 1;
            self.interrupt(Event::Brake, Reason::new(JOINTS_STALE));
        }
        self.joints_fresh = fresh;
        if fresh || !self.motion.is_sending() {
            self.joints_stale_since = None;
            return;
        }
        let since = *self.joints_stale_since.get_or_insert(now);
        if now.0.saturating_sub(since.0) > self.guards.joints_fault_after_ns && !self.state.is_latched() {
            self.fault(Reason::new(JOINTS_GONE));
        }
    }

    /// Brakes, for whatever reason. What was begun before it is of an older epoch from now on.
    fn interrupt(&mut self, event: Event, why: Reason) {
        if self.state == State::Idle {
            return;
        }
        self.epoch += 1;
        self.counters.interruptions += 1;
        self.motion.brake();
        let before = self.state;
        self.happened(event, why);
        if self.state == before && !before.is_latched() {
            self.reason = why; // it braked or held already: the newest cause is the one to look at
        }
        self.settle();
    }

    /// After a change: whether it rests or is silent.
    fn settle(&mut self) {
        let event = match (self.motion.is_silent(), self.motion.is_at_rest()) {
            (true, _) => Event::Silence,
            (false, true) => Event::Rest,
            (false, false) => return,
        };
        self.state = self.state.after(event); // the reason stays
    }

    /// One step of the state machine; a reason goes with a change.
    fn happened(&mut self, event: Event, why: Reason) {
        let after = self.state.after(event);
        if after != self.state {
            (self.state, self.reason) = (after, why);
        }
    }

    /// Whether a period has passed since the last tick that was due, more or less. Counts the skipped.
    fn is_due(&mut self, now: Steady) -> bool {
        let Some(last) = self.last_tick else {
            self.last_tick = Some(now);
            return true;
        };
        let elapsed = now.0.saturating_sub(last.0).max(0);
        let periods = elapsed.saturating_add(self.period_ns / 2) / self.period_ns;
        if periods == 0 {
            return false;
        }
        self.last_tick = Some(now);
        self.counters.skipped_ticks += periods.unsigned_abs() - 1;
        true
    }
}
