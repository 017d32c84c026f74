//! Reads rosbag2 recordings: MCAP and SQLite, a folder or a single file.
//!
//! Promises records in ascending log time across files and chunks, with memory bounded by named caps, whatever the
//! files say. A recording that was cut off is read to its last whole record and says so in [`Bag::notes`]; one that
//! contradicts itself ends with a [`BagError`] after the records before it. Called by `replay` and `inspect`.
//! Never decodes a message (see [`crate::messages`]), never writes, never waits for anything but the disk.

mod error;
mod folder;
mod mcap_chunk;
mod mcap_file;
mod mcap_record;
mod merge;
mod sqlite_file;
mod sqlite_pages;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use error::BagError;
pub use merge::Records;

/// Longest message payload that is read: an uncompressed 8K rgb8 image is 100 MB.
pub const MAX_MESSAGE_BYTES: u64 = 256 << 20;
/// Largest MCAP chunk that is read, compressed or not. rosbag2 closes a chunk at 0.75 MiB plus one message.
pub const MAX_CHUNK_BYTES: u64 = 256 << 20;
/// Most bytes of chunks that overlap in time, held at once to bring their messages in order.
pub const MAX_OVERLAP_BYTES: u64 = 1 << 30;

/// A recording that was opened: its topics are known, its messages are still on disk.
#[derive(Debug)]
pub struct Bag {
    path: PathBuf,
    files: Vec<BagFile>,
    topics: Vec<Topic>,
    span: Option<(i64, i64)>,
    notes: Vec<String>,
    zstd_messages: bool,
}

/// One topic of a bag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    /// Name as recorded, such as `/joint_states`.
    pub name: String,
    /// ROS 2 spelling of its type: `sensor_msgs/msg/Image`, also where the bag says `sensor_msgs/Image`.
    pub type_name: String,
    /// `cdr` for ROS 2. Others are listed, and refused when read.
    pub serialization: String,
    /// Number of messages, as the bag says; `None` where it does not say.
    pub messages: Option<u64>,
    /// A second type under the same name; such a topic is refused when read.
    other_type: Option<String>,
}

/// One message as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index into [`Bag::topics`].
    pub topic: usize,
    /// When it was received, in nanoseconds since the Unix epoch. (A header's stamp is inside the payload.)
    pub log_time: i64,
    /// The serialized message, with its encapsulation header.
    pub payload: Vec<u8>,
}

impl Bag {
    /// Opens a rosbag2 folder (with or without `metadata.yaml`), a `.mcap` file or a `.db3` file and reads its index.
    ///
    /// An MCAP file without a usable index is read through once here. A cut file is no error: see [`Bag::notes`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, BagError> {
        let path = path.as_ref();
        let layout = folder::layout(path)?;
        let mut bag = Self {
            path: path.to_owned(),
            files: Vec::new(),
            topics: Vec::new(),
            span: None,
            notes: layout.notes,
            zstd_messages: layout.zstd_messages,
        };
        for file in layout.files {
            bag.add(file)?;
        }
        for topic in bag.topics.iter_mut().filter(|topic| topic.messages.is_none()) {
            topic.messages = layout.counts.get(&topic.name).copied();
        }
        Ok(bag)
    }

    /// Path as given to [`Bag::open`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every topic, in order of first appearance.
    pub fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// Index of the topic of that name; a leading slash does not matter.
    pub fn topic(&self, name: &str) -> Option<usize> {
        let bare = name.trim_start_matches('/');
        self.topics.iter().position(|t| t.name.trim_start_matches('/') == bare)
    }

    /// First and last log time, nanoseconds, as the index says (a hint, say for a progress bar: a hostile bag may
    /// state any); `None` for a bag without messages.
    pub fn time_range(&self) -> Option<(i64, i64)> {
        self.span
    }

    /// What a person should know: the bag was cut, its index was missing, a file was left out.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The records of these topics (indices into [`Bag::topics`]) in ascending log time.
    ///
    /// Ties keep the order of the files. After an error the iterator ends.
    pub fn records(&self, topics: &[usize]) -> Result<Records<'_>, BagError> {
        for &index in topics {
            let Some(topic) = self.topics.get(index) else {
                return Err(BagError::NoSuchTopic { index, count: self.topics.len() });
            };
            if topic.serialization != "cdr" {
                return Err(BagError::Serialization {
                    topic: topic.name.clone(),
                    found: topic.serialization.clone(),
                });
            }
            if let Some(second) = &topic.other_type {
                return Err(BagError::TwoTypes {
                    topic: topic.name.clone(),
                    first: topic.type_name.clone(),
                    second: second.clone(),
                });
            }
        }
        Ok(Records::new(self, topics))
    }

    /// Reads the index of one more file and merges its topics.
    fn add(&mut self, path: PathBuf) -> Result<(), BagError> {
        let contents = match kind(&path)? {
            Kind::Mcap => mcap_file::index(&path)?,
            Kind::Sqlite => sqlite_file::index(&path)?,
            Kind::Empty => {
                self.notes
                    .push(format!("{}: truncated before its first record; it holds nothing", path.display()));
                return Ok(());
            }
        };
        let mut topics = BTreeMap::new();
        for (id, found) in contents.topics {
            topics.insert(id, self.merge_topic(found));
        }
        self.span = match (self.span, contents.span) {
            (Some((a, b)), Some((c, d))) => Some((a.min(c), b.max(d))),
            (a, b) => a.or(b),
        };
        self.notes.extend(contents.notes);
        self.files.push(BagFile { path, parts: contents.parts, topics });
        Ok(())
    }

    fn merge_topic(&mut self, found: Topic) -> usize {
        let Some(index) = self.topics.iter().position(|t| t.name == found.name) else {
            self.topics.push(found);
            return self.topics.len() - 1;
        };
        let known = &mut self.topics[index];
        known.messages = known.messages.zip(found.messages).map(|(a, b)| a.saturating_add(b));
        if known.type_name != found.type_name {
            known.other_type = Some(found.type_name);
        }
        if known.serialization == "cdr" {
            known.serialization = found.serialization;
        }
        index
    }
}

