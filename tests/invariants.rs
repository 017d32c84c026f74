//! What control promises whatever comes whenever: chunks of every kind, faults, brakes, stale joints, changed parameters
//! and ticks, interleaved at random, in every mode. Time is simulated.
//!
//! Some hundred thousand ticks in each run; `PI05_CONTROL_TICKS=10000000 cargo test --release --test invariants` makes
//! it ten million.

#![allow(clippy::unwrap_used)] // in functions that the tests share

use pi05_thor::clock::Steady;
use pi05_thor::control::{
    Chunk, ControlConfig, ControlMode, Execution, Guards, JointLimit, JointLimits, Reason, Rejected,
    Scheduler, Splice, State,
};
use proptest::prelude::*;

mod judge;

use judge::{Judge, start_of};

/// 50 Hz policy.
const STEP: i64 = 20_000_000;
/// 100 Hz ticks.
const TICK: i64 = 10_000_000;
/// Ticks of one case, at most.
const CASE: u64 = 2_000;
const JOINTS: usize = 4;

const MODES: [Execution; 5] =
    [Execution::Latest, Execution::Ensemble, Execution::Rtc, Execution::RtcTrained, Execution::OpenLoop];

fn cases() -> u32 {
    let ticks = std::env::var("PI05_CONTROL_TICKS").ok().and_then(|ticks| ticks.parse().ok());
    u32::try_from(ticks.unwrap_or(200_000u64).div_ceil(CASE / 2)).unwrap_or(u32::MAX)
}

fn any_limit() -> impl Strategy<Value = JointLimit> {
    let mode =
        prop::sample::select(vec![ControlMode::Position, ControlMode::Position, ControlMode::Velocity]);
    let jerk = prop_oneof![1 => Just(f64::INFINITY), 1 => 5.0..5000.0f64];
    (mode, -2.0..0.0f64, 0.05..4.0f64, 0.1..20.0f64, 0.5..100.0f64, jerk).prop_map(
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

/// A generator of its own: a case is its seed, and shrinks by its length.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.next().is_multiple_of(n)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn splice(&mut self) -> Splice {
        Splice {
            execution: MODES[self.below(5) as usize],
            blend_steps: self.below(6) as usize,
            ensemble_decay: self.within(-1.0, 1.0),
            open_loop_steps: self.below(20) as usize,
        }
    }

    /// Mostly a smooth motion somewhere near, sometimes noise, jumps, or what no chunk may have.
    fn chunk(&mut self, id: u64, epoch: u64, now: i64, near: &[f64]) -> Chunk {
        let steps = 1 + self.below(50) as usize;
        let kind = self.below(8);
        let mut actions = vec![vec![0.0; JOINTS]; steps];
        for (joint, &near) in near.iter().enumerate() {
            let (amplitude, period) = (self.within(0.0, 1.0), self.within(5.0, 60.0));
            let (phase, drift) = (self.within(0.0, 6.3), self.within(-0.05, 0.05));
            for (step, row) in actions.iter_mut().enumerate() {
                let t = step as f64;
                row[joint] = match kind {
                    0 => self.within(-3.0, 3.0),
                    1 if step % 7 == 3 => self.within(-1e6, 1e6),
                    _ => near + amplitude * ((t / period + phase).sin() - phase.sin()) + drift * t,
                };
            }
        }
        match self.below(30) {
            0 => actions[steps / 2][0] = f64::NAN,
            1 => actions[steps - 1][JOINTS - 1] = f64::INFINITY,
            2 => actions.truncate(0),
            3 => actions[0].truncate(1),
            4 => actions[0][0] = f64::MAX,
            _ => {}
        }
        let age = if self.one_in(20) {
            self.below(60) as i64 * STEP
        } else {
            self.below(10_000) as i64 * STEP / 1000
        };
        let observed = Steady(if self.one_in(50) { now + age } else { now - age });
        let epoch = if self.one_in(10) { epoch.wrapping_sub(1 + self.below(3)) } else { epoch };
        Chunk { id, epoch, observed, period_ns: STEP, actions }
    }
}

