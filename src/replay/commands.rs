//! Writes `commands.mcap`: what a replay commanded, as rosbag2 would have recorded it.
//!
//! Opens in Foxglove, PlotJuggler and `ros2 bag`. Same recording, same bytes: no clock is read. The file appears under
//! its name only when it is complete; a full disk or a kill leaves at most `NAME.partial`. Called by `replay`.
//!
//! | topic | type | log time | content |
//! |---|---|---|---|
//! | `/commands` | the configured [`CommandType`] | the tick, or the first tick of a chunk | what the arm was told |
//! | `/joint_states` | `sensor_msgs/JointState` | the measurement | measured positions that were used |
//! | `/chunks` | `trajectory_msgs/JointTrajectory` | the chunk's arrival | every step, counted from its observation |

mod definitions;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use mcap::records::{MessageHeader, Metadata};
use mcap::{Compression, McapError, WriteOptions, Writer};

use self::definitions::MessageType;
use super::recording::{ChunkRecord, CommandSample, Measured, Recording};
use crate::clock::{NS_PER_S, Stamp};
use crate::config::CommandType;
use crate::messages::{
    JointStateMessage, JointTrajectoryMessage, TrajectoryPoint, put_float64_multi_array, put_joint_state,
};

/// Why `commands.mcap` was not written.
#[derive(Debug, thiserror::Error)]
pub enum CommandsError {
    /// The file system refused.
    #[error("{}: cannot be written: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The MCAP library refused.
    #[error("{}: cannot be written: {source}", path.display())]
    Mcap {
        /// File.
        path: PathBuf,
        /// What the library said.
        source: McapError,
    },
}

/// rosbag2's chunk size.
const CHUNK_BYTES: u64 = 768 << 10;

/// Writes the commands, measurements and chunks of `recording` to an MCAP file at `path`, which is replaced.
pub fn write_commands(recording: &Recording, command: CommandType, path: &Path) -> Result<(), CommandsError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let io = |source| CommandsError::Io { path: path.to_owned(), source };
    let written = File::create(&partial)
        .map_err(|source| CommandsError::Io { path: partial.clone(), source })
        .and_then(|file| {
            let file = write(recording, command, &name, file)
                .map_err(|source| CommandsError::Mcap { path: path.to_owned(), source })?;
            file.sync_all().map_err(io)?; // a full disk is reported here at the latest
            fs::rename(&partial, path).map_err(io)
        });
    if written.is_err() {
        fs::remove_file(&partial).unwrap_or_default(); // the first error is the one to report
    }
    written
}

fn write(recording: &Recording, command: CommandType, name: &str, file: File) -> Result<File, McapError> {
    let mut tracks = Tracks::new(recording, command);
    let options = WriteOptions::new()
        .profile("ros2")
        .library(concat!("pi05_thor ", env!("CARGO_PKG_VERSION")))
        .compression(Some(Compression::Zstd))
        .compression_threads(0) // the compressed bytes must not depend on the machine
        .chunk_size(Some(CHUNK_BYTES));
    let mut writer = options.create(BufWriter::new(file))?;
    for topic in &mut tracks.topics {
        topic.declare(&mut writer)?;
    }
    for event in &tracks.events {
        if let Some(topic) = tracks.topics.get_mut(event.topic) {
            topic.write(&mut writer, event.time, &event.content.encode(&tracks.context))?;
        }
    }
    let serialized = bag_metadata(name, &tracks);
    let metadata = BTreeMap::from([("serialized_metadata".to_owned(), serialized)]);
    writer.write_metadata(&Metadata { name: "rosbag2".to_owned(), metadata })?;
    writer.finish()?;
    let mut buffered = writer.into_inner();
    buffered.flush()?;
    buffered.into_inner().map_err(|e| McapError::Io(e.into_error()))
}

/// Everything that goes into the file, in time order.
struct Tracks<'a> {
    topics: Vec<TopicTrack>,
    events: Vec<Event<'a>>,
    context: Context<'a>,
}

