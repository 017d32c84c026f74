//! The fault table (docs/safety.md): setup → fault → recovery → invariant. Here stand the faults that need no process of
//! the node's own; the table names where each of the others is tested, and a test below that these exist.
//!
//! Each fault is caused for real: a thread that panics, a value that is no number, a disk that is full. Whatever happens,
//! [`Arm`] checks every command: one per tick, finite, within position and speed limits.

#![allow(clippy::unwrap_used, clippy::panic)] // in functions that the tests share

use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pi05_thor::clock::{Stamp, Steady};
use pi05_thor::config::{CommandType, Config, RobotKind};
use pi05_thor::control::recorder::{Capacity, Recorder};
use pi05_thor::control::thread::{
    ControlHandle, Form, Options, Outlet, RealTime, Received, Request, SimulatedTime, Status, TickClock,
    monotonic,
};
use pi05_thor::control::{Chunk, JointLimits, Reason, Rejected, Scheduler, State};
use pi05_thor::replay::bag::Bag;
use pi05_thor::replay::flight::{Labels, write_flight};

const MS: i64 = 1_000_000;
const TICK: i64 = 10 * MS;
const SOON: Duration = Duration::from_secs(10);
/// As one would set it for a real arm.
const FIRST_STEP_MAX: f64 = 1.0;
/// Both ALOHA arms, where they begin.
const HOME: f64 = 0.2;

/// Two arms that are where they were sent, and control on simulated time.
struct Arm {
    time: Arc<SimulatedTime>,
    handle: ControlHandle,
    outlet: Outlet,
    recorder: Arc<Recorder>,
    limits: JointLimits,
    now: i64,
    positions: Vec<f64>,
    next_id: u64,
}

impl Arm {
    /// Armed.
    fn new() -> Self {
        let mut robot = Config::builtin(RobotKind::Aloha).unwrap();
        robot.control.first_step_max = FIRST_STEP_MAX;
        let config = robot.control_config(50).unwrap();
        let limits = config.limits.clone();
        let joints = limits.as_slice().len();
        let time = Arc::new(SimulatedTime::new());
        let capacity = Capacity { seconds: 30.0, rate_hz: 100.0, commands: joints, measured: joints };
        let recorder = Arc::new(Recorder::new(capacity));
        let clock = TickClock::Simulated(Arc::clone(&time));
        let options =
            Options { recorder: Some(Arc::clone(&recorder)), ..Options::new(clock, Form::PerTick, 100 * MS) };
        let (handle, outlet) = ControlHandle::start(Scheduler::new(config).unwrap(), options).unwrap();
        let (now, positions, next_id) = (5_000 * MS, vec![HOME; joints], 0);
        let mut arm = Self { time, handle, outlet, recorder, limits, now, positions, next_id };
        arm.tick();
        arm
    }

    /// Moving, in the first third of a chunk.
    fn running() -> Self {
        let mut arm = Self::new();
        let chunk = arm.chunk();
        arm.give(chunk).unwrap();
        arm.ticks(20);
        assert_eq!(arm.state(), State::Running);
        arm
    }

    fn state(&self) -> State {
        self.status().state
    }

    fn status(&self) -> Status {
        self.handle.status()
    }

    /// A second of slow motion from where the arms are, begun now.
    fn chunk(&mut self) -> Chunk {
        self.next_id += 1;
        let actions =
            (0..50).map(|k| self.positions.iter().map(|p| p + 0.004 * f64::from(k)).collect()).collect();
        let observed = Steady(self.now);
        Chunk { id: self.next_id, epoch: self.status().epoch, observed, period_ns: 20 * MS, actions }
    }

    /// Hands a chunk over; one tick later, what became of it.
    fn give(&mut self, chunk: Chunk) -> Result<(), Rejected> {
        self.handle.send_chunk(&chunk).unwrap();
        self.tick();
        self.handle.outcomes().last().unwrap().result.map(|_| ())
    }

    /// One tick. Gives whether it commanded anything.
    fn tick(&mut self) -> bool {
        self.handle.put_joints(Steady(self.now + TICK), &self.positions);
        self.tick_without_joints()
    }

