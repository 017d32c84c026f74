//! When the next tick is due: on the monotonic clock, or on a simulated one.
//!
//! Promises: ticks are due at `t0 + k·period`, k from 0, where `t0` is when the thread began to tick. One that comes
//! too late for its time is skipped and counted, never caught up: the tick that runs is the newest that is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::bell::Bell;
use crate::clock::{NS_PER_S, Steady};

/// CLOCK_MONOTONIC as steady time: what a [`TickClock::Monotonic`] control thread counts in.
pub fn monotonic() -> Steady {
    let now = clock_gettime(ClockId::Monotonic);
    Steady(now.tv_sec * NS_PER_S + now.tv_nsec)
}

/// What a control thread ticks by. All times that it is given must be of the same clock.
#[derive(Clone, Debug)]
pub enum TickClock {
    /// [`monotonic`].
    Monotonic,
    /// Whatever feeds it.
    Simulated(Arc<SimulatedTime>),
}

/// The newest simulated time. Never goes back.
#[derive(Debug)]
pub struct SimulatedTime {
    newest: AtomicI64,
    bell: Bell,
}

impl Default for SimulatedTime {
    fn default() -> Self {
        Self { newest: AtomicI64::new(NO_TIME), bell: Bell::default() }
    }
}

/// Before the first time is known.
const NO_TIME: i64 = i64::MIN;
/// How long a thread that ticks by the monotonic clock sleeps at most: nobody waits for a slow tick to be heard.
const LONGEST_SLEEP_NS: i64 = NS_PER_S / 10;

impl SimulatedTime {
    /// No time yet: a thread that ticks by it begins with the first.
    pub fn new() -> Self {
        Self::default()
    }

    /// It is `now`, steady time made of `/clock`. An older time than the newest changes nothing.
    pub fn advance(&self, now: Steady) {
        self.newest.fetch_max(now.0, Ordering::AcqRel);
        self.bell.ring();
    }

    /// The newest time, if there was one.
    pub fn newest(&self) -> Option<Steady> {
        Some(Steady(self.newest.load(Ordering::Acquire))).filter(|time| time.0 != NO_TIME)
    }
}

impl TickClock {
    /// Makes a thread look whether there is something to do although no tick is due. One that ticks by the monotonic
    /// clock looks by itself: at its next tick, or after [`LONGEST_SLEEP_NS`].
    pub(super) fn wake(&self) {
        if let Self::Simulated(time) = self {
            time.bell.ring();
        }
    }
}

/// A tick that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its time: a point of the grid.
    pub at: Steady,
    /// How much later than the point that was waited for it is, ns.
    pub late_ns: i64,
    /// Points between that one and `at`.
    pub skipped: u64,
}

/// The points in time at which ticks are due.
#[derive(Debug)]
pub(super) struct Grid {
    clock: TickClock,
    period_ns: i64,
    start: Option<Steady>,
    /// Number of the next point.
    next: i64,
}

impl Grid {
    pub fn new(clock: TickClock, period_ns: i64) -> Self {
        Self { clock, period_ns, start: None, next: 0 }
    }

    /// To be asked before looking whether anything is to be done; then [`Self::wait`] misses nothing.
    pub fn rung(&self) -> u32 {
        match &self.clock {
            TickClock::Monotonic => 0,
            TickClock::Simulated(time) => time.bell.rung(),
        }
    }

    /// The tick that is due, if one is.
    pub fn poll(&mut self) -> Option<Due> {
        let now = match &self.clock {
            TickClock::Monotonic => monotonic(),
            TickClock::Simulated(time) => time.newest()?,
        };
        let start = *self.start.get_or_insert(now);
        self.due(start, now)
    }

    /// Waits until a tick may be due, or something else is to be looked after.
    pub fn wait(&self, rung: u32) {
        match &self.clock {
            TickClock::Monotonic => {
                let next = self.point(self.start.unwrap_or_default(), self.next);
                sleep_until(next.min(Steady(monotonic().0.saturating_add(LONGEST_SLEEP_NS))));
            }
            TickClock::Simulated(time) => time.bell.wait(rung, Duration::MAX),
        }
    }

    fn point(&self, start: Steady, number: i64) -> Steady {
        Steady(start.0.saturating_add(self.period_ns.saturating_mul(number)))
    }

    /// The newest point up to `now` that no tick was at.
    fn due(&mut self, start: Steady, now: Steady) -> Option<Due> {
        let newest = now.0.saturating_sub(start.0) / self.period_ns;
        if newest < self.next {
            return None;
        }
        let skipped = (newest - self.next) as u64;
        let late_ns = now.0.saturating_sub(self.point(start, self.next).0);
        self.next = newest + 1;
        Some(Due { at: self.point(start, newest), late_ns, skipped })
    }
}

fn sleep_until(time: Steady) {
    let until = Timespec { tv_sec: time.0.div_euclid(NS_PER_S), tv_nsec: time.0.rem_euclid(NS_PER_S) };
    // A signal interrupts it; who waits finds nothing due and sleeps on.
    let _ = clock_nanosleep_absolute(ClockId::Monotonic, &until);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_due_point_ticks_once_and_the_others_are_counted() {
        let time = Arc::new(SimulatedTime::new());
        let mut grid = Grid::new(TickClock::Simulated(Arc::clone(&time)), 10);
        let mut at = |now| {
            time.advance(Steady(now));
            grid.poll()
        };
        let due = |at, late_ns, skipped| Some(Due { at: Steady(at), late_ns, skipped });
        assert_eq!(at(103), due(103, 0, 0), "anchored where it began");
        assert_eq!(at(114), due(113, 1, 0));
        assert_eq!(at(155), due(153, 32, 3));
        assert_eq!(at(162), None);
        assert_eq!(at(163), due(163, 0, 0));
    }

    #[test]
    fn simulated_time_never_goes_back() {
        let time = SimulatedTime::new();
        assert_eq!(time.newest(), None);
        time.advance(Steady(5));
        time.advance(Steady(3));
        assert_eq!(time.newest(), Some(Steady(5)));
    }

    #[test]
    fn the_monotonic_grid_has_no_drift() {
        let mut grid = Grid::new(TickClock::Monotonic, 2_000_000);
        let mut wait = || {
            loop {
                if let Some(due) = grid.poll() {
                    break due;
                }
                grid.wait(grid.rung());
            }
        };
        let first = wait();
        for _ in 0..20 {
            let due = wait();
            assert_eq!((due.at.0 - first.at.0) % 2_000_000, 0);
            assert!(due.late_ns >= 0 && monotonic() >= due.at);
        }
    }
}
