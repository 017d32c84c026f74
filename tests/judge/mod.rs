//! Whether commands keep their limits, judged from the commands alone.

#![allow(dead_code)] // each test uses its part

use pi05_thor::control::{ControlMode, JointLimit};
use proptest::prelude::*;

/// 100 Hz ticks.
const TICK_S: f64 = 0.01;
/// What the sum of a brake's steps, thousands of them where the jerk is limited, may be beside rest.
const ROUNDING: f64 = 1e-9;

/// The limits of one tick: of the value, its step, and the step's change.
pub struct Ticked {
    pub low: f64,
    pub high: f64,
    pub step: f64,
    pub bend: f64,
    pub twist: f64,
}

/// Of a joint at 100 Hz.
pub fn ticked(limit: &JointLimit) -> Ticked {
    ticked_every(limit, TICK_S)
}

fn ticked_every(limit: &JointLimit, t: f64) -> Ticked {
    let t2 = t * t;
    match limit.mode {
        ControlMode::Position => Ticked {
            low: limit.position_min,
            high: limit.position_max,
            step: limit.velocity_max * t,
            bend: limit.acceleration_max * t2,
            twist: limit.jerk_max * t2 * t,
        },
        ControlMode::Velocity => Ticked {
            low: -limit.velocity_max,
            high: limit.velocity_max,
            step: limit.acceleration_max * t,
            bend: limit.jerk_max * t2,
            twist: f64::INFINITY,
        },
    }
}

/// The commands of one joint so far, judged from the outside.
#[derive(Clone, Copy, Debug)]
pub struct Judge {
    pub value: f64,
    pub step: f64,
    bend: f64,
}

impl Judge {
    /// At rest.
    pub fn at(value: f64) -> Self {
        Self { value, step: 0.0, bend: 0.0 }
    }

    /// The next command is permitted, at 100 Hz.
    pub fn check(&mut self, limit: &JointLimit, found: f64) -> Result<(), TestCaseError> {
        self.check_every(limit, found, TICK_S)
    }

    /// The next command is permitted, a tick later.
    pub fn check_every(&mut self, limit: &JointLimit, found: f64, tick_s: f64) -> Result<(), TestCaseError> {
        let Ticked { low, high, step: step_max, bend: bend_max, twist } = ticked_every(limit, tick_s);
        let step = found - self.value;
        let bend = step - self.step;
        prop_assert!(found.is_finite());
        prop_assert!(at_most(step, step_max), "speed: {step} of {step_max}");
        prop_assert!(at_most(bend, bend_max), "acceleration: {} to {step}, at most {bend_max}", self.step);
        prop_assert!(at_most(bend - self.bend, twist), "jerk: {} to {bend}, at most {twist}", self.bend);
        if (low..=high).contains(&self.value) {
            prop_assert!((low..=high).contains(&found), "left the limits: {found}");
        } else {
            let outside = |v: f64| (v - high).max(low - v).max(0.0);
            prop_assert!(
                outside(found) <= outside(self.value) + ROUNDING,
                "further out: {} to {found}",
                self.value
            );
        }
        *self = Self { value: found, step, bend };
        Ok(())
    }
}

/// Where a joint's commands start that was measured at `value`.
pub fn start_of(limit: &JointLimit, value: f64) -> f64 {
    if limit.mode == ControlMode::Velocity { 0.0 } else { value }
}

/// No bit may be lost to rounding in a promise, but `previous + step - previous` rounds.
fn at_most(found: f64, bound: f64) -> bool {
    found.abs() <= bound * (1.0 + 1e-9) + 1e-12
}
