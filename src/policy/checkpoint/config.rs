//! `config.json`: what tensor shapes cannot tell, in openpi's words or LeRobot's.
//!
//! Promises that every number that comes out is at least 1 and below a named cap. Unknown keys are passed over.

use std::ops::RangeInclusive;
use std::path::Path;

use super::{
    ConfigHints, Layout, RelativeActions,
    error::CheckpointError,
    json::{Field, SideFile},
};
use crate::model::dims::Periods;
use crate::policy::statistics::NormMode;

/// Most attention heads of the vision tower; So400m has 16.
const MAX_HEADS: usize = 1024;
/// Most prompt slots; the official models have 200.
pub(super) const MAX_TOKENS: usize = 65_536;
/// Most steps of a chunk; the official models have at most 50.
const MAX_HORIZON: usize = 4096;
/// Most dimensions of an action; the official models have 32.
const MAX_ACTION_DIM: usize = 4096;
/// Longest side of an image; the official models have 224.
const MAX_IMAGE: usize = 65_536;
/// Most denoise steps; the reference takes 10.
const MAX_STEPS: usize = 1000;
/// Most cameras; the official models have 3.
pub const MAX_CAMERAS: usize = 16;
/// Shortest and longest period of the time embedding, far from where its angles lose their digits.
const PERIODS: RangeInclusive<f64> = 1e-6..=1e6;

/// `pi05_thor.tokenizer` of a procedural checkpoint, whose embedding has more rows than the built-in tokenizer pieces.
pub(super) const BUILTIN_TOKENIZER: &str = "built-in";

/// Both layouts' key for the size of PaliGemma.
pub(super) const VARIANT: &str = "paligemma_variant";
/// The official one.
pub(super) const GEMMA_2B: &str = "gemma_2b";

/// Camera slots of a checkpoint that does not name its own (spec/PI05.md §2).
pub const DEFAULT_CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

/// Name of the step list that only LeRobot's folders have.
pub(super) const PREPROCESSOR: &str = "policy_preprocessor.json";

/// What `config.json` said, or its defaults where there is none.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) layout: Layout,
    pub(super) hints: ConfigHints,
    pub(super) cameras: Vec<String>,
    pub(super) action_len: Option<usize>,
    /// LeRobot's `normalization_mapping`.
    pub(super) norm_modes: Option<NormModes>,
    /// LeRobot's `include_state_in_prompt`.
    pub(super) state_in_prompt: bool,
    /// `rtc_training_max_delay`: 0 where the network was not trained with a clean prefix.
    pub(super) trained_delay: usize,
    /// LeRobot's `use_relative_actions`.
    pub(super) use_relative_actions: bool,
    /// The relative actions as LeRobot's config describes them, whether used or not.
    pub(super) relative_actions: RelativeActions,
    pub(super) notes: Vec<String>,
}

impl Config {
    /// Reads `folder/config.json` and tells the layout.
    pub(super) fn read(folder: &Path) -> Result<Self, CheckpointError> {
        let file = SideFile::read(&folder.join("config.json"))?;
        let root = file.as_ref().map(SideFile::root);
        let mut config = Self {
            layout: layout(folder, root.as_ref())?,
            hints: ConfigHints::default(),
            cameras: DEFAULT_CAMERAS.map(str::to_owned).to_vec(),
            action_len: None,
            norm_modes: None,
            state_in_prompt: true,
            trained_delay: 0,
            use_relative_actions: false,
            relative_actions: RelativeActions { exclude_joints: vec!["gripper".into()], action_names: None },
            notes: Vec::new(),
        };
        match &root {
            Some(root) => config.fill(root)?,
            None => {
                config.notes.push("no config.json: the action horizon is not known from this folder".into())
            }
        }
        Ok(config)
    }

    fn fill(&mut self, root: &Field<'_>) -> Result<(), CheckpointError> {
        let count = |key: &str, max| root.get(key)?.map(|f| f.count(max)).transpose();
        if let Some(ours) = root.get("pi05_thor")? {
            self.hints.vision_heads = ours.get("vision_heads")?.map(|f| f.count(MAX_HEADS)).transpose()?;
            self.hints.max_token_len = ours.get("max_token_len")?.map(|f| f.count(MAX_TOKENS)).transpose()?;
            if let Some(tokenizer) = ours.get("tokenizer")? {
                if tokenizer.text()? != BUILTIN_TOKENIZER {
                    return Err(tokenizer.wrong(&format!("\"{BUILTIN_TOKENIZER}\", or no such key")));
                }
                self.hints.builtin_tokenizer = true;
            }
        }
        let variant = root.get(VARIANT)?;
        self.hints.gemma_2b = variant.is_some_and(|v| matches!(v.text(), Ok(GEMMA_2B | "gemma_2b_lora")));
        // LeRobot says it at the top, a converted checkpoint under our own key.
        for place in [Some(root), root.get("pi05_thor")?.as_ref()].into_iter().flatten() {
            if let Some(delay) = place.get("rtc_training_max_delay")?
                && delay.number()? != 0.0
            {
                self.trained_delay = delay.count(MAX_HORIZON)?;
            }
        }
        match self.layout {
            Layout::OpenPi => {
                self.hints.action_horizon = count("action_horizon", MAX_HORIZON)?;
                self.hints.action_dim = count("action_dim", MAX_ACTION_DIM)?;
            }
            Layout::LeRobot => {
                self.hints.action_horizon = count("chunk_size", MAX_HORIZON)?;
                self.hints.action_dim = count("max_action_dim", MAX_ACTION_DIM)?;
                self.hints.num_steps = count("num_inference_steps", MAX_STEPS)?;
                if self.hints.max_token_len.is_none() {
                    self.hints.max_token_len = count("tokenizer_max_length", MAX_TOKENS)?;
                }
                if let Some(resolution) = root.get("image_resolution")? {
                    let sides: Vec<_> = resolution.items()?.collect();
                    let [height, width] = sides.as_slice() else {
                        return Err(resolution.wrong("a list of two numbers"));
                    };
                    self.hints.image = Some([height.count(MAX_IMAGE)?, width.count(MAX_IMAGE)?]);
                }
                self.fill_lerobot(root)?;
            }
        }
        Ok(())
    }

