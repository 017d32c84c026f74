//! The action expert on the GPU: velocities, and the sampler's steps between them (spec/PI05.md §6 to §8).
//!
//! Modulation depends on the time alone: the CPU makes a schedule's once. In bf16 and at π0.5's own widths the blocks
//! are those of `kernels/expert.cu`; other widths and f32 take the prefix's way.

use std::collections::HashMap;

use super::driver::{Buffer, Gpu};
use super::foreign::ForeignExpert;
use super::fused::{Ends, Fused};
use super::gemm::{Operands, Shape};
use super::lane::Lane;
use super::load::Loader;
use super::prefix::{Activations, Block, Cache, Layout};
use crate::engine::EngineError;
use crate::engine::cpu::time::TimeConditioning;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::dims::{Dims, GemmaDims};
use crate::model::names::EXPERT;
use crate::model::sampler::rtc::{Rtc, Steering};
use crate::model::sampler::{Denoiser, Sampler};

/// Most actions of a chunk that one pass takes.
pub const ACTIONS: usize = 64;

/// The expert's weights and activations.
pub struct Expert {
    dims: GemmaDims,
    action_dim: usize,
    time: TimeConditioning,
    form: Form,
    /// Residual stream, f32 `[ACTIONS, width]`.
    x: Buffer,
    /// The chunk, f32 `[ACTIONS, action_dim]`: noise, then actions.
    pub action: Buffer,
    /// Other vectors of that shape, as many as a solver needs.
    vectors: Vec<Buffer>,
    /// By the times' bits.
    schedules: HashMap<Vec<u32>, Schedule>,
}

/// What depends on the times alone.
struct Schedule {
    /// `[times, norms, 3, width]` as (1 + scale, shift, gate).
    modulations: Buffer,
    /// See [`Fused::shifts`].
    shifts: Option<Buffer>,
}

enum Form {
    Plain(Box<Plain>),
    Fused(Box<Fused>),
    /// TensorRT's.
    Foreign(Box<ForeignExpert>),
}

impl Form {
    fn own(
        gpu: &Gpu,
        load: &mut Loader<'_>,
        dims: &Dims,
        keys: usize,
        bf16: bool,
    ) -> Result<Self, EngineError> {
        let (expert, action_dim) = (dims.expert, dims.action_dim);
        let wide = |load: &mut Loader<'_>, name: &str| {
            Ok::<_, EngineError>([
                load.wide(&format!("{name}.weight"), 0.0)?,
                load.wide(&format!("{name}.bias"), 0.0)?,
            ])
        };
        let [action_in, action_out] = [wide(load, "action_in_proj")?, wide(load, "action_out_proj")?];
        let mut transposed = vec![0.0; expert.width * action_dim];
        let weight = load.tensor("action_in_proj.weight")?.to_vec();
        for (i, value) in weight.into_iter().enumerate() {
            transposed[i % action_dim * expert.width + i / action_dim] = value;
        }
        let blocks = (0..expert.layers).map(|i| Block::new(load, &format!("{EXPERT}layers.{i}.")));
        if bf16 && Fused::can(gpu, &expert, action_dim, keys) {
            let [_, bias] = action_in;
            let begin = [gpu.buffer(&transposed)?, bias];
            let fused = Fused::new(gpu, &expert, blocks, begin, action_out, action_dim)?;
            Ok(Form::Fused(Box::new(fused)))
        } else {
            let activations = Activations::new(gpu, &expert, ACTIONS, keys, if bf16 { 2 } else { 4 })?;
            let blocks = blocks.collect::<Result<_, _>>()?;
            Ok(Form::Plain(Box::new(Plain { blocks, activations, action_in, action_out })))
        }
    }
}

/// Everything by the library and the kernels of `stages.cu`.
struct Plain {
    blocks: Vec<Block>,
    activations: Activations,
    action_in: [Buffer; 2],
    action_out: [Buffer; 2],
}

/// What an evaluation takes besides the actions.
#[derive(Clone, Copy)]
pub struct Pass {
    pub layout: Layout,
    /// Actions of the chunk.
    pub horizon: usize,
    /// Where the evaluation's modulation begins, and its shifts.
    pub modulation: u64,
    pub shifts: u64,
    /// First rows that are clean actions, and how many floats further on their modulation is, and their shifts.
    pub clean: usize,
    pub to_clean: usize,
    pub to_clean_shift: usize,
}

impl Pass {
    /// Multipliers (0), offsets (1) or gates (2) of norm `i`.
    pub fn channels(&self, width: usize, i: usize, part: usize) -> u64 {
        self.modulation + ((i * 3 + part) * width * 4) as u64
    }
}

