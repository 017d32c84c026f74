//! `pi05 splice`: how smoothly chunks follow each other in each mode, on a bag.

use std::io::Write;
use std::path::PathBuf;

use super::out::stdout;
use super::replay::load_config;
use super::{Failure, Verdict, progress};
use crate::config::Config;
use crate::control::Execution;
use crate::control::limits::LIMIT_MAX;
use crate::control::workload::MODES;
use crate::pipeline::setup::Setup;
use crate::replay::bag::Bag;
use crate::replay::pace::Speed;
use crate::replay::player::Replay;
use crate::replay::switches::{Switches, switches};
use crate::replay::topics::Topics;

/// Compare how smoothly chunks follow each other in each mode of execution
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 splice tests/data/bags/aloha_sim\n\n\
                        Plays the bag once per mode, and once more without limits, so that\n\
                        what the limits smooth is told from what the mode does. Prints the jump in commanded\n\
                        acceleration from one tick to the next, where a chunk takes over and inside of chunks.\n\
                        Modes that the checkpoint was not trained for are left out.")]
pub struct Args {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(value_name = "BAG")]
    bag: PathBuf,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Checkpoint folder, synth:tiny or synth:full [default: parameter `checkpoint`]
    #[arg(long, value_name = "D")]
    checkpoint: Option<String>,
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let config = load_config(args.config.as_deref(), args.checkpoint)?;
    let bag = Bag::open(&args.bag)?;
    let mut out = stdout();
    writeln!(
        out,
        "| execution | limits | switches | at a switch p50 | p99 | max | inside p50 | p99 | max | limited ticks |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|---|---|---|")?;
    for unlimited in [false, true] {
        for execution in MODES {
            if let Some(found) = play(&config, &bag, execution, unlimited)? {
                let limits = if unlimited { "none" } else { "all" };
                writeln!(out, "{}", row(execution, limits, &found))?;
            }
        }
    }
    Ok(Verdict::Ok)
}

fn play(
    config: &Config,
    bag: &Bag,
    execution: Execution,
    unlimited: bool,
) -> Result<Option<Switches>, Failure> {
    let mut config = config.clone();
    config.control.execution = Execution::Latest;
    if unlimited {
        config.joints.velocity_max.fill(LIMIT_MAX);
        config.joints.acceleration_max.fill(LIMIT_MAX);
        config.joints.jerk_max.fill(f64::INFINITY);
        config.joints.position_min.fill(-LIMIT_MAX);
        config.joints.position_max.fill(LIMIT_MAX);
        config.control.first_step_max = LIMIT_MAX;
    }
    let setup = Setup::open(&config)?;
    if setup.policy.check_execution(execution).is_err() {
        return Ok(None);
    }
    config.control.execution = execution;
    let topics = Topics::resolve(bag, &config, &setup.cameras)?;
    let inference = setup.load(&config, |_, _| ())?;
    let (cameras, speed) = (&setup.cameras.names, Speed::Max);
    let replay = Replay { config: &config, cameras, topics: &topics, inference, speed };
    let bar = progress::bar(execution.name());
    let recording =
        replay.run(bag, |played, all| progress::set(&bar, (played * 1e3) as u64, (all * 1e3) as u64))?;
    bar.finish_and_clear();
    Ok(Some(switches(&recording)))
}

fn row(execution: Execution, limits: &str, found: &Switches) -> String {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
    let Switches { switches, at_switch, inside, limited } = found;
    format!(
        "| {execution} | {limits} | {switches} | {} | {} | {} | {} | {} | {} | {:.0} % |",
        number(at_switch.p50),
        number(at_switch.p99),
        number(at_switch.max),
        number(inside.p50),
        number(inside.p99),
        number(inside.max),
        100.0 * limited,
    )
}
