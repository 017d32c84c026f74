//! A way to rest with limited jerk, tick by tick: the certificate that a motion can still be stopped.
//!
//! Promises: [`Stop::find`] gives a way from a step and its change to standstill whose acceleration and jerk are within
//! their limits in every tick, and says exactly how far it leads and how fast it gets on the way; or it gives none. All
//! in ticks, as in [`super::axis`], its only caller.
//!
//! The acceleration goes in equal steps from what it is to a plateau, stays there, and goes in equal steps to nothing.
//! The numbers of ticks are those of the fastest such way in continuous time, rounded up; the height of the plateau is
//! then what makes the speed end at exactly 0, and lower than there.

use super::slope::{Slope, ceil, floor};

const SIXTH: f64 = 1.0 / 6.0;

/// Ramp to a plateau, plateau, ramp to nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stop {
    /// The acceleration before its first tick.
    begin: f64,
    plateau: f64,
    /// Ticks of each part.
    rise: f64,
    hold: f64,
    fall: f64,
    /// Ticks that were taken.
    taken: f64,
}

/// Where a way leads, from the value at its beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reach {
    /// Lowest value, at most 0.
    pub low: f64,
    /// Highest value, at least 0.
    pub high: f64,
    /// Where it rests.
    pub end: f64,
    /// Greatest step.
    pub step: f64,
}

impl Reach {
    /// Of what stands still.
    pub const NOWHERE: Self = Self { low: 0.0, high: 0.0, end: 0.0, step: 0.0 };
}

impl Stop {
    /// Standing still.
    pub const REST: Self = Self { begin: 0.0, plateau: 0.0, rise: 0.0, hold: 0.0, fall: 0.0, taken: 0.0 };

    /// From `step`, which changed by `bend` in the last tick, with changes of at most `bend_max` that change by at most
    /// `twist_max`.
    pub fn find(step: f64, bend: f64, bend_max: f64, twist: Slope) -> Option<(Self, Reach)> {
        if step == 0.0 && bend == 0.0 {
            return Some((Self::REST, Reach::NOWHERE));
        }
        // The speed that would be left if the acceleration were let go: against it the plateau stands.
        let Slope { most: twist_max, per: per_twist } = twist;
        let let_go = step + bend * 0.5 * (ceil(bend.abs() * per_twist) - 1.0);
        let sign = if let_go < 0.0 || (let_go == 0.0 && bend > 0.0) { -1.0 } else { 1.0 };
        let (d, c) = (sign * step, sign * bend);
        let highest = (twist_max * d + 0.5 * c * c).max(0.0).sqrt().min(bend_max);
        let rise = ceil(((highest + c) * per_twist).max(1.0));
        let fall = ceil((highest * per_twist).max(1.0));
        let needed = d + 0.5 * c * (rise - 1.0);
        let ramps = 0.5 * (rise + fall);
        let hold =
            if needed > highest * ramps && highest > 0.0 { ceil(needed / highest - ramps) } else { 0.0 };
        let per = 1.0 / ((hold + ramps) * rise);
        let (plateau, per_rise) = (needed * rise * per, (hold + ramps) * per);
        let slack = 1.0 + 1e-9;
        let fits = plateau >= 0.0
            && plateau <= bend_max * slack
            && plateau <= fall * twist_max * slack
            && (plateau + c).abs() <= rise * twist_max * slack;
        if !fits {
            return None;
        }
        let way = Self { begin: bend, plateau: -sign * plateau, rise, hold, fall, taken: 0.0 };
        let reach = reach(d, c, plateau, (plateau + c) * per_rise, [rise, hold, fall])?;
        Some((
            way,
            if sign > 0.0 {
                reach
            } else {
                Reach { low: -reach.high, high: -reach.low, end: -reach.end, ..reach }
            },
        ))
    }

    /// The acceleration of its next tick; `None` where it stands still.
    pub fn next(&self) -> Option<f64> {
        let tick = self.taken + 1.0;
        if tick <= self.rise {
            Some(self.begin + (self.plateau - self.begin) * (tick / self.rise))
        } else if tick <= self.rise + self.hold {
            Some(self.plateau)
        } else {
            let tick = tick - self.rise - self.hold;
            // After its last tick the speed is 0: that tick is left to the caller, who makes it exactly so.
            (tick < self.fall).then(|| self.plateau * (1.0 - tick / self.fall))
        }
    }

