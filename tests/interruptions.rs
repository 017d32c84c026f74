//! What control promises when something interrupts: brakes, pauses, stops, faults and stale joint states, at any tick
//! and in any order. Time is simulated; nothing here waits.

#![allow(clippy::unwrap_used)] // in functions that the tests share

use pi05_thor::clock::Steady;
use pi05_thor::control::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Reason, Rejected,
    Scheduler, Splice, State, Wants,
};
use proptest::prelude::*;

/// 50 Hz policy.
const STEP: i64 = 20_000_000;
/// 100 Hz ticks.
const TICK: i64 = 10_000_000;
const TICK_S: f64 = 0.01;
const ACCELERATION: f64 = 8.0;

fn limit(mode: ControlMode) -> JointLimit {
    JointLimit {
        mode,
        position_min: -1.0,
        position_max: 1.5,
        velocity_max: 2.0,
        acceleration_max: ACCELERATION,
        jerk_max: f64::INFINITY,
    }
}

fn scheduler(limits: &[JointLimit], blend_steps: usize) -> Scheduler {
    let (measured_index, measured) = ((0..limits.len()).map(Some).collect(), limits.len());
    let limits = JointLimits::new(limits.to_vec()).unwrap();
    Scheduler::new(ControlConfig {
        rate_hz: 100.0,
        splice: Splice { blend_steps, ..Splice::default() },
        guards: Guards::default(),
        max_steps: 50,
        limits,
        measured_index,
        measured,
    })
    .unwrap()
}

fn chunk(id: u64, epoch: u64, observed: i64, actions: Vec<Vec<f64>>) -> Chunk {
    Chunk { id, epoch, observed: Steady(observed), period_ns: STEP, actions }
}

#[derive(Clone, Debug)]
enum Event {
    /// Age of its observation, whether it was begun before the last interruption, first and last values.
    Chunk(i64, bool, f64, f64),
    Brake,
    Pause,
    Resume,
    Stop,
    Reset,
    Fault,
    /// Joint states go stale, or fresh.
    Joints(bool),
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..20 * STEP, prop::bool::weighted(0.15), -3.0..3.0f64, -3.0..3.0f64)
            .prop_map(|(age, old, a, b)| Event::Chunk(age, old, a, b)),
        2 => Just(Event::Brake),
        1 => Just(Event::Pause),
        2 => Just(Event::Resume),
        1 => Just(Event::Stop),
        2 => Just(Event::Reset),
        1 => Just(Event::Fault),
        1 => Just(Event::Joints(false)),
        2 => Just(Event::Joints(true)),
    ]
}

fn any_run() -> impl Strategy<Value = Vec<(i64, Vec<Event>)>> {
    let elapsed = prop_oneof![8 => Just(TICK), 1 => 0..TICK, 1 => TICK..10 * TICK];
    let tick = (elapsed, prop::collection::vec(any_event(), 0..3));
    let quiet = (Just(TICK), Just(vec![]));
    prop::collection::vec(prop_oneof![1 => tick, 3 => quiet], 1..200)
}

