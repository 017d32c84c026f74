//! Which plan is followed, and the tick that turns it into commands.
//!
//! Promises: no command before there are a chunk and a measured position to start from; from then on one command per
//! tick, each within the limits of the one before it. A new chunk takes over from now on (`latest`): its elapsed steps
//! are dropped by time, never replayed, and over a few steps the commands fade from the old plan to the new one.
//! If none comes, the commands brake and rest. Called by `replay` and the node, which pass the time in.
//!
//! Not yet: a bound on the distance between a chunk's first step and the measured position, and a brake on stale joint
//! states. Both need the measured position in every tick, which [`Scheduler::tick`] already takes.

use crate::clock::{NS_PER_S, Steady};

use super::brake::Brake;
use super::limits::{ControlMode, JointLimits, Limited, between};
use super::plan::{Chunk, Malformed, Plan, end_of, seconds};

/// Most steps that a chunk may have: what the storage is allocated for is bounded by it.
pub const STEPS_MAX: usize = 10_000;

/// What a scheduler needs to know of the robot and the policy.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Ticks per second.
    pub rate_hz: f64,
    /// Policy steps over which a new chunk takes over; 0: at once.
    pub blend_steps: usize,
    /// Steps of the longest chunk.
    pub max_steps: usize,
    /// One per command value.
    pub limits: JointLimits,
    /// For each command value, its index in the measured positions, if it is measured.
    pub measured_index: Vec<Option<usize>>,
}

/// Why a scheduler cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ControlError {
    /// A rate that no control loop has.
    #[error("control: expected a rate above 0 and up to 1000 Hz, found {0}; correct control.rate_hz")]
    Rate(f64),
    /// No room for a chunk, or too much.
    #[error("control: expected chunks of 1 to {STEPS_MAX} steps, found {0}; check the policy's horizon")]
    Steps(usize),
    /// `measured_index` of another length than `limits`.
    #[error(
        "control: expected a measured index for each of {expected} joints, found {found}; give one per joint"
    )]
    Joints {
        /// Number of limits.
        expected: usize,
        /// Number of indices.
        found: usize,
    },
}

/// A chunk that takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Leading steps whose time had passed.
    pub dropped_steps: usize,
}

/// Why a chunk is not followed. The running plan goes on as if it had never come.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejected {
    /// Wrong shape, NaN or infinity, impossible times.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its last step is not after now.
    #[error(
        "chunk {id}: expected steps after now, found the last one {late_ms} ms ago; discarded, the inference is too slow for this horizon"
    )]
    Late {
        /// The chunk.
        id: u64,
        /// Milliseconds from its last step to now.
        late_ms: i64,
    },
    /// Computed from an older observation than the running chunk.
    #[error(
        "chunk {id}: expected a newer observation than that of chunk {running}, found an older one; discarded"
    )]
    Superseded {
        /// The chunk.
        id: u64,
        /// The running chunk.
        running: u64,
    },
    /// Its observation is more than one policy step ahead of now.
    #[error(
        "chunk {id}: expected an observation from before now, found one {ahead_ms} ms ahead; discarded, check the clocks"
    )]
    FromFuture {
        /// The chunk.
        id: u64,
        /// Milliseconds from now to its observation.
        ahead_ms: i64,
    },
}

/// One tick's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Command<'a> {
    /// One per joint, in the order of the limits: finite and within limits.
    pub values: &'a [f64],
    /// The chunk whose plan is followed.
    pub chunk: u64,
    /// The plan's last step is reached or passed: braking or holding.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

/// What happened so far. Values are counted one by one, so that a tick can count several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of [`Scheduler::tick`].
    pub ticks: u64,
    /// Ticks that should have come between two that came. They are skipped, never caught up.
    pub skipped_ticks: u64,
    /// Ticks that gave no command: no chunk yet, or no measured position.
    pub idle_ticks: u64,
    /// Values that a position limit changed.
    pub position_limited: u64,
    /// Values that a velocity limit changed.
    pub velocity_limited: u64,
    /// Values that an acceleration limit changed.
    pub acceleration_limited: u64,
    /// Desired values that were NaN or infinite.
    pub not_finite: u64,
    /// Chunks that took over.
    pub chunks_accepted: u64,
    /// Chunks refused for their shape, values or times.
    pub chunks_malformed: u64,
    /// Chunks discarded because all their steps had passed.
    pub chunks_late: u64,
    /// Chunks discarded because a newer one was running.
    pub chunks_superseded: u64,
    /// Chunks discarded because their observation lay ahead of now.
    pub chunks_from_future: u64,
}

