//! `pi05 quantize-report`: what fp8 costs in exactness, layer by layer and stage by stage, and what it gains in time.

use std::io::Write;
use std::time::Duration;

use super::bench::{Chunk, Latency, sequential};
use super::bench_gpu::warm_up;
use super::calibrate::{PERCENTILE, errors, measured_choice, plain_and_rounded, ranges};
use super::frames::{FrameArgs, Frames};
use super::out::stdout;
use super::{Failure, Verdict, progress};
use crate::engine::backend::Backend;
use crate::engine::calibration::Calibration;
use crate::engine::cpu::{CpuEngine, Features};
use crate::engine::probe::{Probe, Tap};
use crate::engine::weights::Weights;
use crate::engine::{Choice, Engine, EngineError, Precision, check_finite};
use crate::model::dims::Dims;
use crate::model::sampler::Sampler;
use crate::model::sampler::rtc::Rtc;
use crate::pipeline::calibrated::{self, Calibrated, Provenance};
use crate::pipeline::recipe::{self, Kept, Recipe};
use crate::pipeline::rounding::squares;
use crate::pipeline::{Model, infer};
use crate::verify::Likeness;

/// What fp8 adds in error and gains in time, layer by layer and stage by stage
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  pi05 quantize-report --checkpoint synth:tiny --bag tests/data/bags/aloha_sim --recipe balanced\n\n\
                        Errors are relative mean squares, of the CPU's emulation of e4m3 against its f32, on the first frame:\n\
                        of a layer's output (of the prefix's last layer, keys and values) with that layer alone in e4m3, fed\n\
                        with exact values; of a stage's output with that stage alone; of the chunk. Times are of the GPU, if\n\
                        there is one: a stage's in bf16 less its time in fp8, shared out among its layers in e4m3, which all do\n\
                        the same work. Without a calibration beside the checkpoint one is made from these frames, and not kept."
)]
pub struct Args {
    #[command(flatten)]
    frames: FrameArgs,
    /// What fp8 rounds: balanced, fast, exact, or a recipe's file
    #[arg(long, value_name = "R", default_value = recipe::DEFAULT)]
    recipe: String,
    /// Engine whose times count: auto, cpu or cuda
    #[arg(long, default_value = "auto", value_name = "B")]
    backend: Backend,
}

/// Inferences that a stage's time is the median of.
const RUNS: u32 = 50;

/// A stage's milliseconds on the GPU.
struct Times {
    bf16: [f64; 2],
    fp8: [f64; 2],
    /// Of the GPU's chunk in fp8 to the exact one.
    likeness: Option<Likeness>,
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let choice = measured_choice(args.backend)?.resolved();
    let recipe = Recipe::open(&args.recipe)?;
    let Frames { model, inputs, noise, source } = args.frames.read()?;
    let dims = model.dims()?;
    let weights = progress::weights(|told| model.weights(told))?;

    let file = model.calibration_file();
    let mut out = stdout();
    let measured = if file.exists() {
        writeln!(out, "ranges of {}", file.display())?;
        calibrated::read(&file, &weights.fingerprint(&dims)?)?
    } else {
        writeln!(out, "ranges of these {} frames: no {} is there", inputs.len(), file.display())?;
        let mut engine = Engine::new(&weights, dims, Choice::Cpu, None, model.cameras().names.len())?;
        let from = Provenance {
            checkpoint: String::new(),
            frames: inputs.len(),
            percentile: PERCENTILE,
            engine: engine.name(),
            source,
        };
        let calibration = ranges(&model, &mut engine, &inputs, &from)?;
        let errors = errors(&weights, &dims, &calibration, &inputs[0])?;
        Calibrated { calibration, errors }
    };
    let (chosen, layers) = measured.by(&recipe, &dims, &file)?;
    let sampler = Sampler::euler(model.denoise_steps(), model.time_rounding());
    let chunk = Chunk { input: inputs.into_iter().next().ok_or("no frame")?, noise, sampler };

    // What this recipe's matrices add, whatever the bound then says of their layer.
    let unbound = recipe.clone().without_bound();
    let (candidates, _) = measured.by(&unbound, &dims, &file)?;
    let layer_errors = errors(&weights, &dims, &candidates, &chunk.input)?;
    let stages =
        Stages::of(&weights, &dims, &chosen, &chunk).map_err(|e| format!("{}: {e}", model.name()))?;
    let times = match choice {
        Choice::Cuda(_) => Some(times(&model, &weights, &dims, &chosen, &chunk, &stages.exact)?),
        _ => None,
    };

