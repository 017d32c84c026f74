//! How a new chunk takes over from the old one.
//!
//! Promises: an [`Offset`] goes to nothing without a jump in value, speed or acceleration at either end. Of the weights of
//! plans it makes a crossfade; of a difference between commands and plan, the way from the one to the other. Called by
//! the motion and its reference.

use crate::choices::choices;

choices! {
    /// How a new chunk takes over from the old one.
    Execution {
        /// The newest replaces the rest of the old.
        #[default]
        Latest = "latest",
        /// Overlapping chunks averaged.
        Ensemble = "ensemble",
        /// Real-time chunking, guided while sampling.
        Rtc = "rtc",
        /// Real-time chunking for checkpoints trained for it.
        RtcTrained = "rtc_trained",
        /// Each chunk to its end, then hold.
        OpenLoop = "open_loop",
    }
}

/// How chunks follow each other. May change at any time; holds from the next chunk on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Splice {
    /// Which chunks are followed, and from when on.
    pub execution: Execution,
    /// Policy steps within which a new chunk takes over, unless the limits need more; 0: at once, by the limits alone.
    pub blend_steps: usize,
    /// `ensemble`: a chunk that is one policy step older has exp(-decay) of the weight.
    pub ensemble_decay: f64,
    /// `open_loop`: steps of a chunk that are executed; 0: all.
    pub open_loop_steps: usize,
}

impl Default for Splice {
    /// The newest chunk replaces the one before it, over three steps.
    fn default() -> Self {
        Self { execution: Execution::Latest, blend_steps: 3, ensemble_decay: 0.01, open_loop_steps: 0 }
    }
}

/// Value, rate (per s) and acceleration (per s²) at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    /// rad or m, or per s for velocity-controlled joints.
    pub value: f64,
    /// Its change per second.
    pub rate: f64,
    /// The rate's change per second.
    pub acceleration: f64,
}

impl Sample {
    /// The difference of two.
    pub fn minus(self, other: Self) -> Self {
        Self {
            value: self.value - other.value,
            rate: self.rate - other.rate,
            acceleration: self.acceleration - other.acceleration,
        }
    }

    /// The difference to a constant.
    pub fn minus_value(self, value: f64) -> Self {
        Self { value: self.value - value, ..self }
    }
}

/// The quintic from a difference to nothing: value, rate and acceleration are continuous at both ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offset {
    /// Seconds.
    duration: f64,
    /// 1 / duration.
    per_duration: f64,
    /// Of the powers of time / duration.
    coefficients: [f64; 6],
}

impl Offset {
    /// Nothing.
    pub const NONE: Self = Self { duration: 0.0, per_duration: 0.0, coefficients: [0.0; 6] };

    /// From this difference to nothing in so many seconds; at once if none.
    pub fn new(from: Sample, duration: f64) -> Self {
        if !(duration > 0.0 && from != Sample::default()) {
            return Self::NONE;
        }
        let (x, v, a) = (from.value, from.rate * duration, from.acceleration * duration * duration);
        // Hermite's quintic basis of the left end.
        let coefficients = [
            x,
            v,
            0.5 * a,
            -10.0 * x - 6.0 * v - 1.5 * a,
            15.0 * x + 8.0 * v + 1.5 * a,
            -6.0 * x - 3.0 * v - 0.5 * a,
        ];
        Self { duration, per_duration: 1.0 / duration, coefficients }
    }

    /// Nothing is left `elapsed` seconds after it began.
    pub fn is_over(&self, elapsed: f64) -> bool {
        elapsed >= self.duration
    }

    /// Seconds until nothing is left.
    pub fn left(&self, elapsed: f64) -> f64 {
        (self.duration - elapsed).max(0.0)
    }

    /// What is left, `elapsed` seconds after it began.
    pub fn sample(&self, elapsed: f64) -> Sample {
        if self.is_over(elapsed) {
            return Sample::default();
        }
        let (per, [c0, c1, c2, c3, c4, c5]) = (self.per_duration, self.coefficients);
        let u = elapsed.max(0.0) * per;
        Sample {
            value: c0 + u * (c1 + u * (c2 + u * (c3 + u * (c4 + u * c5)))),
            rate: (c1 + u * (2.0 * c2 + u * (3.0 * c3 + u * (4.0 * c4 + u * 5.0 * c5)))) * per,
            acceleration: (2.0 * c2 + u * (6.0 * c3 + u * (12.0 * c4 + u * 20.0 * c5))) * per * per,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(a: f64, b: f64, scale: f64) -> bool {
        (a - b).abs() <= 1e-5 * (1.0 + scale.abs())
    }

    proptest! {
        #[test]
        fn an_offset_begins_as_it_is_told_and_ends_at_nothing_without_a_jump(
            value in -2.0..2.0f64, rate in -3.0..3.0f64, acceleration in -9.0..9.0f64, d in 0.02..2.0f64, at in 0.01..0.99f64,
        ) {
            let from = Sample { value, rate, acceleration };
            let offset = Offset::new(from, d);
            prop_assert_eq!(offset.sample(0.0).value, value);
            prop_assert!(near(offset.sample(0.0).rate, rate, rate));
            prop_assert!(near(offset.sample(0.0).acceleration, acceleration, acceleration));
            prop_assert_eq!(offset.sample(d), Sample::default());
            let scale = value.abs() / (d * d) + rate.abs() / d + acceleration.abs();
            let end = offset.sample(d * (1.0 - 1e-9));
            prop_assert!(end.value.abs() < 1e-6 && end.rate.abs() < 1e-5 * scale && end.acceleration.abs() < 1e-5 * scale);
            // Rate and acceleration are the derivatives.
            let (h, t) = (1e-5 * d, at * d);
            let (before, here, after) = (offset.sample(t - h), offset.sample(t), offset.sample(t + h));
            prop_assert!(near(here.rate, (after.value - before.value) / (2.0 * h), scale));
            prop_assert!(near(here.acceleration, (after.rate - before.rate) / (2.0 * h), 10.0 * scale));
        }
    }
}
