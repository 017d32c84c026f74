//! `pi05 bench`: how long an inference takes, and how far that is from what the machine could do.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::Serialize;

use super::bench_gpu::{self, GpuResults};
#[cfg(feature = "ros")]
use super::bench_ros;
use super::out::stdout;
use super::{DtypeArg, Failure, Verdict, bench_control, bench_trace, engine_choice, progress};
use crate::engine::backend::Backend;
use crate::engine::cpu::peak_flops;
use crate::engine::probe::Tap;
use crate::engine::{Choice, Engine, EngineError, Precision};
use crate::model::dims::Work;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{Sampler, noise};
use crate::model::{ModelInput, Pixels, synth};
use crate::percentile::percentile;
use crate::pipeline::{Model, StageTimes, infer, recipe};

/// Measure the latency of an inference, stage by stage
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 bench --checkpoint synth:tiny --workload B --runs 50\n\n\
                        A: 2 cameras, 20 prompt tokens, 10 actions. B: 3 cameras, 200 prompt tokens, 50 actions.\n\
                        10 denoise steps, batch 1. The roofline is the work at the speed of one large matrix product,\n\
                        and on a GPU the weights at the speed of its memory, measured in the same run: the larger of the\n\
                        two, stage by stage. On a GPU stages are timed by its own events, and totals from host memory to\n\
                        host memory. With two chunks in flight the time of vision has waiting in it; each stage alone is\n\
                        measured, too.")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Engine: auto, cpu, cuda, tensorrt, or each stage's, as vision=tensorrt,prefix=tensorrt,denoise=cuda
    #[arg(long, default_value = "auto", value_name = "B")]
    backend: Backend,
    /// What one inference works on
    #[arg(long, value_enum, ignore_case = true, default_value = "B", value_name = "A|B")]
    workload: Workload,
    /// Number format of the engine [default: bf16 on cuda, f32 on cpu]
    #[arg(long, value_enum, value_name = "D")]
    dtype: Option<DtypeArg>,
    /// What fp8 rounds: balanced, fast, exact, or a recipe's file
    #[arg(long, value_name = "R", default_value = recipe::DEFAULT)]
    recipe: String,
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D", default_value = "synth:full")]
    checkpoint: String,
    /// One chunk after the other, or the vision of the next one beside the actions of this one (the latter on cuda)
    #[arg(long, value_enum, default_value = "sequential", value_name = "S")]
    streams: Streams,
    /// Begin an inference every so many milliseconds, as a robot asks for them; without it one follows the other, which
    /// may take the GPU to the limit of its power, and so down in its clock
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    every: Option<u32>,
    /// Inferences measured, after some that warm up [default: 3 on cpu, 200 on cuda]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
    /// Write when stages and denoise steps of a few chunks ran, for ui.perfetto.dev or chrome://tracing (cuda)
    #[arg(long, value_name = "F")]
    trace: Option<PathBuf>,
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
#[serde(rename_all = "kebab-case")]
pub(super) enum Streams {
    /// One chunk after the other.
    Sequential,
    /// Two in flight: vision of the next one begins as the actions of this one do.
    Pipelined,
    /// Two in flight: vision of the next one begins so that it ends as the actions of this one do, as in the node.
    JustInTime,
}

#[derive(Serialize)]
struct Results {
    backend: String,
    dtype: String,
    checkpoint: String,
    workload: Workload,
    streams: Streams,
    /// From the start of one inference to the next one's; null: as soon as the one before is done.
    every_ms: Option<u32>,
    runs: u32,
    threads: usize,
    load_s: f64,
    /// Pipelined: from its start to its end, what it waited for included.
    vision_ms: Latency,
    prefix_ms: Latency,
    denoise_ms: Latency,
    /// From the call to the actions in host memory; pipelined: from one chunk to the next.
    total_ms: Latency,
    /// The same of each run, in their order.
    totals_ms: Vec<f64>,
    p99_over_p50: f64,
    gflop: f64,
    /// Of one large matrix product.
    gemm_gflops: f64,
    /// The least time that each stage could take: arithmetic, and on a GPU weights.
    roofline_stages_ms: [f64; 3],
    roofline_ms: f64,
    ratio_to_roofline: f64,
    peak_memory_mib: Option<u64>,
    gpu: Option<GpuResults>,
}

