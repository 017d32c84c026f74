//! A checkpoint folder, openpi's or LeRobot's layout, recognised by its content (spec/PI05.md §11).

use std::path::PathBuf;

use super::statistics::Statistics;
use crate::model::tensors::TensorTable;

/// Whose conventions the checkpoint follows: resize, arithmetic, prompt, time steps (spec/PI05.md §13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// openpi's PyTorch folder; also the built-in synthetic models.
    OpenPi,
    /// LeRobot's `save_pretrained` folder.
    LeRobot,
}

/// What `config.json` says that tensor shapes cannot. `None`: it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfigHints {
    /// `pi05_thor.vision_heads`.
    pub vision_heads: Option<usize>,
    /// `pi05_thor.max_token_len`, else LeRobot's `tokenizer_max_length`.
    pub max_token_len: Option<usize>,
    /// openpi's `action_horizon`, LeRobot's `chunk_size`.
    pub action_horizon: Option<usize>,
    /// openpi's `action_dim`, LeRobot's `max_action_dim`; must agree with the tensors.
    pub action_dim: Option<usize>,
    /// LeRobot's `num_inference_steps`.
    pub num_steps: Option<usize>,
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
    /// Length of the action feature (LeRobot's `output_features.action.shape`), if said.
    pub action_len: Option<usize>,
}