    fn tick_without_joints(&mut self) -> bool {
        self.now += TICK;
        self.time.advance(Steady(self.now));
        let give_up = Instant::now() + SOON;
        while self.status().tick < Some(Steady(self.now)) {
            assert!(Instant::now() < give_up && self.handle.is_alive(), "no tick at {}", self.now);
            thread::yield_now();
        }
        let Received::Command(sent) = self.outlet.receive(Duration::ZERO) else { return false };
        assert_eq!(sent.at, Steady(self.now), "one command per tick");
        for ((value, before), limit) in sent.values.iter().zip(&self.positions).zip(self.limits.as_slice()) {
            assert!(
                value.is_finite() && (limit.position_min..=limit.position_max).contains(value),
                "{value}"
            );
            assert!((value - before).abs() <= limit.velocity_max * 0.01 + 1e-9, "{before} to {value}");
        }
        self.positions.copy_from_slice(sent.values);
        true
    }

    /// Several ticks; how many of them commanded something.
    fn ticks(&mut self, count: usize) -> usize {
        (0..count).filter(|_| self.tick()).count()
    }

    /// Recovery: a good chunk makes it run.
    fn runs_again(&mut self) {
        let chunk = self.chunk();
        self.give(chunk).unwrap();
        let before = self.positions.clone();
        assert_eq!(self.ticks(20), 20);
        assert_eq!(self.state(), State::Running);
        assert_ne!(self.positions, before, "it moves");
    }
}

impl Drop for Arm {
    /// Time goes on until it rests: a handle that is let go waits for that.
    fn drop(&mut self) {
        let _ended = self.handle.request(Request::Deactivate);
        for _ in 0..100 {
            self.now += TICK;
            self.time.advance(Steady(self.now));
            thread::sleep(Duration::from_micros(100));
        }
    }
}

#[test]
fn nan_or_infinity_anywhere_in_a_chunk_drops_all_of_it_and_the_old_one_goes_on() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for (step, joint) in [(0, 0), (25, 7), (49, 13)] {
            let mut arm = Arm::running();
            let mut chunk = arm.chunk();
            chunk.actions[step][joint] = value;
            assert!(matches!(arm.give(chunk), Err(Rejected::Malformed(_))));
            assert_eq!(arm.ticks(20), 20);
            assert_eq!(arm.state(), State::Running, "the old one goes on");
            assert_eq!(arm.status().counters.chunks_malformed, 1);
            arm.runs_again();
        }
    }
}

#[test]
fn three_chunks_in_a_row_with_nan_are_a_fault_until_reset() {
    let mut arm = Arm::running();
    let bad = |arm: &mut Arm| {
        let mut chunk = arm.chunk();
        chunk.actions[49][13] = f64::NAN;
        assert!(arm.give(chunk).is_err());
    };
    bad(&mut arm);
    bad(&mut arm);
    arm.runs_again(); // a good one in between: they were not in a row
    bad(&mut arm);
    bad(&mut arm);
    assert_eq!(arm.state(), State::Running);
    bad(&mut arm);
    assert_eq!(arm.state(), State::Fault);
    assert!(arm.status().reason.as_str().contains("NaN"), "{}", arm.status().reason);
    assert_eq!(arm.ticks(100), 100, "it brakes and holds");
    let chunk = arm.chunk();
    assert!(matches!(arm.give(chunk), Err(Rejected::NotWanted { .. })));
    arm.handle.ask(Request::Reset, SOON).unwrap();
    arm.runs_again();
}

#[test]
fn a_first_step_too_far_from_the_measured_position_rejects_the_chunk() {
    let mut arm = Arm::running();
    let mut chunk = arm.chunk();
    chunk.actions.iter_mut().for_each(|row| row[3] += FIRST_STEP_MAX + 0.1);
    assert!(matches!(arm.give(chunk), Err(Rejected::TooFar { joint: 3, .. })));
    assert_eq!(arm.ticks(20), 20);
    assert_eq!(arm.state(), State::Running, "the old one goes on");
    arm.runs_again();
}

#[test]
fn joints_that_stay_stale_are_a_fault_until_reset() {
    let mut arm = Arm::running();
    let seconds = Config::builtin(RobotKind::Aloha).unwrap().joints.fault_after_ms as usize / 1000;
    let mut states = Vec::new();
    for _ in 0..seconds * 100 + 20 {
        assert!(arm.tick_without_joints(), "commands go on");
        states.push(arm.state());
    }
    states.dedup();
    assert_eq!(states, [State::Running, State::Braking, State::Holding, State::Fault]);
    // Fresh again: only a person's word ends it.
    assert_eq!(arm.ticks(20), 20);
    assert_eq!(arm.state(), State::Fault);
    arm.handle.ask(Request::Reset, SOON).unwrap();
    arm.runs_again();
}

