//! The stages' definitions against the reference implementations' recordings, computed by [`super::interpret`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::graph::{Graph, Op, Value};
use super::interpret::{Rounding, watch};
use super::on_host::OnHost;
use super::stages::{Format, Sizes, Stage, define};
use crate::engine::backend::Stages;
use crate::engine::calibration::Calibration;
use crate::engine::cpu::CpuEngine;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::model::ModelInput;
use crate::model::dims::Dims;
use crate::model::sampler::rtc::{Leftover, MAX_GUIDANCE_WEIGHT, PrefixSchedule, Rtc};
use crate::model::sampler::{Sampler, TimeRounding};
use crate::pipeline::Model;
use crate::policy::checkpoint::safetensors::read_case;
use crate::verify::Case;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/tiny").join(name)
}

struct Tiny {
    model: Model,
    dims: Dims,
    weights: Weights,
}

struct Run {
    /// What the engine reported: features, valid rows of every K and V, velocities.
    seen: HashMap<String, Vec<f32>>,
    actions: Vec<f32>,
}

impl Tiny {
    fn open() -> Self {
        let model = Model::open_network(&fixture("").display().to_string()).unwrap();
        Self { dims: model.dims().unwrap(), weights: model.weights(|_, _| {}).unwrap(), model }
    }

    fn sizes(&self) -> Sizes {
        Sizes { cameras: 3, prompt: self.dims.max_tokens, horizon: self.dims.horizon }
    }

    fn graph(&self, stage: Stage, format: Format, calibration: Option<&Calibration>, trained: bool) -> Graph {
        define(stage, &self.dims, &self.sizes(), format, calibration, trained).unwrap()
    }

    /// One inference through the three graphs.
    fn run(
        &self,
        input: &ModelInput,
        noise: &[f32],
        sampler: &Sampler,
        computed: (Format, Rounding),
        calibration: Option<&Calibration>,
    ) -> Run {
        self.run_mixed((Stages::ALL, &Rtc::Off), input, noise, sampler, computed, calibration)
    }

    /// One inference, some stages of it through their graphs.
    fn run_mixed(
        &self,
        (stages, rtc): (Stages, &Rtc),
        input: &ModelInput,
        noise: &[f32],
        sampler: &Sampler,
        (format, rounding): (Format, Rounding),
        calibration: Option<&Calibration>,
    ) -> Run {
        let trained = rtc.clean_rows() > 0;
        let graphs = Stage::ALL.map(|stage| self.graph(stage, format, calibration, trained));
        let (dims, sizes, weights) = (self.dims, self.sizes(), &self.weights);
        let host = OnHost { dims, weights, sizes, graphs, stages, rounding };
        let (actions, seen) = host.run(input, noise, sampler, rtc);
        Run { seen, actions }
    }
}

struct Recorded(std::collections::BTreeMap<String, crate::policy::checkpoint::safetensors::RawTensor>);

impl Recorded {
    fn of(name: &str) -> Self {
        Self(read_case(&fixture(name)).unwrap())
    }

    fn get(&self, key: &str) -> Option<Vec<f32>> {
        Some(self.0.get(key)?.to_f64().unwrap().into_iter().map(|x| x as f32).collect())
    }

