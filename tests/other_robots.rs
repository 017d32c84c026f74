//! The promises of control for robots and policies unlike the ones that it was made with: one joint and 64, chunks of 1 to
//! 50 steps at any rate, ticks that do not divide the steps, jerk limits that are hardly any motion, joints far outside their
//! limits, epochs that jump, hours without a tick.

#![allow(clippy::unwrap_used)] // in functions that the tests share

use pi05_thor::clock::Steady;
use pi05_thor::control::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Reason, Scheduler, Splice,
    State,
};
use proptest::prelude::*;

mod judge;

use judge::{Judge, start_of};

const MODES: [Execution; 5] =
    [Execution::Latest, Execution::Ensemble, Execution::Rtc, Execution::RtcTrained, Execution::OpenLoop];

fn any_limit() -> impl Strategy<Value = JointLimit> {
    let mode = prop::sample::select(vec![ControlMode::Position, ControlMode::Velocity]);
    // From hardly any motion to none that a tick could tell from a jump.
    let jerk = prop_oneof![Just(f64::INFINITY), -5.0..6.0f64];
    (mode, -3.0..3.0f64, -3.0..1.0f64, -2.0..2.0f64, -2.0..3.0f64, jerk).prop_map(
        |(mode, position_min, width, velocity, acceleration, jerk)| JointLimit {
            mode,
            position_min,
            position_max: position_min + 10f64.powf(width),
            velocity_max: 10f64.powf(velocity),
            acceleration_max: 10f64.powf(acceleration),
            jerk_max: 10f64.powf(jerk),
        },
    )
}

#[derive(Clone, Debug)]
struct Robot {
    limits: Vec<JointLimit>,
    start: Vec<f64>,
    rate_hz: f64,
    period_ns: i64,
    steps: usize,
    splice: Splice,
}

fn any_robot() -> impl Strategy<Value = Robot> {
    let joints = prop::sample::select(vec![1usize, 1, 2, 7, 8, 9, 16, 17, 64]);
    let rate = prop_oneof![prop::sample::select(vec![7.0, 30.0, 60.0, 125.0, 333.0, 1000.0]), 1.0..1000.0f64];
    let period = prop_oneof![
        prop::sample::select(vec![1, 1_000_000, 33_333_333, 66_666_667, 100_000_000, 1_000_000_007]),
        1_000_000..500_000_000i64
    ];
    let steps = prop::sample::select(vec![1usize, 2, 3, 10, 10, 50]);
    let splice =
        (0..5usize, 0..8usize, -2.0..2.0f64, 0..60usize).prop_map(|(mode, blend, decay, open_loop)| Splice {
            execution: MODES[mode],
            blend_steps: blend,
            ensemble_decay: decay,
            open_loop_steps: open_loop,
        });
    (joints, rate, period, steps, splice).prop_flat_map(|(joints, rate_hz, period_ns, steps, splice)| {
        let limits = prop::collection::vec(any_limit(), joints);
        let start = prop::collection::vec(-6.0..6.0f64, joints);
        (limits, start).prop_map(move |(limits, start)| Robot {
            limits,
            start,
            rate_hz,
            period_ns,
            steps,
            splice,
        })
    })
}

#[derive(Clone, Copy, Debug)]
enum Event {
    /// Age in steps, how far its epoch is from the one now, where it goes, and whether there is a NaN in its middle.
    Chunk(f64, i64, f64, bool),
    Brake,
    Stop,
    Reset,
    /// So many periods without a tick.
    Gap(i64),
}