impl Counters {
    /// Name and count of each, for reports and diagnostics.
    pub fn entries(&self) -> [(&'static str, u64); 12] {
        [
            ("ticks", self.ticks),
            ("skipped_ticks", self.skipped_ticks),
            ("idle_ticks", self.idle_ticks),
            ("position_limited", self.position_limited),
            ("velocity_limited", self.velocity_limited),
            ("acceleration_limited", self.acceleration_limited),
            ("not_finite", self.not_finite),
            ("chunks_accepted", self.chunks_accepted),
            ("chunks_malformed", self.chunks_malformed),
            ("chunks_late", self.chunks_late),
            ("chunks_superseded", self.chunks_superseded),
            ("chunks_from_future", self.chunks_from_future),
        ]
    }

    fn count_limits(&mut self, limited: &Limited) {
        self.position_limited += u64::from(limited.position);
        self.velocity_limited += u64::from(limited.velocity);
        self.acceleration_limited += u64::from(limited.acceleration);
        self.not_finite += u64::from(limited.not_finite);
    }
}

/// The state of control: at most one running plan, at most one that is being left, and the last command.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: JointLimits,
    measured_index: Vec<Option<usize>>,
    period_ns: i64,
    blend_steps: i64,
    phase: Phase,
    running: Plan,
    leaving: Plan,
    /// Added to `leaving`, so that the fade begins where the commands were going.
    offset: Vec<f64>,
    fade: Fade,
    last_tick: Option<Steady>,
    /// The last command, and its change per second.
    command: Vec<f64>,
    rate: Vec<f64>,
    /// What the plans want before limits; and room for the second of two plans.
    desired: Vec<f64>,
    arriving: Vec<f64>,
    counters: Counters,
}

/// How far the scheduler has come.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// No chunk.
    Idle,
    /// A chunk, but no command yet: a measured position is missing.
    Ready(Running),
    /// Commands follow the running plan.
    Following(Running),
    /// The running plan's tail, which is fixed now.
    Resting(Running),
}

/// The chunk behind the running plan.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Running {
    id: u64,
    observed: Steady,
}

/// When commands go over from the plan that is left to the running one.
#[derive(Clone, Copy, Debug)]
struct Fade {
    from: Steady,
    duration_ns: i64,
}

impl Fade {
    const DONE: Self = Self { from: Steady(i64::MIN), duration_ns: 0 };

    /// Share of the running plan, 0 to 1.
    fn share(&self, now: Steady) -> f64 {
        let elapsed = now.0.saturating_sub(self.from.0);
        if elapsed >= self.duration_ns { 1.0 } else { elapsed.max(0) as f64 / self.duration_ns as f64 }
    }
}

impl Scheduler {
    /// Allocates everything that it will ever need.
    pub fn new(config: ControlConfig) -> Result<Self, ControlError> {
        let joints = config.limits.as_slice().len();
        if !(config.rate_hz > 0.0 && config.rate_hz <= 1000.0) {
            return Err(ControlError::Rate(config.rate_hz));
        }
        if !(1..=STEPS_MAX).contains(&config.max_steps) {
            return Err(ControlError::Steps(config.max_steps));
        }
        if config.measured_index.len() != joints {
            return Err(ControlError::Joints { expected: joints, found: config.measured_index.len() });
        }
        Ok(Self {
            limits: config.limits,
            measured_index: config.measured_index,
            period_ns: (NS_PER_S as f64 / config.rate_hz).round() as i64,
            blend_steps: config.blend_steps.min(STEPS_MAX) as i64,
            phase: Phase::Idle,
            running: Plan::new(joints, config.max_steps),
            leaving: Plan::new(joints, config.max_steps),
            offset: vec![0.0; joints],
            fade: Fade::DONE,
            last_tick: None,
            command: vec![0.0; joints],
            rate: vec![0.0; joints],
            desired: vec![0.0; joints],
            arriving: vec![0.0; joints],
            counters: Counters::default(),
        })
    }

