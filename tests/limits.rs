//! What control promises, for any input: commands stay within limits, an in-limit motion is unchanged, everything ends
//! at rest. Time is simulated; nothing here waits.

#![allow(clippy::unwrap_used)] // in functions that the tests share

use pi05_thor::clock::Steady;
use pi05_thor::control::axis::Axis;
use pi05_thor::control::{
    Accepted, Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Rejected,
    Scheduler, Splice, State,
};
use proptest::prelude::*;

mod judge;

use judge::{Judge, Ticked, start_of, ticked};

/// 50 Hz policy.
const STEP: i64 = 20_000_000;
/// 100 Hz ticks.
const TICK: i64 = 10_000_000;
const TICK_S: f64 = 0.01;

fn arm(velocity_max: f64, acceleration_max: f64) -> JointLimit {
    JointLimit {
        mode: ControlMode::Position,
        position_min: -1.0,
        position_max: 1.5,
        velocity_max,
        acceleration_max,
        jerk_max: f64::INFINITY,
    }
}

fn scheduler(limits: &[JointLimit], blend_steps: usize) -> Scheduler {
    let limits = JointLimits::new(limits.to_vec()).unwrap();
    let measured = limits.as_slice().len();
    let measured_index = (0..measured).map(Some).collect();
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

fn chunk(id: u64, observed: i64, actions: Vec<Vec<f64>>) -> Chunk {
    Chunk { id, epoch: 0, observed: Steady(observed), period_ns: STEP, actions }
}

fn any_value() -> impl Strategy<Value = f64> {
    prop_oneof![
        8 => -3.0..3.0f64,
        1 => prop::sample::select(vec![0.0, -0.0, 1e-300, 1e9, -1e9, f64::MAX, f64::MIN]),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
    ]
}

fn any_limit() -> impl Strategy<Value = JointLimit> {
    let mode = prop::sample::select(vec![ControlMode::Position, ControlMode::Velocity]);
    let jerk = prop_oneof![1 => Just(f64::INFINITY), 1 => 2.0..5000.0f64];
    (mode, -2.0..0.0f64, 0.1..2.0f64, 0.1..20.0f64, 0.5..50.0f64, jerk).prop_map(
        |(mode, position_min, width, velocity_max, acceleration_max, jerk_max)| JointLimit {
            mode,
            position_min,
            position_max: position_min + width,
            velocity_max,
            acceleration_max,
            jerk_max,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whatever is desired, tick after tick, from within the limits or from outside; then it brakes and rests.
    #[test]
    fn an_axis_keeps_its_limits_whatever_is_desired_and_comes_to_rest(
        limit in any_limit(), start in -3.0..3.0f64,
        desired in prop::collection::vec((any_value(), any_value(), 1..30usize), 1..20),
    ) {
        let mut axis = Axis::new(&limit, TICK_S);
        let start = start_of(&limit, start);
        axis.place(start);
        let mut judge = Judge::at(start);
        for (value, rate, times) in desired {
            for _ in 0..times {
                let limited = axis.follow(value, rate * TICK_S);
                prop_assert_eq!(limited.not_finite, !(value.is_finite() && rate.is_finite()));
                prop_assert!(limited.any() || axis.value().to_bits() == value.to_bits());
                judge.check(&limit, axis.value())?;
            }
        }
        for _ in 0..10_000 {
            axis.brake();
            judge.check(&limit, axis.value())?;
        }
        prop_assert!(axis.is_at_rest());
        prop_assert_eq!(judge.step, 0.0);
    }

    /// From rest outside the limits it returns, and comes to rest at what is desired inside.
    #[test]
    fn from_outside_it_returns_and_reaches_what_is_desired(
        limit in any_limit(), start in -6.0..6.0f64, part in 0.0..1.0f64,
    ) {
        let limit = JointLimit { mode: ControlMode::Position, ..limit };
        let desired = limit.position_min + part * (limit.position_max - limit.position_min);
        let mut axis = Axis::new(&limit, TICK_S);
        axis.place(start);
        let mut judge = Judge::at(start);
        // At a quarter of the speed, with a quarter of the acceleration.
        let seconds = 8.0 / (0.25 * limit.velocity_max) + limit.velocity_max / (0.25 * limit.acceleration_max);
        // And with a limited jerk the time that a third of it would take.
        let jerk_s = if limit.jerk_max.is_finite() { 3.0 * (8.0 / (limit.jerk_max / 32.0)).cbrt() } else { 0.0 };
        let seconds = seconds + jerk_s + 2.0 * limit.acceleration_max.min((8.0 * limit.jerk_max).sqrt()) / limit.jerk_max;
        for _ in 0..(seconds / TICK_S) as usize {
            axis.follow(desired, 0.0);
            judge.check(&limit, axis.value())?;
        }
        prop_assert_eq!((axis.value().to_bits(), judge.step), (desired.to_bits(), 0.0));
    }

    /// Wherever it is, on its way back from outside the limits too: a brake never makes it faster.
    #[test]
    fn a_brake_only_decelerates_and_rests_where_it_comes_to(
        limit in any_limit(), start in -6.0..6.0f64, ticks in 0..200usize,
    ) {
        let limit = JointLimit { mode: ControlMode::Position, jerk_max: f64::INFINITY, ..limit };
        let mut axis = Axis::new(&limit, TICK_S);
        axis.place(start);
        for _ in 0..ticks {
            axis.follow(0.5 * (limit.position_min + limit.position_max), 0.0);
        }
        let speed = |from: f64, to: f64| (to - from).abs() / TICK_S;
        let (mut value, mut fastest) = (axis.value(), axis.rate().abs() / TICK_S + limit.acceleration_max * TICK_S);
        let stopping_s = fastest / limit.acceleration_max + 2.0 * TICK_S;
        for _ in 0..(stopping_s / TICK_S) as usize + 1 {
            axis.brake();
            let now = speed(value, axis.value());
            prop_assert!(now <= fastest, "{now} after {fastest}");
            (value, fastest) = (axis.value(), now);
        }
        prop_assert!(axis.is_at_rest(), "still at {fastest}");
    }

    /// Any motion that keeps the limits in the sense of `Judge`, smooth or as hard as it may.
    #[test]
    fn an_in_limit_motion_is_unchanged(
        limit in any_limit(), start in 0.0..1.0f64,
        accelerations in prop::collection::vec((-1.0..1.0f64, 1..20usize), 1..40), hard in any::<bool>(),
    ) {
        let limit = JointLimit { mode: ControlMode::Position, jerk_max: f64::INFINITY, ..limit };
        let Ticked { low, high, step: step_max, bend, .. } = ticked(&limit);
        // A random motion within 0.999 of the limits: where it would leave them it brakes instead.
        let stop = |step: f64| {
            let (mut left, mut distance) = (step.abs(), 0.0);
            while left > 0.0 {
                left = f64::max(left - 0.999 * bend, 0.0);
                distance += left;
            }
            distance * step.signum()
        };
        let room = high - low;
        let fits = |value: f64, step: f64| {
            let rest = value + stop(step);
            rest > low + 1e-6 * room && rest < high - 1e-6 * room && step.abs() < 0.999 * step_max
        };
        let (mut value, mut step) = (low + (0.1 + 0.8 * start) * room, 0.0);
        let mut axis = Axis::new(&limit, TICK_S);
        axis.place(value);
        for (part, times) in accelerations {
            for _ in 0..times {
                let wanted = step + if hard { 0.999 * bend * part.signum() } else { 0.999 * bend * part };
                let braked = f64::max(step.abs() - 0.999 * bend, 0.0).copysign(step);
                step = if fits(value + wanted, wanted) { wanted } else { braked };
                value += step;
                let limited = axis.follow(value, step);
                prop_assert!(!limited.any(), "{limited:?}");
                prop_assert_eq!(axis.value().to_bits(), value.to_bits());
            }
        }
    }

    /// The same where the jerk is limited too, of which the way to rest behind each tick may need the other half: to and fro,
    /// each time with a jerk that goes like a cosine.
    #[test]
    fn an_in_limit_motion_is_unchanged_with_limited_jerk(
        ways in prop::collection::vec((0.05..0.5f64, 20.0..200.0f64), 1..10),
        velocity_max in 0.1..10.0f64, acceleration_max in 0.5..100.0f64, jerk_max in 5.0..5000.0f64,
    ) {
        let limit = JointLimit { jerk_max, position_min: -100.0, position_max: 100.0, ..arm(velocity_max, acceleration_max) };
        let mut axis = Axis::new(&limit, TICK_S);
        let (mut begin, mut sign) = (0.0, 1.0);
        axis.place(begin);
        for (share, ticks) in ways {
            let ticks = f64::floor(ticks);
            let w = std::f64::consts::TAU / (ticks * TICK_S);
            // Of x = a (w t - sin w t): speed 2 a w, acceleration a w², jerk a w³.
            let a = share * sign * (velocity_max / (2.0 * w)).min(acceleration_max / (w * w)).min(jerk_max / (w * w * w));
            for tick in 1..=ticks as i64 {
                let t = w * tick as f64 * TICK_S;
                let (value, rate) = (begin + a * (t - t.sin()), a * w * (1.0 - t.cos()));
                let limited = axis.follow(value, rate * TICK_S);
                prop_assert!(!limited.any(), "{limited:?} at tick {tick} of {ticks}");
                prop_assert_eq!(axis.value().to_bits(), value.to_bits());
            }
            begin = axis.value();
            sign = -sign;
        }
    }
}

/// A run: at each tick, the time since the last one and perhaps a chunk that arrives.
#[derive(Clone, Debug)]
struct Event {
    elapsed: i64,
    chunk: Option<(i64, Vec<Vec<f64>>)>,
}

fn any_run(joints: usize) -> impl Strategy<Value = Vec<Event>> {
    let actions = prop::collection::vec(prop::collection::vec(any_value(), joints), 1..20);
    // Mostly finite chunks, or none would be accepted.
    let finite = prop::collection::vec(prop::collection::vec(-3.0..3.0f64, joints), 1..50);
    let chunk = (0..30 * STEP, prop_oneof![1 => actions, 4 => finite]);
    let elapsed = prop_oneof![6 => Just(TICK), 1 => 0..TICK, 1 => TICK..10 * TICK];
    let event =
        (elapsed, prop::option::weighted(0.1, chunk)).prop_map(|(elapsed, chunk)| Event { elapsed, chunk });
    prop::collection::vec(event, 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Chunks with jumps, NaN, any age, at any tick; ticks that come early, late or twice; a start outside the limits.
    #[test]
    fn no_command_ever_violates_a_limit_and_all_ends_at_rest(
        limits in prop::collection::vec(any_limit(), 3),
        start in prop::collection::vec(-3.0..3.0f64, 3),
        run in any_run(3),
        blend_steps in 0..6usize,
    ) {
        let mut scheduler = scheduler(&limits, blend_steps);
        let mut now = 1_000_000_000_000;
        let mut previous: Option<Vec<f64>> = None;
        let mut last_due: Option<i64> = None;
        let mut judges: Vec<Judge> =
            limits.iter().zip(&start).map(|(limit, &start)| Judge::at(start_of(limit, start))).collect();
        let mut tick = |scheduler: &mut Scheduler, now: i64, due: bool| -> Result<bool, TestCaseError> {
            let Some(command) = scheduler.tick(Steady(now), Some(&start)) else {
                prop_assert!(previous.is_none(), "once moving, there is always a command");
                return Ok(false);
            };
            let moved = previous.as_deref() != Some(command.values);
            prop_assert!(due || !moved, "a tick that comes too early repeats the last command");
            if due {
                for ((judge, limit), &value) in judges.iter_mut().zip(&limits).zip(command.values) {
                    judge.check(limit, value)?;
                }
            }
            previous = Some(command.values.to_vec());
            Ok(moved)
        };
        for (id, event) in run.iter().enumerate() {
            now += event.elapsed;
            if let Some((age, actions)) = &event.chunk {
                let finite = actions.iter().flatten().all(|v| v.is_finite());
                let outcome = scheduler.accept(&chunk(id as u64, now - age, actions.clone()), Steady(now));
                prop_assert!(finite || matches!(outcome, Err(Rejected::Malformed(_))));
            }
            let due = last_due.is_none_or(|last| 2 * (now - last) >= TICK);
            last_due = if due { Some(now) } else { last_due };
            tick(&mut scheduler, now, due)?;
        }
        // Longest chunk, slowest brake.
        let seconds = 50.0 * 0.02 + 20.0 / 0.5 + 3.0 * 5.0 / 0.1;
        let mut moved = true;
        for _ in 0..(seconds / TICK_S) as usize {
            now += TICK;
            moved = tick(&mut scheduler, now, true)?;
        }
        prop_assert!(!moved, "must have come to rest");
        if let Some(values) = previous {
            // A position that began outside may not have been on its way for long enough to be back inside.
            for (limit, value) in limits.iter().zip(&values) {
                prop_assert!(limit.mode == ControlMode::Position || *value == 0.0);
            }
        }
    }

    /// Without new chunks, a position never changes its speed by more than the acceleration limit while it brakes,
    /// whether the plan was followed exactly, held back by limits or still fading in.
    #[test]
    fn the_tail_decelerates_within_the_acceleration_limit(
        values in prop::collection::vec(-3.0..3.0f64, 2..8),
        velocity_max in 0.5..10.0f64,
        acceleration_max in 1.0..50.0f64,
        blend_steps in 0..6usize,
    ) {
        // Position limits far away: where they are near, they go first.
        let limit = JointLimit { position_min: -100.0, position_max: 100.0, ..arm(velocity_max, acceleration_max) };
        let mut scheduler = scheduler(&[limit], blend_steps);
        let steps = values.len() as i64;
        scheduler.accept(&chunk(0, 0, values.iter().map(|&v| vec![v]).collect()), Steady(0)).unwrap();
        let mut history = Vec::new();
        for k in 0..(steps * 2 + 2100) {
            let command = scheduler.tick(Steady(k * TICK), Some(&[0.0])).unwrap();
            history.push((command.values[0], command.resting));
        }
        let resting: Vec<f64> = history.iter().skip_while(|(_, resting)| !resting).map(|&(v, _)| v).collect();
        let speeds: Vec<f64> = resting.windows(2).map(|w| (w[1] - w[0]) / TICK_S).collect();
        for pair in speeds.windows(2) {
            let change = pair[1] - pair[0];
            prop_assert!(change.abs() <= acceleration_max * TICK_S + 1e-6, "{} to {} per s", pair[0], pair[1]);
            prop_assert!(pair[1].abs() <= pair[0].abs() + 1e-6, "a brake does not speed up");
        }
        prop_assert_eq!(resting[resting.len() - 1].to_bits(), resting[resting.len() - 100].to_bits());
    }

    /// At the time of a step the command is the step's value, bit for bit: elapsed steps are dropped, never replayed.
    /// Between two steps it goes from the one to the other without a jump in speed.
    #[test]
    fn an_in_limit_chunk_is_followed_exactly_from_now_on(
        amplitude in 0.01..0.4f64, period in 0.5..2.0f64, delay in 0..40i64,
    ) {
        let limit = arm(10.0, 100.0);
        let delay = delay * STEP;
        // At rest as it arrives.
        let at = |t: f64| 0.2 + amplitude * (1.0 - (std::f64::consts::TAU * (t - delay as f64 / 1e9) / period).cos());
        let actions: Vec<Vec<f64>> = (0..50).map(|k| vec![at(f64::from(k) * 0.02)]).collect();
        let mut scheduler = scheduler(&[limit], 0);
        let accepted = scheduler.accept(&chunk(7, 0, actions.clone()), Steady(delay)).unwrap();
        prop_assert_eq!(accepted, Accepted { dropped_steps: (delay / STEP) as usize });
        let measured = actions[(delay / STEP) as usize].clone();
        let mut now = delay;
        while now < 49 * STEP {
            let command = scheduler.tick(Steady(now), Some(&measured)).unwrap();
            if now % STEP == 0 {
                prop_assert_eq!(command.values[0].to_bits(), actions[(now / STEP) as usize][0].to_bits());
            }
            prop_assert!((command.values[0] - at(now as f64 / 1e9)).abs() < 0.01 * amplitude, "at {} ns", now);
            prop_assert!(!command.limited && !command.resting);
            now += TICK;
        }
    }

    /// Two smooth chunks, the second a little beside the first: the acceleration changes from tick to tick, the switch
    /// included, by no more than the chunks' own and that of the crossfade between them, which begins with none.
    #[test]
    fn a_switch_makes_no_jump_in_acceleration(
        beside in -0.2..0.2f64, amplitude in 0.0..0.4f64, period in 1.0..3.0f64, blend_steps in 3..12i64,
        switch in 30..60i64, ensemble in any::<bool>(),
    ) {
        let execution = if ensemble { Execution::Ensemble } else { Execution::Rtc };
        let mut scheduler = scheduler(&[arm(1e3, 1e5)], blend_steps as usize);
        scheduler.set_splice(Splice { execution, blend_steps: blend_steps as usize, ..Splice::default() });
        let w = std::f64::consts::TAU / period;
        let rows = |from: i64, beside: f64| -> Vec<Vec<f64>> {
            let at = |step: i64| amplitude * (w * (from + step * STEP) as f64 / 1e9).sin() + beside;
            (0..50).map(|step| vec![at(step)]).collect()
        };
        scheduler.accept(&chunk(0, 0, rows(0, 0.0)), Steady(0)).unwrap();
        let mut values = Vec::new();
        for tick in 0..90 {
            if tick == switch {
                let observed = (tick - 10) / 2 * STEP;
                scheduler.accept(&chunk(1, observed, rows(observed, beside)), Steady(tick * TICK)).unwrap();
            }
            values.push(scheduler.tick(Steady(tick * TICK), Some(&[0.0])).unwrap().values[0]);
        }
        // Once the way from rest to the first chunk is over. A quintic from 1 to 0 over d has the jerk 60 / d³ at most;
        // Catmull and Rom's curve leaves half of the change of acceleration from step to step to a jump.
        let fade = blend_steps as f64 * 0.02;
        let most = 1.1 * TICK_S * (60.0 * beside.abs() / fade.powi(3) + 3.0 * amplitude * w.powi(3)) + 1e-6;
        for four in values[24..].windows(4) {
            let jump = (four[3] - 3.0 * four[2] + 3.0 * four[1] - four[0]) / (TICK_S * TICK_S);
            prop_assert!(jump.abs() <= most, "{jump} of {most}");
        }
    }

    /// A fade begins where the commands were going and ends, after its steps, on the new plan; also when the next
    /// chunk comes in the middle of a fade. Neither value nor speed jumps.
    #[test]
    fn a_fade_neither_jumps_nor_lingers(
        levels in prop::collection::vec(-0.5..0.5f64, 2..6), blend_steps in 2..6i64, gap in 1..12i64,
    ) {
        let mut scheduler = scheduler(&[arm(1e4, 1e6)], blend_steps as usize);
        let mut now = 0;
        let (mut previous, mut speed) = (0.0, 0.0);
        for (id, &level) in levels.iter().enumerate() {
            scheduler.accept(&chunk(id as u64, now, vec![vec![level]; 50]), Steady(now)).unwrap();
            for k in 0..gap.max(if id + 1 == levels.len() { 20 } else { 0 }) {
                let value = scheduler.tick(Steady(now), Some(&[0.0])).unwrap().values[0];
                // A quintic over d from one level to another has the greatest speed 1.9 / d, acceleration 5.8 / d²;
                // one that was interrupted adds as much again as it had.
                let ticks = 2.0 * blend_steps as f64;
                prop_assert!((value - previous).abs() <= 2.0 * 1.9 / ticks, "jump from {previous} to {value}");
                prop_assert!((value - previous - speed).abs() <= 6.0 * 5.8 / (ticks * ticks), "jump in speed");
                if k * TICK >= blend_steps * STEP {
                    prop_assert_eq!(value, level);
                }
                (speed, previous) = (value - previous, value);
                now += TICK;
            }
        }
    }
}

/// Averaging does not depend on how chunks are led over to.
#[test]
fn an_ensemble_averages_with_and_without_a_blend() {
    for blend_steps in [0, 3] {
        let mut scheduler = scheduler(&[arm(1e4, 1e6)], blend_steps);
        let splice =
            Splice { execution: Execution::Ensemble, blend_steps, ensemble_decay: 0.0, ..Splice::default() };
        scheduler.set_splice(splice);
        for (id, level) in [0.0, 0.3, 0.9].into_iter().enumerate() {
            let now = id as i64 * 10 * STEP;
            scheduler.accept(&chunk(id as u64, now, vec![vec![level]; 50]), Steady(now)).unwrap();
            for tick in 0..20 {
                scheduler.tick(Steady(now + tick * TICK), Some(&[0.0])).unwrap();
            }
        }
        let mut at = 30 * STEP;
        let mut until = |step: i64| {
            let mut value = f64::NAN;
            while at <= step * STEP {
                value = scheduler.tick(Steady(at), Some(&[0.0])).unwrap().values[0];
                at += TICK;
            }
            value
        };
        assert!((until(40) - 0.4).abs() < 1e-12, "all three, alike");
        assert!((until(55) - 0.6).abs() < 1e-12, "the first has ended");
        assert!((until(65) - 0.9).abs() < 1e-12, "the newest is left");
    }
}

#[test]
fn an_ensemble_averages_every_chunk_of_which_there_is_something_left() {
    let mut scheduler = scheduler(&[arm(1e4, 1e6)], 0);
    let splice =
        Splice { execution: Execution::Ensemble, blend_steps: 0, ensemble_decay: 0.0, ..Splice::default() };
    scheduler.set_splice(splice);
    let mut value = f64::NAN;
    for id in 0..45 {
        let now = id * STEP;
        let level = vec![vec![0.02 * id as f64]; 50];
        scheduler.accept(&chunk(id as u64, now, level), Steady(now)).unwrap();
        for tick in 0..2 {
            value = scheduler.tick(Steady(now + tick * TICK), Some(&[0.0])).unwrap().values[0];
        }
    }
    assert!((value - 0.02 * 22.0).abs() < 1e-9, "the mean of 0 to 44: {value}");
}

#[test]
fn open_loop_executes_even_a_single_step() {
    let mut scheduler = scheduler(&[arm(1e4, 1e6)], 0);
    scheduler.set_splice(Splice { execution: Execution::OpenLoop, open_loop_steps: 1, ..Splice::default() });
    let mut now = 0;
    for (id, level) in [0.3, -0.2, 0.7].into_iter().enumerate() {
        scheduler.accept(&chunk(id as u64, now, vec![vec![level]; 50]), Steady(now)).unwrap();
        let mut value = f64::NAN;
        for _ in 0..10 {
            now += TICK;
            value = scheduler.tick(Steady(now), Some(&[0.0])).unwrap().values[0];
        }
        assert_eq!((value, scheduler.state()), (level, State::Holding));
    }
}

#[test]
fn no_command_before_a_chunk_and_a_measured_position() {
    let mut scheduler = scheduler(&[arm(1.0, 1.0)], 0);
    assert!(scheduler.tick(Steady(0), Some(&[0.5])).is_none());
    scheduler.accept(&chunk(3, 0, vec![vec![1.0]; 50]), Steady(0)).unwrap();
    assert!(scheduler.tick(Steady(TICK), None).is_none());
    assert!(scheduler.tick(Steady(2 * TICK), Some(&[])).is_none());
    assert!(scheduler.tick(Steady(3 * TICK), Some(&[f64::NAN])).is_none());
    let command = scheduler.tick(Steady(4 * TICK), Some(&[0.5])).unwrap();
    assert_eq!((command.values, command.chunk, command.limited), (&[0.5001][..], 3, true));
    assert_eq!(scheduler.counters().idle_ticks, 4);
}

#[test]
fn late_older_and_future_chunks_are_discarded_and_counted() {
    let mut scheduler = scheduler(&[arm(1.0, 1.0)], 0);
    let steps = vec![vec![0.1]; 10];
    let now = Steady(100 * STEP);
    let mut accept = |id, step: i64| scheduler.accept(&chunk(id, step * STEP, steps.clone()), now);
    assert!(matches!(accept(0, 91), Err(Rejected::Late { late_ms: 0, .. })));
    assert!(matches!(accept(1, 81), Err(Rejected::Late { late_ms: 200, .. })));
    assert_eq!(accept(2, 95), Ok(Accepted { dropped_steps: 5 }));
    assert!(matches!(accept(3, 94), Err(Rejected::Superseded { id: 3, running: 2 })));
    assert_eq!(accept(4, 95), Ok(Accepted { dropped_steps: 5 }));
    assert_eq!(accept(5, 101), Ok(Accepted { dropped_steps: 0 }));
    assert!(matches!(accept(6, 102), Err(Rejected::FromFuture { ahead_ms: 40, .. })));
    let counters = *scheduler.counters();
    assert_eq!(
        (
            counters.chunks_late,
            counters.chunks_superseded,
            counters.chunks_from_future,
            counters.chunks_accepted
        ),
        (2, 1, 1, 3)
    );
}

#[test]
fn a_malformed_chunk_is_dropped_whole_and_the_old_one_goes_on() {
    let mut scheduler = scheduler(&[arm(1.0, 1.0), arm(1.0, 1.0)], 0);
    scheduler.accept(&chunk(0, 0, vec![vec![0.5, 0.5]; 50]), Steady(0)).unwrap();
    scheduler.tick(Steady(0), Some(&[0.5, 0.5])).unwrap();
    let good = vec![0.0, 0.0];
    for (bad, says) in [
        (vec![], "at least one step"),
        (vec![good.clone(); 51], "at most 50 steps, found 51"),
        (vec![good.clone(), vec![0.0]], "step 1: expected 2 values"),
        (vec![good.clone(), vec![0.0, f64::NAN]], "step 1, joint 1: expected a finite value, found NaN"),
        (vec![vec![f64::INFINITY, 0.0]], "step 0, joint 0"),
    ] {
        let error = scheduler.accept(&chunk(1, 0, bad), Steady(TICK)).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    for (period_ns, observed) in [(0, 0), (-1, 0), (i64::MAX, 0), (STEP, i64::MAX - 10)] {
        let bad = Chunk { period_ns, ..chunk(1, observed, vec![good.clone(); 50]) };
        assert!(matches!(scheduler.accept(&bad, Steady(i64::MAX)), Err(Rejected::Malformed(_))));
    }
    assert_eq!(scheduler.counters().chunks_malformed, 9);
    let command = scheduler.tick(Steady(TICK), Some(&[0.5, 0.5])).unwrap();
    assert_eq!((command.values, command.chunk), (&[0.5, 0.5][..], 0));
}

#[test]
fn an_overrun_is_counted_and_moves_no_more_than_one_period() {
    let limit = arm(1.0, 20.0);
    let mut scheduler = scheduler(&[limit], 0);
    // 0.95 per s for a second: just below the limit.
    let ramp = (0..50).map(|k| vec![f64::from(k) * 0.019]).collect();
    scheduler.accept(&chunk(0, 0, ramp), Steady(0)).unwrap();
    let mut judge = Judge::at(0.0);
    let mut tick = |k: i64| {
        let value = scheduler.tick(Steady(k * TICK), Some(&[0.0])).unwrap().values[0];
        judge.check(&limit, value).unwrap();
        value
    };
    let before = (0..20).map(&mut tick).last().unwrap();
    assert!((before - 0.1805).abs() < 1e-3, "on the plan: {before}");
    let after = tick(29);
    assert!((after - before - 0.01).abs() < 1e-12, "{before} to {after}");
    assert!((30..60).map(&mut tick).last().unwrap() > 0.45);
    assert_eq!(scheduler.counters().skipped_ticks, 9);
    assert!(scheduler.counters().velocity_limited > 0);
}

#[test]
fn velocities_go_to_zero_and_unmeasured_positions_start_on_the_plan() {
    let limits = [JointLimit { mode: ControlMode::Velocity, ..arm(1.0, 10.0) }, arm(1.0, 1.0)];
    let mut scheduler = Scheduler::new(ControlConfig {
        rate_hz: 100.0,
        splice: Splice { blend_steps: 0, ..Splice::default() },
        guards: Guards::default(),
        max_steps: 10,
        limits: JointLimits::new(limits.to_vec()).unwrap(),
        measured_index: vec![None, None],
        measured: 0,
    })
    .unwrap();
    scheduler.accept(&chunk(0, 0, vec![vec![0.5, 9.0]; 10]), Steady(0)).unwrap();
    let first = scheduler.tick(Steady(0), None).unwrap();
    assert_eq!(first.values, [0.1, 1.5]); // one tick of acceleration; the position limit
    let mut values = vec![];
    for k in 1..30 {
        let command = scheduler.tick(Steady(k * TICK), None).unwrap();
        assert_eq!(command.resting, k >= 18);
        values.push(command.values[0]);
    }
    assert_eq!(values[10], 0.5);
    assert_eq!(values[28], 0.0);
}
