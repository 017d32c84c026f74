//! A [`Recording`] from a bag that was recorded beside the running node, for the same report as a replay's.
//!
//! Reads the node's chunks and what it commanded, and the joint states and images that it saw, as far as the bag has
//! them. Computes nothing of the policy. A message that cannot be read is counted, as in a replay; one with a stamp of 0
//! is of its log time, as it was of its arrival for the node.

mod ticks;

use std::collections::BTreeMap;

use self::ticks::Ticks;
use super::bag::{Bag, BagError, Record};
use super::message::Message;
use super::recording::{ChunkRecord, CommandSample, JointInfo, Recording, SEEN_CHUNKS, Timings};
use super::topics::{Role, TopicError, find};
use crate::clock::{NS_PER_MS, NS_PER_S, Stamp, seconds};
use crate::config::{CommandType, Config};
use crate::control::limits::LimitsError;
use crate::messages::{
    ActionChunkMessage, CompressedImageMessage, FLOAT64_MULTI_ARRAY, ImageMessage, JointStateMessage,
    JointTrajectoryMessage, PolicyStatusMessage, decode_float64_multi_array,
};
use crate::model::Pixels;
use crate::observe::RgbImage;
use crate::observe::intake::Intake;
use crate::observe::joints::{JointError, JointMap};
use crate::policy::cameras::{CameraError, CameraSlots};
use crate::policy::resize::{Resize, resize_with_pad};
use crate::printable::printable;

/// Why a bag is not reported on.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The bag.
    #[error(transparent)]
    Bag(#[from] BagError),
    /// Cameras that do not fit the model.
    #[error(transparent)]
    Cameras(#[from] CameraError),
    /// Joint names.
    #[error("joints.names: {0}")]
    Joints(#[from] JointError),
    /// Limits.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// Nothing of the node in it.
    #[error(
        "{bag}: expected the node's chunks (one topic of type {}), found {found}; record ~/chunks of one node",
        ActionChunkMessage::TYPE
    )]
    Chunks {
        /// The bag.
        bag: String,
        /// Topics of the type.
        found: String,
    },
}

/// Side of their pictures, pixels: that of π0.5.
const SEEN_SIDE: u32 = 224;
/// Chunks that arrive this long after their observation, or before it, are stamped by another clock.
const CLOCKS_APART_NS: i64 = 60 * NS_PER_S;
/// An image without a stamp is the one that arrived so close to its log time: less than half of a camera's period.
const LOGGED_NEAR_NS: i64 = 10 * NS_PER_MS;

/// What the bag tells of a run of the node with these parameters. `slots` are the model's cameras.
pub fn recording(bag: &Bag, config: &Config, slots: &CameraSlots) -> Result<Recording, LiveError> {
    let sources = Sources::find(bag, config)?;
    let limits = config.control_config(1)?.limits; // they do not depend on the horizon
    let joints = config.joints.action_names.iter().zip(limits.as_slice());
    let mut reader = Reader {
        config,
        intake: Intake::new(config, &[], &[])?,
        commanded: JointMap::new(config.joints.action_names.clone())?,
        ticks: Ticks::new(config.control.rate_hz),
        logged: Vec::new(),
        id_offset: 0,
        other_joints: None,
        image_stamps: Vec::new(),
        recording: Recording {
            bag: bag.path().display().to_string(),
            checkpoint: config.checkpoint.clone(),
            robot: config.robot.name().to_owned(),
            prompt: config.prompt.clone(),
            cameras: slots.names.clone(),
            policy_rate_hz: config.control.policy_rate_hz,
            rate_hz: config.control.rate_hz,
            joints: joints.map(|(name, limit)| JointInfo::new(name, limit)).collect(),
            measured_index: config.measured_index(),
            joints_max_age_ns: config.joints.max_age_ms * NS_PER_MS,
            notes: sources.notes.clone(),
            ..Recording::default()
        },
    };
    let indices: Vec<usize> = sources.topics.iter().map(|(index, _)| *index).collect();
    for record in bag.records(&indices)? {
        match record {
            Ok(record) => {
                for &(_, source) in sources.topics.iter().filter(|(index, _)| *index == record.topic) {
                    reader.take(source, &record);
                }
            }
            Err(error) => {
                reader.recording.notes.push(format!("the bag cannot be read further: {error}"));
                break;
            }
        }
    }
    let (mut recording, image_stamps) = reader.finish();
    show_images(&mut recording, &image_stamps, bag, config, slots)?;
    recording.notes.extend(bag.notes().iter().cloned());
    Ok(recording)
}