    /// Nanoseconds between two ticks.
    pub fn period_ns(&self) -> i64 {
        self.period_ns
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Takes a new chunk over from `now` on, or refuses it and goes on as before.
    pub fn accept(&mut self, chunk: &Chunk, now: Steady) -> Result<Accepted, Rejected> {
        let outcome = self.admit(chunk, now);
        match &outcome {
            Ok(_) => {
                self.splice(chunk, now)?; // cannot fail: admitted
                self.counters.chunks_accepted += 1;
            }
            Err(Rejected::Malformed(_)) => self.counters.chunks_malformed += 1,
            Err(Rejected::Late { .. }) => self.counters.chunks_late += 1,
            Err(Rejected::Superseded { .. }) => self.counters.chunks_superseded += 1,
            Err(Rejected::FromFuture { .. }) => self.counters.chunks_from_future += 1,
        }
        outcome
    }

    /// One control tick.
    ///
    /// `measured` are the robot's positions in the order of the configured state. They are needed to start: the first
    /// command is at most one tick's movement away from them. A position that is not measured starts where the plan is;
    /// velocities start at 0.
    ///
    /// Ticks that come late count as skipped. Then the plan has gone on and the command follows it, but never by more
    /// than one period's worth of movement per tick: what an overrun missed is not caught up with a jump.
    pub fn tick(&mut self, now: Steady, measured: Option<&[f64]>) -> Option<Command<'_>> {
        let dt_ns = self.time_since_last_tick(now);
        self.counters.ticks += 1;
        if let Phase::Ready(running) = self.phase {
            self.start(running, now, measured);
        }
        if let Phase::Following(running) = self.phase
            && now >= self.running.end()
        {
            self.begin_rest(now, dt_ns);
            self.phase = Phase::Resting(running);
        }
        let (Phase::Following(running) | Phase::Resting(running)) = self.phase else {
            self.counters.idle_ticks += 1;
            return None;
        };
        self.aim(now);
        let limited = self.move_by_limits(seconds(dt_ns));
        let resting = matches!(self.phase, Phase::Resting(_));
        Some(Command { values: &self.command, chunk: running.id, resting, limited })
    }

    /// Forgets chunk and command: silent until there is a new chunk. Counters go on.
    pub fn reset(&mut self) {
        self.phase = Phase::Idle;
        self.fade = Fade::DONE;
    }

    /// Whether `chunk` may take over at `now`.
    fn admit(&self, chunk: &Chunk, now: Steady) -> Result<Accepted, Rejected> {
        self.running.check(chunk)?;
        let id = chunk.id;
        let ahead = chunk.observed.0.saturating_sub(now.0);
        if ahead > chunk.period_ns {
            return Err(Rejected::FromFuture { id, ahead_ms: ahead / 1_000_000 });
        }
        if let Some(end) = end_of(chunk).filter(|&end| end <= now) {
            return Err(Rejected::Late { id, late_ms: now.0.saturating_sub(end.0) / 1_000_000 });
        }
        match self.phase {
            Phase::Following(running) | Phase::Resting(running) | Phase::Ready(running)
                if chunk.observed < running.observed =>
            {
                return Err(Rejected::Superseded { id, running: running.id });
            }
            _ => {}
        }
        // The steps whose time is before now; fewer than the chunk has, for its end is after now.
        let elapsed = now.0.saturating_sub(chunk.observed.0).max(0);
        Ok(Accepted { dropped_steps: (elapsed as u64).div_ceil(chunk.period_ns as u64) as usize })
    }

