//! When to look at the robot for the next chunk while the actions of this one are being computed: as late as it can be
//! without making the chunk after this one later. Its vision then ends when the actions do.
//!
//! Promises: nothing about results, which do not depend on it. Called by `node` around each inference that has streams.

use std::collections::VecDeque;
use std::time::Duration;

/// Inferences whose times are remembered.
const WINDOW: usize = 15;
/// Encoding, and what a thread's wake-up may be late by.
const MARGIN: Duration = Duration::from_micros(500);

/// What vision and actions took of late.
#[derive(Debug, Default)]
pub struct JustInTime {
    vision: VecDeque<Duration>,
    actions: VecDeque<Duration>,
}

impl JustInTime {
    /// An inference took so long, milliseconds; vision with what it waited for.
    pub fn add(&mut self, vision_ms: f64, actions_ms: f64) {
        for (times, ms) in [(&mut self.vision, vision_ms), (&mut self.actions, actions_ms)] {
            if times.len() == WINDOW {
                times.pop_front();
            }
            times.extend(Duration::try_from_secs_f64(ms / 1e3).ok());
        }
    }

    /// From the start of the actions: when to begin the next inference, and when they will be done. `None` before the
    /// first inference.
    pub fn next(&self) -> Option<(Duration, Duration)> {
        let (vision, actions) = (median(&self.vision)?, median(&self.actions)?);
        Some((actions.saturating_sub(vision + MARGIN), actions))
    }
}

fn median(times: &VecDeque<Duration>) -> Option<Duration> {
    let mut sorted: Vec<Duration> = times.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vision_begins_so_that_it_ends_with_the_actions() {
        let mut times = JustInTime::default();
        assert_eq!(times.next(), None);
        (0..100).for_each(|_| times.add(20.0, 80.0));
        times.add(500.0, 5_000.0); // one that stalled does not count
        let ms = Duration::from_millis;
        assert_eq!(times.next(), Some((ms(60) - MARGIN, ms(80))));
        (0..WINDOW).for_each(|_| times.add(20.0, 10.0));
        assert_eq!(times.next(), Some((Duration::ZERO, ms(10))), "vision is the longer one: at once");
    }
}
