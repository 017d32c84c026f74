//! What reading recordings promises: every record, in order, from every kind of bag, and from what is left of one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod recordings;

use std::fs;
use std::path::{Path, PathBuf};

use pi05_thor::messages::{ImageMessage, JointStateMessage};
use pi05_thor::replay::bag::{Bag, BagError, MAX_CHUNK_BYTES, Record};
use recordings::{
    McapLayout, SMALL_CHUNKS, in_order, layouts, mcap_bytes, messages, named, read_all, sample, write_db3,
};
use sha2::{Digest, Sha256};

const PLAIN: McapLayout = McapLayout { compression: None, chunk_bytes: SMALL_CHUNKS, summary: true };

/// The same digest as tests/peers/make_bags.py takes of what rosbags reads.
fn digest(bag: &Bag, records: &[Record]) -> String {
    let mut hash = Sha256::new();
    for record in records {
        hash.update(&bag.topics()[record.topic].name);
        hash.update([0]);
        hash.update(record.log_time.to_le_bytes());
        hash.update((record.payload.len() as u32).to_le_bytes());
        hash.update(&record.payload);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_bag_reads_as_rosbags_reads_it() {
    let digests: serde_json::Value =
        serde_json::from_slice(&fs::read(sample("digests.json")).unwrap()).unwrap();
    let mut read = 0;
    for (name, expected) in digests.as_object().unwrap() {
        if name == "peer_db3_file_zstd" {
            continue; // compressed as a whole: see below
        }
        let bag = Bag::open(sample(name)).unwrap();
        let (records, error) = read_all(&bag);
        assert!(error.is_none(), "{name}: {error:?}");
        assert_eq!(bag.notes(), [] as [&str; 0], "{name}");
        assert_eq!(records.len() as u64, expected["messages"], "{name}");
        assert_eq!(digest(&bag, &records), expected["sha256"], "{name}");
        let counted: u64 = bag.topics().iter().map(|topic| topic.messages.unwrap()).sum();
        assert_eq!(counted, records.len() as u64, "{name}");
        let span = (records.first().unwrap().log_time, records.last().unwrap().log_time);
        assert_eq!(bag.time_range(), Some(span), "{name}");
        read += 1;
    }
    assert_eq!(read, 8);
}

#[test]
fn the_sample_bag_has_its_topics_and_types() {
    let bag = Bag::open(sample("aloha_sim")).unwrap();
    let topics: Vec<_> =
        bag.topics().iter().map(|t| (t.name.as_str(), t.type_name.as_str(), t.messages.unwrap())).collect();
    let image = "sensor_msgs/msg/CompressedImage";
    let expected = [
        ("/joint_states", "sensor_msgs/msg/JointState", 300),
        ("/cam_high/image_raw/compressed", image, 100),
        ("/cam_left_wrist/image_raw/compressed", image, 100),
        ("/cam_right_wrist/image_raw/compressed", image, 100),
    ];
    assert_eq!(topics, expected);
    assert_eq!(bag.topic("cam_high/image_raw/compressed"), Some(1));
    assert_eq!(bag.topic("/joint_states"), Some(0));
    assert_eq!(bag.topic("/joint_state"), None);
}

#[test]
fn only_the_topics_asked_for_are_read() {
    for name in ["aloha_sim", "aloha_sim_db3"] {
        let bag = Bag::open(sample(name)).unwrap();
        let (all, _) = read_all(&bag);
        for topic in 0..bag.topics().len() {
            let some: Vec<_> = bag.records(&[topic]).unwrap().map(Result::unwrap).collect();
            let expected: Vec<_> = all.iter().filter(|r| r.topic == topic).cloned().collect();
            assert_eq!(some, expected, "{name}");
        }
        assert_eq!(bag.records(&[]).unwrap().count(), 0);
        assert!(matches!(bag.records(&[9]), Err(BagError::NoSuchTopic { index: 9, count: 4 })));
    }
}

#[test]
fn raw_images_decode_to_what_was_recorded() {
    let bag = Bag::open(sample("aloha_raw")).unwrap();
    for (topic, encoding, pixel) in
        [("cam_high", "rgb8", 3), ("cam_left_wrist", "bgr8", 3), ("cam_right_wrist", "mono8", 1)]
    {
        let index = bag.topic(&format!("{topic}/image_raw")).unwrap();
        let record = bag.records(&[index]).unwrap().next().unwrap().unwrap();
        let image = ImageMessage::decode(&record.payload).unwrap();
        assert_eq!((image.width, image.height, image.encoding), (160, 120, encoding));
        assert_eq!(image.step, 160 * pixel + 16);
        assert_eq!(image.data.len() as u32, image.step * image.height);
        assert_eq!(image.frame_id, topic);
        assert_eq!(record.log_time - image.stamp.0, 500_000);
    }
}

#[test]
fn big_endian_messages_decode_like_little_endian_ones() {
    let big = Bag::open(sample("peer_big_endian")).unwrap();
    let little = Bag::open(sample("peer_mcap_zstd")).unwrap();
    let (big, little) = (read_all(&big).0, read_all(&little).0);
    let mut kinds = [0, 0];
    for (big, little) in big.iter().zip(&little) {
        assert_ne!(big.payload, little.payload);
        if let Ok(state) = JointStateMessage::decode(&little.payload)
            && state.names == ["left", "right"]
        {
            assert_eq!(JointStateMessage::decode(&big.payload).unwrap(), state);
            kinds[0] += 1;
        } else {
            assert_eq!(ImageMessage::decode(&big.payload), ImageMessage::decode(&little.payload));
            assert_eq!(ImageMessage::decode(&big.payload).unwrap().encoding, "mono8");
            kinds[1] += 1;
        }
    }
    assert_eq!(kinds, [30, 10]);
}

#[test]
fn every_layout_gives_the_same_records_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut shuffled = messages();
    shuffled.rotate_left(13); // late chunks first
    shuffled[3..30].reverse(); // and backwards inside
    shuffled.extend([("/camera", 7_000_005, vec![1]), ("/joint_states", 7_000_005, vec![2])]); // ties
    for layout in layouts() {
        let path = write(folder.path(), "bag.mcap", &mcap_bytes(&shuffled, layout));
        let bag = Bag::open(&path).unwrap();
        let (records, error) = read_all(&bag);
        assert!(error.is_none(), "{layout:?}: {error:?}");
        assert_eq!(named(&bag, records), in_order(&shuffled), "{layout:?}");
        assert_eq!(bag.topics()[0].type_name, "sensor_msgs/msg/JointState");
        assert_eq!(bag.topics().iter().map(|t| t.messages.unwrap()).sum::<u64>(), 42, "{layout:?}");
        assert_eq!(bag.time_range(), Some((5, 39_000_005)), "{layout:?}");
        assert_eq!(bag.notes(), [] as [&str; 0], "{layout:?}");
    }
    for indexed in [true, false] {
        let path = folder.path().join(format!("bag_{indexed}.db3"));
        write_db3(&path, &shuffled, indexed);
        let bag = Bag::open(&path).unwrap();
        let (records, error) = read_all(&bag);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(named(&bag, records), in_order(&shuffled), "indexed: {indexed}");
    }
}

#[test]
fn a_folder_without_metadata_reads_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let all = messages();
    for (i, part) in all.chunks(15).enumerate() {
        write(folder.path(), &format!("bag_{i}.mcap"), &mcap_bytes(part, PLAIN));
    }
    let bag = Bag::open(folder.path()).unwrap();
    let records = read_all(&bag).0;
    assert_eq!(named(&bag, records), in_order(&all));
    assert_eq!(bag.notes().len(), 1);
    assert!(
        bag.notes()[0].ends_with("no metadata.yaml, read the 3 file(s) that are there"),
        "{:?}",
        bag.notes()
    );
}

