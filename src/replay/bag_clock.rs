//! The bag's time: message stamps, made steady.
//!
//! A recording's clock may jump (a driver restarts, simulated time is reset). Jumps are told from gaps by the log
//! time, which went on meanwhile; after one, stamps are shifted so that the replay's time never jumps.

use crate::clock::{NS_PER_S, Stamp};

/// Stamp and log time of one source may drift apart by this much between two messages before it is a jump.
const JUMP_NS: i64 = NS_PER_S;

/// Makes one steady time of the stamps of several topics.
#[derive(Debug)]
pub struct BagClock {
    /// Added to stamps.
    shift: i64,
    /// By topic: the last steady time and its log time.
    last: Vec<Option<(Stamp, i64)>>,
}

/// A message's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The stamp in steady time.
    pub time: Stamp,
    /// The stamps have jumped since the last message; what came before is of another time.
    pub jumped: bool,
}

impl BagClock {
    /// For a bag of this many topics.
    pub fn new(topics: usize) -> Self {
        Self { shift: 0, last: vec![None; topics] }
    }

    /// The time of a message of `topic` with this stamp (0: it has none; then the log time counts).
    pub fn read(&mut self, topic: usize, stamp: Stamp, log_time: i64) -> Reading {
        let stamp = if stamp.0 == 0 { Stamp(log_time) } else { stamp };
        let mut time = Stamp(stamp.0.saturating_add(self.shift));
        let mut jumped = false;
        if let Some((last, logged)) = self.last[topic] {
            let expected = Stamp(last.0.saturating_add(log_time.saturating_sub(logged)));
            if time.since(expected).saturating_abs() > JUMP_NS {
                self.shift = expected.0.saturating_sub(stamp.0);
                time = expected;
                jumped = true;
            }
        }
        self.last[topic] = Some((time, log_time));
        Reading { time, jumped }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: i64 = NS_PER_S;

    #[test]
    fn a_gap_is_no_jump_and_a_missing_stamp_is_the_log_time() {
        let mut clock = BagClock::new(1);
        assert_eq!(clock.read(0, Stamp(10 * S), 10 * S), Reading { time: Stamp(10 * S), jumped: false });
        assert_eq!(clock.read(0, Stamp(500 * S), 500 * S), Reading { time: Stamp(500 * S), jumped: false });
        assert_eq!(clock.read(0, Stamp(0), 501 * S), Reading { time: Stamp(501 * S), jumped: false });
    }

    #[test]
    fn after_a_jump_back_time_goes_on_for_all_topics() {
        let mut clock = BagClock::new(2);
        clock.read(0, Stamp(100 * S), 100 * S);
        clock.read(1, Stamp(100 * S), 100 * S);
        assert_eq!(clock.read(0, Stamp(5 * S), 101 * S), Reading { time: Stamp(101 * S), jumped: true });
        assert_eq!(clock.read(1, Stamp(5 * S), 101 * S), Reading { time: Stamp(101 * S), jumped: false });
        assert_eq!(clock.read(0, Stamp(6 * S), 102 * S), Reading { time: Stamp(102 * S), jumped: false });
    }

    proptest! {
        /// Whatever the stamps are, a topic's time follows its log time within the allowed drift per message.
        #[test]
        fn time_never_jumps(stamps in proptest::collection::vec(any::<i64>(), 2..50)) {
            let mut clock = BagClock::new(1);
            let mut last: Option<Stamp> = None;
            for (i, stamp) in stamps.into_iter().enumerate() {
                let reading = clock.read(0, Stamp(stamp), i as i64 * S);
                if let Some(last) = last {
                    let moved = reading.time.since(last);
                    // i64 ends where it ends; a stamp out there saturates.
                    prop_assert!((moved - S).abs() <= JUMP_NS || last.0.saturating_abs() > i64::MAX / 2);
                }
                last = Some(reading.time);
            }
        }
    }
}
