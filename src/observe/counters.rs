//! How often what happened, by name and reason; a hostile source cannot make the list long.

use std::collections::BTreeMap;
use std::collections::btree_map;

/// Different reasons that are counted apart; what comes after them is counted together, by name.
const REASONS: usize = 100;

/// Events by `name: reason`.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    counts: BTreeMap<String, u64>,
}

impl Counters {
    /// Counts one event. Of `what` there are few (`image_dropped`), of `why` any number; a `why` with numbers in it that
    /// change from one to the next says little here.
    pub fn count(&mut self, what: &str, why: &str) {
        let mut key = format!("{what}: {why}");
        if self.counts.len() >= REASONS && !self.counts.contains_key(&key) {
            key = format!("{what}: other reasons");
        }
        *self.counts.entry(key).or_default() += 1;
    }

    /// `(name: reason, how often)`, sorted.
    pub fn iter(&self) -> btree_map::Iter<'_, String, u64> {
        self.counts.iter()
    }
}

impl IntoIterator for Counters {
    type Item = (String, u64);
    type IntoIter = btree_map::IntoIter<String, u64>;

    fn into_iter(self) -> Self::IntoIter {
        self.counts.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_event_is_lost_and_the_list_stays_short() {
        let mut counters = Counters::default();
        for n in 0..100_000 {
            counters.count("image_dropped", &format!("{} × {n}", n / 2));
        }
        counters.count("joints_dropped", "NaN");
        assert!(counters.iter().count() <= REASONS + 2);
        assert_eq!(counters.iter().map(|(_, n)| n).sum::<u64>(), 100_001);
        assert_eq!(counters.iter().last().unwrap(), (&"joints_dropped: other reasons".to_owned(), &1));
    }
}
