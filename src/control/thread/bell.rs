//! Wakes who waits, without a lock: a counter and a futex.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::futex::{self, Flags};
use rustix::time::Timespec;

/// Longest single wait; who waits looks again after it.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Rung by one side, waited for by the other. To ring is one system call that never blocks.
#[derive(Debug, Default)]
pub(super) struct Bell(AtomicU32);

impl Bell {
    /// How often it rang. To be asked before looking at what it announces.
    pub fn rung(&self) -> u32 {
        self.0.load(Ordering::Acquire)
    }

    /// Wakes everybody who waits.
    pub fn ring(&self) {
        self.0.fetch_add(1, Ordering::Release);
        let _ = futex::wake(&self.0, Flags::PRIVATE, i32::MAX as u32); // fails for no valid address
    }

    /// Waits until it has rung more often than `heard`, at most for `timeout` or a second. May return early.
    pub fn wait(&self, heard: u32, timeout: Duration) {
        let timeout = timeout.min(WAIT_MAX);
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        // Rung meanwhile, interrupted, timed out: who waits looks for himself.
        let _ = futex::wait(&self.0, Flags::PRIVATE, heard, Some(&timeout));
    }
}
