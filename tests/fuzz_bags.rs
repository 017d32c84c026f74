//! Hostile recordings and messages: no panic, and no memory that only a length field asks for.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod recordings;

use std::fs;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use mcap::Compression;
use peak_alloc::PeakAlloc;
use pi05_thor::clock::Stamp;
use pi05_thor::messages::{
    ActionChunkMessage, CompressedImageMessage, ImageMessage, JointStateMessage, PolicyStatusMessage,
    decode_clock, decode_float64_multi_array, decode_string,
};
use pi05_thor::replay::bag::Bag;
use proptest::collection::vec;
use proptest::prelude::*;
use recordings::{
    McapLayout, SMALL_CHUNKS, in_order, layouts, mcap_bytes, messages, named, read_all, write_db3,
};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;
/// One case at a time: the tests of this file share the allocator.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs `work`; the most bytes that it had allocated at once (by Rust: SQLite and zstd keep their own).
fn peak_of(work: impl FnOnce()) -> usize {
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    work();
    MEMORY.peak_usage().saturating_sub(before)
}

/// Reads all there is in a file of these bytes; at most 64 times their size is ever allocated (and 1 MiB of buffers).
fn survives(bytes: &[u8], name: &str) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let peak = peak_of(|| {
        if let Ok(bag) = Bag::open(&path) {
            let (records, _) = read_all(&bag);
            assert!(records.is_sorted_by_key(|record| record.log_time));
        }
    });
    prop_assert!(peak < 64 * bytes.len() + (1 << 20), "{} bytes made us allocate {peak}", bytes.len());
    Ok(())
}

/// Small valid files: every layout of MCAP, and SQLite with and without an index.
fn valid() -> &'static [(Vec<u8>, &'static str)] {
    static FILES: OnceLock<Vec<(Vec<u8>, &'static str)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let mcaps = layouts().into_iter().map(|layout| (mcap_bytes(&messages(), layout), "bag.mcap"));
        let folder = tempfile::tempdir().unwrap();
        let db3s = [true, false].map(|indexed| {
            let path = folder.path().join(format!("{indexed}.db3"));
            write_db3(&path, &messages(), indexed);
            (fs::read(path).unwrap(), "bag.db3")
        });
        mcaps.chain(db3s).collect()
    })
}

