//! A recorded bag instead of a robot: the same path, on the bag's clock, with a report at the end.
pub mod bag;
pub mod commands;
pub mod messages;
pub mod recording;
pub mod report;
pub mod summary;

mod drawing;
#[cfg(test)]
pub(crate) mod synthetic;
