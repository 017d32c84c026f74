//! `pi05 replay`: a recorded bag through the whole system.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::out::stdout;
use super::{DtypeArg, Failure, Verdict, engine_choice, progress};
use crate::config::{Backend, Config, DtypeChoice, RobotKind};
use crate::new_file;
use crate::pipeline::setup::Setup;
use crate::replay::bag::Bag;
use crate::replay::commands::write_commands;
use crate::replay::pace::Speed;
use crate::replay::player::Replay;
use crate::replay::recording::Recording;
use crate::replay::report;
use crate::replay::summary::{Level, summary};
use crate::replay::topics::Topics;

/// Play a recorded bag through the policy and the controller; write commands, report and summary
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 replay tests/data/bags/aloha_sim --out out\n\n\
                        Writes commands.mcap, report.html and summary.json to the folder of --out.\n\
                        At --speed max the result does not depend on the machine: an inference takes replay.latency_ms\n\
                        of bag time, and two runs write the same bytes (but for `timings` in summary.json and report.html).\n\
                        Exit code 1 if no chunk was made or a command broke a limit.")]
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
    /// Engine: auto, cpu, cuda, tensorrt, or each stage's, as vision=tensorrt,prefix=tensorrt,denoise=cuda
    /// [default: parameter `backend`]
    #[arg(long, value_name = "B")]
    backend: Option<Backend>,
    /// Number format of the engine [default: parameter `dtype`]
    #[arg(long, value_enum, value_name = "D")]
    dtype: Option<DtypeArg>,
    /// Folder for the results; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Bag seconds per second, or max: as fast as possible
    #[arg(long, value_name = "X|max", default_value = "max", value_parser = parse_speed)]
    speed: Speed,
}

fn parse_speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.parse::<f64>() {
        Ok(speed) if (0.01..=100.0).contains(&speed) => Ok(Speed::Times(speed)),
        _ => Err("expected max or a number from 0.01 to 100".to_owned()),
    }
}

/// Parameters from a file, or the built-in ones; the command line's checkpoint wins.
pub(super) fn load_config(file: Option<&Path>, checkpoint: Option<String>) -> Result<Config, Failure> {
    let mut config = match file {
        Some(file) => Config::from_file(file)?,
        None => Config::builtin(RobotKind::Aloha)?,
    };
    if let Some(checkpoint) = checkpoint {
        config.checkpoint = checkpoint;
    }
    Ok(config)
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let mut config = load_config(args.config.as_deref(), args.checkpoint)?;
    engine_choice(args.backend.unwrap_or(Backend::Auto), args.dtype)?;
    if let Some(backend) = args.backend {
        config.backend = backend;
    }
    if let Some(dtype) = args.dtype {
        config.dtype = dtype.into();
    }
    // The one may be the file's, the other the command line's.
    if let (Backend::TensorRt(_), DtypeChoice::F32) = (config.backend, config.dtype) {
        engine_choice(config.backend, Some(DtypeArg::F32))?;
    }
    let bag = Bag::open(&args.bag)?;
    fs::create_dir_all(&args.out).map_err(|e| format!("{}: cannot be made: {e}", args.out.display()))?;
    let setup = Setup::open(&config)?;
    let topics = Topics::resolve(&bag, &config, &setup.cameras)?;

    let inference = progress::weights(|told| setup.load(&config, told))?;
    let replay = Replay {
        config: &config,
        cameras: &setup.cameras.names,
        topics: &topics,
        inference,
        speed: args.speed,
    };
    let bar = progress::bar("replay");
    let recording =
        replay.run(&bag, |played, all| progress::set(&bar, (played * 1e3) as u64, (all * 1e3) as u64))?;
    bar.finish_and_clear();

    write_commands(&recording, config.control.command, &args.out.join("commands.mcap"))?;
    write_report(&recording, &args.out)
}

/// Writes `summary.json` and `report.html`, and says how it went.
pub(super) fn write_report(recording: &Recording, folder: &Path) -> Result<Verdict, Failure> {
    let summary = summary(recording);
    let json = serde_json::to_string_pretty(&summary)?;
    write(&folder.join("summary.json"), &(json + "\n"))?;
    let page = folder.join("report.html");
    write(&page, &report::render(recording))?;

    let mut out = stdout();
    writeln!(out, "{}", summary.verdict)?;
    if let Some(rate) = summary.timings.replayed_chunks_per_second {
        writeln!(out, "{}: {rate:.1} chunks per second, the bag's decoding included", summary.engine)?;
    }
    for note in &recording.notes {
        writeln!(out, "note: {note}")?;
    }
    writeln!(out, "report: {}", page.display())?;
    let wanting = summary.level == Level::Violation || recording.chunks.is_empty();
    Ok(if wanting { Verdict::Wanting } else { Verdict::Ok })
}

/// A whole file or none.
fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let written = new_file::write(path, text.as_bytes());
    written.map_err(|e| format!("{}: cannot be written: {e}", path.display()).into())
}
