//! Parameters and checkpoint brought together: everything but the weights, then everything.
//!
//! Every misfit is refused by [`Setup::open`], before anything that takes long. Called by the command line and `node`.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::inference::Inference;
use super::{LoadError, Model};
use crate::config::{Config, Execution};
use crate::model::sampler::Sampler;
use crate::policy::cameras::CameraSlots;
use crate::policy::{NetworkShape, Policy};

/// A configured policy and where its network comes from.
#[derive(Debug)]
pub struct Setup {
    /// Where the network comes from.
    pub model: Model,
    /// What surrounds it.
    pub policy: Arc<Policy>,
    /// The model's cameras.
    pub cameras: CameraSlots,
}

impl Setup {
    /// Everything but the weights. What a person may want to know of the checkpoint is logged.
    pub fn open(config: &Config) -> Result<Self, LoadError> {
        let model = Model::open(&config.checkpoint, config.policy.asset_id.as_deref())?;
        if let Model::Folder(checkpoint) = &model {
            let folder = checkpoint.folder.display();
            checkpoint.notes.iter().for_each(|note| tracing::warn!("{folder}: {note}"));
        }
        Self::of(model, config)
    }

    /// The same, of a model that is open already.
    pub fn of(model: Model, config: &Config) -> Result<Self, LoadError> {
        let shape = NetworkShape::from(&model.dims()?);
        let options = config.policy_options();
        let policy = match &model {
            Model::Synthetic(_) => Policy::synthetic(shape, options)?,
            Model::Folder(checkpoint) => Policy::new(checkpoint, shape, options)?,
        };
        policy.check_execution(config.control.execution)?;
        Ok(Self { cameras: model.cameras(), policy: Arc::new(policy), model })
    }

    /// How the network is run: as the parameters say, else the checkpoint.
    pub fn sampler(&self, config: &Config) -> Sampler {
        config.sampler.of(self.model.time_rounding(), self.model.denoise_steps())
    }

    /// Loads the weights. `progress` hears of (parameters made, parameters in all) where they are made.
    pub fn load(&self, config: &Config, progress: impl FnMut(usize, usize)) -> Result<Inference, LoadError> {
        let engine = self.model.load_by(&config.recipe, config.engine(), progress)?;
        if config.control.execution == Execution::RtcTrained {
            engine.check_takes_clean().map_err(LoadError::Engine)?;
        }
        let sampler = self.sampler(config);
        let seed = config.sampler.seed.unwrap_or_else(fresh_seed);
        Ok(Inference::new(engine, Arc::clone(&self.policy), sampler, seed))
    }
}

/// The standard library's own randomness, which differs in every process.
fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}