/// What a topic holds.
#[derive(Clone, Copy, Debug)]
enum Source {
    Chunks,
    Status,
    Joints,
    /// Commands as Float64MultiArray.
    Values,
    /// Commands as JointState.
    States,
    /// Commands as JointTrajectory.
    Trajectories,
}

struct Sources {
    topics: Vec<(usize, Source)>,
    notes: Vec<String>,
}

impl Sources {
    fn find(bag: &Bag, config: &Config) -> Result<Self, LiveError> {
        let of_type = |name: &str| -> Vec<usize> {
            (0..bag.topics().len()).filter(|&topic| bag.topics()[topic].type_name == name).collect()
        };
        let [chunks] = of_type(ActionChunkMessage::TYPE)[..] else {
            let found = of_type(ActionChunkMessage::TYPE);
            let names: Vec<&str> = found.iter().map(|&topic| bag.topics()[topic].name.as_str()).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(LiveError::Chunks { bag: bag.path().display().to_string(), found });
        };
        let mut sources = Self { topics: vec![(chunks, Source::Chunks)], notes: Vec::new() };
        sources
            .topics
            .extend(of_type(PolicyStatusMessage::TYPE).into_iter().map(|topic| (topic, Source::Status)));
        sources.add(bag, "joints.topic", &config.joints.topic, JointStateMessage::TYPE, Source::Joints);
        let topic = &config.control.command_topic;
        match config.control.command {
            CommandType::Float64MultiArray => {
                sources.add(bag, "control.command_topic", topic, FLOAT64_MULTI_ARRAY, Source::Values);
            }
            CommandType::JointState => {
                sources.add(bag, "control.command_topic", topic, JointStateMessage::TYPE, Source::States);
            }
            CommandType::JointTrajectory => sources.add_trajectories(bag, topic),
        }
        Ok(sources)
    }

    /// Trajectories; or, in a file of the flight recorder, what each tick would have commanded.
    fn add_trajectories(&mut self, bag: &Bag, name: &str) {
        let is_flight = find(bag, "", name, &[JointStateMessage::TYPE], &mut Vec::new()).is_ok();
        if is_flight {
            self.add(bag, "control.command_topic", name, JointStateMessage::TYPE, Source::States);
        } else {
            self.add(bag, "control.command_topic", name, JointTrajectoryMessage::TYPE, Source::Trajectories);
            let note = "commands are trajectories: they are not drawn, and their limits are not judged";
            self.notes.push(note.to_owned());
        }
    }

    /// A topic that the report can do without.
    fn add(&mut self, bag: &Bag, parameter: &str, name: &str, kind: &str, source: Source) {
        match find(bag, parameter, name, &[kind], &mut self.notes) {
            Ok(topic) => self.topics.push((topic, source)),
            Err(error) => self.notes.push(error.to_string()),
        }
    }
}

struct Reader<'a> {
    config: &'a Config,
    /// For the joints, and to count.
    intake: Intake,
    commanded: JointMap,
    ticks: Ticks,
    /// When each command was logged, where that is all that tells its time.
    logged: Vec<Stamp>,
    /// Added to the chunks' numbers, which begin anew with every activation.
    id_offset: u64,
    /// The joints of the last chunk that was refused for them.
    other_joints: Option<String>,
    /// By chunk: those of the images that it was computed from.
    image_stamps: Vec<Vec<Option<Stamp>>>,
    recording: Recording,
}

