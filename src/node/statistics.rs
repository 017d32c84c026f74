//! Numbers about inferences, for diagnostics.

use std::collections::VecDeque;

use crate::percentile::percentile;

/// Inferences over which percentiles are taken: ten seconds at ten per second.
const WINDOW: usize = 100;

/// What inferences took, and why none runs.
#[derive(Clone, Debug, Default)]
pub struct InferenceStatistics {
    /// Inferences that gave a chunk.
    pub chunks: u64,
    /// Observations that could not be used, and the last reason.
    pub observations_dropped: u64,
    /// Why there is no observation; `None` while there are.
    pub waiting_for: Option<String>,
    recent_ms: VecDeque<f64>,
}

impl InferenceStatistics {
    /// One more chunk.
    pub fn add(&mut self, total_ms: f64) {
        self.chunks += 1;
        self.waiting_for = None;
        if self.recent_ms.len() == WINDOW {
            self.recent_ms.pop_front();
        }
        self.recent_ms.push_back(total_ms);
    }

    /// The time that so many percent of the recent inferences stayed within, ms.
    pub fn percentile_ms(&self, percent: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.recent_ms.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        percentile(&sorted, percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_recent_ones() {
        let mut statistics = InferenceStatistics::default();
        assert_eq!(statistics.percentile_ms(50.0), None);
        (0..1000).for_each(|i| statistics.add(f64::from(i)));
        assert_eq!(statistics.chunks, 1000);
        assert_eq!(statistics.percentile_ms(50.0), Some(949.0));
        assert_eq!(statistics.percentile_ms(99.0), Some(998.0));
        assert_eq!(statistics.percentile_ms(0.0), Some(900.0));
    }
}
