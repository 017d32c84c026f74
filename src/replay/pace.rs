//! Bag time against the wall's: how fast a replay goes.

use std::thread;
use std::time::{Duration, Instant};

use crate::clock::{Stamp, seconds};

/// How fast bag time passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as the machine can; deterministic.
    Max,
    /// Bag seconds per second, above 0.
    Times(f64),
}

/// A clock to wait on.
#[derive(Debug)]
pub struct Pace {
    speed: Speed,
    /// A moment, and the bag time that belongs to it.
    origin: Option<(Instant, Stamp)>,
}

impl Pace {
    /// Begins with the first [`Pace::wait_until`].
    pub fn new(speed: Speed) -> Self {
        Self { speed, origin: None }
    }

    /// Waits until it is this bag time. What is past is not waited for.
    pub fn wait_until(&mut self, at: Stamp) {
        let Speed::Times(speed) = self.speed else { return };
        let (wall, bag) = *self.origin.get_or_insert_with(|| (Instant::now(), at));
        let passed = seconds(at.since(bag).max(0)) / speed;
        if let Ok(due) = Duration::try_from_secs_f64(passed) {
            thread::sleep(due.saturating_sub(wall.elapsed()));
        }
    }

    /// It is this bag time now: the stretch before it is not waited for.
    pub fn skip_to(&mut self, at: Stamp) {
        self.origin = self.origin.map(|_| (Instant::now(), at));
    }
}