impl Topic {
    fn new(name: String, type_name: &str, serialization: String, messages: Option<u64>) -> Self {
        let type_name = match type_name.split_once('/') {
            Some((package, name)) if !name.contains('/') => format!("{package}/msg/{name}"),
            _ => type_name.to_owned(),
        };
        Self { name, type_name, serialization, messages, other_type: None }
    }
}

/// One file of a bag, indexed.
#[derive(Debug)]
struct BagFile {
    path: PathBuf,
    parts: Vec<Part>,
    /// Channel or topic id of the file → index into [`Bag::topics`].
    topics: BTreeMap<i64, usize>,
}

/// What reading a file's index gives.
#[derive(Debug)]
struct Contents {
    topics: Vec<(i64, Topic)>,
    parts: Vec<Part>,
    span: Option<(i64, i64)>,
    notes: Vec<String>,
}

/// A piece of a file that is opened when its first message is due.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// An MCAP chunk, or a stretch of messages outside chunks.
    Mcap(mcap_chunk::Stretch),
    /// A whole SQLite file, read row by row.
    Sqlite { start: i64, cut: bool },
}

impl Part {
    /// Log time that no message of it precedes.
    fn start(&self) -> i64 {
        match self {
            Part::Mcap(stretch) => stretch.start,
            Part::Sqlite { start, .. } => *start,
        }
    }
}

enum Kind {
    Mcap,
    Sqlite,
    Empty,
}

const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

/// Tells a file's format by its first bytes; a file cut inside them counts as empty if its name ends in .mcap or .db3.
fn kind(path: &Path) -> Result<Kind, BagError> {
    let mut magic = Vec::with_capacity(SQLITE_MAGIC.len());
    let file = File::open(path).map_err(BagError::io(path))?;
    file.take(SQLITE_MAGIC.len() as u64).read_to_end(&mut magic).map_err(BagError::io(path))?;
    if magic.starts_with(mcap::MAGIC) {
        return Ok(Kind::Mcap);
    }
    if magic == SQLITE_MAGIC {
        return Ok(Kind::Sqlite);
    }
    let cut = mcap::MAGIC.starts_with(&magic) || SQLITE_MAGIC.starts_with(&magic);
    if cut && folder::is_bag_file(path) {
        return Ok(Kind::Empty);
    }
    let found =
        if magic.is_empty() { "the file is empty" } else { "neither MCAP nor SQLite by its first bytes" };
    Err(BagError::NotABag { path: path.to_owned(), found: found.to_owned() })
}