fn any_event() -> impl Strategy<Value = Event> {
    let epoch = prop_oneof![8 => Just(0i64), 1 => Just(-1), 1 => Just(1), 1 => Just(i64::MAX)];
    prop_oneof![
        8 => (-2.0..60.0f64, epoch, -4.0..4.0f64, prop::bool::weighted(0.1))
            .prop_map(|(age, epoch, to, nan)| Event::Chunk(age, epoch, to, nan)),
        1 => Just(Event::Brake),
        1 => Just(Event::Stop),
        2 => Just(Event::Reset),
        1 => (1..10_000_000i64).prop_map(Event::Gap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_robot_and_the_policy_every_command_is_permitted(
        robot in any_robot(), events in prop::collection::vec((any_event(), 0..40u32), 1..60),
    ) {
        let joints = robot.limits.len();
        let mut scheduler = Scheduler::new(ControlConfig {
            rate_hz: robot.rate_hz,
            splice: robot.splice,
            guards: Guards::default(),
            max_steps: robot.steps,
            limits: JointLimits::new(robot.limits.clone()).unwrap(),
            measured_index: (0..joints).map(Some).collect(),
            measured: joints,
        }).unwrap();
        let (tick_ns, mut now) = (scheduler.period_ns(), 1_000_000_000_000_000);
        let tick_s = tick_ns as f64 / 1e9;
        let mut judges: Vec<Judge> =
            robot.limits.iter().zip(&robot.start).map(|(l, &at)| Judge::at(start_of(l, at))).collect();
        let mut commanded = false;
        for (id, (event, ticks)) in events.into_iter().enumerate() {
            match event {
                Event::Chunk(age, epochs, to, nan) => {
                    let row = |step: usize| -> Vec<f64> {
                        let part = (step + 1) as f64 / robot.steps as f64;
                        judges.iter().enumerate().map(|(joint, judge)| judge.value + part * to * (1.0 + joint as f64 / 9.0).sin()).collect()
                    };
                    let mut actions: Vec<Vec<f64>> = (0..robot.steps).map(row).collect();
                    if nan {
                        actions[robot.steps / 2][joints / 2] = f64::NAN;
                    }
                    let epoch = scheduler.epoch().wrapping_add_signed(epochs);
                    let (other, takes) = (epoch != scheduler.epoch(), scheduler.state().takes_chunks());
                    let observed = Steady(now - (age * robot.period_ns as f64) as i64);
                    let chunk = Chunk { id: id as u64, epoch, observed, period_ns: robot.period_ns, actions };
                    let taken = scheduler.accept(&chunk, Steady(now));
                    prop_assert!(taken.is_err() || !(nan || other) && takes, "{taken:?}");
                }
                Event::Brake => scheduler.brake(Reason::new("test")),
                Event::Stop => scheduler.stop(Reason::new("test")),
                Event::Reset => scheduler.reset(),
                Event::Gap(periods) => now += periods * tick_ns,
            }
            for _ in 0..ticks {
                now += tick_ns;
                let arm: Vec<f64> = judges.iter().map(|judge| judge.value).collect();
                let Some(command) = scheduler.tick(Steady(now), Some(&arm)) else {
                    prop_assert!(!commanded || judges.iter().all(|judge| judge.step == 0.0), "silence begins at rest");
                    // A tick of silence is one at rest.
                    judges.iter_mut().for_each(|judge| *judge = Judge::at(judge.value));
                    continue;
                };
                // Silence ends where the arm is, and velocities begin at 0.
                commanded = true;
                for ((judge, limit), &value) in judges.iter_mut().zip(&robot.limits).zip(command.values) {
                    judge.check_every(limit, value, tick_s)?;
                }
            }
        }
        // Nothing comes any more. It decelerates: whatever time that takes, it never turns round to go on.
        scheduler.brake(Reason::new("the end"));
        for _ in 0..2_000 {
            now += tick_ns;
            let arm: Vec<f64> = judges.iter().map(|judge| judge.value).collect();
            let Some(command) = scheduler.tick(Steady(now), Some(&arm)) else { break };
            for ((judge, limit), &value) in judges.iter_mut().zip(&robot.limits).zip(command.values) {
                judge.check_every(limit, value, tick_s)?;
            }
        }
        prop_assert_ne!(scheduler.state(), State::Running);
    }
}
