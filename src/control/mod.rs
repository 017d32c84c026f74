//! From chunks to commands: splice, plan, tick, limits. The part that can hurt somebody.
//!
//! Promises: whatever chunks arrive whenever, each tick's command is finite and within the limits one tick away from
//! the command before it, and if no new chunk comes the commands decelerate and rest. Called by `replay` (on bag time)
//! and by the node (on the monotonic clock). Pure: it knows no ROS, no engine and no files, reads no clock, and
//! allocates nothing after construction.
//!
//! | file | holds |
//! |---|---|
//! | [`limits`] | what a joint may do within one tick |
//! | [`brake`] | from a moving value to standstill |
//! | [`plan`] | a chunk as a function of time, ending at rest |
//! | [`scheduler`] | which plan is followed, the splice, the tick |

pub mod brake;
pub mod limits;
pub mod plan;
pub mod scheduler;

pub use limits::{ControlMode, JointLimit, JointLimits};
pub use plan::Chunk;
pub use scheduler::{Accepted, Command, ControlConfig, Counters, Rejected, Scheduler};
pub mod interim;
pub use interim::*;
