//! The node as a process of its own: started, ended as a launch file ends it, killed if the bench gives up before.

use std::env;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Where the bench lives, so that it disturbs nobody.
pub const NAMESPACE: &str = "/pi05_bench";

/// How long a node may take to brake and end.
const END_PATIENCE: Duration = Duration::from_secs(20);

/// The node's parameters whatever is measured.
const PARAMETERS: [&str; 4] = [
    "cameras.base_0_rgb.topic:=cam_0",
    "cameras.left_wrist_0_rgb.topic:=cam_1",
    "cameras.right_wrist_0_rgb.topic:=cam_2",
    "control.command:=joint_state",
];

/// A node of its own process, killed at the end if it has not been ended.
pub struct NodeProcess(Child);

impl NodeProcess {
    /// Starts it with these parameters, `name:=value`; later ones win.
    pub fn start<'a>(parameters: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let program = env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
        let mut command = Command::new(program);
        command.args(["node", "--ros-args", "--log-level", "warn", "-r"]).arg(format!("__ns:={NAMESPACE}"));
        for parameter in PARAMETERS.into_iter().chain(parameters) {
            command.args(["-p", parameter]);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        child.map(Self).map_err(|error| format!("the node: {error}"))
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().ok().flatten()
    }

    /// Asks it to brake and end, and waits until it has; an error if it does not, or not well.
    pub fn end(&mut self) -> Result<(), String> {
        let signalled = kill_process(Pid::from_child(&self.0), Signal::TERM);
        signalled.map_err(|error| format!("the node cannot be told to end: {error}"))?;
        let deadline = Instant::now() + END_PATIENCE;
        loop {
            match self.ended() {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("the node ended with {status} when it was told to")),
                None if Instant::now() > deadline => {
                    return Err(format!(
                        "the node did not end within {} s of SIGTERM",
                        END_PATIENCE.as_secs()
                    ));
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
