//! The three stages behind one boundary. The only room with `unsafe`, each block with its reason.
//!
//! | stage | takes | gives |
//! |---|---|---|
//! | vision | one [`Pixels`] per camera, masked ones absent | [`Features`](cpu::Features): `[tokens, width]` |
//! | prefix | features, prompt tokens | [`KvCache`](cpu::KvCache): per layer K after RoPE and V, `[prefix, head_dim]` |
//! | denoise | K/V, noise `[horizon, action_dim]`, sampler | actions `[horizon, action_dim]`, model space |
//!
//! Features and K/V live where the engine keeps them; callers only carry them from stage to stage.
//! [`cpu`] is the readable reference, in f32; [`cuda`] is the fast one, of which [`tensorrt`] can compute any stage, on
//! the same stream and memory. [`Engine`] is one of the two.

#![allow(unsafe_code)] // the one place; every block says why it is sound

pub mod backend;
pub mod calibration;
pub mod cpu;
pub mod cuda;
pub mod probe;
pub mod tensorrt;
pub mod weights;

use std::fmt;

use thiserror::Error;

use crate::model::Pixels;
use crate::model::dims::Dims;
use crate::model::sampler::Sampler;
use crate::model::sampler::rtc::Rtc;
use backend::{Backend, Stages};
use calibration::{Calibration, Uncalibrated};
use cpu::CpuEngine;
use cuda::CudaEngine;
use probe::Tap;
use tensorrt::error::TensorRtError;
use tensorrt::stages::Format;
use weights::Weights;

/// Number format of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floats, never rounded to fewer.
    F32,
    /// bfloat16; norms, softmax, the residual stream and all sums in f32.
    Bf16,
    /// bfloat16, but e4m3 in the matrices of vision and prefix; needs a calibration.
    Fp8,
}

/// Which engine to make. `Auto` takes the GPU if there is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// CUDA in bf16 if it can, else CPU.
    #[default]
    Auto,
    /// The reference.
    Cpu,
    /// The reference, with numbers rounded to e4m3 where fp8 on a GPU does.
    CpuFp8,
    /// CUDA kernels.
    Cuda(Precision),
    /// TensorRT engines of these stages, in this format; CUDA kernels of the others, in bf16.
    TensorRt(Stages, Format),
}

/// A network ready to run. One inference at a time.
pub enum Engine {
    /// The reference, in f32.
    Cpu(Box<CpuEngine>),
    /// On a GPU.
    Cuda(Box<CudaEngine>),
}

/// Image tokens of all present cameras.
pub enum Features {
    /// In memory.
    Cpu(cpu::Features),
    /// On the GPU: the last ones made.
    Cuda(cuda::Features),
}

/// Keys and values of every prefix layer.
pub enum KvCache {
    /// In memory.
    Cpu(cpu::KvCache),
    /// On the GPU: the last ones made.
    Cuda(cuda::KvCache),
}

impl Choice {
    /// What `Auto` comes to on this machine.
    pub fn resolved(self) -> Self {
        match self {
            Choice::Auto if CudaEngine::missing().is_none() => Choice::Cuda(Precision::Bf16),
            Choice::Auto => Choice::Cpu,
            chosen => chosen,
        }
    }

    /// Whether this build and this machine have what it takes; looked at before anything that takes long.
    pub fn check(self) -> Result<(), EngineError> {
        match (self, CudaEngine::missing()) {
            (Choice::Cuda(_), Some(reason)) => Err(EngineError::NoGpu(reason)),
            (Choice::TensorRt(..), _) if cfg!(not(feature = "tensorrt")) => {
                Err(TensorRtError::NotBuilt.into())
            }
            (Choice::TensorRt(..), Some(reason)) => Err(TensorRtError::NoGpu(reason).into()),
            _ => Ok(()),
        }
    }

    /// The same engine in f32.
    pub fn in_f32(self) -> Self {
        match self.resolved() {
            Choice::Cuda(_) => Choice::Cuda(Precision::F32),
            Choice::CpuFp8 => Choice::Cpu,
            other => other,
        }
    }

    /// Whether it needs a calibration.
    pub fn is_fp8(self) -> bool {
        matches!(self, Choice::CpuFp8 | Choice::Cuda(Precision::Fp8))
    }
}

