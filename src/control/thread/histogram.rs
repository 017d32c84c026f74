//! How long things took, counted by the tick without waiting, read by anybody at any time.
//!
//! Promises: to count is two atomic operations on memory that was allocated beforehand. A time is known to 6 %: each
//! power of two is divided into sixteen equal parts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Parts of each power of two, as a power of two.
const PARTS_LOG2: u32 = 4;
const PARTS: u64 = 1 << PARTS_LOG2;
/// Times from 2^38 ns (four and a half minutes) on are counted as one.
const TOP_LOG2: u32 = 38;
const BUCKETS: usize = ((TOP_LOG2 - PARTS_LOG2 + 1) as usize) << PARTS_LOG2;

/// Counts of times. One thread counts.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: Box<[AtomicU64]>,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// One more. A negative time counts as 0.
    pub fn count(&self, ns: i64) {
        if let Some(count) = self.counts.get(bucket(ns)) {
            count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed); // nobody else writes
        }
    }

    /// As they are now.
    pub fn distribution(&self) -> Distribution {
        Distribution { counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect() }
    }
}

/// How often which times occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    counts: Vec<u64>,
}

impl Distribution {
    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// A time, ns, that `share` (0 to 1) of all stayed within, at most 6 % too long; `None` if there are none.
    pub fn quantile_ns(&self, share: f64) -> Option<i64> {
        let all = self.count();
        let wanted = ((share.clamp(0.0, 1.0) * all as f64).ceil() as u64).clamp(1, all.max(1));
        let mut counted = 0;
        let found = self.counts.iter().position(|count| {
            counted += count;
            counted >= wanted
        })?;
        (all > 0).then(|| end(found))
    }
}

/// The part that a time falls into: up to 31 ns one per ns, then sixteen per power of two.
fn bucket(ns: i64) -> usize {
    let ns = ns.clamp(0, (1 << TOP_LOG2) - 1) as u64;
    let octave = ns.checked_ilog2().unwrap_or(0).max(PARTS_LOG2) - PARTS_LOG2;
    (u64::from(octave) * PARTS + (ns >> octave)) as usize
}

/// The longest time of a part, ns.
fn end(bucket: usize) -> i64 {
    let bucket = bucket as u64;
    if bucket < 2 * PARTS {
        return bucket as i64;
    }
    let octave = bucket / PARTS - 1;
    (((bucket % PARTS + PARTS + 1) << octave) - 1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_is_known_to_six_percent(ns in 0..1i64 << TOP_LOG2) {
            let end = end(bucket(ns));
            prop_assert!(end >= ns && end as f64 <= ns as f64 * 1.0625, "{ns} counted as {end}");
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_times(mut times in prop::collection::vec(0..100_000_000i64, 1..200), share in 0.0..1.0f64) {
            let histogram = Histogram::new();
            times.iter().for_each(|&ns| histogram.count(ns));
            times.sort_unstable();
            let found = histogram.distribution().quantile_ns(share).unwrap();
            let exact = times[((share * times.len() as f64).ceil() as usize).max(1) - 1];
            prop_assert!(found >= exact && found as f64 <= exact as f64 * 1.0625, "{found} for {exact}");
        }
    }

    #[test]
    fn every_part_is_used_once_and_whatever_comes_is_counted() {
        for part in 1..BUCKETS {
            assert_eq!(bucket(end(part)), part);
            assert_eq!(bucket(end(part - 1) + 1), part);
        }
        let histogram = Histogram::new();
        assert_eq!(histogram.distribution().quantile_ns(0.5), None);
        [i64::MIN, -1, 0, i64::MAX].into_iter().for_each(|ns| histogram.count(ns));
        let counted = histogram.distribution();
        assert_eq!((counted.count(), counted.quantile_ns(0.5)), (4, Some(0)));
        assert_eq!(counted.quantile_ns(1.0), Some((1 << TOP_LOG2) - 1));
    }
}
