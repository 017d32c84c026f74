//! Plays a bag into the policy and the scheduler, on the bag's clock.
//!
//! At [`Speed::Max`] an inference takes a fixed latency of bag time, so that the result does not depend on the
//! machine: the same bag, parameters and seed give the same recording. At [`Speed::Times`] messages and ticks come at
//! their own time and an inference takes as long as it takes.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::bag::{Bag, BagError, Record};
use super::bag_clock::BagClock;
use super::inference::{Inference, InferenceError, InferenceThread, Request, Response};
use super::recording::{ChunkRecord, CommandSample, JointInfo, Measured, Recording};
use super::topics::{Role, TopicError, Topics};
use crate::clock::{NS_PER_MS, NS_PER_S, Stamp, Steady};
use crate::config::Config;
use crate::control::limits::LimitsError;
use crate::control::scheduler::ControlError;
use crate::control::{Chunk, Scheduler};
use crate::messages::{CompressedImageMessage, ImageMessage, JointStateMessage, decode_string};
use crate::model::Pixels;
use crate::observe::RgbImage;
use crate::observe::image::{ImageError, RawImage, decode_compressed, decode_raw};
use crate::observe::joints::{JointError, JointMap};
use crate::observe::snapshot::{Camera, NotReady, Snapshots};
use crate::policy::Policy;

/// How fast bag time passes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as the machine can; deterministic.
    Max,
    /// Bag seconds per second, above 0.
    Times(f64),
}

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
    /// Other names that the checkpoint gives to cameras: (other name, slot).
    pub camera_aliases: &'a [(String, String)],
    /// Policy, engine, sampler.
    pub inference: Inference<'a>,
    /// How fast.
    pub speed: Speed,
}

/// A stretch without messages longer than this is not ticked through: the arm has long been at rest.
const LONGEST_GAP_NS: i64 = 10 * NS_PER_S;
/// Different reasons that are counted apart; what comes after them is counted together.
const REASONS: usize = 100;
/// Chunks whose images are kept for the report.
const SEEN_CHUNKS: usize = 24;

