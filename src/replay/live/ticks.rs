//! When the ticks were whose commands were logged.
//!
//! Log times jitter by the network and the recorder; taken as they are they would make wild speeds of a steady motion.

use std::collections::BTreeSet;

use crate::clock::{NS_PER_S, Stamp};

/// A clock that follows the log times of commands, in whole periods.
pub(super) struct Ticks {
    period_ns: i64,
    /// Last tick, and the smoothed log time of it.
    last: Option<(Stamp, Stamp)>,
}

/// Of the difference between a log time and the one expected, this part is followed.
const FOLLOWED: i64 = 16;
/// After so many ticks without a command the ticks are counted anew.
const LOST_TICKS: i64 = 3;

impl Ticks {
    /// Of this many ticks per second, above 0.
    pub(super) fn new(rate_hz: f64) -> Self {
        Self { period_ns: ((NS_PER_S as f64 / rate_hz).round() as i64).max(1), last: None }
    }

    /// When the tick was whose command was logged then; later than the one before.
    pub(super) fn stamp(&mut self, logged: Stamp) -> Stamp {
        let period = self.period_ns;
        let (tick, smooth) = match self.last {
            None => (logged, logged),
            Some((tick, smooth)) => {
                let ticks = (logged.since(smooth).saturating_add(period / 2) / period).max(1);
                let after = |stamp: Stamp| Stamp(stamp.0.saturating_add(ticks.saturating_mul(period)));
                if ticks > LOST_TICKS {
                    (logged.max(after(tick)), logged)
                } else {
                    let smooth = after(smooth);
                    (after(tick), Stamp(smooth.0.saturating_add(logged.since(smooth) / FOLLOWED)))
                }
            }
        };
        self.last = Some((tick, smooth));
        tick
    }

    /// Which of the commands that were logged then are of no known time, nor known order: the recorder had stalled, and
    /// three or more came within a period.
    pub(super) fn untimed(&self, logged: &[Stamp]) -> BTreeSet<usize> {
        let together = |three: &[Stamp]| matches!(three, [a, _, c] if c.since(*a) < self.period_ns);
        let found = logged.windows(3).enumerate().filter(|(_, three)| together(three));
        found.flat_map(|(first, _)| first..first + 3).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Log times that are late by less than a third of a period give the ticks back, evenly.
        #[test]
        fn jitter_is_taken_from_the_ticks(late in vec(0..3_300_000i64, 2..500)) {
            let mut ticks = Ticks::new(100.0);
            let stamps: Vec<Stamp> =
                late.iter().enumerate().map(|(k, late)| ticks.stamp(Stamp(k as i64 * 10_000_000 + late))).collect();
            prop_assert!(stamps.windows(2).all(|pair| pair[1].since(pair[0]) == 10_000_000));
        }

        /// Those that a stall of the recorder brought together are found, and only those; jitter is none.
        #[test]
        fn what_is_logged_together_has_no_time(late in vec(0..9_000_000i64, 100), from in 0..90usize, count in 0..10usize) {
            let mut logged: Vec<Stamp> =
                late.iter().enumerate().map(|(k, late)| Stamp(k as i64 * 10_000_000 + late)).collect();
            let stalled = from..from + count;
            let end = stalled.end as i64 * 10_000_000;
            logged[stalled.clone()].iter_mut().enumerate().for_each(|(k, at)| at.0 = end + k as i64 * 1000);
            logged.sort();
            let found = Ticks::new(100.0).untimed(&logged);
            prop_assert!(count < 3 || stalled.clone().all(|k| found.contains(&k)));
            // Who came just before or after it is not told from it.
            prop_assert!(found.iter().all(|k| (stalled.start.saturating_sub(1)..stalled.end + 2).contains(k)));
        }
    }

    #[test]
    fn a_pause_is_a_pause_and_time_never_goes_back() {
        let mut ticks = Ticks::new(100.0);
        let logged = [0, 10, 21, 1000, 1010, 1009, 5, i64::MAX / 1_000_000];
        let stamps = logged.map(|ms| ticks.stamp(Stamp(ms * 1_000_000)).0 / 1_000_000);
        assert_eq!(stamps[..5], [0, 10, 20, 1000, 1010]);
        assert!(stamps.is_sorted());
    }
}