/// What is inferred, again and again.
pub(super) struct Chunk {
    pub input: ModelInput,
    pub noise: Vec<f32>,
    pub sampler: Sampler,
}

/// One inference's times.
pub(super) struct Run {
    pub stages: StageTimes,
    pub total_ms: f64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

impl Latency {
    pub fn of(times: &[Run], stage: impl Fn(&Run) -> f64) -> Self {
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
    let on_cpu = matches!(choice, Choice::Cpu | Choice::CpuFp8);
    if on_cpu && (args.streams != Streams::Sequential || args.trace.is_some()) {
        let option = if args.trace.is_some() { "--trace" } else { "--streams" };
        return Err(format!("{option}: only a GPU has streams; use --backend cuda").into());
    }
    if args.every.is_some() && args.streams != Streams::Sequential {
        return Err(
            "--every: expected one chunk after the other, found two in flight; leave --streams out".into()
        );
    }
    let model = Model::open_network(&args.checkpoint)?;
    let dims = model.dims()?;
    let (cameras, tokens, horizon) = match args.workload {
        Workload::A => (2, 20, 10),
        Workload::B => (3, 200, 50),
    };
    let loading = Instant::now();
    let mut engine = progress::weights(|told| model.load_by(&args.recipe, choice, told))?;
    let load_s = loading.elapsed().as_secs_f64();

    let side = dims.vision.image;
    let image = |c: usize| Some(Pixels::U8(synth::bytes(&format!("bench.image.{c}"), side * side * 3)));
    let vocab = dims.vocab as u32;
    let input = ModelInput {
        images: (0..cameras).map(image).collect(),
        tokens: (0..tokens).map(|t| (t * 7919 + 3) % vocab).collect(),
    };
    let noise = noise(0, 0, horizon * dims.action_dim);
    let steps = model.denoise_steps();
    let every = Duration::from_millis(args.every.unwrap_or(0).into());
    let chunk = Chunk { input, noise, sampler: Sampler::euler(steps, model.time_rounding()) };
    let work = Work { cameras, tokens: tokens as usize, horizon, steps };
    let (times, peak, gpu) = match &mut engine {
        Engine::Cpu(_) => {
            sequential(&mut engine, &chunk, every, 1)?; // pages, threads, modulation
            (sequential(&mut engine, &chunk, every, args.runs.unwrap_or(3))?, peak_flops(), None)
        }
        Engine::Cuda(_) => {
            let runs = args.runs.unwrap_or(200);
            let (times, peak, gpu) = bench_gpu::measure(&mut engine, &chunk, every, args.streams, runs)?;
            (times, peak, Some(gpu))
        }
    };
    if let (Some(file), Engine::Cuda(engine)) = (&args.trace, &mut engine) {
        bench_trace::write(engine, &chunk, args.streams, file)?;
    }

    let total_ms = Latency::of(&times, |t| t.total_ms);
    let mut roofline_stages_ms = dims.flops(&work).map(|flop| flop / peak * 1e3);
    if let Some(gpu) = &gpu {
        // Bytes of a weight in vision, prefix, denoising. Products of e4m3 are twice as fast as the one that was measured.
        let sizes = match engine.precision() {
            Precision::Fp8 => [1, 1, 2],
            Precision::Bf16 => [2; 3],
            Precision::F32 => [4; 3],
        };
        let stages = dims.weights_read(steps).into_iter().zip(sizes);
        for (ms, (parameters, size)) in roofline_stages_ms.iter_mut().zip(stages) {
            if size == 1 {
                *ms /= 2.0;
            }
            *ms = ms.max((parameters * size) as f64 / (gpu.copy_gbps * 1e6));
        }
    }
    let roofline_ms = roofline_stages_ms.iter().sum();
    let results = Results {
        backend: engine.backend().to_string(),
        dtype: engine.precision().to_string(),
        checkpoint: args.checkpoint,
        workload: args.workload,
        streams: args.streams,
        every_ms: args.every,
        runs: times.len() as u32,
        threads: rayon::current_num_threads(),
        load_s,
        vision_ms: Latency::of(&times, |t| t.stages.vision_ms),
        prefix_ms: Latency::of(&times, |t| t.stages.prefix_ms),
        denoise_ms: Latency::of(&times, |t| t.stages.denoise_ms),
        gflop: dims.flop(&work) * 1e-9,
        gemm_gflops: peak * 1e-9,
        roofline_stages_ms,
        roofline_ms,
        ratio_to_roofline: total_ms.p50 / roofline_ms,
        p99_over_p50: total_ms.p99 / total_ms.p50,
        total_ms,
        totals_ms: times.iter().map(|run| run.total_ms).collect(),
        peak_memory_mib: peak_memory_mib(),
        gpu,
    };
    let mut out = stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results)?;
    }
    Ok(Verdict::Ok)
}

