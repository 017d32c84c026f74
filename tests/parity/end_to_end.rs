//! Robot observation → policy → network → policy → robot actions, as openpi's `Policy` and LeRobot's pipelines
//! recorded them.

use std::{fs, path::Path, sync::Arc};

use pi05_thor::{
    config::RobotKind,
    engine::{Choice, probe::Tap},
    model::{Pixels, sampler::Sampler, sampler::TimeRounding, sampler::rtc::Rtc, synth},
    observe::{Observation, RgbImage},
    pipeline::{Model, infer},
    policy::{NetworkShape, Policy, PolicyOptions},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    arrays,
    arrays::{Arrays, largest_difference},
    fixture,
};

/// How far robot actions may be from the recorded ones.
const TOLERANCE: f64 = 2e-5;
/// Side of the tiny network's images.
const SIDE: u32 = 56;

/// A checkpoint folder from recorded parts: (from, to).
fn folder(parts: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (from, to) in parts {
        let to = dir.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(fixture(from), to).unwrap();
    }
    dir
}

const TOKENIZER: (&str, &str) = ("data/tiny_tokenizer.model", "tokenizer.model");

/// The tiny network with the statistics that a policy was recorded with.
fn openpi_folder(action_stats: &Value) -> TempDir {
    let stats = "assets/droid/norm_stats.json";
    let dir = folder(&[
        ("tiny/config.json", "config.json"),
        ("tiny/model.safetensors", "model.safetensors"),
        ("data/assets/droid/norm_stats.json", stats),
        TOKENIZER,
    ]);
    if action_stats.is_object() {
        let path = dir.path().join(stats);
        let mut file: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        file["norm_stats"]["actions"] = action_stats.clone();
        fs::write(path, file.to_string()).unwrap();
    }
    dir
}

/// A policy with its network.
struct Robot {
    model: Model,
    policy: Policy,
}

impl Robot {
    fn new(checkpoint: &Path, asset_id: Option<&str>, options: PolicyOptions) -> Self {
        let model = Model::open(checkpoint.to_str().unwrap(), asset_id).unwrap();
        let dims = model.dims().unwrap();
        let shape = NetworkShape::from(&dims);
        let Model::Folder(folder) = &model else { panic!("a folder was opened") };
        let policy = Policy::new(folder, shape, options).unwrap();
        Self { model, policy }
    }

    /// The robot's actions for an observation, from recorded noise. All values in one list.
    fn actions(&self, seen: &Observation, prompt: &str, noise: &[f32]) -> Vec<f64> {
        let encoded = self.policy.encode(seen, prompt).unwrap();
        let sampler = Sampler::euler(10, self.model.time_rounding());
        let mut engine = self.model.load(Choice::Cpu, |_, _| {}).unwrap();
        let (actions, _) =
            infer(&mut engine, &encoded.input, noise, &sampler, &Rtc::Off, &mut Tap::none()).unwrap();
        self.policy.decode(&actions, &encoded).unwrap().concat()
    }
}

fn options(robot: RobotKind, state_len: usize, actions: usize) -> PolicyOptions {
    let action_names = (0..actions).map(|i| format!("joint_{i}")).collect();
    PolicyOptions { robot, state_len, action_names, max_tokens: Some(96), ..PolicyOptions::default() }
}

