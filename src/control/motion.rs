//! The arm's motion: the plan that is followed, the one that is left, and the last command.
//!
//! Promises: each command is within the limits of the one before it, whatever plan begins or ends; a brake decelerates
//! from the present command and its rate to rest, and forgets plan and fade. Called by the scheduler, which decides
//! what may be followed. It knows no states and no reasons.

use crate::clock::Steady;

use super::brake::Brake;
use super::counters::Counters;
use super::limits::{ControlMode, JointLimits, between};
use super::plan::{Chunk, Malformed, Plan, seconds};

/// At most one running plan, at most one that is being left, and the last command.
#[derive(Clone, Debug)]
pub(super) struct Motion {
    limits: JointLimits,
    measured_index: Vec<Option<usize>>,
    blend_steps: i64,
    phase: Phase,
    running: Plan,
    leaving: Plan,
    /// Added to `leaving`, so that the fade begins where the commands were going.
    offset: Vec<f64>,
    fade: Fade,
    /// The last command, and its change per second.
    command: Vec<f64>,
    rate: Vec<f64>,
    /// There was a command at all.
    commanded: bool,
    /// The last command is where the plan rests.
    at_rest: bool,
    silent_at_rest: bool,
    /// How often the way ahead changed.
    revision: u64,
    /// What the plans want before limits; and room for the second of two plans.
    desired: Vec<f64>,
    arriving: Vec<f64>,
}

/// How far the motion has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No plan, no command.
    Silent,
    /// A plan, but no command yet: a measured position is missing.
    Ready(Source),
    /// Commands follow the running plan.
    Following(Source),
    /// Commands followed the running plan and brake from the next tick on.
    BrakeDue(Source),
    /// A tail that is fixed: of the running plan, or of a brake.
    Resting(Source),
}

/// The chunk that a plan came from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Source {
    id: u64,
    observed: Steady,
}

/// When commands go over from the plan that is left to the running one.
#[derive(Clone, Copy, Debug)]
struct Fade {
    from: Steady,
    duration_ns: i64,
}

impl Fade {
    const DONE: Self = Self { from: Steady(i64::MIN), duration_ns: 0 };

    /// Share of the running plan, 0 to 1.
    fn share(&self, now: Steady) -> f64 {
        let elapsed = now.0.saturating_sub(self.from.0);
        if elapsed >= self.duration_ns { 1.0 } else { elapsed.max(0) as f64 / self.duration_ns as f64 }
    }
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The chunk whose plan is followed, or was before it braked.
    pub chunk: u64,
    /// The plan's last step is reached or passed, or it brakes.
    pub resting: bool,
    /// The command is where the plan rests.
    pub at_rest: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

impl Motion {
    pub fn new(
        limits: JointLimits,
        measured_index: Vec<Option<usize>>,
        blend_steps: usize,
        max_steps: usize,
    ) -> Self {
        let joints = limits.as_slice().len();
        let mut motion = Self {
            limits,
            measured_index,
            blend_steps: 0,
            phase: Phase::Silent,
            running: Plan::new(joints, max_steps),
            leaving: Plan::new(joints, max_steps),
            offset: vec![0.0; joints],
            fade: Fade::DONE,
            command: vec![0.0; joints],
            rate: vec![0.0; joints],
            commanded: false,
            at_rest: false,
            silent_at_rest: false,
            revision: 0,
            desired: vec![0.0; joints],
            arriving: vec![0.0; joints],
        };
        motion.set_blend_steps(blend_steps);
        motion
    }

    /// From the next chunk on.
    pub fn set_blend_steps(&mut self, steps: usize) {
        self.blend_steps = steps.min(super::scheduler::STEPS_MAX) as i64;
    }

    /// The last command. Zeros before the first.
    pub fn command(&self) -> &[f64] {
        &self.command
    }

    /// There is no plan and no command.
    pub fn is_silent(&self) -> bool {
        self.phase == Phase::Silent
    }

    /// Each tick gives a command.
    pub fn is_sending(&self) -> bool {
        !matches!(self.phase, Phase::Silent | Phase::Ready(_))
    }

