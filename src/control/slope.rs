//! Braking by equal parts: what loses as much in each tick as it may, how far it goes on, and how fast it may be for that.
//!
//! Promises: exact sums over ticks, no integrals. Called by [`super::axis`] (a step that loses the acceleration's limit, an
//! acceleration that loses the jerk's) and by `stop`.

/// The most that changes in a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Above 0; infinite where it is not limited.
    pub most: f64,
    /// 1 / most.
    pub per: f64,
}

impl Slope {
    /// Of this much in each tick.
    pub fn new(most: f64) -> Self {
        Self { most, per: 1.0 / most }
    }

    /// Whether it is a limit at all.
    pub fn limits(self) -> bool {
        self.most < f64::INFINITY
    }

    /// How far a value goes on that made `step` (at least 0) in the last tick and loses `most` of it in each.
    pub fn stopping_distance(self, step: f64) -> f64 {
        if !self.limits() {
            return 0.0;
        }
        let ticks = floor(step * self.per);
        ticks * (step - 0.5 * self.most * (ticks + 1.0))
    }

    /// `step`, or the largest one after which it is possible to stop within `room`; 0 if there is none.
    pub fn stoppable(self, step: f64, room: f64) -> f64 {
        // In continuous time it would take no less room than in ticks: then the exact answer is not needed.
        if step <= 0.0 && room >= 0.0 || room >= step && step * step <= 2.0 * self.most * (room - step) {
            step.max(0.0)
        } else if room > 0.0 {
            self.fastest_approach(room)
        } else {
            0.0
        }
    }

    /// The largest step after which it is possible to stop within `room` (at least 0), the step included: the inverse of
    /// `step + stopping_distance(step)`, which is `most n (n + 1) / 2` at `n most` and linear in between.
    pub fn fastest_approach(self, room: f64) -> f64 {
        if !self.limits() {
            return room;
        }
        let ticks = floor(0.5 * ((1.0 + 8.0 * room * self.per).sqrt() - 1.0));
        let whole = 0.5 * self.most * ticks * (ticks + 1.0);
        ticks * self.most + (room - whole) / (ticks + 1.0)
    }
}

/// What is added to a number to make it whole: beyond 2⁵² there are no fractions.
const WHOLE: f64 = (1u64 << 52) as f64;

/// The whole number at or below what is not negative. The library's is a call on processors of before 2008, and so in
/// programs that run there too.
pub fn floor(value: f64) -> f64 {
    let near = (value + WHOLE) - WHOLE;
    if near > value { near - 1.0 } else { near }
}

/// The whole number at or above what is not negative.
pub fn ceil(value: f64) -> f64 {
    let near = (value + WHOLE) - WHOLE;
    if near < value { near + 1.0 } else { near }
}

/// The cube root of what is not negative, to four digits.
pub fn cube_root(value: f64) -> f64 {
    // A third of the exponent, which is right to 5 %, and Halley's step, which cubes that.
    let root = f64::from_bits(value.to_bits() / 3 + 0x2A9F_7625_3119_D328);
    let cube = root * root * root;
    root * (cube + 2.0 * value) / (2.0 * cube + value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Braking as it is done, tick by tick.
        #[test]
        fn the_stopping_distance_is_that_of_the_ticks(step in 0.0..3.0f64, bend in 0.01..2.0f64) {
            let (mut left, mut distance) = (step, 0.0);
            while left > 0.0 {
                left = f64::max(left - bend, 0.0);
                distance += left;
            }
            let bend = Slope::new(bend);
            prop_assert!((bend.stopping_distance(step) - distance).abs() < 1e-9);
            let back = bend.fastest_approach(step + bend.stopping_distance(step));
            prop_assert!((back - step).abs() < 1e-9, "{back} {step}");
        }
    }

    #[test]
    fn without_an_acceleration_limit_it_stops_at_once() {
        let unlimited = Slope::new(f64::INFINITY);
        assert_eq!((unlimited.stopping_distance(3.0), unlimited.fastest_approach(3.0)), (0.0, 3.0));
        assert_eq!(Slope::new(0.1).fastest_approach(0.0), 0.0);
    }

    proptest! {
        #[test]
        fn whole_numbers_and_roots_are_those_of_the_library(value in prop_oneof![0.0..10.0f64, 0.0..1e15f64, 1e-12..1e-3f64]) {
            prop_assert_eq!((floor(value), ceil(value)), (value.floor(), value.ceil()));
            prop_assert_eq!((floor(value.floor()), ceil(value.floor())), (value.floor(), value.floor()));
            prop_assert!((cube_root(value) - value.cbrt()).abs() <= 1e-4 * value.cbrt());
        }
    }
}
