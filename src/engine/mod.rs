//! The three stages behind one boundary. The only room with `unsafe`, each block with its reason.
//!
//! | stage | takes | gives |
//! |---|---|---|
//! | vision | one [`Pixels`](crate::model::Pixels) per camera, masked ones absent | [`Features`](cpu::Features): `[tokens, width]` |
//! | prefix | features, prompt tokens | [`KvCache`](cpu::KvCache): per layer K after RoPE and V, `[prefix, head_dim]` |
//! | denoise | K/V, noise `[horizon, action_dim]`, sampler | actions `[horizon, action_dim]`, model space |
//!
//! Features and K/V live where the engine keeps them; callers only carry them from stage to stage.
//! [`cpu`] is the readable reference, in f32.

#![allow(unsafe_code)] // the one place; every block says why it is sound

pub mod cpu;
pub mod probe;
pub mod weights;

use thiserror::Error;

/// Why a stage could not run.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A weight file could not be read.
    #[error("{file}: cannot be mapped: {source}")]
    Map {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tensor table and the file disagree.
    #[error(
        "{file}: tensor {tensor} ends at byte {end}, but the file has {len}: it changed or was truncated"
    )]
    OutOfFile {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its last byte + 1.
        end: u64,
        /// Length of the file.
        len: u64,
    },
    /// No memory for procedural weights.
    #[error("no memory for the built-in model's weights: {0}")]
    OutOfMemory(std::io::Error),
    /// The input does not fit the network.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What the network takes.
        expected: String,
        /// What came.
        found: String,
    },
}