#[test]
fn actions_out_of_limits_are_limited_and_counted() {
    let mut arm = Arm::running();
    let mut chunk = arm.chunk();
    // It sets out from where the arms are, and then goes through walls.
    for (step, row) in chunk.actions.iter_mut().enumerate().skip(5) {
        row.iter_mut().enumerate().for_each(|(joint, value)| {
            *value = if joint % 2 == 0 { 1e6 } else { -1e300 } * (step as f64 - 25.0);
        });
    }
    arm.give(chunk).unwrap();
    arm.ticks(150);
    let counters = arm.status().counters;
    assert!(counters.position_limited > 0 && counters.velocity_limited > 0, "{counters:?}");
    assert_eq!(arm.state(), State::Holding, "its end is a rest like any other");
    arm.runs_again();
}

#[test]
fn an_inference_that_overruns_lets_the_old_chunk_end_in_a_brake_and_its_late_chunk_is_discarded() {
    let mut arm = Arm::running();
    let late = arm.chunk();
    assert_eq!(arm.ticks(60), 60);
    assert_eq!(arm.state(), State::Running, "the old chunk goes on meanwhile");
    arm.ticks(100);
    assert_eq!(arm.state(), State::Holding, "and ends at rest");
    assert!(arm.status().reason.as_str().contains("ended"));
    assert!(matches!(arm.give(late), Err(Rejected::Late { .. })), "a second and a half later");
    let held = arm.positions.clone();
    assert_eq!(arm.ticks(20), 20);
    assert_eq!((arm.state(), &arm.positions), (State::Holding, &held));
    assert_eq!(arm.status().counters.chunks_late, 1);
    assert!(arm.status().reason.as_str().contains("too late"), "{}", arm.status().reason);
    arm.runs_again();
}

/// A machine that is too slow never moves the arm, and does not leave anybody to guess why.
#[test]
fn an_inference_that_always_takes_longer_than_a_chunk_lasts_is_named_and_nothing_is_commanded() {
    let mut arm = Arm::new();
    for chunks in 1..4 {
        let late = arm.chunk();
        assert_eq!(arm.ticks(150), 0, "no command");
        assert!(matches!(arm.give(late), Err(Rejected::Late { .. })));
        let status = arm.status();
        assert_eq!((status.state, status.counters.chunks_late), (State::Armed, chunks));
        assert!(status.reason.as_str().contains("too late"), "{}", status.reason);
    }
    arm.runs_again();
}

#[test]
fn an_engine_that_panics_leaves_control_as_it_is_until_it_is_told_and_then_it_is_a_fault() {
    let mut arm = Arm::running();
    let epoch = arm.status().epoch;
    // What the node's inference thread does: it catches the panic and says so.
    let outcome = thread::scope(|scope| {
        let engine = scope.spawn(|| {
            let weights: Vec<f32> = Vec::new();
            catch_unwind(AssertUnwindSafe(|| weights[arm.handle.status().counters.ticks as usize]))
        });
        engine.join().unwrap()
    });
    assert!(outcome.is_err(), "it panicked");
    assert_eq!(arm.ticks(10), 10);
    assert_eq!((arm.state(), arm.status().epoch), (State::Running, epoch), "unaffected");
    arm.handle.ask(Request::Fault(Reason::new("the engine panicked")), SOON).unwrap();
    assert_eq!(arm.ticks(100), 100);
    assert_eq!((arm.state(), arm.status().reason.as_str()), (State::Fault, "the engine panicked"));
    let chunk = arm.chunk();
    assert!(matches!(arm.give(chunk), Err(Rejected::NotWanted { state: State::Fault, .. })));
    arm.handle.ask(Request::Reset, SOON).unwrap();
    arm.runs_again();
}

#[test]
fn stale_joints_brake_at_once_and_hold_until_they_are_fresh_and_a_chunk_was_begun_since() {
    let mut arm = Arm::running();
    let begun_before = arm.chunk();
    (0..10).for_each(|_| assert!(arm.tick_without_joints()));
    assert_eq!(arm.state(), State::Running, "100 ms are allowed");
    assert!(arm.tick_without_joints());
    assert_eq!((arm.state(), arm.status().reason.as_str()), (State::Braking, "joint states are stale"));
    (0..50).for_each(|_| assert!(arm.tick_without_joints(), "commands go on"));
    assert_eq!(arm.state(), State::Holding);
    arm.tick();
    assert!(matches!(arm.give(begun_before), Err(Rejected::OldEpoch { .. })));
    arm.runs_again();
}

