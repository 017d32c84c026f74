//! The π0.5 network as numbers: dimensions, tensor names, procedural weights, the sampler.
//!
//! Knows no files, no ROS and no robot; `policy::checkpoint` fills its [`tensors::TensorTable`], `engine` computes with it.
//! The mathematics is described where it is computed, in `engine::cpu`.

pub mod dims;
pub mod names;
pub mod sampler;
pub mod synth;
pub mod tensors;

/// One camera image as the network takes it: `[side, side, 3]`, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Pixels {
    /// openpi's path: resized as bytes; the engine maps `u8 / 255 * 2 - 1`.
    U8(Vec<u8>),
    /// LeRobot's path: resized as floats, already in [-1, 1].
    F32(Vec<f32>),
}

/// What one inference takes, besides noise. Masked slots are absent, never padded (exact: they have no influence).
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInput {
    /// One per camera slot; `None` is masked.
    pub images: Vec<Option<Pixels>>,
    /// The valid prompt tokens, BOS first.
    pub tokens: Vec<u32>,
}
