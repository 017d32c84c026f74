//! Plays a bag into the policy and the scheduler, on the bag's clock.
//!
//! At [`Speed::Max`] an inference takes a fixed latency of bag time, so that the result does not depend on the
//! machine: the same bag, parameters and seed give the same recording. At [`Speed::Times`] messages and ticks come at
//! their own time and an inference takes as long as it takes.
//!
//! At one instant messages are taken first, then inferences end, then one begins, then the tick comes: an observation
//! has every message of its instant, whatever their order in the bag.

use std::mem;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use thiserror::Error;

use super::bag::{Bag, BagError, Record};
use super::bag_clock::{BagClock, Reading, Stamped};
use super::message::{Left, Message};
use super::pace::{Pace, Speed};
use super::recording::{ChunkRecord, CommandSample, JointInfo, Recording, SentTrajectory};
use super::topics::{Role, TopicError, Topics};
use super::worker::Worker;
use crate::clock::{FUTURE_TOLERANCE_NS, NS_PER_MS, NS_PER_S, Stamp, Steady, seconds};
use crate::config::{CommandType, Config, Execution};
use crate::control::limits::LimitsError;
use crate::control::scheduler::ControlError;
use crate::control::{Chunk, Reason, Scheduler, State, Wants};
use crate::messages::CdrError;
use crate::model::Pixels;
use crate::observe::RgbImage;
use crate::observe::intake::{Intake, Measured, Next};
use crate::observe::joints::JointError;
use crate::pipeline::chunking::{Chunking, TooLate};
use crate::pipeline::inference::{Inference, InferenceError, Request, Response};
use crate::policy::Policy;

