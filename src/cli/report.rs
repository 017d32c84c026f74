//! `pi05 report`: the report of a live run, from a bag that was recorded beside the node.

use std::fs;
use std::path::PathBuf;

use super::replay::{load_config, write_report};
use super::{Failure, Verdict};
use crate::pipeline::Model;
use crate::policy::cameras::CameraSlots;
use crate::replay::bag::Bag;
use crate::replay::live;

/// Report on a live run of the node, from a bag of its inputs, chunks and commands
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 report recorded --config config/aloha.yaml --out out\n\n\
                        Writes report.html and summary.json to the folder of --out. The bag holds the node's\n\
                        ~/chunks and commands, and, as far as they are to be drawn, joint states, cameras and ~/status.\n\
                        Limits are judged of commands per tick (Float64MultiArray, JointState), not of trajectories; of\n\
                        those, the flight recorder's files have what each tick would have commanded.\n\
                        Exit code 1 if it has no chunk or a command broke a limit.")]
pub struct Args {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(value_name = "BAG")]
    bag: PathBuf,
    /// ROS 2 parameter file that the node ran with [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Folder for the results; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let config = load_config(args.config.as_deref(), None)?;
    let bag = Bag::open(&args.bag)?;
    // Only for the names of its cameras: the checkpoint may be on the robot.
    let (slots, note) = match Model::open_network(&config.checkpoint) {
        Ok(model) => (model.cameras(), None),
        Err(error) => {
            let names = config.cameras.iter().map(|camera| camera.slot.clone()).collect();
            (
                CameraSlots { names, aliases: Vec::new() },
                Some(format!("cameras by their parameters: {error}")),
            )
        }
    };
    let mut recording = live::recording(&bag, &config, &slots)?;
    recording.notes.extend(note);
    fs::create_dir_all(&args.out).map_err(|e| format!("{}: cannot be made: {e}", args.out.display()))?;
    write_report(&recording, &args.out)
}
