//! What opens, and what is found in it.

use std::{collections::BTreeMap, fs};

use pi05_thor::{
    model::tensors::{Dtype, TOKEN_EMBEDDING},
    policy::{
        checkpoint::{
            Checkpoint, ConfigHints, DEFAULT_CAMERAS, Layout, RelativeActions,
            safetensors::{self as st, read_case},
        },
        statistics::NormMode,
    },
};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const LM_HEAD: &str = "paligemma_with_expert.paligemma.lm_head.weight";
const EXPERT: &str = "paligemma_with_expert.gemma_expert.model.";

fn open(dir: &TempDir) -> Checkpoint {
    Checkpoint::open(dir.path(), None).unwrap()
}

fn droid_stats() -> String {
    fs::read_to_string(fixture("data/assets/droid/norm_stats.json")).unwrap()
}

#[test]
fn the_tiny_openpi_folder_opens_without_statistics() {
    let checkpoint = open(&tiny());
    assert_eq!(checkpoint.layout, Layout::OpenPi);
    // 112 in the file, less the expert's output head.
    assert_eq!(checkpoint.tensors.entries.len(), 111);
    let embedding = &checkpoint.tensors.entries[TOKEN_EMBEDDING];
    assert_eq!((embedding.dtype, embedding.shape.as_slice()), (Dtype::F32, [512, 128].as_slice()));
    let hints = ConfigHints {
        vision_heads: Some(4),
        max_token_len: Some(24),
        action_horizon: Some(10),
        action_dim: Some(8),
        image: None,
        periods: None,
        num_steps: None,
        gemma_2b: false,
        builtin_tokenizer: false,
    };
    assert_eq!(checkpoint.hints, hints);
    assert_eq!(checkpoint.statistics, None);
    assert_eq!(checkpoint.tokenizer, None);
    assert_eq!(checkpoint.cameras, DEFAULT_CAMERAS);
    assert!(checkpoint.state_in_prompt);
    assert_eq!(checkpoint.notes, [""; 0]);
}

#[test]
fn the_lerobot_folder_opens_with_all_its_side_files_say() {
    let checkpoint = open(&lerobot());
    assert_eq!(checkpoint.layout, Layout::LeRobot);
    assert_eq!(checkpoint.tensors.entries.len(), 111);
    assert_eq!(checkpoint.hints.max_token_len, Some(24));
    assert_eq!(checkpoint.hints.action_horizon, Some(10));
    assert_eq!(checkpoint.hints.num_steps, Some(10));
    assert_eq!(checkpoint.hints.image, Some([56, 56]));
    assert!(checkpoint.hints.gemma_2b, "as its config says, whatever its widths");
    assert_eq!(checkpoint.action_len, Some(7));
    assert_eq!(checkpoint.cameras, DEFAULT_CAMERAS);
    assert_eq!(checkpoint.relative_actions, None);
    let statistics = checkpoint.statistics.unwrap();
    assert_eq!((statistics.state_mode, statistics.action_mode), (NormMode::Quantiles, NormMode::Quantiles));
    assert_eq!(statistics.eps, 1e-8);

    let stored = st::read_header(&fixture("lerobot_ckpt").join(PRE_STATE)).unwrap();
    let bytes = fs::read(fixture("lerobot_ckpt").join(PRE_STATE)).unwrap();
    let at = stored.tensors["observation.state.q99"].offset as usize;
    let first = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let q99 = statistics.state.q99.unwrap();
    assert_eq!((q99.len(), q99[0]), (7, f64::from(first)));
    assert!(statistics.action.mean.is_some() && statistics.action.q10.is_none());
}

#[test]
fn both_layouts_of_one_model_place_the_same_bytes_under_the_same_names() {
    let (ours, theirs) = (open(&tiny()).tensors, open(&lerobot()).tensors);
    assert!(ours.entries.keys().eq(theirs.entries.keys()));
    let (tiny, lerobot) = ("tiny/model.safetensors", "lerobot_ckpt/model.safetensors");
    let (a, b) = (fs::read(fixture(tiny)).unwrap(), fs::read(fixture(lerobot)).unwrap());
    for (name, entry) in &ours.entries {
        let other = &theirs.entries[name];
        assert_eq!(entry.shape, other.shape, "{name}");
        let len = entry.elements().unwrap() * entry.dtype.size();
        let (i, j) = (entry.offset as usize, other.offset as usize);
        assert!(a[i..i + len] == b[j..j + len], "{name}");
    }
}

