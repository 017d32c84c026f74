//! One inference as the GPU's engine runs it, with its rows, places and padding, on the host: any stage by the graph that
//! TensorRT is told, the others by the reference. Memory begins as if another observation had been there.

use std::collections::HashMap;

use super::interpret::{Rounding, interpret};
use super::stages::{MASKED, Sizes, Stage};
use super::{boundary::agree, graph::Graph, graph::Port};
use crate::engine::backend::Stages;
use crate::engine::cpu::time::{Modulation, TimeConditioning};
use crate::engine::cpu::{CpuEngine, Features, KvCache};
use crate::engine::cuda::room::Room;
use crate::engine::probe::{Probe, Tap};
use crate::engine::weights::Weights;
use crate::model::dims::Dims;
use crate::model::sampler::{HostField, Sampler, rtc::Rtc};
use crate::model::tensors::TOKEN_EMBEDDING;
use crate::model::{ModelInput, Pixels};

/// What is left of another observation: finite, and far from anything right.
const STALE: f32 = 3.0;

/// Everything that was seen on the way, by the names of the recordings.
#[derive(Default)]
pub struct Seen(pub HashMap<String, Vec<f32>>);

impl Probe for Seen {
    fn wants(&self, _: &str) -> bool {
        true
    }
    fn record(&mut self, name: &str, data: &[f32]) {
        self.0.insert(name.to_owned(), data.to_vec());
    }
}

/// The stages that are not ours, and what they were made for.
pub struct OnHost<'a> {
    pub dims: Dims,
    pub weights: &'a Weights,
    pub sizes: Sizes,
    /// By [`Stage`].
    pub graphs: [Graph; 3],
    /// Those that the graphs compute.
    pub stages: Stages,
    pub rounding: Rounding,
}

/// A graph's tensors, inputs marked true.
pub fn ports(graph: &Graph) -> Vec<(bool, Port)> {
    let inputs = graph.input_ports().into_iter().map(|port| (true, port));
    inputs.chain(graph.output_ports().into_iter().map(|port| (false, port))).collect()
}