    /// The old plan becomes the one that is left, the chunk the running one.
    fn splice(&mut self, chunk: &Chunk, now: Steady) -> Result<(), Malformed> {
        let running = Running { id: chunk.id, observed: chunk.observed };
        let moving = matches!(self.phase, Phase::Following(_) | Phase::Resting(_));
        if moving && self.blend_steps > 0 {
            self.aim(now);
            self.running.sample(now, &mut self.offset);
            for (offset, desired) in self.offset.iter_mut().zip(&self.desired) {
                *offset = desired - *offset; // 0, but in the middle of a fade
            }
            std::mem::swap(&mut self.running, &mut self.leaving);
            self.fade = Fade { from: now, duration_ns: self.blend_steps * chunk.period_ns };
        }
        self.running.fill(chunk, &self.limits)?;
        self.phase = if moving { Phase::Following(running) } else { Phase::Ready(running) };
        Ok(())
    }

    /// From the first measured position on, commands follow the plan; one that has ended by then is too late.
    fn start(&mut self, running: Running, now: Steady, measured: Option<&[f64]>) {
        if now >= self.running.end() {
            self.counters.chunks_late += 1;
            self.phase = Phase::Idle;
            return;
        }
        self.running.sample(now, &mut self.desired);
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let from = match (limit.mode, self.measured_index[joint]) {
                (ControlMode::Velocity, _) => Some(0.0),
                (ControlMode::Position, None) => {
                    Some(between(self.desired[joint], limit.position_min, limit.position_max))
                }
                (ControlMode::Position, Some(index)) => {
                    measured.and_then(|m| m.get(index)).copied().filter(|v| v.is_finite())
                }
            };
            let Some(from) = from else { return };
            self.command[joint] = from;
            self.rate[joint] = 0.0;
        }
        self.leaving.hold(&self.command, now);
        self.offset.fill(0.0);
        self.fade = Fade { from: now, duration_ns: self.blend_steps * self.running.period_ns() };
        self.phase = Phase::Following(running);
    }

    /// A joint that is not on the plan as it ends, or cannot follow it into its tail, brakes from where it is: held back
    /// by a limit, still fading over, or late.
    fn begin_rest(&mut self, now: Steady, dt_ns: i64) {
        let from = Steady(now.0.saturating_sub(dt_ns));
        self.running.sample(from, &mut self.desired);
        self.running.sample(now, &mut self.arriving);
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let command = self.command[joint];
            let on_plan = command == self.desired[joint];
            if !on_plan || limit.limit(command, self.arriving[joint], seconds(dt_ns)).any() {
                self.running.set_tail(joint, from, Brake::new(limit, command, self.rate[joint]));
            }
        }
        self.fade = Fade::DONE;
    }

    /// What the plans want at `now`, into `desired`.
    fn aim(&mut self, now: Steady) {
        let share = self.fade.share(now);
        if share >= 1.0 {
            self.running.sample(now, &mut self.desired);
            return;
        }
        self.leaving.sample(now, &mut self.desired);
        self.running.sample(now, &mut self.arriving);
        for ((desired, offset), arriving) in self.desired.iter_mut().zip(&self.offset).zip(&self.arriving) {
            *desired += offset;
            *desired += (arriving - *desired) * share;
        }
    }

    /// The next command: as near to `desired` as the limits allow. Whether they changed anything.
    fn move_by_limits(&mut self, dt: f64) -> bool {
        let mut any = false;
        for (joint, limit) in self.limits.as_slice().iter().enumerate() {
            let previous = self.command[joint];
            let limited = limit.limit(previous, self.desired[joint], dt);
            self.counters.count_limits(&limited);
            any |= limited.any();
            self.command[joint] = limited.value;
            if dt > 0.0 {
                self.rate[joint] = (limited.value - previous) / dt;
            }
        }
        any
    }

    /// Nanoseconds that this tick may move for: since the last one, but at most a period. Counts the skipped.
    fn time_since_last_tick(&mut self, now: Steady) -> i64 {
        let Some(last) = self.last_tick else {
            self.last_tick = Some(now);
            return self.period_ns;
        };
        let elapsed = now.0.saturating_sub(last.0).max(0);
        self.last_tick = Some(last.max(now));
        let periods = elapsed.saturating_add(self.period_ns / 2) / self.period_ns;
        self.counters.skipped_ticks += (periods - 1).max(0) as u64;
        elapsed.min(self.period_ns)
    }
}
