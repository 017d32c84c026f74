//! `pi05 bench`: how long an inference takes, and how far that is from what the machine could do.

use std::fs;
use std::io::{self, Write};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

#[cfg(feature = "ros")]
use super::bench_ros;
use super::{BackendArg, DtypeArg, Failure, Verdict, bench_control, engine_choice, progress};
use crate::engine::cpu::peak_flops;
use crate::engine::cuda::CudaEngine;
use crate::engine::probe::Tap;
use crate::engine::{Engine, EngineError, Precision};
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
                        and on a GPU the weights at the speed of its memory, measured in the same run. On a GPU stages\n\
                        are timed by its own events, and totals from host memory to host memory.")]
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
    /// Number format of the engine [default: bf16 on cuda, f32 on cpu]
    #[arg(long, value_enum, value_name = "D")]
    dtype: Option<DtypeArg>,
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D", default_value = "synth:full")]
    checkpoint: String,
    /// One chunk after the other, or the vision of the next one beside the actions of this one (cuda)
    #[arg(long, value_enum, default_value = "sequential", value_name = "S")]
    streams: Streams,
    /// Inferences measured, after some that warm up [default: 3 on cpu, 200 on cuda]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
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

/// Whether vision runs beside the other stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Streams {
    /// One chunk after the other.
    Sequential,
    /// Two in flight.
    Pipelined,
}

/// Denoise steps of both workloads.
const STEPS: usize = 10;

#[derive(Serialize)]
struct Results {
    backend: &'static str,
    dtype: String,
    checkpoint: String,
    workload: Workload,
    streams: Streams,
    runs: u32,
    threads: usize,
    load_s: f64,
    vision_ms: Latency,
    prefix_ms: Latency,
    denoise_ms: Latency,
    /// From the call to the actions in host memory; pipelined: from one chunk to the next.
    total_ms: Latency,
    gflop: f64,
    /// Of one large matrix product.
    gemm_gflops: f64,
    roofline_ms: f64,
    ratio_to_roofline: f64,
    peak_memory_mib: Option<u64>,
    gpu: Option<GpuResults>,
}

/// What only a GPU has.
#[derive(Serialize)]
struct GpuResults {
    device: String,
    memory_mib: usize,
    /// Reads and writes of one large copy.
    copy_gbps: f64,
    /// Kernels, copies and marks of the two graphs.
    vision_nodes: usize,
    action_nodes: usize,
}

/// One inference's times.
struct Run {
    stages: StageTimes,
    total_ms: f64,
}