#[test]
fn droid_statistics_are_read_to_the_last_bit() {
    let dir = tiny();
    put(&dir, "assets/droid/norm_stats.json", droid_stats());
    let statistics = open(&dir).statistics.unwrap();
    let mean = statistics.state.mean.unwrap();
    assert_eq!(mean[0].to_bits(), 2.0409191213851825f64.to_bits());
    assert_eq!(statistics.state.q01.unwrap().len(), 8);
    assert_eq!(statistics.action_mode, NormMode::Quantiles);
    assert_eq!(statistics.state.min, None);
    assert!(statistics.source.ends_with("assets/droid/norm_stats.json"));
}

#[test]
fn an_asset_id_with_slashes_picks_among_several() {
    let dir = tiny();
    put(&dir, "assets/droid/norm_stats.json", droid_stats());
    put(&dir, "assets/physical-intelligence/libero/norm_stats.json", droid_stats());
    let picked = Checkpoint::open(dir.path(), Some("physical-intelligence/libero")).unwrap();
    assert!(picked.statistics.unwrap().source.ends_with("physical-intelligence/libero/norm_stats.json"));
}

#[test]
fn statistics_may_lie_in_the_folder_itself_and_lack_what_is_not_needed() {
    let dir = tiny();
    let text = r#"{"norm_stats": {"state": {"mean": null, "q01": [0, -1.5], "q99": [1, 2]},
                   "actions": {"q01": [0], "q99": [1], "std": null}, "other": {"mean": "?"}}}"#;
    put(&dir, "norm_stats.json", text);
    let statistics = open(&dir).statistics.unwrap();
    assert_eq!(statistics.state.q01, Some(vec![0.0, -1.5]));
    assert_eq!(statistics.state.mean, None);
    assert_eq!(statistics.action.std, None);
}

