//! The CUDA engine against the reference engine and against itself. Every test but the last needs a GPU: without one it
//! says so and passes.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, path::Path};

use pi05_thor::{
    config::{Backend, CommandType, Config, DtypeChoice, RobotKind},
    engine::{
        Choice, Engine, Precision,
        calibration::{Calibration, Means, Ranges},
        cuda::CudaEngine,
        probe::{Probe, Tap},
        weights::Weights,
    },
    messages::{FLOAT64_MULTI_ARRAY, decode_float64_multi_array},
    model::{
        ModelInput, Pixels,
        dims::{Dims, GemmaDims, VisionDims},
        names,
        sampler::{
            Sampler, Schedule, Solver, TimeRounding, noise,
            rtc::{Leftover, MAX_GUIDANCE_WEIGHT, PrefixSchedule, Rtc},
        },
        synth,
        tensors::Dtype,
    },
    pipeline::{Model, infer, setup::Setup},
    replay::{bag::Bag, commands::write_commands, pace::Speed, player::Replay, topics::Topics},
};

const HORIZON: usize = 50;

fn has_gpu() -> bool {
    match CudaEngine::missing() {
        None => true,
        Some(reason) => {
            eprintln!("skipped: {reason}");
            false
        }
    }
}

fn tiny(choice: Choice) -> Engine {
    Model::open_network("synth:tiny").unwrap().load(choice, |_, _| {}).unwrap()
}

fn cuda(precision: Precision) -> Box<CudaEngine> {
    match tiny(Choice::Cuda(precision)) {
        Engine::Cuda(engine) => engine,
        _ => unreachable!("cuda was asked for"),
    }
}

/// Observation number `i`: other images, another prompt, and not the same cameras every time.
fn input(i: usize) -> ModelInput {
    let image = |c: usize| {
        let bytes = synth::bytes(&format!("test.image.{i}.{c}"), 224 * 224 * 3);
        match (i + c) % 4 {
            0 => None,
            1 => Some(Pixels::F32(bytes.iter().map(|&b| f32::from(b) / 255.0 * 2.0 - 1.0).collect())),
            _ => Some(Pixels::U8(bytes)),
        }
    };
    let tokens = [1, 16, 17, 45, 199, 200][i % 6];
    ModelInput {
        images: (0..3).map(image).collect(),
        tokens: (0..tokens).map(|t| (t * 31 + i as u32) % 512).collect(),
    }
}

fn noise_of(i: usize) -> Vec<f32> {
    noise(7, i as u64, HORIZON * 32)
}

fn ten_steps() -> Sampler {
    Sampler::euler(10, TimeRounding::Accumulated)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |max, (a, b)| if (a - b).abs() <= max { max } else { (a - b).abs() })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Somebody who looks on and wants nothing: the stages run one by one, not as graphs.
struct Onlooker;

impl Probe for Onlooker {
    fn wants(&self, _: &str) -> bool {
        false
    }
    fn record(&mut self, _: &str, _: &[f32]) {}
}

#[test]
fn f32_is_the_reference() {
    if !has_gpu() {
        return;
    }
    let (mut gpu, mut cpu) = (tiny(Choice::Cuda(Precision::F32)), tiny(Choice::Cpu));
    for i in 0..6 {
        let run = |engine: &mut Engine| {
            infer(engine, &input(i), &noise_of(i), &ten_steps(), &Rtc::Off, &mut Tap::none()).unwrap().0
        };
        let difference = largest_difference(&run(&mut gpu), &run(&mut cpu));
        assert!(difference <= 2e-4, "{i}: {difference}");
    }
}

#[test]
fn bf16_is_near_the_reference() {
    if !has_gpu() {
        return;
    }
    let (mut gpu, mut cpu) = (tiny(Choice::Cuda(Precision::Bf16)), tiny(Choice::Cpu));
    for i in 0..6 {
        let run = |engine: &mut Engine| {
            infer(engine, &input(i), &noise_of(i), &ten_steps(), &Rtc::Off, &mut Tap::none()).unwrap().0
        };
        let difference = largest_difference(&run(&mut gpu), &run(&mut cpu));
        assert!(difference <= 5e-2, "{i}: {difference}");
    }
}