fn apply(scheduler: &mut Scheduler, event: &Event) {
    match event {
        Event::Brake => scheduler.brake(Reason::new("test")),
        Event::Pause => scheduler.pause(),
        Event::Resume => scheduler.resume(),
        Event::Stop => scheduler.stop(Reason::new("test")),
        Event::Reset => scheduler.reset(),
        Event::Fault => scheduler.fault(Reason::new("test")),
        Event::Chunk(..) | Event::Joints(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn whatever_interrupts_commands_stay_within_limits_and_come_to_rest(
        run in any_run(), blend_steps in 0..5usize,
    ) {
        let limits = [limit(ControlMode::Position), limit(ControlMode::Velocity)];
        let mut scheduler = scheduler(&limits, blend_steps);
        let mut now = 1_000_000_000_000;
        // The arm is where it was sent.
        let mut arm = vec![0.3, 0.0];
        let mut fresh = true;
        let (mut step, mut last_due) = (0.0, None);
        let quiet = std::iter::repeat_n((TICK, vec![]), 300);
        for (id, (elapsed, events)) in run.into_iter().chain(quiet).enumerate() {
            now += elapsed;
            for event in &events {
                let (state, epoch) = (scheduler.state(), scheduler.epoch());
                apply(&mut scheduler, event);
                match event {
                    Event::Chunk(age, old, from, to) => {
                        let actions = (0..50).map(|k| vec![from + (to - from) * f64::from(k) / 49.0; 2]).collect();
                        let begun_in = if *old { epoch.wrapping_sub(1) } else { epoch };
                        let outcome = scheduler.accept(&chunk(id as u64, begun_in, now - age, actions), Steady(now));
                        if *old {
                            prop_assert!(matches!(outcome, Err(Rejected::OldEpoch { .. })), "{outcome:?}");
                        }
                        prop_assert!(outcome.is_err() || state.takes_chunks(), "{state} took a chunk");
                    }
                    Event::Joints(now_fresh) => fresh = *now_fresh,
                    Event::Resume | Event::Reset => prop_assert_ne!(scheduler.state(), State::Idle),
                    Event::Brake | Event::Pause | Event::Stop | Event::Fault => {
                        prop_assert_ne!(scheduler.state(), State::Running);
                        prop_assert!(scheduler.epoch() > epoch);
                    }
                }
                prop_assert!(scheduler.state() != State::Running || state == State::Running, "by a tick only");
            }
            let before = scheduler.state();
            let measured = fresh.then(|| arm.clone());
            let sent = scheduler.tick(Steady(now), measured.as_deref()).map(|c| (c.values.to_vec(), c.resting));
            let after = scheduler.state();
            prop_assert!(!before.is_latched() || after == before, "{before} to {after}");
            if after == State::Running {
                prop_assert!(fresh && before.takes_chunks());
                prop_assert_eq!(scheduler.reason().as_str(), "");
            } else {
                prop_assert_ne!(scheduler.reason().as_str(), "");
            }
            let Some((values, resting)) = sent else {
                prop_assert!(matches!(after, State::Armed | State::Paused | State::Stopped | State::Fault), "{after}");
                // Silence begins at rest: the velocity is 0.
                prop_assert_eq!((arm[1], step), (0.0, 0.0));
                if last_due.is_none_or(|last| 2 * (now - last) >= TICK) {
                    last_due = Some(now);
                }
                continue;
            };
            prop_assert_eq!(resting, after != State::Running, "{}", after);
            if last_due.is_some_and(|last| 2 * (now - last) < TICK) {
                prop_assert_eq!(values, arm.clone(), "a tick that comes too early repeats the last command");
                continue;
            }
            last_due = Some(now);
            let new: Vec<f64> = values.iter().zip(&arm).map(|(value, before)| value - before).collect();
            prop_assert!(values.iter().all(|v| v.is_finite()));
            prop_assert!(new[0].abs() <= 2.0 * TICK_S + 1e-9, "{} to {}", arm[0], values[0]);
            let bend = ACCELERATION * TICK_S * TICK_S;
            prop_assert!((new[0] - step).abs() <= bend + 1e-9, "{step} to {}", new[0]);
            prop_assert!((-1.0..=1.5).contains(&values[0]));
            prop_assert!(new[1].abs() <= ACCELERATION * TICK_S + 1e-9, "{} to {}", arm[1], values[1]);
            prop_assert!(values[1].abs() <= 2.0);
            step = new[0];
            arm = values;
        }
        // Three seconds after the last event: at rest, or silent after a stop.
        let last = scheduler.tick(Steady(now + TICK), fresh.then_some(&arm)).map(|c| c.values.to_vec());
        match scheduler.state() {
            State::Holding => prop_assert_eq!(last, Some(arm)),
            State::Paused | State::Fault => prop_assert!(last.is_none_or(|last| last == arm)),
            State::Stopped | State::Armed => prop_assert_eq!(last, None),
            state => prop_assert!(false, "{state}"),
        }
    }

    /// From any motion, at any moment, with overruns: the speed falls, by no more than the acceleration permits.
    #[test]
    fn a_brake_decelerates_within_the_acceleration_limit(
        values in prop::collection::vec(-3.0..3.0f64, 50),
        at in 1..90i64,
        blend_steps in 0..5usize,
        what in prop::sample::select(vec![0, 1, 2, 3, 4]),
        overruns in prop::collection::vec(prop_oneof![5 => Just(1i64), 1 => 2..8i64], 60),
    ) {
        let limit = JointLimit { position_min: -100.0, position_max: 100.0, ..limit(ControlMode::Position) };
        let mut scheduler = scheduler(&[limit], blend_steps);
        scheduler.accept(&chunk(0, 0, 0, values.iter().map(|&v| vec![v]).collect()), Steady(0)).unwrap();
        let mut now = 0;
        let (mut last, mut speed) = (0.0, 0.0);
        for _ in 0..at {
            let value = scheduler.tick(Steady(now), Some(&[0.0])).unwrap().values[0];
            (speed, last) = ((value - last) / TICK_S, value);
            now += TICK;
        }
        let mut measured = Some(&[0.0][..]);
        match what {
            0 => scheduler.brake(Reason::new("test")),
            1 => scheduler.pause(),
            2 => scheduler.stop(Reason::new("test")),
            3 => scheduler.fault(Reason::new("test")),
            _ => measured = None,
        }
        let mut still = 0;
        for skip in overruns {
            let Some(command) = scheduler.tick(Steady(now), measured) else {
                prop_assert!(what == 2, "silent after a stop only");
                prop_assert!(speed.abs() <= ACCELERATION * TICK_S + 1e-6, "silent at {speed} per s");
                (still, speed) = (still + 1, 0.0);
                continue;
            };
            prop_assert!(command.resting);
            let value = command.values[0];
            let faster = (value - last) / TICK_S;
            prop_assert!((faster - speed).abs() <= ACCELERATION * TICK_S + 1e-6, "{speed} to {faster} per s");
            prop_assert!(faster.abs() <= speed.abs() + 1e-6, "{speed} to {faster} per s");
            still = if faster == 0.0 { still + 1 } else { 0 };
            (speed, last) = (faster, value);
            now += skip * TICK;
        }
        // 2.0 per s at 8.0 per s² is a quarter of a second.
        prop_assert!(still > 30, "{still}");
    }

    /// Sent at any moment, a trajectory is what the ticks then give, begins at the last command and ends at rest.
    #[test]
    fn a_preview_is_what_the_ticks_then_give(
        values in prop::collection::vec(-2.0..2.0f64, 2..50), at in 1..40i64, brake in any::<bool>(),
        again in any::<bool>(), blend_steps in 0..5usize,
    ) {
        let limits = [limit(ControlMode::Position), limit(ControlMode::Velocity)];
        let mut scheduler = scheduler(&limits, blend_steps);
        let actions: Vec<Vec<f64>> = values.iter().map(|&v| vec![v, -v]).collect();
        scheduler.accept(&chunk(0, 0, 0, actions.clone()), Steady(0)).unwrap();
        prop_assert!(scheduler.preview().is_none(), "nothing was sent yet");
        let measured = [0.2, 0.0];
        let mut last = vec![];
        for k in 0..at {
            last = scheduler.tick(Steady(k * TICK), Some(&measured)).unwrap().values.to_vec();
        }
        let before = scheduler.revision();
        if again {
            let mirrored = actions.iter().map(|row| vec![row[1], row[0]]).collect();
            let _late = scheduler.accept(&chunk(1, 0, STEP, mirrored), Steady((at - 1) * TICK));
        }
        if brake {
            scheduler.brake(Reason::new("test"));
        }
        let state = scheduler.state();
        prop_assert!(scheduler.revision() > before || !(again || brake) || state != State::Running);
        let trajectory = scheduler.preview().unwrap().trajectory();
        prop_assert_eq!(trajectory.start, Steady((at - 1) * TICK));
        let points: Vec<(i64, Vec<f64>)> = trajectory.points().map(|(t, v)| (t, v.to_vec())).collect();
        prop_assert_eq!(&points[0], &(0, last));
        for (k, (after, values)) in points.iter().enumerate().skip(1) {
            prop_assert_eq!(*after, k as i64 * TICK);
            let now = Steady((at - 1) * TICK + after);
            let command = scheduler.tick(now, Some(&measured)).unwrap();
            prop_assert_eq!(command.values, &values[..]);
        }
        let (_, rest) = points.last().unwrap();
        prop_assert_eq!(rest[1], 0.0);
        let command = scheduler.tick(Steady(at * TICK + points.len() as i64 * TICK), Some(&measured)).unwrap();
        prop_assert_eq!(command.values, &rest[..]);
        prop_assert_eq!(scheduler.state(), State::Holding);
    }
}

/// Whatever takes place at a tick, the arm plays what it was sent before: the brake for stale joints begins after it.
#[test]
fn a_brake_for_stale_joints_begins_on_the_trajectory_that_is_being_played() {
    let (mut scheduler, now) = moving();
    let shown = scheduler.preview().unwrap().trajectory();
    assert_eq!(shown.start, Steady(now - TICK));
    let (command, state) = scheduler.tick_as_shown(Steady(now), None).unwrap();
    let point = shown.points().nth(1).unwrap();
    assert_eq!((point.1, state), (command.values, State::Braking));
    let brake = scheduler.preview().unwrap().trajectory();
    assert_eq!(brake.start, Steady(now));
    assert_eq!(brake.points().next().unwrap().1, point.1);
}

/// However long it is, the next one begins on it.
#[test]
fn a_trajectory_of_more_ticks_than_points_is_whole() {
    let mut config = ControlConfig {
        rate_hz: 1000.0,
        splice: Splice::default(),
        guards: Guards::default(),
        max_steps: 50,
        limits: JointLimits::new(vec![limit(ControlMode::Position); 2]).unwrap(),
        measured_index: vec![Some(0), Some(1)],
        measured: 2,
    };
    config.splice.blend_steps = 0;
    let mut scheduler = Scheduler::new(config).unwrap();
    let actions: Vec<Vec<f64>> = (0..50).map(|k| vec![f64::from(k % 7) * 0.1, f64::from(k) * 0.02]).collect();
    // 1.7 s from step to step: 83 s in all, four times as many ticks as points.
    let chunk = Chunk { id: 0, epoch: 0, observed: Steady(0), period_ns: 1_700_000_000, actions };
    scheduler.accept(&chunk, Steady(0)).unwrap();
    scheduler.tick(Steady(0), Some(&[0.0, 0.0])).unwrap();
    let trajectory = scheduler.preview().unwrap().trajectory();
    let points: Vec<(i64, Vec<f64>)> =
        trajectory.points().map(|(at, values)| (at, values.to_vec())).collect();
    assert!((10_000..=20_000).contains(&points.len()), "{}", points.len());
    let mut points = points.into_iter().skip(1).peekable();
    for tick in 1..90_000 {
        let now = tick * 1_000_000;
        let command = scheduler.tick(Steady(now), Some(&[0.0, 0.0])).unwrap();
        if let Some((_, values)) = points.next_if(|(at, _)| *at == now) {
            assert_eq!(command.values, values);
        }
    }
    assert!(
        points.next().is_none() && scheduler.state() == State::Holding,
        "all were met, the last one is at rest"
    );
}

/// What LIBERO measures are not the joints that it commands.
#[test]
fn joint_states_that_stay_away_brake_whichever_joints_they_are_of() {
    let mut scheduler = Scheduler::new(ControlConfig {
        rate_hz: 100.0,
        splice: Splice { blend_steps: 0, ..Splice::default() },
        guards: Guards { joints_fault_after_ns: 50 * TICK, ..Guards::default() },
        max_steps: 50,
        limits: JointLimits::new(vec![limit(ControlMode::Velocity)]).unwrap(),
        measured_index: vec![None],
        measured: 8,
    })
    .unwrap();
    scheduler.accept(&chunk(0, 0, 0, vec![vec![0.5]; 50]), Steady(0)).unwrap();
    let mut now = 0;
    assert_eq!(ticks(&mut scheduler, &mut now, 3, None), 0, "nor does it set out without");
    ticks(&mut scheduler, &mut now, 10, Some(&[0.0; 8]));
    assert_eq!(scheduler.state(), State::Running);
    ticks(&mut scheduler, &mut now, 1, None);
    assert_eq!((scheduler.state(), scheduler.reason().as_str()), (State::Braking, "joint states are stale"));
    ticks(&mut scheduler, &mut now, 51, None);
    assert_eq!(scheduler.state(), State::Fault);
}

#[test]
fn a_reset_counts_stale_joints_from_then_on_whatever_the_state() {
    let (mut scheduler, mut now) = moving();
    scheduler.set_guards(Guards { joints_fault_after_ns: 100 * TICK, ..Guards::default() });
    ticks(&mut scheduler, &mut now, 60, None);
    assert_eq!(scheduler.state(), State::Holding);
    now += 6_000 * TICK; // nobody ticked for a minute
    scheduler.reset();
    ticks(&mut scheduler, &mut now, 100, None);
    assert_eq!(scheduler.state(), State::Holding);
    ticks(&mut scheduler, &mut now, 2, None);
    assert_eq!(scheduler.state(), State::Fault);
    scheduler.reset();
    ticks(&mut scheduler, &mut now, 102, None);
    assert_eq!(scheduler.state(), State::Fault, "again, if they stay away again");
}

#[test]
fn open_loop_computes_from_what_is_seen_at_rest_and_one_chunk_at_a_time() {
    let (mut scheduler, mut now) = moving();
    let splice =
        Splice { execution: Execution::OpenLoop, open_loop_steps: 5, blend_steps: 0, ..Splice::default() };
    scheduler.set_splice(splice);
    assert_eq!(scheduler.wants(), Wants::Nothing, "it moves");
    let (seen_moving, level) = (now, vec![vec![0.4]; 50]);
    while scheduler.wants() == Wants::Nothing {
        ticks(&mut scheduler, &mut now, 1, Some(&[0.0]));
    }
    let rested = now;
    assert_eq!((scheduler.state(), scheduler.wants()), (State::Holding, Wants::After(Steady(rested - TICK))));
    let old = scheduler.accept(&chunk(1, 0, seen_moving, level.clone()), Steady(now));
    assert!(matches!(old, Err(Rejected::SeenInMotion { id: 1 })), "{old:?}");
    scheduler.accept(&chunk(2, 0, rested, level.clone()), Steady(now)).unwrap();
    assert_eq!(scheduler.wants(), Wants::Nothing, "one is on its way");
    let second = scheduler.accept(&chunk(3, 0, rested, level), Steady(now));
    assert!(matches!(second, Err(Rejected::NotYet { id: 3, running: 2 })), "{second:?}");
    ticks(&mut scheduler, &mut now, 3, Some(&[0.0]));
    assert_eq!(scheduler.state(), State::Running);
}

fn moving() -> (Scheduler, i64) {
    let mut scheduler = scheduler(&[limit(ControlMode::Position)], 0);
    let ramp = (0..50).map(|k| vec![f64::from(k) * 0.02]).collect();
    scheduler.accept(&chunk(0, 0, 0, ramp), Steady(0)).unwrap();
    for k in 0..10 {
        scheduler.tick(Steady(k * TICK), Some(&[0.0])).unwrap();
    }
    assert_eq!(scheduler.state(), State::Running);
    (scheduler, 10 * TICK)
}

fn ticks(scheduler: &mut Scheduler, now: &mut i64, count: usize, measured: Option<&[f64]>) -> usize {
    (0..count)
        .filter(|_| {
            *now += TICK;
            scheduler.tick(Steady(*now), measured).is_some()
        })
        .count()
}

#[test]
fn stale_joints_brake_at_once_and_a_fresh_chunk_resumes_after_they_are_fresh_again() {
    let (mut scheduler, mut now) = moving();
    ticks(&mut scheduler, &mut now, 1, None);
    assert_eq!((scheduler.state(), scheduler.reason().as_str()), (State::Braking, "joint states are stale"));
    ticks(&mut scheduler, &mut now, 50, None);
    assert_eq!(scheduler.state(), State::Holding);
    let level = vec![vec![0.5]; 50];
    let old = scheduler.accept(&chunk(1, 0, now, level.clone()), Steady(now));
    assert!(matches!(old, Err(Rejected::OldEpoch { found: 0, current: 1, .. })));
    let stale = scheduler.accept(&chunk(2, 1, now, level.clone()), Steady(now));
    assert!(matches!(stale, Err(Rejected::JointsStale { .. })));
    ticks(&mut scheduler, &mut now, 1, Some(&[0.2]));
    assert_eq!(scheduler.state(), State::Holding, "not by itself");
    scheduler.accept(&chunk(3, 1, now, level), Steady(now)).unwrap();
    ticks(&mut scheduler, &mut now, 1, Some(&[0.2]));
    assert_eq!(scheduler.state(), State::Running);
    assert_eq!(scheduler.counters().joints_stale, 1);
}

#[test]
fn after_a_stop_there_is_silence_until_reset_and_a_new_chunk() {
    let (mut scheduler, mut now) = moving();
    scheduler.stop(Reason::new("the stop service was called"));
    let sent = ticks(&mut scheduler, &mut now, 100, Some(&[0.0]));
    assert!((5..30).contains(&sent), "brakes, then is silent: {sent}");
    assert_eq!(scheduler.state(), State::Stopped);
    let level = vec![vec![0.5]; 50];
    let refused = scheduler.accept(&chunk(1, 1, now, level.clone()), Steady(now));
    assert!(matches!(refused, Err(Rejected::NotWanted { state: State::Stopped, .. })));
    scheduler.resume();
    assert_eq!(scheduler.state(), State::Stopped);
    scheduler.reset();
    assert_eq!(scheduler.state(), State::Armed);
    assert_eq!(ticks(&mut scheduler, &mut now, 3, Some(&[0.7])), 0);
    scheduler.accept(&chunk(2, 1, now, level), Steady(now)).unwrap();
    now += TICK;
    let first = scheduler.tick(Steady(now), Some(&[0.7])).unwrap().values[0];
    assert_eq!(first, 0.7 - ACCELERATION * TICK_S * TICK_S, "from where the arm is now");
}

#[test]
fn a_reset_while_it_still_brakes_leaves_nothing_out() {
    let (mut scheduler, mut now) = moving();
    scheduler.stop(Reason::new("test"));
    ticks(&mut scheduler, &mut now, 2, Some(&[0.0]));
    scheduler.reset();
    assert_eq!(scheduler.state(), State::Braking);
    assert_eq!(ticks(&mut scheduler, &mut now, 100, Some(&[0.0])), 100);
    assert_eq!(scheduler.state(), State::Holding);
}

#[test]
fn a_pause_holds_and_a_fault_outlasts_everything_but_a_reset() {
    let (mut scheduler, mut now) = moving();
    scheduler.pause();
    assert_eq!(ticks(&mut scheduler, &mut now, 100, Some(&[0.0])), 100, "commands go on");
    assert_eq!((scheduler.state(), scheduler.reason().as_str()), (State::Paused, "paused"));
    scheduler.resume();
    assert_eq!(scheduler.state(), State::Holding);
    scheduler.fault(Reason::new("the engine panicked"));
    scheduler.pause();
    scheduler.resume();
    scheduler.brake(Reason::new("other"));
    scheduler.fault(Reason::new("a second one"));
    assert_eq!((scheduler.state(), scheduler.reason().as_str()), (State::Fault, "the engine panicked"));
    scheduler.stop(Reason::new("stopped"));
    assert_eq!(scheduler.state(), State::Fault);
    assert_eq!(ticks(&mut scheduler, &mut now, 3, Some(&[0.0])), 0, "stopped is silent");
    scheduler.reset();
    assert_eq!(scheduler.state(), State::Armed);
}

#[test]
fn a_robot_that_measures_nothing_never_has_stale_joints() {
    let limits = JointLimits::new(vec![limit(ControlMode::Position)]).unwrap();
    let config = ControlConfig {
        rate_hz: 100.0,
        splice: Splice { blend_steps: 0, ..Splice::default() },
        guards: Guards::default(),
        max_steps: 50,
        limits,
        measured_index: vec![None],
        measured: 0,
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    scheduler.accept(&chunk(0, 0, 0, vec![vec![0.5]; 50]), Steady(0)).unwrap();
    for k in 0..50 {
        assert_eq!(scheduler.tick(Steady(k * TICK), None).unwrap().values[0], 0.5);
        assert_eq!(scheduler.state(), State::Running);
    }
}
