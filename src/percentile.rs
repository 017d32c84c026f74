//! Percentiles of what was measured: latencies, ages, jumps.

/// Nearest-rank percentile (`p` in 0..=100) of values sorted upwards: always one of the values; `None` of none.
pub fn percentile(sorted: &[f64], p: f64) -> Option<f64> {
    let rank = (p / 100.0 * sorted.len() as f64).ceil() as usize; // saturates; 0 for NaN
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_are_values_and_rise(mut values in vec(-1e6..1e6_f64, 1..50), p in 0.0..100.0, q in 0.0..100.0) {
            values.sort_by(f64::total_cmp);
            let (low, high) = (percentile(&values, f64::min(p, q)).unwrap(), percentile(&values, f64::max(p, q)).unwrap());
            prop_assert!(values.contains(&low) && values.contains(&high) && low <= high);
        }
    }

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let at = |p| percentile(&values, p).unwrap();
        assert_eq!(
            [at(0.0), at(50.0), at(90.0), at(91.0), at(99.0), at(100.0)],
            [1.0, 5.0, 9.0, 10.0, 10.0, 10.0]
        );
        assert_eq!(percentile(&[], 50.0), None);
        assert_eq!(percentile(&[7.0], 1.0), Some(7.0));
    }
}