impl Replay<'_> {
    /// Plays the whole bag. `progress` hears of (seconds played, seconds in all).
    pub fn run(self, bag: &Bag, mut progress: impl FnMut(f64, f64)) -> Result<Recording, ReplayError> {
        let topics = Topics::resolve(bag, self.config, self.cameras, self.camera_aliases)?;
        let policy = self.inference.policy;
        thread::scope(|scope| {
            let worker = match self.speed {
                Speed::Max => Worker::Simulated {
                    inference: Box::new(self.inference),
                    latency_ns: self.config.replay.latency_ms * NS_PER_MS,
                },
                Speed::Times(_) => Worker::Thread(InferenceThread::start(scope, self.inference)),
            };
            let mut player = Player::new(self.config, self.cameras, &topics, policy, worker, self.speed)?;
            let indices: Vec<usize> = topics.roles.iter().map(|(index, _)| *index).collect();
            let mut clock = BagClock::new(bag.topics().len());
            let mut damage = None;
            for record in bag.records(&indices)? {
                match record {
                    Ok(record) => {
                        player.take(&record, &topics, &mut clock)?;
                        if let Some((first, last)) = bag.time_range() {
                            let seconds = |ns: i64| ns.saturating_sub(first) as f64 / NS_PER_S as f64;
                            progress(seconds(record.log_time), seconds(last));
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

/// Who runs inferences.
enum Worker<'a> {
    /// At once, on this thread; the result counts as there after a fixed latency.
    Simulated { inference: Box<Inference<'a>>, latency_ns: i64 },
    /// Beside this thread.
    Thread(InferenceThread),
}

/// An inference that is under way.
struct Pending {
    id: u64,
    /// The scheduler's as it began.
    epoch: u64,
    observed: Stamp,
    image_age_ms: Vec<Option<f64>>,
    /// Known beforehand only if simulated: when it is done, and what it gave.
    done: Option<(Stamp, Response)>,
}

struct Player<'a> {
    config: &'a Config,
    policy: &'a Policy,
    worker: Worker<'a>,
    pace: Pace,
    joint_map: JointMap,
    snapshots: Snapshots,
    /// By camera slot: stamp of the newest image.
    image_stamps: Vec<Option<Stamp>>,
    measured: Option<Measured>,
    prompt: String,
    scheduler: Scheduler,
    now: Option<Stamp>,
    next_tick: Stamp,
    pending: Option<Pending>,
    /// Stamp of the last observation that was used.
    last_observed: Option<Stamp>,
    /// Why there is no observation, while there is none.
    waiting_for: Option<String>,
    next_id: u64,
    seen_every: u64,
    recording: Recording,
}

impl<'a> Player<'a> {
    fn new(
        config: &'a Config,
        cameras: &[String],
        topics: &Topics,
        policy: &'a Policy,
        worker: Worker<'a>,
        speed: Speed,
    ) -> Result<Self, ReplayError> {
        let control = config.control_config(policy.shape().horizon)?;
        let joints = config.joints.action_names.iter().zip(control.limits.as_slice());
        let joints = joints.map(|(name, limit)| JointInfo::new(name, limit)).collect();
        let slots = topics.cameras.iter().zip(cameras);
        let slots = slots.map(|(camera, name)| {
            let max_age_ns = config.cameras[(*camera)?].max_age_ms * NS_PER_MS;
            Some(Camera { name: name.clone(), max_age_ns })
        });
        Ok(Self {
            config,
            policy,
            worker,
            pace: Pace::new(speed),
            joint_map: JointMap::new(config.joints.names.clone())?,
            snapshots: Snapshots::new(
                slots.collect(),
                config.joints.max_age_ms * NS_PER_MS,
                config.observe.max_skew_ms * NS_PER_MS,
            ),
            image_stamps: vec![None; cameras.len()],
            measured: None,
            prompt: config.prompt.clone(),
            scheduler: Scheduler::new(control)?,
            now: None,
            next_tick: Stamp(0),
            pending: None,
            last_observed: None,
            waiting_for: None,
            next_id: 0,
            seen_every: 1,
            recording: Recording {
                checkpoint: config.checkpoint.clone(),
                engine: "cpu f32".to_owned(),
                robot: config.robot.name().to_owned(),
                prompt: config.prompt.clone(),
                cameras: cameras.to_vec(),
                policy_rate_hz: config.control.policy_rate_hz,
                rate_hz: config.control.rate_hz,
                joints,
                measured_index: config.measured_index(),
                ..Recording::default()
            },
        })
    }

    /// One message: time passes until it, then it is taken in.
    fn take(&mut self, record: &Record, topics: &Topics, clock: &mut BagClock) -> Result<(), ReplayError> {
        for &(index, role) in topics.roles.iter().filter(|(index, _)| *index == record.topic) {
            let stamp_of = |stamp: Stamp| (stamp, index, record.log_time);
            match role {
                Role::RawCamera(slot) => match ImageMessage::decode(&record.payload) {
                    Ok(message) => {
                        let time = self.pass_until(clock, stamp_of(message.stamp))?;
                        let ImageMessage { width, height, encoding, is_bigendian, step, data, .. } = message;
                        let raw = RawImage { width, height, encoding, is_bigendian, step, data };
                        self.take_image(slot, time, decode_raw(&raw));
                    }
                    Err(error) => self.count("image_dropped", &error.to_string()),
                },
                Role::CompressedCamera(slot) => match CompressedImageMessage::decode(&record.payload) {
                    Ok(message) => {
                        let time = self.pass_until(clock, stamp_of(message.stamp))?;
                        self.take_image(slot, time, decode_compressed(message.format, message.data));
                    }
                    Err(error) => self.count("image_dropped", &error.to_string()),
                },
                Role::Joints => match JointStateMessage::decode(&record.payload) {
                    Ok(message) => {
                        let time = self.pass_until(clock, stamp_of(message.stamp))?;
                        self.take_joints(time, &message);
                    }
                    Err(error) => self.count("joints_dropped", &error.to_string()),
                },
                Role::Prompt => {
                    self.pass_until(clock, stamp_of(Stamp(0)))?;
                    match decode_string(&record.payload) {
                        Ok(prompt) => self.take_prompt(prompt),
                        Err(error) => self.count("prompt_dropped", &error.to_string()),
                    }
                }
            }
        }
        self.begin_inference()
    }

    fn take_image(&mut self, slot: usize, time: Stamp, image: Result<RgbImage, ImageError>) {
        match image.map(|image| self.snapshots.put_image(slot, time, Arc::new(image))) {
            Ok(Ok(())) => self.image_stamps[slot] = Some(time),
            Ok(Err(refused)) => self.count("image_dropped", &refused.to_string()),
            Err(error) => {
                let why = format!("{}: {error}", self.recording.cameras[slot]);
                self.count("image_dropped", &why);
            }
        }
    }

    fn take_joints(&mut self, time: Stamp, message: &JointStateMessage) {
        let positions = match self.joint_map.positions(&message.names, &message.position) {
            Ok(positions) => positions,
            Err(error) => return self.count("joints_dropped", &error.to_string()),
        };
        match self.snapshots.put_joints(time, positions.clone()) {
            Ok(()) => {
                let measured = Measured { stamp: time, positions };
                self.measured = Some(measured.clone());
                self.recording.measured.push(measured);
            }
            Err(refused) => self.count("joints_dropped", &refused.to_string()),
        }
    }

    /// Effective from the next chunk on; a prompt that does not fit changes nothing.
    fn take_prompt(&mut self, prompt: &str) {
        match self.policy.check_prompt(prompt) {
            Ok(_) => {
                if self.prompt != prompt {
                    let at = self.now.unwrap_or_default();
                    self.recording.notes.push(format!("prompt at {at}: {prompt:?}"));
                }
                self.prompt = prompt.to_owned();
            }
            Err(error) => self.count("prompt_dropped", &error.to_string()),
        }
    }

    /// Lets time pass until a message's; what is due before it happens first. Gives the message's time.
    fn pass_until(
        &mut self,
        clock: &mut BagClock,
        (stamp, topic, log_time): (Stamp, usize, i64),
    ) -> Result<Stamp, ReplayError> {
        let reading = clock.read(topic, stamp, log_time);
        if reading.jumped {
            self.count("clock_jump", "stamps jumped; buffers cleared");
            self.snapshots.clear();
            self.image_stamps.fill(None);
            self.measured = None;
            if let Some(pending) = &mut self.pending {
                pending.observed = Stamp(i64::MIN); // of another time: will be discarded as late
            }
        }
        let time = reading.time;
        match self.now {
            None => {
                self.now = Some(time);
                self.next_tick = time;
                self.pace.begin(time);
                (self.recording.start, self.recording.end) = (time, time);
            }
            Some(now) => {
                self.advance(now.max(time))?;
                self.recording.end = self.recording.end.max(time);
            }
        }
        Ok(time)
    }

    /// Ticks and inferences that are due before `until`.
    fn advance(&mut self, until: Stamp) -> Result<(), ReplayError> {
        let period = self.scheduler.period_ns();
        let gap = until.since(self.next_tick);
        if gap > LONGEST_GAP_NS {
            // Up to the limit the plan brakes and rests; then nothing changes until the next message.
            let resume = Stamp(self.next_tick.0.saturating_add(LONGEST_GAP_NS));
            self.advance(resume)?;
            self.count("gap_skipped", "no message for more than 10 s");
            let ticks = until.since(self.next_tick) / period;
            self.next_tick = Stamp(self.next_tick.0.saturating_add(ticks.saturating_mul(period)));
        }
        loop {
            if let Some((done, _)) = self.pending.as_ref().and_then(|pending| pending.done.as_ref())
                && *done <= self.next_tick
                && *done < until
            {
                self.now = Some(*done);
                self.end_inference(None)?;
                self.begin_inference()?;
                continue;
            }
            if self.next_tick >= until {
                break;
            }
            self.pace.wait_until(self.next_tick);
            self.now = Some(self.next_tick);
            self.poll()?;
            self.tick(self.next_tick);
            self.next_tick = Stamp(self.next_tick.0.saturating_add(period));
        }
        self.pace.wait_until(until);
        self.now = Some(until);
        self.poll()
    }

    fn tick(&mut self, now: Stamp) {
        let max_age = self.config.joints.max_age_ms * NS_PER_MS;
        let measured = self.measured.as_ref().filter(|measured| now.since(measured.stamp) <= max_age);
        let measured = measured.map(|measured| measured.positions.as_slice());
        if let Some(command) = self.scheduler.tick(Steady(now.0), measured) {
            self.recording.commands.push(CommandSample {
                stamp: now,
                values: command.values.to_vec(),
                chunk: command.chunk,
                resting: command.resting,
                limited: command.limited,
            });
        }
    }

    /// Starts an inference if none is under way and there is a new observation.
    fn begin_inference(&mut self) -> Result<(), ReplayError> {
        let Some(now) = self.now.filter(|_| self.pending.is_none()) else { return Ok(()) };
        let observation = match self.snapshots.snapshot(now) {
            Ok(observation) => observation,
            Err(not_ready) => {
                self.wait_for(&not_ready);
                return Ok(());
            }
        };
        if self.last_observed == Some(observation.stamp) {
            return Ok(());
        }
        self.waiting_for = None;
        self.last_observed = Some(observation.stamp);
        let id = self.next_id;
        self.next_id += 1;
        let observed = observation.stamp;
        let age = |stamp: Stamp| now.since(stamp) as f64 / NS_PER_MS as f64;
        let image_age_ms = self.image_stamps.iter().map(|stamp| stamp.map(age)).collect();
        let request = Request { id, observation, prompt: self.prompt.clone() };
        let done = match &mut self.worker {
            Worker::Simulated { inference, latency_ns } => match inference.run(&request) {
                Ok(response) => Some((Stamp(now.0.saturating_add(*latency_ns)), response)),
                Err(error) => return self.failed(error),
            },
            Worker::Thread(thread) => {
                thread.begin(request)?;
                None
            }
        };
        self.pending = Some(Pending { id, epoch: self.scheduler.epoch(), observed, image_age_ms, done });
        Ok(())
    }

    /// Takes a response of the inference thread, if there is one.
    fn poll(&mut self) -> Result<(), ReplayError> {
        if let Worker::Thread(thread) = &self.worker
            && self.pending.is_some()
            && let Some(response) = thread.poll()
        {
            match response {
                Ok(response) => self.end_inference(Some(response))?,
                Err(error) => {
                    self.pending = None;
                    self.failed(error)?;
                }
            }
            self.begin_inference()?;
        }
        Ok(())
    }

    /// The pending inference is done: its chunk goes to the scheduler.
    fn end_inference(&mut self, response: Option<Response>) -> Result<(), ReplayError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let Some(response) = response.or(pending.done.map(|(_, response)| response)) else { return Ok(()) };
        let now = self.now.unwrap_or_default();
        let Pending { id, epoch, observed, image_age_ms, .. } = pending;
        if response.truncated {
            self.count("prompt_truncated", "the prompt has more tokens than the model reads");
        }
        let chunk = Chunk {
            id,
            epoch,
            observed: Steady(observed.0),
            period_ns: (NS_PER_S as f64 / self.config.control.policy_rate_hz).round() as i64,
            actions: response.actions,
        };
        match self.scheduler.accept(&chunk, Steady(now.0)) {
            Ok(accepted) => {
                let seen =
                    (id % self.seen_every == 0).then(|| response.images.iter().map(as_bytes).collect());
                self.recording.chunks.push(ChunkRecord {
                    id,
                    observed,
                    arrived: now,
                    dropped_steps: accepted.dropped_steps,
                    actions: chunk.actions,
                    tokens: response.tokens,
                    image_age_ms,
                    timings: response.timings,
                    seen,
                    seen_side: self.policy.shape().image_side,
                });
                self.thin_out_seen();
            }
            Err(rejected) => self.count("chunk_rejected", &rejected.to_string()),
        }
        Ok(())
    }

    /// Keeps images of a bounded number of chunks, evenly spread.
    fn thin_out_seen(&mut self) {
        let chunks = &mut self.recording.chunks;
        if chunks.iter().filter(|chunk| chunk.seen.is_some()).count() > SEEN_CHUNKS {
            self.seen_every *= 2;
            for chunk in chunks.iter_mut().filter(|chunk| chunk.id % self.seen_every != 0) {
                chunk.seen = None;
            }
        }
    }

    /// An observation that cannot be used is counted; a broken engine ends the replay.
    fn failed(&mut self, error: InferenceError) -> Result<(), ReplayError> {
        match error {
            InferenceError::Observation(error) => {
                self.count("observation_dropped", &error.to_string());
                Ok(())
            }
            error => Err(error.into()),
        }
    }

    /// Counts each time that observations stop, not each message that cannot help it.
    fn wait_for(&mut self, not_ready: &NotReady) {
        let (reason, part) = match not_ready {
            NotReady::Missing { part } => ("nothing received", part),
            NotReady::Future { part, .. } => ("stamped in the future", part),
            NotReady::TooOld { part, .. } => ("too old", part),
            NotReady::Skewed { oldest, .. } => ("too far behind the others", oldest),
        };
        let waiting_for = format!("{part}: {reason}");
        if self.waiting_for.as_ref() != Some(&waiting_for) {
            if self.last_observed.is_some() {
                self.count("no_observation", &waiting_for);
            }
            self.waiting_for = Some(waiting_for);
        }
    }

    fn count(&mut self, what: &str, why: &str) {
        let counters = &mut self.recording.counters;
        let mut key = format!("{what}: {why}");
        if counters.len() >= REASONS && !counters.contains_key(&key) {
            key = format!("{what}: other reasons");
        }
        *counters.entry(key).or_default() += 1;
    }

    /// After the last message nothing new is seen: what is under way arrives, and the plan is followed to its rest.
    fn finish(mut self) -> Result<Recording, ReplayError> {
        if let Some(end) = self.now {
            let give_up = Stamp(end.0.saturating_add(LONGEST_GAP_NS));
            while self.next_tick < give_up && !self.at_rest() {
                self.advance(Stamp(self.next_tick.0.saturating_add(1)))?;
            }
        }
        if self.recording.chunks.is_empty() {
            let why = self.waiting_for.take().unwrap_or_else(|| "no message of its topics".to_owned());
            self.recording.notes.push(format!("no inference ran to its end; last reason to wait: {why}"));
        }
        for (name, count) in self.scheduler.counters().entries() {
            self.recording.counters.insert(name.to_owned(), count);
        }
        Ok(self.recording)
    }

    /// Nothing is under way, and commands (if there ever were any) have stopped changing.
    fn at_rest(&self) -> bool {
        let still = match self.recording.commands.as_slice() {
            [.., before, last] => last.resting && last.values == before.values,
            [_] => false,
            [] => self.recording.chunks.is_empty() || self.measured.is_none(),
        };
        self.pending.is_none() && still
    }
}

/// Bag time against the wall's.
struct Pace {
    speed: Speed,
    begin: Option<(Instant, Stamp)>,
}

impl Pace {
    fn new(speed: Speed) -> Self {
        Self { speed, begin: None }
    }

    fn begin(&mut self, at: Stamp) {
        self.begin = Some((Instant::now(), at));
    }

    fn wait_until(&self, at: Stamp) {
        if let (Speed::Times(speed), Some((wall, bag))) = (self.speed, self.begin) {
            let seconds = at.since(bag).max(0) as f64 / NS_PER_S as f64 / speed;
            if let Ok(offset) = Duration::try_from_secs_f64(seconds) {
                thread::sleep(offset.saturating_sub(wall.elapsed()));
            }
        }
    }
}

/// What the network saw, as bytes.
fn as_bytes(image: &Option<Pixels>) -> Option<Vec<u8>> {
    image.as_ref().map(|pixels| match pixels {
        Pixels::U8(bytes) => bytes.clone(),
        Pixels::F32(values) => values.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect(),
    })
}
