//! The few ROS 2 messages that we read and write, as CDR bytes: one codec for the node and for recordings.
//!
//! Decoding borrows: image bytes and strings point into the payload. Every length is checked against the bytes that
//! are there before it is used. Encoding is little endian, into a buffer that is cleared first and keeps its memory.
//! Strings go out without NULs, on which other clients break. Called by `node` and `replay`. Never judges the content:
//! an absurd image is `observe`'s to refuse.
//!
//! | file | messages |
//! |---|---|
//! | `sensor` | images, joint states |
//! | `command` | what the arm is told |
//! | `policy` | our own: `pi05_thor/msg/ActionChunk`, `PolicyStatus` |
//! | `diagnostics` | `/diagnostics` |
//! | `cdr` | the wire format |

mod cdr;
mod command;
mod diagnostics;
mod policy;
mod sensor;
#[cfg(test)]
mod tests;

use crate::clock::Stamp;

pub use cdr::CdrError;
use cdr::{Reader, Writer};
pub use command::{
    FLOAT64_MULTI_ARRAY, JointTrajectoryMessage, TrajectoryPoint, decode_float64_multi_array,
    put_float64_multi_array, put_joint_state,
};
pub use diagnostics::{DiagnosticArrayMessage, DiagnosticStatus, Level};
pub use policy::{ActionChunkMessage, PolicyStatusMessage};
pub use sensor::{CompressedImageMessage, ImageMessage, JointStateMessage};

/// ROS 2 name of the type of [`decode_string`].
pub const STRING: &str = "std_msgs/msg/String";
/// ROS 2 name of the type of [`decode_clock`].
pub const CLOCK: &str = "rosgraph_msgs/msg/Clock";

/// The text of a `std_msgs/msg/String`.
pub fn decode_string(payload: &[u8]) -> Result<&str, CdrError> {
    Reader::new(payload)?.string("data")
}

/// A `std_msgs/msg/String`.
pub fn encode_string(text: &str) -> Vec<u8> {
    encoded(|payload| Writer::new(payload).string(text))
}

/// The time of a `rosgraph_msgs/msg/Clock`.
pub fn decode_clock(payload: &[u8]) -> Result<Stamp, CdrError> {
    time(&mut Reader::new(payload)?, "clock")
}

/// What `put` puts, in a buffer of its own.
fn encoded(put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut payload = Vec::new();
    put(&mut payload);
    payload
}

/// Stamp and frame of a `std_msgs/msg/Header`.
fn header<'a>(cdr: &mut Reader<'a>) -> Result<(Stamp, &'a str), CdrError> {
    Ok((time(cdr, "header.stamp")?, cdr.string("header.frame_id")?))
}

fn time(cdr: &mut Reader<'_>, field: &'static str) -> Result<Stamp, CdrError> {
    let sec = cdr.i32(field)?;
    Ok(Stamp::from_ros(sec, cdr.u32(field)?))
}

fn put_header(cdr: &mut Writer<'_>, stamp: Stamp, frame_id: &str) {
    put_time(cdr, stamp);
    cdr.string(frame_id);
}

/// `builtin_interfaces/msg/Time` and `Duration` look alike.
fn put_time(cdr: &mut Writer<'_>, time: Stamp) {
    let (sec, nanosec) = time.to_ros();
    cdr.i32(sec);
    cdr.u32(nanosec);
}