#[derive(Serialize)]
struct Latency {
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Latency {
    fn of(times: &[Run], stage: impl Fn(&Run) -> f64) -> Self {
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
    let choice = engine_choice(args.backend, args.dtype)?.resolved();
    let model = Model::open_network(&args.checkpoint)?;
    let dims = model.dims()?;
    let (cameras, tokens, horizon) = match args.workload {
        Workload::A => (2, 20, 10),
        Workload::B => (3, 200, 50),
    };
    let loading = Instant::now();
    let bar = progress::bar("weights");
    let mut engine = model.load(choice, |made, all| progress::set(&bar, made as u64, all as u64))?;
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
    let is_gpu = !matches!(engine, Engine::Cpu(_));
    let runs = args.runs.unwrap_or(if is_gpu { 200 } else { 3 });
    let warm_up = if is_gpu { 20 } else { 1 }; // pages, threads, modulation; clocks
    let bar = progress::bar("inferences");
    let progress = |run: u32| progress::set(&bar, run.into(), (warm_up + runs).into());
    let times = match (&mut engine, args.streams) {
        (Engine::Cuda(engine), Streams::Pipelined) => {
            pipelined(engine, &input, &noise, &sampler, warm_up + runs, progress)?
        }
        (Engine::Cpu(_) | Engine::TensorRt(_), Streams::Pipelined) => {
            return Err(
                "--streams pipelined: the other engines run one stage after the other; use --backend cuda"
                    .into(),
            );
        }
        (engine, Streams::Sequential) => {
            sequential(engine, &input, &noise, &sampler, warm_up + runs, progress)?
        }
    };
    bar.finish_and_clear();
    let times = &times[warm_up as usize..];

    let work = Work { cameras, tokens: tokens as usize, horizon, steps: STEPS };
    let flop = dims.flop(&work);
    let (peak, gpu) = match &mut engine {
        Engine::Cpu(_) => (peak_flops(), None),
        Engine::TensorRt(_) => (f64::NAN, None), // nothing here measures what its GPU could do
        Engine::Cuda(engine) => {
            let (peak, copy) = engine.peaks()?;
            let (vision_nodes, action_nodes) = engine.graph_nodes();
            let (device, memory_mib) = (engine.device().to_owned(), engine.memory() >> 20);
            (
                peak,
                Some(GpuResults { device, memory_mib, copy_gbps: copy * 1e-9, vision_nodes, action_nodes }),
            )
        }
    };
    let total_ms = Latency::of(times, |t| t.total_ms);
    let size = if engine.precision() == Precision::Bf16 { 2 } else { 4 };
    let roofline_ms = match &gpu {
        Some(gpu) => {
            let bytes = dims.weights_read(STEPS).map(|parameters| (parameters * size) as f64);
            let stages = dims.flops(&work).into_iter().zip(bytes);
            stages.map(|(flop, bytes)| (flop / peak).max(bytes / (gpu.copy_gbps * 1e9))).sum::<f64>() * 1e3
        }
        None => flop / peak * 1e3,
    };
    let results = Results {
        backend: engine.backend(),
        dtype: engine.precision().to_string(),
        checkpoint: args.checkpoint,
        workload: args.workload,
        streams: args.streams,
        runs,
        threads: rayon::current_num_threads(),
        load_s,
        vision_ms: Latency::of(times, |t| t.stages.vision_ms),
        prefix_ms: Latency::of(times, |t| t.stages.prefix_ms),
        denoise_ms: Latency::of(times, |t| t.stages.denoise_ms),
        gflop: flop * 1e-9,
        gemm_gflops: peak * 1e-9,
        roofline_ms,
        ratio_to_roofline: total_ms.p50 / roofline_ms,
        total_ms,
        peak_memory_mib: peak_memory_mib(),
        gpu,
    };
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results)?;
    }
    Ok(Verdict::Ok)
}

fn sequential(
    engine: &mut Engine,
    input: &ModelInput,
    noise: &[f32],
    sampler: &Sampler,
    runs: u32,
    progress: impl Fn(u32),
) -> Result<Vec<Run>, EngineError> {
    let mut times = Vec::new();
    for run in 0..runs {
        progress(run);
        let start = Instant::now();
        let (_, stages) = infer(engine, input, noise, sampler, &Rtc::Off, &mut Tap::none())?;
        times.push(Run { stages, total_ms: start.elapsed().as_secs_f64() * 1e3 });
    }
    Ok(times)
}

/// The vision of the next chunk beside the actions of this one: the time from chunk to chunk.
fn pipelined(
    engine: &mut CudaEngine,
    input: &ModelInput,
    noise: &[f32],
    sampler: &Sampler,
    runs: u32,
    progress: impl Fn(u32),
) -> Result<Vec<Run>, EngineError> {
    let mut times = Vec::new();
    engine.start_vision(0, &input.images)?;
    engine.start_vision(1, &input.images)?;
    engine.start_vision(0, &input.images)?;
    for run in 0..runs {
        progress(run);
        let (slot, next) = if run % 2 == 0 { (0, 1) } else { (1, 0) };
        let start = Instant::now();
        engine.start_actions(slot, &input.tokens, noise, sampler)?;
        engine.start_vision(next, &input.images)?;
        let (_, measured) = engine.finish()?;
        times.push(Run { stages: measured.into(), total_ms: start.elapsed().as_secs_f64() * 1e3 });
    }
    Ok(times)
}

fn print(out: &mut impl Write, r: &Results) -> io::Result<()> {
    writeln!(
        out,
        "{} {}, {}, workload {:?}, {:?}, {} runs on {} threads, loaded in {:.2} s",
        r.backend, r.dtype, r.checkpoint, r.workload, r.streams, r.runs, r.threads, r.load_s
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
    if let Some(gpu) = &r.gpu {
        writeln!(
            out,
            "{}: {} MiB of its memory; copies at {:.0} GB/s; graphs: vision {} nodes, actions {} nodes; p99/p50 {:.3}",
            gpu.device,
            gpu.memory_mib,
            gpu.copy_gbps,
            gpu.vision_nodes,
            gpu.action_nodes,
            r.total_ms.p99 / r.total_ms.p50
        )?;
    }
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