/// One chunk after the other, at least `every` from one's start to the next one's.
pub(super) fn sequential(
    engine: &mut Engine,
    chunk: &Chunk,
    every: Duration,
    runs: u32,
) -> Result<Vec<Run>, EngineError> {
    let bar = progress::bar("inferences");
    let mut times = Vec::new();
    for run in 0..runs {
        progress::set(&bar, run.into(), runs.into());
        let start = Instant::now();
        let Chunk { input, noise, sampler } = chunk;
        let (_, stages) = infer(engine, input, noise, sampler, &Rtc::Off, &mut Tap::none())?;
        times.push(Run { stages, total_ms: start.elapsed().as_secs_f64() * 1e3 });
        thread::sleep(every.saturating_sub(start.elapsed()));
    }
    bar.finish_and_clear();
    Ok(times)
}

fn print(out: &mut impl Write, r: &Results) -> io::Result<()> {
    let every = r.every_ms.map(|ms| format!(", one every {ms} ms")).unwrap_or_default();
    writeln!(
        out,
        "{} {}, {}, workload {:?}, {:?}{every}, {} runs on {} threads, loaded in {:.2} s",
        r.backend, r.dtype, r.checkpoint, r.workload, r.streams, r.runs, r.threads, r.load_s
    )?;
    let pipelined = r.streams != Streams::Sequential;
    writeln!(out, "{:<18} {:>9} {:>9} {:>9} {:>9} {:>7}", "ms", "p50", "p90", "p99", "roofline", "times")?;
    let [vision, prefix, denoise] = r.roofline_stages_ms;
    let rows = [
        (if pipelined { "vision, with waits" } else { "vision" }, &r.vision_ms, vision),
        ("prefix", &r.prefix_ms, prefix),
        ("denoise", &r.denoise_ms, denoise),
        (if pipelined { "period" } else { "total" }, &r.total_ms, r.roofline_ms),
    ];
    for (name, Latency { p50, p90, p99 }, roofline) in rows {
        writeln!(out, "{name:<18} {p50:>9.3} {p90:>9.3} {p99:>9.3} {roofline:>9.3} {:>7.2}", p50 / roofline)?;
    }
    writeln!(
        out,
        "p99/p50 {:.3}; {:.1} GFLOP; roofline at {:.0} GFLOP/s (one large product)",
        r.p99_over_p50, r.gflop, r.gemm_gflops
    )?;
    if let Some(gpu) = &r.gpu {
        gpu.print(out, r.total_ms.p50)?;
    }
    if let Some(peak) = r.peak_memory_mib {
        writeln!(out, "peak resident memory of the host {peak} MiB")?;
    }
    Ok(())
}

/// The most memory that this process ever had resident, where the system tells.
fn peak_memory_mib() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib / 1024)
}