    /// The last command is where the plan rests.
    pub fn is_at_rest(&self) -> bool {
        self.at_rest
    }

    /// Changes whenever the way from now to rest becomes another.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Id and observation of the chunk whose plan is followed, or was before it braked.
    pub fn source(&self) -> Option<(u64, Steady)> {
        match self.phase {
            Phase::Silent => None,
            Phase::Ready(of) | Phase::Following(of) | Phase::BrakeDue(of) | Phase::Resting(of) => {
                Some((of.id, of.observed))
            }
        }
    }

    /// Whether there is a finite measured position for each joint that has one. Of a robot that measures none: always.
    pub fn can_locate(&self, measured: Option<&[f64]>) -> bool {
        let position = |index: usize| measured.and_then(|measured| measured.get(index));
        self.measured_index.iter().flatten().all(|&index| position(index).is_some_and(|v| v.is_finite()))
    }

    /// Whether `chunk` can become a plan.
    pub fn check(&self, chunk: &Chunk) -> Result<(), Malformed> {
        self.running.check(chunk)
    }

    /// The old plan becomes the one that is left, the chunk the running one.
    pub fn take(&mut self, chunk: &Chunk, now: Steady) -> Result<(), Malformed> {
        let source = Source { id: chunk.id, observed: chunk.observed };
        let sending = self.is_sending();
        self.fade = if sending && self.blend_steps > 0 {
            self.aim(now);
            self.running.sample(now, &mut self.offset);
            for (offset, desired) in self.offset.iter_mut().zip(&self.desired) {
                *offset = desired - *offset; // 0, but in the middle of a fade
            }
            std::mem::swap(&mut self.running, &mut self.leaving);
            Fade { from: now, duration_ns: self.blend_steps * chunk.period_ns }
        } else {
            Fade::DONE
        };
        self.running.fill(chunk, &self.limits)?;
        self.phase = if sending { Phase::Following(source) } else { Phase::Ready(source) };
        self.at_rest = false;
        self.revision += 1;
        Ok(())
    }

    /// From the next tick on: to rest. What rests or comes to rest already goes on doing so.
    pub fn brake(&mut self) {
        match self.phase {
            Phase::Ready(_) => self.phase = Phase::Silent,
            Phase::Following(source) => {
                self.phase = Phase::BrakeDue(source);
                self.revision += 1;
            }
            Phase::Silent | Phase::BrakeDue(_) | Phase::Resting(_) => {}
        }
    }

    /// Whether there are no more commands once at rest, or the last one is held.
    pub fn be_silent_at_rest(&mut self, silent: bool) {
        self.silent_at_rest = silent;
        if silent && self.at_rest {
            self.phase = Phase::Silent;
        }
    }

    /// The next command, if there is one: `now`, `elapsed_ns` after the one before it, moves for at most `dt_ns`.
    pub fn step(
        &mut self,
        now: Steady,
        elapsed_ns: i64,
        dt_ns: i64,
        measured: Option<&[f64]>,
        counters: &mut Counters,
    ) -> Option<Moved> {
        if let Phase::Ready(source) = self.phase
            && self.can_locate(measured)
        {
            self.start(source, now, measured, counters);
        }
        let (chunk, _) = self.source().filter(|_| self.is_sending())?;
        match self.phase {
            Phase::BrakeDue(source) => {
                self.begin_brake(now, dt_ns);
                self.phase = Phase::Resting(source);
            }
            Phase::Following(source) if now >= self.running.end() => {
                self.begin_rest(now, dt_ns);
                self.phase = Phase::Resting(source);
            }
            // A brake takes its time: what an overrun missed is not caught up with.
            Phase::Resting(_) => self.running.delay_tails(elapsed_ns - dt_ns),
            _ => {}
        }
        self.aim(now);
        let limited = self.move_by_limits(seconds(dt_ns), counters);
        let resting = matches!(self.phase, Phase::Resting(_));
        self.at_rest = resting && !limited && self.running.is_at_rest(now);
        if self.at_rest && self.silent_at_rest {
            self.phase = Phase::Silent; // after this command
        }
        Some(Moved { chunk, resting, at_rest: self.at_rest, limited })
    }

