//! `pi05 bench`: how long an inference takes, and how far that is from what the machine could do.

use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

#[cfg(feature = "ros")]
use super::bench_ros;
use super::{BackendArg, DtypeArg, Failure, Verdict, bench_control, progress, require_cpu};
use crate::engine::cpu::peak_flops;
use crate::engine::probe::Tap;
use crate::model::dims::Work;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{Sampler, noise};
use crate::model::{ModelInput, Pixels, synth};
use crate::pipeline::{Model, StageTimes, infer};
use crate::replay::summary::percentile;

/// Measure the latency of an inference, stage by stage
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 bench --checkpoint synth:tiny --workload B --runs 50\n\n\
                        A: 2 cameras, 20 prompt tokens, 10 actions. B: 3 cameras, 200 prompt tokens, 50 actions.\n\
                        10 denoise steps, batch 1. The roofline is the work at the speed of one large matrix product,\n\
                        measured in the same run.")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Engine
    #[arg(long, value_enum, default_value = "auto", value_name = "B")]
    backend: BackendArg,
    /// What one inference works on
    #[arg(long, value_enum, ignore_case = true, default_value = "B", value_name = "A|B")]
    workload: Workload,
    /// Number format of the engine [default: f32]
    #[arg(long, value_enum, value_name = "D")]
    dtype: Option<DtypeArg>,
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D", default_value = "synth:full")]
    checkpoint: String,
    /// Inferences measured, after one that warms up
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum What {
    Control(bench_control::Args),
    #[cfg(feature = "ros")]
    Ros(bench_ros::Args),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
enum Workload {
    /// 2 cameras, 20 prompt tokens, horizon 10.
    #[value(name = "A")]
    A,
    /// 3 cameras, 200 prompt tokens, horizon 50.
    #[value(name = "B")]
    B,
}

/// Denoise steps of both workloads.
const STEPS: usize = 10;

#[derive(Serialize)]
struct Results {
    backend: &'static str,
    dtype: &'static str,
    checkpoint: String,
    workload: Workload,
    runs: u32,
    threads: usize,
    load_s: f64,
    vision_ms: Latency,
    prefix_ms: Latency,
    denoise_ms: Latency,
    total_ms: Latency,
    gflop: f64,
    gemm_gflops: f64,
    roofline_ms: f64,
    ratio_to_roofline: f64,
    peak_memory_mib: Option<u64>,
}

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Latency {
    fn of(times: &[StageTimes], stage: impl Fn(&StageTimes) -> f64) -> Self {
        let mut sorted: Vec<f64> = times.iter().map(stage).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |p| percentile(&sorted, p).unwrap_or(f64::NAN);
        Self { p50: at(50.0), p90: at(90.0), p99: at(99.0) }
    }
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    match args.what {
        Some(What::Control(args)) => return bench_control::run(&args),
        #[cfg(feature = "ros")]
        Some(What::Ros(args)) => return bench_ros::run(&args),
        None => {}
    }
    require_cpu(args.backend, args.dtype)?;
    let model = Model::open_network(&args.checkpoint)?;
    let dims = model.dims()?;
    let (cameras, tokens, horizon) = match args.workload {
        Workload::A => (2, 20, 10),
        Workload::B => (3, 200, 50),
    };
    let loading = Instant::now();
    let bar = progress::bar("weights");
    let mut engine = model.load(|made, all| progress::set(&bar, made as u64, all as u64))?;
    bar.finish_and_clear();
    let load_s = loading.elapsed().as_secs_f64();

    let side = dims.vision.image;
    let image = |c: usize| Some(Pixels::U8(synth::bytes(&format!("bench.image.{c}"), side * side * 3)));
    let vocab = dims.vocab as u32;
    let input = ModelInput {
        images: (0..cameras).map(image).collect(),
        tokens: (0..tokens).map(|t| (t * 7919 + 3) % vocab).collect(),
    };
    let noise = noise(0, 0, horizon * dims.action_dim);
    let sampler = Sampler::euler(STEPS, model.time_rounding());
    let bar = progress::bar("inferences");
    let mut times = Vec::new();
    for run in 0..=args.runs {
        progress::set(&bar, run.into(), args.runs.into());
        let (_, stages) = infer(&mut engine, &input, &noise, &sampler, &Rtc::Off, &mut Tap::none())?;
        times.push(stages);
    }
    bar.finish_and_clear();
    times.remove(0); // warm-up: pages, threads, modulation

    let work = Work { cameras, tokens: tokens as usize, horizon, steps: STEPS };
    let flop = dims.flop(&work);
    let peak = peak_flops();
    let total_ms = Latency::of(&times, StageTimes::total_ms);
    let roofline_ms = flop / peak * 1e3;
    let results = Results {
        backend: "cpu",
        dtype: "f32",
        checkpoint: args.checkpoint,
        workload: args.workload,
        runs: args.runs,
        threads: rayon::current_num_threads(),
        load_s,
        vision_ms: Latency::of(&times, |t| t.vision_ms),
        prefix_ms: Latency::of(&times, |t| t.prefix_ms),
        denoise_ms: Latency::of(&times, |t| t.denoise_ms),
        gflop: flop * 1e-9,
        gemm_gflops: peak * 1e-9,
        roofline_ms,
        ratio_to_roofline: total_ms.p50 / roofline_ms,
        total_ms,
        peak_memory_mib: peak_memory_mib(),
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results)?;
    }
    Ok(Verdict::Ok)
}

fn print(out: &mut impl Write, r: &Results) -> io::Result<()> {
    writeln!(
        out,
        "{} {}, {}, workload {:?}, {} runs on {} threads, loaded in {:.2} s",
        r.backend, r.dtype, r.checkpoint, r.workload, r.runs, r.threads, r.load_s
    )?;
    writeln!(out, "{:<10} {:>12} {:>12} {:>12}", "ms", "p50", "p90", "p99")?;
    let stages = [
        ("vision", &r.vision_ms),
        ("prefix", &r.prefix_ms),
        ("denoise", &r.denoise_ms),
        ("total", &r.total_ms),
    ];
    for (name, latency) in stages {
        let Latency { p50, p90, p99 } = latency;
        writeln!(out, "{name:<10} {p50:>12.3} {p90:>12.3} {p99:>12.3}")?;
    }
    writeln!(
        out,
        "{:.1} GFLOP; roofline {:.3} ms at {:.0} GFLOP/s (one large product); {:.2} × roofline",
        r.gflop, r.roofline_ms, r.gemm_gflops, r.ratio_to_roofline
    )?;
    if let Some(peak) = r.peak_memory_mib {
        writeln!(out, "peak resident memory {peak} MiB")?;
    }
    Ok(())
}

/// The most memory that this process ever had resident, where the system tells.
fn peak_memory_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}
