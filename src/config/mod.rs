//! Parameters: one table, one YAML file per robot.
//!
//! Promises: a [`Config`] is complete and consistent; what a file leaves out comes from the built-in file of its robot
//! or from the table; what does not fit is refused with one line per problem. One ROS 2 parameter file serves the node
//! and `replay` alike. Called at start-up by the command line; knows neither ROS nor checkpoints.
//!
//! | file | holds |
//! |---|---|
//! | [`parameters`] | the table |
//! | [`choices`] | parameters that are one of a few words |
//! | [`live`] | the running node's parameters: what may change, and what is said when it may not |
//! | `ros_file` | YAML to names and values |
//! | `layers` | file over robot over table; what this version does not have |
//! | [`urdf`] | the limits of a robot description |
//! | `home` | paths that begin with `~/` |
//! | `error` | what is said when it does not fit |

pub mod choices;
mod error;
mod home;
mod layers;
pub mod live;
pub mod parameters;
mod ros_file;
pub mod urdf;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

pub use choices::{
    AutoBool, Backend, CommandType, DtypeChoice, Execution, NormalizationChoice, PromptFormatChoice,
    ResizeChoice, RobotKind,
};
pub use error::{ConfigError, Violation};
pub use ros_file::FILE_MAX;

use crate::clock::NS_PER_MS;
use crate::control::{
    ControlConfig, ControlMode, Guards, JointLimit, JointLimits, Splice, limits::LimitsError,
};
use crate::engine::tensorrt::stages::Format;
use crate::engine::{Choice, Precision};
use crate::model::sampler::rtc::PrefixSchedule;
use crate::model::sampler::{self, Schedule, Solver, TimeRounding};
use crate::policy::PolicyOptions;
use crate::policy::prompt::PromptFormat;
use crate::policy::resize::Resize;
use crate::policy::statistics::NormMode;

/// All parameters, checked. The meaning of each is in [`parameters::TABLE`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // said once, in the table
pub struct Config {
    pub checkpoint: String,
    pub backend: Backend,
    pub dtype: DtypeChoice,
    pub recipe: String,
    pub robot: RobotKind,
    pub prompt: String,
    pub prompt_topic: String,
    pub autostart: bool,
    pub use_sim_time: bool,
    /// 1 to [`parameters::CAMERAS_MAX`], in the order of the file.
    pub cameras: Vec<Camera>,
    pub observe: Observe,
    pub joints: Joints,
    pub policy: Policy,
    pub control: Control,
    pub recorder: Recorder,
    pub rtc: Rtc,
    pub sampler: Sampler,
    pub replay: Replay,
}

/// `cameras.<slot>`: one camera that the robot has.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Camera {
    /// The model's name for it: openpi's (`base_0_rgb`) or LeRobot's own.
    pub slot: String,
    pub topic: String,
    pub max_age_ms: i64,
}

/// `observe`: what makes one observation.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Observe {
    pub max_skew_ms: i64,
}

/// `joints`: the robot's state and actions. The limits have one entry per action.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Joints {
    pub topic: String,
    pub max_age_ms: i64,
    pub fault_after_ms: i64,
    /// At least one, all different.
    pub names: Vec<String>,
    /// At least one, all different.
    pub action_names: Vec<String>,
    /// One per action.
    pub velocity_controlled: Vec<bool>,
    pub position_min: Vec<f64>,
    pub position_max: Vec<f64>,
    pub velocity_max: Vec<f64>,
    pub acceleration_max: Vec<f64>,
    /// Infinite where it is not limited.
    pub jerk_max: Vec<f64>,
}

/// `policy`: what surrounds the network, where the checkpoint's own word is not to be taken.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Policy {
    pub resize: ResizeChoice,
    pub prompt_format: PromptFormatChoice,
    pub adapt_to_pi: AutoBool,
    /// `None`: as the checkpoint says. Else one per action.
    pub delta_mask: Option<Vec<bool>>,
    pub normalization: NormalizationChoice,
    /// `None`: look beside the checkpoint.
    pub tokenizer: Option<String>,
    /// `None`: the only one there.
    pub asset_id: Option<String>,
}