    fn fill_lerobot(&mut self, root: &Field<'_>) -> Result<(), CheckpointError> {
        let period = |key: &str, default| {
            let Some(said) = root.get(key)? else { return Ok(default) };
            let (least, most) = (PERIODS.start(), PERIODS.end());
            let wrong = || said.wrong(&format!("a number from {least} to {most}"));
            Some(said.number()?).filter(|period| PERIODS.contains(period)).ok_or_else(wrong)
        };
        let Periods { min, max } = Periods::OFFICIAL;
        let periods = Periods { min: period("min_period", min)?, max: period("max_period", max)? };
        self.hints.periods = Some(periods).filter(|&said| said != Periods::OFFICIAL);
        if let Some(memory) = root.get("use_proprioceptive_memory")?
            && memory.flag()?
        {
            return Err(memory.wrong("false: the memory option is not supported"));
        }
        if let Some(features) = root.get("input_features")? {
            let cameras = cameras(&features)?;
            if !cameras.is_empty() {
                self.cameras = cameras;
            }
        }
        if let Some(features) = root.get("output_features")?
            && let Some(action) = features.get("action")?
            && let Some(shape) = action.get("shape")?
        {
            let dims: Vec<_> = shape.items()?.collect();
            let [len] = dims.as_slice() else { return Err(shape.wrong("a list of one number")) };
            self.action_len = Some(len.count(MAX_ACTION_DIM)?);
        }
        if let Some(map) = root.get("normalization_mapping")? {
            self.norm_modes = Some(NormModes::read(&map)?);
        }
        if let Some(state) = root.get("include_state_in_prompt")? {
            self.state_in_prompt = state.flag()?;
        }
        if let Some(relative) = root.get("use_relative_actions")? {
            self.use_relative_actions = relative.flag()?;
        }
        if let Some(joints) = root.get("relative_exclude_joints")? {
            self.relative_actions.exclude_joints = joints.texts()?;
        }
        if let Some(names) = root.get("action_feature_names")? {
            self.relative_actions.action_names = Some(names.texts()?);
        }
        Ok(())
    }
}

/// LeRobot's configs say `"type"`, openpi's never do; other types are other networks.
fn layout(folder: &Path, root: Option<&Field<'_>>) -> Result<Layout, CheckpointError> {
    if let Some(kind) = root.map(|r| r.get("type")).transpose()?.flatten() {
        return match kind.text()? {
            "pi05" => Ok(Layout::LeRobot),
            _ => Err(kind.wrong("\"pi05\", the only network that runs here")),
        };
    }
    Ok(if folder.join(PREPROCESSOR).exists() { Layout::LeRobot } else { Layout::OpenPi })
}

/// The camera slots among LeRobot's `input_features`, in file order.
fn cameras(features: &Field<'_>) -> Result<Vec<String>, CheckpointError> {
    let mut cameras: Vec<String> = Vec::new();
    for (name, feature) in features.members()? {
        match feature.get("type")? {
            Some(kind) if kind.text()? == "VISUAL" => {}
            _ => continue,
        }
        let camera = camera_name(name);
        if cameras.iter().any(|c| c == camera) {
            return Err(feature.wrong("each camera once"));
        }
        if cameras.len() == MAX_CAMERAS {
            return Err(features.wrong(&format!("at most {MAX_CAMERAS} cameras")));
        }
        cameras.push(camera.to_owned());
    }
    Ok(cameras)
}

/// A camera's name without LeRobot's prefix.
pub(super) fn camera_name(feature: &str) -> &str {
    match feature.strip_prefix("observation.images.") {
        Some(camera) if !camera.is_empty() => camera,
        _ if feature == "observation.image" => "image",
        _ => feature,
    }
}

/// How LeRobot's steps treat the two features that carry statistics.
#[derive(Clone, Copy, Debug)]
pub(super) struct NormModes {
    pub(super) state: NormMode,
    pub(super) action: NormMode,
}

impl Default for NormModes {
    fn default() -> Self {
        Self { state: NormMode::Quantiles, action: NormMode::Quantiles }
    }
}

impl NormModes {
    /// From `norm_map` or `normalization_mapping`. A feature that the map leaves out is refused: LeRobot would
    /// leave it unnormalised without a word.
    pub(super) fn read(map: &Field<'_>) -> Result<Self, CheckpointError> {
        let mode = |kind| norm_mode(&map.require(kind, MODES)?);
        if let Some(visual) = map.get("VISUAL")?
            && norm_mode(&visual)? != NormMode::Identity
        {
            return Err(visual.wrong("IDENTITY: image statistics are not supported"));
        }
        Ok(Self { state: mode("STATE")?, action: mode("ACTION")? })
    }
}

const MODES: &str = "QUANTILES, QUANTILE10, MIN_MAX, MEAN_STD or IDENTITY";

fn norm_mode(mode: &Field<'_>) -> Result<NormMode, CheckpointError> {
    match mode.text()? {
        "QUANTILES" => Ok(NormMode::Quantiles),
        "QUANTILE10" => Ok(NormMode::Quantile10),
        "MIN_MAX" => Ok(NormMode::MinMax),
        "MEAN_STD" => Ok(NormMode::MeanStd),
        "IDENTITY" => Ok(NormMode::Identity),
        _ => Err(mode.wrong(MODES)),
    }
}
