//! Our CDR against another implementation of it, both ways and in both byte orders.

use byteorder::{BigEndian, ByteOrder, LittleEndian};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

pub(super) type Header = ((i32, u32), String);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct PeerJointState {
    header: Header,
    name: Vec<String>,
    position: Vec<f64>,
    velocity: Vec<f64>,
    effort: Vec<f64>,
}

#[derive(Serialize)]
struct PeerImage {
    header: Header,
    height: u32,
    width: u32,
    encoding: String,
    is_bigendian: u8,
    step: u32,
    data: Vec<u8>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PeerMultiArray {
    dim: Vec<(String, u32, u32)>,
    data_offset: u32,
    data: Vec<f64>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct PeerPoint {
    positions: Vec<f64>,
    velocities: Vec<f64>,
    accelerations: Vec<f64>,
    effort: Vec<f64>,
    time_from_start: (i32, u32),
}

#[derive(Debug, PartialEq, Deserialize)]
struct PeerTrajectory {
    header: Header,
    joint_names: Vec<String>,
    points: Vec<PeerPoint>,
}

pub(super) fn peer_encode<T: Serialize, O: ByteOrder>(message: &T, identifier: u8) -> Vec<u8> {
    [vec![0, identifier, 0, 0], cdr_encoding::to_vec::<T, O>(message).unwrap()].concat()
}

pub(super) fn peer_decode<T: for<'a> Deserialize<'a>>(payload: &[u8]) -> T {
    let (message, read) = cdr_encoding::from_bytes::<T, LittleEndian>(&payload[4..]).unwrap();
    assert_eq!(payload[..4], [0, 1, 0, 0]);
    assert_eq!(read, payload.len() - 4);
    message
}

fn header() -> impl Strategy<Value = Header> {
    ((any::<i32>(), 0..1_000_000_000u32), "[a-zé/_]{0,9}")
}

fn numbers() -> impl Strategy<Value = Vec<f64>> {
    vec(-1e9..1e9f64, 0..5)
}

fn joint_state() -> impl Strategy<Value = PeerJointState> {
    (header(), vec("[a-z_]{0,9}", 0..5), numbers(), numbers(), numbers()).prop_map(
        |(header, name, position, velocity, effort)| PeerJointState {
            header,
            name,
            position,
            velocity,
            effort,
        },
    )
}

fn borrowed(peer: &PeerJointState) -> JointStateMessage<'_> {
    JointStateMessage {
        stamp: Stamp::from_ros(peer.header.0.0, peer.header.0.1),
        frame_id: &peer.header.1,
        names: peer.name.iter().map(String::as_str).collect(),
        position: peer.position.clone(),
        velocity: peer.velocity.clone(),
        effort: peer.effort.clone(),
    }
}

proptest! {
    #[test]
    fn joint_states_are_read_as_another_writes_them(peer in joint_state()) {
        let ours = borrowed(&peer);
        let big = peer_encode::<_, BigEndian>(&peer, 0);
        let little = peer_encode::<_, LittleEndian>(&peer, 1);
        prop_assert_eq!(&JointStateMessage::decode(&big).unwrap(), &ours);
        prop_assert_eq!(&JointStateMessage::decode(&little).unwrap(), &ours);
    }

    #[test]
    fn joint_states_are_written_as_another_reads_them(peer in joint_state()) {
        let payload = borrowed(&peer).encode();
        prop_assert_eq!(peer_decode::<PeerJointState>(&payload), peer);
    }

    #[test]
    fn a_buffer_is_filled_anew_in_its_own_memory(
        peer in joint_state(),
        (values, left_over) in (numbers(), vec(any::<u8>(), 0..600)),
    ) {
        let JointStateMessage { stamp, position, .. } = borrowed(&peer);
        let command = PeerJointState {
            header: (peer.header.0, String::new()), velocity: vec![], effort: vec![], ..peer.clone()
        };
        let mut payload = left_over;
        payload.reserve(1000);
        let memory = payload.as_ptr();
        put_joint_state(stamp, &peer.name, &position, &mut payload);
        prop_assert_eq!(peer_decode::<PeerJointState>(&payload), command);
        put_float64_multi_array(&values, &mut payload);
        prop_assert_eq!(peer_decode::<PeerMultiArray>(&payload).data, values);
        prop_assert_eq!(payload.as_ptr(), memory);
    }

    #[test]
    fn texts_and_clocks_are_exchanged_with_another(text in "[a-zé\u{0} ]{0,9}", (sec, nanosec) in (any::<i32>(), 0..1_000_000_000u32)) {
        let without_zero = text.replace('\0', " ");
        prop_assert_eq!(peer_decode::<String>(&encode_string(&text)), without_zero);
        let big = peer_encode::<_, BigEndian>(&(sec, nanosec), 0);
        prop_assert_eq!(decode_clock(&big).unwrap(), Stamp::from_ros(sec, nanosec));
        prop_assert!(decode_clock(&big[..big.len() - 1]).is_err());
    }

    #[test]
    fn images_are_read_as_another_writes_them(
        header in header(),
        (height, width, step) in any::<(u32, u32, u32)>(),
        encoding in "[a-z0-9]{0,9}",
        is_bigendian in 0..2u8,
        data in vec(any::<u8>(), 0..40),
    ) {
        let (stamp, frame_id) = (Stamp::from_ros(header.0.0, header.0.1), header.1.clone());
        let peer = PeerImage { header, height, width, encoding, is_bigendian, step, data };
        let ours = ImageMessage {
            stamp,
            frame_id: &frame_id,
            height,
            width,
            encoding: &peer.encoding,
            is_bigendian: is_bigendian == 1,
            step,
            data: &peer.data,
        };
        let big = peer_encode::<_, BigEndian>(&peer, 0);
        let little = peer_encode::<_, LittleEndian>(&peer, 1);
        prop_assert_eq!(&ImageMessage::decode(&big).unwrap(), &ours);
        prop_assert_eq!(&ImageMessage::decode(&little).unwrap(), &ours);
    }

    #[test]
    fn compressed_images_and_texts_are_read_as_another_writes_them(
        header in header(),
        format in "[a-z0-9; ]{0,9}",
        data in vec(any::<u8>(), 0..40),
    ) {
        let payload = peer_encode::<_, LittleEndian>(&(&header, &format, &data), 1);
        let (stamp, frame_id) = (Stamp::from_ros(header.0.0, header.0.1), header.1.as_str());
        let ours = CompressedImageMessage { stamp, frame_id, format: &format, data: &data };
        prop_assert_eq!(CompressedImageMessage::decode(&payload).unwrap(), ours);
        let text = peer_encode::<_, BigEndian>(&format, 0);
        prop_assert_eq!(decode_string(&text).unwrap(), &format);
    }

    #[test]
    fn arrays_and_trajectories_are_written_as_another_reads_them(
        stamp in 0..4_000_000_000_000_000_000i64,
        names in vec("[a-z_]{0,9}", 0..5),
        points in vec((0..600_000_000_000i64, numbers()), 0..5),
        values in numbers(),
    ) {
        let peer = PeerMultiArray {
            dim: names.iter().map(|name| (name.clone(), 1, 2)).collect(), data_offset: 3, data: values.clone(),
        };
        prop_assert_eq!(&decode_float64_multi_array(&peer_encode::<_, BigEndian>(&peer, 0)).unwrap(), &values);
        let array = peer_decode::<PeerMultiArray>(&encoded(|payload| put_float64_multi_array(&values, payload)));
        prop_assert_eq!(array, PeerMultiArray { dim: vec![], data_offset: 0, data: values });

        let payload = JointTrajectoryMessage {
            stamp: Stamp(stamp),
            joint_names: names.iter().map(String::as_str).collect(),
            points: points.iter().map(|(t, p)| TrajectoryPoint { time_from_start: *t, positions: p }).collect(),
        }
        .encode();
        let expected = PeerTrajectory {
            header: (Stamp(stamp).to_ros(), String::new()),
            joint_names: names,
            points: points.into_iter().map(|(time, positions)| PeerPoint {
                positions,
                velocities: vec![],
                accelerations: vec![],
                effort: vec![],
                time_from_start: Stamp(time).to_ros(),
            }).collect(),
        };
        prop_assert_eq!(peer_decode::<PeerTrajectory>(&payload), expected);
    }

    #[test]
    fn a_message_cut_anywhere_is_refused(peer in joint_state(), keep in 0.0..1.0f64) {
        let payload = borrowed(&peer).encode();
        let length = (payload.len() as f64 * keep) as usize;
        prop_assert!(JointStateMessage::decode(&payload[..length]).is_err());
    }
}

#[test]
fn other_encapsulations_are_refused_by_name() {
    let said = |identifier: u16| {
        let payload = [identifier.to_be_bytes(), [0, 0]].concat();
        JointStateMessage::decode(&payload).unwrap_err().to_string()
    };
    let expected = "expected 0x0000 or 0x0001 (plain CDR)";
    assert_eq!(said(3), format!("message encapsulation 0x0003 (a parameter list, PL_CDR), {expected}"));
    assert_eq!(said(7), format!("message encapsulation 0x0007 (XCDR2), {expected}"));
    assert!(said(0x28b5).contains("zstd"));
    assert!(said(0xffff).starts_with("message encapsulation 0xffff, expected"));
}

#[test]
fn a_length_beyond_the_message_is_refused_with_the_field() {
    let mut payload = JointStateMessage { names: vec!["a"], ..JointStateMessage::default() }.encode();
    payload[20..24].copy_from_slice(&u32::MAX.to_le_bytes()); // behind 4 + stamp 8, frame_id 5, padding 3
    let error = JointStateMessage::decode(&payload).unwrap_err();
    assert_eq!(error.to_string(), "field name needs 17179869180 bytes at byte 24, but the message has 44");
}

#[test]
fn an_empty_payload_is_refused() {
    let error = decode_string(&[]).unwrap_err();
    assert_eq!(error, CdrError::TooShort { field: "encapsulation", at: 0, needed: 2, length: 0 });
}