    let gained = |stage: usize| {
        let times = times.as_ref()?;
        let name = ["vision.", "prefix."][stage];
        let count = layers.iter().filter(|l| l.name.starts_with(name) && l.kept.is_none()).count();
        Some((times.bf16[stage] - times.fp8[stage]) * 1e3 / count.max(1) as f64)
    };
    writeln!(out, "{:<18} {:>10} {:>9}  e4m3", "layer", "error", "gains µs")?;
    for layer in &layers {
        let error = layer_errors.get(&layer.name).copied().unwrap_or_default();
        let gain = gained(usize::from(layer.name.starts_with("prefix"))).filter(|_| layer.kept.is_none());
        let gain = gain.map_or("-".to_owned(), |us| format!("{us:.1}"));
        let what = match (layer.kept, recipe.error_bound) {
            (None, _) => layer.matrices.join(", "),
            (Some(Kept::Listed), _) => format!("none: recipe {} leaves it in bf16", recipe.name),
            (Some(Kept::Error(error)), bound) => {
                format!(
                    "none: all of it adds {error:.1e}, above the bound of {:.1e}",
                    bound.unwrap_or_default()
                )
            }
        };
        writeln!(out, "{:<18} {error:>10.2e} {gain:>9}  {what}", layer.name)?;
    }
    writeln!(out, "{:<18} {:>10} {:>9} {:>9} {:>9}", "stage", "error", "bf16 ms", "fp8 ms", "gains ms")?;
    for (stage, (name, error)) in
        [("vision", stages.vision), ("prefix", stages.prefix)].into_iter().enumerate()
    {
        let ms = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.3}"));
        let (bf16, fp8) = (times.as_ref().map(|t| t.bf16[stage]), times.as_ref().map(|t| t.fp8[stage]));
        let gain = bf16.zip(fp8).map(|(bf16, fp8)| bf16 - fp8);
        writeln!(out, "{name:<18} {error:>10.2e} {:>9} {:>9} {:>9}", ms(bf16), ms(fp8), ms(gain))?;
    }
    let Likeness { cosine, relative_mse } = stages.chunk;
    writeln!(
        out,
        "chunk, emulated on the CPU: relative mean square error {relative_mse:.2e}, cosine {cosine:.7}"
    )?;
    if let Some(Likeness { cosine, relative_mse }) = times.and_then(|times| times.likeness) {
        writeln!(
            out,
            "chunk, on the GPU: relative mean square error {relative_mse:.2e}, cosine {cosine:.7}"
        )?;
    }
    let rounded = layers.iter().filter(|layer| layer.kept.is_none()).count();
    writeln!(out, "recipe {}: {rounded} of {} layers in e4m3", recipe.name, layers.len())?;
    Ok(Verdict::Ok)
}

/// What rounding the chosen tensors adds to each stage's output.
struct Stages {
    vision: f64,
    prefix: f64,
    chunk: Likeness,
    /// The chunk in f32.
    exact: Vec<f32>,
}

impl Stages {
    fn of(weights: &Weights, dims: &Dims, chosen: &Calibration, chunk: &Chunk) -> Result<Self, Failure> {
        let [mut plain, mut rounded] = plain_and_rounded(weights, dims, chosen)?;
        let bar = progress::bar("stages");
        let vision = |engine: &mut CpuEngine| {
            let mut seen = Outputs(Vec::new());
            let features = engine.vision(&chunk.input.images, &mut Tap::new(&mut seen))?;
            Ok::<_, EngineError>((features, seen.0))
        };
        let prefix = |engine: &mut CpuEngine, features: &Features| {
            let mut seen = Outputs(Vec::new());
            let kv = engine.prefix(features, &chunk.input.tokens, &mut Tap::new(&mut seen))?;
            Ok::<_, EngineError>((kv, seen.0))
        };
        let actions = |engine: &mut CpuEngine, kv| {
            engine.denoise(kv, &chunk.noise, &chunk.sampler, &Rtc::Off, &mut Tap::none())
        };
        progress::set(&bar, 0, 5);
        let (features, exact_seen) = vision(&mut plain)?;
        let (rounded_features, seen) = vision(&mut rounded)?;
        let vision = relative(&seen, &exact_seen);
        progress::set(&bar, 1, 5);
        let (kv, exact_seen) = prefix(&mut plain, &features)?;
        progress::set(&bar, 2, 5);
        let (_, seen) = prefix(&mut rounded, &features)?;
        progress::set(&bar, 3, 5);
        let exact = actions(&mut plain, &kv)?;
        check_finite("actions", &exact)?;
        let (kv, _) = prefix(&mut rounded, &rounded_features)?;
        progress::set(&bar, 4, 5);
        let found = actions(&mut rounded, &kv)?;
        bar.finish_and_clear();
        let chunk = likeness(&found, &exact).ok_or("a chunk of another length")?;
        Ok(Self { vision, prefix: relative(&seen, &exact_seen), chunk, exact })
    }
}

/// What stages give: features; keys and values of all layers.
struct Outputs(Vec<f32>);

impl Probe for Outputs {
    fn wants(&self, name: &str) -> bool {
        name.starts_with("vision.projected.") || name.starts_with("prefix.kv.")
    }

    fn record(&mut self, name: &str, data: &[f32]) {
        if self.wants(name) {
            self.0.extend(data);
        }
    }
}

fn relative(found: &[f32], exact: &[f32]) -> f64 {
    let [wrong, all] = squares(found, exact);
    wrong / all
}

fn likeness(found: &[f32], exact: &[f32]) -> Option<Likeness> {
    Likeness::of(found, &exact.iter().map(|&x| f64::from(x)).collect::<Vec<_>>())
}

/// Both formats' times on the GPU.
fn times(
    model: &Model,
    weights: &Weights,
    dims: &Dims,
    chosen: &Calibration,
    chunk: &Chunk,
    exact: &[f32],
) -> Result<Times, Failure> {
    let mut found = None;
    let mut measure = |precision| {
        let cameras = model.cameras().names.len();
        let mut engine = Engine::new(weights, *dims, Choice::Cuda(precision), Some(chosen), cameras)?;
        warm_up(&mut engine, chunk, Duration::ZERO)?;
        let runs = sequential(&mut engine, chunk, Duration::ZERO, RUNS)?;
        if precision == Precision::Fp8 {
            let Chunk { input, noise, sampler } = chunk;
            found = Some(infer(&mut engine, input, noise, sampler, &Rtc::Off, &mut Tap::none())?.0);
        }
        let p50 = |stage: fn(&super::bench::Run) -> f64| Latency::of(&runs, stage).p50;
        Ok::<_, Failure>([p50(|run| run.stages.vision_ms), p50(|run| run.stages.prefix_ms)])
    };
    let (bf16, fp8) = (measure(Precision::Bf16)?, measure(Precision::Fp8)?);
    Ok(Times { bf16, fp8, likeness: found.and_then(|found| likeness(&found, exact)) })
}
