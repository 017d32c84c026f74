//! `pi05 calibrate`: ranges of the activations on real frames, for fp8.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::ArgGroup;

use super::replay::load_config;
use super::{BackendArg, Failure, Verdict, engine_choice, progress};
use crate::engine::Engine;
use crate::engine::calibration::{Calibration, Ranges};
use crate::engine::probe::Tap;
use crate::model::names;
use crate::model::{ModelInput, Pixels};
use crate::pipeline::Model;
use crate::pipeline::calibrated::{self, Provenance};
use crate::pipeline::setup::Setup;
use crate::replay::bag::Bag;
use crate::replay::observations::observations;
use crate::replay::topics::Topics;
use crate::verify::Case;

/// Measure the ranges of activations on real frames, which fp8 needs; written beside the checkpoint
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
                        pi05 calibrate --checkpoint tests/data/fixtures/tiny --case tests/data/fixtures/tiny/case_b_f32.safetensors\n  \
                        pi05 calibrate --checkpoint synth:tiny --bag tests/data/bags/aloha_sim --samples 8\n\n\
                        Runs vision and prefix in f32 on the CPU, in bf16 on a GPU. Frames that are all one colour are refused:\n\
                        ranges of nothing would cut what matters.")]
#[command(group = ArgGroup::new("inputs").args(["case", "bag"]).required(true))]
pub struct Args {
    /// Checkpoint folder, synth:tiny or synth:full [default: parameter `checkpoint`]
    #[arg(long, value_name = "D")]
    checkpoint: Option<String>,
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(long, value_name = "B")]
    bag: Option<PathBuf>,
    /// Recorded case
    #[arg(long, value_name = "CASE.safetensors")]
    case: Option<PathBuf>,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Observations taken from a bag, evenly spread
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    samples: u32,
    /// Share of a tensor's magnitudes that its range covers, in per cent
    #[arg(long, value_name = "P", default_value_t = 99.9, value_parser = parse_percentile)]
    percentile: f64,
    /// Engine
    #[arg(long, value_enum, default_value = "auto", value_name = "B")]
    backend: BackendArg,
    /// Where to write [default: where `--dtype fp8` looks]
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

fn parse_percentile(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|p| (50.0..=100.0).contains(p));
    value.ok_or_else(|| "expected a number from 50 to 100".to_owned())
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let choice = engine_choice(args.backend, None)?;
    let (model, inputs, source) = match &args.case {
        Some(path) => {
            let name = args.checkpoint.as_deref().ok_or("--case: needs --checkpoint too")?;
            let model = Model::open_network(name)?;
            let input = Case::read(path, &model.dims()?)?.start().input;
            (model, vec![input], path.display().to_string())
        }
        None => from_bag(&args)?,
    };
    for (i, input) in inputs.iter().enumerate() {
        check(input).map_err(|why| format!("{source}: frame {}: {why}", i + 1))?;
    }
    let dims = model.dims()?;
    let bar = progress::bar("weights");
    let weights = model.weights(|made, all| progress::set(&bar, made as u64, all as u64))?;
    bar.finish_and_clear();
    let mut engine = Engine::new(&weights, dims, choice, None, model.cameras().names.len())?;
    let mut ranges = Ranges::new(args.percentile);
    let bar = progress::bar("frames");
    for (i, input) in inputs.iter().enumerate() {
        look(&mut engine, input, &mut ranges)?;
        progress::set(&bar, i as u64 + 1, inputs.len() as u64);
    }
    bar.finish_and_clear();
    let seen = ranges.calibration();
    let range = |name: String| match seen.range(&name) {
        Ok(range) => Ok((name, range)),
        Err(_) => Err(format!("{source}: {name}: no range above zero was seen")),
    };
    let ranges = names::quantised(&dims).into_iter().map(range).collect::<Result<Vec<_>, _>>()?;
    let calibration = Calibration::from_ranges(ranges);
    let from = Provenance {
        checkpoint: weights.fingerprint(&dims)?,
        frames: inputs.len(),
        percentile: args.percentile,
        engine: format!("{} {}", engine.backend(), engine.precision()),
        source,
    };
    let path = args.out.unwrap_or_else(|| model.calibration_file());
    calibrated::write(&path, &calibration, &from)?;
    let (tensors, frames) = (calibration.ranges().len(), from.frames);
    writeln!(io::stdout(), "{}: {tensors} ranges from {frames} frames ({})", path.display(), from.engine)?;
    Ok(Verdict::Ok)
}

fn look(engine: &mut Engine, input: &ModelInput, ranges: &mut Ranges) -> Result<(), Failure> {
    let features = engine.vision(&input.images, &mut Tap::new(ranges))?;
    engine.prefix(&features, &input.tokens, &mut Tap::new(ranges))?;
    Ok(())
}

fn from_bag(args: &Args) -> Result<(Model, Vec<ModelInput>, String), Failure> {
    let config = load_config(args.config.as_deref(), args.checkpoint.clone())?;
    let path = args.bag.as_deref().ok_or("expected --bag or --case")?;
    let bag = Bag::open(path)?;
    let setup = Setup::open(&config)?;
    let topics = Topics::resolve(&bag, &config, &setup.cameras)?;
    let found = observations(&bag, &config, &setup.cameras.names, &topics, args.samples as usize)?;
    if found.is_empty() {
        let path = path.display();
        return Err(format!("{path}: no complete observation: `pi05 replay` says what is missing").into());
    }
    let inputs =
        found.iter().map(|(observation, prompt)| Ok(setup.policy.encode(observation, prompt)?.input));
    let inputs = inputs.collect::<Result<_, Failure>>()?;
    Ok((setup.model, inputs, path.display().to_string()))
}

/// Whether a frame can tell ranges: images that show something.
fn check(input: &ModelInput) -> Result<(), &'static str> {
    fn is_flat<T: PartialEq>(pixels: &[T]) -> bool {
        pixels.windows(2).all(|pair| pair[0] == pair[1])
    }
    let mut present = input.images.iter().flatten().peekable();
    if present.peek().is_none() {
        return Err("no camera image; calibrate on frames of all cameras");
    }
    let flat = |image: &Pixels| match image {
        Pixels::U8(data) => is_flat(data),
        Pixels::F32(data) => is_flat(data),
    };
    if present.any(flat) {
        return Err("a camera image is all one colour; calibrate on real frames");
    }
    Ok(())
}