/// `synth:tiny` and what fp8 must know of it, measured on one observation.
fn calibrated() -> (Weights, Dims, Calibration) {
    let model = Model::open_network("synth:tiny").unwrap();
    let (weights, dims) = (model.weights(|_, _| {}).unwrap(), model.dims().unwrap());
    let calibration = calibration_of(&weights, dims);
    (weights, dims, calibration)
}

fn calibration_of(weights: &Weights, dims: Dims) -> Calibration {
    let mut cpu = Engine::new(weights, dims, Choice::Cpu, None, 3).unwrap();
    let mut look = |probe: &mut dyn Probe| {
        let features = cpu.vision(&input(1).images, &mut Tap::new(probe)).unwrap();
        cpu.prefix(&features, &input(1).tokens, &mut Tap::new(probe)).unwrap();
    };
    let mut ranges = Ranges::new(99.9);
    look(&mut ranges);
    let ranges = ranges.calibration();
    let width = |name: &str| names::quantised_width(&dims, name);
    let mut means = Means::new(&ranges, &width);
    look(&mut means);
    let means = means.means();
    ranges.with_means(means)
}

#[test]
fn fp8_is_what_the_cpu_emulates() {
    if !has_gpu() || CudaEngine::present().unwrap().1 != 90 {
        return;
    }
    let (weights, dims, calibration) = calibrated();
    let engine = |choice| Engine::new(&weights, dims, choice, Some(&calibration), 3).unwrap();
    let (mut gpu, mut cpu) = (engine(Choice::Cuda(Precision::Fp8)), engine(Choice::CpuFp8));
    let mut exact = engine(Choice::Cpu);
    assert_eq!((gpu.precision(), cpu.precision()), (Precision::Fp8, Precision::Fp8));
    for i in 0..6 {
        let run = |engine: &mut Engine, tap: &mut Tap| {
            infer(engine, &input(i), &noise_of(i), &ten_steps(), &Rtc::Off, tap).unwrap().0
        };
        let found = run(&mut gpu, &mut Tap::none());
        let difference = largest_difference(&found, &run(&mut cpu, &mut Tap::none()));
        assert!(difference <= 0.1, "{i}: {difference}");
        assert!(largest_difference(&found, &run(&mut exact, &mut Tap::none())) <= 0.15, "{i}");
        assert_eq!(bits(&found), bits(&run(&mut gpu, &mut Tap::none())), "{i}: the same bits again");
        assert_eq!(bits(&found), bits(&run(&mut gpu, &mut Tap::new(&mut Onlooker))), "{i}: without graphs");
    }
}

#[test]
fn only_chosen_matrices_are_e4m3() {
    if !has_gpu() || CudaEngine::present().unwrap().1 != 90 {
        return;
    }
    let (weights, dims, calibration) = calibrated();
    let run = |choice, calibration: Option<&Calibration>| {
        let mut engine = Engine::new(&weights, dims, choice, calibration, 3).unwrap();
        infer(&mut engine, &input(1), &noise_of(1), &ten_steps(), &Rtc::Off, &mut Tap::none()).unwrap().0
    };
    let bf16 = run(Choice::Cuda(Precision::Bf16), None);
    // Every matrix alone, which is every way in which bf16 and e4m3 follow each other.
    let of_matrices = names::quantised(&dims);
    for name in of_matrices.iter().filter(|name| !name.ends_with("post_layernorm")) {
        let one = calibration.only([name.as_str()]).unwrap();
        let found = run(Choice::Cuda(Precision::Fp8), Some(&one));
        let emulated = run(Choice::CpuFp8, Some(&one));
        assert!(largest_difference(&found, &emulated) <= 5e-2, "{name}");
        assert_ne!(bits(&found), bits(&bf16), "{name}");
    }
    let none = run(Choice::Cuda(Precision::Fp8), Some(&Calibration::default()));
    assert_eq!(bits(&none), bits(&bf16), "with nothing chosen it is bf16");
}

