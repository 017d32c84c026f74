//! Time conditioning: t → sin/cos → time MLP → the adaRMS modulation of all norms (spec/PI05.md §6, §7.4, §7.6).

use std::f64::consts::PI;
use std::sync::Arc;

use super::MissingTensor;
use super::gemma::{Channels, Norm};
use super::linear::Linear;
use super::math::silu;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::dims::{Dims, Periods};
use crate::model::names::EXPERT;

/// Makes modulation vectors and keeps them: they depend on t alone, so a schedule's are made once.
pub struct TimeConditioning {
    width: usize,
    periods: Periods,
    mlp_in: Linear,
    mlp_out: Linear,
    /// One per norm: two per layer, then the final one.
    dense: Vec<Linear>,
    /// The last schedule and its modulations. Kept and made as a whole: rounding depends on how many times are made
    /// together, and must not depend on what ran before.
    last: (Vec<f32>, Arc<[Modulation]>),
}

/// All norms' modulation at one time: `[norms, 3 * width]` as (1 + scale, shift, gate).
pub struct Modulation {
    width: usize,
    norms: Vec<f32>,
}

impl TimeConditioning {
    /// Of the expert, and of the periods.
    pub fn new(weights: &Weights, dims: &Dims) -> Result<Self, MissingTensor> {
        let linear = |name: String| Linear::new(weights, &name).ok_or(MissingTensor(name));
        let layers = dims.expert.layers;
        let mut dense = Vec::with_capacity(2 * layers + 1);
        for i in 0..layers {
            dense.push(linear(format!("{EXPERT}layers.{i}.input_layernorm.dense"))?);
            dense.push(linear(format!("{EXPERT}layers.{i}.post_attention_layernorm.dense"))?);
        }
        dense.push(linear(format!("{EXPERT}norm.dense"))?);
        Ok(Self {
            width: dims.expert.width,
            periods: dims.periods,
            mlp_in: linear("time_mlp_in".into())?,
            mlp_out: linear("time_mlp_out".into())?,
            dense,
            last: (Vec::new(), Arc::new([])),
        })
    }

    /// The modulation at each of `times`, made in one pass over the weights unless the last schedule was the same.
    pub fn modulations(&mut self, times: &[f32], tap: &mut Tap) -> Arc<[Modulation]> {
        let is_wanted = |step: usize| {
            tap.wants(format_args!("step.{step}.time_sincos"))
                || tap.wants(format_args!("step.{step}.adarms_cond"))
        };
        if (0..times.len()).any(is_wanted) {
            let (sincos, cond) = self.conditions(times);
            let rows = sincos.chunks_exact(self.width).zip(cond.chunks_exact(self.width));
            for (step, (sincos, cond)) in rows.enumerate() {
                tap.record(format_args!("step.{step}.time_sincos"), sincos);
                tap.record(format_args!("step.{step}.adarms_cond"), cond);
            }
        }
        if self.last.0 != times {
            self.last = (times.to_vec(), self.make(times).collect());
        }
        self.last.1.clone()
    }

    fn make(&self, times: &[f32]) -> impl Iterator<Item = Modulation> {
        let (_, cond) = self.conditions(times);
        let width = self.width;
        let mut made: Vec<Vec<f32>> =
            times.iter().map(|_| Vec::with_capacity(self.dense.len() * 3 * width)).collect();
        for dense in &self.dense {
            for (row, norms) in dense.of(&cond).chunks_exact(3 * width).zip(&mut made) {
                norms.extend(row[..width].iter().map(|scale| 1.0 + scale));
                norms.extend(&row[width..]);
            }
        }
        made.into_iter().map(move |norms| Modulation { width, norms })
    }

    /// `(sin | cos)` of each time, and `silu(out(silu(in(·))))` of it: `[times, width]` each.
    fn conditions(&self, times: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let sincos: Vec<f32> = times.iter().flat_map(|&t| sincos(t, self.width, self.periods)).collect();
        let mut cond = self.mlp_in.of(&sincos);
        silu(&mut cond);
        let mut cond = self.mlp_out.of(&cond);
        silu(&mut cond);
        (sincos, cond)
    }
}

impl Modulation {
    /// `[norms, 3, width]`
    pub fn values(&self) -> &[f32] {
        &self.norms
    }

    fn channels(&self, i: usize) -> Channels<'_> {
        let row = &self.norms[i * 3 * self.width..][..3 * self.width];
        let (scale, rest) = row.split_at(self.width);
        let (shift, gate) = rest.split_at(self.width);
        Channels { scale, shift: Some(shift), gate: Some(gate) }
    }
}

/// Which modulation each action token has in one evaluation.
#[derive(Clone, Copy)]
pub struct Modulated<'a> {
    /// That of the evaluation's time.
    pub all: &'a Modulation,
    /// How many tokens come first as clean actions, and the modulation at time 0.
    pub clean: Option<(usize, &'a Modulation)>,
}

impl<'a> Modulated<'a> {
    /// Norm number `i`: layer `i / 2`'s input (even) or post-attention (odd) norm; the final norm comes last.
    pub fn norm(&self, i: usize) -> Norm<'a> {
        let first = self.clean.map(|(rows, modulation)| (rows, modulation.channels(i)));
        Norm { channels: self.all.channels(i), first }
    }
}

/// The sines, then the cosines, of `t * 2π / period_j`, periods in geometric steps; f64 inside.
fn sincos(t: f32, width: usize, Periods { min, max }: Periods) -> Vec<f32> {
    let half = width / 2;
    let angle = |j: usize| {
        let fraction = if half > 1 { j as f64 / (half - 1) as f64 } else { 0.0 };
        let period = min * (max / min).powf(fraction);
        f64::from(t) * (1.0 / period * 2.0 * PI)
    };
    let sin = (0..half).map(|j| angle(j).sin() as f32);
    let cos = (0..half).map(|j| angle(j).cos() as f32);
    sin.chain(cos).collect()
}
