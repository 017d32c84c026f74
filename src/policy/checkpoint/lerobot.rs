//! LeRobot's side files: the step lists around the network and the statistics they point to (spec/PI05.md §11.4).
//!
//! Promises to follow `state_file` wherever it points inside the folder, never to guess a step's number.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    ConfigHints, RelativeActions,
    config::{Config, MAX_TOKENS, NormModes, PREPROCESSOR, camera_name},
    error::CheckpointError,
    folder,
    json::{Field, SideFile},
    norm,
    safetensors::{Dtype, RawTensor, read_tensors},
};
use crate::{
    policy::statistics::{FeatureStats, NormMode, Statistics},
    printable::printable,
};

/// Name of the list of the steps after the network.
pub(super) const POSTPROCESSOR: &str = "policy_postprocessor.json";
/// Names of the features, as the statistics have them.
pub(super) const STATE: &str = "observation.state";
/// See [`STATE`].
pub(super) const ACTION: &str = "action";
/// Epsilon of the normalising steps that do not say theirs (spec/PI05.md §3.1).
pub(super) const EPS: f64 = 1e-8;
/// Registry names of the steps that are followed, and of those that have nothing to do here: one observation is one
/// batch, and where tensors lie is the engine's matter.
const RENAME: &str = "rename_observations_processor";
const BATCH: &str = "to_batch_processor";
const RELATIVE: &str = "relative_actions_processor";
const NORMALIZER: &str = "normalizer_processor";
const PROMPT: &str = "pi05_prepare_state_tokenizer_processor_step";
const TOKENIZER: &str = "tokenizer_processor";
const DEVICE: &str = "device_processor";
const UNNORMALIZER: &str = "unnormalizer_processor";
const ABSOLUTE: &str = "absolute_actions_processor";
const PRE_STEPS: [&str; 5] = [RENAME, RELATIVE, NORMALIZER, PROMPT, TOKENIZER];
const POST_STEPS: [&str; 2] = [UNNORMALIZER, ABSOLUTE];
const IDLE_STEPS: [&str; 2] = [BATCH, DEVICE];
/// What `steps` of either list has to be.
const STEPS: &str = "a list of steps";
/// Longest file of statistics that is read, in bytes; the usual one has a few thousand.
const MAX_STATISTICS: u64 = 4 << 20;

/// What the step lists say.
#[derive(Debug)]
pub(super) struct Steps {
    /// By themselves: what else the lists say holds without them.
    pub(super) statistics: Result<Option<Statistics>, CheckpointError>,
    pub(super) camera_aliases: Vec<(String, String)>,
    pub(super) relative_actions: Option<RelativeActions>,
    pub(super) state_in_prompt: bool,
}

