//! Whole chunks as two graphs: vision on its stream; prefix, all denoise steps and the sampler on the other.
//!
//! Features lie in two slots, so that the vision of the next observation may run beside the actions of this one. The
//! result does not depend on that. A stage of TensorRT that cannot be captured is put on the stream anew every time.

use std::collections::HashMap;
use std::time::Instant;

use super::driver::{Event, Graph, Pinned, failed};
use super::nvtx::Range;
use super::prefix::{BUCKET, Layout};
use super::vision::Pixel;
use super::{CudaEngine, Images, Warm, request};
use crate::engine::EngineError;
use crate::engine::probe::Tap;
use crate::model::Pixels;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{Sampler, Solver};

/// Most graphs of actions kept: every bucket of prompts for a few schedules.
const GRAPHS: usize = 96;

/// What a chunk took on the GPU, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measured {
    /// SigLIP and projector, images' upload included.
    pub vision_ms: f64,
    /// Prefix to keys and values.
    pub prefix_ms: f64,
    /// All denoise steps.
    pub denoise_ms: f64,
}

/// Graphs, and the host's side of what goes in and out.
pub struct Graphs {
    pub(super) vision: HashMap<(Vec<usize>, Pixel, usize), Graph>,
    pub(super) actions: HashMap<Key, Graph>,
    pub(super) images: [Pinned; 2],
    request: Pinned,
    noise: Pinned,
    out: Pinned,
    /// Before and after vision, by slot.
    pub(super) seen: [[Event; 2]; 2],
    /// Before the prefix, after it, after the last step.
    pub(super) marks: [Event; 3],
    /// Whether stages that are not ours would not be captured.
    uncaptured: Uncaptured,
    /// Image rows of each slot.
    rows: [usize; 2],
    /// Values of the chunk under way, and its slot.
    under_way: Option<(usize, usize)>,
    /// Kernels of the graphs captured last.
    pub(super) kernels: Kernels,
    /// What a timeline's times are since.
    pub(super) origin: Event,
}

/// What runs without a graph, because it could not be captured.
#[derive(Clone, Copy, Debug, Default)]
struct Uncaptured {
    vision: bool,
    actions: bool,
}

/// Kernels that each stage launches, of the graphs captured last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kernels {
    /// SigLIP and projector.
    pub vision: usize,
    /// Prefix to keys and values.
    pub prefix: usize,
    /// All denoise steps.
    pub denoise: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    layout: Layout,
    /// Of the features, where the prefix is not ours; else 0: ours takes it from the request.
    slot: usize,
    horizon: usize,
    solver: &'static str,
    times: Vec<u32>,
}

impl Graphs {
    pub fn new(pixels: usize, tokens: usize, actions: usize) -> Result<Self, EngineError> {
        let pair = || Ok::<_, EngineError>([Event::new()?, Event::new()?]);
        Ok(Self {
            vision: HashMap::new(),
            actions: HashMap::new(),
            images: [Pinned::new(pixels * 4)?, Pinned::new(pixels * 4)?],
            request: Pinned::new((2 + tokens) * 4)?,
            noise: Pinned::new(actions * 4)?,
            out: Pinned::new(actions * 4)?,
            seen: [pair()?, pair()?],
            marks: [Event::new()?, Event::new()?, Event::new()?],
            uncaptured: Uncaptured::default(),
            rows: [0; 2],
            under_way: None,
            kernels: Kernels::default(),
            origin: Event::new()?,
        })
    }

    /// Writes images to pinned memory, once the slot's last vision is done with what is there.
    pub(super) fn stage_images(&mut self, slot: usize, images: &Images<'_>) -> Result<(), EngineError> {
        self.seen[slot][1].wait()?;
        let to = self.images[slot].bytes();
        let mut at = 0;
        for image in &images.present {
            match (images.pixel, image) {
                (Pixel::U8, Pixels::U8(data)) => {
                    to[at..at + data.len()].copy_from_slice(data);
                    at += data.len();
                }
                (_, Pixels::F32(data)) => {
                    to[at..at + data.len() * 4].copy_from_slice(bytemuck::cast_slice(data));
                    at += data.len() * 4;
                }
                (Pixel::F32, Pixels::U8(data)) => {
                    for &byte in data {
                        let value = f32::from(byte) / 255.0 * 2.0 - 1.0;
                        to[at..at + 4].copy_from_slice(&value.to_ne_bytes());
                        at += 4;
                    }
                }
            }
        }
        Ok(())
    }
}

impl CudaEngine {
    /// One chunk, stage after stage.
    pub fn run(
        &mut self,
        images: &[Option<Pixels>],
        tokens: &[u32],
        noise: &[f32],
        sampler: &Sampler,
    ) -> Result<(Vec<f32>, Measured), EngineError> {
        self.start_vision(0, images)?;
        self.start_actions(0, tokens, noise, sampler)?;
        self.finish()
    }

