//! Everything that [`super::Policy`] refuses, each in one line for the person who has to mend it.

use crate::config::RobotKind;

use super::{
    MAX_PROMPT_BYTES,
    normalize::{Feature, NormalizeError},
    resize::ResizeError,
    tokenizer::TokenizerError,
};

/// Why a policy cannot be built, or an input not be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Running unnormalised would move the arm anywhere.
    #[error("{folder}: the checkpoint has no normalisation statistics; add the files it was trained with")]
    NoStatistics {
        /// The checkpoint.
        folder: String,
    },
    /// Statistics do not fit.
    #[error(transparent)]
    Normalize(#[from] NormalizeError),
    /// No tokenizer anywhere.
    #[error(
        "{folder}: the checkpoint has no tokenizer; put `tokenizer.model` or `tokenizer.json` there, \
         or name one in the parameters"
    )]
    NoTokenizer {
        /// The checkpoint.
        folder: String,
    },
    /// The tokenizer does not fit, or cannot tokenise the prompt.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Not the robot that the adapter is for.
    #[error(
        "robot {robot} has {expected} {what} values, the parameters name {found}; \
         name them all or set the robot to generic"
    )]
    RobotLength {
        /// The adapter.
        robot: RobotKind,
        /// `state` or `action`.
        what: Feature,
        /// What the adapter takes.
        expected: usize,
        /// What the parameters give.
        found: usize,
    },
    /// Nothing to read or to drive.
    #[error("the parameters name no {what} values; name the joints in the policy's order")]
    NoValues {
        /// `state` or `action`.
        what: Feature,
    },
    /// More actions than the network gives.
    #[error("the parameters name {found} action values, the model gives {most}; check the joint names")]
    TooManyActions {
        /// What the parameters give.
        found: usize,
        /// A.
        most: usize,
    },
    /// Nothing of the prompt would be read.
    #[error("the prompt may have 0 tokens; set its maximum to that of the checkpoint, usually 200")]
    NoPromptSlots,
    /// An offset from nothing.
    #[error(
        "action {index} is an offset from the state (delta mask), but there are only {actions} actions and \
         {states} state values; set that entry of the mask to false"
    )]
    DeltaMask {
        /// First index that has no partner.
        index: usize,
        /// Length of the action.
        actions: usize,
        /// Length of the state.
        states: usize,
    },
    /// The observation is not of the configured robot.
    #[error("the state has {found} values, {expected} are configured; check the joint names")]
    StateLength {
        /// Configured.
        expected: usize,
        /// In the observation.
        found: usize,
    },
    /// A sensor says NaN or infinity.
    #[error("value {index} of the state is {value}; check the joint's sensor")]
    StateNotFinite {
        /// Position in the state.
        index: usize,
        /// What stands there.
        value: f64,
    },
    /// The network saw nothing.
    #[error("no camera has an image; at least one is needed")]
    NoImage,
    /// An image that has no place in a square.
    #[error("camera {slot} (counted from 0): {reason}")]
    Resize {
        /// Position among the model's cameras.
        slot: usize,
        /// What is wrong with it.
        reason: ResizeError,
    },
    /// Far beyond what the network reads.
    #[error("the prompt has {found} bytes, at most {MAX_PROMPT_BYTES} are taken; shorten it")]
    PromptBytes {
        /// Length of the prompt.
        found: usize,
    },
    /// The end of the prompt would be cut off.
    #[error("the prompt has {tokens} tokens together with the state, the model reads {most}; shorten it")]
    PromptTooLong {
        /// BOS, task and the state at its longest.
        tokens: usize,
        /// Prompt slots.
        most: usize,
    },
    /// A clean prefix that the network was never shown.
    #[error(
        "control.execution: expected another mode than rtc_trained, for this checkpoint was not trained for it (its config.json gives no rtc_training_max_delay above 0); use rtc"
    )]
    NotTrained,
    /// The engine's output is not of this policy's network.
    #[error("the model gave {found} action values, {expected} (horizon × action size) are expected")]
    ActionLength {
        /// H · A.
        expected: usize,
        /// In the output.
        found: usize,
    },
}