/// Every prefix of the file: `open` gives a bag, its records are the first ones of the whole, and it says it is cut.
fn prefixes_read_to_the_last_whole_record(whole: &[u8], name: &str, every: usize, least_at_half: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), name, whole);
    let expected = read_all(&Bag::open(&path).unwrap()).0;
    let mut most = 0;
    for length in (0..whole.len()).step_by(every) {
        write(folder.path(), name, &whole[..length]);
        let bag = Bag::open(&path).unwrap_or_else(|e| panic!("{length} bytes: {e}"));
        let (records, error) = read_all(&bag);
        assert!(error.is_none(), "{length} bytes: {error:?}");
        assert_eq!(bag.notes().len(), 1, "{length} bytes: {:?}", bag.notes());
        assert!(records.len() <= expected.len());
        let same =
            records.iter().zip(&expected).all(|(a, b)| a.log_time == b.log_time && a.payload == b.payload);
        assert!(same, "{length} bytes: not the first records");
        assert!(records.len() >= most, "{length} bytes: fewer records than from less");
        most = records.len();
        assert!(length < whole.len() / 2 || most >= least_at_half, "{length} bytes: only {most} records");
    }
    assert!(most > 0);
}

#[test]
fn a_truncated_mcap_reads_to_its_last_whole_record() {
    let whole = fs::read(sample("aloha_sim/aloha_sim.mcap")).unwrap();
    prefixes_read_to_the_last_whole_record(&whole, "bag.mcap", 40_009, 280);
    let raw = fs::read(sample("aloha_raw/aloha_raw.mcap")).unwrap();
    prefixes_read_to_the_last_whole_record(&raw, "bag.mcap", 99_991, 20);
}

