//! Our own messages (`msg/*.msg`): what standard ones cannot say.

use super::cdr::{CdrError, Reader, Writer};
use super::{encoded, header, put_header, put_time, time};
use crate::clock::Stamp;

/// `pi05_thor/msg/ActionChunk`: one inference, in robot space, before limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ActionChunkMessage<'a> {
    /// The newest part of the observation: the time of step 0.
    pub stamp: Stamp,
    /// Number of the inference; selects its noise.
    pub id: u64,
    /// The task that it was computed for.
    pub prompt: &'a str,
    /// One per value of a step.
    pub joint_names: Vec<&'a str>,
    /// Steps of the chunk.
    pub steps: u32,
    /// Seconds between two steps.
    pub period: f64,
    /// `[steps][joint_names]`, if the sender is honest: rad or m, per s for velocity-controlled joints.
    pub actions: Vec<f64>,
    /// Prompt tokens that the model read.
    pub tokens: u32,
    /// One per camera slot of the model; `None` where it is masked (0 on the wire).
    pub image_stamps: Vec<Option<Stamp>>,
    /// Of the joints' state.
    pub joints_stamp: Stamp,
    /// Wall time, ms: resize, normalise, tokenise.
    pub encode_ms: f64,
    /// Wall time, ms: vision.
    pub vision_ms: f64,
    /// Wall time, ms: prefix.
    pub prefix_ms: f64,
    /// Wall time, ms: all denoise steps.
    pub denoise_ms: f64,
    /// Wall time, ms: unnormalise, robot adapter.
    pub decode_ms: f64,
}

/// `pi05_thor/msg/PolicyStatus`: what the node is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyStatusMessage<'a> {
    /// When it became so.
    pub stamp: Stamp,
    /// unconfigured, inactive, active, finalized.
    pub lifecycle: &'a str,
    /// idle, armed, running, braking, holding, paused, stopped, fault.
    pub control: &'a str,
    /// Why the arm rests or the node waits; empty while all is well.
    pub reason: &'a str,
    /// The task.
    pub prompt: &'a str,
    /// As configured.
    pub checkpoint: &'a str,
    /// Such as: cpu f32.
    pub engine: &'a str,
}

impl<'a> ActionChunkMessage<'a> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "pi05_thor/msg/ActionChunk";

    /// Decodes a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut cdr = Reader::new(payload)?;
        Ok(Self {
            stamp: header(&mut cdr)?.0,
            id: cdr.u64("id")?,
            prompt: cdr.string("prompt")?,
            joint_names: cdr.strings("joint_names")?,
            steps: cdr.u32("steps")?,
            period: cdr.f64("period")?,
            actions: cdr.f64s("actions")?,
            tokens: cdr.u32("tokens")?,
            image_stamps: cdr.sequence("image_stamps", TIME_BYTES, |cdr| {
                time(cdr, "image_stamps").map(|stamp| Some(stamp).filter(|stamp| stamp.0 != 0))
            })?,
            joints_stamp: time(&mut cdr, "joints_stamp")?,
            encode_ms: cdr.f64("encode_ms")?,
            vision_ms: cdr.f64("vision_ms")?,
            prefix_ms: cdr.f64("prefix_ms")?,
            denoise_ms: cdr.f64("denoise_ms")?,
            decode_ms: cdr.f64("decode_ms")?,
        })
    }

    /// Replaces what is in `payload`.
    pub fn put(&self, payload: &mut Vec<u8>) {
        let mut cdr = Writer::new(payload);
        put_header(&mut cdr, self.stamp, "");
        cdr.u64(self.id);
        cdr.string(self.prompt);
        cdr.strings(&self.joint_names);
        cdr.u32(self.steps);
        cdr.f64(self.period);
        cdr.f64s(&self.actions);
        cdr.u32(self.tokens);
        cdr.length(self.image_stamps.len());
        for stamp in &self.image_stamps {
            put_time(&mut cdr, stamp.unwrap_or_default());
        }
        put_time(&mut cdr, self.joints_stamp);
        for ms in [self.encode_ms, self.vision_ms, self.prefix_ms, self.denoise_ms, self.decode_ms] {
            cdr.f64(ms);
        }
    }

    /// To a buffer of its own.
    pub fn encode(&self) -> Vec<u8> {
        encoded(|payload| self.put(payload))
    }
}

impl<'a> PolicyStatusMessage<'a> {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "pi05_thor/msg/PolicyStatus";

    /// Decodes a payload.
    pub fn decode(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut cdr = Reader::new(payload)?;
        Ok(Self {
            stamp: time(&mut cdr, "stamp")?,
            lifecycle: cdr.string("lifecycle")?,
            control: cdr.string("control")?,
            reason: cdr.string("reason")?,
            prompt: cdr.string("prompt")?,
            checkpoint: cdr.string("checkpoint")?,
            engine: cdr.string("engine")?,
        })
    }

