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
//! | [`limits`] | what a joint may do |
//! | [`axis`] | one joint's command from tick to tick, within its limits |
//! | [`plan`] | a chunk as a function of time, laid out before a tick sees it |
//! | [`splice`] | how a new chunk takes over: modes, and what fades |
//! | `reference` | the plans that are followed, their weights, and the way to them |
//! | `samples` | what all joints do at one time, array by array |
//! | `motion` | the axes follow the reference, or come to rest |
//! | [`state`] | idle, armed, running, braking, holding, paused, stopped, fault: one table |
//! | [`admission`] | whether a chunk may take over |
//! | [`scheduler`] | state and motion together: the tick |
//! | [`preview`] | the way to rest as one trajectory |
//! | `slope` | braking by equal parts |
//! | `stop` | a way to rest with limited jerk |
//! | [`workload`] | a tick with everything to do, for benchmarks |
//! | [`counters`], [`reason`] | what happened, and why |
//! | [`recorder`] | the last seconds of all that, in memory |
//! | [`thread`] | the control thread: clocks, hand-over in, hand-over out |

pub mod admission;
pub mod axis;
pub mod counters;
pub mod limits;
mod motion;
pub mod plan;
pub mod preview;
pub mod reason;
pub mod recorder;
mod reference;
mod samples;
pub mod scheduler;
mod slope;
pub mod splice;
pub mod state;
mod stop;
pub mod thread;
pub mod workload;

pub use admission::{Accepted, Rejected, Wants};
pub use counters::Counters;
pub use limits::{ControlMode, JointLimit, JointLimits};
pub use plan::{Chunk, Proposal};
pub use preview::Trajectory;
pub use reason::Reason;
pub use scheduler::{Command, ControlConfig, Guards, Scheduler};
pub use splice::{Execution, Splice};
pub use state::State;
pub use thread::ControlHandle;