#[test]
fn a_small_mcap_of_any_layout_can_be_cut_anywhere() {
    for layout in layouts() {
        let whole = mcap_bytes(&messages(), layout);
        prefixes_read_to_the_last_whole_record(&whole, "bag.mcap", 11, 10);
    }
}

#[test]
fn a_truncated_sqlite_reads_to_its_last_whole_record() {
    let whole = fs::read(sample("aloha_sim_db3/aloha_sim_db3.db3")).unwrap();
    prefixes_read_to_the_last_whole_record(&whole, "bag.db3", 1_009, 40);
}

#[test]
fn a_small_sqlite_can_be_cut_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    for indexed in [true, false] {
        let path = folder.path().join(format!("{indexed}.db3"));
        write_db3(&path, &messages(), indexed);
        prefixes_read_to_the_last_whole_record(&fs::read(&path).unwrap(), "bag.db3", 37, 8);
    }
}

#[test]
fn a_row_that_makes_no_sense_stops_after_the_rows_before_it() {
    let folder = tempfile::tempdir().unwrap();
    for indexed in [true, false] {
        let path = folder.path().join(format!("{indexed}.db3"));
        write_db3(&path, &messages(), indexed);
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (1, 'soon', x'00')", []).unwrap();
        drop(db);
        let bag = Bag::open(&path).unwrap();
        let (records, error) = read_all(&bag);
        assert_eq!(named(&bag, records), in_order(&messages()), "indexed: {indexed}");
        assert!(error.unwrap().to_string().contains("Invalid column type Text at index: 2, name: timestamp"));
    }
}

#[test]
fn changes_that_sqlite_has_not_merged_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bag.db3");
    write_db3(&path, &messages(), true);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (1, 99, x'00')", []).unwrap();
    let bag = Bag::open(&path).unwrap(); // as after a crash: the recorder never closed the file
    assert_eq!(read_all(&bag).0.len(), 40);
    assert!(bag.notes()[0].contains("bag.db3-wal: changes that SQLite has not merged are left out"));
    drop(db);
    let bag = Bag::open(&path).unwrap();
    assert_eq!(read_all(&bag).0.len(), 41);
    assert_eq!(bag.notes(), [] as [&str; 0]);
}

#[test]
fn a_truncated_file_among_others_leaves_the_others_whole() {
    let folder = tempfile::tempdir().unwrap();
    let all = messages();
    write(folder.path(), "a_0.mcap", &mcap_bytes(&all[..20], PLAIN));
    let second = mcap_bytes(&all[20..], PLAIN);
    write(folder.path(), "a_1.mcap", &second[..second.len() / 2]);
    write(folder.path(), "a_2.mcap", b"");
    let bag = Bag::open(folder.path()).unwrap();
    let records = read_all(&bag).0;
    assert!(records.len() > 20 && records.len() < 40);
    assert_eq!(bag.notes().len(), 3, "{:?}", bag.notes());
    assert!(bag.notes()[1].contains("a_1.mcap: truncated at byte"), "{:?}", bag.notes());
    assert!(bag.notes()[2].contains("a_2.mcap: truncated before its first record"), "{:?}", bag.notes());
}

