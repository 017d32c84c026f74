//! The arm's motion: the reference that is followed, and the axes that follow it.
//!
//! Promises: each command is within the limits of the ones before it, whatever plan begins or ends; where a plan begins
//! the way to it has no jump in speed or acceleration; where it ends, or something brakes, every axis decelerates to
//! rest. One tick moves for one period. Called by the scheduler, which decides what may be followed. It knows no states
//! and no reasons.

use crate::clock::Steady;

use super::admission::Rejected;
use super::axis::{Axis, Closing};
use super::counters::Counters;
use super::limits::{ControlMode, JointLimits, between};
use super::plan::{Plan, seconds};
use super::reference::Reference;
use super::samples::Samples;
use super::splice::{Execution, Offset, Sample, Splice};

/// The reference, the axes, and how far the motion has come.
#[derive(Clone, Debug)]
pub(super) struct Motion {
    limits: JointLimits,
    measured_index: Vec<Option<usize>>,
    /// There are measured positions at all, be it of other joints.
    measures: bool,
    period_ns: i64,
    splice: Splice,
    phase: Phase,
    reference: Reference,
    axes: Vec<Axis>,
    /// The last command, and the tick that gave it.
    command: Vec<f64>,
    commanded_at: Steady,
    /// There was a command at all.
    commanded: bool,
    /// The last command is where it rests.
    at_rest: bool,
    silent_at_rest: bool,
    too_far: bool,
    /// Ticks within which a plan takes over, unless the limits need more; 0: at once.
    blend_ticks: f64,
    /// How often the way ahead changed.
    revision: u64,
    /// `[joints]`: what the axes do, while what is followed changes.
    before: Samples<3>,
    /// `[joints]`: what the plans do, after it has changed.
    after: Samples<3>,
    /// `[joints]`: what is looked at.
    found: Samples<2>,
}

/// How far the motion has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No plan, no command.
    Silent,
    /// A plan, but no command yet: a measured position is missing.
    Ready(Source),
    /// Commands follow the reference.
    Following(Source),
    /// Commands decelerate, or rest: the plan has ended, or something braked.
    Resting(Source),
}

/// The chunk that a plan came from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Source {
    id: u64,
    observed: Steady,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// The chunk whose plan is followed, or was before it braked.
    pub chunk: u64,
    /// The plan's last step is reached or passed, or it brakes.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

impl Motion {
    pub fn new(
        limits: JointLimits,
        measured_index: Vec<Option<usize>>,
        measures: bool,
        period_ns: i64,
        splice: Splice,
    ) -> Self {
        let joints = limits.as_slice().len();
        let axes = limits.as_slice().iter().map(|limit| Axis::new(limit, seconds(period_ns))).collect();
        Self {
            limits,
            measured_index,
            measures,
            period_ns,
            splice,
            phase: Phase::Silent,
            reference: Reference::new(joints),
            axes,
            command: vec![0.0; joints],
            commanded_at: Steady(0),
            commanded: false,
            at_rest: false,
            silent_at_rest: false,
            too_far: false,
            blend_ticks: 0.0,
            revision: 0,
            before: Samples::new(joints),
            after: Samples::new(joints),
            found: Samples::new(joints),
        }
    }

    /// From the next chunk on.
    pub fn set_splice(&mut self, splice: Splice) {
        self.splice = splice;
    }

    /// How chunks follow each other.
    pub fn splice(&self) -> &Splice {
        &self.splice
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
        matches!(self.phase, Phase::Following(_) | Phase::Resting(_))
    }

    /// Commands follow a plan that has not ended.
    pub fn is_following(&self) -> bool {
        matches!(self.phase, Phase::Following(_))
    }

