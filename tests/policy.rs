//! The policy around the network against what openpi and LeRobot computed (tests/data/fixtures/data),
//! and its refusals.

#![allow(clippy::unwrap_used, clippy::panic)] // in the functions that the tests share

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use pi05_thor::{
    config::{Config, RobotKind},
    model::{Pixels, tensors::TensorTable},
    observe::{Observation, RgbImage},
    policy::{
        Encoded, MAX_PROMPT_BYTES, NetworkShape, Policy, PolicyError, PolicyOptions,
        checkpoint::{Checkpoint, ConfigHints, Layout, RelativeActions},
        normalize::{Feature, Normalizer},
        prompt::{self, PromptFormat},
        resize::Resize,
        robot::Robot,
        statistics::{FeatureStats, NormMode, Statistics},
    },
};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;

// -------------------------------------------------------------------------------------------------- normalisation

#[test]
fn openpi_normalises_as_recorded() {
    let data = data_json();
    let (statistics, case) = (droid_statistics(), &data["normalize"]);
    for (mode, forth, back) in
        [(NormMode::Quantiles, "quantile", "unnorm_quantile"), (NormMode::MeanStd, "zscore", "unnorm_zscore")]
    {
        let state = Normalizer::new(Layout::OpenPi, Feature::State, &statistics, mode, 8).unwrap();
        let action = Normalizer::new(Layout::OpenPi, Feature::Action, &statistics, mode, 8).unwrap();
        assert_eq!(state.normalize(&numbers(&case["state"])), numbers(&case[forth]));
        for (x, expected) in rows(&case["model_actions"]).iter().zip(rows(&case[back])) {
            assert_eq!(action.unnormalize(x), expected);
        }
    }
}