#[test]
fn every_solver_and_schedule_is_the_references() {
    if !has_gpu() {
        return;
    }
    let (mut gpu, mut cpu) = (tiny(Choice::Cuda(Precision::F32)), tiny(Choice::Cpu));
    for (i, name) in Solver::NAMES.iter().enumerate() {
        let solver = Solver::from_name(name).unwrap();
        let schedule = Schedule::from_name(Schedule::NAMES[i % Schedule::NAMES.len()]).unwrap();
        let sampler = Sampler { steps: 4, schedule, solver, rounding: TimeRounding::Direct };
        let run = |engine: &mut Engine| {
            infer(engine, &input(1), &noise_of(1), &sampler, &Rtc::Off, &mut Tap::none()).unwrap().0
        };
        let difference = largest_difference(&run(&mut gpu), &run(&mut cpu));
        assert!(difference <= 2e-4, "{name}: {difference}");
    }
}

#[test]
fn real_time_chunking_is_the_references() {
    if !has_gpu() {
        return;
    }
    let (mut gpu, mut cpu) = (tiny(Choice::Cuda(Precision::F32)), tiny(Choice::Cpu));
    let values = noise(8, 0, 30 * 14);
    let leftover = Leftover { values: &values, dims: 14 };
    let shape = [HORIZON, 32];
    let guided = Rtc::guided(leftover, PrefixSchedule::Linear, 4, 20, MAX_GUIDANCE_WEIGHT, shape).unwrap();
    let trained = Rtc::trained(leftover, 5, shape).unwrap();
    for rtc in [guided, trained] {
        let run = |engine: &mut Engine| {
            infer(engine, &input(2), &noise_of(2), &ten_steps(), &rtc, &mut Tap::none()).unwrap().0
        };
        let (found, expected) = (run(&mut gpu), run(&mut cpu));
        let difference = largest_difference(&found, &expected);
        assert!(difference <= 5e-4, "{rtc:?}: {difference}");
    }
}

#[test]
fn graphs_give_what_the_stages_give_and_the_same_bits_again() {
    if !has_gpu() {
        return;
    }
    for precision in [Precision::F32, Precision::Bf16] {
        let mut engine = tiny(Choice::Cuda(precision));
        let mut run = |i: usize, tap: &mut Tap| {
            bits(&infer(&mut engine, &input(i), &noise_of(i), &ten_steps(), &Rtc::Off, tap).unwrap().0)
        };
        let first: Vec<_> = (0..6).map(|i| run(i, &mut Tap::none())).collect();
        for (i, first) in first.iter().enumerate().rev() {
            assert_eq!(run(i, &mut Tap::none()), *first, "{precision} {i}: again, in another order");
            assert_eq!(run(i, &mut Tap::new(&mut Onlooker)), *first, "{precision} {i}: stage by stage");
        }
    }
}

#[test]
fn two_in_flight_give_the_same_bits_as_one_after_the_other() {
    if !has_gpu() {
        return;
    }
    in_flight_as_in_turn(&mut cuda(Precision::Bf16));
}

fn in_flight_as_in_turn(engine: &mut CudaEngine) {
    const COUNT: usize = 24;
    let sampler = ten_steps();
    let sequential: Vec<_> = (0..COUNT)
        .map(|i| {
            let ModelInput { images, tokens } = input(i);
            bits(&engine.run(&images, &tokens, &noise_of(i), &sampler).unwrap().0)
        })
        .collect();
    engine.start_vision(0, &input(0).images).unwrap();
    for (i, expected) in sequential.iter().enumerate() {
        engine.start_actions(i % 2, &input(i).tokens, &noise_of(i), &sampler).unwrap();
        engine.start_vision((i + 1) % 2, &input(i + 1).images).unwrap();
        assert_eq!(bits(&engine.finish().unwrap().0), *expected, "chunk {i}");
    }
}

