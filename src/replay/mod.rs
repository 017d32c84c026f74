//! A recorded bag instead of a robot: the same path, on the bag's clock, with a report at the end.
pub mod bag;
pub mod bag_clock;
pub mod bag_writer;
pub mod commands;
pub mod flight;
pub mod live;
pub mod message;
pub mod observations;
pub mod pace;
pub mod player;
pub mod recording;
pub mod report;
pub mod summary;
pub mod topics;
pub mod worker;

mod camera_strip;
mod drawing;
#[cfg(test)]
pub(crate) mod synthetic;