impl Expert {
    /// `keys`: most keys that attention sees. `foreign`: what computes velocities instead of kernels of ours.
    pub fn new(
        gpu: &Gpu,
        load: &mut Loader<'_>,
        weights: &Weights,
        dims: &Dims,
        keys: usize,
        bf16: bool,
        foreign: Option<ForeignExpert>,
    ) -> Result<Self, EngineError> {
        let (expert, action_dim) = (dims.expert, dims.action_dim);
        let form = match foreign {
            Some(foreign) => Form::Foreign(Box::new(foreign)),
            None => Form::own(gpu, load, dims, keys, bf16)?,
        };
        Ok(Self {
            time: TimeConditioning::new(weights, dims)
                .map_err(|e| EngineError::Missing(e.name().to_owned()))?,
            form,
            x: gpu.zeros(ACTIONS * expert.width * 4)?,
            action: gpu.zeros(ACTIONS * dims.action_dim * 4)?,
            vectors: Vec::new(),
            schedules: HashMap::new(),
            dims: expert,
            action_dim,
        })
    }

    /// Whether prefix values are needed transposed.
    pub fn needs_transposed_values(&self) -> bool {
        matches!(&self.form, Form::Fused(fused) if !fused.is_hopper())
    }

    /// The stage that is not ours, if it is not.
    pub fn foreign(&self) -> Option<&ForeignExpert> {
        if let Form::Foreign(foreign) = &self.form { Some(foreign) } else { None }
    }

    /// What must be there before a schedule is put on the stream: modulations, vectors, kernels.
    pub fn prepare(
        &mut self,
        lane: &Lane,
        sampler: &Sampler,
        rtc: &Rtc,
        horizon: usize,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let times = times(sampler, rtc);
        let modulations = self.time.modulations(&times, tap);
        let key: Vec<u32> = times.iter().map(|t| t.to_bits()).collect();
        if !self.schedules.contains_key(&key) {
            let values: Vec<f32> = modulations.iter().flat_map(|m| m.values()).copied().collect();
            let shifts = match &mut self.form {
                Form::Fused(fused) => Some(fused.shifts(lane, &modulations)?),
                Form::Plain(_) | Form::Foreign(_) => None,
            };
            self.schedules.insert(key, Schedule { modulations: lane.gpu.buffer(&values)?, shifts });
        }
        // Every evaluation gives a vector, the solvers make up to two more each, real-time chunking three in all.
        while self.vectors.len() < 3 * times.len() + 4 {
            self.vectors.push(lane.gpu.zeros(ACTIONS * self.action_dim * 4)?);
        }
        if let Form::Fused(fused) = &mut self.form {
            fused.prepare(&lane.gpu, horizon)?;
        }
        Ok(())
    }

    /// Puts all steps on the stream: from noise in `action` to actions there. After [`Self::prepare`] with the same.
    pub fn record(
        &self,
        lane: &mut Lane,
        cache: &Cache,
        layout: Layout,
        horizon: usize,
        sampler: &Sampler,
        rtc: &Rtc,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let times = times(sampler, rtc);
        let key: Vec<u32> = times.iter().map(|t| t.to_bits()).collect();
        let Some(schedule) = self.schedules.get(&key) else {
            return Err(super::driver::failed("denoise", "this schedule was not prepared"));
        };
        if let Form::Foreign(foreign) = &self.form {
            foreign.begin(lane, cache, rtc.clean_rows())?;
        }
        let mut steps = Steps {
            expert: self,
            lane,
            cache,
            layout,
            horizon,
            times: times.len(),
            schedule,
            clean: rtc.clean_rows(),
            used: 0,
            pending: None,
            failed: None,
            tap,
        };
        let steering = match rtc.steering() {
            Steering::None => Steering::None,
            Steering::Guided { leftover, weights, max_weight } => Steering::Guided {
                leftover: steps.vector_of(&leftover)?,
                weights: steps.vector_of(&weights)?,
                max_weight,
            },
            Steering::Fixed { free } => Steering::Fixed { free: steps.vector_of(&free)? },
        };
        let mut x = self.action.address;
        sampler.run(&mut steps, &steering, &mut x)?;
        steps.flush();
        steps.failed.map_or(Ok(()), Err)
    }

