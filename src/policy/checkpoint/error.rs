//! What can be wrong with a checkpoint. Every message is one line for a person: where, expected, found, what to do.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::printable::printable;

/// Why a checkpoint was refused, or could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Its reason.
        error: io::Error,
    },
    /// No weights where they were looked for.
    #[error("{}: no weights here: looked for model.safetensors and model.safetensors.index.json{hint}", folder.display())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What lies there instead, and what to do; may be empty.
        hint: &'static str,
    },
    /// A file or folder as a whole is not what it should be.
    #[error("{}: {problem}", file.display())]
    File {
        /// The file or folder.
        file: PathBuf,
        /// Expected, found, what to do.
        problem: String,
    },
    /// One tensor is not what it should be.
    #[error("{}: tensor {tensor}: {problem}", file.display())]
    Tensor {
        /// The safetensors file.
        file: PathBuf,
        /// Name of the tensor as the file has it, made printable.
        tensor: String,
        /// Expected, found, what to do.
        problem: String,
    },
    /// The file ends before its tensors do.
    #[error(
        "{}: the file is truncated: {found} bytes on disk, tensor {tensor} ends at {end}: download or copy it again",
        file.display()
    )]
    Truncated {
        /// The safetensors file.
        file: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The first tensor that does not fit.
        tensor: String,
        /// Where that tensor would end.
        end: u64,
    },
    /// A value of a JSON side file is not what it should be.
    #[error("{}: {key}: expected {expected}, found {found}", file.display())]
    Key {
        /// The JSON file.
        file: PathBuf,
        /// Path of the value, such as `norm_stats.state.q01[3]`.
        key: String,
        /// What would have been right.
        expected: String,
        /// What stands there.
        found: String,
    },
}

impl CheckpointError {
    pub(super) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }

    pub(super) fn file(file: &Path, problem: impl Into<String>) -> Self {
        Self::File { file: file.to_owned(), problem: problem.into() }
    }

    pub(super) fn tensor(file: &Path, tensor: &str, problem: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: printable(tensor), problem: problem.into() }
    }
}
