//! One value of the command from tick to tick: where it is, how it moves, and what the next tick may make of it.
//!
//! Promises: whatever is desired, NaN and infinity included, the next value is finite, and speed, acceleration, jerk and
//! position are within the limits; from outside the position limits what is desired leads back, within the other limits,
//! and nothing further out. It never gets where it could not come to rest within the limits. A brake leads nowhere: it
//! ends where the speed has, be that outside. A desired motion that keeps the limits
//! is passed on bit for bit. Called by the motion, once per tick and joint. Knows no time: a tick is a tick.
//!
//! All arithmetic is of ticks, and exact there: `step` is the value's change in a tick (speed), `bend` the step's change
//! (acceleration). A joint that brakes with `bend_max` from a step s makes the steps s - b, s - 2b, … and one rest; that
//! sum is what `Slope` says, and its inverse. Both are as exact as f64. Where the
//! jerk is limited too, no such sum is at hand: there each tick is taken only if a way to rest from behind it is found
//! that keeps every limit (`Stop`); if none is, the next tick of the way that was found before is taken.
//!
//! A library for such trajectories, rsruckig, was looked at: it plans a way to a target state, and knows no position
//! limits; here a moving target is followed tick by tick, within them.

use super::limits::{ControlMode, JointLimit, between};
use super::slope::{Slope, cube_root};
use super::stop::Stop;

/// Rounding is no violation: an acceleration this much above its limit, as a fraction of it, is passed on; and so much of
/// a step is kept of the room to stop in.
const ROUNDING: f64 = 1e-9;
/// Halvings between what is desired and the way to rest, where what is desired has no way to rest of its own.
const HALVINGS: usize = 2;

/// What may be in one tick, in units of the value.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    low: f64,
    high: f64,
    /// Largest change of the value.
    step: f64,
    /// Largest change of the step; infinite where it is not limited.
    bend: Slope,
    /// Half of it: with what a way is closed in on.
    gentle: Slope,
    /// Largest change of the bend; infinite where it is not limited.
    twist: Slope,
}

/// One value of the command.
#[derive(Clone, Debug)]
pub struct Axis {
    mode: ControlMode,
    bounds: Bounds,
    value: f64,
    /// The value's change in the last tick.
    step: f64,
    /// The step's change in the last tick.
    bend: f64,
    /// Where the jerk is limited: a way to rest that keeps every limit.
    stop: Stop,
    follows: bool,
}

/// Which limits changed a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limited {
    /// What was desired was NaN or infinite: it brakes.
    pub not_finite: bool,
    /// A position limit changed it.
    pub position: bool,
    /// The velocity limit changed it.
    pub velocity: bool,
    /// The acceleration limit changed it.
    pub acceleration: bool,
    /// The jerk limit changed it.
    pub jerk: bool,
}

/// A time, in ticks, that is no shorter than any of: itself, a square's root, a cube's. The roots are not taken before the
/// greatest of all joints is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Closing {
    ticks: f64,
    square: f64,
    cube: f64,
}

impl Closing {
    /// So many ticks.
    pub fn new(ticks: f64) -> Self {
        Self { ticks, square: 0.0, cube: 0.0 }
    }

    /// The longer of two.
    pub fn max(self, other: Self) -> Self {
        Self {
            ticks: self.ticks.max(other.ticks),
            square: self.square.max(other.square),
            cube: self.cube.max(other.cube),
        }
    }

    /// In ticks.
    pub fn ticks(self) -> f64 {
        self.ticks.max(self.square.sqrt()).max(cube_root(self.cube))
    }
}

impl Limited {
    /// Any limit changed the value.
    pub fn any(&self) -> bool {
        self.not_finite || self.position || self.velocity || self.acceleration || self.jerk
    }
}

impl Axis {
    /// At rest at 0.
    pub fn new(limit: &JointLimit, period_s: f64) -> Self {
        let JointLimit { mode, position_min, position_max, velocity_max, acceleration_max, jerk_max } =
            *limit;
        let (first, second, third) = (period_s, period_s * period_s, period_s * period_s * period_s);
        let bounds = match mode {
            ControlMode::Position => Bounds {
                low: position_min,
                high: position_max,
                step: velocity_max * first,
                bend: Slope::new(acceleration_max * second),
                gentle: Slope::new(0.5 * acceleration_max * second),
                twist: Slope::new(jerk_max * third),
            },
            ControlMode::Velocity => Bounds {
                low: -velocity_max,
                high: velocity_max,
                step: acceleration_max * first,
                bend: Slope::new(jerk_max * second),
                gentle: Slope::new(0.5 * jerk_max * second),
                twist: Slope::new(f64::INFINITY),
            },
        };
        Self { mode, bounds, value: 0.0, step: 0.0, bend: 0.0, stop: Stop::REST, follows: false }
    }

    /// At rest at `value` from now on.
    pub fn place(&mut self, value: f64) {
        (self.value, self.step, self.bend, self.follows) = (value, 0.0, 0.0, false);
        self.stop = Stop::REST;
    }