#[test]
fn openpi_leaves_what_short_statistics_do_not_cover() {
    let data = data_json();
    let case = &data["unnormalize_short_stats"];
    let stats = |name: &str| Some(numbers(&case[name]));
    let action = FeatureStats {
        q01: stats("q01"),
        q99: stats("q99"),
        mean: stats("mean"),
        std: stats("std"),
        ..FeatureStats::default()
    };
    let statistics = Statistics { action, ..droid_statistics() };
    for (mode, expected) in [(NormMode::Quantiles, "quantile"), (NormMode::MeanStd, "zscore")] {
        let action = Normalizer::new(Layout::OpenPi, Feature::Action, &statistics, mode, 7).unwrap();
        for (x, expected) in rows(&case["x"]).iter().zip(rows(&case[expected])) {
            assert_eq!(action.unnormalize(x), expected);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------- prompt

#[test]
fn bins_as_recorded() {
    let data = data_json();
    let case = &data["discretize"];
    for (value, expected) in numbers(&case["values"]).into_iter().zip(numbers(&case["bins"])) {
        assert_eq!(f64::from(prompt::bin(value)), expected, "{value}");
    }
    for (value, name) in [(f64::NAN, "nan"), (f64::INFINITY, "inf"), (f64::NEG_INFINITY, "ninf")] {
        assert_eq!(i64::from(prompt::bin(value)), case[name].as_i64().unwrap(), "{name}");
    }
}

#[test]
fn prompts_as_recorded() {
    let data = data_json();
    for case in data["prompts"].as_array().unwrap() {
        let calls = case["encode_calls"].as_array().unwrap();
        let expected: Vec<&str> = calls.iter().map(|call| call[0].as_str().unwrap()).collect();
        let format =
            if case["state"].is_null() { PromptFormat::TaskOnlyNewline } else { PromptFormat::StateInPrompt };
        let state = case["state"].as_array().map(|_| numbers(&case["state"])).unwrap_or_default();
        assert_eq!(format.compose(case["text"].as_str().unwrap(), &state), expected);
    }
    assert_eq!(PromptFormat::TaskOnly.compose(" pick_up ", &[0.5]), ["Task: pick up;\nAction: "]);
}

// ----------------------------------------------------------------------------------------------------------- robot

#[test]
fn aloha_as_recorded() {
    let data = data_json();
    let case = &data["aloha"];
    let robot = Robot::Aloha { adapt_to_pi: true };
    let state = robot.state_in(&numbers(&case["raw_state"]));
    assert_close(&state, &numbers(&case["pi_state"]), 1e-15);
    let mask: Vec<bool> =
        case["delta_mask"].as_array().unwrap().iter().map(|b| b.as_bool().unwrap()).collect();
    assert_eq!(RobotKind::Aloha.default_delta_mask().unwrap(), mask);
    for (absolute, expected) in rows(&case["after_absolute"]).iter().zip(rows(&case["output"])) {
        assert_close(&robot.action_out(absolute, 14), &expected, 1e-15);
    }
}

#[test]
fn aloha_end_to_end_as_recorded() {
    let data = data_json();
    let case = &data["aloha"];
    let model_actions = rows(&case["model_actions_unnormalized"]);
    let (horizon, action_dim) = (model_actions.len(), model_actions[0].len());
    let shape = NetworkShape { image_side: 56, vocab: 512, action_dim, horizon, max_tokens: 200 };
    let options =
        PolicyOptions { normalization: Some(NormMode::Identity), ..options(RobotKind::Aloha, 14, 14) };
    let policy = Policy::synthetic(shape, options).unwrap();
    let encoded = policy.encode(&observation(numbers(&case["raw_state"])), "transfer the cube").unwrap();
    assert_close(&encoded.normalized_state, &numbers(&case["pi_state"]), 1e-15);
    let actions: Vec<f32> = model_actions.iter().flatten().map(|&v| v as f32).collect();
    for (action, expected) in policy.decode(&actions, &encoded).unwrap().iter().zip(rows(&case["output"])) {
        assert_close(action, &expected, 1e-6);
    }
}

// ------------------------------------------------------------------------------------------------ openpi, complete

#[test]
fn openpi_end_to_end_as_recorded() {
    let data = data_json();
    let recorded = tensors("data.safetensors");
    for name in ["droid", "droid_delta", "libero"] {
        let case = &data["e2e"][name];
        let (policy, statistics) = openpi_policy(name, case);
        let bytes = |name: String| recorded[&name].1.iter().map(|&v| v as u8).collect::<Vec<_>>();
        let image = RgbImage::new(80, 60, bytes(format!("e2e.{name}.base_u8"))).unwrap();
        let seen =
            Observation { images: vec![Some(Arc::new(image)), None], ..observation(numbers(&case["state"])) };
        let encoded = policy.encode(&seen, text(&case["prompt"])).unwrap();
        let tokens = ids_of(&case["tokens"]);
        let n_valid = case["n_valid"].as_u64().unwrap() as usize;
        assert_eq!(encoded.input.tokens, tokens[..n_valid], "{name}");
        assert_eq!((encoded.token_count, encoded.truncated), (n_valid, false));
        assert_eq!(encoded.normalized_state, numbers(&case["normalized_state"]));
        assert_eq!(encoded.prompt_text, text(&case["prompt_text"]));
        let resized = Pixels::U8(bytes(format!("e2e.{name}.resized_base_u8")));
        assert_eq!(encoded.input.images, [Some(resized), None]);

        // The way back, from the network's output that must have led to the recorded actions.
        let (shape, expected) = &recorded[&format!("e2e.{name}.actions")];
        let (actions, anchor) = (shape[1], numbers(&case["state"]));
        let (q01, q99) = (statistics.action.q01.unwrap(), statistics.action.q99.unwrap());
        let back = |(i, action): (usize, &f64)| {
            let offset = if policy.delta_mask().get(i) == Some(&true) { anchor[i] } else { 0.0 };
            ((action - offset - q01[i]) / (q99[i] - q01[i] + 1e-6) * 2.0 - 1.0) as f32
        };
        let padding = vec![9.0; policy.shape().action_dim - actions];
        let model_actions: Vec<f32> = expected
            .chunks(actions)
            .flat_map(|row| row.iter().enumerate().map(back).chain(padding.clone()).collect::<Vec<_>>())
            .collect();
        let decoded = policy.decode(&model_actions, &encoded).unwrap();
        assert_close(&decoded.concat(), expected, 1e-12);
    }
}

/// NumPy keeps `(x + 1) / 2` in the f32 of the network's output; only then come the f64 statistics. So the recorded
/// actions, taken back through the statistics, are f32 values to the last bit, and so must ours be.
#[test]
fn openpi_takes_the_first_step_of_unnormalising_in_f32() {
    let data = data_json();
    let (policy, statistics) = openpi_policy("droid", &data["e2e"]["droid"]);
    let encoded = policy.encode(&observation(vec![0.0; 8]), "p").unwrap();
    let recorded = tensors("data.safetensors");
    let noise: Vec<f32> = recorded["e2e.droid.noise"].1.iter().map(|&v| v as f32).collect();
    let ours = policy.decode(&noise, &encoded).unwrap().concat();
    let (q01, q99) = (statistics.action.q01.unwrap(), statistics.action.q99.unwrap());
    for actions in [&recorded["e2e.droid.actions"].1, &ours] {
        assert_eq!(actions.len(), 80);
        for (i, action) in actions.iter().enumerate() {
            let half = (action - q01[i % 8]) / (q99[i % 8] - q01[i % 8] + 1e-6);
            assert!((half - f64::from(half as f32)).abs() < 1e-13, "{i}: {half}");
        }
    }
}

#[test]
fn decoding_openpi_adds_the_state_only_where_the_mask_says() {
    let data = data_json();
    let case = &data["e2e"]["droid_delta"];
    let (delta, _) = openpi_policy("droid_delta", case);
    let (absolute, _) = openpi_policy("droid", &data["e2e"]["droid"]);
    let state = numbers(&case["state"]);
    let encoded = delta.encode(&observation(state.clone()), "p").unwrap();
    let actions = vec![0.25; 10 * 8];
    let (with, without) =
        (delta.decode(&actions, &encoded).unwrap(), absolute.decode(&actions, &encoded).unwrap());
    for i in 0..8 {
        let offset = if i < 7 { state[i] } else { 0.0 };
        assert!((with[3][i] - without[3][i] - offset).abs() < 1e-9, "{i}");
    }
}

#[test]
fn what_is_not_finite_comes_out_so() {
    let policy = Policy::synthetic(SHAPE, options(RobotKind::Aloha, 14, 14)).unwrap();
    let encoded = policy.encode(&observation(vec![0.1; 14]), "p").unwrap();
    let mut actions = vec![0.0; 10 * 32];
    actions[32] = f32::NAN;
    actions[6] = f32::INFINITY;
    let decoded = policy.decode(&actions, &encoded).unwrap();
    assert!(
        decoded[1][0].is_nan() && decoded[0][6].is_infinite() && decoded[2].iter().all(|v| v.is_finite())
    );
}

// ----------------------------------------------------------------------------------------------- LeRobot, complete

#[test]
fn lerobot_end_to_end_as_recorded() {
    let recorded = tensors("lerobot_e2e.safetensors");
    let json: Value = serde_json::from_str(&read("fixtures/data/lerobot_e2e.json")).unwrap();
    let policy = lerobot_policy(&lerobot_checkpoint(), options(RobotKind::Generic, 7, 7)).unwrap();
    let values = |name: &str| recorded[name].1.clone();
    let encoded = policy.encode(&observation(values("state")), text(&json["task"])).unwrap();
    let n_valid = json["n_valid"].as_u64().unwrap() as usize;
    let tokens: Vec<f64> = encoded.input.tokens.iter().map(|&t| f64::from(t)).collect();
    assert_eq!(tokens, values("tokens")[..n_valid]);
    assert_eq!(encoded.normalized_state, values("normalized_state"));
    assert_eq!(encoded.prompt_text, text(&json["prompt"]));
    assert!(matches!(encoded.input.images[0], Some(Pixels::F32(_))));

    let padded: Vec<f32> = values("model_actions")
        .chunks(7)
        .flat_map(|row| row.iter().map(|&v| v as f32).chain([9.0]))
        .collect();
    let decoded = policy.decode(&padded, &encoded).unwrap();
    assert_eq!((decoded.len(), decoded[0].len()), (10, 7));
    assert_eq!(decoded.concat(), values("actions"), "f32 throughout, in the reference's order");
}

#[test]
fn lerobots_relative_actions_follow_the_checkpoints_names() {
    let relative = |exclude: &[&str], names: Option<&[&str]>| {
        let owned = |words: &[&str]| words.iter().map(|w| w.to_string()).collect();
        let relative = RelativeActions { exclude_joints: owned(exclude), action_names: names.map(owned) };
        let checkpoint = Checkpoint { relative_actions: Some(relative), ..lerobot_checkpoint() };
        lerobot_policy(&checkpoint, options(RobotKind::Generic, 7, 7)).unwrap()
    };
    let names = ["waist", "shoulder", "elbow", "wrist", "Left_GRIPPER", "gripper.pos"];
    let policy = relative(&["gripper"], Some(&names));
    assert_eq!(policy.delta_mask(), [true, true, true, true, false, false, true], "names may be too few");
    assert_eq!(relative(&["gripper"], None).delta_mask(), [true; 7]);
    assert_eq!(relative(&[""], Some(&names)).delta_mask(), [true; 7]);
    // LeRobot adds the raw state, in f32.
    let state = vec![0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7];
    let encoded = policy.encode(&observation(state.clone()), "p").unwrap();
    let plain = lerobot_policy(&lerobot_checkpoint(), options(RobotKind::Generic, 7, 7)).unwrap();
    let actions = vec![0.25; 80];
    let (with, without) =
        (policy.decode(&actions, &encoded).unwrap(), plain.decode(&actions, &encoded).unwrap());
    for i in 0..7 {
        let offset = if policy.delta_mask()[i] { state[i] as f32 } else { 0.0 };
        assert_eq!(with[9][i], f64::from(without[9][i] as f32 + offset), "{i}");
    }
}

/// What is left of a chunk steers the next one, whose offsets are from another state: the same robot actions.
#[test]
fn actions_that_are_offsets_from_another_state_are_the_same_robot_actions() {
    let exclude_joints = vec!["gripper".to_owned()];
    let names = ["a", "b", "c", "d", "gripper", "e", "f"].map(str::to_owned).to_vec();
    let relative = RelativeActions { exclude_joints, action_names: Some(names) };
    let checkpoint = Checkpoint { relative_actions: Some(relative), ..lerobot_checkpoint() };
    let policy = lerobot_policy(&checkpoint, options(RobotKind::Generic, 7, 7)).unwrap();
    let seen = [vec![0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7], vec![-0.3, 0.2, 0.25, 0.4, -0.5, 1.6, 0.0]];
    let [before, now] = seen.map(|state| policy.encode(&observation(state), "p").unwrap());
    let rows: Vec<f32> = (0..70).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut moved = rows.clone();
    policy.reanchor(&mut moved, before.anchor(), now.anchor());
    let robot = |rows: &[f32], encoded| {
        let padded: Vec<f32> = rows.chunks(7).flat_map(|row| [row, &[9.0]].concat()).collect();
        policy.decode(&padded, encoded).unwrap().concat()
    };
    assert_close(&robot(&moved, &now), &robot(&rows, &before), 1e-5);
    for (i, (moved, row)) in moved.iter().zip(&rows).enumerate() {
        // The gripper is absolute, and joint 3 was where it is now.
        assert_eq!(moved.to_bits() == row.to_bits(), i % 7 == 3 || i % 7 == 4, "{i}: {row} became {moved}");
    }
    // Of a policy whose actions are absolute nothing moves.
    let absolute = lerobot_policy(&lerobot_checkpoint(), options(RobotKind::Generic, 7, 7)).unwrap();
    let mut same = rows.clone();
    absolute.reanchor(&mut same, before.anchor(), now.anchor());
    assert_eq!(same, rows);
}

#[test]
fn a_lerobot_checkpoint_is_not_adapted_unless_asked() {
    let checkpoint = lerobot_checkpoint();
    // ALOHA in name, with the seven joints of the checkpoint: nothing of openpi's adapter applies.
    let policy = lerobot_policy(&checkpoint, options(RobotKind::Aloha, 7, 7)).unwrap();
    assert!(policy.delta_mask().is_empty());
    assert_eq!((policy.resize(), policy.prompt_format()), (Resize::Torch, PromptFormat::StateInPrompt));
    let without_state = Checkpoint { state_in_prompt: false, ..checkpoint.clone() };
    let policy = lerobot_policy(&without_state, options(RobotKind::Aloha, 7, 7)).unwrap();
    assert_eq!(policy.prompt_format(), PromptFormat::TaskOnly);
    let asked = PolicyOptions { adapt_to_pi: Some(true), ..options(RobotKind::Aloha, 7, 7) };
    let error = lerobot_policy(&checkpoint, asked).unwrap_err();
    assert!(matches!(error, PolicyError::RobotLength { expected: 14, found: 7, .. }));
}

#[test]
fn the_built_in_libero_shows_the_state_to_lerobots_checkpoints_and_not_to_openpis() {
    let options = Config::builtin(RobotKind::Libero).unwrap().policy_options();
    let openpi = Policy::synthetic(SHAPE, options.clone()).unwrap();
    assert_eq!(openpi.prompt_format(), PromptFormat::TaskOnlyNewline);
    // The recorded checkpoint has the seven values of another robot.
    let lerobot = lerobot_policy(&lerobot_checkpoint(), PolicyOptions { state_len: 7, ..options }).unwrap();
    assert_eq!(lerobot.prompt_format(), PromptFormat::StateInPrompt);
    let encoded = lerobot.encode(&observation(vec![0.0; 7]), "do it").unwrap();
    assert!(encoded.prompt_text.starts_with("Task: do it, State: "), "{}", encoded.prompt_text);
}

// --------------------------------------------------------------------------------------------------------- prompts

#[test]
fn a_long_prompt_is_cut_on_the_right_and_flagged() {
    let short = PolicyOptions { max_tokens: Some(20), ..options(RobotKind::Generic, 3, 3) };
    let policy = Policy::synthetic(SHAPE, short).unwrap();
    let long = Policy::synthetic(SHAPE, options(RobotKind::Generic, 3, 3)).unwrap();
    let seen = observation(vec![0.1, 0.2, 0.3]);
    let (cut, whole) =
        (policy.encode(&seen, "pick up the cube").unwrap(), long.encode(&seen, "pick up the cube").unwrap());
    assert!(cut.truncated && !whole.truncated);
    assert_eq!(cut.token_count, whole.token_count);
    assert_eq!(cut.input.tokens, whole.input.tokens[..20]);
    let error = policy.check_prompt("pick up the cube").unwrap_err();
    assert!(matches!(error, PolicyError::PromptTooLong { tokens: 23.., most: 20 }), "{error}");
    assert!(error.to_string().contains("20"));
}

#[test]
fn a_prompt_without_end_is_refused() {
    let policy = Policy::synthetic(SHAPE, options(RobotKind::Generic, 3, 3)).unwrap();
    let endless = "a".repeat(MAX_PROMPT_BYTES + 1);
    assert!(matches!(policy.check_prompt(&endless), Err(PolicyError::PromptBytes { found: 4097 })));
    assert!(policy.encode(&observation(vec![0.0; 3]), &endless).is_err());
}

proptest! {
    #[test]
    fn an_accepted_prompt_is_never_cut(
        prompt in prop_oneof!["[a-z _\n]{0,150}", ".{0,60}", "[\u{0}-\u{1f} ]{0,60}"],
        state in prop::collection::vec(-2.0..2.0f64, 7),
        lerobot: bool,
    ) {
        let policy = if lerobot {
            lerobot_policy(&lerobot_checkpoint(), options(RobotKind::Generic, 7, 7)).unwrap()
        } else {
            let shape = NetworkShape { max_tokens: 96, ..SHAPE };
            Policy::synthetic(shape, options(RobotKind::Generic, 7, 7)).unwrap()
        };
        let encoded = policy.encode(&observation(state), &prompt).unwrap();
        prop_assert!(encoded.input.tokens.len() <= 96);
        if let Ok(most) = policy.check_prompt(&prompt) {
            prop_assert!(!encoded.truncated && encoded.token_count <= most);
        }
    }
}

// -------------------------------------------------------------------------------------------------------- refusals

#[test]
fn what_does_not_fit_together_is_refused() {
    let checkpoint = lerobot_checkpoint();
    let generic = |state, action| options(RobotKind::Generic, state, action);
    let refuse = |checkpoint: &Checkpoint, options: PolicyOptions, words: &[&str]| {
        let line = lerobot_policy(checkpoint, options).unwrap_err().to_string();
        assert!(words.iter().all(|word| line.contains(word)) && !line.contains('\n'), "{line}");
    };
    refuse(
        &Checkpoint { statistics: None, ..checkpoint.clone() },
        generic(7, 7),
        &["a folder", "statistics"],
    );
    refuse(&Checkpoint { tokenizer: None, ..checkpoint.clone() }, generic(7, 7), &["a folder", "tokenizer"]);
    refuse(&checkpoint, generic(14, 7), &["state", "7 values", "14", "normalizer"]);
    refuse(&checkpoint, generic(7, 8), &["action", "7 values", "8", "normalizer"]);
    refuse(&checkpoint, generic(7, 9), &["9 action values", "gives 8"]);
    refuse(&checkpoint, generic(0, 7), &["no state values"]);
    refuse(&checkpoint, generic(7, 0), &["no action values"]);
    refuse(&checkpoint, PolicyOptions { max_tokens: Some(0), ..generic(7, 7) }, &["0 tokens"]);
    let mask = |n: usize| PolicyOptions { delta_mask: Some(vec![true; n]), ..generic(7, 6) };
    refuse(&checkpoint, mask(7), &["action 6", "6 actions", "7 state"]);
    let gone = PolicyOptions { tokenizer: Some("nowhere.model".into()), ..generic(7, 7) };
    refuse(&checkpoint, gone, &["nowhere.model"]);
    let missing = PolicyOptions { normalization: Some(NormMode::Quantile10), ..generic(7, 7) };
    refuse(&checkpoint, missing, &["q10", "state"]);
    let openpi = Checkpoint { layout: Layout::OpenPi, ..checkpoint };
    refuse(&openpi, options(RobotKind::Droid, 7, 7), &["droid", "8 state", "7", "generic"]);
    refuse(&openpi, options(RobotKind::Libero, 8, 6), &["libero", "7 action", "6"]);
}

#[test]
fn an_observation_that_cannot_be_used_is_refused() {
    let policy = Policy::synthetic(SHAPE, options(RobotKind::Droid, 8, 8)).unwrap();
    let error = policy.encode(&observation(vec![0.0; 7]), "p").unwrap_err();
    assert!(matches!(error, PolicyError::StateLength { expected: 8, found: 7 }));
    let mut state = vec![0.0; 8];
    state[5] = f64::NAN;
    let error = policy.encode(&observation(state), "p").unwrap_err();
    assert!(matches!(error, PolicyError::StateNotFinite { index: 5, .. }));
    let narrow = Some(Arc::new(RgbImage::new(1, 100, vec![0; 300]).unwrap()));
    let narrow = Observation { images: vec![None, narrow], ..observation(vec![0.0; 8]) };
    assert!(policy.encode(&narrow, "p").unwrap_err().to_string().starts_with("camera 1 "));
    let blind = Observation { images: vec![None; 3], ..observation(vec![0.0; 8]) };
    assert!(matches!(policy.encode(&blind, "p"), Err(PolicyError::NoImage)));
    let encoded = policy.encode(&observation(vec![0.0; 8]), "p").unwrap();
    let error = policy.decode(&[0.0; 319], &encoded).unwrap_err();
    assert!(matches!(error, PolicyError::ActionLength { expected: 320, found: 319 }));
}

#[test]
fn defaults_are_those_of_the_code_base_and_the_robot() {
    let formats = [
        (RobotKind::Aloha, 14, 14, PromptFormat::StateInPrompt),
        (RobotKind::Droid, 8, 8, PromptFormat::StateInPrompt),
        (RobotKind::Libero, 8, 7, PromptFormat::TaskOnlyNewline),
        (RobotKind::Generic, 5, 2, PromptFormat::StateInPrompt),
    ];
    for (robot, state, action, format) in formats {
        let policy = Policy::synthetic(SHAPE, options(robot, state, action)).unwrap();
        assert_eq!((policy.prompt_format(), policy.resize()), (format, Resize::Pillow));
        assert_eq!(policy.delta_mask().is_empty(), robot != RobotKind::Aloha);
    }
    let overridden = PolicyOptions {
        prompt_format: Some(PromptFormat::TaskOnly),
        resize: Some(Resize::Torch),
        delta_mask: Some(vec![true]),
        adapt_to_pi: Some(false),
        ..options(RobotKind::Aloha, 14, 14)
    };
    let policy = Policy::synthetic(SHAPE, overridden).unwrap();
    assert_eq!((policy.prompt_format(), policy.resize()), (PromptFormat::TaskOnly, Resize::Torch));
    let state: Vec<f64> = (0..14).map(|i| f64::from(i) / 20.0).collect();
    let encoded: Encoded = policy.encode(&observation(state.clone()), "p").unwrap();
    assert_close(&encoded.normalized_state, &state, 1e-6);
    let decoded = policy.decode(&[0.5; 320], &encoded).unwrap();
    assert_close(&decoded[0], &[vec![0.5 + state[0]], vec![0.5; 13]].concat(), 1e-5);
}

#[test]
fn the_full_size_synthetic_model_uses_the_small_tokenizer() {
    let shape = NetworkShape { vocab: 257_152, ..SHAPE };
    let policy = Policy::synthetic(shape, options(RobotKind::Aloha, 14, 14)).unwrap();
    assert_eq!(policy.tokenizer().pieces(), 512);
    // Named by the user, the same tokenizer does not fit.
    let named = PolicyOptions { tokenizer: Some(tokenizer_file()), ..options(RobotKind::Aloha, 14, 14) };
    assert!(Policy::synthetic(shape, named).unwrap_err().to_string().contains("257152 rows"));
}

// ------------------------------------------------------------------------------------------------- recorded truth

const SHAPE: NetworkShape =
    NetworkShape { image_side: 56, vocab: 512, action_dim: 32, horizon: 10, max_tokens: 200 };

fn data_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn tokenizer_file() -> PathBuf {
    data_folder().join("fixtures/data/tiny_tokenizer.model")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(data_folder().join(name)).unwrap()
}

fn data_json() -> Value {
    serde_json::from_str(&read("fixtures/data/data.json")).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn rows(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

fn ids_of(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "{i}: {a} {b}");
    }
}

/// Shapes and values of a file under fixtures/data.
fn tensors(name: &str) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    numbers_of(&std::fs::read(data_folder().join("fixtures/data").join(name)).unwrap())
}

fn numbers_of(bytes: &[u8]) -> HashMap<String, (Vec<usize>, Vec<f64>)> {
    use safetensors::Dtype;
    let file = SafeTensors::deserialize(bytes).unwrap();
    let values = |dtype: Dtype, data: &[u8]| -> Vec<f64> {
        match dtype {
            Dtype::F32 => {
                data.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
            }
            Dtype::F64 => data.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I64 => data.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect(),
            _ => data.iter().map(|&b| f64::from(b)).collect(),
        }
    };
    file.tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.shape().to_vec(), values(t.dtype(), t.data()))))
        .collect()
}

