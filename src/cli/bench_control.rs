//! `pi05 bench control`: how punctual the control thread is, and what a tick costs.

use std::env;
use std::io::{self, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use stats_alloc::INSTRUMENTED_SYSTEM;

use super::out::stdout;
use super::{Failure, Verdict, progress};
use crate::clock::{NS_PER_MS, NS_PER_S, Steady};
use crate::config::{Config, Execution, RobotKind};
use crate::control::recorder::{Capacity, Recorder};
use crate::control::thread::{
    ControlHandle, Distribution, Form, Granted, Options, Outlet, RealTime, Received, Status, TickClock,
    monotonic,
};
use crate::control::workload::{MODES, Workload, WorkloadError};
use crate::control::{Chunk, Scheduler};

/// Measure the control thread: how late its ticks come, idle and with all cores loaded, and what one costs
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 bench control --seconds 60\n\n\
                        Both ALOHA arms (14 joints) follow chunks of 50 steps, ten per second, with the flight recorder on.\n\
                        Loaded: a process per core that computes and writes memory without end.")]
pub struct Args {
    /// Of each of the eight measurements
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    seconds: f64,
    /// Of SCHED_FIFO; 0: ordinary scheduling
    #[arg(long, value_name = "P", default_value_t = 40, value_parser = clap::value_parser!(u8).range(0..=99))]
    priority: u8,
    /// Run on this CPU alone
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Compute until stdin ends: a part of the load
    #[arg(long, hide = true)]
    spin: bool,
}

/// Periods measured, ms.
const PERIODS_MS: [i64; 4] = [1, 2, 4, 20];
/// Ticks measured one after the other, without a clock, at so many per second: every tenth takes a chunk.
const TICKS: usize = 20_000;
const RATE_HZ: f64 = 100.0;
/// So often the same ticks. Of each the shortest is what the program costs: what interrupts it is not there every time.
const RUNS: usize = 10;
/// Of the joints whose jerk is limited, rad/s³.
const JERK_MAX: f64 = 300.0;
/// Between two runs: the system stops a thread that computes under SCHED_FIFO for most of a second.
const BREATH: Duration = Duration::from_millis(100);
/// Steps of a chunk.
const STEPS: usize = 50;
/// Between two chunks, as from a policy on a GPU.
const CHUNK_NS: i64 = 100 * NS_PER_MS;
/// Between two measured states.
const JOINTS: Duration = Duration::from_millis(10);
/// A loaded machine feeds late; that is not what is measured here.
const JOINTS_MAX_AGE_NS: i64 = 60 * NS_PER_S;
/// The recorder's, as by default.
const RECORDED_S: f64 = 30.0;
/// What a loading process writes to, again and again: more than its share of any cache.
const SPIN_BYTES: usize = 8 << 20;

#[derive(Serialize)]
struct Results {
    granted: String,
    warning: Option<String>,
    cores: usize,
    joints: usize,
    punctuality: Vec<Punctuality>,
    tick: Vec<TickCost>,
}

/// One load, one period.
#[derive(Serialize)]
struct Punctuality {
    loaded: bool,
    period_ms: i64,
    ticks: u64,
    overruns: u64,
    late_us: Percentiles,
    work_us: Percentiles,
}

/// One tick after the other.
#[derive(Serialize)]
struct TickCost {
    execution: &'static str,
    jerk_limited: bool,
    /// In all runs.
    ticks: usize,
    work_us: Percentiles,
    /// Each tick's shortest time of all runs.
    best_us: Percentiles,
    /// Of those, the ticks that a chunk takes over in.
    taking_us: Percentiles,
    allocator_calls: usize,
}

/// Those of the control thread are at most 6 % above the exact ones; the longest is exact.
#[derive(Serialize)]
struct Percentiles {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(times: &Distribution, max_ns: i64) -> Self {
        let us = |ns: i64| ns as f64 / 1e3;
        let at = |share| times.quantile_ns(share).map_or(f64::NAN, |ns| us(ns.min(max_ns)));
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: us(max_ns) }
    }

    fn of_all(mut times_ns: Vec<u64>) -> Self {
        times_ns.sort_unstable();
        let at = |share: f64| {
            let rank = (share * times_ns.len() as f64).ceil() as usize;
            times_ns.get(rank.max(1) - 1).map_or(f64::NAN, |&ns| ns as f64 / 1e3)
        };
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: at(1.0) }
    }
}

