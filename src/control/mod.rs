//! From chunks to commands: splice, plan, tick, limits. The part that can hurt somebody.
//!
//! Promises: whatever chunks arrive whenever, each tick's command is finite and within the limits one tick away from
//! the command before it, and if no new chunk comes, or something interrupts, the commands decelerate and rest. Knows
//! no ROS, no engine and no files. All but [`thread`] is pure: it reads no clock, and allocates nothing after
//! construction. Called by `replay` (on bag time) and, through [`thread`], by the node (on the monotonic clock or a
//! simulated one).
//!
//! | file | holds |
//! |---|---|
//! | [`limits`] | what a joint may do within one tick |
//! | [`brake`] | from a moving value to standstill |
//! | [`plan`] | a chunk as a function of time, ending at rest |
//! | `motion` | the plan that is followed, the one that is left, the last command |
//! | [`state`] | idle, armed, running, braking, holding, paused, stopped, fault: one table |
//! | [`admission`] | whether a chunk may take over |
//! | [`scheduler`] | state and motion together: the tick |
//! | [`preview`] | the way to rest as one trajectory |
//! | [`counters`], [`reason`] | what happened, and why |
//! | [`recorder`] | the last seconds of all that, in memory |
//! | [`thread`] | the control thread: clocks, hand-over in, hand-over out |

pub mod admission;
pub mod brake;
pub mod counters;
pub mod limits;
mod motion;
pub mod plan;
pub mod preview;
pub mod reason;
pub mod recorder;
pub mod scheduler;
pub mod state;
pub mod thread;

pub use admission::{Accepted, Rejected};
pub use counters::Counters;
pub use limits::{ControlMode, JointLimit, JointLimits};
pub use plan::Chunk;
pub use preview::Trajectory;
pub use reason::Reason;
pub use scheduler::{Command, ControlConfig, Scheduler};
pub use state::State;
pub use thread::ControlHandle;