#[test]
fn a_flipped_bit_in_a_chunk_stops_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = mcap_bytes(&messages(), PLAIN);
    let at = bytes.windows(30).position(|w| w == [30; 30]).unwrap(); // a payload in the middle
    bytes[at] ^= 1;
    let path = write(folder.path(), "bag.mcap", &bytes);
    let bag = Bag::open(&path).unwrap();
    let (records, error) = read_all(&bag);
    let error = error.unwrap().to_string();
    assert!(error.contains("a chunk with checksum"), "{error}");
    assert!(!records.is_empty());
    assert_eq!(named(&bag, records.clone()), in_order(&messages())[..records.len()]);
}

#[test]
fn an_index_that_does_not_fit_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = mcap_bytes(&messages(), PLAIN);
    // A byte that belongs to no other record, before the first chunk: every offset in the index is off by its length.
    let mut shifted = bytes.clone();
    let header_end = 8 + 9 + u64::from_le_bytes(bytes[9..17].try_into().unwrap()) as usize;
    shifted.splice(header_end..header_end, [0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    let path = write(folder.path(), "bag.mcap", &shifted);
    let bag = Bag::open(&path).unwrap();
    let (records, error) = read_all(&bag);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(named(&bag, records), in_order(&messages()));
    assert_eq!(bag.notes().len(), 1);
    assert!(bag.notes()[0].contains("its index"), "{:?}", bag.notes());
}

#[test]
fn garbage_after_whole_records_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = mcap_bytes(&messages(), PLAIN);
    bytes.truncate(bytes.len() / 2);
    bytes.extend([0; 4000]); // what a file system leaves after a power cut
    let path = write(folder.path(), "bag.mcap", &bytes);
    let bag = Bag::open(&path).unwrap();
    let records = read_all(&bag).0;
    assert!(!records.is_empty());
    assert_eq!(named(&bag, records.clone()), in_order(&messages())[..records.len()]);
    assert!(bag.notes()[0].contains("read up to there"), "{:?}", bag.notes());
}

#[test]
fn a_chunk_that_claims_too_much_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = mcap_bytes(&messages(), PLAIN);
    let header_end = 8 + 9 + u64::from_le_bytes(bytes[9..17].try_into().unwrap()) as usize;
    let size_at = header_end + 9 + 16; // after the chunk's two times
    bytes[size_at..size_at + 8].copy_from_slice(&(MAX_CHUNK_BYTES + 1).to_le_bytes());
    let path = write(folder.path(), "bag.mcap", &bytes);
    let (records, error) = read_all(&Bag::open(&path).unwrap());
    assert!(records.is_empty());
    let error = error.unwrap().to_string();
    assert!(error.contains("a chunk claims 268435457 bytes, expected at most 268435456"), "{error}");
}

#[test]
fn what_is_no_bag_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| Bag::open(path).unwrap_err().to_string();
    let missing = folder.path().join("nothing.mcap");
    assert!(refused(&missing).contains("nothing.mcap: cannot be read: No such file"));
    assert!(refused(folder.path()).contains("without metadata.yaml and without .mcap or .db3"));
    let text = write(folder.path(), "notes.txt", b"hello");
    assert!(refused(&text).contains("notes.txt: neither MCAP nor SQLite by its first bytes"));
    let empty = write(folder.path(), "empty.txt", b"");
    assert!(refused(&empty).contains("the file is empty"));
    let zip = write(folder.path(), "zip.mcap", b"PK\x03\x04 and so on");
    assert!(refused(&zip).contains("neither MCAP nor SQLite"));
    let other = folder.path().join("phone.db3");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE contacts(id)").unwrap();
    assert!(refused(&other).contains("a SQLite database without a table \"topics\""));
    let view = folder.path().join("view.db3");
    let hostile = "CREATE TABLE topics(id, name, type, serialization_format);
                   CREATE VIEW messages(id, topic_id, timestamp, data) AS SELECT 1, 1, 1, zeroblob(1000000000);";
    rusqlite::Connection::open(&view).unwrap().execute_batch(hostile).unwrap();
    assert!(refused(&view).contains("without a table \"messages\""));
}