/// A change to a file: where (as a part of its length), and what to put there.
fn change() -> impl Strategy<Value = (f64, Vec<u8>)> {
    let bytes = prop_oneof![
        3 => vec(any::<u8>(), 1..9),
        1 => Just(vec![0xff; 8]), // the largest length
        1 => Just(vec![0xff, 0xff, 0xff, 0x7f]),
        1 => Just(vec![0; 16]),
        1 => any::<u64>().prop_map(|length| (length >> (length % 64)).to_le_bytes().to_vec()), // every magnitude
    ];
    (0.0..1.0f64, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn a_changed_recording_is_survived(
        file in 0..10usize,
        changes in vec(change(), 1..5),
        keep in prop_oneof![3 => Just(1.0f64), 1 => 0.0..1.0f64],
    ) {
        let _alone = alone();
        let (bytes, name) = &valid()[file];
        let mut bytes = bytes.clone();
        for (at, change) in changes {
            let at = (at * bytes.len() as f64) as usize;
            let end = bytes.len().min(at + change.len());
            bytes[at..end].copy_from_slice(&change[..end - at]);
        }
        bytes.truncate((keep * bytes.len() as f64) as usize);
        survives(&bytes, name)?;
    }

    #[test]
    fn bytes_after_the_right_beginning_are_survived(sqlite in any::<bool>(), bytes in vec(any::<u8>(), 0..600)) {
        let _alone = alone();
        let (magic, name) =
            if sqlite { (b"SQLite format 3\0".as_slice(), "bag.db3") } else { (mcap::MAGIC, "bag.mcap") };
        survives(&[magic, &bytes].concat(), name)?;
        survives(&bytes, name)?;
    }

    #[test]
    fn any_metadata_is_survived(text in "(rosbag2_bagfile_information:\n)?[ a-z_:0-9\\[\\]{}&*\n\"'-]{0,200}") {
        let _alone = alone();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metadata.yaml"), &text).unwrap();
        let peak = peak_of(|| drop(Bag::open(folder.path())));
        prop_assert!(peak < 1 << 20, "{peak} bytes for {text:?}");
    }

    #[test]
    fn any_payload_is_survived(header in 0..2u8, mut bytes in vec(any::<u8>(), 0..200), zeros in any::<u64>()) {
        let _alone = alone();
        for (i, byte) in bytes.iter_mut().enumerate() {
            if zeros >> (i % 64) & 1 == 1 {
                *byte = 0; // small numbers get further than large ones
            }
        }
        let payload = [&[0, header, 0, 0], bytes.as_slice()].concat();
        let peak = peak_of(|| {
            let _ = JointStateMessage::decode(&payload);
            let _ = ImageMessage::decode(&payload);
            let _ = CompressedImageMessage::decode(&payload);
            let _ = ActionChunkMessage::decode(&payload);
            let _ = PolicyStatusMessage::decode(&payload);
            let _ = decode_float64_multi_array(&payload);
            let _ = decode_string(&payload);
            let _ = decode_clock(&payload);
        });
        // A string of 4 bytes becomes a slice of 16; the rest is at most as large as it was. Test threads allocate too.
        prop_assert!(peak < 8 * payload.len() + (1 << 16), "{} bytes made us allocate {peak}", payload.len());
    }

    #[test]
    fn joint_states_come_back_as_they_were_written(
        stamp in any::<i32>().prop_flat_map(|s| (0..1_000_000_000u32).prop_map(move |n| Stamp::from_ros(s, n))),
        names in vec("\\PC{0,12}", 0..8),
        position in vec(any::<f64>(), 0..8),
        velocity in vec(any::<f64>(), 0..8),
        effort in vec(any::<f64>(), 0..8),
        frame_id in "\\PC{0,12}",
    ) {
        let _alone = alone();
        let names = names.iter().map(String::as_str).collect();
        let message = JointStateMessage { stamp, frame_id: &frame_id, names, position, velocity, effort };
        let payload = message.encode();
        let back = JointStateMessage::decode(&payload).unwrap();
        prop_assert_eq!(back.encode(), payload.clone()); // bit for bit, NaN included
        prop_assert_eq!((back.stamp, back.frame_id, &back.names), (stamp, message.frame_id, &message.names));
    }

    #[test]
    fn any_order_of_writing_reads_back_in_order(
        times in vec(0..50i64, 0..60),
        chunk_bytes in 1..600u64,
        compression in 0..3usize,
        summary in any::<bool>(),
    ) {
        let _alone = alone();
        let topic = |time: i64| if time % 3 == 0 { "/camera" } else { "/joint_states" };
        let written: Vec<_> =
            times.iter().enumerate().map(|(i, &time)| (topic(time), time, vec![i as u8; i])).collect();
        let compression = [None, Some(Compression::Zstd), Some(Compression::Lz4)][compression];
        let layout = McapLayout { compression, chunk_bytes: Some(chunk_bytes), summary };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bag.mcap");
        fs::write(&path, mcap_bytes(&written, layout)).unwrap();
        let bag = Bag::open(&path).unwrap();
        let (records, error) = read_all(&bag);
        prop_assert!(error.is_none(), "{:?}", error);
        prop_assert_eq!(named(&bag, records), in_order(&written));
    }
}

/// A hundred chunks of 1 MB that do not overlap in time are never in memory together.
#[test]
fn a_long_recording_is_not_loaded_as_a_whole() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let long: Vec<_> = (0..100).map(|k| ("/camera", k, vec![k as u8; 1 << 20])).collect();
    for (compression, summary) in
        [(None, true), (Some(Compression::Zstd), true), (Some(Compression::Zstd), false)]
    {
        let layout = McapLayout { compression, chunk_bytes: SMALL_CHUNKS, summary };
        let path = folder.path().join("bag.mcap");
        fs::write(&path, mcap_bytes(&long, layout)).unwrap();
        let peak = peak_of(|| {
            let bag = Bag::open(&path).unwrap();
            assert_eq!(bag.records(&[0]).unwrap().map(Result::unwrap).count(), 100);
        });
        assert!(peak < 8 << 20, "{layout:?}: {peak} bytes");
    }
    let path = folder.path().join("bag.db3");
    write_db3(&path, &long, true);
    let peak = peak_of(|| {
        let bag = Bag::open(&path).unwrap();
        assert_eq!(bag.records(&[1]).unwrap().map(Result::unwrap).count(), 100);
    });
    assert!(peak < 8 << 20, "{peak} bytes");
}

/// A few kilobytes of zstd that become gigabytes stop at the size that the chunk states, which is refused if absurd.
#[test]
fn a_compression_bomb_is_cut_short() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let bomb = zstd::encode_all(std::io::repeat(0).take(1 << 30), 1).unwrap();
    for (stated, most) in [(1u64 << 20, 4 << 20), (1 << 40, 1 << 20)] {
        let mut chunk = Vec::new();
        chunk.extend([0; 16]); // first and last log time
        chunk.extend(stated.to_le_bytes());
        chunk.extend([0; 4]); // no checksum
        chunk.extend(4u32.to_le_bytes());
        chunk.extend(b"zstd");
        chunk.extend((bomb.len() as u64).to_le_bytes());
        chunk.extend(&bomb);
        let mut bytes = mcap::MAGIC.to_vec();
        bytes.push(mcap::records::op::CHUNK);
        bytes.extend((chunk.len() as u64).to_le_bytes());
        bytes.extend(chunk);
        let path = folder.path().join("bag.mcap");
        fs::write(&path, &bytes).unwrap();
        let peak = peak_of(|| {
            let bag = Bag::open(&path).unwrap();
            assert_eq!(bag.topics(), []);
            assert!(bag.notes()[0].contains("damaged at byte 8"), "{:?}", bag.notes());
        });
        assert!(peak < most + 2 * bytes.len(), "{peak} bytes for a chunk that states {stated}");
    }
}
