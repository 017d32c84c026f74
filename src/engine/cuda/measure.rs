//! What can be told about chunks on the GPU and about the GPU itself. Called by `pi05 bench`.

use std::time::Instant;

use super::CudaEngine;
use super::chunk::Kernels;
use super::driver::Event;
use super::gemm::{Operands, Shape};
use super::lane::Lane;
use crate::engine::EngineError;

/// When a chunk's stages ran: (beginning, end), milliseconds since [`CudaEngine::start_timeline`].
#[derive(Clone, Debug, Default)]
pub struct Spans {
    /// SigLIP and projector, with the images' upload.
    pub vision: (f64, f64),
    /// Prefix to keys and values.
    pub prefix: (f64, f64),
    /// All denoise steps.
    pub denoise: (f64, f64),
    /// The beginning of every evaluation of the velocity.
    pub steps: Vec<f64>,
}

impl CudaEngine {
    /// Graphs captured so far: of vision, of actions.
    pub fn graphs(&self) -> (usize, usize) {
        (self.graphs.vision.len(), self.graphs.actions.len())
    }

    /// Kernels of each stage, as captured last.
    pub fn kernels(&self) -> Kernels {
        self.graphs.kernels
    }

    /// Kernels and other nodes of the graphs: vision's with most, actions' with most.
    pub fn graph_nodes(&self) -> (usize, usize) {
        let most = |nodes: &mut dyn Iterator<Item = usize>| nodes.max().unwrap_or(0);
        (
            most(&mut self.graphs.vision.values().map(|graph| graph.nodes)),
            most(&mut self.graphs.actions.values().map(|graph| graph.nodes)),
        )
    }

    /// What this GPU can do, now: FLOP/s of one large matrix product, and bytes/s (read and written) of one large copy.
    pub fn peaks(&mut self) -> Result<(f64, f64), EngineError> {
        const SIDE: usize = 4096;
        const COPY: usize = 512 << 20;
        const RUNS: usize = 10;
        self.act.gpu.bind()?;
        let size = self.act.size();
        let random = |salt: u32| -> Vec<u32> {
            let next = |i: u32| {
                i.wrapping_mul(2_654_435_761).wrapping_add(salt).rotate_left(13).wrapping_mul(2_246_822_519)
            };
            // The top bits of each half stay those of numbers about 1, in bf16 and f32 alike.
            (0..(SIDE * SIDE * size / 4) as u32).map(|i| (next(i) & 0x807f_807f) | 0x3f80_3f80).collect()
        };
        let [x, w] = [self.act.gpu.buffer(&random(1))?, self.act.gpu.buffer(&random(2))?];
        let y = self.act.gpu.zeros(SIDE * SIDE * size)?;
        let [from, to] = [self.act.gpu.zeros(COPY)?, self.act.gpu.zeros(COPY)?];
        let (start, end) = (Event::new()?, Event::new()?);
        let mut seconds = [0.0; 2];
        for (i, seconds) in seconds.iter_mut().enumerate() {
            let once = |lane: &mut Lane| match i {
                0 => lane
                    .product(Shape::linear(SIDE, SIDE, SIDE), Operands::new(x.address, w.address, y.address)),
                _ => lane.gpu.copy(to.address, from.address, COPY),
            };
            once(&mut self.act)?;
            self.act.gpu.mark(&start, false)?;
            for _ in 0..RUNS {
                once(&mut self.act)?;
            }
            self.act.gpu.mark(&end, false)?;
            self.act.gpu.synchronize()?;
            *seconds = end.ms_since(&start)? * 1e-3 / RUNS as f64;
        }
        Ok((2.0 * (SIDE * SIDE * SIDE) as f64 / seconds[0], 2.0 * COPY as f64 / seconds[1]))
    }

    /// From now on chunks tell when each of their stages and of at most `steps` evaluations began; this costs time between
    /// evaluations. The moment that these times are since.
    pub fn start_timeline(&mut self, steps: usize) -> Result<Instant, EngineError> {
        self.act.gpu.bind()?;
        self.act.gpu.synchronize()?;
        self.graphs.actions.clear(); // captured anew, with marks
        self.act.steps = (0..steps).map(|_| Event::new()).collect::<Result<_, _>>()?;
        self.act.gpu.mark(&self.graphs.origin, false)?;
        self.act.gpu.synchronize()?;
        Ok(Instant::now())
    }

    /// Of the chunk that was finished last, from the features of `slot`; none has been started there since.
    pub fn spans(&self, slot: usize) -> Result<Spans, EngineError> {
        let at = |event: &Event| event.ms_since(&self.graphs.origin);
        let [start, middle, end] = &self.graphs.marks;
        let [before, after] = &self.graphs.seen[slot];
        Ok(Spans {
            vision: (at(before)?, at(after)?),
            prefix: (at(start)?, at(middle)?),
            denoise: (at(middle)?, at(end)?),
            steps: self.act.steps.iter().map(at).collect::<Result<_, _>>()?,
        })
    }
}