/// Reads both step lists; a folder may have neither.
pub(super) fn read(
    folder: &Path,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Steps, CheckpointError> {
    let pre = SideFile::read(&folder.join(PREPROCESSOR))?;
    let post = SideFile::read(&folder.join(POSTPROCESSOR))?;
    note_strangers(PREPROCESSOR, pre.as_ref(), &PRE_STEPS, notes)?;
    note_strangers(POSTPROCESSOR, post.as_ref(), &POST_STEPS, notes)?;
    let pre = |name| step(pre.as_ref(), name);
    let post = |name| step(post.as_ref(), name);

    let prompt = pre(PROMPT)?;
    let state_in_prompt = match setting(prompt.as_ref(), "include_state_in_prompt")? {
        Some(said) => said.flag()?,
        None => config.state_in_prompt,
    };
    max_length(pre(TOKENIZER)?.as_ref())?; // taken by `limit_prompt`
    let rename = pre(RENAME)?;
    let relative = pre(RELATIVE)?;
    let absolute = post(ABSOLUTE)?;
    let (normalizer, unnormalizer) = (pre(NORMALIZER)?, post(UNNORMALIZER)?);
    Ok(Steps {
        statistics: statistics(folder, config, state_in_prompt, normalizer, unnormalizer, notes),
        camera_aliases: camera_aliases(rename.as_ref())?,
        relative_actions: relative_actions(config, relative.as_ref(), absolute.as_ref())?,
        state_in_prompt,
    })
}

/// Notes the steps that LeRobot runs and nobody here does: those of its user, and those that stand in a list again.
fn note_strangers(
    list: &str,
    file: Option<&SideFile>,
    followed: &[&str],
    notes: &mut Vec<String>,
) -> Result<(), CheckpointError> {
    let Some(file) = file else { return Ok(()) };
    let mut seen = Vec::new();
    for (index, step) in file.root().require("steps", STEPS)?.items()?.enumerate() {
        let name = match step.get("registry_name")? {
            Some(name) => Some(name),
            None => step.get("class")?,
        };
        let name = name.map(|name| name.text()).transpose()?.unwrap_or("without a name");
        if IDLE_STEPS.contains(&name) {
            continue;
        }
        let problem = match (followed.contains(&name), seen.contains(&name)) {
            (true, false) => {
                seen.push(name);
                continue;
            }
            (true, true) => "is there a second time, which is not followed",
            (false, _) => "is not known here and does not run",
        };
        notes.push(format!("{list}: step {index} ({}) {problem}", printable(name)));
    }
    Ok(())
}

/// Takes the prompt's slots from the step that cuts it, where there is one: it is what LeRobot runs. What is wrong with
/// the list of steps is said by [`read`]: the network does without it.
pub(super) fn limit_prompt(folder: &Path, hints: &mut ConfigHints, notes: &mut Vec<String>) {
    let list = SideFile::read(&folder.join(PREPROCESSOR));
    let said = list.and_then(|list| max_length(step(list.as_ref(), TOKENIZER)?.as_ref()));
    let Ok(Some(slots)) = said else { return };
    if let Some(other) = hints.max_token_len.replace(slots).filter(|&other| other != slots) {
        notes.push(format!(
            "{PREPROCESSOR} cuts prompts to {slots} tokens (max_length of {TOKENIZER}), config.json to {other}: the \
             former holds"
        ));
    }
}

/// Tokens that the tokenizing step leaves of a prompt, if it says.
fn max_length(tokenizer: Option<&Field<'_>>) -> Result<Option<usize>, CheckpointError> {
    setting(tokenizer, "max_length")?.map(|length| length.count(MAX_TOKENS)).transpose()
}

/// The first step of that registry name, if the list has one.
fn step<'a>(list: Option<&'a SideFile>, name: &str) -> Result<Option<Field<'a>>, CheckpointError> {
    let Some(list) = list else { return Ok(None) };
    for step in list.root().require("steps", STEPS)?.items()? {
        if let Some(registered) = step.get("registry_name")?
            && registered.text()? == name
        {
            return Ok(Some(step));
        }
    }
    Ok(None)
}

/// One key of a step's `config`.
fn setting<'a>(step: Option<&Field<'a>>, key: &str) -> Result<Option<Field<'a>>, CheckpointError> {
    let config = step.map(|step| step.get("config")).transpose()?.flatten();
    Ok(config.map(|config| config.get(key)).transpose()?.flatten())
}

/// State as the preprocessor normalises it, actions as the postprocessor brings them back; `None` where the folder
/// carries no statistics at all.
fn statistics(
    folder: &Path,
    config: &Config,
    state_in_prompt: bool,
    normalizer: Option<Field<'_>>,
    unnormalizer: Option<Field<'_>>,
    notes: &mut Vec<String>,
) -> Result<Option<Statistics>, CheckpointError> {
    let state = Feature::read(folder, PREPROCESSOR, normalizer.as_ref(), STATE, config)?;
    let action = Feature::read(folder, POSTPROCESSOR, unnormalizer.as_ref(), ACTION, config)?;
    let state_needed = state_in_prompt && state.mode != NormMode::Identity;
    let action_needed = action.mode != NormMode::Identity;
    if state.stats.is_none() && action.stats.is_none() && (state_needed || action_needed) {
        return Ok(None);
    }
    if action.eps != state.eps
        && let Some(eps) = setting(unnormalizer.as_ref(), "eps")?
    {
        return Err(eps.wrong(&format!("{}, as in {PREPROCESSOR}", state.eps)));
    }
    if action_needed
        && let (Some(len), Some(stats)) = (config.action_len, &action.stats)
        && let Some((stat, found)) = norm::lengths(stats).find(|(_, found)| *found != len)
    {
        return Err(CheckpointError::Key {
            file: action.source,
            key: format!("{ACTION}.{stat}"),
            expected: format!("{len} numbers, as output_features of config.json says"),
            found: found.to_string(),
        });
    }
    if state_needed
        && let Some(features) = setting(normalizer.as_ref(), "features")?
        && features.get(STATE)?.is_none()
    {
        return Err(features.wrong(&format!("{STATE} among them: LeRobot leaves unnormalised what is not")));
    }
    let sources = [&state, &action].map(|feature| feature.source.display().to_string());
    // Where nobody reads the state, there may be nothing to normalise it with.
    let state_mode = if state_needed || state.stats.is_some() { state.mode } else { NormMode::Identity };
    let (action_mode, eps) = (action.mode, state.eps);
    Ok(Some(Statistics {
        state: state.checked(notes)?,
        action: action.checked(notes)?,
        state_mode,
        action_mode,
        eps,
        source: sources.join(", "),
    }))
}