impl OnHost<'_> {
    /// Actions, and what was seen: features, valid rows of K and V, velocities.
    pub fn run(
        &self,
        input: &ModelInput,
        noise: &[f32],
        sampler: &Sampler,
        rtc: &Rtc,
    ) -> (Vec<f32>, HashMap<String, Vec<f32>>) {
        let dims = &self.dims;
        let room = Room::new(dims, self.sizes.cameras, Some(self.sizes));
        for stage in Stage::ALL {
            let ports = ports(&self.graphs[stage as usize]);
            let trained = ports.iter().any(|(_, port)| port.name == "clean");
            let places = room.places(stage, dims, &self.sizes, trained);
            agree(stage, &ports, &places).unwrap();
        }
        let (width, head_dim) = (dims.language.width, dims.language.head_dim);
        let mut seen = Seen::default();
        let mut cpu = CpuEngine::new(self.weights, *dims, None).unwrap();
        let present = input.images.iter().flatten().count();
        let is_fixed = self.stages.has(Stage::Prefix) && self.stages.has(Stage::Denoise);
        let layout = room.layout(present * dims.vision.tokens(), input.tokens.len(), !is_fixed);
        let valid = layout.image_rows + input.tokens.len();

        // Features: present cameras first.
        let mut embs = vec![STALE; room.rows(dims) * width];
        if self.stages.has(Stage::Vision) && present > 0 {
            let one = dims.vision.image * dims.vision.image * 3;
            let mut pixels = vec![STALE; self.sizes.cameras * one];
            for (to, image) in pixels.chunks_exact_mut(one).zip(input.images.iter().flatten()) {
                match image {
                    Pixels::F32(data) => to.copy_from_slice(data),
                    Pixels::U8(data) => {
                        to.iter_mut().zip(data).for_each(|(to, &b)| *to = f32::from(b) / 255.0 * 2.0 - 1.0);
                    }
                }
            }
            let out = self.compute(Stage::Vision, HashMap::from([("pixels".to_owned(), pixels)]));
            embs[..out["features"].len()].copy_from_slice(&out["features"]);
        } else {
            let features = cpu.vision(&input.images, &mut Tap::none()).unwrap();
            embs[..layout.image_rows * width].copy_from_slice(features.values());
        }

        // Keys and values.
        let mut cache: HashMap<String, Vec<f32>> = HashMap::new();
        for name in (0..dims.language.layers).flat_map(|i| [format!("k.{i}"), format!("v.{i}")]) {
            cache.insert(name, vec![STALE; room.capacity(dims) * head_dim]);
        }
        if self.stages.has(Stage::Prefix) {
            let embedding = self.weights.get(TOKEN_EMBEDDING).unwrap();
            let padded = input.tokens.iter().copied().chain(std::iter::repeat(0));
            for (row, token) in (layout.image_rows..layout.rows).zip(padded) {
                let (token, to) = (token as usize, &mut embs[row * width..(row + 1) * width]);
                embedding.convert(token * width..(token + 1) * width, to);
                to.iter_mut().for_each(|x| *x *= (width as f32).sqrt());
            }
            let rows = self.sizes.prefix(dims);
            let mut inputs = self.tables(0, rows, valid);
            inputs.insert("embs".to_owned(), embs[..rows * width].to_vec());
            for (name, values) in self.compute(Stage::Prefix, inputs) {
                cache.get_mut(&name).unwrap()[..values.len()].copy_from_slice(&values);
            }
        } else {
            let features = Features::of(embs[..layout.image_rows * width].to_vec());
            let mut own = Seen::default();
            cpu.prefix(&features, &input.tokens, &mut Tap::new(&mut own)).unwrap();
            for (name, to) in &mut cache {
                let values = &own.0[&format!("prefix.kv.{}", last_first(name))];
                to[..values.len()].copy_from_slice(values);
            }
        }
        for (name, values) in &cache {
            let rows = values[..valid * head_dim].to_vec();
            seen.0.insert(format!("prefix.kv.{}", last_first(name)), rows);
        }

        // Actions.
        let actions = if self.stages.has(Stage::Denoise) {
            let mut time = TimeConditioning::new(self.weights, dims).unwrap();
            let mut inputs = self.tables(valid, self.sizes.horizon, valid);
            let rows = self.sizes.prefix(dims) * head_dim;
            inputs.extend(cache.iter().map(|(name, values)| (name.clone(), values[..rows].to_vec())));
            let clean = rtc.clean_rows();
            let is_clean = (0..self.sizes.horizon).map(|row| if row < clean { 1.0 } else { 0.0 });
            inputs.insert("clean".to_owned(), is_clean.collect());
            let mut times = sampler.times();
            times.push(0.0);
            let modulations = time.modulations(&times, &mut Tap::none());
            let mut x = rtc.start(noise);
            let mut field = Field { host: self, inputs, modulations: &modulations, seen: &mut seen };
            sampler.run(&mut field, &rtc.steering(), &mut x).unwrap();
            x
        } else {
            let rows = |name: String| cache[&name][..valid * head_dim].to_vec();
            let layers = (0..dims.language.layers).map(|i| [rows(format!("k.{i}")), rows(format!("v.{i}"))]);
            let kv = KvCache::of(layers, valid);
            cpu.denoise(&kv, noise, sampler, rtc, &mut Tap::new(&mut seen)).unwrap()
        };
        (actions, seen.0)
    }

    fn compute(&self, stage: Stage, inputs: HashMap<String, Vec<f32>>) -> HashMap<String, Vec<f32>> {
        interpret(&self.graphs[stage as usize], self.weights, &inputs, self.rounding)
    }

    /// As `mask_and_positions` and the cache's tables have them: of `rows` positions from `first`.
    fn tables(&self, first: usize, rows: usize, valid: usize) -> HashMap<String, Vec<f32>> {
        let head_dim = self.dims.language.head_dim;
        let frequency = |j: usize| 1.0 / 10_000f32.powf((2 * j) as f32 / head_dim as f32);
        let angle = |p: usize| (0..head_dim / 2).map(move |j| p as f32 * frequency(j));
        let (sin, cos) = (first..first + rows).flat_map(angle).map(f32::sin_cos).unzip();
        let prefix = self.sizes.prefix(&self.dims);
        let mask = (0..prefix).map(|row| if row < valid { 0.0 } else { MASKED }).collect();
        HashMap::from([("cos".to_owned(), cos), ("sin".to_owned(), sin), ("mask".to_owned(), mask)])
    }
}

/// `3.k` of `k.3`.
fn last_first(name: &str) -> String {
    let (what, layer) = name.split_once('.').unwrap();
    format!("{layer}.{what}")
}

/// The denoise stage's graph as a velocity field.
struct Field<'a, 'h> {
    host: &'a OnHost<'h>,
    inputs: HashMap<String, Vec<f32>>,
    modulations: &'a [Modulation],
    seen: &'a mut Seen,
}

impl HostField for Field<'_, '_> {
    type Error = std::convert::Infallible;

    fn velocity_at(&mut self, x: &[f32], evaluation: usize) -> Result<Vec<f32>, Self::Error> {
        let mut inputs = self.inputs.clone();
        inputs.insert("x".to_owned(), x.to_vec());
        inputs.insert("modulation".to_owned(), self.modulations[evaluation].values().to_vec());
        let clean = &self.modulations[self.modulations.len() - 1];
        inputs.insert("modulation.clean".to_owned(), clean.values().to_vec());
        let v = self.host.compute(Stage::Denoise, inputs).remove("velocity").unwrap();
        self.seen.record(&format!("step.{evaluation}.v_t"), &v);
        Ok(v)
    }
}