/// Why a replay ended early.
#[derive(Debug, Error)]
pub enum ReplayError {
    /// The bag.
    #[error(transparent)]
    Bag(#[from] BagError),
    /// Parameters that do not fit the bag or the model.
    #[error(transparent)]
    Topics(#[from] TopicError),
    /// Joint names.
    #[error("joints.names: {0}")]
    Joints(#[from] JointError),
    /// Limits.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The scheduler.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The engine.
    #[error(transparent)]
    Inference(#[from] InferenceError),
}

/// Everything that a replay needs.
pub struct Replay<'a> {
    /// Parameters.
    pub config: &'a Config,
    /// The model's camera slots, in its order.
    pub cameras: &'a [String],
    /// Where messages come from.
    pub topics: &'a Topics,
    /// Policy, engine, sampler.
    pub inference: Inference,
    /// How fast.
    pub speed: Speed,
}

/// A stretch without messages longer than this is not ticked through once the arm is at rest.
const LONGEST_GAP_NS: i64 = 10 * NS_PER_S;
/// Ticks within which the arm comes to rest when no message comes any more: 100 s at 1 kHz, more than the longest
/// inference and what a chunk lasts. A motion that takes longer is cut there, and that is said.
const REST_TICKS: usize = 100_000;

impl Replay<'_> {
    /// Plays the whole bag. `progress` hears of (seconds played, seconds in all).
    pub fn run(self, bag: &Bag, mut progress: impl FnMut(f64, f64)) -> Result<Recording, ReplayError> {
        thread::scope(|scope| {
            let Replay { config, cameras, topics, mut inference, speed } = self;
            let grey = RgbImage::new(1, 1, vec![128; 3]).map(Arc::new);
            let likely: Vec<_> = topics.cameras.iter().map(|camera| camera.and(grey.clone())).collect();
            inference.prepare(&likely)?;
            let policy = Arc::clone(&inference.policy);
            let engine = inference.engine.name();
            let worker = match speed {
                Speed::Max => Worker::simulated(inference, config.replay.latency_ms * NS_PER_MS),
                Speed::Times(_) => Worker::thread(scope, inference),
            };
            let mut player = Player::new(config, cameras, topics, policy, (worker, engine), speed)?;
            let mut clock = BagClock::of(bag, topics)?;
            let indices: Vec<usize> = topics.roles.iter().map(|(index, _)| *index).collect();
            let mut damage = None;
            for record in bag.records(&indices)? {
                match record {
                    Ok(record) => {
                        player.take(&record, topics, &mut clock)?;
                        if let Some((first, last)) = bag.time_range() {
                            let since_first = |ns: i64| seconds(ns.saturating_sub(first));
                            progress(since_first(record.log_time), since_first(last));
                        }
                    }
                    Err(error) => damage = Some(format!("the bag cannot be read further: {error}")),
                }
            }
            let mut recording = player.finish()?;
            recording.bag = bag.path().display().to_string();
            recording.notes.extend(topics.notes.iter().chain(bag.notes()).cloned().chain(damage));
            Ok(recording)
        })
    }
}

/// An inference that is under way.
struct Pending {
    id: u64,
    /// The scheduler's as it began.
    epoch: u64,
    observed: Stamp,
    image_age_ms: Vec<Option<f64>>,
    /// The clock has jumped since: the chunk is of another time.
    outdated: bool,
}

/// A chunk on its way to the scheduler.
struct Arrived {
    chunk: Chunk,
    /// All but what the scheduler makes of it.
    record: ChunkRecord,
}

struct Player<'a> {
    config: &'a Config,
    policy: Arc<Policy>,
    intake: Intake,
    worker: Worker,
    pace: Pace,
    scheduler: Scheduler,
    chunking: Chunking,
    prompt: String,
    /// Bag time; `None` before the first message.
    now: Option<Stamp>,
    next_tick: Stamp,
    pending: Option<Pending>,
    /// Chunks for the end of the next tick: a trajectory begins at a tick, whose command is a point of the one before.
    arrived: Vec<Arrived>,
    /// Of the way to rest that was recorded last.
    sent_revision: u64,
    /// When to ask the intake for an observation next, if no message comes before.
    ask_at: Option<Stamp>,
    /// The fault that lasts: since when, and why.
    fault: Option<(Stamp, Reason)>,
    /// After the last message: the joints, if they were fresh then. That a bag ends is no fault of the robot.
    at_end: Option<Measured>,
    next_id: u64,
    first_begun: Option<Instant>,
    /// Images are kept of every so many chunks.
    seen_every: u64,
    recording: Recording,
}

impl<'a> Player<'a> {
    fn new(
        config: &'a Config,
        cameras: &[String],
        topics: &Topics,
        policy: Arc<Policy>,
        (worker, engine): (Worker, String),
        speed: Speed,
    ) -> Result<Self, ReplayError> {
        let control = config.control_config(policy.shape().horizon)?;
        let joints = config.joints.action_names.iter().zip(control.limits.as_slice());
        let joints = joints.map(|(name, limit)| JointInfo::new(name, limit)).collect();
        Ok(Self {
            config,
            policy,
            intake: Intake::new(config, cameras, &topics.cameras)?,
            worker,
            pace: Pace::new(speed),
            scheduler: Scheduler::new(control)?,
            chunking: Chunking::default(),
            prompt: config.prompt.clone(),
            now: None,
            next_tick: Stamp(0),
            pending: None,
            arrived: Vec::new(),
            sent_revision: 0,
            ask_at: None,
            fault: None,
            at_end: None,
            next_id: 0,
            first_begun: None,
            seen_every: 1,
            recording: Recording {
                checkpoint: config.checkpoint.clone(),
                engine,
                robot: config.robot.name().to_owned(),
                prompt: config.prompt.clone(),
                cameras: cameras.to_vec(),
                policy_rate_hz: config.control.policy_rate_hz,
                rate_hz: config.control.rate_hz,
                joints,
                measured_index: config.measured_index(),
                joints_max_age_ns: config.joints.max_age_ms * NS_PER_MS,
                ..Recording::default()
            },
        })
    }

    /// One message: time passes until it, then it is taken in.
    fn take(&mut self, record: &Record, topics: &Topics, clock: &mut BagClock) -> Result<(), ReplayError> {
        let &Record { topic, log_time, ref payload } = record;
        for &(_, role) in topics.roles.iter().filter(|(index, _)| *index == topic) {
            match Message::decode(role, payload) {
                Ok(message) => {
                    let reading = clock.read(Stamped { topic, stamp: message.stamp(), log_time });
                    // A text comes with the message before it: it has but a log time, and that makes no time pass.
                    if role != Role::Prompt {
                        self.pass_until(reading, role)?;
                    }
                    self.take_message(&message, reading);
                }
                Err(error) => self.refuse(role, &error),
            }
        }
        Ok(())
    }

    fn take_message(&mut self, message: &Message<'_>, Reading { at, time, .. }: Reading) {
        match message.give_to(&mut self.intake, time) {
            Left::Measured if time.since(at) <= FUTURE_TOLERANCE_NS => {
                self.recording.measured.extend(self.intake.last_measured().cloned());
            }
            Left::Prompt(prompt) => self.take_prompt(prompt),
            Left::Measured | Left::Nothing => {}
        }
        self.ask_at = self.now;
    }

    fn refuse(&mut self, role: Role, error: &CdrError) {
        match role {
            Role::RawCamera(slot) | Role::CompressedCamera(slot) => self.intake.refuse_image(slot, error),
            Role::Joints => self.intake.refuse_joints(error),
            Role::Prompt => self.intake.count("prompt_dropped", &error.to_string()),
        }
    }