/// fixtures/data/assets/droid/norm_stats.json, as openpi wrote it.
fn droid_statistics() -> Statistics {
    let file: Value = serde_json::from_str(&read("fixtures/data/assets/droid/norm_stats.json")).unwrap();
    let feature = |name: &str| {
        let stat = |stat: &str| Some(numbers(&file["norm_stats"][name][stat]));
        FeatureStats {
            mean: stat("mean"),
            std: stat("std"),
            q01: stat("q01"),
            q99: stat("q99"),
            ..FeatureStats::default()
        }
    };
    Statistics {
        state: feature("state"),
        action: feature("actions"),
        state_mode: NormMode::Quantiles,
        action_mode: NormMode::Quantiles,
        eps: 1e-8,
        source: "norm_stats.json".to_owned(),
    }
}

fn options(robot: RobotKind, state_len: usize, actions: usize) -> PolicyOptions {
    let action_names = (0..actions).map(|i| format!("joint_{i}")).collect();
    PolicyOptions { robot, state_len, action_names, ..PolicyOptions::default() }
}

/// One camera, at the network's size, and two that are missing.
fn observation(state: Vec<f64>) -> Observation {
    let image = RgbImage::new(56, 56, vec![128; 56 * 56 * 3]).unwrap();
    Observation { images: vec![Some(Arc::new(image)), None, None], state, ..Observation::default() }
}

