//! A message of a bag as what its topic is for, not yet taken in.

use super::topics::Role;
use crate::clock::Stamp;
use crate::messages::{CdrError, CompressedImageMessage, ImageMessage, JointStateMessage, decode_string};

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
}