    fn values(&self, key: &str) -> Vec<f32> {
        self.get(key).unwrap()
    }
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

/// Ranges of everything that goes into a product, found on the case itself.
fn calibrated(tiny: &Tiny, input: &ModelInput, noise: &[f32], sampler: &Sampler) -> Calibration {
    // Any ranges give the names' places; then the same graph without rounding says how large each becomes.
    let everything = Calibration::from_ranges(names(&tiny.dims).into_iter().map(|name| (name, 1.0)));
    let ranges = watch(|| {
        tiny.run(input, noise, sampler, (Format::Fp8, Rounding::Never), Some(&everything));
    });
    assert_eq!(ranges.len(), names(&tiny.dims).len());
    Calibration::from_ranges(names(&tiny.dims).into_iter().zip(ranges))
}

/// What goes into products, in the order of the graphs.
fn names(dims: &Dims) -> Vec<String> {
    let mut all = Vec::new();
    for i in 0..dims.vision.layers {
        all.extend(
            ["layer_norm1", "attention", "layer_norm2", "hidden"].map(|p| format!("vision.layer.{i}.{p}")),
        );
    }
    all.push("vision.post_layernorm".into());
    for i in 0..dims.language.layers {
        let parts = ["input_layernorm", "attention", "post_attention_layernorm", "hidden"];
        let parts = if i + 1 == dims.language.layers { &parts[..1] } else { &parts[..] };
        all.extend(parts.iter().map(|p| format!("prefix.layer.{i}.{p}")));
    }
    all
}

fn each_case(check: impl Fn(&Tiny, &Recorded, ModelInput, Vec<f32>, Sampler)) {
    let tiny = Tiny::open();
    for case in ["case_a_f32.safetensors", "case_b_f32.safetensors", "case_c_f32.safetensors"] {
        let recorded = Recorded::of(case);
        let start = Case::read(&fixture(case), &tiny.model).unwrap().start().unwrap();
        let sampler = Sampler::euler(recorded.values("times").len(), TimeRounding::Accumulated);
        check(&tiny, &recorded, start.input, start.noise, sampler);
    }
}

#[test]
fn in_f32_they_are_the_reference_whichever_stages_they_compute() {
    each_case(|tiny, recorded, input, noise, sampler| {
        for stages in (1..8).filter_map(|mask: usize| Stages::of(|stage| mask >> stage as usize & 1 == 1)) {
            let exact = (Format::Bf16, Rounding::Never);
            let run = tiny.run_mixed((stages, &Rtc::Off), &input, &noise, &sampler, exact, None);
            let valid = recorded.values("prefix.pad_mask");
            let kv: Vec<_> = run.seen.iter().filter(|(name, _)| name.starts_with("prefix.kv.")).collect();
            assert_eq!(kv.len(), 2 * tiny.dims.language.layers);
            let mut compared = 0;
            for (name, values) in kv {
                let Some(all) = recorded.get(name) else { continue }; // not every case has every layer
                let rows =
                    all.chunks_exact(tiny.dims.language.head_dim).zip(&valid).filter(|(_, v)| **v != 0.0);
                let rows: Vec<f32> = rows.flat_map(|(row, _)| row.to_vec()).collect();
                let difference = difference(values, &rows);
                assert!(difference <= 2e-5, "{name}: {difference}");
                compared += 1;
            }
            assert!(compared >= 4, "{compared}");
            for step in 0..sampler.steps {
                let name = format!("step.{step}.v_t");
                let velocity = difference(&run.seen[&name], &recorded.values(&name));
                assert!(velocity <= 2e-5, "{name}: {velocity}");
            }
            let actions = difference(&run.actions, &recorded.values("actions"));
            assert!(actions <= 5e-5, "{stages}: actions: {actions}");
        }
    });
}

/// Guided and trained real-time chunking, whichever stages are TensorRT's.
#[test]
fn steered_chunks_are_the_references_too() {
    each_case(|tiny, _, input, noise, sampler| {
        let rows = tiny.dims.horizon / 2;
        let values: Vec<f32> =
            noise.iter().rev().take(rows * tiny.dims.action_dim).map(|x| x / 2.0).collect();
        let leftover = Leftover { values: &values, dims: tiny.dims.action_dim };
        let shape = [tiny.dims.horizon, tiny.dims.action_dim];
        let linear = PrefixSchedule::Linear;
        let guided = Rtc::guided(leftover, linear, 2, rows, MAX_GUIDANCE_WEIGHT, shape).unwrap();
        let trained = Rtc::trained(leftover, 3, shape).unwrap();
        for rtc in [guided, trained] {
            let exact = (Format::Bf16, Rounding::Never);
            let run = |stages| tiny.run_mixed((stages, &rtc), &input, &noise, &sampler, exact, None);
            let reference = {
                let mut cpu = CpuEngine::new(&tiny.weights, tiny.dims, None).unwrap();
                let nobody = &mut Tap::none();
                let features = cpu.vision(&input.images, nobody).unwrap();
                let kv = cpu.prefix(&features, &input.tokens, nobody).unwrap();
                cpu.denoise(&kv, &noise, &sampler, &rtc, nobody).unwrap()
            };
            for stages in [Stages::ALL, Stages::of(|stage| stage == Stage::Denoise).unwrap()] {
                let actions = difference(&run(stages).actions, &reference);
                assert!(actions <= 5e-5, "{stages}: actions: {actions}");
            }
            let unsteered = tiny.run(&input, &noise, &sampler, exact, None).actions;
            assert!(difference(&unsteered, &reference) > 1e-2);
        }
    });
}

#[test]
fn rounded_as_typed_they_stay_near_it() {
    each_case(|tiny, recorded, input, noise, sampler| {
        for (format, tolerance) in [(Format::Bf16, 5e-2), (Format::Fp16, 1e-2)] {
            let run = tiny.run(&input, &noise, &sampler, (format, Rounding::AsTyped), None);
            let actions = difference(&run.actions, &recorded.values("actions"));
            assert!(actions > 0.0 && actions <= tolerance, "{format}: {actions}");
        }
    });
}

#[test]
fn e4m3_with_calibrated_ranges_stays_within_its_tolerance() {
    each_case(|tiny, recorded, input, noise, sampler| {
        let calibration = calibrated(tiny, &input, &noise, &sampler);
        let run = tiny.run(&input, &noise, &sampler, (Format::Fp8, Rounding::AsTyped), Some(&calibration));
        let actions = difference(&run.actions, &recorded.values("actions"));
        assert!(actions > 0.0 && actions <= 0.15, "actions: {actions}");
    });
}

#[test]
fn e4m3_needs_the_range_of_every_product_and_leaves_the_expert_alone() {
    let tiny = Tiny::open();
    let define = |stage, calibration: Option<&Calibration>| {
        define(stage, &tiny.dims, &tiny.sizes(), Format::Fp8, calibration, false)
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
    for (stage, trained) in Stage::ALL.into_iter().flat_map(|stage| [(stage, false), (stage, true)]) {
        let graph = tiny.graph(stage, Format::Bf16, None, trained);
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
