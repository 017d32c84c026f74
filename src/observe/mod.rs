//! What the robot sees and feels: camera images and joint positions, checked and newest-of-each.
//!
//! Called by `node` and `replay`, which hand over raw message fields. Knows no ROS, no files, no model.

pub mod counters;
pub mod image;
pub mod intake;
pub mod joints;
pub mod latest;
pub mod snapshot;

mod compressed;
mod yuv;

use std::sync::Arc;

use crate::clock::Stamp;

/// A decoded camera image: rgb8, rows tightly packed. `data.len() == 3 * width * height`, both at least 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RgbImage {
    width: u32,
    height: u32,
    data: Vec<u8>,
}

impl RgbImage {
    /// Wraps tightly packed rgb8 rows; `None` if the length does not fit or a side is 0.
    pub fn new(width: u32, height: u32, data: Vec<u8>) -> Option<Self> {
        let len = (width as usize).checked_mul(height as usize)?.checked_mul(3)?;
        (len > 0 && len == data.len()).then_some(Self { width, height, data })
    }

    /// Pixels per row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// `[height, width, 3]` u8.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

/// One consistent view of the world: the newest image of every camera slot and the newest joint state.
#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// The time of the observation: the newest stamp among its parts. A chunk's step 0 belongs here.
    pub stamp: Stamp,
    /// One per camera slot of the model, in the model's order; `None` is a camera the robot does not have.
    pub images: Vec<Option<Arc<RgbImage>>>,
    /// Stamp of each of `images`.
    pub image_stamps: Vec<Option<Stamp>>,
    /// The robot's state in the configured joint order, as the robot reports it (rad, m).
    pub state: Vec<f64>,
    /// Stamp of `state`.
    pub joints_stamp: Stamp,
}

/// Characters of a foreign name that a message shows.
const QUOTED_MAX: usize = 40;

/// A name from outside, fit for a one-line message: in quotes, [`clean`], short.
fn quoted(name: &str) -> String {
    format!("\"{}\"", clean(name, QUOTED_MAX))
}

/// Text from outside with control characters escaped, cut after `max` characters.
fn clean(text: &str, max: usize) -> String {
    let mut escaped = text.chars().flat_map(char::escape_debug);
    let mut shown: String = escaped.by_ref().take(max).collect();
    if escaped.next().is_some() {
        shown.push('…');
    }
    shown
}
