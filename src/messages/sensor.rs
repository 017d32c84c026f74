//! What a robot's sensors say. Decoding borrows: image bytes and strings point into the payload.

use super::cdr::{CdrError, Reader, Writer};
use super::{encoded, header, put_header};
use crate::clock::Stamp;
use crate::observe::image::RawImage;

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

impl<'a> From<&ImageMessage<'a>> for RawImage<'a> {
    fn from(message: &ImageMessage<'a>) -> Self {
        let &ImageMessage { width, height, encoding, is_bigendian, step, data, .. } = message;
        Self { width, height, encoding, is_bigendian, step, data }
    }
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

    /// Replaces what is in `payload`.
    pub fn put(&self, payload: &mut Vec<u8>) {
        let mut cdr = Writer::new(payload);
        put_header(&mut cdr, self.stamp, self.frame_id);
        cdr.u32(self.height);
        cdr.u32(self.width);
        cdr.string(self.encoding);
        cdr.u8(self.is_bigendian.into());
        cdr.u32(self.step);
        cdr.bytes(self.data);
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

    /// To a buffer of its own. See [`super::put_joint_state`] for a command.
    pub fn encode(&self) -> Vec<u8> {
        encoded(|payload| {
            let mut cdr = Writer::new(payload);
            put_header(&mut cdr, self.stamp, self.frame_id);
            cdr.strings(&self.names);
            cdr.f64s(&self.position);
            cdr.f64s(&self.velocity);
            cdr.f64s(&self.effort);
        })
    }
}
