//! ROS time and steady time, and the way from one to the other.
//!
//! Promises: steady time never goes back and never jumps, whatever ROS time does. A ROS stamp is steady time less an
//! offset that follows the system's clock slowly; when ROS time jumps, [`RosClock::update`] says so once, and what was
//! stamped before belongs to another time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::clock::{NS_PER_MS, Stamp, Steady};
use crate::control::thread::{SimulatedTime, TickClock, monotonic};

/// The system's clock may be set by this much before it is a jump.
const JUMP_NS: i64 = 50 * NS_PER_MS;
/// Simulated time that does not change for so long stands.
const STANDSTILL: Duration = Duration::from_secs(1);
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
    /// The system's clocks.
    System,
    /// `/clock`, made steady for the control thread.
    Simulated(Arc<SimulatedTime>),
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Steady time less ROS time.
    offset: i64,
    /// The newest `/clock`, and when it came to be so.
    simulated: Option<(Stamp, Instant)>,
}

impl RosClock {
    /// The system's clocks.
    pub fn system() -> Self {
        let clock = Self { source: Source::System, state: Mutex::default() };
        clock.state.lock().offset = clock.measured_offset();
        clock
    }

    /// `/clock`; there is no time until it is heard.
    pub fn simulated() -> Self {
        Self { source: Source::Simulated(Arc::default()), state: Mutex::default() }
    }

    /// Whether time comes from `/clock`.
    pub fn is_simulated(&self) -> bool {
        matches!(self.source, Source::Simulated(_))
    }

    /// What the control thread ticks by.
    pub fn ticks(&self) -> TickClock {
        match &self.source {
            Source::System => TickClock::Monotonic,
            Source::Simulated(time) => TickClock::Simulated(Arc::clone(time)),
        }
    }

    /// ROS time, made steady. `None` before the first `/clock`.
    pub fn now(&self) -> Option<Stamp> {
        let state = *self.state.lock();
        match self.source {
            Source::System => Some(Stamp(monotonic().0.saturating_sub(state.offset))),
            Source::Simulated(_) => state.simulated.map(|(newest, _)| newest),
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

    /// Takes in a `/clock` message. True if simulated time went back.
    pub fn simulate(&self, now: Stamp) -> bool {
        let Source::Simulated(time) = &self.source else { return false };
        let mut state = self.state.lock();
        let last = state.simulated.map(|(newest, _)| newest);
        let back = last.filter(|last| now < *last);
        if let Some(last) = back {
            state.offset = state.offset.saturating_add(last.since(now));
        }
        if last != Some(now) {
            state.simulated = Some((now, Instant::now()));
        }
        time.advance(Steady(now.0.saturating_add(state.offset)));
        back.is_some()
    }

    /// Whether simulated time stands: it is paused, or whoever makes it is gone.
    pub fn stands(&self) -> bool {
        let simulated = self.state.lock().simulated;
        self.is_simulated() && simulated.is_none_or(|(_, since)| since.elapsed() >= STANDSTILL)
    }

    fn measured_offset(&self) -> i64 {
        if self.is_simulated() { 0 } else { monotonic().0.saturating_sub(system_time()) }
    }
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
        let TickClock::Simulated(ticks) = clock.ticks() else { panic!("ticks by the system's clock") };
        assert_eq!(clock.now(), None);
        for (stamp, back, steady) in [(100, false, 100), (150, false, 150), (10, true, 150), (30, false, 170)]
        {
            assert_eq!(clock.simulate(Stamp(stamp)), back);
            assert_eq!(ticks.newest(), Some(Steady(steady)));
        }
        assert_eq!(clock.now(), Some(Stamp(30)));
        assert_eq!(clock.steady(Stamp(20)), Steady(160));
    }
}
