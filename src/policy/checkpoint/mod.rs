//! A checkpoint folder, openpi's or LeRobot's layout, recognised by its content (spec/PI05.md §11).
//!
//! Promises one checked [`Checkpoint`] from either layout, or one line that says what is wrong where. Called by
//! whatever loads a policy, and by `pi05 verify|inspect|synth`. Never reads the data of the weights, never loads a
//! tokenizer, never judges whether the tensors make a network: dimensions are inferred from the table elsewhere.

mod config;
mod error;
mod folder;
mod json;
mod lerobot;
mod names;
mod norm;
mod openpi;
pub mod safetensors;
mod stream;
mod tokenizer;
mod weights;
pub mod write;

use std::path::{Path, PathBuf};

use config::Config;
pub use config::{DEFAULT_CAMERAS, MAX_CAMERAS};
pub use error::CheckpointError;

use super::statistics::Statistics;
use crate::model::dims::Periods;
use crate::model::tensors::{TOKEN_EMBEDDING, TensorTable};

/// Whose conventions the checkpoint follows: resize, arithmetic, prompt, time steps (spec/PI05.md §13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// openpi's PyTorch folder; also the built-in synthetic models.
    OpenPi,
    /// LeRobot's `save_pretrained` folder.
    LeRobot,
}

/// What `config.json` says that tensor shapes cannot. `None`: it does not say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigHints {
    /// `pi05_thor.vision_heads`.
    pub vision_heads: Option<usize>,
    /// `max_length` of LeRobot's tokenizing step, else `pi05_thor.max_token_len`, else LeRobot's `tokenizer_max_length`.
    pub max_token_len: Option<usize>,
    /// openpi's `action_horizon`, LeRobot's `chunk_size`.
    pub action_horizon: Option<usize>,
    /// openpi's `action_dim`, LeRobot's `max_action_dim`; must agree with the tensors.
    pub action_dim: Option<usize>,
    /// LeRobot's `image_resolution`, height and width; must agree with the tensors.
    pub image: Option<[usize; 2]>,
    /// LeRobot's `min_period` and `max_period`.
    pub periods: Option<Periods>,
    /// LeRobot's `num_inference_steps`.
    pub num_steps: Option<usize>,
    /// `paligemma_variant` is Gemma-2B, with or without LoRA.
    pub gemma_2b: bool,
    /// `"pi05_thor": {"tokenizer": "built-in"}`: a procedural network, for which the 512-piece tokenizer will do.
    pub builtin_tokenizer: bool,
}

/// LeRobot's relative actions: chunk values are offsets from the raw state (spec/PI05.md §9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelativeActions {
    /// Names that contain one of these (case-insensitive) stay absolute.
    pub exclude_joints: Vec<String>,
    /// Names of the action's dimensions, if the checkpoint has them.
    pub action_names: Option<Vec<String>>,
}

/// What the checkpoint's folder said, checked. Data of tensors stays on disk.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The folder.
    pub folder: PathBuf,
    /// Whose conventions hold.
    pub layout: Layout,
    /// Every tensor of the network, canonical names.
    pub tensors: TensorTable,
    /// What only `config.json` can say.
    pub hints: ConfigHints,
    /// `None` where the folder has none: refused by a policy, enough for `verify`.
    pub statistics: Option<Statistics>,
    /// Tokenizer file, if one was found.
    pub tokenizer: Option<PathBuf>,
    /// Camera slots in the model's order.
    pub cameras: Vec<String>,
    /// LeRobot's `rename_map`, reduced to camera names: (robot's name, model's slot).
    pub camera_aliases: Vec<(String, String)>,
    /// Present where LeRobot's relative actions are enabled.
    pub relative_actions: Option<RelativeActions>,
    /// LeRobot: `false` where the prompt does not carry the state (`include_state_in_prompt`).
    pub state_in_prompt: bool,
    /// Most steps of a clean prefix that the network was trained with (spec/PI05.md §12.3); 0: none.
    pub trained_delay: usize,
    /// Length of the action feature (LeRobot's `output_features.action.shape`), if said.
    pub action_len: Option<usize>,
    /// What a person may want to know, one line each: tensors passed over, odd statistics, no config.json.
    pub notes: Vec<String>,
}

