//! ROS time and steady time, and the way from one to the other.
//!
//! Promises: steady time never goes back and never jumps, whatever ROS time does. A ROS stamp is steady time less an
//! offset that follows the system's clock slowly; when ROS time jumps, [`RosClock::update`] says so once, and what was
//! stamped before belongs to another time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::clock::{NS_PER_MS, Stamp, Steady};

/// The system's clock may be set by this much before it is a jump.
const JUMP_NS: i64 = 50 * NS_PER_MS;
/// A drift below this is not followed, so that the same stamp stays the same time.
const DRIFT_NS: i64 = NS_PER_MS;

/// The node's clock, shared by its threads.
#[derive(Debug)]
pub struct RosClock {
    source: Source,
    state: Mutex<State>,
}

#[derive(Debug)]
enum Source {
    /// The system's clocks; steady time counts from here.
    System(Instant),
    /// `/clock`.
    Simulated,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Steady time less ROS time.
    offset: i64,
    /// The newest `/clock`.
    simulated: Option<Stamp>,
}

impl RosClock {
    /// The system's clocks.
    pub fn system() -> Self {
        let clock = Self { source: Source::System(Instant::now()), state: Mutex::default() };
        clock.state.lock().offset = clock.measured_offset();
        clock
    }

    /// `/clock`; there is no time until it is heard.
    pub fn simulated() -> Self {
        Self { source: Source::Simulated, state: Mutex::default() }
    }

    /// Whether time comes from `/clock`.
    pub fn is_simulated(&self) -> bool {
        matches!(self.source, Source::Simulated)
    }

    /// ROS time, made steady. `None` before the first `/clock`.
    pub fn now(&self) -> Option<Stamp> {
        let state = *self.state.lock();
        match self.source {
            Source::System(start) => Some(Stamp(elapsed(start).saturating_sub(state.offset))),
            Source::Simulated => state.simulated,
        }
    }

    /// The steady time of a ROS stamp.
    pub fn steady(&self, stamp: Stamp) -> Steady {
        Steady(stamp.0.saturating_add(self.state.lock().offset))
    }

    /// The ROS stamp of a steady time.
    pub fn stamp(&self, steady: Steady) -> Stamp {
        Stamp(steady.0.saturating_sub(self.state.lock().offset))
    }

    /// Looks at the system's clock. True if it has jumped since the last look. Called often by one thread.
    pub fn update(&self) -> bool {
        if self.is_simulated() {
            return false;
        }
        let measured = self.measured_offset();
        let mut state = self.state.lock();
        let moved = measured.saturating_sub(state.offset).saturating_abs();
        if moved > DRIFT_NS {
            state.offset = measured;
        }
        moved > JUMP_NS
    }

    /// Takes in a `/clock` message. Gives the steady time now, and true if simulated time went back.
    pub fn simulate(&self, now: Stamp) -> (Steady, bool) {
        let mut state = self.state.lock();
        let back = state.simulated.filter(|last| now < *last);
        if let Some(last) = back {
            state.offset = state.offset.saturating_add(last.since(now));
        }
        state.simulated = Some(now);
        (Steady(now.0.saturating_add(state.offset)), back.is_some())
    }

    fn measured_offset(&self) -> i64 {
        match self.source {
            Source::System(start) => elapsed(start).saturating_sub(system_time()),
            Source::Simulated => 0,
        }
    }
}

fn elapsed(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since 1970 by the system's clock.
fn system_time() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |ns| -ns),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::NS_PER_S;

    #[test]
    fn stamps_and_steady_times_convert_exactly() {
        let clock = RosClock::system();
        let now = clock.now().unwrap();
        assert!(now.since(Stamp(system_time())).abs() < NS_PER_S);
        assert_eq!(clock.stamp(clock.steady(now)), now);
        assert!(!clock.update());
    }

    #[test]
    fn simulated_time_that_goes_back_is_a_jump_and_steady_time_goes_on() {
        let clock = RosClock::simulated();
        assert_eq!(clock.now(), None);
        assert_eq!(clock.simulate(Stamp(100)), (Steady(100), false));
        assert_eq!(clock.simulate(Stamp(150)), (Steady(150), false));
        assert_eq!(clock.simulate(Stamp(10)), (Steady(150), true));
        assert_eq!(clock.simulate(Stamp(30)), (Steady(170), false));
        assert_eq!(clock.now(), Some(Stamp(30)));
        assert_eq!(clock.steady(Stamp(20)), Steady(160));
    }
}
