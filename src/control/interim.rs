//! interim: until the control thread is there.
#![allow(missing_docs)]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Chunk, Scheduler};
use crate::clock::Steady;

pub struct ControlHandle {
    inner: Arc<Mutex<Inner>>,
    end: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    scheduler: Scheduler,
    measured: Option<Vec<f64>>,
}

pub struct Tick {
    pub values: Vec<f64>,
    pub at: Steady,
}

impl ControlHandle {
    pub fn start(
        scheduler: Scheduler,
        rate_hz: f64,
        now: impl Fn() -> Steady + Send + 'static,
        sink: crossbeam_channel::Sender<Tick>,
    ) -> Self {
        let inner = Arc::new(Mutex::new(Inner { scheduler, measured: None }));
        let end = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (inner, end) = (Arc::clone(&inner), Arc::clone(&end));
            move || {
                let start = Instant::now();
                let mut k = 0u32;
                while !end.load(Ordering::Relaxed) {
                    let due = start + Duration::from_secs_f64(f64::from(k) / rate_hz);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    k += 1;
                    let at = now();
                    let mut inner = inner.lock();
                    let Inner { scheduler, measured } = &mut *inner;
                    if let Some(command) = scheduler.tick(at, measured.as_deref()) {
                        let _ = sink.try_send(Tick { values: command.values.to_vec(), at });
                    }
                }
            }
        });
        Self { inner, end, thread: Mutex::new(Some(thread)) }
    }
    pub fn accepts_chunks(&self) -> bool {
        true
    }
    pub fn follow(&self, chunk: Chunk, now: Steady) {
        let _ = self.inner.lock().scheduler.accept(&chunk, now);
    }
    pub fn measured(&self, _: Steady, positions: &[f64]) {
        self.inner.lock().measured = Some(positions.to_vec());
    }
    pub fn deactivate(&self) {
        self.end.store(true, Ordering::Relaxed);
    }
    pub fn is_finished(&self) -> bool {
        self.thread.lock().as_ref().is_none_or(JoinHandle::is_finished)
    }
    pub fn state(&self) -> &'static str {
        "running"
    }
}