/// What the messages have in common.
struct Context<'a> {
    command: CommandType,
    joint_names: Vec<&'a str>,
    state_names: Vec<String>,
    policy_rate_hz: f64,
}

struct Event<'a> {
    time: Stamp,
    /// Index into [`Tracks::topics`].
    topic: usize,
    content: Content<'a>,
}

enum Content<'a> {
    /// One tick, or the ticks of one chunk.
    Command(&'a [CommandSample]),
    Measured(&'a Measured),
    Chunk(&'a ChunkRecord),
}

impl<'a> Tracks<'a> {
    fn new(recording: &'a Recording, command: CommandType) -> Self {
        let command_type = match command {
            CommandType::Float64MultiArray => &definitions::FLOAT64_MULTI_ARRAY,
            CommandType::JointState => &definitions::JOINT_STATE,
            CommandType::JointTrajectory => &definitions::JOINT_TRAJECTORY,
        };
        let topics = vec![
            TopicTrack::new("/commands", command_type),
            TopicTrack::new("/joint_states", &definitions::JOINT_STATE),
            TopicTrack::new("/chunks", &definitions::JOINT_TRAJECTORY),
        ];
        let together = |a: &CommandSample, b: &CommandSample| {
            command == CommandType::JointTrajectory && a.chunk == b.chunk
        };
        let commands = recording.commands.chunk_by(together).filter_map(|samples| {
            Some(Event { time: samples.first()?.stamp, topic: 0, content: Content::Command(samples) })
        });
        let measured = recording.measured.iter();
        let measured = measured.map(|m| Event { time: m.stamp, topic: 1, content: Content::Measured(m) });
        let chunks = recording.chunks.iter();
        let chunks = chunks.map(|c| Event { time: c.arrived, topic: 2, content: Content::Chunk(c) });
        let mut events: Vec<_> = commands.chain(measured).chain(chunks).collect();
        events.sort_by_key(|event| (event.time, event.topic));
        let context = Context {
            command,
            joint_names: recording.joints.iter().map(|joint| joint.name.as_str()).collect(),
            state_names: state_names(recording),
            policy_rate_hz: recording.policy_rate_hz,
        };
        Self { topics, events, context }
    }
}

impl Content<'_> {
    fn encode(&self, context: &Context<'_>) -> Vec<u8> {
        match self {
            Self::Command(samples) => context.encode_command(samples),
            Self::Measured(measured) => JointStateMessage {
                stamp: measured.stamp,
                names: context
                    .state_names
                    .iter()
                    .map(String::as_str)
                    .take(measured.positions.len())
                    .collect(),
                position: measured.positions.clone(),
                ..JointStateMessage::default()
            }
            .encode(),
            Self::Chunk(chunk) => {
                let points = chunk.actions.iter().enumerate().map(|(step, positions)| {
                    let seconds = step as f64 / context.policy_rate_hz;
                    TrajectoryPoint { time_from_start: (seconds * NS_PER_S as f64).round() as i64, positions }
                });
                context.encode_trajectory(chunk.observed, points.collect())
            }
        }
    }
}

impl Context<'_> {
    fn encode_command(&self, samples: &[CommandSample]) -> Vec<u8> {
        let mut payload = Vec::new();
        let Some(first) = samples.first() else { return payload };
        match self.command {
            CommandType::Float64MultiArray => put_float64_multi_array(&first.values, &mut payload),
            CommandType::JointState => {
                put_joint_state(first.stamp, &self.joint_names, &first.values, &mut payload);
            }
            CommandType::JointTrajectory => {
                let moving = moving(samples).iter().map(|sample| TrajectoryPoint {
                    time_from_start: sample.stamp.since(first.stamp),
                    positions: &sample.values,
                });
                payload = self.encode_trajectory(first.stamp, moving.collect());
            }
        }
        payload
    }

    fn encode_trajectory(&self, stamp: Stamp, points: Vec<TrajectoryPoint<'_>>) -> Vec<u8> {
        JointTrajectoryMessage { stamp, joint_names: self.joint_names.clone(), points }.encode()
    }
}

