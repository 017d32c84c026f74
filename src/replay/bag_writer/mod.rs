//! Writes a bag of one MCAP file, as rosbag2 would have recorded it.
//!
//! Promises: same messages, same bytes: no clock is read. The file appears under its name only when it is complete; a
//! full disk or a kill leaves at most `NAME.partial`. Opens in Foxglove, PlotJuggler and `ros2 bag`. Called by
//! `commands` and `flight`.

mod definitions;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use mcap::records::{MessageHeader, Metadata};
use mcap::{Compression, McapError, WriteOptions, Writer};

pub(super) use self::definitions::MessageType;
use crate::clock::Stamp;

/// Why a bag was not written.
#[derive(Debug, thiserror::Error)]
pub enum BagWriteError {
    /// The file system refused.
    #[error("{}: cannot be written: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The MCAP library refused.
    #[error("{}: cannot be written: {source}", path.display())]
    Mcap {
        /// File.
        path: PathBuf,
        /// What the library said.
        source: McapError,
    },
}

/// rosbag2's chunk size.
const CHUNK_BYTES: u64 = 768 << 10;

/// A bag that is being written. Messages are to come in the order of their times.
pub(super) struct BagWriter {
    writer: Writer<BufWriter<File>>,
    topics: Vec<TopicTrack>,
}

/// Writes the bag `path`, which is replaced: its `topics` by name and type, then what `write` writes.
pub(super) fn write_bag(
    path: &Path,
    topics: &[(&str, &'static MessageType)],
    write: impl FnOnce(&mut BagWriter) -> Result<(), McapError>,
) -> Result<(), BagWriteError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let name = path.file_name().unwrap_or_default();
    let io = |source| BagWriteError::Io { path: path.to_owned(), source };
    let written = File::create(&partial)
        .map_err(|source| BagWriteError::Io { path: partial.clone(), source })
        .and_then(|file| {
            let file = write_messages(file, name, topics, write).map_err(|error| match error {
                McapError::Io(source) => io(source),
                source => BagWriteError::Mcap { path: path.to_owned(), source },
            })?;
            file.sync_all().map_err(io)?; // a full disk is reported here at the latest
            fs::rename(&partial, path).map_err(io)
        });
    if written.is_err() {
        fs::remove_file(&partial).unwrap_or_default(); // the first error is the one to report
    }
    written
}

fn write_messages(
    file: File,
    name: &OsStr,
    topics: &[(&str, &'static MessageType)],
    write: impl FnOnce(&mut BagWriter) -> Result<(), McapError>,
) -> Result<File, McapError> {
    let options = WriteOptions::new()
        .profile("ros2")
        .library(concat!("pi05_thor ", env!("CARGO_PKG_VERSION")))
        .compression(Some(Compression::Zstd))
        .compression_threads(0) // the compressed bytes must not depend on the machine
        .chunk_size(Some(CHUNK_BYTES));
    let mut bag = BagWriter { writer: options.create(BufWriter::new(file))?, topics: Vec::new() };
    for (name, message) in topics {
        let topic = TopicTrack::declare(&mut bag.writer, name, message)?;
        bag.topics.push(topic);
    }
    write(&mut bag)?;
    let serialized = metadata(&name.to_string_lossy(), &bag.topics);
    let metadata = BTreeMap::from([("serialized_metadata".to_owned(), serialized)]);
    bag.writer.write_metadata(&Metadata { name: "rosbag2".to_owned(), metadata })?;
    bag.writer.finish()?;
    let mut buffered = bag.writer.into_inner();
    buffered.flush()?;
    buffered.into_inner().map_err(|e| McapError::Io(e.into_error()))
}

impl BagWriter {
    /// One message of the topic at this index.
    pub fn write(&mut self, topic: usize, time: Stamp, payload: &[u8]) -> Result<(), McapError> {
        let Some(topic) = self.topics.get_mut(topic) else { return Ok(()) };
        let time = u64::try_from(time.0).unwrap_or(0); // MCAP knows no time before 1970
        let (channel_id, sequence) = (topic.channel, topic.count);
        self.writer.write_to_known_channel(
            &MessageHeader { channel_id, sequence, log_time: time, publish_time: time },
            payload,
        )?;
        topic.count += 1;
        topic.span = Some(topic.span.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        Ok(())
    }
}

/// A topic and what was written to it.
struct TopicTrack {
    name: String,
    message: &'static MessageType,
    channel: u16,
    count: u32,
    span: Option<(u64, u64)>,
}

impl TopicTrack {
    fn declare(
        writer: &mut Writer<BufWriter<File>>,
        name: &str,
        message: &'static MessageType,
    ) -> Result<Self, McapError> {
        let MessageType { name: type_name, hash, definition } = *message;
        let schema = writer.add_schema(type_name, "ros2msg", definition.as_bytes())?; // the same one for the same type
        let metadata = [("offered_qos_profiles", "[]"), ("topic_type_hash", hash)];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let channel = writer.add_channel(schema, name, "cdr", &metadata)?;
        Ok(Self { name: name.to_owned(), message, channel, count: 0, span: None })
    }
}

/// rosbag2's description of the bag (its `metadata.yaml`, version 9), which it also keeps inside an MCAP file.
fn metadata(name: &str, topics: &[TopicTrack]) -> String {
    let spans = || topics.iter().filter_map(|topic| topic.span);
    let start = spans().map(|(start, _)| start).min().unwrap_or(0);
    let duration = spans().map(|(_, end)| end).max().unwrap_or(start) - start;
    let count: u64 = topics.iter().map(|topic| u64::from(topic.count)).sum();
    let name = serde_json::Value::from(name); // a JSON string is a YAML string
    let listed: String = topics.iter().map(topic_metadata).collect();
    format!(
        "\
version: 9
storage_identifier: mcap
duration:
  nanoseconds: {duration}
starting_time:
  nanoseconds_since_epoch: {start}
message_count: {count}
topics_with_message_count:
{listed}compression_format: \"\"
compression_mode: \"\"
relative_file_paths:
  - {name}
files:
  - path: {name}
    starting_time:
      nanoseconds_since_epoch: {start}
    duration:
      nanoseconds: {duration}
    message_count: {count}
custom_data: ~
ros_distro: jazzy
"
    )
}

fn topic_metadata(topic: &TopicTrack) -> String {
    let TopicTrack { name, message, count, .. } = topic;
    let hash = if message.hash.is_empty() { "\"\"" } else { message.hash };
    format!(
        "  - topic_metadata:
      name: {name}
      type: {}
      serialization_format: cdr
      offered_qos_profiles: []
      type_description_hash: {hash}
    message_count: {count}
",
        message.name
    )
}