/// The tiny network with two blocks of π0.5's own action expert, which has kernels of its own that the tiny one's
/// widths do not fit.
fn with_full_expert(choice: Choice) -> Engine {
    let dims = Dims {
        language: GemmaDims { layers: 2, heads: 8, head_dim: 256, ..Dims::TINY.language },
        expert: GemmaDims { layers: 2, ..Dims::FULL.expert },
        ..Dims::TINY
    };
    let weights = Weights::synthetic(&dims, Dtype::F32, |_| {}).unwrap();
    Engine::new(&weights, dims, choice, None, 3).unwrap()
}

/// What stages report of everything that matrices of vision and prefix multiply.
struct Heard(BTreeMap<String, Vec<f32>>, Vec<String>);

impl Probe for Heard {
    fn wants(&self, name: &str) -> bool {
        let camera = |rest: &str| rest.is_empty() || rest.starts_with('.');
        self.1.iter().any(|known| name.strip_prefix(known.as_str()).is_some_and(camera))
    }
    fn record(&mut self, name: &str, data: &[f32]) {
        if self.wants(name) {
            self.0.insert(name.to_owned(), data.to_vec());
        }
    }
}

/// Two layers of SigLIP in π0.5's own widths, and of heads of its own in prefix and expert.
fn full_width() -> Dims {
    Dims {
        vision: VisionDims { layers: 2, ..Dims::FULL.vision },
        language: GemmaDims { layers: 2, heads: 8, head_dim: 256, ..Dims::TINY.language },
        expert: GemmaDims { layers: 2, ..Dims::FULL.expert },
        ..Dims::TINY
    }
}

/// SigLIP of π0.5's own widths has products that do norms themselves; of one, two and three cameras not the same ones.
/// Calibration wants to hear of these norms too.
#[test]
fn full_width_vision_tells_all_that_the_reference_does_and_gives_the_same_bits_untold() {
    if !has_gpu() {
        return;
    }
    let dims = full_width();
    let weights = Weights::synthetic(&dims, Dtype::F32, |_| {}).unwrap();
    let engine = |choice| Engine::new(&weights, dims, choice, None, 3).unwrap();
    let (mut gpu, mut cpu) = (engine(Choice::Cuda(Precision::Bf16)), engine(Choice::Cpu));
    for (i, cameras) in [(1, 3), (0, 2), (0, 1)] {
        let mut input = input(i);
        let present = input.images.iter_mut().filter(|image| image.is_some());
        present.skip(cameras).for_each(|image| *image = None);
        assert_eq!(input.images.iter().flatten().count(), cameras);
        let run = |engine: &mut Engine, tap: &mut Tap| {
            infer(engine, &input, &noise_of(i), &ten_steps(), &Rtc::Off, tap).unwrap().0
        };
        let heard = |engine: &mut Engine| {
            let mut heard = Heard(BTreeMap::new(), names::quantised(&dims));
            let actions = run(engine, &mut Tap::new(&mut heard));
            (heard.0, actions)
        };
        let ((found, told), (expected, _)) = (heard(&mut gpu), heard(&mut cpu));
        let names = |heard: &BTreeMap<String, Vec<f32>>| heard.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{cameras} cameras");
        for (name, expected) in &expected {
            let largest = expected.iter().fold(0f32, |max, x| max.max(x.abs()));
            let difference = largest_difference(&found[name], expected);
            assert!(difference <= 5e-2 * largest, "{cameras} cameras, {name}: {difference} of {largest}");
        }
        assert_eq!(bits(&told), bits(&run(&mut gpu, &mut Tap::none())), "{cameras} cameras");
    }
}

