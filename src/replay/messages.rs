//! The ROS 2 messages of a recording, to and from their serialized form (CDR).
//!
//! Decoding borrows: image bytes and strings point into the payload. Every length is checked against the bytes that
//! are there before it is used. Called by `replay` with payloads from [`super::bag`] and by [`super::commands`].
//! Never judges the content: an absurd image is `observe`'s to refuse.

mod cdr;
#[cfg(test)]
mod tests;

use crate::clock::Stamp;

pub use cdr::CdrError;
use cdr::{Reader, Writer};

/// `sensor_msgs/msg/Image`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageMessage<'a> {
    /// When it was taken.
    pub stamp: Stamp,
    /// Frame of the camera.
    pub frame_id: &'a str,
    /// Rows.
    pub height: u32,
    /// Pixels per row.
    pub width: u32,
    /// `rgb8`, `yuyv`, …
    pub encoding: &'a str,
    /// Byte order of samples wider than a byte.
    pub is_bigendian: bool,
    /// Bytes per row, padding included.
    pub step: u32,
    /// `step × height` bytes, if the sender is honest.
    pub data: &'a [u8],
}

/// `sensor_msgs/msg/CompressedImage`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressedImageMessage<'a> {
    /// When it was taken.
    pub stamp: Stamp,
    /// Frame of the camera.
    pub frame_id: &'a str,
    /// `jpeg`, `rgb8; jpeg compressed bgr8`, …
    pub format: &'a str,
    /// The compressed file.
    pub data: &'a [u8],
}

/// `sensor_msgs/msg/JointState`. Lists may be empty or of different lengths, as the sender likes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JointStateMessage<'a> {
    /// When it was measured.
    pub stamp: Stamp,
    /// Usually empty.
    pub frame_id: &'a str,
    /// Joint names.
    pub names: Vec<&'a str>,
    /// rad or m.
    pub position: Vec<f64>,
    /// rad/s or m/s.
    pub velocity: Vec<f64>,
    /// Nm or N.
    pub effort: Vec<f64>,
}

/// `trajectory_msgs/msg/JointTrajectory`, positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct JointTrajectoryMessage<'a> {
    /// Where the points' times count from.
    pub stamp: Stamp,
    /// One per value of each point.
    pub joint_names: Vec<&'a str>,
    /// Earliest first.
    pub points: Vec<TrajectoryPoint<'a>>,
}

/// `trajectory_msgs/msg/JointTrajectoryPoint`, positions only.
#[derive(Clone, Debug, PartialEq)]
pub struct TrajectoryPoint<'a> {
    /// Nanoseconds after the trajectory's stamp.
    pub time_from_start: i64,
    /// rad or m.
    pub positions: &'a [f64],
}

impl<'a> ImageMessage<'a> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "sensor_msgs/msg/Image";

    /// Decodes a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut cdr = Reader::new(payload)?;
        let (stamp, frame_id) = header(&mut cdr)?;
        Ok(Self {
            stamp,
            frame_id,
            height: cdr.u32("height")?,
            width: cdr.u32("width")?,
            encoding: cdr.string("encoding")?,
            is_bigendian: cdr.u8("is_bigendian")? != 0,
            step: cdr.u32("step")?,
            data: cdr.bytes("data")?,
        })
    }
}

impl<'a> CompressedImageMessage<'a> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "sensor_msgs/msg/CompressedImage";

    /// Decodes a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut cdr = Reader::new(payload)?;
        let (stamp, frame_id) = header(&mut cdr)?;
        Ok(Self { stamp, frame_id, format: cdr.string("format")?, data: cdr.bytes("data")? })
    }
}

impl<'a> JointStateMessage<'a> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "sensor_msgs/msg/JointState";

    /// Decodes a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut cdr = Reader::new(payload)?;
        let (stamp, frame_id) = header(&mut cdr)?;
        Ok(Self {
            stamp,
            frame_id,
            names: cdr.strings("name")?,
            position: cdr.f64s("position")?,
            velocity: cdr.f64s("velocity")?,
            effort: cdr.f64s("effort")?,
        })
    }

    /// Encodes to CDR, little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut cdr = Writer::new();
        put_header(&mut cdr, self.stamp, self.frame_id);
        cdr.strings(&self.names);
        cdr.f64s(&self.position);
        cdr.f64s(&self.velocity);
        cdr.f64s(&self.effort);
        cdr.finish()
    }
}

impl JointTrajectoryMessage<'_> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "trajectory_msgs/msg/JointTrajectory";

    /// Encodes to CDR, little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut cdr = Writer::new();
        put_header(&mut cdr, self.stamp, "");
        cdr.strings(&self.joint_names);
        cdr.length(self.points.len());
        for point in &self.points {
            cdr.f64s(point.positions);
            for _velocities_accelerations_effort in 0..3 {
                cdr.f64s(&[]);
            }
            put_time(&mut cdr, Stamp(point.time_from_start));
        }
        cdr.finish()
    }
}

/// ROS 2 name of the type of [`encode_float64_multi_array`].
pub const FLOAT64_MULTI_ARRAY: &str = "std_msgs/msg/Float64MultiArray";

/// A `std_msgs/msg/Float64MultiArray` without layout, as `forward_command_controller` takes it; CDR, little endian.
pub fn encode_float64_multi_array(values: &[f64]) -> Vec<u8> {
    let mut cdr = Writer::new();
    cdr.length(0); // layout.dim
    cdr.u32(0); // layout.data_offset
    cdr.f64s(values);
    cdr.finish()
}

/// ROS 2 name of the type of [`decode_string`].
pub const STRING: &str = "std_msgs/msg/String";

/// The text of a `std_msgs/msg/String`.
pub fn decode_string(payload: &[u8]) -> Result<&str, CdrError> {
    Reader::new(payload)?.string("data")
}

/// Stamp and frame of a `std_msgs/msg/Header`.
fn header<'a>(cdr: &mut Reader<'a>) -> Result<(Stamp, &'a str), CdrError> {
    let sec = cdr.i32("header.stamp.sec")?;
    let nanosec = cdr.u32("header.stamp.nanosec")?;
    Ok((Stamp::from_ros(sec, nanosec), cdr.string("header.frame_id")?))
}

fn put_header(cdr: &mut Writer, stamp: Stamp, frame_id: &str) {
    put_time(cdr, stamp);
    cdr.string(frame_id);
}

/// `builtin_interfaces/msg/Time` and `Duration` look alike.
fn put_time(cdr: &mut Writer, time: Stamp) {
    let (sec, nanosec) = time.to_ros();
    cdr.i32(sec);
    cdr.u32(nanosec);
}
