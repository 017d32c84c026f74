//! Writes a checkpoint folder in either layout, as `pi05 synth` does.
//!
//! Promises that [`super::Checkpoint::open`] reads back what was written, and that a failure leaves no file behind.
//! Knows nothing of where the weights come from: they are asked for tensor by tensor.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

pub use super::stream::{NewTensor, write_safetensors};
use super::{
    ConfigHints, Layout,
    config::{BUILTIN_TOKENIZER, GEMMA_2B, PREPROCESSOR, VARIANT},
    error::CheckpointError,
    folder, lerobot, norm, openpi,
    stream::write_bytes,
    weights::WEIGHTS,
};
use crate::{
    model::tensors::{Dtype, LM_HEAD, TOKEN_EMBEDDING},
    policy::statistics::{FeatureStats, NormMode, Statistics},
    printable::printable,
};

/// A checkpoint that is to be written: all but the data of its tensors.
#[derive(Clone, Copy, Debug)]
pub struct NewCheckpoint<'a> {
    /// Whose layout.
    pub layout: Layout,
    /// All tensors under canonical names, the token embedding under [`TOKEN_EMBEDDING`].
    pub tensors: &'a [NewTensor],
    /// Goes into `config.json`; what is `None` is left out.
    pub hints: &'a ConfigHints,
    /// Camera slots (LeRobot's layout; openpi's are fixed).
    pub cameras: &'a [&'a str],
    /// Side of the model's images in pixels (LeRobot's layout).
    pub image_side: usize,
    /// Normalisation. openpi's layout knows quantiles only; LeRobot's keeps f32.
    pub statistics: &'a Statistics,
    /// Folder of the statistics below `assets/` (openpi's layout).
    pub asset_id: &'a str,
    /// Name and content of the tokenizer's file.
    pub tokenizer: Option<(&'a str, &'a [u8])>,
}

/// Writes the folder, which must be empty or not there yet.
///
/// `fill` writes the little-endian elements of a tensor; it is asked for the token embedding twice in LeRobot's
/// layout, which stores it twice. `progress` hears of (bytes written, bytes in all) of the weights.
pub fn write_checkpoint(
    folder: &Path,
    new: &NewCheckpoint<'_>,
    mut fill: impl FnMut(&NewTensor, &mut dyn Write) -> io::Result<()>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), CheckpointError> {
    fs::create_dir_all(folder).map_err(|e| CheckpointError::io(folder, e))?;
    if !folder::entries(folder, &mut 0)?.is_empty() {
        return Err(CheckpointError::file(folder, "not empty: name a new folder, or remove this one first"));
    }
    let mut written = NewFolder { folder, files: Vec::new(), complete: false };
    if let Some((name, bytes)) = new.tokenizer {
        write_bytes(&written.file(name)?, bytes)?;
    }
    match new.layout {
        Layout::OpenPi => write_openpi(new, &mut written)?,
        Layout::LeRobot => write_lerobot(new, &mut written)?,
    }
    let (metadata, stored, canonical) = stored(new);
    let fill = |i: usize, file: &mut dyn Write| fill(canonical[i], file);
    write_safetensors(&written.file(WEIGHTS)?, &metadata, &stored, fill, progress)?;
    written.complete = true;
    Ok(())
}

/// The tensors as the layout names them, each with the tensor it is made from, and the file's metadata.
fn stored<'a>(new: &NewCheckpoint<'a>) -> (BTreeMap<String, String>, Vec<NewTensor>, Vec<&'a NewTensor>) {
    let mut metadata = BTreeMap::new();
    let (mut stored, mut canonical) = (Vec::new(), Vec::new());
    let mut store = |name: String, tensor: &'a NewTensor| {
        stored.push(NewTensor { name, ..tensor.clone() });
        canonical.push(tensor);
    };
    for tensor in new.tensors {
        let embedding = tensor.name == TOKEN_EMBEDDING;
        match new.layout {
            Layout::OpenPi if embedding => {
                metadata.insert(TOKEN_EMBEDDING.into(), LM_HEAD.into());
                store(LM_HEAD.into(), tensor);
            }
            Layout::OpenPi => store(tensor.name.clone(), tensor),
            Layout::LeRobot => {
                if embedding {
                    store(format!("model.{LM_HEAD}"), tensor);
                }
                store(format!("model.{}", tensor.name), tensor);
            }
        }
    }
    (metadata, stored, canonical)
}

