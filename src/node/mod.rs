//! The ROS 2 node: `ros2 launch pi05_thor policy.launch.py`. The only place that knows r2r.
//!
//! Promises: it spins, whatever messages, parameters and requests say; nothing that takes long happens on the spin
//! thread; commands flow in the state `active` alone, and SIGINT, SIGTERM and SIGHUP brake before the process ends.
//! What it receives and publishes on data topics are bytes: [`crate::messages`] decodes and encodes them, as for bags.
//!
//! | file | holds |
//! |---|---|
//! | `policy_node` | the spin thread: parameters, services, status; `transitions` its lifecycle |
//! | `session` | what exists while configured; `shared` what its threads share |
//! | `inputs` | what is heard, and its decode workers; `subscriptions` outlast it |
//! | `inference` | the inference thread |
//! | `commands` | from the control thread's hand-over to the commands' topic |
//! | `flight` | when the flight recorder's memory becomes a file |
//! | `parameters`, `lifecycle`, `lifecycle_services`, `service` | ROS 2's standard interfaces |
//! | `diagnostics`, `statistics`, `log` | what the node tells |
//! | `clock`, `names` | ROS time and topic names as the network knows them |

pub mod bench;
mod clock;
mod commands;
mod diagnostics;
mod flight;
mod inference;
mod inputs;
mod lifecycle;
mod lifecycle_services;
mod log;
mod names;
mod parameters;
mod policy_node;
mod service;
mod session;
mod shared;
mod statistics;
mod subscriptions;

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use r2r::{Context, Node};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use thiserror::Error;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::log::RosLog;
use self::policy_node::{End, NAME, PolicyNode};
use crate::config::{Config, ConfigError};

/// Turns that may panic before the node is given up: those that a brake takes, at 10 ms each.
const PANICS_MAX: u32 = 200;

/// Why the node did not run, or ended by itself.
#[derive(Debug, Error)]
pub enum NodeError {
    /// rcl cannot take such arguments at all.
    #[error("argument {0}: expected UTF-8; correct it")]
    Argument(usize),
    /// A parameter file.
    #[error(transparent)]
    Parameters(#[from] ConfigError),
    /// The client library.
    #[error("ROS 2 does not start: {0}; check the arguments after --ros-args and the environment")]
    Ros(String),
    /// Signals cannot be caught, so that the arm could not be braked.
    #[error("signals cannot be handled: {0}")]
    Signals(#[from] io::Error),
    /// Parameters that do not fit, one line each.
    #[error("{0}")]
    Refused(String),
    /// The engine or a thread is broken. The arm was braked.
    #[error("{0}; the arm was braked")]
    Broken(String),
}

/// Runs the node until it is told to end. The process's own arguments are what rcl reads (`--ros-args …`).
pub fn run() -> Result<(), NodeError> {
    let arguments = arguments()?;
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Who starts it with nohup wants it to go on without the terminal.
        if signal != SIGHUP || !is_ignored(SIGHUP) {
            signal_hook::flag::register(signal, Arc::clone(&ending))?;
        }
    }
    let engine = rayon::ThreadPoolBuilder::new().start_handler(|_| inference::step_back());
    if let Err(error) = engine.build_global() {
        tracing::debug!("the engine's threads are not ours: {error}");
    }
    let ros = match start_ros() {
        Ok(ros) => ros,
        Err(error) => {
            // A parameter file is the likeliest cause, and rcl names neither line nor reason.
            for file in parameter_files(&arguments) {
                Config::from_file(Path::new(file))?;
            }
            return Err(error);
        }
    };
    tracing_subscriber::registry().with(RosLog::new(ros.logger())).init();
    let mut node = PolicyNode::new(ros, &arguments).map_err(NodeError::Refused)?;
    let mut panics = 0;
    loop {
        if ending.load(Ordering::Relaxed) {
            node.end();
        }
        match catch_unwind(AssertUnwindSafe(|| node.turn())) {
            Ok(None) => {}
            Ok(Some(End::Asked)) => return Ok(()),
            Ok(Some(End::Broken(why))) => return Err(NodeError::Broken(why)),
            // The arm must not be left moving; after that it is over, if need be in the middle of things.
            Err(_) if panics < PANICS_MAX => {
                panics += 1;
                node.break_down("the spin thread panicked");
            }
            Err(_) => return Err(NodeError::Broken("the spin thread panics again and again".to_owned())),
        }
    }
}

/// Whether the process was started with this signal ignored, as Linux shows it.
fn is_ignored(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// r2r panics where rcl refuses the arguments.
fn start_ros() -> Result<Node, NodeError> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ())); // the panic becomes one line below
    let started = catch_unwind(|| {
        let context = Context::create()?;
        Node::create(context, NAME, "")
    });
    std::panic::set_hook(hook);
    match started {
        Ok(node) => node.map_err(|error| NodeError::Ros(error.to_string())),
        Err(panic) => {
            let why = panic.downcast_ref::<String>().cloned();
            let why = why.unwrap_or_else(|| "rcl refuses the arguments".to_owned());
            Err(NodeError::Ros(why.split_whitespace().collect::<Vec<_>>().join(" ")))
        }
    }
}

fn arguments() -> Result<Vec<String>, NodeError> {
    let arguments = std::env::args_os().enumerate();
    arguments
        .map(|(index, argument)| argument.into_string().map_err(|_| NodeError::Argument(index)))
        .collect()
}

/// What follows `--params-file`.
fn parameter_files(arguments: &[String]) -> impl Iterator<Item = &str> {
    arguments.windows(2).filter(|pair| pair[0] == "--params-file").map(|pair| pair[1].as_str())
}