impl Engine {
    /// Takes the tensors that `dims` implies; shapes were checked by [`Dims::from_tensors`]. `cameras`: how many the
    /// model has. `calibration`: what fp8 needs, of the tensors that are to be e4m3; nothing else looks at it.
    pub fn new(
        weights: &Weights,
        dims: Dims,
        choice: Choice,
        calibration: Option<&Calibration>,
        cameras: usize,
    ) -> Result<Self, EngineError> {
        match choice.resolved() {
            Choice::Cuda(precision) => {
                let calibration = calibration.filter(|_| precision == Precision::Fp8);
                let bf16 = precision != Precision::F32;
                let engine = CudaEngine::new(weights, dims, bf16, calibration, cameras, None)?;
                Ok(Engine::Cuda(Box::new(engine)))
            }
            choice @ (Choice::Cpu | Choice::CpuFp8 | Choice::Auto) => {
                let calibration = calibration.filter(|_| choice == Choice::CpuFp8);
                let engine = CpuEngine::new(weights, dims, calibration);
                Ok(Engine::Cpu(Box::new(engine.map_err(|e| EngineError::Missing(e.name().to_owned()))?)))
            }
            #[cfg(feature = "tensorrt")]
            Choice::TensorRt(stages, format) => {
                let foreign = tensorrt::run::open(weights, &dims, stages, format)?;
                let engine = CudaEngine::new(weights, dims, true, None, cameras, Some(foreign))?;
                Ok(Engine::Cuda(Box::new(engine)))
            }
            #[cfg(not(feature = "tensorrt"))]
            Choice::TensorRt(..) => Err(TensorRtError::NotBuilt.into()),
        }
    }

    /// The network's dimensions.
    pub fn dims(&self) -> &Dims {
        match self {
            Engine::Cpu(engine) => engine.dims(),
            Engine::Cuda(engine) => engine.dims(),
        }
    }

    /// Which engine computes which stage.
    pub fn backend(&self) -> Backend {
        match self {
            Engine::Cpu(_) => Backend::Cpu,
            Engine::Cuda(engine) => engine.foreign().map_or(Backend::Cuda, Backend::TensorRt),
        }
    }

    /// That chunks may begin with clean actions, as trained real-time chunking has them.
    pub fn check_takes_clean(&self) -> Result<(), EngineError> {
        match self {
            Engine::Cpu(_) => Ok(()),
            Engine::Cuda(engine) => engine.check_takes_clean(),
        }
    }

    /// Its number format.
    pub fn precision(&self) -> Precision {
        match self {
            Engine::Cuda(engine) if engine.is_fp8() => Precision::Fp8,
            Engine::Cpu(engine) if engine.rounds() => Precision::Fp8,
            Engine::Cuda(engine) if engine.is_bf16() => Precision::Bf16,
            Engine::Cpu(_) | Engine::Cuda(_) => Precision::F32,
        }
    }

    /// Backend and number format, such as `cpu f32`.
    pub fn name(&self) -> String {
        format!("{} {}", self.backend(), self.precision())
    }

    /// What it takes of the GPU's memory, bytes; `None` without a GPU. Right if nobody else has taken any since it was made.
    pub fn gpu_memory(&self) -> Result<Option<usize>, EngineError> {
        match self {
            Engine::Cpu(_) => Ok(None),
            Engine::Cuda(engine) => engine.memory_now().map(Some),
        }
    }

    /// Everything that a chunk of such an observation could need is made now, so that none waits for it later: `images`
    /// as they will come, any prompt.
    pub fn prepare(
        &mut self,
        images: &[Option<Pixels>],
        horizon: usize,
        sampler: &Sampler,
    ) -> Result<(), EngineError> {
        match self {
            Engine::Cpu(_) => Ok(()),
            Engine::Cuda(engine) => engine.prepare(images, horizon, sampler),
        }
    }