    /// The velocity of the actions at `x`, after `x += pending * (velocity before)`, to `out`.
    fn velocity(
        &self,
        lane: &mut Lane,
        cache: &Cache,
        pass: Pass,
        x: u64,
        pending: (f32, u64),
        out: u64,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let GemmaDims { width, layers, .. } = self.dims;
        let (scale, velocity) = pending;
        let Plain { blocks, activations, action_in, action_out } = match &self.form {
            Form::Plain(plain) => &**plain,
            Form::Fused(fused) => {
                let ends = Ends { action: x, velocity, pending: scale, out };
                return fused.record(lane, cache, pass, &self.x, ends, tap);
            }
            Form::Foreign(foreign) => {
                let clean = pass.modulation + (pass.to_clean * 4) as u64;
                return foreign.record(lane, x, [pass.modulation, clean], out);
            }
        };
        let [w, b] = action_in;
        let args = [
            x.into(),
            velocity.into(),
            scale.into(),
            w.into(),
            b.into(),
            (&self.x).into(),
            self.action_dim.into(),
            width.into(),
        ];
        lane.launch("action_in", [pass.horizon, 1, 1], 256, self.action_dim * 4, &args)?;
        let count = pass.horizon * width;
        lane.record_wide(tap, format_args!("suffix.embs"), self.x.address, count)?;
        for (i, block) in blocks.iter().enumerate() {
            self.block(lane, cache, pass, i, block, activations, tap)?;
            lane.record_wide(tap, format_args!("suffix.layer.{i}.out"), self.x.address, count)?;
        }
        let [w, b] = action_out;
        let channels = |part| pass.channels(width, 2 * layers, part);
        let args = [
            (&self.x).into(),
            channels(0).into(),
            channels(1).into(),
            pass.clean.into(),
            pass.to_clean.into(),
            w.into(),
            b.into(),
            out.into(),
            self.action_dim.into(),
            width.into(),
        ];
        lane.launch("action_out", [pass.horizon, 1, 1], 256, width * 4, &args)
    }

    fn block(
        &self,
        lane: &mut Lane,
        cache: &Cache,
        pass: Pass,
        i: usize,
        block: &Block,
        a: &Activations,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let GemmaDims { width, heads, head_dim, mlp, .. } = self.dims;
        let rows = pass.horizon;
        let norm = |lane: &Lane, n: usize| {
            let args = [
                (&self.x).into(),
                pass.channels(width, n, 0).into(),
                pass.channels(width, n, 1).into(),
                pass.clean.into(),
                pass.to_clean.into(),
                (&a.h).into(),
                width.into(),
                rows.into(),
            ];
            lane.launch("rms_norm", [rows.div_ceil(4), 1, 1], 128, 0, &args)
        };
        let residual = |lane: &Lane, n: usize| {
            let args = [
                (&self.x).into(),
                pass.channels(width, n, 2).into(),
                (&a.y).into(),
                pass.clean.into(),
                pass.to_clean.into(),
                width.into(),
                (rows * width).into(),
            ];
            lane.launch("add_gated", [(rows * width).div_ceil(256), 1, 1], 256, 0, &args)
        };
        norm(lane, 2 * i)?;
        lane.record(tap, format_args!("suffix.layer.{i}.input_layernorm"), a.h.address, rows * width)?;
        let shape = Shape::linear(rows, (heads + 2) * head_dim, width);
        lane.product(shape, Operands::new(a.h.address, block.qkv.address, a.qkv.address))?;
        let first = pass.layout.rows;
        let args = [
            (&a.qkv).into(),
            (&a.q).into(),
            (&cache.k[i]).into(),
            (&cache.v[i]).into(),
            0u64.into(),
            (&cache.cos).into(),
            (&cache.sin).into(),
            (&cache.request).into(),
            1usize.into(),
            heads.into(),
            head_dim.into(),
            first.into(),
            cache.capacity.into(),
        ];
        lane.launch("split_rope", [rows, 1, 1], 256, 0, &args)?;
        a.attend(lane, &self.dims, cache, i, rows, first, first + rows)?;
        let shape = Shape::linear(rows, width, heads * head_dim).wide();
        lane.product(shape, Operands::new(a.mixed.address, block.o.address, a.y.address))?;
        lane.record_wide(tap, format_args!("suffix.layer.{i}.self_attn"), a.y.address, rows * width)?;
        residual(lane, 2 * i)?;
        norm(lane, 2 * i + 1)?;
        lane.record(
            tap,
            format_args!("suffix.layer.{i}.post_attention_layernorm"),
            a.h.address,
            rows * width,
        )?;
        lane.product(
            Shape::linear(rows, 2 * mlp, width),
            Operands::new(a.h.address, block.gate_up.address, a.gate_up.address),
        )?;
        a.geglu(lane, mlp, rows)?;
        lane.product(
            Shape::linear(rows, width, mlp).wide(),
            Operands::new(a.hidden.address, block.down.address, a.y.address),
        )?;
        lane.record_wide(tap, format_args!("suffix.layer.{i}.mlp"), a.y.address, rows * width)?;
        residual(lane, 2 * i + 1)
    }
}