/// `control`: from chunks to commands.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Control {
    pub policy_rate_hz: f64,
    pub rate_hz: f64,
    pub execution: Execution,
    pub blend_steps: usize,
    pub ensemble_decay: f64,
    pub open_loop_steps: usize,
    pub first_step_max: f64,
    pub command: CommandType,
    pub command_topic: String,
    /// `None`: ordinary scheduling.
    pub priority: Option<u8>,
    pub lock_memory: bool,
    /// `None`: any.
    pub cpu: Option<usize>,
}

/// `recorder`: the last seconds before a fault.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Recorder {
    /// `None`: no recorder.
    pub seconds: Option<f64>,
    /// `None`: the default.
    pub folder: Option<String>,
}

/// `rtc`: how the old chunk steers the sampler of the next one.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Rtc {
    pub schedule: PrefixSchedule,
    pub execution_horizon: usize,
    pub max_guidance_weight: f64,
}

/// `sampler`: from noise to actions.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Sampler {
    /// `None`: as the checkpoint says.
    pub steps: Option<usize>,
    pub schedule: Schedule,
    pub solver: Solver,
    /// `None`: fresh noise in every run.
    pub seed: Option<u64>,
}

impl Sampler {
    /// The sampler that these parameters ask for. Whose times are rounded how is the checkpoint's matter, and so is the
    /// number of steps where the parameters leave it open.
    pub fn of(&self, rounding: TimeRounding, checkpoint_steps: usize) -> sampler::Sampler {
        let steps = self.steps.unwrap_or(checkpoint_steps);
        sampler::Sampler { steps, schedule: self.schedule, solver: self.solver, rounding }
    }
}

/// `replay`: what only a replay needs.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Replay {
    pub latency_ms: i64,
}

impl Config {
    /// The built-in configuration of a robot. Of `generic` it is the template, with the joints of no real robot.
    pub fn builtin(robot: RobotKind) -> Result<Self, ConfigError> {
        layers::config(builtin_yaml(robot), &format!("config/{}.yaml", robot.name()))
    }