#[test]
fn metadata_that_misleads_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let open = |yaml: &str| {
        write(folder.path(), "metadata.yaml", yaml.as_bytes());
        Bag::open(folder.path()).map(|bag| bag.notes().to_vec()).map_err(|e| e.to_string())
    };
    let with = |storage: &str, file: &str| {
        let information = format!("  storage_identifier: {storage}\n  relative_file_paths: [{file}]\n");
        open(&format!("rosbag2_bagfile_information:\n  version: 5\n{information}"))
    };
    assert!(with("mcap", "a.mcap").unwrap_err().contains("a.mcap: cannot be read: No such file"));
    assert!(with("rosbag_v2", "a.bag").unwrap_err().contains("storage_identifier \"rosbag_v2\""));
    assert!(with("mcap", "").unwrap_err().contains("lists no files"));
    assert!(with("mcap", "..").unwrap_err().contains("names no file"));
    assert!(open("- 1\n- 2\n").unwrap_err().contains("not the metadata of a bag"));
    assert!(open("").unwrap_err().contains("not the metadata of a bag"));
    write(folder.path(), "a.mcap", &mcap_bytes(&messages(), PLAIN));
    let count = "  topics_with_message_count: [{topic_metadata: {name: /joints}, message_count: -3}]\n";
    for damaged in ["", "rosbag2_bagfile_informa", "- 1\n", &format!("rosbag2_bagfile_information:\n{count}")]
    {
        let [note] = &open(damaged).unwrap()[..] else { panic!("one note for {damaged:?}") };
        assert!(
            note.contains("metadata.yaml is damaged") && note.ends_with("read the 1 file(s) that are there"),
            "{note}"
        );
    }
    assert_eq!(with("mcap", "../elsewhere/a.mcap").unwrap(), [] as [&str; 0], "only the name counts");
    write(folder.path(), "b.mcap", &mcap_bytes(&messages(), PLAIN));
    assert!(with("mcap", "a.mcap").unwrap()[0].contains("b.mcap: not listed in metadata.yaml, left out"));
}

#[test]
fn a_bag_compressed_as_a_whole_is_refused_with_the_remedy() {
    let error = Bag::open(sample("peer_db3_file_zstd")).unwrap_err().to_string();
    assert!(error.contains("compressed as a whole file; decompress it first: zstd -d"), "{error}");
    // And the remedy works.
    let folder = tempfile::tempdir().unwrap();
    let name = "peer_db3_file_zstd.db3.zstd";
    fs::copy(sample("peer_db3_file_zstd/metadata.yaml"), folder.path().join("metadata.yaml")).unwrap();
    let compressed = fs::read(sample("peer_db3_file_zstd").join(name)).unwrap();
    write(folder.path(), name, &compressed);
    write(folder.path(), "peer_db3_file_zstd.db3", &zstd::decode_all(compressed.as_slice()).unwrap());
    let bag = Bag::open(folder.path()).unwrap();
    assert_eq!(read_all(&bag).0.len(), 40);
}

#[test]
fn a_topic_that_is_not_cdr_is_refused_only_when_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bag.db3");
    write_db3(&path, &messages(), true);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute("UPDATE topics SET serialization_format = 'ros1' WHERE name = '/camera'", []).unwrap();
    drop(db);
    let bag = Bag::open(&path).unwrap();
    let joints = bag.topic("/joint_states").unwrap();
    assert_eq!(bag.records(&[joints]).unwrap().filter(Result::is_ok).count(), 30);
    let error = bag.records(&[joints, bag.topic("/camera").unwrap()]).err().unwrap().to_string();
    assert!(
        error.contains("topic /camera: messages are serialized as \"ros1\", expected \"cdr\""),
        "{error}"
    );
}

#[test]
fn a_read_only_folder_is_enough() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a bag?#%.db3"); // characters that mean something in a URI
    write_db3(&path, &messages(), true);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let bag = Bag::open(&path).unwrap();
    assert_eq!(read_all(&bag).0.len(), 40);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was left beside the bag");
}
