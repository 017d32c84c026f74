//! `pi05 engines`: TensorRT engines from a checkpoint, and what is in a folder of them.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};

use super::out::stdout;
use super::{Failure, Verdict};
use crate::engine::cuda::CudaEngine;
use crate::engine::tensorrt::manifest::{Here, Manifest};
use crate::engine::tensorrt::stages::{Format, Stage};
use crate::pipeline::Model;

/// Build TensorRT engines from a checkpoint, list them, check them
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  pi05 engines build --checkpoint D --stages vision,prefix --dtype bf16 --out engines\n  \
                        pi05 engines list\n  pi05 engines check --checkpoint D\n\n\
                        An engine is for one checkpoint, one GPU and one version of TensorRT; its manifest says which."
)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Build engines for the present GPU
    Build(Build),
    /// What engines there are
    List(Folder),
    /// Compare engines with their manifests, this machine and a checkpoint; exit code 1 if anything does not fit
    Check(Check),
}

#[derive(clap::Args)]
struct Build {
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D")]
    checkpoint: String,
    /// Stages to build
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["vision", "prefix", "denoise"], value_name = "S")]
    stages: Vec<StageArg>,
    /// Number format; fp8 leaves the denoise stage in bf16
    #[arg(long, value_enum, default_value = "bf16", value_name = "D")]
    dtype: FormatArg,
    /// Folder for plans, manifests and the timing cache
    #[arg(long, default_value = "engines", value_name = "DIR")]
    out: PathBuf,
    /// Ranges of activations, for fp8 [default: calibration.safetensors in the checkpoint's folder]
    #[arg(long, value_name = "F")]
    calibration: Option<PathBuf>,
    /// Camera images that the engines take [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16))]
    cameras: Option<u32>,
    /// Prompt tokens that the engines take; shorter prompts are padded and masked [default: the checkpoint's most]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    tokens: Option<u32>,
    /// Actions of a chunk [default: the checkpoint's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    horizon: Option<u32>,
    /// Let the denoise stage take clean actions: for `control.execution: rtc_trained`
    #[arg(long)]
    rtc_trained: bool,
    /// With TensorRT-RTX: build for this compute capability, such as 12.0, GPU or not
    #[arg(long, value_name = "X.Y", value_parser = capability)]
    compute_capability: Option<i32>,
}

#[derive(clap::Args)]
struct Folder {
    /// Folder of engines
    #[arg(long, default_value = "engines", value_name = "DIR")]
    out: PathBuf,
}

