//! The parts of a policy: what each takes from a checkpoint and the robot's parameters, and what can be wrong with it.
//!
//! Promises that each part is looked at by itself, so that one that does not fit conceals no other. Called by
//! [`super::Policy`] alone.

use std::path::Path;

use super::{
    NetworkShape, PolicyError, PolicyOptions,
    checkpoint::{Checkpoint, Layout, RelativeActions},
    normalize::{Feature, Normalizer},
    robot::Robot,
    statistics::Statistics,
    tokenizer::Tokenizer,
};
use crate::config::RobotKind;

/// What a policy takes from a checkpoint, or from nothing for the built-in models.
pub(super) struct Source<'a> {
    pub(super) layout: Layout,
    /// Or the folder that has none.
    pub(super) statistics: Result<&'a Statistics, &'a Path>,
    pub(super) relative: Option<&'a RelativeActions>,
    pub(super) state_in_prompt: bool,
    pub(super) trained_delay: usize,
}

impl<'a> Source<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint) -> Self {
        Self {
            layout: checkpoint.layout,
            statistics: checkpoint.statistics.as_ref().ok_or(&checkpoint.folder),
            relative: checkpoint.relative_actions.as_ref(),
            state_in_prompt: checkpoint.state_in_prompt,
            trained_delay: checkpoint.trained_delay,
        }
    }

    pub(super) fn statistics(&self) -> Result<&'a Statistics, PolicyError> {
        let lacking = |folder: &Path| PolicyError::NoStatistics { folder: folder.display().to_string() };
        self.statistics.map_err(lacking)
    }
}

/// The parts of a policy that can be wrong, each looked at by itself.
pub(super) struct Parts {
    /// Whether the network has room for the robot's values and for a prompt.
    pub(super) sizes: Result<(), PolicyError>,
    /// The adapter, and which of its actions are offsets.
    pub(super) adapter: Result<(Robot, Vec<bool>), PolicyError>,
    pub(super) state: Result<Normalizer, PolicyError>,
    pub(super) action: Result<Normalizer, PolicyError>,
}

impl Parts {
    pub(super) fn of(source: &Source<'_>, shape: &NetworkShape, options: &PolicyOptions) -> Self {
        let (states, actions) = (options.state_len, options.action_names.len());
        let normalizer = |feature, needed| {
            let statistics = source.statistics()?;
            let mode = match feature {
                Feature::State => statistics.state_mode,
                Feature::Action => statistics.action_mode,
            };
            let mode = options.normalization.unwrap_or(mode);
            Ok(Normalizer::new(source.layout, feature, statistics, mode, needed)?)
        };
        Self {
            sizes: sizes(shape, options),
            adapter: robot(source.layout, options)
                .and_then(|robot| Ok((robot, delta_mask(source, options, states, actions)?))),
            state: normalizer(Feature::State, states),
            action: normalizer(Feature::Action, actions),
        }
    }
}

fn sizes(shape: &NetworkShape, options: &PolicyOptions) -> Result<(), PolicyError> {
    if options.max_tokens.unwrap_or(shape.max_tokens) == 0 {
        return Err(PolicyError::NoPromptSlots);
    }
    let actions = options.action_names.len();
    for (what, found) in [(Feature::State, options.state_len), (Feature::Action, actions)] {
        if found == 0 {
            return Err(PolicyError::NoValues { what });
        }
    }
    if actions > shape.action_dim {
        return Err(PolicyError::TooManyActions { found: actions, most: shape.action_dim });
    }
    Ok(())
}

/// Which actions are offsets: the parameters decide, else the checkpoint's code base.
fn delta_mask(
    source: &Source<'_>,
    options: &PolicyOptions,
    states: usize,
    actions: usize,
) -> Result<Vec<bool>, PolicyError> {
    let mask = match (&options.delta_mask, source.layout) {
        (Some(mask), _) => mask.clone(),
        (None, Layout::OpenPi) => options.robot.default_delta_mask().unwrap_or_default(),
        (None, Layout::LeRobot) => source.relative.map_or(Vec::new(), |r| relative_mask(r, actions)),
    };
    let has_partner = |i: usize| i < states && i < actions;
    match (0..mask.len()).find(|&i| mask[i] && !has_partner(i)) {
        Some(index) => Err(PolicyError::DeltaMask { index, actions, states }),
        None => Ok(mask),
    }
}

/// The tokenizer's file, the parameters' before the checkpoint's; `None`: the built-in one will do.
pub(super) fn tokenizer_file<'a>(
    checkpoint: &'a Checkpoint,
    options: &'a PolicyOptions,
) -> Result<Option<&'a Path>, PolicyError> {
    match options.tokenizer.as_deref().or(checkpoint.tokenizer.as_deref()) {
        None if !checkpoint.hints.builtin_tokenizer => {
            Err(PolicyError::NoTokenizer { folder: checkpoint.folder.display().to_string() })
        }
        file => Ok(file),
    }
}

pub(super) fn tokenizer_of(
    checkpoint: &Checkpoint,
    rows: usize,
    options: &PolicyOptions,
) -> Result<Tokenizer, PolicyError> {
    Ok(match tokenizer_file(checkpoint, options)? {
        Some(file) => Tokenizer::from_file(file, rows)?,
        None => Tokenizer::builtin()?,
    })
}

/// The adapter. LeRobot's checkpoints were trained on the robot's own numbers, whatever the robot.
fn robot(layout: Layout, options: &PolicyOptions) -> Result<Robot, PolicyError> {
    let adapt_to_pi = options.adapt_to_pi.unwrap_or(layout == Layout::OpenPi);
    let robot = match options.robot {
        RobotKind::Aloha => Robot::Aloha { adapt_to_pi },
        RobotKind::Droid => Robot::Droid,
        RobotKind::Libero => Robot::Libero,
        RobotKind::Generic => Robot::Generic,
    };
    let adapts = layout == Layout::OpenPi || robot == Robot::Aloha { adapt_to_pi: true };
    if let Some((state, action)) = options.robot.lengths().filter(|_| adapts) {
        let found = [
            (Feature::State, state, options.state_len),
            (Feature::Action, action, options.action_names.len()),
        ];
        for (what, expected, found) in found {
            if found != expected {
                return Err(PolicyError::RobotLength { robot: options.robot, what, expected, found });
            }
        }
    }
    Ok(robot)
}

/// LeRobot's relative actions: all but those whose names contain an excluded word; all where it has no names.
fn relative_mask(relative: &RelativeActions, actions: usize) -> Vec<bool> {
    let excluded: Vec<String> = relative
        .exclude_joints
        .iter()
        .filter(|word| !word.is_empty())
        .map(|word| word.to_lowercase())
        .collect();
    let names = relative.action_names.as_deref().unwrap_or_default();
    let is_offset = |i: usize| {
        let name = names.get(i).map(|name| name.to_lowercase());
        !name.is_some_and(|name| excluded.iter().any(|word| name.contains(word)))
    };
    (0..actions).map(is_offset).collect()
}
