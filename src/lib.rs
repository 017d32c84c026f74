//! **pi05_thor** runs the π0.5 vision-language-action model on a robot and streams its actions to the arm.
//!
//! # Principles
//! 1. The actions are those of the reference implementations, proven stage by stage (`pi05 verify`).
//! 2. The arm never gets an unsafe command, whatever happens to cameras, model, process or operator.
//! 3. What comes from outside (messages, files, parameters) is parsed once at the edge into a checked type.
//!    Nothing it says may panic the process, or make it allocate what was claimed before it was checked.
//! 4. `unsafe` stands only under [`engine`], each block with its reason.
//!
//! # The way of the data
//! ```text
//! bag ─▶ observe ─▶ Observation ─▶ policy ─▶ ModelInput ─▶ engine ─▶ actions ─▶ policy ─▶ Chunk ─▶ control ─▶ Command
//! ```
//! One direction, no way back.
//!
//! # Clocks
//! Message stamps are [`clock::Stamp`] (ROS time). Every deadline is judged on [`clock::Steady`].
//! The two are never mixed; in a replay the bag's stamps drive both.

mod choices;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod engine;
pub mod messages;
pub mod model;
mod new_file;
#[cfg(feature = "ros")]
pub mod node;
pub mod observe;
mod percentile;
pub mod pipeline;
pub mod policy;
mod printable;
pub mod replay;
pub mod steps;
pub mod verify;