/// SigLIP of π0.5's own widths, and the prefix's own heads, have attentions that write e4m3, and products of their own.
#[test]
fn full_width_fp8_is_what_the_cpu_emulates() {
    if !has_gpu() || CudaEngine::present().unwrap().1 != 90 {
        return;
    }
    let dims = full_width();
    let weights = Weights::synthetic(&dims, Dtype::F32, |_| {}).unwrap();
    let calibration = calibration_of(&weights, dims);
    let engine = |choice| Engine::new(&weights, dims, choice, Some(&calibration), 3).unwrap();
    let (mut gpu, mut cpu) = (engine(Choice::Cuda(Precision::Fp8)), engine(Choice::CpuFp8));
    let heard = |engine: &mut Engine, i: usize| {
        let of = ["vision.projected", "prefix.kv.1.k", "prefix.kv.1.v"].map(str::to_owned);
        let mut heard = Heard(BTreeMap::new(), of.into());
        infer(engine, &input(i), &noise_of(i), &ten_steps(), &Rtc::Off, &mut Tap::new(&mut heard)).unwrap();
        heard.0
    };
    for i in 0..2 {
        let (found, again, expected) = (heard(&mut gpu, i), heard(&mut gpu, i), heard(&mut cpu, i));
        assert!(expected.len() > 2 && found.keys().eq(expected.keys()), "{i}: {:?}", found.keys());
        for (name, expected) in &expected {
            assert_eq!(bits(&found[name]), bits(&again[name]), "{i}, {name}: the same bits again");
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>();
            let lost = square(&mut found[name].iter().zip(expected).map(|(a, b)| a - b));
            let share = (lost / square(&mut expected.iter().copied())).sqrt();
            // What is between two numbers of e4m3 goes to the other one now and then: steps are a sixteenth.
            assert!(share <= 0.1, "{i}, {name}: {share}");
        }
    }
}

#[test]
fn the_full_experts_kernels_are_near_the_reference_and_give_the_same_bits_again() {
    if !has_gpu() {
        return;
    }
    let mut gpu = with_full_expert(Choice::Cuda(Precision::Bf16));
    let mut cpu = with_full_expert(Choice::Cpu);
    // Every count of 8 actions is compiled for itself; inputs have up to three cameras, so keys differ too.
    for (i, horizon) in [1, 10, 24, 32, 33, 48, 50, 64].into_iter().enumerate() {
        let noise = noise(7, i as u64, horizon * 32);
        let run = |engine: &mut Engine| {
            infer(engine, &input(i), &noise, &ten_steps(), &Rtc::Off, &mut Tap::none()).unwrap().0
        };
        let (found, expected) = (run(&mut gpu), run(&mut cpu));
        let difference = largest_difference(&found, &expected);
        assert!(difference <= 5e-2, "{horizon} actions: {difference}");
        for _ in 0..5 {
            assert_eq!(bits(&run(&mut gpu)), bits(&found), "{horizon} actions: again");
        }
    }
    // The first rows at another time than the rest.
    let values = noise(8, 0, 30 * 14);
    let rtc = Rtc::trained(Leftover { values: &values, dims: 14 }, 5, [HORIZON, 32]).unwrap();
    let run = |engine: &mut Engine| {
        infer(engine, &input(2), &noise_of(2), &ten_steps(), &rtc, &mut Tap::none()).unwrap().0
    };
    let difference = largest_difference(&run(&mut gpu), &run(&mut cpu));
    assert!(difference <= 5e-2, "first rows clean: {difference}");
}

#[test]
fn the_full_experts_chunks_in_flight_are_those_one_after_the_other() {
    if !has_gpu() {
        return;
    }
    match with_full_expert(Choice::Cuda(Precision::Bf16)) {
        Engine::Cuda(mut engine) => in_flight_as_in_turn(&mut engine),
        _ => unreachable!("cuda was asked for"),
    }
}

#[test]
fn what_does_not_fit_is_an_error_and_harms_nothing() {
    if !has_gpu() {
        return;
    }
    let mut engine = cuda(Precision::Bf16);
    let ModelInput { images, tokens } = input(3);
    let mut run = |images: &[Option<Pixels>], tokens: &[u32], noise: &[f32]| {
        engine.run(images, tokens, noise, &ten_steps()).map(|(actions, _)| bits(&actions))
    };
    let before = run(&images, &tokens, &noise_of(3)).unwrap();
    for (images, tokens, noise) in [
        (vec![Some(Pixels::U8(vec![0; 5]))], vec![1], noise_of(3)),
        (images.clone(), vec![512], noise_of(3)),
        (images.clone(), vec![1; 4096], noise_of(3)),
        (images.clone(), tokens.clone(), vec![0.0; 33]),
        (images.clone(), tokens.clone(), vec![0.0; 65 * 32]),
        (vec![None], vec![], noise_of(3)),
        (vec![images[0].clone(); 9], vec![1], noise_of(3)),
    ] {
        let said = run(&images, &tokens, &noise).unwrap_err().to_string();
        assert!(said.contains("expected") && !said.contains('\n'), "{said}");
    }
    assert_eq!(run(&images, &tokens, &noise_of(3)).unwrap(), before);
}