    /// To a buffer of its own.
    pub fn encode(&self) -> Vec<u8> {
        encoded(|payload| {
            let mut cdr = Writer::new(payload);
            put_time(&mut cdr, self.stamp);
            let Self { stamp: _, lifecycle, control, reason, prompt, checkpoint, engine } = self;
            for text in [lifecycle, control, reason, prompt, checkpoint, engine] {
                cdr.string(text);
            }
        })
    }
}

/// Length of a `builtin_interfaces/msg/Time`.
const TIME_BYTES: usize = 8;

#[cfg(test)]
mod tests {
    use byteorder::{BigEndian, LittleEndian};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::messages::tests::{Header, peer_decode, peer_encode};

    type Time = (i32, u32);

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct PeerChunk {
        header: Header,
        id: u64,
        prompt: String,
        joint_names: Vec<String>,
        steps: u32,
        period: f64,
        actions: Vec<f64>,
        tokens: u32,
        image_stamps: Vec<Time>,
        joints_stamp: Time,
        timings: [f64; 5],
    }

    fn times() -> impl Strategy<Value = Time> {
        (any::<i32>(), 0..1_000_000_000u32)
    }

    prop_compose! {
        fn chunk()(
            (stamp, joints_stamp, image_stamps) in (times(), times(), vec(times(), 0..4)),
            (id, steps, tokens) in any::<(u64, u32, u32)>(),
            prompt in "[a-zé \n]{0,9}",
            joint_names in vec("[a-z_]{0,9}", 0..5),
            actions in vec(-1e9..1e9f64, 0..9),
            (period, timings) in (0.0..1.0f64, [0.0..1e3, 0.0..1e3, 0.0..1e3, 0.0..1e3, 0.0..1e3f64]),
        ) -> PeerChunk {
            let header = (stamp, String::new());
            PeerChunk {
                header, id, prompt, joint_names, steps, period, actions, tokens, image_stamps, joints_stamp, timings,
            }
        }
    }

    fn borrowed(peer: &PeerChunk) -> ActionChunkMessage<'_> {
        let stamp = |(sec, nanosec): Time| Stamp::from_ros(sec, nanosec);
        let [encode_ms, vision_ms, prefix_ms, denoise_ms, decode_ms] = peer.timings;
        ActionChunkMessage {
            stamp: stamp(peer.header.0),
            id: peer.id,
            prompt: &peer.prompt,
            joint_names: peer.joint_names.iter().map(String::as_str).collect(),
            steps: peer.steps,
            period: peer.period,
            actions: peer.actions.clone(),
            tokens: peer.tokens,
            image_stamps: peer.image_stamps.iter().map(|&t| Some(stamp(t)).filter(|s| s.0 != 0)).collect(),
            joints_stamp: stamp(peer.joints_stamp),
            encode_ms,
            vision_ms,
            prefix_ms,
            denoise_ms,
            decode_ms,
        }
    }

    proptest! {
        #[test]
        fn chunks_are_read_and_written_as_by_another(peer in chunk()) {
            let ours = borrowed(&peer);
            let big = peer_encode::<_, BigEndian>(&peer, 0);
            let little = peer_encode::<_, LittleEndian>(&peer, 1);
            prop_assert_eq!(&ActionChunkMessage::decode(&big).unwrap(), &ours);
            prop_assert_eq!(&ActionChunkMessage::decode(&little).unwrap(), &ours);
            prop_assert_eq!(peer_decode::<PeerChunk>(&ours.encode()), peer.clone());
        }

        #[test]
        fn a_chunk_cut_anywhere_is_refused(peer in chunk(), keep in 0.0..1.0f64) {
            let payload = borrowed(&peer).encode();
            let length = (payload.len() as f64 * keep) as usize;
            prop_assert!(ActionChunkMessage::decode(&payload[..length]).is_err());
        }

        #[test]
        fn a_status_is_read_and_written_as_by_another(
            (sec, nanosec) in times(),
            texts in prop::array::uniform6("[a-zé ]{0,9}"),
        ) {
            let [lifecycle, control, reason, prompt, checkpoint, engine] = texts.each_ref().map(String::as_str);
            let stamp = Stamp::from_ros(sec, nanosec);
            let ours = PolicyStatusMessage { stamp, lifecycle, control, reason, prompt, checkpoint, engine };
            let payload = peer_encode::<_, LittleEndian>(&((sec, nanosec), &texts), 1);
            prop_assert_eq!(&PolicyStatusMessage::decode(&payload).unwrap(), &ours);
            prop_assert_eq!(ours.encode(), payload);
        }
    }

    #[test]
    fn a_masked_camera_has_stamp_zero() {
        let image_stamps = vec![Some(Stamp::from_ros(5, 6)), None];
        let payload =
            ActionChunkMessage { image_stamps: image_stamps.clone(), ..Default::default() }.encode();
        assert_eq!(peer_decode::<PeerChunk>(&payload).image_stamps, [(5, 6), (0, 0)]);
        assert_eq!(ActionChunkMessage::decode(&payload).unwrap().image_stamps, image_stamps);
    }
}
