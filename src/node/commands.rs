//! From the control thread's hand-over to the commands' topic.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use r2r::PublisherUntyped;

use super::shared::Shared;
use crate::config::CommandType;
use crate::control::thread::{Outlet, Received};
use crate::messages::{JointTrajectoryMessage, TrajectoryPoint, put_float64_multi_array, put_joint_state};

/// Control wakes the publisher; it looks by itself only for the case that control is gone.
const NAP: Duration = Duration::from_millis(100);

/// Starts the thread that publishes what control gives, until control has ended.
pub fn publish_commands(
    outlet: Outlet,
    publisher: PublisherUntyped,
    form: CommandType,
    joint_names: Vec<String>,
    shared: Arc<Shared>,
) -> Result<JoinHandle<()>, String> {
    let publish = move || run(outlet, &publisher, form, &joint_names, &shared);
    let thread = thread::Builder::new().name("commands".to_owned()).spawn(publish);
    thread.map_err(|error| format!("the command publisher: {error}"))
}

fn run(
    mut outlet: Outlet,
    publisher: &PublisherUntyped,
    form: CommandType,
    joint_names: &[String],
    shared: &Shared,
) {
    let mut payload = Vec::new();
    loop {
        let at = match outlet.receive(NAP) {
            Received::Command(command) => {
                match form {
                    CommandType::JointState => {
                        let stamp = shared.clock.stamp(command.at);
                        put_joint_state(stamp, joint_names, command.values, &mut payload);
                    }
                    _ => put_float64_multi_array(command.values, &mut payload),
                }
                command.at
            }
            Received::Trajectory(trajectory) => {
                let point = |(time_from_start, positions)| TrajectoryPoint { time_from_start, positions };
                let message = JointTrajectoryMessage {
                    stamp: shared.clock.stamp(trajectory.start),
                    joint_names: joint_names.iter().map(String::as_str).collect(),
                    points: trajectory.points().map(point).collect(),
                };
                message.put(&mut payload);
                trajectory.start
            }
            Received::Nothing => continue,
            Received::Ended => return,
        };
        if !shared.may_publish(at) {
            continue;
        }
        if let Err(error) = publisher.publish_raw(&payload) {
            shared.count("command_unpublished", &error.to_string());
        }
    }
}