fn image(pixels: Vec<u8>) -> Option<Arc<RgbImage>> {
    Some(Arc::new(RgbImage::new(80, 60, pixels).unwrap()))
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn json_file(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// A case of openpi's, through a checkpoint and options of its own.
fn openpi(name: &str, change: impl FnOnce(&mut Observation)) -> (Vec<f64>, Vec<f64>) {
    let case = &json_file("data/data.json")["e2e"][name];
    let recorded = arrays::read(&fixture("data/data.safetensors"));
    let of = |what: &str| &recorded[&format!("e2e.{name}.{what}")];
    let robot = if name == "libero" { RobotKind::Libero } else { RobotKind::Droid };
    let delta_mask = case["delta_mask"].as_array();
    let delta_mask = delta_mask.map(|mask| mask.iter().map(|m| m.as_bool().unwrap()).collect());
    let expected = of("actions");
    let options = PolicyOptions { delta_mask, ..options(robot, 8, expected.shape[1]) };
    let checkpoint = openpi_folder(&case["action_stats"]);
    let robot = Robot::new(checkpoint.path(), Some("droid"), options);
    assert_eq!(robot.model.time_rounding(), TimeRounding::Accumulated);
    let mut seen = Observation {
        images: vec![image(of("base_u8").bytes.clone()), image(of("wrist_u8").bytes.clone()), None],
        state: numbers(&case["state"]),
        ..Observation::default()
    };
    change(&mut seen);
    let actions = robot.actions(&seen, case["prompt"].as_str().unwrap(), &of("noise").f32s());
    (actions, expected.values())
}

#[test]
fn openpi_policies_give_the_recorded_actions() {
    for name in ["droid", "droid_delta", "libero"] {
        let (actions, expected) = openpi(name, |_| {});
        let worst = largest_difference(&actions, &expected);
        assert!(worst <= TOLERANCE, "{name}: {worst}");
    }
}

#[test]
fn every_part_of_an_observation_matters() {
    let blacken = |image: &mut Option<Arc<RgbImage>>| *image = self::image(vec![0; 80 * 60 * 3]);
    let swapped = |seen: &mut Observation| seen.images.swap(0, 1);
    let moved = |seen: &mut Observation| seen.state[7] += 0.1;
    type Change<'a> = &'a dyn Fn(&mut Observation);
    let changes: [(&str, Change<'_>); 5] = [
        ("the first camera", &|seen| blacken(&mut seen.images[0])),
        ("the second camera", &|seen| blacken(&mut seen.images[1])),
        ("which camera is which", &swapped),
        ("a camera that should be masked", &|seen| blacken(&mut seen.images[2])),
        ("the state", &moved),
    ];
    for (what, change) in changes {
        let (actions, expected) = openpi("droid", change);
        let worst = largest_difference(&actions, &expected);
        assert!(worst > 100.0 * TOLERANCE, "{what} moves the actions by {worst}");
    }
}

#[test]
fn a_lerobot_policy_gives_the_recorded_actions() {
    let case = json_file("data/lerobot_e2e.json");
    let recorded = arrays::read(&fixture("data/lerobot_e2e.safetensors"));
    let files = [
        "config.json",
        "model.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    ];
    let from: Vec<String> = files.iter().map(|file| format!("lerobot_ckpt/{file}")).collect();
    let mut parts: Vec<(&str, &str)> = from.iter().map(String::as_str).zip(files).collect();
    parts.push(TOKENIZER);
    let checkpoint = folder(&parts);
    let robot = Robot::new(checkpoint.path(), None, options(RobotKind::Generic, 7, 7));
    assert_eq!(robot.model.time_rounding(), TimeRounding::Direct);

    let seen = Observation {
        images: vec![image(procedural("lerobot.e2e.base")), None, image(procedural("lerobot.e2e.right"))],
        state: recorded["state"].values(),
        ..Observation::default()
    };
    let task = case["task"].as_str().unwrap();
    assert_lerobot_input(&robot.policy, &seen, task, &recorded);
    let actions = robot.actions(&seen, task, &recorded["noise"].f32s());
    let worst = largest_difference(&actions, &recorded["actions"].values());
    assert!(worst <= TOLERANCE, "{worst}");
}

/// The recording's procedural image: planes of 60 rows of 80 pixels, as a camera would send it.
fn procedural(name: &str) -> Vec<u8> {
    let planes = synth::bytes(name, 3 * 60 * 80);
    (0..60 * 80).flat_map(|i| [planes[i], planes[4800 + i], planes[9600 + i]]).collect()
}

/// What goes into the network is what LeRobot put in; it appends the missing camera at the end.
fn assert_lerobot_input(policy: &Policy, seen: &Observation, task: &str, recorded: &Arrays) {
    let input = policy.encode(seen, task).unwrap().input;
    let tokens = recorded["tokens"].values().into_iter().zip(recorded["token_mask"].is_set());
    let tokens: Vec<u32> = tokens.filter_map(|(id, is_valid)| is_valid.then_some(id as u32)).collect();
    assert_eq!(input.tokens, tokens);
    for (slot, key) in [(0, "image.0"), (2, "image.1")] {
        let Some(Pixels::F32(pixels)) = &input.images[slot] else { panic!("LeRobot's images are floats") };
        let plane = (SIDE * SIDE) as usize;
        let planes =
            (0..3).flat_map(|c| (0..plane).map(move |i| f64::from(pixels[3 * i + c]))).collect::<Vec<_>>();
        let worst = largest_difference(&planes, &recorded[key].values());
        assert!(worst < 2e-6, "{key}: {worst}");
    }
    assert_eq!(input.images[1], None);
    assert_eq!(json!(recorded["image_mask.2"].values()), json!([0.0]));
}