    /// Stage 1: image tokens of the present cameras.
    pub fn vision(&mut self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Features, EngineError> {
        match self {
            Engine::Cpu(engine) => engine.vision(images, tap).map(Features::Cpu),
            Engine::Cuda(engine) => engine.vision(images, tap).map(Features::Cuda),
        }
    }

    /// Stage 2: the prefix (image tokens, then prompt tokens) to keys and values. A GPU holds one set of features, and
    /// one of keys and values: earlier ones are refused.
    pub fn prefix(
        &mut self,
        features: &Features,
        tokens: &[u32],
        tap: &mut Tap,
    ) -> Result<KvCache, EngineError> {
        match (self, features) {
            (Engine::Cpu(engine), Features::Cpu(features)) => {
                engine.prefix(features, tokens, tap).map(KvCache::Cpu)
            }
            (Engine::Cuda(engine), Features::Cuda(features)) => {
                engine.prefix(features, tokens, tap).map(KvCache::Cuda)
            }
            (engine, _) => Err(engine.anothers("features")),
        }
    }

    /// Stage 3: from `noise` `[horizon, action_dim]` to actions of the same shape, in model space.
    pub fn denoise(
        &mut self,
        kv: &KvCache,
        noise: &[f32],
        sampler: &Sampler,
        rtc: &Rtc,
        tap: &mut Tap,
    ) -> Result<Vec<f32>, EngineError> {
        match (self, kv) {
            (Engine::Cpu(engine), KvCache::Cpu(kv)) => engine.denoise(kv, noise, sampler, rtc, tap),
            (Engine::Cuda(engine), KvCache::Cuda(kv)) => engine.denoise(kv, noise, sampler, rtc, tap),
            (engine, _) => Err(engine.anothers("keys and values")),
        }
    }

    fn anothers(&self, what: &'static str) -> EngineError {
        EngineError::Input {
            what,
            expected: format!("those of the {} engine", self.backend()),
            found: "another engine's".into(),
        }
    }
}

/// That what a caller holds, made as number `held`, is the latest of an engine that keeps one.
fn check_latest(what: &'static str, held: u64, latest: u64) -> Result<(), EngineError> {
    if held == latest {
        return Ok(());
    }
    Err(EngineError::Input {
        what,
        expected: "those of the stage before, which the GPU holds".into(),
        found: "earlier ones".into(),
    })
}

/// That a leftover, if there is one, is of chunks of this shape, `[horizon, action_dim]`.
fn check_leftover(rtc: &Rtc, shape: [usize; 2]) -> Result<(), EngineError> {
    let Some(other) = rtc.shape().filter(|other| *other != shape) else { return Ok(()) };
    Err(EngineError::Input {
        what: "leftover of the previous chunk",
        expected: format!("{shape:?}"),
        found: format!("{other:?}"),
    })
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
        })
    }
}

/// Refuses what is no number among a stage's values.
pub fn check_finite(stage: &str, values: &[f32]) -> Result<(), EngineError> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(&value) => Err(EngineError::NotFinite { stage: stage.to_owned(), value }),
        None => Ok(()),
    }
}

/// Why a stage could not run.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A weight file could not be read.
    #[error("{file}: cannot be mapped: {source}")]
    Map {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tensor table and the file disagree.
    #[error(
        "{file}: tensor {tensor} ends at byte {end}, but the file has {len}: it changed or was truncated"
    )]
    OutOfFile {
        /// The file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its last byte + 1.
        end: u64,
        /// Length of the file.
        len: u64,
    },
    /// No memory for procedural weights.
    #[error("no memory for the built-in model's weights: {0}")]
    OutOfMemory(std::io::Error),
    /// A tensor that the engine needs is not among the weights.
    #[error("tensor {0}: missing")]
    Missing(String),
    /// There is no GPU to run on.
    #[error("backend cuda: {0}; use the cpu engine, or run on a machine with an NVIDIA GPU")]
    NoGpu(String),
    /// TensorRT, its engines or their manifests.
    #[error(transparent)]
    TensorRt(#[from] TensorRtError),
    /// A GPU that cannot compute in fp8.
    #[error("dtype fp8: expected a GPU of compute capability 9.0 (Hopper), found {0}; use bf16")]
    Fp8(String),
    /// The calibration does not know a tensor.
    #[error(transparent)]
    Uncalibrated(#[from] Uncalibrated),
    /// The driver or one of its libraries refused.
    #[error("GPU: {call}: {reason}")]
    Cuda {
        /// The function.
        call: String,
        /// What it said.
        reason: String,
    },
    /// From inputs that are numbers comes what is none.
    #[error(
        "{stage}: the network gives {value} for inputs that are numbers: its weights are damaged; download or convert the checkpoint again"
    )]
    NotFinite {
        /// Where it was seen.
        stage: String,
        /// NaN or infinity.
        value: f32,
    },
    /// The input does not fit the network.
    #[error("{what}: expected {expected}, found {found}")]
    Input {
        /// Which input.
        what: &'static str,
        /// What the network takes.
        expected: String,
        /// What came.
        found: String,
    },
}
