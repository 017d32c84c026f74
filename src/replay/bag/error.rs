//! What can be wrong with a bag, one line each.

use std::io;
use std::path::{Path, PathBuf};

/// Why a bag, a topic or a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BagError {
    /// The file system refused.
    #[error("{}: cannot be read: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is something, but it is no bag.
    #[error("{}: {found}; expected a rosbag2 folder, a .mcap file or a .db3 file", path.display())]
    NotABag {
        /// File or folder.
        path: PathBuf,
        /// What was found instead.
        found: String,
    },
    /// A bag, stored in a way that is not read here.
    #[error("{}: {what}; {instead}", path.display())]
    Unsupported {
        /// File or folder.
        path: PathBuf,
        /// The feature.
        what: String,
        /// What to do about it.
        instead: String,
    },
    /// The content contradicts itself or a checksum. Everything before was whole.
    #[error("{}: damaged: {what}; what comes after it is not read", path.display())]
    Damaged {
        /// File.
        path: PathBuf,
        /// Where, expected and found.
        what: String,
    },
    /// An index that is none of [`super::Bag::topics`].
    #[error("topic number {index} was asked for, but the bag has {count} topics")]
    NoSuchTopic {
        /// The index asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A topic whose messages are not CDR.
    #[error(
        "topic {topic}: messages are serialized as \"{found}\", expected \"cdr\" (ROS 2's own); convert the bag"
    )]
    Serialization {
        /// Name of the topic.
        topic: String,
        /// Its serialization format.
        found: String,
    },
    /// Parts of the bag disagree about the type of a topic.
    #[error("topic {topic}: recorded with two types, {first} and {second}; split the bag")]
    TwoTypes {
        /// Name of the topic.
        topic: String,
        /// The type found first.
        first: String,
        /// The other one.
        second: String,
    },
}

impl BagError {
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    pub(super) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}