    /// The next tick was taken.
    pub fn advance(&mut self) {
        self.taken += 1.0;
    }
}

/// How far and how fast: from step `d` >= 0 after letting go, its change `c`, against `plateau` >= 0, to which the change goes by `slope`
/// per tick.
fn reach(d: f64, c: f64, plateau: f64, slope: f64, [rise, hold, fall]: [f64; 3]) -> Option<Reach> {
    // After k ticks of the rise: the step, and the sum of the steps.
    let step = |k: f64| d + k * c - 0.5 * slope * k * (k + 1.0);
    let sum = |k: f64| k * d + 0.5 * c * k * (k + 1.0) - slope * k * (k + 1.0) * (k + 2.0) * SIXTH;
    let mut fastest = d.abs();
    if c > 0.0 && slope > 0.0 {
        fastest = fastest.max(step(floor(c / slope).min(rise)));
    }
    // A step that was against the rest of the way turns round during the rise.
    let mut low = 0.0;
    if d < 0.0 {
        let b = c - 0.5 * slope;
        let root = b * b + 2.0 * slope * d;
        if !(root >= 0.0 && slope > 0.0) {
            return None;
        }
        let turn = (b - root.sqrt()) / slope;
        if !(0.0..rise + 1.0).contains(&turn) {
            return None;
        }
        let turn = floor(turn);
        low = sum(turn).min(0.0);
    }
    let after_rise = step(rise);
    let after_hold = after_rise - hold * plateau;
    let total = sum(rise) + hold * after_rise - 0.5 * plateau * hold * (hold + 1.0) + fall * after_hold
        - plateau * (0.5 * fall * (fall + 1.0) - (fall + 1.0) * (fall + 2.0) * SIXTH);
    Some(Reach { low: low.min(total), high: total.max(0.0), end: total, step: fastest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// What is said of a way is what its ticks do.
        #[test]
        fn a_way_ends_at_rest_and_leads_where_it_says(
            step in -2.0..2.0f64, part in -1.0..1.0f64, bend_max in 0.01..1.0f64, twist in 0.001..2.0f64,
        ) {
            let (bend, twist_max) = (part * bend_max, twist * bend_max);
            let Some((mut way, reach)) = Stop::find(step, bend, bend_max, Slope::new(twist_max)) else { return Ok(()) };
            let (mut value, mut speed, mut change) = (0.0, step, bend);
            let (mut low, mut high, mut fastest) = (0.0f64, 0.0f64, step.abs());
            while let Some(next) = way.next() {
                prop_assert!((next - change).abs() <= twist_max * (1.0 + 1e-6), "{change} to {next}");
                prop_assert!(next.abs() <= bend_max * (1.0 + 1e-6));
                (change, speed) = (next, speed + next);
                value += speed;
                (low, high, fastest) = (low.min(value), high.max(value), fastest.max(speed.abs()));
                way.advance();
            }
            prop_assert!(change.abs() <= twist_max * (1.0 + 1e-6), "the last tick lets go of {change}");
            prop_assert!(speed.abs() < 1e-9, "rests at {speed}");
            prop_assert!((low - reach.low).abs() < 1e-7 && (high - reach.high).abs() < 1e-7, "{low} {high} {reach:?}");
            prop_assert!((value - reach.end).abs() < 1e-7);
            prop_assert!((fastest - reach.step).abs() < 1e-9, "{fastest} {reach:?}");
        }
    }

    #[test]
    fn a_way_is_found_nearly_always() {
        let mut found = 0;
        for k in 0..10_000 {
            let (a, b) = (f64::from(k % 100) / 50.0 - 1.0, f64::from(k / 100) / 50.0 - 1.0);
            found += u32::from(Stop::find(a, 0.05 * b, 0.05, Slope::new(0.01)).is_some());
        }
        assert!(found > 9_900, "{found}");
    }
}
