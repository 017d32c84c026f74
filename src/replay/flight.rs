//! Writes what the flight recorder held, as a bag that looks as if it had been recorded beside the node: `pi05 report`
//! draws it, Foxglove and PlotJuggler show it. Called by the node. The file is there when it is complete, or not at all
//! ([`super::bag_writer`]).
//!
//! | topic | type | content |
//! |---|---|---|
//! | `control.command_topic` | as configured; `JointState` for trajectories | what each tick commanded |
//! | `joints.topic` | `sensor_msgs/JointState` | measured positions that ticks used |
//! | `~/chunks` | `pi05_thor/ActionChunk` | each chunk with the stamps of its observation |
//! | `~/status` | `pi05_thor/PolicyStatus` | each change of state or reason |
//! | `~/ticks` | `std_msgs/Float64MultiArray` | [`TICK_VALUES`] of each tick |
//! | `~/remarks` | `std_msgs/String` | why chunks were refused, and the like |

use std::path::Path;

use super::bag_writer::{BagWriteError, MessageType, write_bag};
use crate::clock::{Stamp, Steady};
use crate::config::CommandType;
use crate::control::recorder::{Flight, Tick};
use crate::messages::{PolicyStatusMessage, encode_string, put_float64_multi_array, put_joint_state};

/// What each message of `~/ticks` holds. The state is its number in [`crate::control::State::ALL`].
pub const TICK_VALUES: [&str; 7] = ["late_us", "work_us", "state", "epoch", "chunk", "resting", "limited"];

/// What the recorder does not know: names, and what the node's status says beside.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// Full name of the node: `/left/policy`.
    pub node: String,
    /// Final names of the topics.
    pub command_topic: String,
    /// As above.
    pub joints_topic: String,
    /// Type of the commands.
    pub command: CommandType,
    /// One per value of a command.
    pub action_names: Vec<String>,
    /// One per value of a measured state.
    pub state_names: Vec<String>,
    /// As configured.
    pub checkpoint: String,
    /// Such as: cpu f32.
    pub engine: String,
    /// The task.
    pub prompt: String,
}

/// What is in the bag, by index of its topic.
enum Content<'a> {
    Command(&'a Tick),
    Measured(&'a [f64]),
    Chunk(&'a [u8]),
    Status(&'a str, &'a str),
    Tick(&'a Tick),
    Remark(&'a str),
}

/// Writes `flight` to an MCAP file at `path`, which is replaced; `stamp` makes ROS time of the recorder's time.
pub fn write_flight(
    flight: &Flight,
    labels: &Labels,
    stamp: impl Fn(Steady) -> Stamp,
    path: &Path,
) -> Result<(), BagWriteError> {
    let values_only = labels.command == CommandType::Float64MultiArray;
    let command_type =
        if values_only { &MessageType::FLOAT64_MULTI_ARRAY } else { &MessageType::JOINT_STATE };
    let own = |name: &str| format!("{}/{name}", labels.node);
    let [chunks, status, ticks, remarks] = ["chunks", "status", "ticks", "remarks"].map(own);
    let topics = [
        (labels.command_topic.as_str(), command_type),
        (labels.joints_topic.as_str(), &MessageType::JOINT_STATE),
        (chunks.as_str(), &MessageType::ACTION_CHUNK),
        (status.as_str(), &MessageType::POLICY_STATUS),
        (ticks.as_str(), &MessageType::FLOAT64_MULTI_ARRAY),
        (remarks.as_str(), &MessageType::STRING),
    ];
    let mut payload = Vec::new();
    write_bag(path, &topics, |bag| {
        events(flight).into_iter().try_for_each(|(at, content)| {
            let time = stamp(at);
            content.put(labels, time, &mut payload);
            bag.write(content.topic(), time, &payload)
        })
    })
}

/// Everything in the order of its time.
fn events(flight: &Flight) -> Vec<(Steady, Content<'_>)> {
    let begin = flight.ticks.first().map(|tick| tick.at).unwrap_or_default();
    let mut events = Vec::new();
    for tick in &flight.ticks {
        if !tick.values.is_empty() {
            events.push((tick.at, Content::Command(tick)));
        }
        events.push((tick.at, Content::Tick(tick)));
    }
    events.extend(flight.measured.iter().map(|(at, positions)| (*at, Content::Measured(positions))));
    events.extend(flight.chunks.iter().map(|(at, encoded)| (*at, Content::Chunk(encoded))));
    // The state that was there before is said at the beginning.
    events.extend(
        flight
            .changes
            .iter()
            .map(|change| (change.at.max(begin), Content::Status(change.state.name(), &change.reason))),
    );
    events.extend(flight.remarks.iter().map(|(at, text)| (*at, Content::Remark(text))));
    events.sort_by_key(|(at, content)| (*at, content.topic()));
    events
}

impl Content<'_> {
    fn topic(&self) -> usize {
        match self {
            Self::Command(_) => 0,
            Self::Measured(_) => 1,
            Self::Chunk(_) => 2,
            Self::Status(..) => 3,
            Self::Tick(_) => 4,
            Self::Remark(_) => 5,
        }
    }

    fn put(&self, labels: &Labels, time: Stamp, payload: &mut Vec<u8>) {
        match self {
            Self::Command(tick) if labels.command == CommandType::Float64MultiArray => {
                put_float64_multi_array(&tick.values, payload);
            }
            Self::Command(tick) => put_joint_state(time, &labels.action_names, &tick.values, payload),
            Self::Measured(positions) => put_joint_state(time, &labels.state_names, positions, payload),
            Self::Chunk(encoded) => {
                payload.clear();
                payload.extend_from_slice(encoded);
            }
            Self::Status(control, reason) => {
                *payload = PolicyStatusMessage {
                    stamp: time,
                    lifecycle: "active",
                    control,
                    reason,
                    prompt: &labels.prompt,
                    checkpoint: &labels.checkpoint,
                    engine: &labels.engine,
                }
                .encode();
            }
            Self::Tick(tick) => {
                let number = |is: bool| f64::from(u8::from(is));
                let values: [f64; TICK_VALUES.len()] = [
                    tick.late_ns as f64 / 1e3,
                    tick.work_ns as f64 / 1e3,
                    f64::from(tick.state as u8),
                    tick.epoch as f64,
                    tick.chunk as f64,
                    number(tick.resting),
                    number(tick.limited),
                ];
                put_float64_multi_array(&values, payload);
            }
            Self::Remark(text) => *payload = encode_string(text),
        }
    }
}
