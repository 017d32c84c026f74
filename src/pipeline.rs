//! From a checkpoint's name to a running network, and through its stages with the time of each.

pub mod calibrated;
pub mod chunking;
pub mod inference;
pub mod just_in_time;
pub mod recipe;
pub mod rounding;
pub mod setup;

use std::path::{Path, PathBuf};
use std::time::Instant;

use thiserror::Error;

use recipe::Recipe;

use crate::engine::cuda::Measured;
use crate::engine::probe::Tap;
use crate::engine::weights::Weights;
use crate::engine::{Choice, Engine, EngineError};
use crate::model::ModelInput;
use crate::model::dims::{Dims, DimsError, DimsHints};
use crate::model::names;
use crate::model::sampler::rtc::Rtc;
use crate::model::sampler::{DEFAULT_STEPS, Sampler, TimeRounding};
use crate::model::tensors::Dtype;
use crate::policy::PolicyError;
use crate::policy::cameras::CameraSlots;
use crate::policy::checkpoint::{Checkpoint, CheckpointError, DEFAULT_CAMERAS, Faults, Layout};

/// Where a network comes from.
#[derive(Clone, Debug)]
pub enum Model {
    /// One of the built-in procedural networks.
    Synthetic(Synthetic),
    /// A folder.
    Folder(Box<Checkpoint>),
}

/// The built-in procedural networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synthetic {
    /// 1 M parameters; any robot fits.
    Tiny,
    /// π0.5's own size, 3.35 billion parameters.
    Full,
}