    /// Starts vision into `slot` (0 or 1), which no chunk under way reads.
    pub fn start_vision(&mut self, slot: usize, images: &[Option<Pixels>]) -> Result<(), EngineError> {
        let _range = Range::new(c"start vision");
        self.see.gpu.bind()?;
        let images = self.images(images)?;
        self.generation += 1;
        self.graphs.rows[slot] = images.slots.len() * self.dims.vision.tokens();
        if !images.slots.is_empty() {
            let key = (images.slots.clone(), images.pixel, slot);
            if !self.graphs.vision.contains_key(&key)
                && let Some(graph) = self.capture_vision(&images, slot)?
            {
                self.graphs.vision.insert(key.clone(), graph);
            }
            self.graphs.stage_images(slot, &images)?;
            self.see.gpu.mark(&self.graphs.seen[slot][0], false)?;
            match self.graphs.vision.get(&key) {
                Some(graph) => self.see.gpu.start(graph)?,
                None => self.put_vision(slot, images.pixel, &images.slots, &mut Tap::none())?,
            }
        } else {
            self.see.gpu.mark(&self.graphs.seen[slot][0], false)?;
        }
        self.see.gpu.mark(&self.graphs.seen[slot][1], false)
    }

    /// Starts prefix and denoising on the features of `slot`; none may be under way.
    pub fn start_actions(
        &mut self,
        slot: usize,
        tokens: &[u32],
        noise: &[f32],
        sampler: &Sampler,
    ) -> Result<(), EngineError> {
        let _range = Range::new(c"start actions");
        self.act.gpu.bind()?;
        if self.graphs.under_way.is_some() {
            return Err(failed("start_actions", "another chunk is under way"));
        }
        let horizon = self.horizon(noise)?;
        self.check_prompt(self.graphs.rows[slot], tokens)?;
        let layout = self.layout(self.graphs.rows[slot], tokens.len());
        let key = self.capture_actions(layout, slot, horizon, sampler)?;
        self.generation += 1;
        let values = request(layout, slot, tokens);
        self.graphs.request.bytes()[..values.len() * 4].copy_from_slice(bytemuck::cast_slice(&values));
        self.graphs.noise.bytes()[..noise.len() * 4].copy_from_slice(bytemuck::cast_slice(noise));
        // Not in the graph: they pass while vision runs.
        self.act.gpu.upload_later(self.cache.request.address, &self.graphs.request, values.len() * 4)?;
        self.act.gpu.upload_later(self.expert.action.address, &self.graphs.noise, noise.len() * 4)?;
        self.act.gpu.wait_for(&self.graphs.seen[slot][1])?;
        self.act.gpu.mark(&self.graphs.marks[0], false)?;
        match self.graphs.actions.get(&key) {
            Some(graph) => self.act.gpu.start(graph)?,
            None => self.put_chunk(layout, slot, horizon, sampler, false)?,
        }
        self.act.gpu.mark(&self.graphs.marks[2], false)?;
        self.graphs.under_way = Some((noise.len(), slot));
        Ok(())
    }

    /// Waits for the chunk under way: its actions, `[horizon, action_dim]` in model space.
    pub fn finish(&mut self) -> Result<(Vec<f32>, Measured), EngineError> {
        let Some((count, slot)) = self.graphs.under_way.take() else {
            return Err(failed("finish", "no chunk is under way"));
        };
        let _range = Range::new(c"wait for actions");
        self.act.gpu.synchronize()?;
        let graphs = &mut self.graphs;
        let [start, middle, end] = &graphs.marks;
        let measured = Measured {
            vision_ms: graphs.seen[slot][1].ms_since(&graphs.seen[slot][0])?,
            prefix_ms: middle.ms_since(start)?,
            denoise_ms: end.ms_since(middle)?,
        };
        Ok((bytemuck::pod_collect_to_vec(&graphs.out.bytes()[..count * 4]), measured))
    }

    /// Captures the graphs of such images and of every prompt length, so that none is captured later.
    pub fn prepare(
        &mut self,
        images: &[Option<Pixels>],
        horizon: usize,
        sampler: &Sampler,
    ) -> Result<(), EngineError> {
        for slot in 0..2 {
            self.start_vision(slot, images)?;
        }
        self.see.gpu.synchronize()?;
        self.act.gpu.bind()?;
        let began = Instant::now();
        let most = self.dims.max_tokens.min(self.room.most_tokens());
        let slots = if self.prefix.is_foreign() { 2 } else { 1 };
        for (tokens, slot) in
            (1..=most).step_by(BUCKET).flat_map(|tokens| (0..slots).map(move |s| (tokens, s)))
        {
            self.capture_actions(self.layout(self.graphs.rows[0], tokens), slot, horizon, sampler)?;
        }
        let (count, seconds) = (self.graphs.actions.len(), began.elapsed().as_secs_f64());
        tracing::info!("graphs of {count} prompt lengths are ready after {seconds:.1} s");
        Ok(())
    }

