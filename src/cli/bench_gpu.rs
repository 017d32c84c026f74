//! The GPU's part of `pi05 bench`: two chunks in flight, the GPU's ceilings, and what graphs and memory came to.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::bench::{Chunk, Latency, Run, Streams, sequential};
use super::bench_power::{Meter, Power};
use super::{Failure, progress};
use crate::engine::Engine;
use crate::engine::EngineError;
use crate::engine::cuda::{CudaEngine, Measured};
use crate::pipeline::just_in_time::JustInTime;

/// Inferences before those that count: graphs, modulation.
const WARM_UP: u32 = 20;
/// And at least so long: a GPU at the limit of its power lowers its clock after about a second, and at first too far.
const SETTLING: Duration = Duration::from_secs(2);

/// What only a GPU has.
#[derive(Serialize)]
pub struct GpuResults {
    device: String,
    /// Of the GPU: weights, activations, graphs, MiB.
    memory_mib: usize,
    /// Reads and writes of one large copy.
    pub copy_gbps: f64,
    /// Kernels, copies and marks of the two graphs.
    vision_nodes: usize,
    action_nodes: usize,
    vision_kernels: usize,
    prefix_kernels: usize,
    kernels_per_step: f64,
    /// Of chunks one after the other, where two were in flight.
    alone: Option<Alone>,
    power: Option<Power>,
}

/// Each stage with the GPU for itself, p50.
#[derive(Serialize)]
struct Alone {
    vision_ms: f64,
    /// Prefix and all denoise steps.
    actions_ms: f64,
    total_ms: f64,
}

/// Runs, FLOP/s of one large product, and the rest.
pub(super) fn measure(
    engine: &mut Engine,
    chunk: &Chunk,
    every: Duration,
    streams: Streams,
    runs: u32,
) -> Result<(Vec<Run>, f64, GpuResults), Failure> {
    let Engine::Cuda(cuda) = engine else { return Err("expected the cuda engine".into()) };
    let mut meter = Meter::new(cuda.bus()?);
    warm_up(engine, chunk, every)?;
    meter.begin();
    let mut times = sequential(engine, chunk, every, runs)?;
    let Engine::Cuda(engine) = engine else { return Err("expected the cuda engine".into()) };
    let mut alone = None;
    if streams != Streams::Sequential {
        let p50 = |stage: &dyn Fn(&Run) -> f64| Latency::of(&times, stage).p50;
        alone = Some(Alone {
            vision_ms: p50(&|run| run.stages.vision_ms),
            actions_ms: p50(&|run| run.stages.prefix_ms + run.stages.denoise_ms),
            total_ms: p50(&|run| run.total_ms),
        });
        times = pipelined(engine, chunk, streams, runs, &mut meter)?;
    }
    let power = meter.end(runs);
    let memory_mib = engine.memory_now()? >> 20; // before the ceilings take theirs
    let (peak, copy) = engine.peaks()?;
    let (kernels, (vision_nodes, action_nodes)) = (engine.kernels(), engine.graph_nodes());
    let results = GpuResults {
        device: engine.device().to_owned(),
        memory_mib,
        copy_gbps: copy * 1e-9,
        vision_nodes,
        action_nodes,
        vision_kernels: kernels.vision,
        prefix_kernels: kernels.prefix,
        kernels_per_step: kernels.denoise as f64 / chunk.sampler.steps as f64,
        alone,
        power,
    };
    Ok((times, peak, results))
}

/// Inferences that do not count, until the GPU runs as it will.
pub(super) fn warm_up(engine: &mut Engine, chunk: &Chunk, every: Duration) -> Result<(), EngineError> {
    let start = Instant::now();
    while start.elapsed() < SETTLING {
        sequential(engine, chunk, every, WARM_UP)?;
    }
    Ok(())
}

/// The vision of the next chunk beside the actions of this one: the time from chunk to chunk.
fn pipelined(
    engine: &mut CudaEngine,
    chunk: &Chunk,
    streams: Streams,
    runs: u32,
    meter: &mut Meter,
) -> Result<Vec<Run>, EngineError> {
    let bar = progress::bar("in flight");
    let (mut times, mut just_in_time) = (Vec::new(), JustInTime::default());
    engine.start_vision(1, &chunk.input.images)?;
    engine.start_vision(0, &chunk.input.images)?;
    for run in 0..WARM_UP + runs {
        progress::set(&bar, run.into(), (WARM_UP + runs).into());
        if run == WARM_UP {
            meter.begin();
        }
        let start = Instant::now();
        let later = just_in_time.next().filter(|_| streams == Streams::JustInTime);
        let (measured, _) = pipelined_once(engine, chunk, run, later.map(|(later, _)| later))?;
        just_in_time.add(measured.vision_ms, measured.prefix_ms + measured.denoise_ms);
        if run >= WARM_UP {
            times.push(Run { stages: measured.into(), total_ms: start.elapsed().as_secs_f64() * 1e3 });
        }
    }
    bar.finish_and_clear();
    Ok(times)
}

/// Chunk number `run`, whose vision has been started before, with the vision of the next, so much later. And when the
/// host was done with starting either.
pub(super) fn pipelined_once(
    engine: &mut CudaEngine,
    chunk: &Chunk,
    run: u32,
    later: Option<Duration>,
) -> Result<(Measured, [Instant; 2]), EngineError> {
    let (slot, next) = if run.is_multiple_of(2) { (0, 1) } else { (1, 0) };
    engine.start_actions(slot, &chunk.input.tokens, &chunk.noise, &chunk.sampler)?;
    let acting = Instant::now();
    thread::sleep(later.unwrap_or_default());
    engine.start_vision(next, &chunk.input.images)?;
    let seeing = Instant::now();
    let (_, measured) = engine.finish()?;
    Ok((measured, [acting, seeing]))
}

impl GpuResults {
    /// `total_ms`: or the period, p50.
    pub fn print(&self, out: &mut impl Write, total_ms: f64) -> io::Result<()> {
        if let Some(Alone { vision_ms, actions_ms, total_ms: sequential_ms }) = self.alone {
            writeln!(
                out,
                "alone on the GPU: vision {vision_ms:.3}, prefix and denoise {actions_ms:.3}, one after the other \
                 {sequential_ms:.3}; the period is the longer one {:+.3}",
                total_ms - vision_ms.max(actions_ms)
            )?;
        }
        writeln!(
            out,
            "{}: {} MiB of its memory; copies at {:.0} GB/s; kernels: vision {}, prefix {}, {:.1} per denoise step; \
             graph nodes: vision {}, actions {}",
            self.device,
            self.memory_mib,
            self.copy_gbps,
            self.vision_kernels,
            self.prefix_kernels,
            self.kernels_per_step,
            self.vision_nodes,
            self.action_nodes
        )?;
        match &self.power {
            Some(power) => power.print(out),
            None => Ok(()),
        }
    }
}
