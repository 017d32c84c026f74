//! What surrounds the network: from an observation to its input, and from its output to robot actions.
//!
//! [`Policy`] is built once from a checkpoint's side files and the robot's parameters; everything that could be wrong
//! with them is refused then. After that [`Policy::encode`] and [`Policy::decode`] are pure: same input, same output.
//! The order of the steps is that of the code base the checkpoint comes from (spec/PI05.md §9, §13).

pub mod cameras;
pub mod checkpoint;
mod error;
pub mod normalize;
mod parts;
pub mod prompt;
pub mod resize;
pub mod robot;
pub mod statistics;
pub mod tokenizer;

use std::{path::PathBuf, sync::Arc};

use crate::{
    config::{Execution, RobotKind},
    model::{ModelInput, Pixels, dims::Dims},
    observe::{Observation, RgbImage},
};
use checkpoint::{Checkpoint, Layout};
use normalize::Normalizer;
use parts::{Parts, Source, tokenizer_file, tokenizer_of};
use prompt::PromptFormat;
use resize::{Resize, ResizeError, resize_with_pad};
use robot::Robot;
use statistics::{NormMode, Statistics};
use tokenizer::{BOS, Tokenizer};

pub use error::PolicyError;

/// Longest prompt that is looked at. 200 tokens hold no more than a few hundred bytes of language.
pub const MAX_PROMPT_BYTES: usize = 4096;

/// What the network's tensors say, as far as the policy needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkShape {
    /// Side of the square images.
    pub image_side: u32,
    /// Rows of the token embedding.
    pub vocab: usize,
    /// Values per action, A.
    pub action_dim: usize,
    /// Actions per chunk, H.
    pub horizon: usize,
    /// Prompt slots, BOS included.
    pub max_tokens: usize,
}

impl From<&Dims> for NetworkShape {
    fn from(dims: &Dims) -> Self {
        Self {
            image_side: dims.vision.image as u32, // a tensor's dimension in a file: far below 2^32
            vocab: dims.vocab,
            action_dim: dims.action_dim,
            horizon: dims.horizon,
            max_tokens: dims.max_tokens,
        }
    }
}

/// What the robot's parameters say. `None`: as the checkpoint's code base does it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOptions {
    /// Adapter between robot and policy.
    pub robot: RobotKind,
    /// Length of [`Observation::state`].
    pub state_len: usize,
    /// Names of the robot's action values, in the policy's order; a decoded action has as many.
    pub action_names: Vec<String>,
    /// How images are brought to size.
    pub resize: Option<Resize>,
    /// Form of the prompt.
    pub prompt_format: Option<PromptFormat>,
    /// ALOHA: convert to Physical Intelligence's joint convention.
    pub adapt_to_pi: Option<bool>,
    /// Actions that are offsets from the state; may be shorter than the action.
    pub delta_mask: Option<Vec<bool>>,
    /// How state and actions are normalised.
    pub normalization: Option<NormMode>,
    /// Tokenizer file, instead of the checkpoint's.
    pub tokenizer: Option<PathBuf>,
    /// Prompt slots, instead of the network's.
    pub max_tokens: Option<usize>,
}

/// One observation, encoded.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// What the engine takes.
    pub input: ModelInput,
    /// The normalised state, the robot's own dimensions: what the prompt's digits say.
    pub normalized_state: Vec<f64>,
    /// The prompt as tokenised, state included.
    pub prompt_text: String,
    /// Its tokens with BOS, before anything is cut off.
    pub token_count: usize,
    /// The prompt did not fit; the network sees only its beginning.
    pub truncated: bool,
    /// What relative actions are offsets from: the state in the policy's space.
    anchor: Vec<f64>,
}

impl Encoded {
    /// What relative actions are offsets from, for [`Policy::reanchor`].
    pub fn anchor(&self) -> &[f64] {
        &self.anchor
    }
}

/// Turns observations into network inputs, and network outputs into robot actions.
#[derive(Debug)]
pub struct Policy {
    layout: Layout,
    shape: NetworkShape,
    robot: Robot,
    state: Normalizer,
    action: Normalizer,
    state_len: usize,
    action_names: Vec<String>,
    delta_mask: Vec<bool>,
    trained_delay: usize,
    resize: Resize,
    prompt_format: PromptFormat,
    tokenizer: Tokenizer,
}

impl Policy {
    /// For a checkpoint folder. Every misfit between its side files, the network and the parameters is refused here.
    pub fn new(
        checkpoint: &Checkpoint,
        shape: NetworkShape,
        options: PolicyOptions,
    ) -> Result<Self, PolicyError> {
        let tokenizer = tokenizer_of(checkpoint, shape.vocab, &options)?;
        Self::build(Source::of(checkpoint), tokenizer, shape, options)
    }