    /// Nothing if it cannot be captured.
    fn capture_vision(&mut self, images: &Images<'_>, slot: usize) -> Result<Option<Graph>, EngineError> {
        if self.warm.insert(Warm::Vision(images.slots.len())) {
            self.put_vision(slot, images.pixel, &images.slots, &mut Tap::none())?;
            self.see.gpu.synchronize()?;
            self.see.keep();
        }
        if self.graphs.uncaptured.vision {
            return Ok(None);
        }
        let before = self.see.launched.get();
        let capture = self.see.gpu.begin_capture()?;
        let work = self.put_vision(slot, images.pixel, &images.slots, &mut Tap::none());
        self.graphs.kernels.vision = self.see.launched.get() - before;
        let graph = self.see.gpu.end_capture(capture, work);
        unless_foreign(self.vision.is_foreign(), graph, "vision", &mut self.graphs.uncaptured.vision)
    }

    /// The graph is there afterwards, unless it cannot be captured.
    fn capture_actions(
        &mut self,
        layout: Layout,
        slot: usize,
        horizon: usize,
        sampler: &Sampler,
    ) -> Result<Key, EngineError> {
        let times = sampler.times().iter().map(|t| t.to_bits()).collect();
        let solver = if sampler.solver == Solver::Ddim { Solver::Euler } else { sampler.solver };
        let slot = if self.prefix.is_foreign() { slot } else { 0 };
        let key = Key { layout, slot, horizon, solver: solver.name(), times };
        if self.graphs.actions.contains_key(&key) {
            return Ok(key);
        }
        if self.graphs.actions.len() >= GRAPHS {
            self.graphs.actions.clear();
        }
        self.expert.prepare(&self.act, sampler, &Rtc::Off, horizon, &mut Tap::none())?;
        // Algorithms are measured before the capture, on a prompt of zeros.
        let is_new = !self.warm.contains(&Warm::Denoise(layout, horizon));
        if is_new || !self.graphs.uncaptured.actions {
            self.act.gpu.upload_to(self.cache.request.address, &request(layout, 0, &[]))?;
            self.warm_prefix(layout, slot)?;
            if self.warm.insert(Warm::Denoise(layout, horizon)) {
                self.put_denoise(layout, horizon, sampler, &Rtc::Off, &mut Tap::none())?;
            }
            self.act.gpu.synchronize()?;
            self.act.keep();
        }
        if self.graphs.uncaptured.actions {
            return Ok(key);
        }
        let capture = self.act.gpu.begin_capture()?;
        let work = self.put_chunk(layout, slot, horizon, sampler, true);
        let graph = self.act.gpu.end_capture(capture, work);
        let is_foreign = self.prefix.is_foreign() || self.expert.foreign().is_some();
        let uncaptured = &mut self.graphs.uncaptured.actions;
        if let Some(graph) = unless_foreign(is_foreign, graph, "prefix and denoise", uncaptured)? {
            self.graphs.actions.insert(key.clone(), graph);
        }
        Ok(key)
    }

    /// `captured`: into a graph.
    fn put_chunk(
        &mut self,
        layout: Layout,
        slot: usize,
        horizon: usize,
        sampler: &Sampler,
        captured: bool,
    ) -> Result<(), EngineError> {
        let tap = &mut Tap::none();
        let before = self.act.launched.get();
        self.put_prefix(layout, slot, 0, tap)?;
        let between = self.act.launched.get();
        self.act.gpu.mark(&self.graphs.marks[1], captured)?;
        self.act.marks_steps.set(Some(captured));
        let put = self.put_denoise(layout, horizon, sampler, &Rtc::Off, tap);
        self.act.marks_steps.set(None);
        put?;
        let kernels = &mut self.graphs.kernels;
        (kernels.prefix, kernels.denoise) = (between - before, self.act.launched.get() - between);
        let count = horizon * self.dims.action_dim * 4;
        self.act.gpu.download_later(&self.graphs.out, self.expert.action.address, count)
    }
}

/// A graph; if stages that are not ours would not be captured, said once, none, now and later.
fn unless_foreign(
    is_foreign: bool,
    graph: Result<Graph, EngineError>,
    what: &str,
    uncaptured: &mut bool,
) -> Result<Option<Graph>, EngineError> {
    match graph {
        Ok(graph) => Ok(Some(graph)),
        Err(reason) if is_foreign => {
            tracing::warn!("{what}: TensorRT's run cannot be captured, so it runs without a graph: {reason}");
            *uncaptured = true;
            Ok(None)
        }
        Err(reason) => Err(reason),
    }
}
