//! Faults, each caused for real: the refusal names file and tensor or key, what was expected and what was found.

use std::fs;

use pi05_thor::config::RobotKind;
use pi05_thor::pipeline::Model;
use pi05_thor::policy::checkpoint::safetensors::{MAX_CASE, MAX_HEADER, read_case};
use pi05_thor::policy::statistics::NormMode;
use pi05_thor::policy::{NetworkShape, Policy, PolicyError, PolicyOptions};
use tempfile::TempDir;

use super::*;

const WEIGHTS: &str = "model.safetensors";

/// The refusal of a folder that holds nothing but this weights file.
fn weights_refused(bytes: impl AsRef<[u8]>) -> String {
    let dir = tempfile::tempdir().unwrap();
    put(&dir, WEIGHTS, bytes);
    refusal_naming(&dir, None, WEIGHTS)
}

/// The refusal of a weights file with this header and so many data bytes.
fn header_refused(header: &str, data: usize) -> String {
    weights_refused(safetensors(header, data))
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "expected {part:?} in: {message}");
    }
}

#[test]
fn no_folder_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    let message = refusal_naming(&dir, None, "");
    assert_says(&message, &["no weights", "model.safetensors", "model.safetensors.index.json"]);
    fs::create_dir(dir.path().join("params")).unwrap();
    assert_says(&refusal_naming(&dir, None, ""), &["JAX", "convert"]);

    let missing = dir.path().join("nowhere");
    assert_says(&one_line(Checkpoint::open(&missing, None).unwrap_err(), &missing), &["No such file"]);
    let file = put(&dir, "file", "");
    assert_says(&one_line(Checkpoint::open(&file, None).unwrap_err(), &file), &["folder", "found a file"]);
}

#[test]
fn a_header_longer_than_the_file_or_than_any_header() {
    assert_says(&weights_refused(""), &["found 0 bytes"]);
    assert_says(&weights_refused([1, 2, 3]), &["found 3 bytes"]);
    let claims = |n: u64| [&n.to_le_bytes()[..], b"{}"].concat();
    assert_says(&weights_refused(claims(3)), &["header of 3 bytes", "has 2"]);
    assert_says(&weights_refused(claims(MAX_HEADER)), &["header of 100000000 bytes", "has 2"]);
    assert_says(
        &weights_refused(claims(MAX_HEADER + 1)),
        &["header of 100000001 bytes", "at most 100000000"],
    );
    assert_says(&weights_refused(claims(u64::MAX)), &["header of 18446744073709551615 bytes"]);
}

#[test]
fn something_else_under_the_name_of_weights() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14467165872\n";
    assert_says(&weights_refused(pointer), &["Git LFS", "git lfs pull"]);
    for not_json in ["", "nonsense", "[1, 2]", "{\"a\": ", "{} {}", "\u{7f}"] {
        assert_says(&header_refused(not_json, 0), &["header cannot be read"]);
    }
    assert_says(
        &weights_refused([&3u64.to_le_bytes()[..], &[b'"', 0xff, b'"']].concat()),
        &["header cannot be read"],
    );
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join(WEIGHTS)).unwrap();
    assert_says(&refusal_naming(&dir, None, WEIGHTS), &["not a regular file"]);
}