    /// The last command is where it rests.
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
            Phase::Ready(of) | Phase::Following(of) | Phase::Resting(of) => Some((of.id, of.observed)),
        }
    }

    /// Whether there are measured positions, a finite one for each joint that has one. Of a robot that measures none:
    /// always.
    pub fn can_locate(&self, measured: Option<&[f64]>) -> bool {
        let Some(measured) = measured else { return !self.measures };
        self.measured_index.iter().flatten().all(|&index| measured.get(index).is_some_and(|v| v.is_finite()))
    }

    /// Refuses a chunk whose first step is further than `most` from where a joint was measured.
    pub fn check_first(
        &self,
        id: u64,
        first: &[f64],
        measured: &[Option<f64>],
        most: f64,
    ) -> Result<(), Rejected> {
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let (Some(&found), Some(&Some(measured))) = (first.get(joint), measured.get(joint)) else {
                continue;
            };
            if limit.mode == ControlMode::Position && (found - measured).abs() > most {
                return Err(Rejected::TooFar { id, joint, most, measured, found });
            }
        }
        Ok(())
    }

    /// Each joint's measured position, where it has one; as they were if there are none.
    pub fn locate(&self, measured: Option<&[f64]>, into: &mut [Option<f64>]) {
        let Some(measured) = measured else { return };
        for (joint, index) in into.iter_mut().zip(&self.measured_index) {
            *joint = index.and_then(|index| measured.get(index).copied());
        }
    }

    /// The chunk that waited to start began too far from the measured position, and was let go at the last tick.
    pub fn was_too_far(&self) -> bool {
        self.too_far
    }

    /// A chunk's plan is followed from now on. What it swaps it for is of no use any more.
    pub fn take(&mut self, id: u64, observed: Steady, plan: &mut Plan, now: Steady) {
        let source = Source { id, observed };
        if self.splice.execution == Execution::OpenLoop {
            let steps = self.splice.open_loop_steps;
            plan.begin(now, if steps > 0 { steps } else { plan.steps() }, self.splice.blend_steps + 1);
        }
        self.blend_ticks = self.splice.blend_steps as f64 * plan.period_ns() as f64 / self.period_ns as f64;
        if self.is_following() {
            self.turn_to(plan, observed, now);
        } else if self.is_sending() {
            self.change(now, |reference| reference.take(plan, observed));
        } else {
            self.reference.take(plan, observed);
        }
        self.phase = if self.is_sending() { Phase::Following(source) } else { Phase::Ready(source) };
        (self.at_rest, self.silent_at_rest) = (false, false);
        self.revision += 1;
    }

    /// From the next tick on: to rest. What rests or comes to rest already goes on doing so.
    pub fn brake(&mut self) {
        match self.phase {
            Phase::Ready(_) => self.phase = Phase::Silent,
            Phase::Following(source) => {
                self.phase = Phase::Resting(source);
                self.revision += 1;
            }
            Phase::Silent | Phase::Resting(_) => {}
        }
    }

    /// Whether there are no more commands once at rest, or the last one is held.
    pub fn be_silent_at_rest(&mut self, silent: bool) {
        self.silent_at_rest = silent;
        if silent && self.at_rest {
            self.phase = Phase::Silent;
        }
    }

    /// The next command, if there is one: a period's movement after the one before it.
    /// A chunk that begins further than `first_step_max` from where the robot is, is let go.
    pub fn step(
        &mut self,
        now: Steady,
        measured: Option<&[f64]>,
        first_step_max: f64,
        counters: &mut Counters,
    ) -> Option<Moved> {
        self.too_far = false;
        if let Phase::Ready(source) = self.phase
            && self.can_locate(measured)
        {
            self.start(source, now, measured, first_step_max, counters);
        }
        if let Phase::Following(source) = self.phase {
            self.reference.forget(now);
            if self.blend_ticks > 0.0 {
                let soon = now.0.saturating_add(((self.blend_ticks + 1.0) * self.period_ns as f64) as i64); // saturates
                let blend = self.blend_ticks * seconds(self.period_ns);
                self.reference.retire(self.known_at(now), Steady(soon), blend);
            }
            if now >= self.reference.end() {
                self.phase = Phase::Resting(source);
            } else if !self.reference.is_whole(now) {
                self.change(now, |reference| reference.expire(now));
            }
        }
        let (chunk, _) = self.source().filter(|_| self.is_sending())?;
        let resting = matches!(self.phase, Phase::Resting(_));
        let limited = if resting { self.brake_axes(counters) } else { self.follow(now, counters) };
        self.commanded_at = now;
        self.commanded = true;
        self.at_rest = resting && self.axes.iter().all(Axis::is_at_rest);
        if self.at_rest && self.silent_at_rest {
            self.phase = Phase::Silent; // after this command
        }
        Some(Moved { chunk, resting, limited })
    }

    /// The last command once more: a tick that came too early.
    pub fn stay(&self) -> Option<Moved> {
        let (chunk, _) = self.source().filter(|_| self.is_sending())?;
        Some(Moved { chunk, resting: matches!(self.phase, Phase::Resting(_)), limited: false })
    }

    /// Where and about when it would rest, if it braked at `now`.
    pub fn rest(&self, now: Steady) -> (Steady, Vec<f64>) {
        let ticks = self.axes.iter().map(|axis| axis.rest().1).fold(0.0, f64::max);
        let end = Steady(now.0.saturating_add((ticks.ceil() * self.period_ns as f64) as i64)); // saturates
        (end, self.axes.iter().map(|axis| axis.rest().0).collect())
    }

    /// Sets out from the measured positions; on a plan that has ended by now, not at all.
    fn start(
        &mut self,
        source: Source,
        now: Steady,
        measured: Option<&[f64]>,
        first_step_max: f64,
        counters: &mut Counters,
    ) {
        if now >= self.reference.end() {
            counters.chunks_late += 1;
            self.phase = Phase::Silent;
            return;
        }
        self.reference.look_at_plans(now, &mut self.found);
        for (joint, (limit, plan)) in self.limits.as_slice().iter().zip(self.found.iter()).enumerate() {
            let measured = self.measured_index[joint].and_then(|index| measured?.get(index).copied());
            self.too_far |= limit.mode == ControlMode::Position
                && measured.is_some_and(|measured| (plan.value - measured).abs() > first_step_max);
            self.axes[joint].place(match (limit.mode, measured) {
                (ControlMode::Velocity, _) => 0.0,
                (ControlMode::Position, Some(measured)) => measured,
                // Not measured: where it was last sent, else where the plan is.
                (ControlMode::Position, None) if self.commanded => self.command[joint],
                (ControlMode::Position, None) => between(plan.value, limit.position_min, limit.position_max),
            });
        }
        if self.too_far {
            counters.chunks_too_far += 1;
            self.phase = Phase::Silent;
            return;
        }
        self.commanded_at = Steady(now.0.saturating_sub(self.period_ns));
        self.change(now, |_| ());
        self.phase = Phase::Following(source);
    }

    /// Goes over to one more plan: without a jump, within the time of a blend or what the limits need; or at once.
    fn turn_to(&mut self, plan: &mut Plan, observed: Steady, now: Steady) {
        if !self.reference.has_room() {
            self.change(now, |reference| reference.expire(now));
        }
        let (period, at, axes, blend_ticks) =
            (seconds(self.period_ns), self.known_at(now), &self.axes, self.blend_ticks);
        let duration = |gaps: &Samples<2>| {
            let joints =
                axes.iter().zip(gaps.iter()).map(|(axis, gap)| axis.closing(gap.value, gap.rate * period));
            if blend_ticks > 0.0 {
                period * joints.fold(Closing::new(blend_ticks), Closing::max).ticks()
            } else {
                0.0
            }
        };
        self.reference.turn_to(plan, observed, &self.splice, at, &mut self.found, duration);
    }

    /// Lets the reference become another, and leads the axes from what they do to what it says.
    fn change(&mut self, now: Steady, change: impl FnOnce(&mut Reference)) {
        let (at, period) = (self.known_at(now), seconds(self.period_ns));
        self.reference.look(at, &mut self.before);
        change(&mut self.reference);
        self.reference.look_at_plans(at, &mut self.after);
        let (commanded_at, blend_ticks) = (self.commanded_at, self.blend_ticks);
        let joints = self.axes.iter().zip(self.before.iter().zip(self.after.iter()));
        let offsets = joints.map(|(axis, (before, plans))| {
            let does = if axis.follows() && at == commanded_at {
                Sample { value: axis.value(), ..before }
            } else {
                let (rate, acceleration) = (axis.rate() / period, axis.acceleration() / (period * period));
                Sample { value: axis.value(), rate, acceleration }
            };
            let gap = does.minus(plans);
            let needed = axis.closing(gap.value, gap.rate * period).max(Closing::new(blend_ticks));
            let ticks = if blend_ticks > 0.0 { needed.ticks() } else { 0.0 };
            Offset::new(gap, ticks * period)
        });
        self.reference.join(at, offsets);
    }

    /// The last time at which it is known what the axes did: at the last command, or a period ago if ticks were missed.
    fn known_at(&self, now: Steady) -> Steady {
        self.commanded_at.max(Steady(now.0.saturating_sub(self.period_ns)))
    }

    /// One tick of every axis after the reference. Whether limits changed anything.
    fn follow(&mut self, now: Steady, counters: &mut Counters) -> bool {
        self.reference.look(now, &mut self.found);
        let period = seconds(self.period_ns);
        let mut any = false;
        for ((axis, command), desired) in self.axes.iter_mut().zip(&mut self.command).zip(self.found.iter()) {
            let limited = axis.follow(desired.value, desired.rate * period);
            counters.count_limits(&limited);
            any |= limited.any();
            *command = axis.value();
        }
        any
    }

    /// One tick of every axis to its rest.
    fn brake_axes(&mut self, counters: &mut Counters) -> bool {
        let mut any = false;
        for (axis, command) in self.axes.iter_mut().zip(&mut self.command) {
            let limited = axis.brake();
            counters.count_limits(&limited);
            any |= limited.any();
            *command = axis.value();
        }
        any
    }
}