/// Without the samples at the end that hold the position reached before.
fn moving(samples: &[CommandSample]) -> &[CommandSample] {
    let holds = |pair: &&[CommandSample]| matches!(pair, [a, b] if a.values == b.values);
    let held = samples.windows(2).rev().take_while(holds).count();
    samples.get(..samples.len() - held).unwrap_or(samples)
}

/// A name for each value of a measured state: that of the joint it belongs to, else `state_N`.
fn state_names(recording: &Recording) -> Vec<String> {
    let length = recording.measured.iter().map(|m| m.positions.len()).max().unwrap_or(0);
    let name = |index| {
        let joint = recording.measured_index.iter().position(|&measured| measured == Some(index));
        match joint.and_then(|joint| recording.joints.get(joint)) {
            Some(joint) => joint.name.clone(),
            None => format!("state_{index}"),
        }
    };
    (0..length).map(name).collect()
}

/// A topic and what was written to it.
struct TopicTrack {
    name: &'static str,
    message: &'static MessageType,
    channel: u16,
    count: u32,
    span: Option<(u64, u64)>,
}

impl TopicTrack {
    fn new(name: &'static str, message: &'static MessageType) -> Self {
        Self { name, message, channel: 0, count: 0, span: None }
    }

    fn declare(&mut self, writer: &mut Writer<BufWriter<File>>) -> Result<(), McapError> {
        let MessageType { name, hash, definition } = *self.message;
        let schema = writer.add_schema(name, "ros2msg", definition.as_bytes())?; // the same one for the same type
        let metadata = [("offered_qos_profiles", "[]"), ("topic_type_hash", hash)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        self.channel = writer.add_channel(schema, self.name, "cdr", &metadata)?;
        Ok(())
    }

    fn write(
        &mut self,
        writer: &mut Writer<BufWriter<File>>,
        time: Stamp,
        payload: &[u8],
    ) -> Result<(), McapError> {
        let time = u64::try_from(time.0).unwrap_or(0); // MCAP knows no time before 1970
        let (channel_id, sequence) = (self.channel, self.count);
        writer.write_to_known_channel(
            &MessageHeader { channel_id, sequence, log_time: time, publish_time: time },
            payload,
        )?;
        self.count += 1;
        self.span = Some(self.span.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        Ok(())
    }
}

/// rosbag2's description of the bag (its `metadata.yaml`, version 9), which it also keeps inside an MCAP file.
fn bag_metadata(name: &str, tracks: &Tracks<'_>) -> String {
    let spans = || tracks.topics.iter().filter_map(|topic| topic.span);
    let start = spans().map(|(start, _)| start).min().unwrap_or(0);
    let duration = spans().map(|(_, end)| end).max().unwrap_or(start) - start;
    let count: u64 = tracks.topics.iter().map(|topic| u64::from(topic.count)).sum();
    let name = serde_json::Value::from(name); // a JSON string is a YAML string
    let topics: String = tracks.topics.iter().map(topic_metadata).collect();
    format!(
        "\
version: 9
storage_identifier: mcap
duration:
  nanoseconds: {duration}
starting_time:
  nanoseconds_since_epoch: {start}
message_count: {count}
topics_with_message_count:
{topics}compression_format: \"\"
compression_mode: \"\"
relative_file_paths:
  - {name}
files:
  - path: {name}
    starting_time:
      nanoseconds_since_epoch: {start}
    duration:
      nanoseconds: {duration}
    message_count: {count}
custom_data: ~
ros_distro: jazzy
"
    )
}

fn topic_metadata(topic: &TopicTrack) -> String {
    let TopicTrack { name, message, count, .. } = topic;
    format!(
        "  - topic_metadata:
      name: {name}
      type: {}
      serialization_format: cdr
      offered_qos_profiles: []
      type_description_hash: {}
    message_count: {count}
",
        message.name, message.hash
    )
}
