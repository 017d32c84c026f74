//! From a moving value to standstill: the tail of a plan.
//!
//! Promises: the value decelerates evenly, never leaves the position limits, stands still after [`Brake::duration`]
//! seconds, and from then on does not change by one bit.

use super::limits::{ControlMode, JointLimit, between};

/// One joint's way to rest, as a function of the seconds since it began.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Brake {
    start: f64,
    /// Change per second at the start.
    rate: f64,
    /// Change of `rate` per second.
    curvature: f64,
    duration: f64,
    rest: f64,
}

impl Brake {
    /// Standing still at `value`.
    pub fn at_rest(value: f64) -> Self {
        Self { start: value, rate: 0.0, curvature: 0.0, duration: 0.0, rest: value }
    }

    /// From `value`, changing by `rate` per second, to rest.
    ///
    /// A position decelerates with `acceleration_max`, or harder where the position limit is nearer than that takes,
    /// and is then held. A velocity goes to 0 with `acceleration_max`; its `rate` does not matter.
    pub fn new(limit: &JointLimit, value: f64, rate: f64) -> Self {
        match limit.mode {
            ControlMode::Position => Self::of_position(limit, value, rate),
            ControlMode::Velocity => Self::of_velocity(limit, value),
        }
    }

    /// The value, `elapsed` seconds after the start.
    pub fn value(&self, elapsed: f64) -> f64 {
        if elapsed >= self.duration {
            return self.rest;
        }
        let t = elapsed.max(0.0);
        let value = self.start + self.rate * t + 0.5 * self.curvature * t * t;
        between(value, self.start.min(self.rest), self.start.max(self.rest))
    }

    /// Seconds until standstill.
    pub fn duration(&self) -> f64 {
        self.duration
    }

    fn of_position(limit: &JointLimit, value: f64, rate: f64) -> Self {
        let start = between(value, limit.position_min, limit.position_max);
        let rate = between(rate, -limit.velocity_max, limit.velocity_max);
        let room = if rate > 0.0 { limit.position_max - start } else { start - limit.position_min };
        if rate == 0.0 || room <= 0.0 {
            return Self::at_rest(start);
        }
        let deceleration = limit.acceleration_max.max(rate * rate / (2.0 * room));
        let duration = rate.abs() / deceleration;
        let rest = between(start + 0.5 * rate * duration, limit.position_min, limit.position_max);
        Self { start, rate, curvature: -deceleration * rate.signum(), duration, rest }
    }

    fn of_velocity(limit: &JointLimit, value: f64) -> Self {
        let start = between(value, -limit.velocity_max, limit.velocity_max);
        let rate = -limit.acceleration_max * start.signum();
        Self { start, rate, curvature: 0.0, duration: start.abs() / limit.acceleration_max, rest: 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARM: JointLimit = JointLimit {
        mode: ControlMode::Position,
        position_min: -1.0,
        position_max: 1.0,
        velocity_max: 2.0,
        acceleration_max: 4.0,
    };

    #[test]
    fn a_position_stops_after_v_squared_over_2a() {
        let brake = Brake::new(&ARM, 0.0, 1.0);
        assert_eq!(brake.duration(), 0.25);
        assert_eq!(brake.value(0.125), 0.09375); // 0.125 - 2 * 0.125²
        assert_eq!(brake.value(0.25), 0.125);
        assert_eq!(brake.value(1e9), 0.125);
    }

    #[test]
    fn near_a_position_limit_it_brakes_harder_and_stops_there() {
        let brake = Brake::new(&ARM, -0.9, -2.0);
        assert!((brake.value(1.0) - -1.0).abs() < 1e-12);
        assert!(brake.duration() < 0.5);
        assert_eq!(Brake::new(&ARM, 1.0, 2.0).value(0.0), 1.0);
    }

    #[test]
    fn a_velocity_ramps_to_zero() {
        let brake = Brake::new(&JointLimit { mode: ControlMode::Velocity, ..ARM }, -1.0, 77.0);
        assert_eq!(brake.value(0.125), -0.5);
        assert_eq!(brake.value(0.25), 0.0);
    }
}