    /// All that [`Self::new`] would refuse, not only the first of it. Of a network whose shape is not known: what the
    /// folder lacks.
    pub fn misfits(
        checkpoint: &Checkpoint,
        shape: Option<NetworkShape>,
        options: &PolicyOptions,
    ) -> Vec<PolicyError> {
        let source = Source::of(checkpoint);
        let misfits = match shape {
            Some(shape) => {
                let tokenizer = tokenizer_of(checkpoint, shape.vocab, options);
                let Parts { sizes, adapter, state, action } = Parts::of(&source, &shape, options);
                vec![tokenizer.err(), sizes.err(), adapter.err(), state.err(), action.err()]
            }
            None => vec![tokenizer_file(checkpoint, options).err(), source.statistics().err()],
        };
        misfits.into_iter().flatten().collect()
    }

    /// For a built-in model: openpi's conventions, its tokenizer built in (unless the parameters name one),
    /// and statistics that change nothing.
    pub fn synthetic(shape: NetworkShape, options: PolicyOptions) -> Result<Self, PolicyError> {
        let tokenizer = match &options.tokenizer {
            Some(file) => Tokenizer::from_file(file, shape.vocab)?,
            None => Tokenizer::builtin()?,
        };
        let statistics = Statistics::unit(options.state_len, options.action_names.len());
        let source = Source {
            layout: Layout::OpenPi,
            statistics: Ok(&statistics),
            relative: None,
            state_in_prompt: true,
            trained_delay: 0,
        };
        Self::build(source, tokenizer, shape, options)
    }

    /// The network's input for an observation. A prompt that is too long is cut on the right, as the references do.
    pub fn encode(&self, observation: &Observation, prompt: &str) -> Result<Encoded, PolicyError> {
        self.encode_resized(observation, prompt, Vec::new())
    }

    /// The same for images that [`Self::resize_image`] has brought to size already, by slot; those of other slots
    /// are brought to size here.
    pub fn encode_resized(
        &self,
        observation: &Observation,
        prompt: &str,
        mut resized: Vec<Option<Pixels>>,
    ) -> Result<Encoded, PolicyError> {
        if observation.state.len() != self.state_len {
            let found = observation.state.len();
            return Err(PolicyError::StateLength { expected: self.state_len, found });
        }
        if let Some((index, &value)) = observation.state.iter().enumerate().find(|(_, v)| !v.is_finite()) {
            return Err(PolicyError::StateNotFinite { index, value });
        }
        if observation.images.iter().all(Option::is_none) {
            return Err(PolicyError::NoImage);
        }
        let state = self.robot.state_in(&observation.state);
        let normalized_state = self.state.normalize(&state);
        let anchor = match self.layout {
            // openpi hands the normalised state through the network's side and unnormalises it afterwards.
            Layout::OpenPi => self.state.unnormalize(&normalized_state),
            Layout::LeRobot => state.iter().map(|&s| f64::from(s as f32)).collect(),
        };
        let (prompt_text, mut tokens) = self.tokenize(prompt, &normalized_state)?;
        let token_count = tokens.len();
        tokens.truncate(self.shape.max_tokens);
        let mut to_size = |(slot, image): (usize, &Option<Arc<RgbImage>>)| {
            let resized = resized.get_mut(slot).and_then(Option::take);
            let to_size = |image| resized.map_or_else(|| self.resize_image(image), Ok);
            image.as_deref().map(to_size).transpose().map_err(|reason| PolicyError::Resize { slot, reason })
        };
        let images = observation.images.iter().enumerate().map(&mut to_size).collect::<Result<_, _>>()?;
        Ok(Encoded {
            input: ModelInput { images, tokens },
            normalized_state,
            prompt_text,
            token_count,
            truncated: token_count > self.shape.max_tokens,
            anchor,
        })
    }

    /// An image as the network takes it. The part of [`Self::encode`] that can be done before all images are there.
    pub fn resize_image(&self, image: &RgbImage) -> Result<Pixels, ResizeError> {
        resize_with_pad(image, self.shape.image_side, self.resize)
    }

    /// Refuses a prompt whose end the network might not see, with any state. Gives its token count, BOS, task and
    /// the state at its longest included.
    pub fn check_prompt(&self, prompt: &str) -> Result<usize, PolicyError> {
        // Above every edge: bin 255 everywhere, and no other number has more digits.
        let longest_state = vec![f64::INFINITY; self.state_len];
        let tokens = self.tokenize(prompt, &longest_state)?.1.len();
        let most = self.shape.max_tokens;
        if tokens > most { Err(PolicyError::PromptTooLong { tokens, most }) } else { Ok(tokens) }
    }

    /// The network's actions `[H, A]` as `[H][action_names]` in robot units. What is not finite stays so: the
    /// controller rejects the chunk.
    pub fn decode(&self, actions: &[f32], encoded: &Encoded) -> Result<Vec<Vec<f64>>, PolicyError> {
        let NetworkShape { horizon, action_dim, .. } = self.shape;
        let (expected, found) = (horizon.saturating_mul(action_dim), actions.len());
        if found != expected {
            return Err(PolicyError::ActionLength { expected, found });
        }
        Ok(actions.chunks_exact(action_dim).map(|row| self.decode_row(row, &encoded.anchor)).collect())
    }