/// One arm, one scheduler, and what is known of them from the outside.
struct Run {
    scheduler: Scheduler,
    limits: Vec<JointLimit>,
    chance: Chance,
    now: i64,
    last_due: Option<i64>,
    judges: Option<Vec<Judge>>,
    /// Where the arm is.
    arm: Vec<f64>,
    fresh: bool,
    /// Epoch in which the newest chunk was taken.
    taken_in: Option<u64>,
    next_id: u64,
    first_step_max: f64,
}

impl Run {
    fn new(limits: Vec<JointLimit>, seed: u64) -> Self {
        let mut chance = Chance(seed);
        let first_step_max = if chance.one_in(2) { f64::INFINITY } else { 0.5 };
        let config = ControlConfig {
            rate_hz: 100.0,
            splice: chance.splice(),
            guards: Guards { first_step_max, joints_fault_after_ns: 300_000_000 },
            max_steps: 50,
            limits: JointLimits::new(limits.clone()).unwrap(),
            measured_index: (0..JOINTS).map(Some).collect(),
            measured: JOINTS,
        };
        // Now and then it starts outside its limits.
        let wide = if chance.one_in(4) { 1.0 } else { 0.0 };
        let start = |limit: &JointLimit, at: f64| {
            let width = limit.position_max - limit.position_min;
            start_of(limit, limit.position_min - wide * 0.5 + at * (width + wide))
        };
        let arm = limits.iter().map(|limit| start(limit, chance.within(0.0, 1.0))).collect();
        Self {
            scheduler: Scheduler::new(config).unwrap(),
            limits,
            chance,
            now: 1_000_000_000_000,
            last_due: None,
            judges: None,
            arm,
            fresh: true,
            taken_in: None,
            next_id: 0,
            first_step_max,
        }
    }

    fn one(&mut self) -> Result<(), TestCaseError> {
        self.now += match self.chance.below(20) {
            0 => self.chance.below(TICK as u64) as i64,
            1 => TICK + self.chance.below(10) as i64 * TICK,
            _ => TICK,
        };
        if self.chance.one_in(8) {
            self.chunk()?;
        }
        if self.chance.one_in(60) {
            self.interrupt()?;
        }
        if self.chance.one_in(if self.fresh { 200 } else { 20 }) {
            self.fresh = !self.fresh;
        }
        self.tick()
    }

    fn chunk(&mut self) -> Result<(), TestCaseError> {
        let (epoch, state) = (self.scheduler.epoch(), self.scheduler.state());
        let chunk = self.chance.chunk(self.next_id, epoch, self.now, &self.arm);
        self.next_id += 1;
        let outcome = self.scheduler.accept(&chunk, Steady(self.now));
        let finite = chunk.actions.iter().flatten().all(|v| v.is_finite());
        match outcome {
            Ok(accepted) => {
                prop_assert!(chunk.epoch == epoch && finite && state.takes_chunks());
                prop_assert!(accepted.dropped_steps < chunk.actions.len());
                let first = &chunk.actions[accepted.dropped_steps];
                let limits = self.limits.iter().zip(first).zip(&self.arm);
                for ((limit, first), arm) in
                    limits.filter(|((limit, _), _)| limit.mode == ControlMode::Position)
                {
                    let reached = first.clamp(limit.position_min, limit.position_max);
                    // It was measured a tick before.
                    let far = (reached - arm).abs() > self.first_step_max + limit.velocity_max * 0.01 + 1e-9;
                    prop_assert!(!far || self.judges.is_none() || !self.fresh, "{first} is far from {arm}");
                }
                self.taken_in = Some(epoch);
            }
            Err(Rejected::OldEpoch { .. }) => prop_assert_ne!(chunk.epoch, epoch),
            Err(_) => {}
        }
        Ok(())
    }