/// One feature as one normalising step treats it.
struct Feature {
    name: &'static str,
    mode: NormMode,
    eps: f64,
    stats: Option<FeatureStats>,
    /// The file of the statistics, else of the steps.
    source: PathBuf,
}

impl Feature {
    fn read(
        folder: &Path,
        list: &str,
        step: Option<&Field<'_>>,
        name: &'static str,
        config: &Config,
    ) -> Result<Self, CheckpointError> {
        let modes = match setting(step, "norm_map")? {
            Some(map) => Some(NormModes::read(&map)?),
            None => config.norm_modes,
        };
        let modes = modes.unwrap_or_default();
        let mut feature = Self {
            name,
            mode: if name == STATE { modes.state } else { modes.action },
            eps: setting(step, "eps")?.map(|eps| eps.number()).transpose()?.unwrap_or(EPS),
            stats: None,
            source: folder.join(list),
        };
        if let Some(file) = step.map(|step| step.get("state_file")).transpose()?.flatten() {
            let Some(path) = folder::inside(folder, file.text()?) else {
                return Err(file.wrong("the name of a file in this folder"));
            };
            feature.stats = vectors(&path, name, read_tensors(&path, MAX_STATISTICS)?)?;
            feature.source = path;
        }
        Ok(feature)
    }

    /// The statistics, checked; empty ones where there are none.
    fn checked(self, notes: &mut Vec<String>) -> Result<FeatureStats, CheckpointError> {
        let stats = self.stats.unwrap_or_default();
        norm::check(&self.source, self.name, &stats, notes)?;
        Ok(stats)
    }
}

/// The vectors `<feature>.<stat>` of a state file; `None` if it has none of this feature.
fn vectors(
    path: &Path,
    feature: &str,
    mut tensors: BTreeMap<String, RawTensor>,
) -> Result<Option<FeatureStats>, CheckpointError> {
    let mut stats = FeatureStats::default();
    let mut any = false;
    for (stat, values) in norm::by_name_mut(&mut stats) {
        let name = format!("{feature}.{stat}");
        let Some(tensor) = tensors.remove(&name) else { continue };
        if tensor.shape.len() != 1 {
            let problem = format!("expected one dimension, found shape {:?}", tensor.shape);
            return Err(CheckpointError::tensor(path, &name, problem));
        }
        let is_float = matches!(tensor.dtype, Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F16);
        let Some(numbers) = tensor.to_f64().filter(|_| is_float) else {
            let problem = format!("expected F32, found {}", tensor.dtype);
            return Err(CheckpointError::tensor(path, &name, problem));
        };
        // LeRobot computes in f32, whatever the file has.
        *values = Some(numbers.into_iter().map(|x| f64::from(x as f32)).collect());
        any = true;
    }
    Ok(any.then_some(stats))
}

/// (robot's name, model's slot) of the cameras that are renamed.
fn camera_aliases(rename: Option<&Field<'_>>) -> Result<Vec<(String, String)>, CheckpointError> {
    let mut aliases = Vec::new();
    if let Some(map) = setting(rename, "rename_map")? {
        for (from, to) in map.members()? {
            let to = to.text()?;
            if to.starts_with("observation.image") {
                aliases.push((camera_name(from).to_owned(), camera_name(to).to_owned()));
            }
        }
    }
    Ok(aliases)
}

/// The steps decide, since they are what LeRobot runs; config.json where they are silent.
fn relative_actions(
    config: &Config,
    relative: Option<&Field<'_>>,
    absolute: Option<&Field<'_>>,
) -> Result<Option<RelativeActions>, CheckpointError> {
    let said = |step| setting(step, "enabled").and_then(|said| said.map(|said| said.flag()).transpose());
    let (before, after) = (said(relative)?, said(absolute)?);
    if let (Some(before), Some(after), Some(absolute)) = (before, after, setting(absolute, "enabled")?)
        && before != after
    {
        return Err(
            absolute.wrong(&format!("{before}, as relative_actions_processor in {PREPROCESSOR} says"))
        );
    }
    if !after.or(before).unwrap_or(config.use_relative_actions) {
        return Ok(None);
    }
    let mut actions = config.relative_actions.clone();
    if let Some(joints) = setting(relative, "exclude_joints")? {
        actions.exclude_joints = joints.texts()?;
    }
    // A step without names makes every action relative, whatever names the config has (spec/PI05.md §9).
    if relative.is_some() {
        actions.action_names = setting(relative, "action_names")?.map(|names| names.texts()).transpose()?;
    }
    Ok(Some(actions))
}