    /// Rows of model-space actions `[rows][action_names]` that were offsets from one state, in place, as offsets from
    /// another: the same robot actions. What is absolute stays as it is, bit for bit.
    pub fn reanchor(&self, rows: &mut [f32], from: &[f64], to: &[f64]) {
        let width = self.action_names.len();
        let moved = |joint: usize| {
            let is_offset = self.delta_mask.get(joint).copied().unwrap_or(false);
            is_offset && from.get(joint) != to.get(joint)
        };
        let moved: Vec<usize> =
            (0..width.min(from.len()).min(to.len())).filter(|&joint| moved(joint)).collect();
        if moved.is_empty() {
            return;
        }
        for row in rows.chunks_exact_mut(width) {
            let mut action = self.action.unnormalize_actions(row);
            for &joint in &moved {
                action[joint] += from[joint] - to[joint];
            }
            let normalized = self.action.normalize(&action);
            moved.iter().for_each(|&joint| row[joint] = normalized[joint] as f32);
        }
    }

    /// Refuses real-time chunking with a clean prefix (`rtc_trained`) where the network was not trained with one.
    pub fn check_execution(&self, execution: Execution) -> Result<(), PolicyError> {
        match execution {
            Execution::RtcTrained if self.trained_delay == 0 => Err(PolicyError::NotTrained),
            _ => Ok(()),
        }
    }

    /// Most steps of a clean prefix that the network was trained with; 0: none.
    pub fn trained_delay(&self) -> usize {
        self.trained_delay
    }

    /// Names of the values of a decoded action.
    pub fn action_names(&self) -> &[String] {
        &self.action_names
    }

    /// The network that this policy was built for.
    pub fn shape(&self) -> NetworkShape {
        self.shape
    }

    /// How the prompt is written.
    pub fn prompt_format(&self) -> PromptFormat {
        self.prompt_format
    }

    /// How images are brought to size.
    pub fn resize(&self) -> Resize {
        self.resize
    }

    /// The tokenizer, checked against the network.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Which actions are offsets from the state. The rest, and those beyond its end, are absolute.
    pub fn delta_mask(&self) -> &[bool] {
        &self.delta_mask
    }

    fn build(
        source: Source<'_>,
        tokenizer: Tokenizer,
        mut shape: NetworkShape,
        options: PolicyOptions,
    ) -> Result<Self, PolicyError> {
        shape.max_tokens = options.max_tokens.unwrap_or(shape.max_tokens);
        let parts = Parts::of(&source, &shape, &options);
        parts.sizes?;
        let (robot, delta_mask) = parts.adapter?;
        let default_format = match (source.layout, options.robot) {
            // openpi's published LIBERO policy was trained without the state.
            (Layout::OpenPi, RobotKind::Libero) => PromptFormat::TaskOnlyNewline,
            (Layout::LeRobot, _) if !source.state_in_prompt => PromptFormat::TaskOnly,
            _ => PromptFormat::StateInPrompt,
        };
        let default_resize = match source.layout {
            Layout::OpenPi => Resize::Pillow,
            Layout::LeRobot => Resize::Torch,
        };
        Ok(Self {
            layout: source.layout,
            shape,
            robot,
            state: parts.state?,
            action: parts.action?,
            state_len: options.state_len,
            delta_mask,
            trained_delay: source.trained_delay,
            resize: options.resize.unwrap_or(default_resize),
            prompt_format: options.prompt_format.unwrap_or(default_format),
            tokenizer,
            action_names: options.action_names,
        })
    }

    /// The prompt and its tokens, BOS first.
    fn tokenize(&self, prompt: &str, state: &[f64]) -> Result<(String, Vec<u32>), PolicyError> {
        if prompt.len() > MAX_PROMPT_BYTES {
            return Err(PolicyError::PromptBytes { found: prompt.len() });
        }
        let texts = self.prompt_format.compose(prompt, state);
        let mut tokens = vec![BOS];
        for text in &texts {
            tokens.extend(self.tokenizer.encode(text)?);
        }
        Ok((texts.concat(), tokens))
    }

    /// One action `[A]`: unnormalise, add the state where it is an offset, back to the robot's units.
    fn decode_row(&self, row: &[f32], anchor: &[f64]) -> Vec<f64> {
        let mut action = self.action.unnormalize_actions(row);
        for ((value, &state), &is_offset) in action.iter_mut().zip(anchor).zip(&self.delta_mask) {
            if is_offset {
                *value = match self.layout {
                    Layout::OpenPi => *value + state,
                    Layout::LeRobot => f64::from(*value as f32 + state as f32),
                };
            }
        }
        self.robot.action_out(&action, self.action_names.len())
    }
}