    /// Effective from the next inference on; a prompt that does not fit changes nothing.
    fn take_prompt(&mut self, prompt: &str) {
        match self.policy.check_prompt(prompt) {
            Ok(_) => {
                if self.prompt != prompt {
                    let at = self.now.unwrap_or_default();
                    self.recording.notes.push(format!("prompt at {at}: {prompt:?}"));
                }
                self.prompt = prompt.to_owned();
            }
            Err(error) => self.intake.count("prompt_dropped", &error.to_string()),
        }
    }

    /// Lets time pass until a message's; what is due before it happens first.
    fn pass_until(&mut self, reading: Reading, role: Role) -> Result<(), ReplayError> {
        let Reading { at, in_step, jumped, .. } = reading;
        match self.now {
            None => {
                self.now = Some(at);
                self.next_tick = at;
                self.pace.wait_until(at);
                (self.recording.start, self.recording.end) = (at, at);
            }
            Some(now) => {
                self.advance(now.max(at))?;
                self.recording.end = self.recording.end.max(at);
            }
        }
        if !in_step {
            let source = match role {
                Role::RawCamera(slot) | Role::CompressedCamera(slot) => self.recording.cameras.get(slot),
                Role::Joints | Role::Prompt => None,
            };
            let source = source.map_or("joints", String::as_str);
            self.intake.count("out_of_step", &format!("{source}: stamped far from what else comes"));
        }
        if jumped {
            self.intake.count("clock_jump", "stamps jumped; buffers cleared");
            self.intake.clear();
            self.scheduler.brake(Reason::new("the clock has jumped"));
            if let Some(pending) = &mut self.pending {
                pending.outdated = true;
            }
        }
        Ok(())
    }

    /// Ticks and inferences that are due before `until`.
    fn advance(&mut self, until: Stamp) -> Result<(), ReplayError> {
        let period = self.scheduler.period_ns();
        if until.since(self.next_tick) > LONGEST_GAP_NS {
            // The plan brakes and rests; then nothing changes until the next message.
            let was_fault = self.fault.is_some();
            let resume = Stamp(self.next_tick.0.saturating_add(LONGEST_GAP_NS));
            self.advance(resume)?;
            self.come_to_rest(until)?;
            self.intake.count("gap_skipped", "no message for more than 10 s");
            let ticks = until.since(self.next_tick) / period;
            self.next_tick = Stamp(self.next_tick.0.saturating_add(ticks.saturating_mul(period)));
            self.pace.skip_to(until.min(self.next_tick));
            // That the recording paused is no fault of the robot; one from before it lasts.
            if !was_fault {
                self.fault = None;
                self.scheduler.reset();
            }
        }
        loop {
            // What is due at a tick comes before it.
            let due = self.due().filter(|&due| due <= self.next_tick);
            let next = due.unwrap_or(self.next_tick);
            if next >= until {
                break;
            }
            self.pace.wait_until(next);
            self.now = Some(next);
            self.infer(next)?;
            self.send_trajectory();
            if due.is_none() {
                self.tick(next);
                self.next_tick = Stamp(next.0.saturating_add(period));
            }
            if self.scheduler.state() == State::Fault {
                self.fault.get_or_insert((next, *self.scheduler.reason()));
            }
        }
        self.pace.wait_until(until);
        self.now = Some(until);
        Ok(())
    }

    /// A note of the fault that lasts, if one does.
    fn tell_fault(&mut self) {
        let Some((since, why)) = self.fault else { return };
        let at = seconds(since.since(self.recording.start));
        let note = format!("fault at {at:.2} s of the bag: {why}; no chunk is taken from then on");
        self.recording.notes.push(note);
    }

    /// When something is known to happen beside the ticks: an inference ends, or may begin.
    fn due(&self) -> Option<Stamp> {
        if self.pending.is_some() { self.worker.due() } else { self.ask_at }
    }

    fn tick(&mut self, now: Stamp) {
        let measured = self.intake.measured(now).or(self.at_end.as_ref());
        let measured = measured.map(|measured| measured.positions.as_slice());
        let wanted = self.wants();
        let given = match self.is_sending_trajectories() {
            true => self.scheduler.tick_as_shown(Steady(now.0), measured),
            false => self.scheduler.tick_with_state(Steady(now.0), measured),
        };
        if let Some((command, _)) = given {
            self.recording.commands.push(CommandSample {
                stamp: now,
                values: command.values.to_vec(),
                chunk: command.chunk,
                resting: command.resting,
                limited: command.limited,
            });
        }
        for arrived in mem::take(&mut self.arrived) {
            self.accept(arrived, now);
        }
        self.send_trajectory();
        if self.wants() != Wants::Nothing && wanted == Wants::Nothing {
            self.ask_at = Some(now);
        }
    }