#[test]
fn a_range_that_runs_backwards_is_noted_and_computed_with_as_the_references_do() {
    let dir = tiny();
    let feature = r#"{"q01": [0, 3], "q99": [1, 2]}"#;
    let text = format!(r#"{{"norm_stats": {{"state": {feature}, "actions": {{"q01": [0], "q99": [0]}}}}}}"#);
    put(&dir, "norm_stats.json", text);
    assert_eq!(open(&dir).notes, ["norm_stats.state: q01[1] = 3 lies above q99[1] = 2"]);
}

#[test]
fn verify_needs_weights_alone_whatever_the_side_files_are() {
    let dir = lerobot();
    put(&dir, "policy_preprocessor.json", "{");
    assert_eq!(Checkpoint::open_network(dir.path()).unwrap().tensors.entries.len(), 111);

    let dir = tiny();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    put(&dir, "assets/a/norm_stats.json", "");
    put(&dir, "assets/b/norm_stats.json", "");
    let checkpoint = Checkpoint::open_network(dir.path()).unwrap();
    assert_eq!(checkpoint.hints, ConfigHints::default());
    assert_eq!(checkpoint.notes.len(), 1, "the missing config.json is said");
}

#[test]
fn the_official_tensor_lists_open_at_full_size_in_both_layouts() {
    let open_list = |list: &str| {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/names").join(list);
        let text = fs::read_to_string(list).unwrap();
        let rows: Vec<(&str, Vec<u64>)> = text
            .lines()
            .map(|line| line.split_once('\t').unwrap())
            .map(|(name, shape)| (name, serde_json::from_str(shape).unwrap()))
            .collect();
        let tensors: Vec<_> = rows.iter().map(|(name, shape)| (*name, "BF16", shape.as_slice())).collect();
        open(&sparse(&tensors))
    };
    let openpi = open_list("official_openpi_safetensors.tsv");
    let lerobot = open_list("official_lerobot_saved.tsv");
    let elements = |c: &Checkpoint| c.tensors.entries.values().map(|e| e.elements().unwrap()).sum::<usize>();
    for checkpoint in [&openpi, &lerobot] {
        assert_eq!(checkpoint.tensors.entries.len(), 811); // 812 less the expert's output head
        assert_eq!(checkpoint.tensors.entries[TOKEN_EMBEDDING].shape, [257_152, 2048]);
        assert_eq!(elements(checkpoint), 3_353_433_872); // "used" in spec/PI05.md §1
        assert!(!checkpoint.notes.iter().any(|note| note.contains("no part of")), "{:?}", checkpoint.notes);
    }
    assert!(openpi.tensors.entries.keys().eq(lerobot.tensors.entries.keys()));
}

#[test]
fn the_embedding_is_embed_tokens_where_there_is_one_and_lm_head_otherwise() {
    let dir = sparse(&[(LM_HEAD, "F32", &[8, 2])]);
    assert_eq!(open(&dir).tensors.entries[TOKEN_EMBEDDING].shape, [8, 2]);
    let prefixed = format!("model.{TOKEN_EMBEDDING}");
    for (first, second) in [(LM_HEAD, prefixed.as_str()), (prefixed.as_str(), LM_HEAD)] {
        let shape = |name| if name == LM_HEAD { [8, 2] } else { [9, 2] };
        let dir = sparse(&[(first, "F16", &shape(first)), (second, "F16", &shape(second))]);
        let entries = open(&dir).tensors.entries;
        assert_eq!((entries.len(), entries[TOKEN_EMBEDDING].shape.as_slice()), (1, [9, 2].as_slice()));
    }
    // A stale output head may have any type; the embedding may not.
    let dir = sparse(&[(LM_HEAD, "I64", &[8, 2]), (TOKEN_EMBEDDING, "BF16", &[9, 2])]);
    assert_eq!(open(&dir).tensors.entries[TOKEN_EMBEDDING].dtype, Dtype::BF16);
}

#[test]
fn leftovers_are_ignored_unknown_tensors_counted_and_old_names_understood() {
    let norm = format!("model.{EXPERT}layers.0.input_layernorm.weight");
    let dir = sparse(&[
        ("action_time_mlp_in.weight", "F32", &[2, 2]),
        ("model.state_proj.weight", "I64", &[2, 2]),
        (&norm, "F32", &[2]),
        ("model.proprio_history_proj.weight", "F32", &[2]),
        ("ema.decay", "F64", &[]),
        ("model.model.time_mlp_out.bias", "F32", &[2]),
    ]);
    put(&dir, "config.json", "{}");
    let checkpoint = open(&dir);
    assert_eq!(checkpoint.tensors.entries.keys().collect::<Vec<_>>(), ["time_mlp_in.weight"]);
    let unknown = "tensors that are no part of π0.5, ignored: 2 (ema.decay, model.model.time_mlp_out.bias)";
    assert!(checkpoint.notes.iter().any(|note| note == unknown), "{:?}", checkpoint.notes);
    assert!(checkpoint.notes.iter().any(|note| note.contains("memory option")), "{:?}", checkpoint.notes);
}

#[test]
fn shards_make_one_table() {
    let dir = tempfile::tempdir().unwrap();
    put_sparse(&dir, "model-00001-of-00002.safetensors", &[("action_in_proj.bias", "F32", &[4])]);
    put_sparse(&dir, "model-00002-of-00002.safetensors", &[("model.action_out_proj.bias", "BF16", &[2])]);
    let index = r#"{"metadata": {"total_size": 20}, "weight_map": {
        "action_in_proj.bias": "model-00001-of-00002.safetensors",
        "model.action_out_proj.bias": "model-00002-of-00002.safetensors"}}"#;
    put(&dir, "model.safetensors.index.json", index);
    let tensors = open(&dir).tensors;
    assert_eq!(tensors.files.len(), 2);
    assert_eq!(tensors.entries.len(), 2);
    let entry = &tensors.entries["action_out_proj.bias"];
    assert!(tensors.files[entry.file].ends_with("model-00002-of-00002.safetensors"));
}

#[test]
fn lerobot_cameras_keep_file_order_and_lose_their_prefix() {
    let dir = lerobot();
    edit(&dir, "config.json", "observation.images.base_0_rgb", "observation.image");
    edit(&dir, "config.json", "observation.images.left_wrist_0_rgb", "observation.images.zed");
    edit(&dir, "config.json", "observation.images.right_wrist_0_rgb", "observation.images.arm");
    assert_eq!(open(&dir).cameras, ["image", "zed", "arm"]);
    let renames = r#""rename_map": {"observation.images.top": "observation.images.zed",
                                    "observation.joints": "observation.state"}"#;
    edit(&dir, "policy_preprocessor.json", r#""rename_map": {}"#, renames);
    assert_eq!(open(&dir).camera_aliases, [("top".to_owned(), "zed".to_owned())]);
}

