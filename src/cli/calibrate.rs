//! `pi05 calibrate`: ranges of the activations on real frames, for fp8, and what rounding each layer adds.

use std::io::Write;
use std::path::PathBuf;

use super::frames::{FrameArgs, Frames};
use super::out::stdout;
use super::{Failure, Verdict, engine_choice, progress};
use crate::engine::backend::Backend;
use crate::engine::calibration::{Calibration, Means, Ranges};
use crate::engine::cpu::CpuEngine;
use crate::engine::probe::{Probe, Tap};
use crate::engine::weights::Weights;
use crate::engine::{Choice, Engine, EngineError, check_finite};
use crate::model::ModelInput;
use crate::model::dims::Dims;
use crate::model::names;
use crate::pipeline::Model;
use crate::pipeline::calibrated::{self, Calibrated, Provenance};
use crate::pipeline::recipe::{self, Recipe};
use crate::pipeline::rounding::layer_errors;

/// Measure the ranges of activations on real frames, which fp8 needs; written beside the checkpoint
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
                        pi05 calibrate --checkpoint tests/data/fixtures/tiny --case tests/data/fixtures/tiny/case_b_f32.safetensors\n  \
                        pi05 calibrate --checkpoint synth:tiny --bag tests/data/bags/aloha_sim --samples 8\n\n\
                        Runs vision and prefix in f32 on the CPU, in bf16 on a GPU; then, on the CPU and the first frame, what\n\
                        rounding each layer adds to its output. Frames that are all one colour are refused: ranges of\n\
                        nothing would cut what matters.")]
pub struct Args {
    #[command(flatten)]
    frames: FrameArgs,
    /// Share of a tensor's magnitudes that its range covers, in per cent
    #[arg(long, value_name = "P", default_value_t = PERCENTILE, value_parser = parse_percentile)]
    percentile: f64,
    /// Engine: auto, cpu or cuda
    #[arg(long, default_value = "auto", value_name = "B")]
    backend: Backend,
    /// Say what becomes of the layers by this recipe: balanced, fast, exact, or a file
    #[arg(long, value_name = "R", default_value = recipe::DEFAULT)]
    recipe: String,
    /// Where to write [default: where `--dtype fp8` looks]
    #[arg(long, value_name = "F")]
    out: Option<PathBuf>,
}

/// Share of magnitudes that a range covers, in per cent.
pub(super) const PERCENTILE: f64 = 99.9;

fn parse_percentile(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|p| (0.0..=100.0).contains(p) && *p > 0.0);
    value.ok_or_else(|| "expected a number above 0, up to 100".to_owned())
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let choice = measured_choice(args.backend)?;
    let recipe = Recipe::open(&args.recipe)?;
    let Frames { model, inputs, source, .. } = args.frames.read()?;
    let dims = model.dims()?;
    let weights = progress::weights(|told| model.weights(told))?;
    let mut engine = Engine::new(&weights, dims, choice, None, model.cameras().names.len())?;
    let from = Provenance {
        checkpoint: weights.fingerprint(&dims)?,
        frames: inputs.len(),
        percentile: args.percentile,
        engine: engine.name(),
        source,
    };
    let calibration = ranges(&model, &mut engine, &inputs, &from)?;
    drop(engine);
    let errors = errors(&weights, &dims, &calibration, &inputs[0])?;
    let measured = Calibrated { calibration, errors };
    let path = args.out.unwrap_or_else(|| model.calibration_file());
    calibrated::write(&path, &measured, &from)?;
    let tensors = measured.calibration.ranges().len();
    let mut out = stdout();
    writeln!(out, "{}: {tensors} ranges from {} frames ({})", path.display(), from.frames, from.engine)?;
    let layers = recipe.layers(&dims, &measured.errors)?;
    let kept: Vec<_> = layers.iter().filter(|layer| layer.kept.is_some()).map(|layer| &*layer.name).collect();
    writeln!(
        out,
        "recipe {}: {} of {} layers in e4m3{}{}",
        recipe.name,
        layers.len() - kept.len(),
        layers.len(),
        if kept.is_empty() { "" } else { "; in bf16: " },
        kept.join(", ")
    )?;
    Ok(Verdict::Ok)
}

/// An engine that can be looked into.
pub(super) fn measured_choice(backend: Backend) -> Result<Choice, Failure> {
    if let Backend::TensorRt(_) = backend {
        let reason = "expected auto, cpu or cuda: TensorRT does not show what is inside of a stage";
        return Err(format!("--backend {backend}: {reason}").into());
    }
    engine_choice(backend, None)
}

/// Ranges and means of all that fp8 could round.
pub(super) fn ranges(
    model: &Model,
    engine: &mut Engine,
    inputs: &[ModelInput],
    from: &Provenance,
) -> Result<Calibration, Failure> {
    let mut seen = Ranges::new(from.percentile);
    look("frames", engine, inputs, &mut seen)?;
    let names = names::quantised(engine.dims());
    let seen = seen.calibration();
    for name in &names {
        let range = seen.ranges().get(name).copied();
        check_finite(name, range.as_slice()).map_err(|e| format!("{}: {e}", model.name()))?;
    }
    let ranges = seen.only(names.iter().map(String::as_str));
    let ranges = ranges.map_err(|e| format!("{}: {} is not above zero", from.source, e.0))?;
    let dims = *engine.dims();
    let width = |name: &str| names::quantised_width(&dims, name);
    let mut means = Means::new(&ranges, &width);
    look("means", engine, inputs, &mut means)?;
    let means = means.means();
    Ok(ranges.with_means(means))
}

/// Vision and prefix of all inputs, seen by a probe.
fn look(
    what: &'static str,
    engine: &mut Engine,
    inputs: &[ModelInput],
    probe: &mut dyn Probe,
) -> Result<(), EngineError> {
    let bar = progress::bar(what);
    for (i, input) in inputs.iter().enumerate() {
        let features = engine.vision(&input.images, &mut Tap::new(probe))?;
        engine.prefix(&features, &input.tokens, &mut Tap::new(probe))?;
        progress::set(&bar, i as u64 + 1, inputs.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Two engines on the CPU: an exact one, and one that rounds.
pub(super) fn plain_and_rounded(
    weights: &Weights,
    dims: &Dims,
    calibration: &Calibration,
) -> Result<[CpuEngine; 2], EngineError> {
    let engine = |calibration| {
        let engine = CpuEngine::new(weights, *dims, calibration);
        engine.map_err(|e| EngineError::Missing(e.name().to_owned()))
    };
    Ok([engine(None)?, engine(Some(calibration))?])
}

/// By layer, what rounding all of its matrices adds to its output.
pub(super) fn errors(
    weights: &Weights,
    dims: &Dims,
    calibration: &Calibration,
    input: &ModelInput,
) -> Result<std::collections::BTreeMap<String, f32>, Failure> {
    let [mut plain, mut rounded] = plain_and_rounded(weights, dims, calibration)?;
    let cameras = input.images.iter().flatten().count();
    let all = (cameras * dims.vision.layers + dims.language.layers) as u64;
    let (bar, mut done) = (progress::bar("layers"), 0);
    let errors = layer_errors(&mut plain, &mut rounded, input, || {
        done += 1;
        progress::set(&bar, done, all);
    })?;
    bar.finish_and_clear();
    Ok(errors)
}