    /// The value of the last tick.
    pub fn value(&self) -> f64 {
        self.value
    }

    /// How fast the value changes at the last tick, per tick. The steps are means over a tick; this is their line.
    pub fn rate(&self) -> f64 {
        if self.step == 0.0 { 0.0 } else { self.step + 0.5 * self.bend }
    }

    /// How much the value's change per tick changed in the last tick.
    pub fn acceleration(&self) -> f64 {
        self.bend
    }

    /// The last value was what was desired.
    pub fn follows(&self) -> bool {
        self.follows
    }

    /// It stands still: a position anywhere, a velocity at 0.
    pub fn is_at_rest(&self) -> bool {
        self.step == 0.0 && (self.mode == ControlMode::Position || self.value == 0.0)
    }

    /// Where it would rest if it braked from now on, and about how many ticks that would take, at most.
    pub fn rest(&self) -> (f64, f64) {
        let Bounds { step, bend, twist, .. } = self.bounds;
        match self.mode {
            ControlMode::Position => {
                let stop = self.value + bend.stopping_distance(self.step.abs()).copysign(self.step);
                let rest = self.confined(stop);
                let (bend, twist) = (bend.most, twist.most);
                (
                    rest,
                    self.step.abs() / bend + 4.0 * (bend / twist + step / bend + (rest - stop).abs() / step),
                )
            }
            ControlMode::Velocity => (0.0, 4.0 * self.value.abs() / step + 4.0),
        }
    }

    /// The time in which a gap can be closed smoothly, by a quintic, with about half of what the limits permit.
    pub fn closing(&self, gap: f64, rate: f64) -> Closing {
        // A quintic from rest to rest over a time d has the greatest speed 1.88 / d, acceleration 5.8 / d² and jerk
        // 60 / d³; a rate that is to vanish while the gap stays, acceleration 3.6 / d and jerk 36 / d².
        let Bounds { step, bend, twist, .. } = self.bounds;
        let (gap, rate) = (2.0 * gap.abs(), 2.0 * rate.abs());
        Closing {
            ticks: (1.88 * gap / step).max(3.6 * rate * bend.per),
            square: (5.8 * gap * bend.per).max(36.0 * rate * twist.per),
            cube: 60.0 * gap * twist.per,
        }
    }

    /// One tick after `desired`, which changes by `rate` per tick.
    pub fn follow(&mut self, desired: f64, rate: f64) -> Limited {
        if !(desired.is_finite() && rate.is_finite()) {
            return Limited { not_finite: true, ..self.brake() };
        }
        let Bounds { low, high, step: step_max, bend, twist, .. } = self.bounds;
        let bend_max = bend.most;
        let wanted = between(desired, low, high);
        // What is faster than the limits cannot be gone along with.
        let rate = if wanted == desired { between(rate, -step_max, step_max) } else { 0.0 };
        // Nor, from outside the limits, what leads further out.
        let rate = if self.value > high { rate.min(0.0) } else { rate };
        let rate = if self.value < low { rate.max(0.0) } else { rate };
        let lead = self.lead(wanted, rate);

        // Acceleration: never violated.
        let (slowest, fastest) = (self.step - bend_max, self.step + bend_max);
        let tolerance = bend_max * ROUNDING;
        let by_bend = if bend_max == f64::INFINITY {
            lead
        } else {
            between(lead, slowest - tolerance, fastest + tolerance)
        };
        // Speed: reached as fast as the acceleration permits.
        let lowest = fastest.min(slowest.max(-step_max));
        let highest = slowest.max(fastest.min(step_max));
        let by_speed = between(by_bend, lowest, highest);
        // Position: so slow that it can stop before the limit; beyond it, no further.
        // A little of the room is kept for what a long brake rounds.
        let kept = self.step.abs() * ROUNDING;
        let up = bend.stoppable(by_speed, high - self.value - kept);
        let down = bend.stoppable(-by_speed, self.value - low - kept);
        let step = between(by_speed, fastest.min(lowest.max(-down)), slowest.max(highest.min(up)));

        let permitted = step;
        let step = if twist.limits() { self.with_way_to_rest(step) } else { step };
        let previous = self.value;
        let direct = step == wanted - previous;
        let value = if direct { wanted } else { self.confined(previous + step) };
        self.move_to(value);
        self.follows = value == desired;
        Limited {
            not_finite: false,
            position: wanted != desired || permitted != by_speed,
            velocity: by_speed != by_bend,
            acceleration: by_bend != lead || !(direct || step != by_bend),
            jerk: permitted != step,
        }
    }