fn write_openpi(new: &NewCheckpoint<'_>, written: &mut NewFolder<'_>) -> Result<(), CheckpointError> {
    let NewCheckpoint { hints, statistics, asset_id, .. } = *new;
    let path = written.file(&format!("{}/{asset_id}/{}", openpi::ASSETS, openpi::NORM_STATS))?;
    if (statistics.state_mode, statistics.action_mode) != (NormMode::Quantiles, NormMode::Quantiles) {
        return Err(CheckpointError::file(
            &path,
            "openpi's layout of π0.5 knows quantile normalisation only",
        ));
    }
    check(&path, statistics)?;
    let stats = json!({"state": vectors(&statistics.state), "actions": vectors(&statistics.action)});
    write_json(&path, &json!({ "norm_stats": stats }))?;

    let mut config = Map::new();
    put(&mut config, "action_dim", hints.action_dim);
    put(&mut config, "action_horizon", hints.action_horizon);
    put(&mut config, VARIANT, hints.gemma_2b.then_some(GEMMA_2B));
    put(&mut config, "precision", precision(new));
    put(&mut config, "pi05_thor", ours(hints));
    write_json(&written.file("config.json")?, &Value::Object(config))
}

fn write_lerobot(new: &NewCheckpoint<'_>, written: &mut NewFolder<'_>) -> Result<(), CheckpointError> {
    let NewCheckpoint { hints, statistics, image_side, .. } = *new;
    let norm_map = json!({
        "VISUAL": "IDENTITY",
        "STATE": mode_name(statistics.state_mode),
        "ACTION": mode_name(statistics.action_mode),
    });
    let mut inputs = Map::new();
    for camera in new.cameras {
        let feature = json!({"type": "VISUAL", "shape": [3, image_side, image_side]});
        inputs.insert(format!("observation.images.{camera}"), feature);
    }
    let state = json!({"type": "STATE", "shape": [length(&statistics.state)]});
    inputs.insert(lerobot::STATE.into(), state);
    let outputs = json!({lerobot::ACTION: {"type": "ACTION", "shape": [length(&statistics.action)]}});

    let mut config = Map::new();
    put(&mut config, "type", Some("pi05"));
    put(&mut config, "n_obs_steps", Some(1));
    put(&mut config, "input_features", Some(inputs.clone()));
    put(&mut config, "output_features", Some(outputs.clone()));
    put(&mut config, VARIANT, hints.gemma_2b.then_some(GEMMA_2B));
    put(&mut config, "dtype", precision(new));
    put(&mut config, "chunk_size", hints.action_horizon);
    put(&mut config, "n_action_steps", hints.action_horizon);
    put(&mut config, "max_state_dim", hints.action_dim);
    put(&mut config, "max_action_dim", hints.action_dim);
    put(&mut config, "num_inference_steps", hints.num_steps);
    put(&mut config, "min_period", hints.periods.map(|periods| periods.min));
    put(&mut config, "max_period", hints.periods.map(|periods| periods.max));
    put(&mut config, "image_resolution", Some([image_side, image_side]));
    put(&mut config, "empty_cameras", Some(0));
    put(&mut config, "tokenizer_max_length", hints.max_token_len);
    put(&mut config, "normalization_mapping", Some(norm_map.clone()));
    put(&mut config, "use_relative_actions", Some(false));
    put(&mut config, "pi05_thor", ours(hints));
    write_json(&written.file("config.json")?, &Value::Object(config))?;

    let mut features = inputs;
    features.extend(outputs.as_object().cloned().unwrap_or_default());
    let (before, after) = (
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    );
    let pre = json!({"name": "policy_preprocessor", "steps": [
        {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
        {"registry_name": "to_batch_processor", "config": {}},
        {"registry_name": "relative_actions_processor",
            "config": {"enabled": false, "exclude_joints": ["gripper"], "action_names": null}},
        {"registry_name": "normalizer_processor",
            "config": {"eps": statistics.eps, "features": features, "norm_map": norm_map},
            "state_file": before},
        {"registry_name": "pi05_prepare_state_tokenizer_processor_step", "config": {}},
        {"registry_name": "tokenizer_processor", "config": {
            "max_length": hints.max_token_len, "task_key": "task", "padding_side": "right",
            "padding": "max_length", "truncation": true, "tokenizer_name": "google/paligemma-3b-pt-224"}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": null}},
    ]});
    let post = json!({"name": "policy_postprocessor", "steps": [
        {"registry_name": "unnormalizer_processor",
            "config": {"eps": statistics.eps, "features": outputs, "norm_map": norm_map},
            "state_file": after},
        {"registry_name": "absolute_actions_processor", "config": {"enabled": false}},
        {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": null}},
    ]});
    write_json(&written.file(PREPROCESSOR)?, &pre)?;
    write_json(&written.file(lerobot::POSTPROCESSOR)?, &post)?;
    for name in [before, after] {
        let path = written.file(name)?;
        check(&path, statistics)?;
        write_state_file(&path, statistics)?;
    }
    Ok(())
}

/// LeRobot's file of statistics: `<feature>.<stat>` in f32, of both features.
fn write_state_file(path: &Path, statistics: &Statistics) -> Result<(), CheckpointError> {
    let (mut tensors, mut data) = (Vec::new(), Vec::new());
    for (feature, stats) in [(lerobot::ACTION, &statistics.action), (lerobot::STATE, &statistics.state)] {
        for (stat, values) in norm::by_name(stats) {
            if let Some(values) = values {
                let name = format!("{feature}.{stat}");
                tensors.push(NewTensor { name, dtype: Dtype::F32, shape: vec![values.len()] });
                data.push(values);
            }
        }
    }
    let fill = |i: usize, file: &mut dyn Write| {
        data[i].iter().try_for_each(|&x| file.write_all(&(x as f32).to_le_bytes()))
    };
    write_safetensors(path, &BTreeMap::new(), &tensors, fill, &mut |_, _| {})
}

/// Refuses statistics that could not be read back, or that lack what their modes compute with.
fn check(path: &Path, statistics: &Statistics) -> Result<(), CheckpointError> {
    let Statistics { state, action, state_mode, action_mode, .. } = statistics;
    for (feature, stats, mode) in [("state", state, state_mode), ("action", action, action_mode)] {
        norm::check(path, feature, stats, &mut Vec::new())?;
        let there: Vec<&str> = norm::lengths(stats).map(|(stat, _)| stat).collect();
        if let Some(lacking) = needed(*mode).iter().find(|stat| !there.contains(stat)) {
            let problem =
                format!("expected {feature}.{lacking}, which {mode:?} normalisation needs, found none");
            return Err(CheckpointError::file(path, problem));
        }
    }
    Ok(())
}

/// The statistics that a mode computes with.
fn needed(mode: NormMode) -> &'static [&'static str] {
    match mode {
        NormMode::Quantiles => &["q01", "q99"],
        NormMode::Quantile10 => &["q10", "q90"],
        NormMode::MinMax => &["min", "max"],
        NormMode::MeanStd => &["mean", "std"],
        NormMode::Identity => &[],
    }
}

fn vectors(stats: &FeatureStats) -> Value {
    norm::by_name(stats)
        .into_iter()
        .filter_map(|(stat, values)| Some((stat, json!(values.as_ref()?))))
        .collect()
}

/// Length of the feature that these statistics describe.
fn length(stats: &FeatureStats) -> usize {
    norm::lengths(stats).next().map_or(0, |(_, len)| len)
}

/// Our own key: what neither layout's config can say. `None` where there is nothing to say.
fn ours(hints: &ConfigHints) -> Option<Map<String, Value>> {
    let mut ours = Map::new();
    put(&mut ours, "vision_heads", hints.vision_heads);
    put(&mut ours, "max_token_len", hints.max_token_len);
    put(&mut ours, "tokenizer", hints.builtin_tokenizer.then_some(BUILTIN_TOKENIZER));
    Some(ours).filter(|ours| !ours.is_empty())
}

fn precision(new: &NewCheckpoint<'_>) -> Option<&'static str> {
    new.tensors.first().map(|tensor| match tensor.dtype {
        Dtype::F32 => "float32",
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
    })
}

fn mode_name(mode: NormMode) -> &'static str {
    match mode {
        NormMode::Quantiles => "QUANTILES",
        NormMode::Quantile10 => "QUANTILE10",
        NormMode::MinMax => "MIN_MAX",
        NormMode::MeanStd => "MEAN_STD",
        NormMode::Identity => "IDENTITY",
    }
}

fn put(object: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object.insert(key.into(), value.into());
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), CheckpointError> {
    write_bytes(path, format!("{value:#}\n").as_bytes())
}

/// The files of a folder that was empty; they go again unless it gets complete.
struct NewFolder<'a> {
    folder: &'a Path,
    files: Vec<PathBuf>,
    complete: bool,
}

impl NewFolder<'_> {
    /// The path of a new file, in a folder that is there.
    fn file(&mut self, name: &str) -> Result<PathBuf, CheckpointError> {
        let Some(path) = folder::inside(self.folder, name) else {
            let problem = format!("\"{}\" is no name of a file in this folder", printable(name));
            return Err(CheckpointError::file(self.folder, problem));
        };
        self.files.push(path.clone());
        let parent = path.parent().unwrap_or(self.folder);
        fs::create_dir_all(parent).map_err(|e| CheckpointError::io(parent, e))?;
        Ok(path)
    }
}

impl Drop for NewFolder<'_> {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        // As far as it goes: what cannot be removed is named by the next attempt, which wants an empty folder.
        for file in &self.files {
            let _ = fs::remove_file(file);
            for parent in file.ancestors().skip(1).take_while(|parent| *parent != self.folder) {
                let _ = fs::remove_dir(parent); // succeeds only where nothing is left
            }
        }
    }
}
