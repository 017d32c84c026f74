//! A message of a bag as what its topic is for, and how the intake takes it.

use super::topics::Role;
use crate::clock::Stamp;
use crate::messages::{CdrError, CompressedImageMessage, ImageMessage, JointStateMessage, decode_string};
use crate::observe::RgbImage;
use crate::observe::image::{ImageError, RawImage, decode_compressed, decode_raw};
use crate::observe::intake::Intake;

/// A message of a topic that is read.
pub enum Message<'a> {
    /// An image of this camera slot.
    Raw(usize, ImageMessage<'a>),
    /// An image of this camera slot.
    Compressed(usize, CompressedImageMessage<'a>),
    /// Joint positions.
    Joints(JointStateMessage<'a>),
    /// The task.
    Prompt(&'a str),
}

/// What is left to do with a message after the intake.
pub enum Left<'a> {
    /// Nothing.
    Nothing,
    /// It has measured positions, which the intake took ([`Intake::last_measured`]).
    Measured,
    /// This task, which is no matter of the intake.
    Prompt(&'a str),
}

impl<'a> Message<'a> {
    /// Decodes a payload.
    pub fn decode(role: Role, payload: &'a [u8]) -> Result<Self, CdrError> {
        Ok(match role {
            Role::RawCamera(slot) => Message::Raw(slot, ImageMessage::decode(payload)?),
            Role::CompressedCamera(slot) => {
                Message::Compressed(slot, CompressedImageMessage::decode(payload)?)
            }
            Role::Joints => Message::Joints(JointStateMessage::decode(payload)?),
            Role::Prompt => Message::Prompt(decode_string(payload)?),
        })
    }

    /// Its header's stamp; 0 where it has none.
    pub fn stamp(&self) -> Stamp {
        match self {
            Message::Raw(_, message) => message.stamp,
            Message::Compressed(_, message) => message.stamp,
            Message::Joints(message) => message.stamp,
            Message::Prompt(_) => Stamp(0),
        }
    }

    /// The picture of a camera's message.
    pub fn image(&self) -> Option<Result<RgbImage, ImageError>> {
        match self {
            Message::Raw(_, message) => Some(decode_raw(&RawImage::from(message))),
            Message::Compressed(_, message) => Some(decode_compressed(message.format, message.data)),
            Message::Joints(_) | Message::Prompt(_) => None,
        }
    }

    /// Gives it to the intake as one of that time; what cannot be used is counted there.
    pub fn give_to(&self, intake: &mut Intake, time: Stamp) -> Left<'a> {
        match self {
            Message::Raw(slot, _) | Message::Compressed(slot, _) => {
                if let Some(image) = self.image() {
                    intake.take_image(*slot, time, image);
                }
                Left::Nothing
            }
            Message::Joints(JointStateMessage { names, position, .. }) => {
                match intake.take_joints(time, names, position) {
                    true => Left::Measured,
                    false => Left::Nothing,
                }
            }
            Message::Prompt(text) => Left::Prompt(text),
        }
    }
}