#[derive(clap::Args)]
struct Check {
    #[command(flatten)]
    folder: Folder,
    /// Checkpoint that the engines are to be of
    #[arg(long, value_name = "D")]
    checkpoint: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum StageArg {
    /// SigLIP and projector.
    Vision,
    /// Gemma-2B.
    Prefix,
    /// One evaluation of the action expert.
    Denoise,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormatArg {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    Fp16,
    /// e4m3 where it pays.
    Fp8,
}

impl From<StageArg> for Stage {
    fn from(stage: StageArg) -> Self {
        match stage {
            StageArg::Vision => Stage::Vision,
            StageArg::Prefix => Stage::Prefix,
            StageArg::Denoise => Stage::Denoise,
        }
    }
}

impl From<FormatArg> for Format {
    fn from(format: FormatArg) -> Self {
        match format {
            FormatArg::Bf16 => Format::Bf16,
            FormatArg::Fp16 => Format::Fp16,
            FormatArg::Fp8 => Format::Fp8,
        }
    }
}

/// `12.0` as 120.
fn capability(text: &str) -> Result<i32, String> {
    let parts =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    match parts {
        Some((major @ 1..=99, minor @ 0..=9)) => Ok(major * 10 + minor),
        _ => Err("expected a compute capability such as 12.0".into()),
    }
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    match args.what {
        What::Build(args) => build(args),
        What::List(args) => list(&args.out),
        What::Check(args) => check(&args),
    }
}

#[cfg(not(feature = "tensorrt"))]
fn build(_: Build) -> Result<Verdict, Failure> {
    Err(crate::engine::tensorrt::error::TensorRtError::NotBuilt.into())
}

#[cfg(feature = "tensorrt")]
fn build(args: Build) -> Result<Verdict, Failure> {
    use super::progress;
    use crate::engine::tensorrt::plan::{Builder, Request};
    use crate::engine::tensorrt::stages::Sizes;
    use crate::pipeline::calibrated;

    // Before anything that takes long.
    let builder = Builder::new(args.compute_capability)?;
    let model = Model::open_network(&args.checkpoint)?;
    let dims = model.dims()?;
    let format = Format::from(args.dtype);
    let sizes = Sizes {
        cameras: args.cameras.map_or(model.cameras().names.len(), |n| n as usize),
        prompt: args.tokens.map_or(dims.max_tokens, |n| n as usize),
        horizon: args.horizon.map_or(dims.horizon, |n| n as usize),
    };
    let weights = progress::weights(|told| model.weights(told))?;
    let checkpoint_sha256 = weights.fingerprint(&dims)?;
    let calibration = match format {
        Format::Fp8 => {
            let file = args.calibration.unwrap_or_else(|| model.calibration_file());
            Some(calibrated::read(&file, &checkpoint_sha256)?.calibration)
        }
        _ => None,
    };
    let request = Request {
        checkpoint: &args.checkpoint,
        checkpoint_sha256: &checkpoint_sha256,
        weights: &weights,
        dims: &dims,
        sizes,
        format,
        trained: args.rtc_trained,
        calibration: calibration.as_ref(),
        out: &args.out,
    };
    for stage in args.stages {
        let stage = Stage::from(stage);
        let bar = progress::bar(stage.name());
        let on_progress = |_: &str, done: usize, all: usize| progress::set(&bar, done as u64, all as u64);
        let (path, manifest) = builder.build(stage, &request, &on_progress)?;
        bar.finish_and_clear();
        let (mib, seconds) = (manifest.plan_bytes as f64 / f64::from(1 << 20), manifest.build_s);
        writeln!(stdout(), "{}: {mib:.1} MiB in {seconds:.1} s", Manifest::plan(&path).display())?;
    }
    Ok(Verdict::Ok)
}

fn list(folder: &Path) -> Result<Verdict, Failure> {
    let mut out = stdout();
    let all = Manifest::all(folder)?;
    if all.is_empty() {
        writeln!(out, "{}: no engines; `pi05 engines build` makes them", folder.display())?;
        return Ok(Verdict::Ok);
    }
    writeln!(
        out,
        "{:<8} {:<5} {:>9}  {:<5} {:<20} {:<22} shapes",
        "stage", "dtype", "MiB", "GPU", "library", "checkpoint"
    )?;
    for (_, m) in &all {
        writeln!(
            out,
            "{:<8} {:<5} {:>9.1}  {:<5} {:<20} {:<22} {} cameras, {} tokens, {} actions",
            m.stage,
            m.dtype,
            m.plan_bytes as f64 / f64::from(1 << 20),
            m.compute_capability,
            m.tensorrt,
            m.checkpoint,
            m.cameras,
            m.prompt,
            m.horizon
        )?;
    }
    Ok(Verdict::Ok)
}

fn check(args: &Check) -> Result<Verdict, Failure> {
    let mut out = stdout();
    let folder = &args.folder.out;
    let all = Manifest::all(folder)?;
    if all.is_empty() {
        writeln!(out, "{}: no engines; `pi05 engines build` makes them", folder.display())?;
        return Ok(Verdict::Wanting);
    }
    let mut here = Here::default();
    if let Some(checkpoint) = &args.checkpoint {
        let model = Model::open_network(checkpoint)?;
        here.checkpoint_sha256 = Some(model.weights(|_, _| {})?.fingerprint(&model.dims()?)?);
    }
    match CudaEngine::present() {
        Ok((_, capability)) => {
            here.compute_capability = Some(format!("{}.{}", capability / 10, capability % 10))
        }
        Err(reason) => writeln!(out, "not compared with a GPU: {reason}")?,
    }
    match library() {
        Ok(name) => here.tensorrt = Some(name),
        Err(reason) => writeln!(out, "not compared with a library: {reason}")?,
    }
    let mut verdict = Verdict::Ok;
    for (path, manifest) in &all {
        match manifest.fits(path, &here).and_then(|()| manifest.plan_is_whole(path, true)) {
            Ok(()) => writeln!(out, "ok: {}", Manifest::plan(path).display())?,
            Err(e) => {
                writeln!(out, "FAIL: {e}")?;
                verdict = Verdict::Wanting;
            }
        }
    }
    Ok(verdict)
}

/// The TensorRT that is here.
fn library() -> Result<String, Failure> {
    #[cfg(feature = "tensorrt")]
    {
        use crate::engine::tensorrt::{plan::library_name, safe::Library};
        Ok(library_name(&*Library::open()?))
    }
    #[cfg(not(feature = "tensorrt"))]
    Err(crate::engine::tensorrt::error::TensorRtError::NotBuilt.into())
}