impl Reader<'_> {
    fn take(&mut self, source: Source, record: &Record) {
        let payload = &record.payload;
        let log_time = Stamp(record.log_time);
        match source {
            Source::Chunks => match ActionChunkMessage::decode(payload) {
                Ok(message) => self.take_chunk(&message, log_time),
                Err(error) => self.intake.count("chunk_rejected", &error.to_string()),
            },
            Source::Status => match PolicyStatusMessage::decode(payload) {
                Ok(message) => {
                    self.recording.checkpoint = message.checkpoint.to_owned();
                    self.recording.engine = message.engine.to_owned();
                }
                Err(error) => self.intake.count("status_dropped", &error.to_string()),
            },
            Source::Joints => match JointStateMessage::decode(payload) {
                Ok(message) => {
                    if self.intake.take_joints(message.stamp.or(log_time), &message.names, &message.position)
                    {
                        self.recording.measured.extend(self.intake.last_measured().cloned());
                    }
                }
                Err(error) => self.intake.refuse_joints(&error),
            },
            Source::Values => match decode_float64_multi_array(payload) {
                Ok(values) => {
                    let stamp = self.ticks.stamp(log_time);
                    self.take_command(stamp, values);
                    self.logged.push(log_time);
                }
                Err(error) => self.intake.count("command_dropped", &error.to_string()),
            },
            Source::States => match JointStateMessage::decode(payload) {
                Ok(message) => self.take_named_command(&message, log_time),
                Err(error) => self.intake.count("command_dropped", &error.to_string()),
            },
            Source::Trajectories => self.recording.unjudged += 1,
        }
    }

    /// A command that names its joints. One that is wrong is counted, and what is wrong of it is missing; one that names
    /// none of the configured joints is another robot's.
    fn take_named_command(&mut self, message: &JointStateMessage<'_>, log_time: Stamp) {
        let JointStateMessage { names, position, .. } = message;
        let values = match self.commanded.positions(names, position) {
            Ok(values) => values,
            Err(error) => {
                self.intake.count("command_dropped", &error.to_string());
                let ours = self.commanded.names();
                if !ours.iter().any(|joint| names.contains(&joint.as_str())) {
                    return;
                }
                let value = |joint: &String| {
                    let mut named = names.iter().zip(position).filter(|(name, _)| **name == joint);
                    let (_, value) = named.next().filter(|_| names.len() == position.len())?;
                    named.next().is_none().then_some(*value)
                };
                ours.iter().map(|joint| value(joint).unwrap_or(f64::NAN)).collect()
            }
        };
        self.take_command(message.stamp.or(log_time), values);
    }

    fn take_chunk(&mut self, message: &ActionChunkMessage<'_>, arrived: Stamp) {
        let width = self.recording.joints.len();
        let steps = message.steps as usize;
        let names = &self.config.joints.action_names;
        if !names.iter().all(|name| message.joint_names.contains(&name.as_str())) {
            self.other_joints = Some(printable(&message.joint_names.join(", ")));
        }
        if message.joint_names.len() != width
            || steps.checked_mul(width) != Some(message.actions.len())
            || width == 0
        {
            let (named, values) = (message.joint_names.len(), message.actions.len());
            let why =
                format!("expected {width} joints, found {named} joints, {steps} steps and {values} values");
            return self.intake.count("chunk_rejected", &why);
        }
        let place = |name: &String| message.joint_names.iter().position(|found| found == name);
        let places: Option<Vec<usize>> = self.config.joints.action_names.iter().map(place).collect();
        let Some(places) = places else {
            return self.intake.count("chunk_rejected", "its joints are not those of joints.action_names");
        };
        let by_name = |step: &[f64]| places.iter().filter_map(|&place| step.get(place).copied()).collect();
        let id = match self.recording.chunks.last() {
            None => message.id,
            Some(last) => {
                if message.id.saturating_add(self.id_offset) <= last.id {
                    self.id_offset = last.id.saturating_add(1).saturating_sub(message.id);
                }
                message.id.saturating_add(self.id_offset)
            }
        };
        let observed = message.stamp.or(arrived);
        let &ActionChunkMessage { encode_ms, vision_ms, prefix_ms, denoise_ms, decode_ms, .. } = message;
        let timings = Timings { encode_ms, vision_ms, prefix_ms, denoise_ms, decode_ms };
        let begun = Stamp(arrived.0.saturating_sub((timings.total_ms() * NS_PER_MS as f64) as i64)); // saturates
        let age_ms = |stamp: Stamp| begun.since(stamp) as f64 / NS_PER_MS as f64;
        let elapsed = seconds(arrived.since(observed)) * self.config.control.policy_rate_hz;
        self.recording.prompt = message.prompt.to_owned();
        self.image_stamps.push(message.image_stamps.clone());
        self.recording.chunks.push(ChunkRecord {
            id,
            observed,
            arrived,
            dropped_steps: (elapsed.ceil().max(0.0) as usize).min(steps),
            actions: message.actions.chunks(width).map(by_name).collect(),
            tokens: message.tokens as usize,
            image_age_ms: message.image_stamps.iter().map(|stamp| stamp.map(age_ms)).collect(),
            timings,
            seen: None,
            seen_side: SEEN_SIDE,
        });
    }

    /// The chunk that a command followed is the newest one that had arrived. Nobody knows which values one of another
    /// width has: all are missing.
    fn take_command(&mut self, stamp: Stamp, mut values: Vec<f64>) {
        let width = self.recording.joints.len();
        if values.len() != width {
            let why = format!("expected {width} values, found {}", values.len());
            self.intake.count("command_dropped", &why);
            values.clear();
        }
        let chunk = self.recording.chunks.last();
        let resting = chunk.is_none_or(|chunk| {
            let passed = seconds(stamp.since(chunk.observed));
            passed * self.config.control.policy_rate_hz > chunk.actions.len().saturating_sub(1) as f64
        });
        let chunk = chunk.map_or(0, |chunk| chunk.id);
        self.recording.commands.push(CommandSample { stamp, values, chunk, resting, limited: false });
    }

    fn finish(mut self) -> (Recording, Vec<Vec<Option<Stamp>>>) {
        let Recording { measured, commands, chunks, notes, untimed, .. } = &mut self.recording;
        if commands.iter().all(|command| command.values.is_empty()) {
            commands.clear(); // they are another robot's
            self.logged.clear();
        }
        let stamps = || {
            let chunks = chunks.iter().flat_map(|chunk| [chunk.observed, chunk.arrived]);
            measured.iter().map(|m| m.stamp).chain(commands.iter().map(|c| c.stamp)).chain(chunks)
        };
        if let (true, Some(found)) = (chunks.is_empty(), &self.other_joints) {
            let expected = printable(&self.config.joints.action_names.join(", "));
            let note = format!("the bag's chunks are of the joints {found}; the parameters name {expected}");
            notes.push(format!("{note}: give the file that the node ran with, by --config"));
        }
        let (start, end) = (stamps().min().unwrap_or_default(), stamps().max().unwrap_or_default());
        if chunks.iter().any(|chunk| chunk.arrived.since(chunk.observed).saturating_abs() > CLOCKS_APART_NS) {
            let note =
                "the bag's log times are not of the stamps' clock; in simulation record with --use-sim-time";
            notes.push(note.to_owned());
        }
        *untimed = self.ticks.untimed(&self.logged);
        if !untimed.is_empty() {
            let count = untimed.len();
            let when = "when each was given is not known, and their speed not judged";
            notes.push(format!("{count} commands were logged together: {when}"));
        }
        (self.recording.start, self.recording.end) = (start, end);
        self.recording.counters = self.intake.counters().iter().map(|(name, n)| (name.clone(), *n)).collect();
        (self.recording, self.image_stamps)
    }
}

