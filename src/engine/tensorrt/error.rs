//! What can be wrong with TensorRT, its engines and their manifests: one line each.

use thiserror::Error;

use super::stages::DefinitionError;

/// Why an engine could not be built, checked or run.
#[derive(Debug, Error)]
pub enum TensorRtError {
    /// This program has no TensorRT in it.
    #[error(
        "TensorRT: this program was built without it; build with `--features tensorrt` (docs/tensorrt.md)"
    )]
    NotBuilt,
    /// No library.
    #[error("TensorRT: {tried}: {reason}; install it, or set TENSORRT_LIBRARY to the library's path")]
    NoLibrary {
        /// What was looked for.
        tried: String,
        /// What the loader said of the last one.
        reason: String,
    },
    /// No GPU.
    #[error("TensorRT: no GPU: {0}; only TensorRT-RTX builds engines without one, with --compute-capability")]
    NoGpu(String),
    /// A call of the library.
    #[error("TensorRT: {0}")]
    Refused(String),
    /// The stage's network.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// A tensor is not what the definition says.
    #[error("TensorRT: {what}: expected {expected}, found {found}")]
    Differs {
        /// Which tensor.
        what: String,
        /// In the definition.
        expected: String,
        /// In TensorRT.
        found: String,
    },
    /// A tensor of the checkpoint.
    #[error("tensor {0}: missing")]
    Missing(String),
    /// A file.
    #[error("{file}: {reason}")]
    File {
        /// Which.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// An engine that was built for something else.
    #[error("{file}: {what}: built for {built}, here is {here}; run `pi05 engines build` again")]
    Stale {
        /// The engine's manifest.
        file: String,
        /// What does not fit.
        what: &'static str,
        /// When it was built.
        built: String,
        /// Now.
        here: String,
    },
}

impl TensorRtError {
    /// What is wrong with a file.
    pub fn file(path: &std::path::Path, reason: impl ToString) -> Self {
        Self::File { file: path.display().to_string(), reason: reason.to_string() }
    }
}
