//! Writes `commands.mcap`: what a replay commanded, as rosbag2 would have recorded it.
//!
//! Same recording, same bytes. The file is there when it is complete, or not at all ([`super::bag_writer`]). Called by
//! `replay`.
//!
//! | topic | type | log time | content |
//! |---|---|---|---|
//! | `/commands` | the configured [`CommandType`] | the tick, or that at which a trajectory begins | what the arm was told |
//! | `/joint_states` | `sensor_msgs/JointState` | the measurement | measured positions that were used |
//! | `/chunks` | `trajectory_msgs/JointTrajectory` | the chunk's arrival | every step, counted from its observation |

use std::path::Path;

use super::bag_writer::{BagWriteError, MessageType, write_bag};
use super::recording::{ChunkRecord, CommandSample, Measured, Recording, SentTrajectory};
use crate::clock::{NS_PER_S, Stamp};
use crate::config::CommandType;
use crate::messages::{
    JointStateMessage, JointTrajectoryMessage, TrajectoryPoint, put_float64_multi_array, put_joint_state,
};

/// Writes the commands, measurements and chunks of `recording` to an MCAP file at `path`, which is replaced.
pub fn write_commands(recording: &Recording, command: CommandType, path: &Path) -> Result<(), BagWriteError> {
    let command_type = match command {
        CommandType::Float64MultiArray => &MessageType::FLOAT64_MULTI_ARRAY,
        CommandType::JointState => &MessageType::JOINT_STATE,
        CommandType::JointTrajectory => &MessageType::JOINT_TRAJECTORY,
    };
    let topics = [
        ("/commands", command_type),
        ("/joint_states", &MessageType::JOINT_STATE),
        ("/chunks", &MessageType::JOINT_TRAJECTORY),
    ];
    let Tracks { events, context } = Tracks::new(recording, command);
    write_bag(path, &topics, |bag| {
        let mut events = events.iter();
        events.try_for_each(|event| bag.write(event.topic, event.time, &event.content.encode(&context)))
    })
}

/// Everything that goes into the file, in time order.
struct Tracks<'a> {
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
    /// Index of the topic.
    topic: usize,
    content: Content<'a>,
}

enum Content<'a> {
    Command(&'a CommandSample),
    Trajectory(&'a SentTrajectory),
    Measured(&'a Measured),
    Chunk(&'a ChunkRecord),
}

impl<'a> Tracks<'a> {
    fn new(recording: &'a Recording, command: CommandType) -> Self {
        let is_trajectory = command == CommandType::JointTrajectory;
        let commands = recording.commands.iter().filter(|_| !is_trajectory);
        let commands = commands.map(|c| Event { time: c.stamp, topic: 0, content: Content::Command(c) });
        let trajectories = recording.trajectories.iter().filter(|_| is_trajectory);
        let trajectories =
            trajectories.map(|t| Event { time: t.stamp, topic: 0, content: Content::Trajectory(t) });
        let measured = recording.measured.iter();
        let measured = measured.map(|m| Event { time: m.stamp, topic: 1, content: Content::Measured(m) });
        let chunks = recording.chunks.iter();
        let chunks = chunks.map(|c| Event { time: c.arrived, topic: 2, content: Content::Chunk(c) });
        let mut events: Vec<_> = commands.chain(trajectories).chain(measured).chain(chunks).collect();
        events.sort_by_key(|event| (event.time, event.topic));
        let context = Context {
            command,
            joint_names: recording.joints.iter().map(|joint| joint.name.as_str()).collect(),
            state_names: state_names(recording),
            policy_rate_hz: recording.policy_rate_hz,
        };
        Self { events, context }
    }
}

impl Content<'_> {
    fn encode(&self, context: &Context<'_>) -> Vec<u8> {
        match self {
            Self::Command(sample) => context.encode_command(sample),
            Self::Trajectory(trajectory) => {
                let points = trajectory.points.iter();
                let points = points
                    .map(|&(time_from_start, ref positions)| TrajectoryPoint { time_from_start, positions });
                context.encode_trajectory(trajectory.stamp, points.collect())
            }
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
    fn encode_command(&self, sample: &CommandSample) -> Vec<u8> {
        let mut payload = Vec::new();
        match self.command {
            CommandType::JointState => {
                put_joint_state(sample.stamp, &self.joint_names, &sample.values, &mut payload);
            }
            CommandType::Float64MultiArray | CommandType::JointTrajectory => {
                put_float64_multi_array(&sample.values, &mut payload);
            }
        }
        payload
    }

    fn encode_trajectory(&self, stamp: Stamp, points: Vec<TrajectoryPoint<'_>>) -> Vec<u8> {
        JointTrajectoryMessage { stamp, joint_names: self.joint_names.clone(), points }.encode()
    }
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