    /// Where and when the running plan rests, if it is not before `now`.
    pub fn rest(&self, now: Steady) -> (Steady, Vec<f64>) {
        let end = self.running.rest_time().max(now);
        let mut values = vec![0.0; self.command.len()];
        self.running.sample(end, &mut values);
        for (value, limit) in values.iter_mut().zip(self.limits.as_slice()) {
            if limit.mode == ControlMode::Position {
                *value = between(*value, limit.position_min, limit.position_max);
            }
        }
        (end, values)
    }

    /// Sets out from the measured positions; on a plan that has ended by now, not at all.
    fn start(&mut self, source: Source, now: Steady, measured: Option<&[f64]>, counters: &mut Counters) {
        if now >= self.running.end() {
            counters.chunks_late += 1;
            self.phase = Phase::Silent;
            return;
        }
        self.running.sample(now, &mut self.desired);
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let measured = self.measured_index[joint].and_then(|index| measured?.get(index).copied());
            self.command[joint] = match (limit.mode, measured) {
                (ControlMode::Velocity, _) => 0.0,
                (ControlMode::Position, Some(measured)) => measured,
                // Not measured: where it was last sent, else where the plan is.
                (ControlMode::Position, None) if self.commanded => self.command[joint],
                (ControlMode::Position, None) => {
                    between(self.desired[joint], limit.position_min, limit.position_max)
                }
            };
            self.rate[joint] = 0.0;
        }
        self.leaving.hold(&self.command, now);
        self.offset.fill(0.0);
        self.fade = Fade { from: now, duration_ns: self.blend_steps * self.running.period_ns() };
        self.phase = Phase::Following(source);
        self.commanded = true;
    }

    /// Every joint brakes from where it is.
    fn begin_brake(&mut self, now: Steady, dt_ns: i64) {
        let from = Steady(now.0.saturating_sub(dt_ns));
        self.running.hold(&self.command, from);
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            self.running.set_tail(joint, from, Brake::new(limit, self.command[joint], self.rate[joint]));
        }
        self.fade = Fade::DONE;
    }

    /// A joint that is not on the plan as it ends, or cannot follow it into its tail, brakes from where it is: held back
    /// by a limit, still fading over, or late.
    fn begin_rest(&mut self, now: Steady, dt_ns: i64) {
        let from = Steady(now.0.saturating_sub(dt_ns));
        self.running.sample(from, &mut self.desired);
        self.running.sample(now, &mut self.arriving);
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let command = self.command[joint];
            let on_plan = command == self.desired[joint];
            if !on_plan || limit.limit(command, self.arriving[joint], seconds(dt_ns)).any() {
                self.running.set_tail(joint, from, Brake::new(limit, command, self.rate[joint]));
            }
        }
        self.fade = Fade::DONE;
    }

    /// What the plans want at `now`, into `desired`.
    fn aim(&mut self, now: Steady) {
        let share = self.fade.share(now);
        if share >= 1.0 {
            self.running.sample(now, &mut self.desired);
            return;
        }
        self.leaving.sample(now, &mut self.desired);
        self.running.sample(now, &mut self.arriving);
        for ((desired, offset), arriving) in self.desired.iter_mut().zip(&self.offset).zip(&self.arriving) {
            *desired += offset;
            *desired += (arriving - *desired) * share;
        }
    }

    /// The next command: as near to `desired` as the limits allow. Whether they changed anything.
    fn move_by_limits(&mut self, dt: f64, counters: &mut Counters) -> bool {
        let mut any = false;
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let previous = self.command[joint];
            let limited = limit.limit(previous, self.desired[joint], dt);
            counters.count_limits(&limited);
            any |= limited.any();
            self.command[joint] = limited.value;
            if dt > 0.0 {
                self.rate[joint] = (limited.value - previous) / dt;
            }
        }
        any
    }
}
