//! TensorRT: engines built from a checkpoint, without Python and without ONNX.
pub mod calibration;
pub mod graph;
#[cfg(test)]
mod interpret;
pub mod stages;