#[test]
fn tensors_that_do_not_lie_one_after_the_other() {
    let two = |a: [u64; 2], b: [u64; 2], data| {
        let tensor = |[begin, end]: [u64; 2]| {
            let n = end.saturating_sub(begin) / 4;
            format!(r#"{{"dtype":"F32","shape":[{n}],"data_offsets":[{begin},{end}]}}"#)
        };
        header_refused(&format!(r#"{{"first":{},"second":{}}}"#, tensor(a), tensor(b)), data)
    };
    assert_says(&two([0, 8], [4, 12], 12), &["tensor second", "overlaps first"]);
    assert_says(&two([0, 8], [0, 8], 8), &["tensor second", "overlaps first"]);
    assert_says(&two([0, 8], [12, 16], 16), &["tensor second", "hole after first"]);
    assert_says(&two([4, 8], [8, 12], 12), &["tensor first", "hole after the header"]);
    assert_says(&two([0, 8], [8, 16], 17), &["1 bytes stand after the last tensor"]);
    assert_says(&two([0, 8], [12, 8], 12), &["tensor second", "begins at 12", "at 8"]);
    assert_says(&two([0, 8], [8, 1 << 40], 16), &["truncated", "tensor second", "download"]);
}

#[test]
fn shapes_and_types_that_do_not_fit_their_bytes() {
    let one = |dtype: &str, shape: &str, end: u64| {
        let header = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#);
        header_refused(&header, end.min(64) as usize)
    };
    assert_says(&one("F32", "[2, 2]", 12), &["tensor w", "[2, 2] of F32", "needs 16 bytes", "found 12"]);
    assert_says(&one("BF16", "[]", 4), &["tensor w", "needs 2 bytes", "found 4"]);
    assert_says(&one("F32", "[4294967296, 4294967296]", 4), &["tensor w", "too large"]);
    assert_says(&one("F64", "[2305843009213693952]", 4), &["tensor w", "too large"]);
    assert_says(&one("F4", "[3]", 1), &["tensor w", "whole bytes"]);
    assert_says(&one("Q4_K", "[4]", 16), &["tensor w", "dtype such as F32", "\"Q4_K\""]);
    assert_says(&one("F32", "[-1]", 4), &["w: ", "-1"]);
    assert_says(&one("F32", "[1.5]", 4), &["w: ", "1.5"]);
    assert_says(&one("F32", "4", 4), &["w: ", "a shape"]);
    assert_says(&one("F32", "[1,1,1,1,1,1,1,1,1]", 4), &["w: ", "at most 8 dimensions"]);
    assert_says(&one("F32", "[1],\"shape\":[1]", 4), &["w: ", "duplicate field"]);
    assert_says(&header_refused(r#"{"w":{"dtype":"F32","shape":[1]}}"#, 4), &["w: ", "data_offsets"]);
    assert_says(&header_refused(r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0]}}"#, 4), &["w: "]);
    assert_says(&header_refused(r#"{"__metadata__":{"a":1}}"#, 0), &["__metadata__"]);
}

#[test]
fn a_truncated_file_says_where_it_ends_and_which_tensor_is_cut() {
    let whole = fs::read(fixture("tiny/model.safetensors")).unwrap();
    let message = weights_refused(&whole[..whole.len() - 1]);
    assert_says(&message, &["truncated", "3542527 bytes on disk", "ends at 3542528", "download"]);
    assert_says(&message, &["tensor time_mlp_out.weight"]);
    // Cut in the middle: the first tensor that is not whole.
    let header = read_case(&fixture("tiny/model.safetensors")).unwrap();
    assert!(header.len() == 112);
    assert_says(&weights_refused(&whole[..20_000]), &["20000 bytes on disk", "tensor "]);
    assert_says(&weights_refused(&whole[..5_000]), &["claims a header of 16600 bytes", "has 4992"]);
}

#[test]
fn two_tensors_of_one_name() {
    let entry =
        |begin: u64| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":[{begin},{}]}}"#, begin + 4);
    let header = format!(r#"{{"time_mlp_in.bias":{},"time_mlp_in.bias":{}}}"#, entry(0), entry(4));
    assert_says(&header_refused(&header, 8), &["tensor time_mlp_in.bias", "twice in the header"]);

    for (a, b) in [
        ("time_mlp_in.bias", "model.time_mlp_in.bias"),
        ("action_time_mlp_in.bias", "time_mlp_in.bias"),
        (
            "paligemma_with_expert.paligemma.lm_head.weight",
            "model.paligemma_with_expert.paligemma.lm_head.weight",
        ),
    ] {
        let dir = sparse(&[(a, "F32", &[1]), (b, "F32", &[1])]);
        let message = refusal_naming(&dir, None, WEIGHTS);
        assert!(
            message.contains(&format!("tensor {a}")) || message.contains(&format!("tensor {b}")),
            "{message}"
        );
        assert_says(&message, &["twice", "remove one"]);
    }
}

#[test]
fn a_network_tensor_of_a_type_that_is_no_weight() {
    for dtype in ["I64", "F64", "U8"] {
        let dir = sparse(&[("model.action_in_proj.weight", dtype, &[2, 2])]);
        let message = refusal_naming(&dir, None, WEIGHTS);
        assert_says(&message, &["tensor model.action_in_proj.weight", "F32, BF16 or F16", dtype]);
    }
}

#[test]
fn a_name_with_line_breaks_stays_on_one_line() {
    let header = r#"{"a\nb\u001b[2J":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
    assert_says(&header_refused(header, 4), &[r"tensor a\nb\u{1b}[2J: "]);
}

#[test]
fn a_network_under_other_names_shows_one_of_them() {
    let dir = sparse(&[("module.action_in_proj.bias", "F32", &[4])]);
    let model = Model::open_network(dir.path().to_str().unwrap()).unwrap();
    let message = model.dims().unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: tensor ", dir.path().join(WEIGHTS).display())), "{message}");
    assert_says(&message, &["missing", "0 other tensors", "such as module.action_in_proj.bias"]);
}

#[test]
fn shards_that_are_missing_elsewhere_or_incomplete() {
    let index = |shard: &str| format!(r#"{{"weight_map": {{"action_in_proj.bias": "{shard}"}}}}"#);
    let with = |index: &str| {
        let dir = tempfile::tempdir().unwrap();
        put(&dir, "model.safetensors.index.json", index);
        put_sparse(&dir, "a.safetensors", &[("action_in_proj.weight", "F32", &[1])]);
        dir
    };
    let refused = |index: &str, file| refusal_naming(&with(index), None, file);
    const INDEX: &str = "model.safetensors.index.json";
    assert_says(&refused(&index("b.safetensors"), "b.safetensors"), &["No such file"]);
    assert_says(&refused(&index("a.safetensors"), "a.safetensors"), &["tensor action_in_proj.bias", INDEX]);
    for out in ["../a.safetensors", "/etc/passwd", ""] {
        let message = refused(&index(out), INDEX);
        assert_says(&message, &["weight_map.action_in_proj.bias", "in this folder", out]);
    }
    assert_says(&refused(r#"{"weight_map": []}"#, INDEX), &["weight_map", "an object", "a list of 0"]);
    assert_says(&refused("{}", INDEX), &["weight_map", "nothing"]);
}

#[test]
fn configs_of_other_networks_wrong_types_and_absurd_numbers() {
    let refused = |config: &str| {
        let dir = tiny();
        put(&dir, "config.json", config);
        refusal_naming(&dir, None, "config.json")
    };
    assert_says(&refused("{"), &["not valid JSON"]);
    assert_says(&refused("[]"), &["the whole file", "an object", "a list of 0"]);
    assert_says(&refused(&"[".repeat(10_000)), &["not valid JSON", "recursion"]);
    assert_says(&refused(&format!("[{}0]", "0,".repeat(70_000))), &["more than 65536 values"]);
    assert_says(&refused(&format!("\"{}\"", " ".repeat(5 << 20))), &["longer than 4194304 bytes"]);
    assert_says(&refused(r#"{"type": "pi0"}"#), &["type", "\"pi05\"", "\"pi0\""]);
    assert_says(&refused(r#"{"type": "smolvla"}"#), &["\"smolvla\""]);
    assert_says(&refused(r#"{"type": 5}"#), &["type", "a string", "found 5"]);
    assert_says(&refused(r#"{"action_horizon": "10"}"#), &["action_horizon", "whole number", "\"10\""]);
    assert_says(&refused(r#"{"action_horizon": 0}"#), &["action_horizon", "from 1 to 4096", "found 0"]);
    assert_says(&refused(r#"{"action_dim": 1e300}"#), &["action_dim", "1e"]);
    assert_says(&refused(r#"{"action_dim": 8.5}"#), &["action_dim", "8.5"]);
    assert_says(&refused(r#"{"pi05_thor": 4}"#), &["pi05_thor", "an object", "found 4"]);
    assert_says(&refused(r#"{"pi05_thor": {"vision_heads": -4}}"#), &["pi05_thor.vision_heads", "-4"]);
    assert_says(
        &refused(r#"{"pi05_thor": {"max_token_len": 99999999}}"#),
        &["pi05_thor.max_token_len", "65536"],
    );
    let lerobot = |rest: &str| refused(&format!(r#"{{"type": "pi05", {rest}}}"#));
    assert_says(&lerobot(r#""chunk_size": [50]"#), &["chunk_size", "a list of 1"]);
    assert_says(&lerobot(r#""max_action_dim": true"#), &["max_action_dim", "true"]);
    assert_says(&lerobot(r#""num_inference_steps": 1001"#), &["num_inference_steps", "1000"]);
    assert_says(&lerobot(r#""min_period": 0.0"#), &["min_period", "0.000001 to 1000000", "found 0"]);
    assert_says(&lerobot(r#""max_period": 1e7"#), &["max_period", "0.000001 to 1000000", "10000000"]);
    assert_says(&lerobot(r#""input_features": []"#), &["input_features", "an object"]);
    assert_says(&lerobot(r#""input_features": {"a": 1}"#), &["input_features.a", "an object"]);
    let visual = r#"{"type": "VISUAL"}"#;
    let twice = format!(
        r#""input_features": {{"observation.image": {visual}, "observation.images.image": {visual}}}"#
    );
    assert_says(&lerobot(&twice), &["input_features.observation.images.image", "once"]);
    let shape = |shape: &str| lerobot(&format!(r#""output_features": {{"action": {{"shape": {shape}}}}}"#));
    assert_says(&shape("[7, 7]"), &["output_features.action.shape", "one number", "a list of 2"]);
    assert_says(&shape("[0]"), &["output_features.action.shape[0]", "found 0"]);
    let map = |map: &str| lerobot(&format!(r#""normalization_mapping": {map}"#));
    assert_says(&map(r#"{"STATE": "QUANTILES"}"#), &["normalization_mapping.ACTION", "nothing"]);
    assert_says(
        &map(r#"{"STATE": "CUBES", "ACTION": "MIN_MAX"}"#),
        &["normalization_mapping.STATE", "\"CUBES\""],
    );
    assert_says(&map(r#"{"VISUAL": "MEAN_STD"}"#), &["normalization_mapping.VISUAL", "IDENTITY"]);
    assert_says(
        &lerobot(r#""relative_exclude_joints": ["a", 1]"#),
        &["relative_exclude_joints[1]", "a string"],
    );
    assert_says(
        &lerobot(r#""use_proprioceptive_memory": true"#),
        &["use_proprioceptive_memory", "not supported"],
    );
}

#[test]
fn images_of_another_size_than_the_networks() {
    let said = |resolution: &str| {
        let dir = lerobot();
        edit(&dir, "config.json", "\"image_resolution\": [\n    56,\n    56\n  ]", resolution);
        Model::open_network(dir.path().to_str().unwrap())
            .and_then(|model| model.dims())
            .unwrap_err()
            .to_string()
    };
    for other in ["[224, 224]", "[56, 28]"] {
        let message = said(&format!("\"image_resolution\": {other}"));
        assert_says(&message, &["image resolution", other, "16 patches of 14 pixels", "[56, 56]"]);
    }
    assert_says(&said("\"image_resolution\": 56"), &["config.json: image_resolution", "a list"]);
    assert_says(&said("\"image_resolution\": [56]"), &["image_resolution", "two numbers"]);
    assert_says(&said("\"image_resolution\": [56, 0]"), &["image_resolution[1]", "found 0"]);
}

#[test]
fn a_normalizer_that_would_leave_the_state_as_it_is() {
    let dir = lerobot();
    edit(&dir, "policy_preprocessor.json", r#""features": {"#, r#""features": {}, "were": {"#);
    let message = refusal_naming(&dir, None, "policy_preprocessor.json");
    assert_says(&message, &["steps[3].config.features", "observation.state among them", "an object of 0"]);
    // Where nobody reads the state, nothing is wrong with that.
    let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
    let once = text.replacen("{\n", "{\"include_state_in_prompt\": false,\n", 1);
    put(&dir, "config.json", once);
    assert!(!Checkpoint::open(dir.path(), None).unwrap().state_in_prompt);
}

/// The refusal of the tiny model with this text as its only statistics.
fn stats_refused(text: &str) -> String {
    let dir = tiny();
    put(&dir, "assets/droid/norm_stats.json", text);
    refusal_naming(&dir, None, "assets/droid/norm_stats.json")
}

#[test]
fn openpi_statistics_that_cannot_normalise() {
    let good = r#"{"q01": [0, 0], "q99": [1, 1]}"#;
    let state =
        |state: &str| stats_refused(&format!(r#"{{"norm_stats": {{"state": {state}, "actions": {good}}}}}"#));
    assert_says(&stats_refused("{}"), &["norm_stats", "nothing"]);
    let actions = stats_refused(&format!(r#"{{"norm_stats": {{"state": {good}}}}}"#));
    assert_says(&actions, &["norm_stats.actions", "nothing"]);
    assert_says(
        &state(r#"{"q01": [0, 0], "q99": [1]}"#),
        &["norm_stats.state.q99", "2 numbers", "q01", "found 1"],
    );
    assert_says(
        &state(r#"{"mean": [0], "q01": [0, 0], "q99": [1, 1]}"#),
        &["norm_stats.state.q01", "1 numbers"],
    );
    assert_says(&state(r#"{"q01": [], "q99": []}"#), &["norm_stats.state.q01", "at least 1", "found 0"]);
    assert_says(
        &state(r#"{"q01": [0, null], "q99": [1, 1]}"#),
        &["norm_stats.state.q01[1]", "number", "nothing"],
    );
    assert_says(
        &state(r#"{"q01": [[0, 0]], "q99": [1, 1]}"#),
        &["norm_stats.state.q01[0]", "number", "a list of 2"],
    );
    assert_says(
        &state(r#"{"q01": {"0": 1}, "q99": [1, 1]}"#),
        &["norm_stats.state.q01", "a list", "an object"],
    );
    assert_says(&state(r#"{"q01": ["0", "0"], "q99": [1, 1]}"#), &["norm_stats.state.q01[0]", "\"0\""]);
    assert_says(&state(r#"{"q01": [NaN, 0], "q99": [1, 1]}"#), &["found NaN at line 1 column 35", "anew"]);
    assert_says(&state("{\"q01\": [0,\n -Infinity]}"), &["found Infinity at line 2 column 3"]);
    assert_says(&state(r#"{"q01": [0, Nope]}"#), &["not valid JSON", "column"]);
    assert_says(&state(r#"{"q01": [1e999, 0], "q99": [1, 1]}"#), &["not valid JSON", "out of range"]);
}

#[test]
fn an_asset_that_is_unclear_missing_or_outside() {
    let dir = tiny();
    let stats = fs::read(fixture("data/assets/droid/norm_stats.json")).unwrap();
    put(&dir, "assets/droid/norm_stats.json", &stats);
    put(&dir, "assets/lab/arm/norm_stats.json", &stats);
    assert_says(&refusal_naming(&dir, None, ""), &["name the asset id", "droid, lab/arm"]);
    let message = refusal_naming(&dir, Some("trossen"), "assets/trossen/norm_stats.json");
    assert_says(&message, &["not found", "droid, lab/arm"]);
    assert_says(&refusal_naming(&dir, Some("../../secret"), "assets"), &["\"../../secret\"", "out of here"]);
    assert_says(
        &refusal_naming(&tiny(), Some("droid"), "assets/droid/norm_stats.json"),
        &["in this folder: none"],
    );
}

#[test]
fn lerobot_statistics_that_cannot_normalise() {
    let with = |tensors: &[(&str, &str, &[u64])]| {
        let dir = lerobot();
        put_sparse(&dir, PRE_STATE, tensors);
        refusal_naming(&dir, None, PRE_STATE)
    };
    const Q01: &str = "observation.state.q01";
    const Q99: &str = "observation.state.q99";
    assert_says(&with(&[(Q01, "F32", &[7]), (Q99, "F32", &[6])]), &[Q99, "7 numbers", "found 6"]);
    assert_says(
        &with(&[(Q01, "F32", &[7, 1]), (Q99, "F32", &[7, 1])]),
        &["tensor observation.state.", "one dimension", "[7, 1]"],
    );
    assert_says(&with(&[(Q01, "I64", &[7]), (Q99, "F32", &[7])]), &[Q01, "expected F32", "I64"]);

    let dir = lerobot();
    put_sparse(&dir, POST_STATE, &[("action.q01", "F32", &[6]), ("action.q99", "F32", &[6])]);
    let message = refusal_naming(&dir, None, POST_STATE);
    assert_says(&message, &["action.q01", "7 numbers, as output_features", "found 6"]);

    let dir = lerobot();
    let path = dir.path().join(POST_STATE);
    let mut bytes = fs::read(&path).unwrap();
    let end = 8 + 1000 + 144; // the last number of action.q99
    bytes[end - 4..end].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert_says(&refusal_naming(&dir, None, POST_STATE), &["action.q99[6]", "finite", "NaN"]);
}

/// The policy of a folder for seven joints, normalised as the parameter says.
fn policy_of(dir: &TempDir, normalization: Option<NormMode>) -> Result<Policy, PolicyError> {
    let checkpoint = Checkpoint::open(dir.path(), None).unwrap();
    let shape = NetworkShape { image_side: 56, vocab: 512, action_dim: 8, horizon: 10, max_tokens: 24 };
    let options = PolicyOptions {
        robot: RobotKind::Generic,
        state_len: 7,
        action_names: (0..7).map(|i| i.to_string()).collect(),
        tokenizer: Some(fixture("data/tiny_tokenizer.model")),
        normalization,
        ..Default::default()
    };
    Policy::new(&checkpoint, shape, options)
}

#[test]
fn the_parameter_decides_which_statistics_are_needed() {
    let dir = tiny();
    let seven = "[1, 1, 1, 1, 1, 1, 1]";
    let feature = format!(r#"{{"mean": {seven}, "std": {seven}, "q01": {seven}, "q99": null}}"#);
    let file = put(
        &dir,
        "norm_stats.json",
        format!(r#"{{"norm_stats": {{"state": {feature}, "actions": {feature}}}}}"#),
    );
    policy_of(&dir, Some(NormMode::MeanStd)).unwrap();
    let message = policy_of(&dir, None).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: ", file.display())) && !message.contains('\n'), "{message}");
    assert_says(&message, &["state", "`q99`", "Quantiles", "another normalisation"]);

    let lerobot = lerobot();
    policy_of(&lerobot, None).unwrap();
    let message = policy_of(&lerobot, Some(NormMode::Quantile10)).unwrap_err().to_string();
    assert_says(&message, &[PRE_STATE, "`q10`", "Quantile10"]);
    // One of the two statistics gone: half a normalisation is none.
    fs::remove_file(lerobot.path().join("policy_postprocessor.json")).unwrap();
    let message = policy_of(&lerobot, None).unwrap_err().to_string();
    assert_says(&message, &["policy_postprocessor.json", "action", "`q01`"]);
}

#[test]
fn a_state_file_that_is_missing_truncated_or_outside() {
    let dir = lerobot();
    fs::remove_file(dir.path().join(PRE_STATE)).unwrap();
    assert_says(&refusal_naming(&dir, None, PRE_STATE), &["No such file"]);

    let dir = lerobot();
    let bytes = fs::read(dir.path().join(POST_STATE)).unwrap();
    put(&dir, POST_STATE, &bytes[..bytes.len() - 4]);
    assert_says(&refusal_naming(&dir, None, POST_STATE), &["truncated", "tensor observation.state.std"]);

    let secret = tempfile::NamedTempFile::new().unwrap();
    for out in ["../outside.safetensors", "a/../../b", secret.path().to_str().unwrap(), ""] {
        let dir = lerobot();
        edit(&dir, "policy_preprocessor.json", PRE_STATE, out);
        let message = refusal_naming(&dir, None, "policy_preprocessor.json");
        assert_says(&message, &["steps[3].state_file", "in this folder", out]);
    }
}

#[test]
fn steps_that_contradict_each_other_or_make_no_sense() {
    let edited = |file: &str, from: &str, to: &str| {
        let dir = lerobot();
        edit(&dir, file, from, to);
        refusal_naming(&dir, None, file)
    };
    let (pre, post) = ("policy_preprocessor.json", "policy_postprocessor.json");
    assert_says(
        &edited(post, r#""enabled": false"#, r#""enabled": true"#),
        &["steps[1].config.enabled", "false", "found true"],
    );
    assert_says(
        &edited(post, r#""eps": 1e-08"#, r#""eps": 1e-06"#),
        &["steps[0].config.eps", "0.00000001", "found"],
    );
    assert_says(&edited(post, r#""eps": 1e-08"#, r#""eps": "small""#), &["steps[0].config.eps", "number"]);
    assert_says(&edited(pre, r#""steps""#, r#""stages""#), &["steps", "a list of steps", "nothing"]);
    assert_says(
        &edited(pre, r#""rename_map": {}"#, r#""rename_map": {"a": 1}"#),
        &["rename_map.a", "a string"],
    );
    assert_says(
        &edited(pre, r#""ACTION": "QUANTILES""#, r#""OTHER": "QUANTILES""#),
        &["norm_map.ACTION", "nothing"],
    );
}

#[test]
fn a_case_larger_than_any_case() {
    let dir = tempfile::tempdir().unwrap();
    put_sparse(&dir, "case.safetensors", &[("x", "U8", &[MAX_CASE])]);
    let path = dir.path().join("case.safetensors");
    assert_says(&one_line(read_case(&path).unwrap_err(), &path), &["at most 536870912"]);
}

#[test]
fn a_folder_too_full_to_search() {
    let dir: TempDir = tiny();
    for i in 0..10_001 {
        fs::File::create(dir.path().join(format!("{i}"))).unwrap();
    }
    assert_says(&refusal_naming(&dir, None, ""), &["more than 10000 files"]);
}