/// The times of all evaluations, then 0 if rows are clean.
fn times(sampler: &Sampler, rtc: &Rtc) -> Vec<f32> {
    let mut times = sampler.times();
    if rtc.clean_rows() > 0 {
        times.push(0.0);
    }
    times
}

/// The sampler's steps, put on the stream. Vectors are device addresses.
struct Steps<'a, 'tap> {
    expert: &'a Expert,
    lane: &'a mut Lane,
    cache: &'a Cache,
    layout: Layout,
    horizon: usize,
    times: usize,
    schedule: &'a Schedule,
    clean: usize,
    used: usize,
    /// `x += scale * v`, not yet on the stream: the next evaluation at x takes it along.
    pending: Option<(u64, f32, u64)>,
    failed: Option<EngineError>,
    tap: &'a mut Tap<'tap>,
}

impl Steps<'_, '_> {
    fn count(&self) -> usize {
        self.horizon * self.expert.action_dim
    }

    fn vector(&mut self) -> u64 {
        let vector = self.expert.vectors.get(self.used).map(|buffer| buffer.address);
        self.used += 1;
        vector.unwrap_or_else(|| {
            self.failed =
                Some(super::driver::failed("denoise", "the sampler needs more vectors than were prepared"));
            0
        })
    }

    fn vector_of(&mut self, values: &[f32]) -> Result<u64, EngineError> {
        let at = self.vector();
        self.lane.gpu.upload_to(at, values)?;
        Ok(at)
    }

    fn then(&mut self, work: impl FnOnce(&mut Self) -> Result<(), EngineError>) {
        if self.failed.is_none() {
            self.failed = work(self).err();
        }
    }

    fn flush(&mut self) {
        if let Some((x, scale, v)) = self.pending.take() {
            self.then(|s| {
                let count = s.count();
                let args = [x.into(), v.into(), scale.into(), count.into()];
                s.lane.launch("add_scaled", [count.div_ceil(256), 1, 1], 256, 0, &args)
            });
        }
    }
}

impl Denoiser for Steps<'_, '_> {
    type Vector = u64;
    type Error = EngineError;

    fn velocity(&mut self, x: &u64, evaluation: usize) -> Result<u64, EngineError> {
        self.lane.mark_step(evaluation)?;
        if self.tap.wants(format_args!("step.{evaluation}.x_t")) {
            self.flush();
            self.lane.record_wide(self.tap, format_args!("step.{evaluation}.x_t"), *x, self.count())?;
        }
        let takes_pending = !matches!(self.expert.form, Form::Foreign(_));
        let pending = match self.pending {
            Some((of, scale, v)) if of == *x && takes_pending => {
                self.pending = None;
                (scale, v)
            }
            _ => {
                self.flush();
                (0.0, *x)
            }
        };
        let out = self.vector();
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let one = (2 * self.expert.dims.layers + 1) * 3 * self.expert.dims.width;
        let one_shift = if let Form::Fused(fused) = &self.expert.form { fused.shift_len() } else { 0 };
        let to_clean = if self.clean > 0 { self.times - 1 - evaluation } else { 0 };
        let shifts = self.schedule.shifts.as_ref().map_or(0, |shifts| shifts.address);
        let pass = Pass {
            layout: self.layout,
            horizon: self.horizon,
            modulation: self.schedule.modulations.address + (evaluation * one * 4) as u64,
            shifts: shifts + (evaluation * one_shift * 4) as u64,
            clean: self.clean,
            to_clean: to_clean * one,
            to_clean_shift: to_clean * one_shift,
        };
        let mut nobody = Tap::none();
        // The fixtures record the inside of the first step only.
        let inside = if evaluation == 0 { &mut *self.tap } else { &mut nobody };
        self.expert.velocity(self.lane, self.cache, pass, *x, pending, out, inside)?;
        self.lane.record_wide(self.tap, format_args!("step.{evaluation}.v_t"), out, self.count())?;
        Ok(out)
    }

    fn copy(&mut self, x: &u64) -> u64 {
        self.flush();
        let (to, from, bytes) = (self.vector(), *x, self.count() * 4);
        self.then(|s| s.lane.gpu.copy(to, from, bytes));
        to
    }

    fn add_scaled(&mut self, x: &mut u64, scale: f32, v: &u64) {
        self.flush();
        self.pending = Some((*x, scale, *v));
    }

    fn multiply(&mut self, x: &mut u64, factors: &u64) {
        self.flush();
        let args = [(*x).into(), (*factors).into(), self.count().into()];
        self.then(|s| s.lane.launch("multiply", [s.count().div_ceil(256), 1, 1], 256, 0, &args));
    }
}
