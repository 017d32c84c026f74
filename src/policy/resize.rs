//! Placeholder until the resize is merged: takes only images that already have the network's size.

use crate::{model::Pixels, observe::RgbImage};

/// Whose resize.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// openpi's.
    Pillow,
    /// LeRobot's.
    Torch,
}

/// The image as the network takes it.
pub fn resize_with_pad(image: &RgbImage, _side: u32, how: Resize) -> Pixels {
    match how {
        Resize::Pillow => Pixels::U8(image.data().to_vec()),
        Resize::Torch => {
            Pixels::F32(image.data().iter().map(|&v| f32::from(v) / 255.0 * 2.0 - 1.0).collect())
        }
    }
}