fn openpi_policy(name: &str, case: &Value) -> (Policy, Statistics) {
    let mut statistics = droid_statistics();
    if name == "libero" {
        let stat = |stat: &str| Some(numbers(&case["action_stats"][stat]));
        statistics.action = FeatureStats { q01: stat("q01"), q99: stat("q99"), ..FeatureStats::default() };
    }
    let checkpoint =
        Checkpoint { layout: Layout::OpenPi, statistics: Some(statistics.clone()), ..lerobot_checkpoint() };
    let robot = if name == "libero" { RobotKind::Libero } else { RobotKind::Droid };
    let actions = case["actions_shape"][1].as_u64().unwrap() as usize;
    let mask = case["delta_mask"].as_array();
    let delta_mask = mask.map(|mask| mask.iter().map(|b| b.as_bool().unwrap()).collect());
    let options = PolicyOptions { delta_mask, ..options(robot, 8, actions) };
    let max_tokens = case["max_token_len"].as_u64().unwrap() as usize;
    let shape = NetworkShape { action_dim: 8, max_tokens, ..SHAPE };
    (Policy::new(&checkpoint, shape, options).unwrap(), statistics)
}

/// fixtures/lerobot_ckpt with the tiny tokenizer beside it.
fn lerobot_checkpoint() -> Checkpoint {
    let name = "fixtures/lerobot_ckpt/policy_preprocessor_step_3_normalizer_processor.safetensors";
    let recorded = numbers_of(&std::fs::read(data_folder().join(name)).unwrap());
    let feature = |name: &str| {
        let stat = |stat: &str| recorded.get(&format!("{name}.{stat}")).map(|(_, values)| values.clone());
        FeatureStats {
            mean: stat("mean"),
            std: stat("std"),
            min: stat("min"),
            max: stat("max"),
            q01: stat("q01"),
            q99: stat("q99"),
            q10: stat("q10"),
            q90: stat("q90"),
        }
    };
    let statistics = Statistics {
        state: feature("observation.state"),
        action: feature("action"),
        state_mode: NormMode::Quantiles,
        action_mode: NormMode::Quantiles,
        eps: 1e-8,
        source: "normalizer_processor".to_owned(),
    };
    Checkpoint {
        folder: "a folder".into(),
        layout: Layout::LeRobot,
        tensors: TensorTable::default(),
        hints: ConfigHints::default(),
        statistics: Some(statistics),
        tokenizer: Some(tokenizer_file()),
        cameras: ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"].map(String::from).to_vec(),
        camera_aliases: Vec::new(),
        relative_actions: None,
        state_in_prompt: true,
        trained_delay: 0,
        action_len: Some(7),
        notes: Vec::new(),
    }
}

fn lerobot_policy(checkpoint: &Checkpoint, options: PolicyOptions) -> Result<Policy, PolicyError> {
    let shape = NetworkShape { action_dim: 8, max_tokens: 96, ..SHAPE };
    Policy::new(checkpoint, shape, options)
}