    /// Records the way to rest that the node would have published, if it has become another.
    fn send_trajectory(&mut self) {
        let revision = self.scheduler.revision();
        if !self.is_sending_trajectories() || revision == self.sent_revision {
            return;
        }
        if let Some(preview) = self.scheduler.preview() {
            let trajectory = preview.trajectory();
            let points = trajectory.points().map(|(after_ns, values)| (after_ns, values.to_vec())).collect();
            self.recording.trajectories.push(SentTrajectory { stamp: Stamp(trajectory.start.0), points });
            self.sent_revision = revision;
        }
    }

    fn is_sending_trajectories(&self) -> bool {
        self.config.control.command == CommandType::JointTrajectory
    }

    /// Ends the inference under way if it is done, and begins one if it is time.
    fn infer(&mut self, now: Stamp) -> Result<(), ReplayError> {
        let is_steered = matches!(self.config.control.execution, Execution::Rtc | Execution::RtcTrained);
        if self.pending.is_some() && !is_steered && self.worker.due().is_some_and(|due| due <= now) {
            // The next inference will most likely begin now, with these.
            self.worker.foresee(&self.intake.newest_images())?;
        }
        if self.pending.is_some()
            && let Some(outcome) = self.worker.poll(now)
            && let Some(pending) = self.pending.take()
        {
            self.ask_at = Some(now);
            match outcome {
                Ok(response) => self.take_chunk(pending, response, now),
                // The next observation may be better; a broken engine ends the replay.
                Err(InferenceError::Observation(error)) => {
                    self.intake.count("observation_dropped", &error.to_string());
                }
                Err(error) => return Err(error.into()),
            }
        }
        if self.pending.is_none()
            && self.ask_at.take_if(|at| *at <= now).is_some()
            && self.wants() != Wants::Nothing
        {
            self.begin_inference(now)?;
        }
        Ok(())
    }

    /// From which observations an inference may begin. Executing open loop, from none while a chunk waits for its tick.
    fn wants(&self) -> Wants {
        match self.scheduler.wants() {
            Wants::After(_) if !self.arrived.is_empty() => Wants::Nothing,
            wants => wants,
        }
    }

    fn begin_inference(&mut self, now: Stamp) -> Result<(), ReplayError> {
        let observation = match self.intake.next_observation(now) {
            Next::Ready(observation) if self.wants().includes(Steady(observation.stamp.0)) => observation,
            Next::Ready(_) => return Ok(()), // of before the arm came to rest; the next one is newer
            Next::NotYet { ask_again } => {
                self.ask_at = ask_again;
                return Ok(());
            }
            Next::NotReady(_) => return Ok(()),
        };
        let id = self.next_id;
        self.next_id += 1;
        self.first_begun.get_or_insert_with(Instant::now);
        let age_ms = |stamp: Stamp| now.since(stamp) as f64 / NS_PER_MS as f64;
        self.pending = Some(Pending {
            id,
            epoch: self.scheduler.epoch(),
            observed: observation.stamp,
            image_age_ms: observation.image_stamps.iter().map(|stamp| stamp.map(age_ms)).collect(),
            outdated: false,
        });
        let epoch = self.scheduler.epoch();
        let steering = self.chunking.begin(id, epoch, observation.stamp, self.config, &self.policy);
        let prompt = self.prompt.clone();
        let request = Request { id, observation, resized: Vec::new(), prompt, steering };
        Ok(self.worker.begin(request, now)?)
    }

    /// An inference is done: its chunk goes to the scheduler.
    fn take_chunk(&mut self, pending: Pending, response: Response, now: Stamp) {
        let Pending { id, epoch, observed, image_age_ms, outdated } = pending;
        self.recording.wall_s = self.first_begun.map(|begun| begun.elapsed().as_secs_f64());
        if outdated {
            return self.intake.count("chunk_rejected", "the clock jumped during its inference");
        }
        if response.truncated {
            self.intake.count("prompt_truncated", "the prompt has more tokens than the model reads");
        }
        let rate = self.config.control.policy_rate_hz;
        if let Err(late) = self.chunking.finish(id, epoch, observed, now, response.model, rate) {
            if matches!(late, TooLate::Always { .. }) {
                self.scheduler.fault(Reason::new(&late.to_string()));
            }
            return self.intake.count("chunk_rejected", "it came later than it was conditioned for");
        }
        let chunk = Chunk {
            id,
            epoch,
            observed: Steady(observed.0),
            period_ns: (NS_PER_S as f64 / rate).round() as i64,
            actions: response.actions,
        };
        let keep = id.is_multiple_of(self.seen_every);
        let record = ChunkRecord {
            id,
            observed,
            arrived: now,
            dropped_steps: 0,
            actions: Vec::new(),
            tokens: response.tokens,
            image_age_ms,
            timings: response.timings,
            seen: keep.then(|| response.images.iter().map(as_bytes).collect()),
            seen_side: self.policy.shape().image_side,
        };
        let arrived = Arrived { chunk, record };
        match self.is_sending_trajectories() {
            true => self.arrived.push(arrived),
            false => self.accept(arrived, now),
        }
    }

