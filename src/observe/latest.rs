//! A slot that holds the newest value only: how threads hand over images and states without ever queueing them.
//!
//! A producer replaces what is there, whether anybody saw it or not, and never waits for a consumer: the lock is
//! held for a move (producer) or a clone (consumer), so `T` is something cheap to clone, an `Arc` as a rule.
//! Not for the control tick, which takes no lock at all.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The newest-value slot. Shared by reference or in an `Arc`.
#[derive(Debug)]
pub struct Latest<T> {
    slot: Mutex<Slot<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Slot<T> {
    /// Values put so far: the newest one's number, from 1.
    generation: u64,
    value: Option<T>,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self { slot: Mutex::new(Slot { generation: 0, value: None }), changed: Condvar::new() }
    }
}

impl<T> Latest<T> {
    /// An empty slot.
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces the value and wakes who waits. Returns the new value's generation: 1 for the first, then one more
    /// each time, so that a gap tells a consumer how many it missed.
    pub fn put(&self, value: T) -> u64 {
        let (generation, old) = {
            let mut slot = self.slot.lock();
            slot.generation += 1;
            (slot.generation, slot.value.replace(value))
        };
        self.changed.notify_all();
        drop(old); // outside the lock: freeing an image takes a while
        generation
    }

    /// Empties the slot (a stop, a clock jump). Generations go on counting.
    pub fn clear(&self) {
        let old = self.slot.lock().value.take();
        drop(old); // outside the lock, as in `put`
    }
}

impl<T: Clone> Latest<T> {
    /// The newest value with its generation, if it is newer than generation `seen`; 0 has seen nothing.
    pub fn newer_than(&self, seen: u64) -> Option<(u64, T)> {
        self.slot.lock().newer_than(seen)
    }

    /// As [`Self::newer_than`], but waits up to `timeout` for such a value to arrive.
    pub fn wait_newer_than(&self, seen: u64, timeout: Duration) -> Option<(u64, T)> {
        let deadline = Instant::now().checked_add(timeout);
        let mut slot = self.slot.lock();
        loop {
            let newer = slot.newer_than(seen);
            if newer.is_some() {
                return newer;
            }
            match deadline {
                Some(deadline) if self.changed.wait_until(&mut slot, deadline).timed_out() => {
                    return slot.newer_than(seen);
                }
                Some(_) => {}
                None => self.changed.wait(&mut slot), // longer than the clock can say
            }
        }
    }
}

impl<T: Clone> Slot<T> {
    fn newer_than(&self, seen: u64) -> Option<(u64, T)> {
        let value = self.value.as_ref().filter(|_| self.generation > seen)?;
        Some((self.generation, value.clone()))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    #[test]
    fn a_consumer_sees_the_newest_once_and_can_count_what_it_missed() {
        let latest = Latest::new();
        assert_eq!(latest.newer_than(0), None);
        latest.put("a");
        latest.put("b");
        assert_eq!(latest.put("c"), 3);
        assert_eq!(latest.newer_than(1), Some((3, "c")));
        assert_eq!(latest.newer_than(3), None);
        latest.clear();
        assert_eq!(latest.newer_than(0), None);
        assert_eq!(latest.put("d"), 4);
    }

    #[test]
    fn a_replaced_value_is_let_go() {
        let (latest, value) = (Latest::new(), Arc::new(()));
        latest.put(value.clone());
        latest.put(Arc::new(()));
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn waiting_ends_with_the_value_or_with_the_time() {
        let latest = Arc::new(Latest::new());
        let start = Instant::now();
        assert_eq!(latest.wait_newer_than(0, Duration::from_millis(20)), None);
        assert!(start.elapsed() >= Duration::from_millis(20));

        let waiter = thread::spawn({
            let latest = latest.clone();
            move || latest.wait_newer_than(1, Duration::MAX)
        });
        latest.put(1);
        latest.put(2);
        assert_eq!(waiter.join().unwrap(), Some((2, 2)));
    }

    #[test]
    fn values_never_go_back_and_the_last_one_arrives() {
        const LAST: u64 = 20_000;
        let latest = Arc::new(Latest::new());
        let producer = thread::spawn({
            let latest = latest.clone();
            move || (1..=LAST).for_each(|value| assert_eq!(latest.put(value), value))
        });
        let mut seen = 0;
        while seen < LAST {
            let (generation, value) = latest.wait_newer_than(seen, Duration::from_secs(20)).unwrap();
            assert!(generation > seen && value == generation);
            seen = generation;
        }
        producer.join().unwrap();
    }
}