#[test]
fn what_was_prepared_is_not_captured_again() {
    if !has_gpu() {
        return;
    }
    let mut engine = cuda(Precision::Bf16);
    let sampler = ten_steps();
    let images = input(1).images;
    engine.prepare(&images, HORIZON, &sampler).unwrap();
    let before = engine.graphs();
    for tokens in [1, 15, 16, 17, 100, 200] {
        let tokens: Vec<u32> = (0..tokens).collect();
        for slot in 0..2 {
            engine.start_vision(slot, &images).unwrap();
            engine.start_actions(slot, &tokens, &noise_of(1), &sampler).unwrap();
            engine.finish().unwrap();
        }
    }
    assert_eq!(engine.graphs(), before);
}

/// The commands of the sample bag on the tiny model, as `commands.mcap` has them: (log time, values).
fn commands(choice: (Backend, DtypeChoice)) -> Vec<(i64, Vec<f64>)> {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    let bag = Bag::open(Path::new(&root).join("tests/data/bags/aloha_sim")).unwrap();
    let mut config = Config::builtin(RobotKind::Aloha).unwrap();
    (config.backend, config.dtype) = choice;
    let setup = Setup::open(&config).unwrap();
    let topics = Topics::resolve(&bag, &config, &setup.cameras).unwrap();
    let inference = setup.load(&config, |_, _| {}).unwrap();
    let cameras = &setup.cameras.names;
    let replay = Replay { config: &config, cameras, topics: &topics, inference, speed: Speed::Max };
    let recording = replay.run(&bag, |_, _| {}).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("commands.mcap");
    write_commands(&recording, CommandType::Float64MultiArray, &path).unwrap();
    let bag = Bag::open(&path).unwrap();
    let topic = bag.topics().iter().position(|topic| topic.type_name == FLOAT64_MULTI_ARRAY).unwrap();
    let records = bag.records(&[topic]).unwrap().map(Result::unwrap);
    records.map(|record| (record.log_time, decode_float64_multi_array(&record.payload).unwrap())).collect()
}

#[test]
fn a_replays_commands_are_those_of_the_cpu_and_the_same_again() {
    if !has_gpu() {
        return;
    }
    let expected = commands((Backend::Cpu, DtypeChoice::F32));
    let found = commands((Backend::Cuda, DtypeChoice::F32));
    assert_eq!(expected.len(), found.len());
    let mut largest = 0.0f64;
    for ((expected_at, expected), (found_at, found)) in expected.iter().zip(&found) {
        assert_eq!((expected_at, expected.len()), (found_at, found.len()));
        for (expected, found) in expected.iter().zip(found) {
            assert!((expected - found).abs() <= 1e-3, "at {found_at}: {expected} {found}");
            largest = largest.max((expected - found).abs());
        }
    }
    println!("{} commands, largest difference {largest:.1e}", found.len());
    let [once, again] = [(); 2].map(|()| commands((Backend::Cuda, DtypeChoice::Bf16)));
    assert!(once == again, "two replays in bf16 differ");
}

#[test]
fn without_a_gpu_there_is_one_clear_line() {
    let Some(reason) = CudaEngine::missing() else { return };
    let model = Model::open_network("synth:tiny").unwrap();
    let said = model.load(Choice::Cuda(Precision::Bf16), |_, _| {}).err().unwrap().to_string();
    assert!(said.starts_with("backend cuda: ") && said.contains(&reason) && !said.contains('\n'), "{said}");
    assert!(matches!(model.load(Choice::Auto, |_, _| {}), Ok(Engine::Cpu(_))), "auto takes the CPU then");
}
