//! The stages' definitions against the reference implementations' recordings, computed by [`super::interpret`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::calibration::Calibration;
use super::feed::{self, Slots, Tables};
use super::graph::{Graph, Op, Value};
use super::interpret::{Rounding, interpret, watch};
use super::stages::{Format, Sizes, Stage, define};
use crate::engine::cpu::time::TimeConditioning;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::ModelInput;
use crate::model::dims::{Dims, DimsHints};
use crate::model::tensors::TOKEN_EMBEDDING;
use crate::pipeline::Model;
use crate::policy::checkpoint::safetensors::read_case;
use crate::verify::Case;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/tiny").join(name)
}

struct Tiny {
    dims: Dims,
    weights: Weights,
}

struct Run {
    /// Valid rows of every K and V, in order.
    kv: Vec<Vec<f32>>,
    velocity: Vec<f32>,
    actions: Vec<f32>,
}

impl Tiny {
    fn open() -> Self {
        let Model::Folder(checkpoint) = Model::open_network(&fixture("").display().to_string()).unwrap() else {
            panic!("a folder was opened")
        };
        let hints = DimsHints {
            vision_heads: checkpoint.hints.vision_heads,
            horizon: checkpoint.hints.action_horizon,
            max_tokens: checkpoint.hints.max_token_len,
            action_dim: checkpoint.hints.action_dim,
        };
        let dims = Dims::from_tensors(&checkpoint.tensors, &hints).unwrap();
        Self { dims, weights: Weights::map(&checkpoint.tensors).unwrap() }
    }

    fn sizes(&self) -> Sizes {
        Sizes { cameras: 3, prompt: self.dims.max_tokens, horizon: self.dims.horizon }
    }

    fn graph(&self, stage: Stage, format: Format, calibration: Option<&Calibration>) -> Graph {
        define(stage, &self.dims, &self.sizes(), format, calibration).unwrap()
    }

    /// One inference through the three graphs, Euler steps by hand.
    fn run(
        &self,
        input: &ModelInput,
        noise: &[f32],
        times: &[f32],
        (format, rounding): (Format, Rounding),
        calibration: Option<&Calibration>,
    ) -> Run {
        let (dims, sizes) = (&self.dims, &self.sizes());
        let compute = |stage, inputs: &HashMap<String, Vec<f32>>| {
            interpret(&self.graph(stage, format, calibration), &self.weights, inputs, rounding)
        };
        let present: Vec<bool> = input.images.iter().map(Option::is_some).collect();
        let slots = Slots::new(dims, sizes, &present, input.tokens.len()).unwrap();
        let pixels = feed::pixels(dims, sizes, &input.images).unwrap();
        let mut features = compute(Stage::Vision, &HashMap::from([("pixels".to_owned(), pixels)]));
        let embedding = self.weights.get(TOKEN_EMBEDDING).unwrap();
        let tables = Tables::new(dims.language.head_dim, slots.positions());
        let mut kv = compute(
            Stage::Prefix,
            &HashMap::from([
                ("features".to_owned(), features.remove("features").unwrap()),
                ("prompt".to_owned(), feed::prompt(dims, sizes, &embedding, &input.tokens).unwrap()),
                ("cos".to_owned(), tables.cos),
                ("sin".to_owned(), tables.sin),
                ("mask".to_owned(), slots.mask()),
            ]),
        );
        let mut valid_kv = Vec::new();
        for i in 0..dims.language.layers {
            for name in ["k", "v"] {
                let rows = kv[&format!("{name}.{i}")].chunks_exact(dims.language.head_dim);
                let valid = rows.zip(slots.valid()).filter(|(_, valid)| **valid);
                valid_kv.push(valid.flat_map(|(row, _)| row.to_vec()).collect());
            }
        }
        let first = slots.count();
        let tables = Tables::new(dims.expert.head_dim, first..first + sizes.horizon);
        kv.extend([("cos".to_owned(), tables.cos), ("sin".to_owned(), tables.sin)]);
        kv.insert("mask".to_owned(), slots.mask());
        let mut time = TimeConditioning::new(&self.weights, &dims.expert).unwrap();
        let modulations = time.modulations(times, &mut Tap::none());
        let mut x = noise.to_vec();
        let mut velocity = Vec::new();
        for modulation in modulations.iter() {
            kv.insert("x".to_owned(), x.clone());
            kv.insert("modulation".to_owned(), modulation.values().to_vec());
            let v = compute(Stage::Denoise, &kv).remove("velocity").unwrap();
            x.iter_mut().zip(&v).for_each(|(x, v)| *x -= v / times.len() as f32);
            if velocity.is_empty() {
                velocity = v;
            }
        }
        Run { kv: valid_kv, velocity, actions: x }
    }
}

struct Recorded(std::collections::BTreeMap<String, crate::policy::checkpoint::safetensors::RawTensor>);