    /// From the text of a ROS 2 parameter file. `origin` is where the text is from, for messages.
    ///
    /// What the text leaves out is as in the built-in file of its robot, then as in the table; but cameras are taken
    /// from either the one or the other, and so are the joints' names and limits.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Self, ConfigError> {
        layers::config(text, origin)
    }

    /// From a ROS 2 parameter file of at most [`FILE_MAX`] bytes.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let (text, origin) = Self::read(path)?;
        Self::from_yaml(&text, &origin)
    }

    /// The names of the parameters that a file gives the node, under whatever name.
    pub fn names_in(path: &Path) -> Result<Vec<String>, ConfigError> {
        let (text, origin) = Self::read(path)?;
        Ok(ros_file::parse(&text, &origin)?.into_iter().map(|(name, _)| name).collect())
    }

    /// A file's text, and its name for a person.
    fn read(path: &Path) -> Result<(String, String), ConfigError> {
        let origin = path.display().to_string();
        let unreadable = |reason: String| ConfigError::Unreadable { origin: origin.clone(), reason };
        let file = File::open(path).map_err(|e| unreadable(e.to_string()))?;
        let mut bytes = Vec::new();
        file.take(FILE_MAX as u64 + 1).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
        if bytes.len() > FILE_MAX {
            return Err(unreadable(format!("more than {FILE_MAX} bytes")));
        }
        let text = String::from_utf8(bytes)
            .map_err(|e| unreadable(format!("no UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
        Ok((text, origin))
    }

    /// For each action, the state value of the same name: where the measured position of a command is found.
    pub fn measured_index(&self) -> Vec<Option<usize>> {
        let joints = &self.joints;
        joints.action_names.iter().map(|action| joints.names.iter().position(|name| name == action)).collect()
    }

    /// Which engine to make. What only a GPU can do is asked of a GPU.
    pub fn engine(&self) -> Choice {
        match (self.backend, self.dtype) {
            (Backend::Cpu, DtypeChoice::Fp8) => Choice::CpuFp8,
            (Backend::Cpu, _) => Choice::Cpu,
            (Backend::TensorRt(stages), DtypeChoice::Fp8) => Choice::TensorRt(stages, Format::Fp8),
            (Backend::TensorRt(stages), _) => Choice::TensorRt(stages, Format::Bf16),
            (Backend::Auto | Backend::Cuda, DtypeChoice::Fp8) => Choice::Cuda(Precision::Fp8),
            (Backend::Auto, DtypeChoice::Auto) => Choice::Auto,
            (Backend::Auto, DtypeChoice::F32) => Choice::Auto.in_f32(),
            (Backend::Auto, DtypeChoice::Bf16) => Choice::Cuda(Precision::Bf16),
            (Backend::Cuda, DtypeChoice::F32) => Choice::Cuda(Precision::F32),
            (Backend::Cuda, _) => Choice::Cuda(Precision::Bf16),
        }
    }

    /// What [`crate::policy::Policy`] needs; `None` there is `auto` here.
    pub fn policy_options(&self) -> PolicyOptions {
        let policy = &self.policy;
        PolicyOptions {
            robot: self.robot,
            state_len: self.joints.names.len(),
            action_names: self.joints.action_names.clone(),
            resize: match policy.resize {
                ResizeChoice::Auto => None,
                ResizeChoice::Pillow => Some(Resize::Pillow),
                ResizeChoice::Torch => Some(Resize::Torch),
            },
            prompt_format: match policy.prompt_format {
                PromptFormatChoice::Auto => None,
                PromptFormatChoice::State => Some(PromptFormat::StateInPrompt),
                PromptFormatChoice::TaskNewline => Some(PromptFormat::TaskOnlyNewline),
                PromptFormatChoice::Task => Some(PromptFormat::TaskOnly),
            },
            adapt_to_pi: match policy.adapt_to_pi {
                AutoBool::Auto => None,
                AutoBool::True => Some(true),
                AutoBool::False => Some(false),
            },
            delta_mask: policy.delta_mask.clone(),
            normalization: match policy.normalization {
                NormalizationChoice::Auto => None,
                NormalizationChoice::Quantiles => Some(NormMode::Quantiles),
                NormalizationChoice::MeanStd => Some(NormMode::MeanStd),
                NormalizationChoice::MinMax => Some(NormMode::MinMax),
            },
            tokenizer: policy.tokenizer.as_ref().map(PathBuf::from),
            max_tokens: None,
        }
    }

    /// How chunks follow each other.
    pub fn splice(&self) -> Splice {
        let &Control { execution, blend_steps, ensemble_decay, open_loop_steps, .. } = &self.control;
        Splice { execution, blend_steps, ensemble_decay, open_loop_steps }
    }

    /// What control does not believe.
    pub fn guards(&self) -> Guards {
        Guards {
            first_step_max: self.control.first_step_max,
            joints_fault_after_ns: self.joints.fault_after_ms * NS_PER_MS,
        }
    }

    /// What [`crate::control::Scheduler`] needs, for chunks of up to `horizon` steps.
    pub fn control_config(&self, horizon: usize) -> Result<ControlConfig, LimitsError> {
        let joints = &self.joints;
        let limit = |joint: usize, &velocity: &bool| JointLimit {
            mode: if velocity { ControlMode::Velocity } else { ControlMode::Position },
            position_min: joints.position_min[joint],
            position_max: joints.position_max[joint],
            velocity_max: joints.velocity_max[joint],
            acceleration_max: joints.acceleration_max[joint],
            jerk_max: joints.jerk_max[joint],
        };
        let limits =
            joints.velocity_controlled.iter().enumerate().map(|(joint, mode)| limit(joint, mode)).collect();
        Ok(ControlConfig {
            rate_hz: self.control.rate_hz,
            splice: self.splice(),
            guards: self.guards(),
            max_steps: horizon,
            limits: JointLimits::new(limits)?,
            measured_index: self.measured_index(),
            measured: self.joints.names.len(),
        })
    }
}

/// The shipped file of a robot.
pub fn builtin_yaml(robot: RobotKind) -> &'static str {
    match robot {
        RobotKind::Aloha => include_str!("../../config/aloha.yaml"),
        RobotKind::Droid => include_str!("../../config/droid.yaml"),
        RobotKind::Libero => include_str!("../../config/libero.yaml"),
        RobotKind::Generic => include_str!("../../config/generic.yaml"),
    }
}
