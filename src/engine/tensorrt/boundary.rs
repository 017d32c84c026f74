//! Between the GPU's engine and stages that TensorRT computes for it: on its streams, in its memory.
//!
//! Promises: [`agree`] lets no engine through whose tensors are not exactly ours by name, direction, type and shape, or
//! are larger than the memory that they would lie in. Called when an engine is made, never later.

use std::fmt;

use super::error::TensorRtError;
use super::graph::{Port, Type};
use super::stages::{Sizes, Stage};
use crate::engine::EngineError;
use crate::engine::cuda::driver::Gpu;

/// A stage that is not computed by kernels of ours.
pub trait StageEngine: Send {
    /// What goes in (true) and comes out (false).
    fn ports(&self) -> Result<Vec<(bool, Port)>, EngineError>;

    /// Where a tensor lies on the GPU; holds for every run until it is bound again.
    ///
    /// # Safety
    /// The memory is as large as the tensor, and stays until the last run that uses it has ended.
    unsafe fn bind(&self, name: &str, address: u64) -> Result<(), EngineError>;

    /// Puts a run on the stream of `gpu`, after what is on it. May be recorded into a graph once it has run outside.
    ///
    /// # Safety
    /// Every tensor is bound.
    unsafe fn enqueue(&self, gpu: &Gpu) -> Result<(), EngineError>;
}

/// The stages that are not ours, by [`Stage`], and the shapes that all of them are fixed to.
pub struct Foreign {
    /// At least one.
    pub engines: [Option<Box<dyn StageEngine>>; 3],
    /// What they were built for.
    pub sizes: Sizes,
}

/// Memory of ours that a tensor of a stage is to lie in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whether the stage reads it.
    pub is_input: bool,
    /// What the tensor must be.
    pub port: Port,
    /// How large the memory is.
    pub bytes: usize,
}

impl Place {
    /// A tensor that the stage reads.
    pub fn read(name: impl Into<String>, dtype: Type, shape: &[usize], bytes: usize) -> Self {
        Self { is_input: true, port: Port { name: name.into(), dtype, shape: shape.to_vec() }, bytes }
    }

    /// A tensor that the stage writes.
    pub fn written(name: impl Into<String>, dtype: Type, shape: &[usize], bytes: usize) -> Self {
        Self { is_input: false, ..Self::read(name, dtype, shape, bytes) }
    }
}

/// Whether a stage's tensors, inputs marked true, are those that there are places for, all of them.
pub fn agree(stage: Stage, ports: &[(bool, Port)], places: &[Place]) -> Result<(), TensorRtError> {
    let differs = |name: &str, expected: String, found: String| {
        let found = format!("{found}; run `pi05 engines build` again");
        Err(TensorRtError::Differs { what: format!("{stage} tensor {name}"), expected, found })
    };
    for place in places {
        let name = &place.port.name;
        let expected = Told { is_input: place.is_input, port: &place.port };
        let Some((is_input, port)) = ports.iter().find(|(_, port)| port.name == *name) else {
            return differs(name, expected.to_string(), "none".into());
        };
        if *is_input != place.is_input || *port != place.port {
            return differs(name, expected.to_string(), Told { is_input: *is_input, port }.to_string());
        }
        let needed = port.shape.iter().try_fold(port.dtype.size(), |bytes, n| bytes.checked_mul(*n));
        if needed.is_none_or(|needed| needed > place.bytes) {
            let found = needed.map_or("more than there can be".to_owned(), |bytes| format!("{bytes}"));
            return differs(name, format!("at most {} bytes", place.bytes), found);
        }
    }
    let placed = |name: &str| places.iter().any(|place| place.port.name == name);
    match ports.iter().find(|(_, port)| !placed(&port.name)) {
        Some((is_input, port)) => {
            differs(&port.name, "none".into(), Told { is_input: *is_input, port }.to_string())
        }
        None => Ok(()),
    }
}

/// A tensor, for a person.
struct Told<'a> {
    is_input: bool,
    port: &'a Port,
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = if self.is_input { "input" } else { "output" };
        write!(f, "an {direction} {} {:?}", self.port.dtype, self.port.shape)
    }
}