pub fn run(args: &Args) -> Result<Verdict, Failure> {
    if args.spin {
        spin_until_stdin_ends();
        return Ok(Verdict::Ok);
    }
    let seconds = args.seconds.clamp(0.1, 3600.0);
    let priority = Some(args.priority).filter(|&priority| priority > 0);
    let real_time = RealTime { priority, lock_memory: true, cpu: args.cpu };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let bar = progress::bar("control");
    let all = (2 * PERIODS_MS.len() + 1) as u64;
    progress::set(&bar, 0, all);
    let tick = [f64::INFINITY, JERK_MAX].into_iter().flat_map(|jerk| MODES.map(|mode| (mode, jerk)));
    let tick = tick.map(|(mode, jerk)| tick_cost(mode, jerk, real_time)).collect::<Result<Vec<_>, _>>()?;
    let (mut granted, mut punctuality) = (Granted::default(), Vec::new());
    for loaded in [false, true] {
        let _load = if loaded { Load::start(cores)? } else { Load(Vec::new()) };
        for period_ms in PERIODS_MS {
            progress::set(&bar, punctuality.len() as u64 + 1, all);
            let measured;
            (granted, measured) = punctual(loaded, period_ms, seconds, real_time)?;
            punctuality.push(measured);
        }
    }
    bar.finish_and_clear();
    let results = Results {
        granted: granted.to_string(),
        warning: granted.warning(),
        cores,
        joints: robot()?.joints.action_names.len(),
        punctuality,
        tick,
    };
    let mut out = stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results)?;
    }
    let allocates = results.tick.iter().any(|tick| tick.allocator_calls > 0);
    Ok(if allocates { Verdict::Wanting } else { Verdict::Ok })
}

fn print(out: &mut impl Write, results: &Results) -> io::Result<()> {
    writeln!(out, "{} joints, {} cores; {}", results.joints, results.cores, results.granted)?;
    if let Some(warning) = &results.warning {
        writeln!(out, "{warning}")?;
    }
    let head = ["late p50", "p99", "p99.9", "max", "tick p50", "p99.9", "max"];
    write!(out, "{:<18} {:>8} {:>9}", "µs", "ticks", "overruns")?;
    head.iter().try_for_each(|name| write!(out, " {name:>9}"))?;
    writeln!(out)?;
    let numbers = |out: &mut dyn Write, values: &[f64]| {
        values.iter().try_for_each(|value| write!(out, " {value:>9.1}"))?;
        writeln!(out)
    };
    for row in &results.punctuality {
        let name = format!("{}, {} ms", if row.loaded { "loaded" } else { "idle" }, row.period_ms);
        write!(out, "{name:<18} {:>8} {:>9}", row.ticks, row.overruns)?;
        let (late, work) = (&row.late_us, &row.work_us);
        numbers(out, &[late.p50, late.p99, late.p999, late.max, work.p50, work.p999, work.max])?;
    }
    writeln!(
        out,
        "\nOne tick after another, µs. Best: each tick's shortest time of {RUNS} runs of the same {TICKS} ticks; taking: of\n\
         these, the ticks that a chunk takes over in (every tenth). What interrupts a run is in the first columns only."
    )?;
    write!(out, "{:<24}", "mode")?;
    let head = ["p50", "p99", "p99.9", "max", "best p50", "p99.9", "max", "taking p50", "max", "allocations"];
    head.iter().try_for_each(|name| write!(out, " {name:>10}"))?;
    writeln!(out)?;
    for TickCost { execution, jerk_limited, work_us, best_us, taking_us, allocator_calls, .. } in
        &results.tick
    {
        write!(out, "{:<24}", format!("{execution}{}", if *jerk_limited { ", jerk limited" } else { "" }))?;
        let (work, best, taking) = (work_us, best_us, taking_us);
        let all =
            [work.p50, work.p99, work.p999, work.max, best.p50, best.p999, best.max, taking.p50, taking.max];
        all.iter().try_for_each(|us| write!(out, " {us:>10.2}"))?;
        writeln!(out, " {allocator_calls:>10}")?;
    }
    Ok(())
}

/// A thread that ticks by the clock for so long, fed and heard as by the node.
fn punctual(
    loaded: bool,
    period_ms: i64,
    seconds: f64,
    real_time: RealTime,
) -> Result<(Granted, Punctuality), Failure> {
    let rate_hz = 1e3 / period_ms as f64;
    let options = Options { real_time, ..options(rate_hz)? };
    let (handle, outlet) = ControlHandle::start(scheduler(rate_hz)?, options)?;
    let publisher = thread::Builder::new().name("commands".to_owned()).spawn(move || hear(outlet))?;
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut chunks = (0..).map(|id| chunk(id, monotonic()));
    let mut next = Instant::now();
    while Instant::now() < end {
        handle.put_joints(monotonic(), &[0.5; 14]);
        handle.outcomes().for_each(drop);
        if Instant::now() >= next {
            next += Duration::from_nanos(CHUNK_NS.unsigned_abs());
            // One that finds no room is as good as one that never came.
            let _ = chunks.next().map(|chunk| handle.send_chunk(&chunk));
        }
        thread::sleep(JOINTS);
    }
    let Status { timing, .. } = handle.status();
    let measured = Punctuality {
        loaded,
        period_ms,
        ticks: timing.ticks,
        overruns: timing.overruns,
        late_us: Percentiles::of(&handle.lateness(), timing.late_max_ns),
        work_us: Percentiles::of(&handle.work(), timing.work_max_ns),
    };
    let granted = *handle.granted();
    drop(handle); // brakes and ends
    publisher.join().map_err(|_| "the thread that takes the commands panicked")?;
    Ok((granted, measured))
}