    /// One tick of the way to rest: a position decelerates, a velocity goes to 0.
    pub fn brake(&mut self) -> Limited {
        self.follows = false;
        let Bounds { bend, twist, .. } = self.bounds;
        match self.mode {
            ControlMode::Velocity => self.follow(0.0, 0.0),
            ControlMode::Position if twist.limits() => {
                let step = self.stopping();
                self.move_to(if step == 0.0 { self.value } else { self.confined(self.value + step) });
                Limited::default()
            }
            ControlMode::Position => {
                let step = (self.step.abs() - bend.most).max(0.0).copysign(self.step);
                self.move_to(if step == 0.0 { self.value } else { self.confined(self.value + step) });
                Limited::default()
            }
        }
    }

    /// The step that leads to what is wanted: there at once if it can then go along with it, else so that the
    /// difference can be braked off when it is there.
    fn lead(&self, wanted: f64, rate: f64) -> f64 {
        let Bounds { bend, gentle, twist, .. } = self.bounds;
        let gap = wanted - self.value - rate;
        if gap.abs() <= bend.most.min(twist.most) {
            return wanted - self.value;
        }
        if twist.limits() {
            // The rate is that at the tick; a motion with this acceleration comes there by half of it less.
            let turned = wanted - self.value - self.step;
            if turned.abs() <= bend.most && (gap + 0.5 * turned).abs() <= twist.most {
                return wanted - self.value;
            }
            // The speed that closes the gap, and the acceleration that leads to that speed. A speed that falls with the
            // gap to the power of 2/3 has a constant jerk: of its share, 2/9 / 1.5³, the way to that speed is not aware.
            // Far away it would be above what the acceleration permits, the square root of 2 gentle gap.
            let room = gap.abs();
            let is_far = room * twist.most * twist.most >= (2.25 * 2.0 * gentle.most).powi(3);
            let eased = if is_far { f64::INFINITY } else { cube_root(room * room * twist.most) / 1.5 };
            let closing = gentle.stoppable(eased, room);
            let missing = rate + closing.copysign(gap) - self.step;
            // What is more than the next tick may be, need not be known exactly; nor below.
            let most = self.bend.abs() + 2.0 * twist.most;
            return self.step + twist.stoppable(most, missing.abs()).copysign(missing);
        }
        // Half of the acceleration: what is wanted may need the other half.
        let most = (self.step - rate).abs() + 2.0 * bend.most;
        rate + gentle.stoppable(most, gap.abs()).copysign(gap)
    }

    /// The step nearest to `wanted` whose jerk is permitted and behind which there is a way to rest within the limits.
    fn with_way_to_rest(&mut self, wanted: f64) -> f64 {
        let (bend_max, twist) = (self.bounds.bend.most, self.bounds.twist.most);
        let tolerance = twist * ROUNDING;
        let bend = between(wanted - self.step, self.bend - twist - tolerance, self.bend + twist + tolerance);
        let bend = between(bend, -bend_max * (1.0 + ROUNDING), bend_max * (1.0 + ROUNDING));
        let nearest = if bend == wanted - self.step { wanted } else { self.step + bend };
        if self.take_way_behind(nearest) {
            return nearest;
        }
        let (safe, mut best) = (self.stopping_bend(), None);
        let (mut low, mut high) = (0.0, 1.0);
        for _ in 0..HALVINGS {
            let share = 0.5 * (low + high);
            let step = self.step + safe + (nearest - self.step - safe) * share;
            if self.take_way_behind(step) {
                (low, best) = (share, Some(step));
            } else {
                high = share;
            }
        }
        best.unwrap_or_else(|| self.stopping())
    }

    /// Whether there is a way to rest within the limits behind this step; it is kept then.
    fn take_way_behind(&mut self, step: f64) -> bool {
        let Bounds { low, high, step: step_max, bend, twist, .. } = self.bounds;
        let Some((stop, reach)) = Stop::find(step, step - self.step, bend.most, twist) else { return false };
        // From outside not further out, and once inside not out again.
        let value = self.value + step;
        let (from, to, end) = (value + reach.low, value + reach.high, value + reach.end);
        let above = from >= low.min(value) && (to <= low || end >= low);
        let below = to <= high.max(value) && (from >= high || end <= high);
        let fits = above && below && reach.step <= step_max.max(self.step.abs()) * (1.0 + ROUNDING);
        if fits {
            self.stop = stop;
        }
        fits
    }

    /// The acceleration of the next tick of the way to rest.
    fn stopping_bend(&self) -> f64 {
        self.stop.next().unwrap_or(-self.step)
    }

    /// The step of the next tick of the way to rest, which is taken.
    fn stopping(&mut self) -> f64 {
        let Some(bend) = self.stop.next() else { return 0.0 };
        self.stop.advance();
        self.step + bend
    }

    fn is_inside(&self) -> bool {
        (self.bounds.low..=self.bounds.high).contains(&self.value)
    }

    /// From within the limits, rounding does not lead out of them.
    fn confined(&self, value: f64) -> f64 {
        if self.is_inside() { between(value, self.bounds.low, self.bounds.high) } else { value }
    }

    fn move_to(&mut self, value: f64) {
        let step = value - self.value;
        (self.value, self.step, self.bend) = (value, step, step - self.step);
    }
}