#[test]
fn a_preprocessor_alone_makes_a_lerobot_folder() {
    let dir = tiny();
    put(&dir, "policy_preprocessor.json", r#"{"steps": []}"#);
    put(&dir, "config.json", "{}");
    let checkpoint = open(&dir);
    assert_eq!(checkpoint.layout, Layout::LeRobot);
    assert_eq!(checkpoint.cameras, DEFAULT_CAMERAS);
    assert_eq!(checkpoint.statistics, None, "a base checkpoint carries none");
}

#[test]
fn statistics_follow_state_file_and_modes_follow_the_step_then_the_config() {
    let dir = lerobot();
    fs::rename(dir.path().join(PRE_STATE), dir.path().join("elsewhere.safetensors")).unwrap();
    edit(&dir, "policy_preprocessor.json", PRE_STATE, "elsewhere.safetensors");
    edit(&dir, "policy_preprocessor.json", r#""STATE": "QUANTILES""#, r#""STATE": "MEAN_STD""#);
    let statistics = open(&dir).statistics.unwrap();
    assert_eq!((statistics.state_mode, statistics.action_mode), (NormMode::MeanStd, NormMode::Quantiles));

    edit(&dir, "policy_postprocessor.json", "norm_map", "nothing");
    edit(&dir, "config.json", r#""ACTION": "QUANTILES""#, r#""ACTION": "MIN_MAX""#);
    assert_eq!(open(&dir).statistics.unwrap().action_mode, NormMode::MinMax);

    edit(&dir, "config.json", "normalization_mapping", "nothing");
    assert_eq!(open(&dir).statistics.unwrap().action_mode, NormMode::Quantiles);
}

#[test]
fn relative_actions_are_what_the_steps_say_then_the_config() {
    let dir = lerobot();
    edit(&dir, "config.json", r#""use_relative_actions": false"#, r#""use_relative_actions": true"#);
    assert_eq!(open(&dir).relative_actions, None, "the steps are what LeRobot runs");

    edit(&dir, "policy_preprocessor.json", r#""enabled": false"#, r#""enabled": true"#);
    edit(&dir, "policy_preprocessor.json", r#""action_names": null"#, r#""action_names": ["a", "Gripper"]"#);
    edit(&dir, "policy_postprocessor.json", r#""enabled": false"#, r#""enabled": true"#);
    let relative = RelativeActions {
        exclude_joints: vec!["gripper".into()],
        action_names: Some(vec!["a".into(), "Gripper".into()]),
    };
    assert_eq!(open(&dir).relative_actions, Some(relative));

    edit(&dir, "policy_preprocessor.json", "relative_actions_processor", "other");
    edit(&dir, "policy_postprocessor.json", "absolute_actions_processor", "other");
    let relative = open(&dir).relative_actions.unwrap();
    assert_eq!((relative.exclude_joints, relative.action_names), (vec!["gripper".to_owned()], None));
}

#[test]
fn a_relative_step_without_names_makes_every_action_relative_whatever_the_config_names() {
    let dir = lerobot();
    let names = r#""action_feature_names": ["a", "gripper"]"#;
    edit(&dir, "config.json", r#""action_feature_names": null"#, names);
    edit(&dir, "policy_preprocessor.json", r#""enabled": false"#, r#""enabled": true"#);
    edit(&dir, "policy_postprocessor.json", r#""enabled": false"#, r#""enabled": true"#);
    assert_eq!(open(&dir).relative_actions.unwrap().action_names, None, "the step is what LeRobot runs");
    // Without the step, the config's names are all there is.
    edit(&dir, "policy_preprocessor.json", "relative_actions_processor", "other");
    let names = open(&dir).relative_actions.unwrap().action_names;
    assert_eq!(names, Some(vec!["a".to_owned(), "gripper".to_owned()]));
}

#[test]
fn the_state_leaves_the_prompt_where_the_step_says_so() {
    let dir = lerobot();
    let step = r#""pi05_prepare_state_tokenizer_processor_step",
      "config": {"#;
    edit(&dir, "policy_preprocessor.json", step, &format!("{step}\"include_state_in_prompt\": false"));
    // Its statistics are not needed then.
    edit(&dir, "policy_preprocessor.json", PRE_STATE, "no_state.safetensors");
    put_sparse(&dir, "no_state.safetensors", &[("observation.images.top.mean", "F32", &[3, 1, 1])]);
    let checkpoint = open(&dir);
    assert!(!checkpoint.state_in_prompt);
    let statistics = checkpoint.statistics.unwrap();
    assert_eq!((statistics.state, statistics.state_mode), (Default::default(), NormMode::Identity));
}

#[test]
fn a_prompt_is_as_long_as_the_step_that_cuts_it_says_then_the_config() {
    let dir = lerobot();
    edit(&dir, "policy_preprocessor.json", r#""max_length": 24"#, r#""max_length": 20"#);
    let checkpoint = open(&dir);
    let note = "policy_preprocessor.json cuts prompts to 20 tokens (max_length of tokenizer_processor), config.json \
                to 24: the former holds";
    assert_eq!((checkpoint.hints.max_token_len, checkpoint.notes), (Some(20), vec![note.to_owned()]));
    // The network that `verify` and engines are made for is the same one.
    assert_eq!(Checkpoint::open_network(dir.path()).unwrap().hints.max_token_len, Some(20));

    edit(&dir, "policy_preprocessor.json", r#""max_length": 20"#, r#""max_length": null"#);
    let checkpoint = open(&dir);
    assert_eq!((checkpoint.hints.max_token_len, checkpoint.notes), (Some(24), Vec::new()));
}

#[test]
fn a_step_that_nobody_here_runs_is_noted() {
    let dir = lerobot();
    assert_eq!(open(&dir).notes, [""; 0], "LeRobot's own steps are all known");
    let extra = r#""steps": [
        {"registry_name": "crop\nok", "config": {"size": 9}}, {"class": "mine.Smooth"}, {},
        {"registry_name": "device_processor"}, {"registry_name": "relative_actions_processor"},"#;
    edit(&dir, "policy_preprocessor.json", r#""steps": ["#, extra);
    edit(&dir, "policy_postprocessor.json", "device_processor", "smooth");
    let notes = open(&dir).notes;
    assert_eq!(
        notes,
        [
            r"policy_preprocessor.json: step 0 (crop\nok) is not known here and does not run",
            "policy_preprocessor.json: step 1 (mine.Smooth) is not known here and does not run",
            "policy_preprocessor.json: step 2 (without a name) is not known here and does not run",
            "policy_preprocessor.json: step 7 (relative_actions_processor) is there a second time, which is not followed",
            "policy_postprocessor.json: step 2 (smooth) is not known here and does not run",
        ]
    );
}

#[test]
fn the_tokenizer_in_the_folder_is_found() {
    let dir = tiny();
    fs::copy(fixture("data/tiny_tokenizer.model"), dir.path().join("tiny_tokenizer.model")).unwrap();
    assert_eq!(open(&dir).tokenizer, Some(dir.path().join("tiny_tokenizer.model")));
}

#[test]
fn every_recorded_case_reads_whole() {
    let numbers = |file: &str, name: &str| {
        let case = read_case(&fixture(file)).unwrap();
        (case.len(), case[name].dtype, case[name].shape.clone(), case[name].to_f64().unwrap())
    };
    let (tensors, dtype, shape, values) = numbers("tiny/case_a_f32.safetensors", "actions");
    assert_eq!((tensors, dtype, shape), (103, st::Dtype::F32, vec![1, 10, 8]));
    let largest = values.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    assert_eq!(largest, 4.1032795906066895); // actions_absmax of meta.json
    let (_, dtype, shape, values) = numbers("data/lerobot_e2e.safetensors", "tokens");
    assert_eq!((dtype, shape, values[0]), (st::Dtype::I64, vec![1, 96], 2.0)); // BOS
    let (_, dtype, shape, _) = numbers("data/data.safetensors", "e2e.libero.actions");
    assert_eq!((dtype, shape), (st::Dtype::F64, vec![10, 7]));
    for file in ["full_f32.safetensors", "tiny/rtc_guided.safetensors", "tiny/case_c_bf16.safetensors"] {
        assert!(!read_case(&fixture(file)).unwrap().is_empty());
    }
}

proptest! {
    /// The same tables as the `safetensors` crate, for whatever it writes.
    #[test]
    fn what_the_official_library_writes_is_read_alike(
        tensors in prop::collection::btree_map("[a-z.\"\\\\é]{1,8}", (0usize..7, prop::collection::vec(0usize..4, 0..4)), 0..8)
    ) {
        use st::Dtype::{BF16, BOOL, F16, F32, F64, I64, U8};
        let dtypes = [BF16, BOOL, F16, F32, F64, I64, U8];
        let data: BTreeMap<_, _> = tensors
            .iter()
            .enumerate()
            .map(|(i, (name, (dtype, shape)))| {
                let dtype = dtypes[*dtype];
                let len = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name.clone(), (dtype, shape.clone(), vec![i as u8 + 1; len]))
            })
            .collect();
        let views = data.iter().map(|(name, (dtype, shape, bytes))| {
            (name, ::safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        let dir = tempfile::tempdir().unwrap();
        let path = put(&dir, "case.safetensors", ::safetensors::serialize(views, None).unwrap());
        let read = read_case(&path).unwrap();
        prop_assert_eq!(read.len(), data.len());
        for (name, (dtype, shape, bytes)) in data {
            prop_assert_eq!(&read[&name], &st::RawTensor { dtype, shape, bytes });
        }
    }
}