/// Ticks one after the other: what they cost. On a thread of its own that is not interrupted either; no other thread
/// allocates meanwhile.
fn tick_cost(execution: Execution, jerk_max: f64, real_time: RealTime) -> Result<TickCost, Failure> {
    let run = move || -> Result<TickCost, WorkloadError> {
        real_time.ask();
        let (mut best, mut all) = (vec![u64::MAX; TICKS], Vec::with_capacity(RUNS * TICKS));
        let (mut takes, mut allocator_calls) = (vec![false; TICKS], 0);
        for _ in 0..RUNS {
            thread::sleep(BREATH);
            let mut workload = Workload::new(execution, RATE_HZ, jerk_max)?;
            for (best, takes) in best.iter_mut().zip(&mut takes) {
                *takes = workload.feed();
                let calls = allocator_calls_so_far();
                let begin = Instant::now();
                workload.tick();
                let ns = begin.elapsed().as_nanos() as u64; // far from overflow
                allocator_calls += allocator_calls_so_far() - calls;
                *best = ns.min(*best);
                all.push(ns);
            }
        }
        let taking = best.iter().zip(&takes).filter(|(_, takes)| **takes).map(|(ns, _)| *ns).collect();
        Ok(TickCost {
            execution: execution.name(),
            jerk_limited: jerk_max.is_finite(),
            ticks: all.len(),
            work_us: Percentiles::of_all(all),
            best_us: Percentiles::of_all(best),
            taking_us: Percentiles::of_all(taking),
            allocator_calls,
        })
    };
    let thread = thread::Builder::new().name("control".to_owned()).spawn(run)?;
    Ok(thread.join().map_err(|_| "the thread that ticks panicked")??)
}

fn allocator_calls_so_far() -> usize {
    let stats = INSTRUMENTED_SYSTEM.stats();
    stats.allocations + stats.deallocations + stats.reallocations
}

fn robot() -> Result<Config, Failure> {
    Ok(Config::builtin(RobotKind::Aloha)?)
}

fn scheduler(rate_hz: f64) -> Result<Scheduler, Failure> {
    let mut robot = robot()?;
    robot.control.rate_hz = rate_hz;
    Ok(Scheduler::new(robot.control_config(STEPS)?)?)
}

fn options(rate_hz: f64) -> Result<Options, Failure> {
    let joints = robot()?.joints;
    let capacity = Capacity {
        seconds: RECORDED_S,
        rate_hz,
        commands: joints.action_names.len(),
        measured: joints.names.len(),
    };
    let recorder = Some(Arc::new(Recorder::new(capacity)));
    Ok(Options { recorder, ..Options::new(TickClock::Monotonic, Form::PerTick, JOINTS_MAX_AGE_NS) })
}

/// A second of slow waves, each joint at its own pace, that goes on where the chunk before it does.
fn chunk(id: u64, observed: Steady) -> Chunk {
    let step_ns = 20 * NS_PER_MS;
    let actions = (0..STEPS as i64).map(|step| {
        let time = (observed.0 + step * step_ns) as f64 / NS_PER_S as f64;
        (0..14).map(|joint| 0.5 + 0.3 * (time * (0.5 + 0.1 * f64::from(joint))).sin()).collect()
    });
    Chunk { id, epoch: 0, observed, period_ns: step_ns, actions: actions.collect() }
}

/// Takes what is given, as the publisher does.
fn hear(mut outlet: Outlet) {
    while outlet.receive(Duration::from_secs(1)) != Received::Ended {}
}

/// Processes that compute without end, until this is dropped.
struct Load(Vec<Child>);

impl Load {
    fn start(cores: usize) -> Result<Self, Failure> {
        let program = env::current_exe()?;
        let mut load = Self(Vec::new());
        for _ in 0..cores {
            let mut command = Command::new(&program);
            command.args(["bench", "control", "--spin"]).stdin(Stdio::piped()).stdout(Stdio::null());
            load.0.push(command.spawn()?);
        }
        thread::sleep(Duration::from_millis(300)); // until they are at it
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Already gone is as good.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One core's load. It ends with its stdin, and so with who started it, however that ends.
fn spin_until_stdin_ends() {
    let ended = Arc::new(AtomicBool::new(false));
    let spinning = thread::spawn({
        let ended = Arc::clone(&ended);
        move || {
            let mut bytes = vec![0u8; SPIN_BYTES];
            while !ended.load(Ordering::Relaxed) {
                bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(5).wrapping_add(3));
                std::hint::black_box(&mut bytes);
            }
        }
    });
    // However it ends, it has ended.
    let _ = io::stdin().lock().read_to_end(&mut Vec::new());
    ended.store(true, Ordering::Relaxed);
    let _ = spinning.join();
}