    /// The scheduler takes a chunk, or not.
    fn accept(&mut self, Arrived { chunk, record }: Arrived, now: Stamp) {
        match self.scheduler.accept(&chunk, Steady(now.0)) {
            Ok(accepted) => {
                let (dropped_steps, actions) = (accepted.dropped_steps, chunk.actions);
                self.recording.chunks.push(ChunkRecord { arrived: now, dropped_steps, actions, ..record });
                self.seen_every = self.recording.thin_out_seen(self.seen_every);
            }
            Err(rejected) => {
                self.chunking.refused(chunk.id);
                self.intake.count("chunk_rejected", &rejected.in_general());
            }
        }
    }

    /// After the last message nothing new is seen: what is under way arrives, and the plan is followed to its rest.
    fn finish(mut self) -> Result<Recording, ReplayError> {
        if let Some(end) = self.now {
            self.advance(Stamp(end.0.saturating_add(1)))?; // the last instant's inference
            self.intake.end();
            self.at_end = self.intake.measured(end).cloned();
            self.come_to_rest(Stamp(i64::MAX))?;
            if !self.at_rest() {
                let after = self.next_tick.since(end) / NS_PER_S;
                let note = "after the last message the arm still moves; what follows is left out";
                self.recording.notes.push(format!("{after} s {note}"));
            }
        }
        self.tell_fault();
        if self.recording.chunks.is_empty() {
            let note = self.why_no_chunk();
            self.recording.notes.push(note);
        }
        let Recording { notes, counters, .. } = &mut self.recording;
        counters.extend(self.scheduler.counters().entries().map(|(name, count)| (name.to_owned(), count)));
        for (name, count) in self.intake.counters().iter() {
            if let Some(why) = name.strip_prefix("prompt_truncated: ") {
                notes.push(format!("{why}, in {count} inferences; its end was cut off: shorten it"));
            }
            counters.insert(name.clone(), *count);
        }
        Ok(self.recording)
    }

    /// What most inferences came to nothing for, else what they waited for.
    fn why_no_chunk(&self) -> String {
        let refusals = self.intake.counters().iter().filter_map(|(name, count)| {
            let (event, why) = name.split_once(": ")?;
            ["chunk_rejected", "observation_dropped"].contains(&event).then_some((count, why))
        });
        match refusals.max() {
            Some((count, why)) => format!("no chunk was taken; the reason most often ({count} times): {why}"),
            None => {
                let waits = || self.intake.waiting_because().map(|why| format!("last reason to wait: {why}"));
                let why = self.intake.refused_throughout().or_else(waits);
                let why = why.unwrap_or_else(|| "no message of its topics came".to_owned());
                format!("no inference ran to its end; {why}")
            }
        }
    }

    /// Ticks until the arm is at rest, but not beyond `until`.
    fn come_to_rest(&mut self, until: Stamp) -> Result<(), ReplayError> {
        for _ in 0..REST_TICKS {
            if self.at_rest() || self.next_tick >= until {
                break;
            }
            self.advance(Stamp(self.next_tick.0.saturating_add(1)))?;
        }
        Ok(())
    }

    /// Nothing is under way, and commands (if there ever were any) have stopped changing.
    fn at_rest(&self) -> bool {
        let still = match self.recording.commands.as_slice() {
            [.., before, last] => last.resting && last.values == before.values && self.scheduler.is_at_rest(),
            [_] => false,
            // Without a measured position a chunk has nowhere to begin.
            [] => self.scheduler.is_silent() || self.at_end.is_none(),
        };
        self.pending.is_none() && self.arrived.is_empty() && still
    }
}

/// What the network saw, as bytes.
fn as_bytes(image: &Option<Pixels>) -> Option<Vec<u8>> {
    image.as_ref().map(|pixels| match pixels {
        Pixels::U8(bytes) => bytes.clone(),
        Pixels::F32(values) => values.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect(),
    })
}