/// What is wrong with each of a folder's side files; the network does without them.
#[derive(Debug, Default)]
pub struct Faults {
    /// LeRobot's step lists: statistics, other names of cameras and relative actions are not known.
    pub steps: Option<CheckpointError>,
    /// The statistics.
    pub statistics: Option<CheckpointError>,
    /// The search for the tokenizer.
    pub tokenizer: Option<CheckpointError>,
}

impl Checkpoint {
    /// Reads everything that a policy needs from `folder`.
    ///
    /// `asset_id` picks one of openpi's statistics (`droid`, `physical-intelligence/libero`); without it there may
    /// be one at most. LeRobot's folders have no asset ids.
    pub fn open(folder: &Path, asset_id: Option<&str>) -> Result<Self, CheckpointError> {
        let (checkpoint, faults) = Self::survey(folder, asset_id)?;
        match faults.steps.or(faults.statistics).or(faults.tokenizer) {
            Some(error) => Err(error),
            None => Ok(checkpoint),
        }
    }

    /// The same, each side file by itself: one that is broken is left out, with the reason among the faults.
    pub fn survey(folder: &Path, asset_id: Option<&str>) -> Result<(Self, Faults), CheckpointError> {
        let (mut checkpoint, config) = Self::network(folder)?;
        let mut faults = Faults::default();
        let notes = &mut checkpoint.notes;
        let statistics = match checkpoint.layout {
            Layout::OpenPi => openpi::statistics(folder, asset_id, notes),
            Layout::LeRobot => match lerobot::read(folder, &config, notes) {
                Ok(steps) => {
                    checkpoint.camera_aliases = steps.camera_aliases;
                    checkpoint.relative_actions = steps.relative_actions;
                    checkpoint.state_in_prompt = steps.state_in_prompt;
                    steps.statistics
                }
                Err(error) => {
                    faults.steps = Some(error);
                    Ok(None)
                }
            },
        };
        checkpoint.statistics = statistics.unwrap_or_else(|error| {
            faults.statistics = Some(error);
            None
        });
        let embedding = checkpoint.tensors.entries.get(TOKEN_EMBEDDING);
        let rows = embedding.and_then(|entry| entry.shape.first().copied());
        let tokenizer = tokenizer::find(folder, rows, &tokenizer::Caches::from_env());
        checkpoint.tokenizer = tokenizer.unwrap_or_else(|error| {
            faults.tokenizer = Some(error);
            None
        });
        Ok((checkpoint, faults))
    }

    /// Reads weights and `config.json` only: enough for the network, as `pi05 verify` runs it. Statistics,
    /// tokenizer, aliases and relative actions stay empty, and nothing wrong with them matters.
    pub fn open_network(folder: &Path) -> Result<Self, CheckpointError> {
        Self::network(folder).map(|(checkpoint, _)| checkpoint)
    }

    fn network(folder: &Path) -> Result<(Self, Config), CheckpointError> {
        let metadata = folder.metadata().map_err(|e| CheckpointError::io(folder, e))?;
        if !metadata.is_dir() {
            return Err(CheckpointError::file(folder, "expected the folder of a checkpoint, found a file"));
        }
        let mut config = Config::read(folder)?;
        let (tensors, mut notes) = weights::read(folder)?;
        notes.append(&mut config.notes);
        if config.layout == Layout::LeRobot {
            lerobot::limit_prompt(folder, &mut config.hints, &mut notes);
        }
        let checkpoint = Self {
            folder: folder.to_owned(),
            layout: config.layout,
            tensors,
            hints: config.hints.clone(),
            statistics: None,
            tokenizer: None,
            cameras: config.cameras.clone(),
            camera_aliases: Vec::new(),
            relative_actions: None,
            state_in_prompt: config.state_in_prompt,
            trained_delay: config.trained_delay,
            action_len: config.action_len,
            notes,
        };
        Ok((checkpoint, config))
    }
}
