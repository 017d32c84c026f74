//! `pi05 node`: the ROS 2 node.

use super::{Failure, Verdict};
use crate::node;

/// Run the ROS 2 node (as `lib/pi05_thor/policy_node` does)
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  pi05 node --ros-args --params-file config/aloha.yaml -p autostart:=true\n\n\
                        Arguments are ROS 2's: -r from:=to, -p name:=value, --params-file F, --log-level L, -r __ns:=/left.\n\
                        SIGINT and SIGTERM brake the arm, then the node ends with exit code 0; a broken engine ends it with 1."
)]
pub struct Args {
    /// ROS 2's arguments, after --ros-args
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ROS_ARGUMENTS")]
    _ros_arguments: Vec<String>,
}

pub fn run(_: Args) -> Result<Verdict, Failure> {
    node::run()?;
    Ok(Verdict::Ok)
}
