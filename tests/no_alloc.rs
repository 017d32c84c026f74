//! The tick, and every hand-over into and out of it, allocate and free nothing: proved by an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use pi05_thor::clock::Steady;
use pi05_thor::config::{Config, RobotKind};
use pi05_thor::control::recorder::{Capacity, Recorder};
use pi05_thor::control::thread::{ControlHandle, Due, Form, Options, Received, Request, TickClock};
use pi05_thor::control::workload::{MODES, Workload};
use pi05_thor::control::{Chunk, Guards, Reason, Scheduler, Splice, State};

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// Counts this thread's calls.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    CALLS.with(|calls| calls.set(calls.get() + 1));
}

#[allow(unsafe_code)] // an allocator is nothing but unsafe; it passes everything on to the system's
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller's promises are passed on unchanged.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count();
        unsafe { System.dealloc(pointer, layout) }
    }

    // SAFETY: as above.
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[test]
fn a_tick_in_any_mode_allocates_nothing() {
    for execution in MODES {
        for jerk_max in [f64::INFINITY, 200.0] {
            let mut workload = Workload::new(execution, 500.0, jerk_max).unwrap();
            let mut allocated = 0;
            for _ in 0..10_000 {
                workload.feed();
                let before = CALLS.get();
                workload.tick();
                allocated += CALLS.get() - before;
            }
            assert_eq!(allocated, 0, "{execution}: allocator calls");
            let counters = workload.status().counters;
            assert!(counters.chunks_accepted > 30 && counters.acceleration_limited > 100, "{counters:?}");
            assert!(jerk_max.is_infinite() || counters.jerk_limited > 100, "{counters:?}");
        }
    }
}

/// The control thread's tick, with another thread's work done in between and not counted: chunks of every fate, every
/// request, joint states that go stale, a publisher that is sometimes slow.
#[test]
fn the_control_threads_tick_and_its_hand_overs_allocate_nothing() {
    const TICKS: i64 = 20_000;
    const TICK: i64 = 10_000_000;
    let config = Config::builtin(RobotKind::Aloha).unwrap();
    let scheduler = Scheduler::new(config.control_config(50).unwrap()).unwrap();
    // Ten seconds, so that it comes round twenty times.
    let capacity = Capacity { seconds: 10.0, rate_hz: 100.0, commands: 14, measured: 14 };
    let recorder = Arc::new(Recorder::new(capacity));
    let options = Options {
        recorder: Some(Arc::clone(&recorder)),
        ..Options::new(TickClock::Monotonic, Form::PerTick, 100_000_000)
    };
    let (mut ticker, handle, mut outlet) = ControlHandle::without_thread(scheduler, options);
    let why = Reason::new("test");
    let requests = [
        Request::Brake(why),
        Request::Pause,
        Request::Resume,
        Request::Splice(Splice { blend_steps: 2, ..Splice::default() }, Guards::default()),
        Request::Stop(why),
        Request::Reset,
        Request::Fault(why),
        Request::Reset,
    ];
    let (mut allocated, mut commands, mut chunks) = (0, 0, 0);
    let mut seen = [0u64; State::ALL.len()];
    for tick in 0..TICKS {
        let now = Steady(tick * TICK);
        if tick % 1000 < 960 {
            handle.put_joints(now, &[0.1; 14]);
        }
        if tick % 10 == 7 && tick % 500 < 400 {
            let mut actions = vec![vec![((tick * 7) % 11) as f64 - 5.0; 14]; 50];
            if tick % 80 == 37 {
                actions[49][13] = f64::NAN;
            }
            let epoch = handle.status().epoch - u64::from(tick % 90 == 57 && handle.status().epoch > 0);
            let chunk = Chunk { id: tick as u64, epoch, observed: now, period_ns: 20_000_000, actions };
            handle.send_chunk(&chunk).unwrap();
        }
        if tick % 100 == 99 {
            handle.request(requests[(tick / 100) as usize % requests.len()]).unwrap();
        }
        if tick + 1 == TICKS {
            handle.request(Request::Deactivate).unwrap();
        }
        let before = CALLS.get();
        let goes_on = ticker.step(Due { at: now, late_ns: 0, skipped: 0 });
        allocated += CALLS.get() - before;
        assert!(goes_on || tick + 1 == TICKS);
        seen[handle.status().state as usize] += 1;
        if tick % 7 != 0 {
            commands += u64::from(matches!(outlet.receive(Duration::ZERO), Received::Command(_)));
        }
        chunks += handle.outcomes().count();
    }
    assert_eq!(allocated, 0, "allocator calls");
    // And it was no empty run.
    let status = handle.status();
    assert!(commands > 10_000 && chunks == 1600, "{commands} {chunks}");
    assert!(seen[1..].iter().all(|&ticks| ticks > 20), "every state but idle: {seen:?}");
    let counters = status.counters;
    assert!(
        counters.chunks_malformed > 0 && counters.chunks_of_old_epoch > 0 && counters.chunks_not_wanted > 0
    );
    assert!(counters.joints_stale > 0 && status.timing.lost > 0 && counters.chunks_accepted > 300);
    let flight = recorder.flight();
    assert_eq!(flight.ticks.len(), 1000);
    assert!(flight.measured.len() > 900 && flight.changes.len() > 10, "{}", flight.changes.len());
}