impl Recorded {
    fn of(name: &str) -> Self {
        Self(read_case(&fixture(name)).unwrap())
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.0[key].to_f64().unwrap().into_iter().map(|x| x as f32).collect()
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

/// Ranges of everything that goes into a product, found on the case itself.
fn calibrated(tiny: &Tiny, input: &ModelInput, noise: &[f32], times: &[f32]) -> Calibration {
    // Any ranges give the names' places; then the same graph without rounding says how large each becomes.
    let everything = Calibration::from_ranges(names(&tiny.dims).into_iter().map(|name| (name, 1.0)));
    let ranges = watch(|| {
        tiny.run(input, noise, times, (Format::Fp8, Rounding::Never), Some(&everything));
    });
    assert_eq!(ranges.len(), names(&tiny.dims).len());
    Calibration::from_ranges(names(&tiny.dims).into_iter().zip(ranges))
}

/// What goes into products, in the order of the graphs.
fn names(dims: &Dims) -> Vec<String> {
    let mut all = Vec::new();
    for i in 0..dims.vision.layers {
        all.extend(["layer_norm1", "attention", "layer_norm2", "hidden"].map(|p| format!("vision.layer.{i}.{p}")));
    }
    all.push("vision.post_layernorm".into());
    for i in 0..dims.language.layers {
        let parts = ["input_layernorm", "attention", "post_attention_layernorm", "hidden"];
        let parts = if i + 1 == dims.language.layers { &parts[..1] } else { &parts[..] };
        all.extend(parts.iter().map(|p| format!("prefix.layer.{i}.{p}")));
    }
    all
}

fn each_case(check: impl Fn(&Tiny, &Recorded, ModelInput, Vec<f32>, Vec<f32>)) {
    let tiny = Tiny::open();
    for case in ["case_a_f32.safetensors", "case_b_f32.safetensors", "case_c_f32.safetensors"] {
        let recorded = Recorded::of(case);
        let start = Case::read(&fixture(case), &tiny.dims).unwrap().start();
        let times = recorded.values("times");
        check(&tiny, &recorded, start.input, start.noise, times);
    }
}

#[test]
fn the_definitions_in_f32_are_the_reference() {
    each_case(|tiny, recorded, input, noise, times| {
        let run = tiny.run(&input, &noise, &times, (Format::Bf16, Rounding::Never), None);
        let valid = recorded.values("prefix.pad_mask");
        for (i, values) in run.kv.iter().enumerate() {
            let key = format!("prefix.kv.{}.{}", i / 2, ["k", "v"][i % 2]);
            let all = recorded.values(&key);
            let rows = all.chunks_exact(tiny.dims.language.head_dim).zip(&valid).filter(|(_, v)| **v != 0.0);
            let rows: Vec<f32> = rows.flat_map(|(row, _)| row.to_vec()).collect();
            let difference = difference(values, &rows);
            assert!(difference <= 2e-5, "{key}: {difference}");
        }
        let velocity = difference(&run.velocity, &recorded.values("step.0.v_t"));
        assert!(velocity <= 2e-5, "velocity: {velocity}");
        let actions = difference(&run.actions, &recorded.values("actions"));
        assert!(actions <= 5e-5, "actions: {actions}");
    });
}

#[test]
fn rounded_as_typed_they_stay_near_it() {
    each_case(|tiny, recorded, input, noise, times| {
        for (format, tolerance) in [(Format::Bf16, 5e-2), (Format::Fp16, 1e-2)] {
            let run = tiny.run(&input, &noise, &times, (format, Rounding::AsTyped), None);
            let actions = difference(&run.actions, &recorded.values("actions"));
            assert!(actions > 0.0 && actions <= tolerance, "{format}: {actions}");
        }
    });
}

#[test]
fn e4m3_with_calibrated_ranges_stays_within_its_tolerance() {
    each_case(|tiny, recorded, input, noise, times| {
        let calibration = calibrated(tiny, &input, &noise, &times);
        let run = tiny.run(&input, &noise, &times, (Format::Fp8, Rounding::AsTyped), Some(&calibration));
        let actions = difference(&run.actions, &recorded.values("actions"));
        assert!(actions > 0.0 && actions <= 0.15, "actions: {actions}");
    });
}

#[test]
fn e4m3_needs_the_range_of_every_product_and_leaves_the_expert_alone() {
    let tiny = Tiny::open();
    let define = |stage, calibration: Option<&Calibration>| {
        define(stage, &tiny.dims, &tiny.sizes(), Format::Fp8, calibration)
    };
    let said = define(Stage::Vision, None).unwrap_err().to_string();
    assert!(said.contains("pi05 calibrate"), "{said}");
    let all = names(&tiny.dims);
    for missing in &all {
        let ranges = all.iter().filter(|name| *name != missing).map(|name| (name.clone(), 1.0));
        let stage = if missing.starts_with("vision") { Stage::Vision } else { Stage::Prefix };
        let said = define(stage, Some(&Calibration::from_ranges(ranges))).unwrap_err().to_string();
        assert!(said.contains(missing.as_str()), "{said}");
    }
    let denoise = define(Stage::Denoise, None).unwrap();
    assert!(!denoise.nodes().iter().any(|node| matches!(node.op, Op::Quantize(..))));
}

#[test]
fn every_value_is_made_before_it_is_read() {
    let tiny = Tiny::open();
    for stage in [Stage::Vision, Stage::Prefix, Stage::Denoise] {
        let graph = tiny.graph(stage, Format::Bf16, None);
        let before = |i: usize, v: &Value| v.0 < i;
        for (i, node) in graph.nodes().iter().enumerate() {
            let ok = match &node.op {
                Op::MatMul { x, y, .. } | Op::Binary(_, x, y) => before(i, x) && before(i, y),
                Op::Cast(x) | Op::Reshape(x) | Op::Softmax(x) | Op::Mean(x) => before(i, x),
                Op::Concat(parts, _) => parts.iter().all(|p| before(i, p)),
                _ => true,
            };
            assert!(ok, "{i}: {node:?}");
        }
    }
}
