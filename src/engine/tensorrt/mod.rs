//! TensorRT: stages of the network as engines built from a checkpoint, without Python and without ONNX.
//!
//! Promises: a network is defined once, as data ([`graph`], [`stages`]); what TensorRT is told is compared with it layer
//! by layer; an engine runs only with the checkpoint, GPU and version that its manifest names. No TensorRT symbol is
//! linked: with the feature `tensorrt` the library is opened when it is needed, without it everything that needs it is
//! refused in one line.
//!
//! | file | holds |
//! |---|---|
//! | `graph`, `stages` | networks as data: operations with types and shapes; the three stages |
//! | `manifest` | what an engine was built for |
//! | `shim/`, `sys`, `result`, `safe` | TensorRT in three levels behind a C interface of our own |
//! | `emit`, `plan` | a graph handed to TensorRT; built, with its manifest |
//! | `boundary`, `run` | stages on streams and in memory of [`cuda`](super::cuda)'s engine; TensorRT's |
//! | `interpret`, `on_host`, `on_gpu`, `truth` (tests) | the same graphs computed in f32, any of them among the reference's stages, against the recordings |

pub mod boundary;
#[cfg(feature = "tensorrt")]
mod emit;
pub mod error;
pub mod graph;
#[cfg(test)]
mod interpret;
pub mod manifest;
#[cfg(test)]
mod on_gpu;
#[cfg(test)]
mod on_host;
#[cfg(feature = "tensorrt")]
pub mod plan;
#[cfg(feature = "tensorrt")]
mod result;
#[cfg(feature = "tensorrt")]
pub mod run;
#[cfg(feature = "tensorrt")]
pub mod safe;
pub mod stages;
#[cfg(feature = "tensorrt")]
mod sys;
#[cfg(test)]
mod truth;