/// Chunks (indices) by the camera slot and the stamp of an image that they were computed from.
type Wanted = BTreeMap<(usize, Stamp), Vec<usize>>;

/// Gives some chunks, evenly spread, the images that they were computed from.
fn show_images(
    recording: &mut Recording,
    image_stamps: &[Vec<Option<Stamp>>],
    bag: &Bag,
    config: &Config,
    slots: &CameraSlots,
) -> Result<(), LiveError> {
    let mut roles = Vec::new();
    for (slot, camera) in slots.assign(&config.cameras)?.into_iter().enumerate() {
        let Some(camera) = camera.and_then(|index| config.cameras.get(index)) else { continue };
        let parameter = format!("cameras.{}.topic", camera.slot);
        let types = [ImageMessage::TYPE, CompressedImageMessage::TYPE];
        match find(bag, &parameter, &camera.topic, &types, &mut recording.notes) {
            Ok(topic) if bag.topics()[topic].type_name == ImageMessage::TYPE => {
                roles.push((topic, Role::RawCamera(slot)));
            }
            Ok(topic) => roles.push((topic, Role::CompressedCamera(slot))),
            Err(TopicError::Missing { .. }) => {} // not recorded: large
            Err(error) => recording.notes.push(error.to_string()),
        }
    }
    let every = image_stamps.len().div_ceil(SEEN_CHUNKS).max(1);
    let mut wanted = Wanted::new();
    for (index, stamps) in image_stamps.iter().enumerate().step_by(every) {
        for (slot, stamp) in stamps.iter().enumerate() {
            if let Some(stamp) = stamp {
                wanted.entry((slot, *stamp)).or_default().push(index);
            }
        }
    }
    let indices: Vec<usize> = roles.iter().map(|(topic, _)| *topic).collect();
    for record in bag.records(&indices)?.map_while(Result::ok) {
        for &(_, role) in roles.iter().filter(|(topic, _)| *topic == record.topic) {
            let Ok(message) = Message::decode(role, &record.payload) else { continue };
            let (Role::RawCamera(slot) | Role::CompressedCamera(slot)) = role else { continue };
            let Some(chunks) = take_wanted(&mut wanted, slot, message.stamp(), Stamp(record.log_time)) else {
                continue;
            };
            let Some(Ok(image)) = message.image() else { continue };
            let Some(pixels) = picture(&image) else { continue };
            for index in chunks {
                if let Some(chunk) = recording.chunks.get_mut(index) {
                    let seen = chunk.seen.get_or_insert_with(|| vec![None; slots.names.len()]);
                    if let Some(seen) = seen.get_mut(slot) {
                        *seen = Some(pixels.clone());
                    }
                }
            }
        }
    }
    Ok(())
}

/// The chunks that were computed from an image, if it is wanted: they are given it once.
fn take_wanted(wanted: &mut Wanted, slot: usize, stamp: Stamp, log_time: Stamp) -> Option<Vec<usize>> {
    if stamp.0 != 0 {
        return wanted.remove(&(slot, stamp));
    }
    let apart = |by: i64| (slot, Stamp(log_time.0.saturating_add(by)));
    let near = wanted.range(apart(-LOGGED_NEAR_NS)..=apart(LOGGED_NEAR_NS)).next();
    let key = *near?.0;
    wanted.remove(&key)
}

fn picture(image: &RgbImage) -> Option<Vec<u8>> {
    match resize_with_pad(image, SEEN_SIDE, Resize::Pillow) {
        Ok(Pixels::U8(bytes)) => Some(bytes),
        _ => None,
    }
}