/// Why a network could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The folder.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Its tensors.
    #[error("{place}: {source}")]
    Dims {
        /// The file, else the folder.
        place: String,
        /// What is wrong.
        source: DimsError,
    },
    /// A built-in model that does not exist.
    #[error("checkpoint \"{0}\": expected synth:tiny, synth:full or a folder")]
    UnknownSynthetic(String),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The calibration that fp8 needs.
    #[error(transparent)]
    Calibration(#[from] calibrated::CalibrationError),
    /// What fp8 rounds.
    #[error(transparent)]
    Recipe(#[from] recipe::RecipeError),
    /// What surrounds the network does not fit it, or the parameters.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

impl Synthetic {
    /// Its dimensions.
    pub fn dims(self) -> Dims {
        match self {
            Synthetic::Tiny => Dims::TINY,
            Synthetic::Full => Dims::FULL,
        }
    }

    /// Its weights' type: the full-size one is defined as rounded to bf16.
    pub fn dtype(self) -> Dtype {
        match self {
            Synthetic::Tiny => Dtype::F32,
            Synthetic::Full => Dtype::BF16,
        }
    }
}

impl Model {
    /// `synth:tiny`, `synth:full` or a folder. With everything that a policy needs beside the network.
    pub fn open(name: &str, asset_id: Option<&str>) -> Result<Self, LoadError> {
        Self::from_name(name, |folder| Checkpoint::open(folder, asset_id))
    }

    /// The same, with what is wrong with each side file instead of it.
    pub fn survey(name: &str, asset_id: Option<&str>) -> Result<(Self, Faults), LoadError> {
        let mut found = Faults::default();
        let model = Self::from_name(name, |folder| {
            let (checkpoint, faults) = Checkpoint::survey(folder, asset_id)?;
            found = faults;
            Ok(checkpoint)
        })?;
        Ok((model, found))
    }

    /// The same, but only what the network itself needs: no statistics, no tokenizer.
    pub fn open_network(name: &str) -> Result<Self, LoadError> {
        Self::from_name(name, Checkpoint::open_network)
    }

    fn from_name(
        name: &str,
        open: impl FnOnce(&Path) -> Result<Checkpoint, CheckpointError>,
    ) -> Result<Self, LoadError> {
        match name.strip_prefix("synth:") {
            Some("tiny") => Ok(Model::Synthetic(Synthetic::Tiny)),
            Some("full") => Ok(Model::Synthetic(Synthetic::Full)),
            Some(_) => Err(LoadError::UnknownSynthetic(name.to_owned())),
            None => Ok(Model::Folder(Box::new(open(Path::new(name))?))),
        }
    }

    /// As it was asked for.
    pub fn name(&self) -> String {
        match self {
            Model::Synthetic(Synthetic::Tiny) => "synth:tiny".to_owned(),
            Model::Synthetic(Synthetic::Full) => "synth:full".to_owned(),
            Model::Folder(checkpoint) => checkpoint.folder.display().to_string(),
        }
    }

    /// The network's dimensions; every tensor is there with its shape.
    pub fn dims(&self) -> Result<Dims, LoadError> {
        match self {
            Model::Synthetic(synthetic) => Ok(synthetic.dims()),
            Model::Folder(checkpoint) => {
                let hints = DimsHints {
                    vision_heads: checkpoint.hints.vision_heads,
                    horizon: checkpoint.hints.action_horizon,
                    max_tokens: checkpoint.hints.max_token_len,
                    action_dim: checkpoint.hints.action_dim,
                    image: checkpoint.hints.image,
                    periods: checkpoint.hints.periods,
                    gemma_2b: checkpoint.hints.gemma_2b,
                };
                Dims::from_tensors(&checkpoint.tensors, &hints).map_err(|source| {
                    let file = match (&source, checkpoint.tensors.files.as_slice()) {
                        (DimsError::Shape { file, .. }, files) => files.get(*file),
                        (DimsError::Missing { .. }, [only]) => Some(only),
                        _ => None,
                    };
                    let place = file.unwrap_or(&checkpoint.folder).display().to_string();
                    LoadError::Dims { place, source }
                })
            }
        }
    }

    /// Its cameras.
    pub fn cameras(&self) -> CameraSlots {
        match self {
            Model::Synthetic(_) => {
                CameraSlots { names: DEFAULT_CAMERAS.map(str::to_owned).to_vec(), aliases: Vec::new() }
            }
            Model::Folder(checkpoint) => {
                CameraSlots { names: checkpoint.cameras.clone(), aliases: checkpoint.camera_aliases.clone() }
            }
        }
    }

    /// Whose conventions hold.
    pub fn layout(&self) -> Layout {
        match self {
            Model::Synthetic(_) => Layout::OpenPi,
            Model::Folder(checkpoint) => checkpoint.layout,
        }
    }

    /// Whose rounding of the times holds.
    pub fn time_rounding(&self) -> TimeRounding {
        match self.layout() {
            Layout::OpenPi => TimeRounding::Accumulated,
            Layout::LeRobot => TimeRounding::Direct,
        }
    }

    /// How many denoise steps it is run with, unless the parameters say otherwise.
    pub fn denoise_steps(&self) -> usize {
        let said = match self {
            Model::Synthetic(_) => None,
            Model::Folder(checkpoint) => checkpoint.hints.num_steps,
        };
        said.unwrap_or(DEFAULT_STEPS)
    }

    /// The network, ready to run. `progress` hears of (parameters made, parameters in all) where they are made. In fp8 by the
    /// default recipe.
    pub fn load(&self, choice: Choice, progress: impl FnMut(usize, usize)) -> Result<Engine, LoadError> {
        self.load_by(recipe::DEFAULT, choice, progress)
    }

    /// The same; in fp8 by this recipe, a built-in one or a file.
    pub fn load_by(
        &self,
        recipe: &str,
        choice: Choice,
        progress: impl FnMut(usize, usize),
    ) -> Result<Engine, LoadError> {
        let dims = self.dims()?;
        let recipe = Recipe::open(recipe)?;
        choice.check()?;
        let file = self.calibration_file();
        if choice.is_fp8() {
            calibrated::find(&file)?;
        }
        let weights = self.weights(progress)?;
        let calibration = match choice.is_fp8() {
            true => {
                let (ranges, layers) =
                    calibrated::read(&file, &weights.fingerprint(&dims)?)?.by(&recipe, &dims, &file)?;
                let kept = layers.iter().filter(|layer| layer.kept.is_some()).count();
                let name = &recipe.name;
                tracing::info!("fp8, recipe {name}: {} of {} layers", layers.len() - kept, layers.len());
                Some(ranges)
            }
            false => None,
        };
        Ok(Engine::new(&weights, dims, choice, calibration.as_ref(), self.cameras().names.len())?)
    }

    /// The weights alone: mapped, or made. `progress` as in [`Model::load`].
    pub fn weights(&self, mut progress: impl FnMut(usize, usize)) -> Result<Weights, LoadError> {
        match self {
            Model::Synthetic(synthetic) => {
                let dims = synthetic.dims();
                let (mut made, all) = (0, dims.parameters());
                Ok(Weights::synthetic(&dims, synthetic.dtype(), |parameters| {
                    made += parameters;
                    progress(made, all);
                })?)
            }
            Model::Folder(checkpoint) => Ok(Weights::map(&checkpoint.tensors)?),
        }
    }

    /// Where its calibration is looked for: beside a checkpoint's weights; of a built-in network in the working folder.
    pub fn calibration_file(&self) -> PathBuf {
        match self {
            Model::Synthetic(Synthetic::Tiny) => "synth-tiny.calibration.safetensors".into(),
            Model::Synthetic(Synthetic::Full) => "synth-full.calibration.safetensors".into(),
            Model::Folder(checkpoint) => checkpoint.folder.join("calibration.safetensors"),
        }
    }

    /// Bytes of the network's weights.
    pub fn bytes(&self) -> u64 {
        match self {
            Model::Synthetic(synthetic) => (synthetic.dims().parameters() * synthetic.dtype().size()) as u64,
            Model::Folder(checkpoint) => {
                let bytes = |name: &String| {
                    let entry = checkpoint.tensors.entries.get(name)?;
                    Some((entry.elements()? * entry.dtype.size()) as u64)
                };
                let required = self.dims().map(|dims| names::required(&dims)).unwrap_or_default();
                required.iter().filter_map(|(name, _)| bytes(name)).sum()
            }
        }
    }
}

/// Time of each stage of one inference, milliseconds: by the wall clock, or by the GPU's where one computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct StageTimes {
    /// SigLIP and projector, all cameras.
    pub vision_ms: f64,
    /// Prefix to K/V.
    pub prefix_ms: f64,
    /// All denoise steps.
    pub denoise_ms: f64,
}

impl StageTimes {
    /// All stages.
    pub fn total_ms(&self) -> f64 {
        self.vision_ms + self.prefix_ms + self.denoise_ms
    }
}

impl From<Measured> for StageTimes {
    fn from(Measured { vision_ms, prefix_ms, denoise_ms }: Measured) -> Self {
        Self { vision_ms, prefix_ms, denoise_ms }
    }
}

/// One inference, stage by stage (as graphs, on a GPU that nobody looks into): actions `[horizon, action_dim]` in model space, and what each stage took.
/// `noise` has the same shape; `rtc`: what the previous chunk has to say.
pub fn infer(
    engine: &mut Engine,
    input: &ModelInput,
    noise: &[f32],
    sampler: &Sampler,
    rtc: &Rtc,
    tap: &mut Tap,
) -> Result<(Vec<f32>, StageTimes), EngineError> {
    if let (Engine::Cuda(engine), Rtc::Off, false) = (&mut *engine, rtc, tap.is_listening()) {
        let (actions, measured) = engine.run(&input.images, &input.tokens, noise, sampler)?;
        return Ok((actions, measured.into()));
    }
    let start = Instant::now();
    let features = engine.vision(&input.images, tap)?;
    let seen = Instant::now();
    let kv = engine.prefix(&features, &input.tokens, tap)?;
    let cached = Instant::now();
    let actions = engine.denoise(&kv, noise, sampler, rtc, tap)?;
    let times = StageTimes {
        vision_ms: (seen - start).as_secs_f64() * 1e3,
        prefix_ms: (cached - seen).as_secs_f64() * 1e3,
        denoise_ms: cached.elapsed().as_secs_f64() * 1e3,
    };
    Ok((actions, times))
}