    fn interrupt(&mut self) -> Result<(), TestCaseError> {
        let epoch = self.scheduler.epoch();
        let why = Reason::new("test");
        let what = self.chance.below(9);
        match what {
            0 => self.scheduler.brake(why),
            1 => self.scheduler.pause(),
            2 => self.scheduler.stop(why),
            3 => self.scheduler.fault(why),
            4 | 5 => self.scheduler.reset(),
            6 | 7 => self.scheduler.resume(),
            _ => {
                let splice = self.chance.splice();
                self.scheduler.set_splice(splice);
            }
        }
        prop_assert!(self.scheduler.epoch() == epoch + u64::from(what < 4));
        prop_assert!(what >= 4 || self.scheduler.state() != State::Running);
        Ok(())
    }

    fn tick(&mut self) -> Result<(), TestCaseError> {
        let (epoch, before) = (self.scheduler.epoch(), self.scheduler.state());
        let due = self.last_due.is_none_or(|last| 2 * (self.now - last) >= TICK);
        self.last_due = if due { Some(self.now) } else { self.last_due };
        let measured = self.fresh.then(|| self.arm.clone());
        let command = self.scheduler.tick(Steady(self.now), measured.as_deref());
        let command = command.map(|command| (command.values.to_vec(), command.resting));
        let (after, reason) = (self.scheduler.state(), *self.scheduler.reason());
        prop_assert!(self.scheduler.epoch() >= epoch);
        prop_assert!(!before.is_latched() || after == before, "{before} to {after} by a tick");
        prop_assert_eq!(after == State::Running, reason.as_str().is_empty(), "{} {}", after, reason);
        if after == State::Running {
            prop_assert!(
                self.fresh && self.taken_in == Some(self.scheduler.epoch()),
                "an old chunk is followed"
            );
        }
        let Some((values, resting)) = command else {
            if let Some(judges) = self.judges.take() {
                for (judge, limit) in judges.iter().zip(&self.limits) {
                    prop_assert_eq!(judge.step, 0.0, "silence begins at rest");
                    prop_assert!(limit.mode == ControlMode::Position || judge.value == 0.0);
                }
            }
            return Ok(());
        };
        prop_assert_eq!(resting, after != State::Running);
        let start = |limit: &JointLimit, arm: &f64| Judge::at(start_of(limit, *arm));
        let judges = self
            .judges
            .get_or_insert_with(|| self.limits.iter().zip(&self.arm).map(|(l, a)| start(l, a)).collect());
        for ((judge, limit), &value) in judges.iter_mut().zip(&self.limits).zip(&values) {
            if due {
                judge.check(limit, value)?;
            } else {
                prop_assert_eq!(value, judge.value, "a tick that comes too early repeats the last command");
            }
        }
        self.arm = values;
        Ok(())
    }
}

fn run_to_rest(limits: Vec<JointLimit>, seed: u64, ticks: u64) -> Result<(), TestCaseError> {
    let mut run = Run::new(limits, seed);
    for _ in 0..ticks {
        run.one()?;
    }
    // Then nothing comes any more: it rests.
    run.scheduler.brake(Reason::new("the end"));
    let mut still = 0;
    for _ in 0..20_000 {
        run.now += TICK;
        let before = run.arm.clone();
        run.tick()?;
        still = if run.arm == before { still + 1 } else { 0 };
        if still > 300 {
            break;
        }
    }
    prop_assert!(still > 300 && run.scheduler.state() != State::Braking, "{}", run.scheduler.state());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_whenever_every_command_is_permitted(
        limits in prop::collection::vec(any_limit(), JOINTS), seed in any::<u64>(), ticks in 1..CASE,
    ) {
        run_to_rest(limits, seed, ticks)?;
    }
}

/// Found by ten million ticks: what 180 ticks had rounded was more than the last one before the limit could take.
#[test]
fn a_long_brake_before_a_limit_keeps_the_acceleration() {
    let joint = |mode, velocity_max, acceleration_max, jerk_max| JointLimit {
        mode,
        position_min: 0.0,
        position_max: 0.05,
        velocity_max,
        acceleration_max,
        jerk_max,
    };
    let still = joint(ControlMode::Position, 0.1, 0.5, f64::INFINITY);
    let long = joint(ControlMode::Velocity, 10.157030542638989, 6.352599086912868, 6.070041714536388);
    run_to_rest(vec![still, still, long, still], 5674291453940004622, 202).unwrap();
}
