//! The tick, and the hand-over of a chunk, allocate nothing: proved by an allocator that counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pi05_thor::clock::Steady;
use pi05_thor::config::{Config, RobotKind};
use pi05_thor::control::{Chunk, Scheduler};

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
fn ten_thousand_ticks_and_their_chunks_allocate_nothing() {
    const TICKS: i64 = 10_000;
    const TICK: i64 = 10_000_000;
    let config = Config::builtin(RobotKind::Aloha).unwrap();
    let mut scheduler = Scheduler::new(config.control_config(50).unwrap()).unwrap();
    let measured = vec![0.1; 14];
    // A chunk every 100 ms with a pause of 2 s now and then, so that plans fade, end and begin anew; every eighth is
    // refused. Values go far beyond the limits.
    let chunks: Vec<Chunk> = (0..TICKS / 10)
        .map(|k| {
            let actions = (0..50).map(|step| vec![((k * 7 + step) % 11) as f64 - 5.0; 14]).collect();
            let mut chunk = Chunk {
                id: k as u64,
                epoch: 0,
                observed: Steady(k * 10 * TICK),
                period_ns: 20_000_000,
                actions,
            };
            if k % 8 == 3 {
                chunk.actions[49][13] = f64::NAN;
            }
            chunk
        })
        .collect();
    let before = CALLS.get();
    let mut commands = 0;
    for tick in 0..TICKS {
        let now = Steady(tick * TICK);
        if tick % 10 == 7 && tick % 1000 < 800 {
            let _ = scheduler.accept(&chunks[(tick / 10) as usize], now); // refusals are part of the test
        }
        commands += u64::from(scheduler.tick(now, Some(&measured)).is_some());
    }
    assert_eq!(CALLS.get() - before, 0, "allocator calls");
    // And it was no empty run.
    let counters = scheduler.counters();
    assert_eq!(commands, TICKS as u64 - 7);
    assert!(counters.chunks_accepted > 600 && counters.chunks_malformed > 90);
    assert!(counters.position_limited > 0 && counters.velocity_limited > 0);
}