#[test]
fn whatever_happens_is_in_the_flight_recorder() {
    let mut arm = Arm::running();
    arm.handle.ask(Request::Fault(Reason::new("as if the GPU were gone")), SOON).unwrap();
    arm.ticks(100);
    let flight = arm.recorder.flight();
    let changes: Vec<_> =
        flight.changes.iter().map(|change| (change.state, change.reason.as_str())).collect();
    let after = [(State::Running, ""), (State::Fault, "as if the GPU were gone")];
    assert_eq!((changes[0].0, &changes[changes.len() - 2..]), (State::Armed, &after[..]));
    assert_eq!(flight.ticks.len() as u64, arm.status().timing.ticks);
    let last = flight.ticks.last().unwrap();
    assert_eq!((last.state, &last.values, last.resting), (State::Fault, &arm.positions, true));
    assert_eq!(flight.measured.len(), flight.ticks.len());
}

/// /dev/full refuses every byte as a full disk does. Ticks come from the real clock, at 1 kHz.
#[test]
fn a_full_disk_fails_the_recording_and_nothing_else() {
    let mut config = Config::builtin(RobotKind::Aloha).unwrap();
    config.control.rate_hz = 1000.0;
    let joints = config.joints.action_names.len();
    let capacity = Capacity { seconds: 10.0, rate_hz: 1000.0, commands: joints, measured: joints };
    let recorder = Arc::new(Recorder::new(capacity));
    let options = Options {
        recorder: Some(Arc::clone(&recorder)),
        real_time: RealTime { priority: Some(40), ..RealTime::default() },
        ..Options::new(TickClock::Monotonic, Form::PerTick, 60_000 * MS)
    };
    let scheduler = Scheduler::new(config.control_config(50).unwrap()).unwrap();
    let (handle, mut outlet) = ControlHandle::start(scheduler, options).unwrap();
    handle.put_joints(monotonic(), &vec![HOME; joints]);
    let actions = (0..50).map(|k| vec![HOME + 0.001 * f64::from(k); joints]).collect();
    handle
        .send_chunk(&Chunk { id: 1, epoch: 0, observed: monotonic(), period_ns: 20 * MS, actions })
        .unwrap();
    thread::sleep(Duration::from_millis(300));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flight.mcap");
    symlink("/dev/full", folder.path().join("flight.mcap.partial")).unwrap();
    let labels = Labels {
        node: "/policy".to_owned(),
        command_topic: "/commands".to_owned(),
        joints_topic: "/joint_states".to_owned(),
        command: CommandType::JointState,
        action_names: config.joints.action_names.clone(),
        state_names: config.joints.names.clone(),
        checkpoint: "synth:tiny".to_owned(),
        engine: "cpu f32".to_owned(),
        prompt: "transfer the cube".to_owned(),
    };
    let write = || write_flight(&recorder.flight(), &labels, |at| Stamp(at.0), &file);

    let before = handle.status();
    let error = write().unwrap_err().to_string();
    assert!(error.contains("No space left") && !error.contains('\n'), "{error}");
    assert_eq!(folder.path().read_dir().unwrap().count(), 0, "nothing half written is left");
    thread::sleep(Duration::from_millis(100));
    let after = handle.status();
    assert!(after.timing.ticks > before.timing.ticks + 50 && after.state == State::Running, "{after:?}");

    // There is room again.
    write().unwrap();
    let bag = Bag::open(&file).unwrap();
    let ticks = bag.topic("/policy/ticks").unwrap();
    let recorded = bag.records(&[ticks]).unwrap().filter(Result::is_ok).count() as u64;
    assert!(recorded >= after.timing.ticks.min(9_000), "{recorded}");
    drop(handle);
    while outlet.receive(SOON) != Received::Ended {}
}

/// Every test that the fault table of docs/safety.md names is there.
#[test]
fn every_row_of_the_fault_table_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/safety.md")).unwrap();
    let begin = text.find("<!-- fault table").unwrap();
    let table = &text[begin..begin + text[begin..].find("<!-- end of fault table -->").unwrap()];
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert_eq!(rows.len(), 22, "one row per fault");
    for row in rows {
        let cell = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap();
        let tests: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty() || cell.contains("not in this version"), "no test: {row}");
        for test in tests {
            let (file, name) = test.split_once("::").unwrap_or_else(|| panic!("{test}: expected file::name"));
            let source = std::fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            let found =
                [format!("fn {name}("), format!("def {name}(")].iter().any(|test| source.contains(test));
            assert!(found, "{test}: there is no such test; the row is: {row}");
        }
    }
}
