//! Stages by their graphs, computed on the host, in the GPU's own memory and in the order of its streams: everything
//! about mixing them but TensorRT itself. Needs a GPU; without one the test says so and passes.

use std::cell::RefCell;
use std::collections::HashMap;

use half::bf16;

use super::boundary::{Foreign, StageEngine};
use super::graph::{Graph, Port, Type};
use super::interpret::{Rounding, interpret};
use super::on_host::{Seen, ports};
use super::stages::{Format, Sizes, Stage, define};
use crate::engine::backend::{Backend, Stages};
use crate::engine::cuda::CudaEngine;
use crate::engine::cuda::driver::Gpu;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::engine::{Engine, EngineError};
use crate::model::dims::Dims;
use crate::model::sampler::rtc::{Leftover, Rtc};
use crate::model::sampler::{Sampler, TimeRounding, noise};
use crate::model::tensors::Dtype;
use crate::model::{ModelInput, Pixels, synth};
use crate::pipeline::infer;

const SIZES: Sizes = Sizes { cameras: 2, prompt: 37, horizon: 20 };

/// A stage that waits for its stream, so that it can never be captured.
struct Interpreted {
    graph: Graph,
    weights: Weights,
    bound: RefCell<HashMap<String, u64>>,
}

impl StageEngine for Interpreted {
    fn ports(&self) -> Result<Vec<(bool, Port)>, EngineError> {
        Ok(ports(&self.graph))
    }

    unsafe fn bind(&self, name: &str, address: u64) -> Result<(), EngineError> {
        self.bound.borrow_mut().insert(name.to_owned(), address);
        Ok(())
    }

    unsafe fn enqueue(&self, gpu: &Gpu) -> Result<(), EngineError> {
        let bound = self.bound.borrow();
        let mut inputs = HashMap::new();
        for port in self.graph.input_ports() {
            let (at, count) = (bound[&port.name], port.shape.iter().product());
            let values: Vec<f32> = match port.dtype {
                Type::F32 => gpu.download(at, count)?,
                _ => gpu.download(at, count)?.into_iter().map(|b| bf16::from_bits(b).to_f32()).collect(),
            };
            inputs.insert(port.name, values);
        }
        let outputs = interpret(&self.graph, &self.weights, &inputs, Rounding::AsTyped);
        for port in self.graph.output_ports() {
            let (at, values) = (bound[&port.name], &outputs[&port.name]);
            if port.dtype == Type::F32 {
                gpu.upload_to(at, values)?;
            } else {
                let bits: Vec<u16> = values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
                gpu.upload_to(at, &bits)?;
            }
        }
        Ok(())
    }
}

fn weights() -> Weights {
    Weights::synthetic(&Dims::TINY, Dtype::F32, |_| {}).unwrap()
}

fn engine(stages: Option<Stages>) -> Engine {
    let engine = |stage| {
        let graph = define(stage, &Dims::TINY, &SIZES, Format::Bf16, None, true).unwrap();
        Box::new(Interpreted { graph, weights: weights(), bound: RefCell::default() }) as Box<dyn StageEngine>
    };
    let foreign = stages.map(|stages| Foreign {
        engines: Stage::ALL.map(|stage| stages.has(stage).then(|| engine(stage))),
        sizes: SIZES,
    });
    Engine::Cuda(Box::new(CudaEngine::new(&weights(), Dims::TINY, true, None, 3, foreign).unwrap()))
}

