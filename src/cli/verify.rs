//! `pi05 verify`: recorded cases of the reference implementations against the engine.

use std::io::Write;
use std::path::PathBuf;

use super::out::stdout;
use super::{DtypeArg, Failure, Verdict, engine_choice, progress};
use crate::engine::Precision;
use crate::engine::backend::Backend;
use crate::pipeline::{Model, StageTimes, recipe};
use crate::printable::printable;
use crate::verify::{Case, Likeness};

/// Compare the engine with a recorded run of the reference implementation, stage by stage
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 verify --checkpoint tests/data/fixtures/tiny \
                        tests/data/fixtures/tiny/case_a_f32.safetensors\n\n\
                        Needs weights and config.json only: no tokenizer, no statistics.\n\
                        Exit code 1 if any stage is out of tolerance.")]
pub struct Args {
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D")]
    checkpoint: String,
    /// Recorded cases
    #[arg(required = true, value_name = "CASE.safetensors")]
    cases: Vec<PathBuf>,
    /// Engine: auto, cpu, cuda, tensorrt, or each stage's, as vision=tensorrt,prefix=tensorrt,denoise=cuda
    #[arg(long, default_value = "auto", value_name = "B")]
    backend: Backend,
    /// Number format of the engine [default: bf16 on cuda, f32 on cpu]
    #[arg(long, value_enum, value_name = "D")]
    dtype: Option<DtypeArg>,
    /// What fp8 rounds: balanced, fast, exact, or a recipe's file
    #[arg(long, value_name = "R", default_value = recipe::DEFAULT)]
    recipe: String,
}

/// An inference that takes less than this is repeated for its time.
const QUICK_MS: f64 = 500.0;
/// Least cosine between a chunk and the recorded one.
const COSINE: f64 = 0.9995;
/// The same in fp8.
const FP8_COSINE: f64 = 0.999;
/// Largest relative mean square error of a chunk: what its cosine allows.
const MSE: f64 = 1e-3;
/// The same in fp8.
const FP8_MSE: f64 = 6e-3;
/// How often.
const WARM_RUNS: usize = 21;

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let choice = engine_choice(args.backend, args.dtype)?;
    let model = Model::open_network(&args.checkpoint)?;
    let cases = args.cases.iter().map(|path| Case::read(path, &model)).collect::<Result<Vec<_>, _>>()?;
    let mut engine = progress::weights(|told| model.load_by(&args.recipe, choice, told))?;

    let mut out = stdout();
    let mut failed = 0;
    let mut compared = 0;
    let mut askew = false;
    for (path, case) in args.cases.iter().zip(&cases) {
        let outcome = case.run(&mut engine)?;
        writeln!(
            out,
            "{}  ({} {}, {})",
            path.display(),
            engine.backend(),
            engine.precision(),
            args.checkpoint
        )?;
        writeln!(out, "{:<50} {:>10} {:>10} {:>10}", "stage", "max |Δ|", "rms Δ", "tolerance")?;
        for stage in &outcome.comparisons {
            let verdict = if stage.ok() { "ok" } else { "FAIL" };
            let (name, max, rms) = (printable(&stage.stage), stage.max, stage.rms);
            let tolerance = stage.tolerance;
            match &stage.misfit {
                Some(misfit) => writeln!(out, "{name:<50} {misfit}  {verdict}")?,
                None => writeln!(out, "{name:<50} {max:>10.2e} {rms:>10.2e} {tolerance:>10.1e}  {verdict}")?,
            }
            failed += usize::from(!stage.ok());
        }
        if let Some(Likeness { cosine, relative_mse }) = outcome.likeness {
            let (least, most) = match engine.precision() {
                Precision::Fp8 => (FP8_COSINE, FP8_MSE),
                _ => (COSINE, MSE),
            };
            let is_like = cosine >= least && relative_mse <= most; // false for NaN
            let verdict = if is_like { "ok" } else { "FAIL" };
            writeln!(
                out,
                "the chunk and the recorded one: cosine {cosine:.7}, relative mean square error {:.4} %  {verdict}",
                relative_mse * 100.0
            )?;
            askew |= !is_like;
        }
        compared += outcome.comparisons.len();
        // A small network's first run is mostly cold pages: it is run again, unobserved, and the median counts.
        let mut runs = if outcome.times.total_ms() < QUICK_MS {
            (0..WARM_RUNS).map(|_| case.times(&mut engine)).collect::<Result<_, _>>()?
        } else {
            vec![outcome.times]
        };
        runs.sort_by(|a, b| a.total_ms().total_cmp(&b.total_ms()));
        let median = runs[runs.len() / 2];
        let StageTimes { vision_ms, prefix_ms, denoise_ms } = median;
        writeln!(
            out,
            "took {:.1} ms: vision {vision_ms:.1}, prefix {prefix_ms:.1}, denoise {denoise_ms:.1} (median of {})",
            median.total_ms(),
            runs.len()
        )?;
        if !outcome.skipped.is_empty() {
            let skipped: Vec<_> = outcome.skipped.iter().map(|key| printable(key)).collect();
            writeln!(out, "not compared (masked, or no stage of this engine): {}", skipped.join(", "))?;
        }
    }
    if failed == 0 && askew {
        writeln!(out, "FAIL: every stage within tolerance, but a chunk is too unlike the recorded one")?;
        Ok(Verdict::Wanting)
    } else if failed == 0 {
        writeln!(out, "ok: {compared} stages within tolerance")?;
        Ok(Verdict::Ok)
    } else {
        writeln!(out, "FAIL: {failed} of {compared} stages out of tolerance")?;
        Ok(Verdict::Wanting)
    }
}
