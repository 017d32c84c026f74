//! A recorded bag instead of a robot: the same path, on the bag's clock, with a report at the end.
pub mod recording;
pub mod report;
pub mod summary;

mod camera_strip;
mod drawing;
#[cfg(test)]
pub(crate) mod synthetic;