/// Other images and another prompt each time; one or two cameras, in any slots.
fn input(i: usize) -> ModelInput {
    let side = Dims::TINY.vision.image;
    let image = |c: usize| {
        let bytes = synth::bytes(&format!("mixed.image.{i}.{c}"), side * side * 3);
        [[true, true, false], [false, true, false], [true, false, true]][i % 3][c]
            .then_some(Pixels::U8(bytes))
    };
    let tokens = [37, 5, 16][i % 3];
    ModelInput {
        images: (0..3).map(image).collect(),
        tokens: (0..tokens).map(|t| (t * 31 + i as u32) % 512).collect(),
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

#[test]
fn whichever_stages_are_not_ours_the_actions_are_the_same() {
    if let Some(reason) = CudaEngine::missing() {
        return eprintln!("skipped: {reason}");
    }
    let sampler = Sampler::euler(3, TimeRounding::Accumulated);
    let values = SIZES.horizon * Dims::TINY.action_dim;
    let start = |i: usize| noise(7, i as u64, values);
    let leftover = start(99)[..values / 2].to_vec();
    let leftover = Leftover { values: &leftover, dims: Dims::TINY.action_dim };
    let trained = Rtc::trained(leftover, 3, [SIZES.horizon, Dims::TINY.action_dim]).unwrap();
    let whole = |engine: &mut Engine, i: usize, rtc: &Rtc| {
        infer(engine, &input(i), &start(i), &sampler, rtc, &mut Tap::none()).unwrap().0
    };
    let mut ours = engine(None);
    let expected: Vec<_> = (0..3).map(|i| whole(&mut ours, i, &Rtc::Off)).collect();
    let steered = whole(&mut ours, 0, &trained);
    for mask in 1..8usize {
        let stages = Stages::of(|stage| mask >> stage as usize & 1 == 1).unwrap();
        let mut mixed = engine(Some(stages));
        assert_eq!(mixed.backend(), Backend::TensorRt(stages));
        mixed.prepare(&input(0).images, SIZES.horizon, &sampler).unwrap();
        let once: Vec<_> = (0..3).map(|i| whole(&mut mixed, i, &Rtc::Off)).collect();
        for (i, (found, expected)) in once.iter().zip(&expected).enumerate() {
            let difference = difference(found, expected);
            assert!(difference <= 5e-2, "{stages}, input {i}: {difference}");
        }
        // Trained real-time chunking, and no trace of it afterwards; stage by stage; from the other slot.
        let difference = difference(&whole(&mut mixed, 0, &trained), &steered);
        assert!(difference <= 5e-2, "{stages}, trained: {difference}");
        for i in (0..3).rev() {
            assert_eq!(whole(&mut mixed, i, &Rtc::Off), once[i], "{stages}, input {i} again");
            let mut seen = Seen::default();
            let tap = &mut Tap::new(&mut seen);
            let (found, _) = infer(&mut mixed, &input(i), &start(i), &sampler, &Rtc::Off, tap).unwrap();
            assert_eq!(found, once[i], "{stages}, input {i} stage by stage");
            assert!(seen.0.contains_key("prefix.kv.0.v"), "{stages}");
        }
        let Engine::Cuda(mixed) = &mut mixed else { unreachable!("cuda was made") };
        let act = |mixed: &mut CudaEngine, i: usize| {
            mixed.start_actions(i % 2, &input(i).tokens, &start(i), &sampler).unwrap();
        };
        mixed.start_vision(0, &input(0).images).unwrap();
        for (i, once) in once.iter().enumerate() {
            act(mixed, i);
            if i < 2 {
                mixed.start_vision((i + 1) % 2, &input(i + 1).images).unwrap();
            }
            assert_eq!(mixed.finish().unwrap().0, *once, "{stages}, input {i} beside the next");
        }
        // What the engines were not built for.
        let many = ModelInput { images: vec![input(0).images[0].clone(); 3], tokens: vec![1] };
        let said = mixed.start_vision(0, &many.images).unwrap_err().to_string();
        assert!(said.contains("at most 2, found 3"), "{said}");
        mixed.start_vision(0, &input(0).images).unwrap();
        let said = mixed.start_actions(0, &[1; 38], &start(0), &sampler).unwrap_err().to_string();
        assert!(said.contains("at most 37 tokens"), "{said}");
        if stages.has(Stage::Denoise) {
            let short = &start(0)[..Dims::TINY.action_dim];
            let said = mixed.start_actions(0, &[1], short, &sampler).unwrap_err().to_string();
            assert!(said.contains("expected 20 actions"), "{said}");
        }
    }
}
