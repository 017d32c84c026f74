//! Small recordings made on the spot, and how tests read them back.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use mcap::records::MessageHeader;
use mcap::{Compression, WriteOptions};
use pi05_thor::replay::bag::{Bag, BagError, Record};
use rusqlite::{Connection, params};

/// Topic, log time and payload of a message.
pub type Message = (&'static str, i64, Vec<u8>);

/// A bag under tests/data/bags.
pub fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bags").join(name)
}

/// Everything in the bag up to its end or its first error.
pub fn read_all(bag: &Bag) -> (Vec<Record>, Option<BagError>) {
    let every: Vec<usize> = (0..bag.topics().len()).collect();
    let records = match bag.records(&every) {
        Ok(records) => records,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut read = Vec::new();
    for record in records {
        match record {
            Ok(record) => read.push(record),
            Err(error) => return (read, Some(error)),
        }
    }
    (read, None)
}

/// Forty messages on two topics, 1 ms apart, payloads of growing length.
pub fn messages() -> Vec<Message> {
    let topic = |k: i64| if k % 4 == 0 { "/camera" } else { "/joint_states" };
    (0..40).map(|k| (topic(k), 1_000_000 * k + 5, vec![k as u8; 3 * k as usize])).collect()
}

/// How an MCAP file is laid out.
#[derive(Clone, Copy, Debug)]
pub struct McapLayout {
    pub compression: Option<Compression>,
    pub chunk_bytes: Option<u64>,
    pub summary: bool,
}

/// Chunks small enough that there are many.
pub const SMALL_CHUNKS: Option<u64> = Some(300);

/// The layouts that a reader meets.
pub fn layouts() -> Vec<McapLayout> {
    let mut layouts = Vec::new();
    for summary in [true, false] {
        for compression in [None, Some(Compression::Zstd), Some(Compression::Lz4)] {
            layouts.push(McapLayout { compression, chunk_bytes: SMALL_CHUNKS, summary });
        }
        layouts.push(McapLayout { compression: None, chunk_bytes: None, summary });
    }
    layouts
}

/// The bytes of an MCAP file with these messages in this order.
pub fn mcap_bytes(messages: &[Message], layout: McapLayout) -> Vec<u8> {
    let options = WriteOptions::new()
        .profile("ros2")
        .compression(layout.compression)
        .compression_threads(0)
        .use_chunks(layout.chunk_bytes.is_some())
        .chunk_size(layout.chunk_bytes)
        .emit_summary_records(layout.summary)
        .emit_summary_offsets(layout.summary)
        .emit_message_indexes(layout.summary);
    let mut writer = options.create(Cursor::new(Vec::new())).unwrap();
    let mut channels = BTreeMap::new();
    for (topic, log_time, payload) in messages {
        let channel_id = *channels.entry(*topic).or_insert_with(|| {
            let schema = writer.add_schema("sensor_msgs/JointState", "ros2msg", b"string data").unwrap();
            writer.add_channel(schema, topic, "cdr", &BTreeMap::new()).unwrap()
        });
        let time = u64::try_from(*log_time).unwrap();
        let header = MessageHeader { channel_id, sequence: 0, log_time: time, publish_time: time };
        writer.write_to_known_channel(&header, payload).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().into_inner()
}

/// Writes a SQLite recording, with rosbag2's index on time or without.
pub fn write_db3(path: &Path, messages: &[Message], indexed: bool) {
    let db = Connection::open(path).unwrap();
    db.execute_batch(
        "PRAGMA page_size = 512;
         CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
                             serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);
         CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,
                               timestamp INTEGER NOT NULL, data BLOB NOT NULL);",
    )
    .unwrap();
    if indexed {
        db.execute_batch("CREATE INDEX timestamp_idx ON messages (timestamp ASC)").unwrap();
    }
    for (id, topic) in [(1, "/joint_states"), (2, "/camera")] {
        let row = params![id, topic, "sensor_msgs/msg/JointState", "cdr", ""];
        db.execute("INSERT INTO topics VALUES (?1, ?2, ?3, ?4, ?5)", row).unwrap();
    }
    for (topic, log_time, payload) in messages {
        let topic = if *topic == "/camera" { 2 } else { 1 };
        let row = params![topic, log_time, payload];
        db.execute("INSERT INTO messages(topic_id, timestamp, data) VALUES (?1, ?2, ?3)", row).unwrap();
    }
}

/// What a reader should give for these messages: ascending time, ties as written.
pub fn in_order(messages: &[Message]) -> Vec<(String, i64, Vec<u8>)> {
    let mut sorted: Vec<_> = messages.iter().map(|(t, ns, p)| ((*t).to_owned(), *ns, p.clone())).collect();
    sorted.sort_by_key(|(_, ns, _)| *ns);
    sorted
}

/// Records with the names of their topics.
pub fn named(bag: &Bag, records: Vec<Record>) -> Vec<(String, i64, Vec<u8>)> {
    records.into_iter().map(|r| (bag.topics()[r.topic].name.clone(), r.log_time, r.payload)).collect()
}
