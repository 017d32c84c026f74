//! TensorRT's stages on the GPU: plans deserialised, each run put on the stream that the caller names.
//!
//! **Has not run on hardware yet**: no GPU that TensorRT supports was at hand where it was written. `scripts/thor-check`
//! is what tries it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use super::boundary::{Foreign, StageEngine};
use super::error::TensorRtError;
use super::graph::Port;
use super::manifest::{Here, Manifest, Tensor};
use super::plan::{capability_name, library_name};
use super::safe::{Engine, Library};
use super::stages::{Format, Sizes, Stage};
use crate::engine::EngineError;
use crate::engine::backend::Stages;
use crate::engine::cuda::driver::Gpu;
use crate::engine::weights::Weights;
use crate::model::dims::Dims;

/// Where engines are looked for: `PI05_ENGINES`, else `engines`.
pub fn folder() -> PathBuf {
    std::env::var_os("PI05_ENGINES").map_or_else(|| PathBuf::from("engines"), PathBuf::from)
}

/// Engines of these stages, from [`folder`]; each must be for these weights, this GPU and this library.
pub fn open(weights: &Weights, dims: &Dims, stages: Stages, format: Format) -> Result<Foreign, EngineError> {
    let gpu = Gpu::open()?;
    let library = Library::open()?;
    let here = Here {
        checkpoint_sha256: Some(weights.fingerprint(dims)?),
        compute_capability: Some(capability_name(gpu.arch)),
        tensorrt: Some(library_name(&library)),
    };
    let folder = folder();
    let (mut engines, mut sizes) = ([None, None, None], None);
    for stage in Stage::ALL.into_iter().filter(|stage| stages.has(*stage)) {
        let path = Manifest::path(&folder, stage, format);
        let manifest = Manifest::read(&path)?;
        manifest.fits(&path, &here)?;
        manifest.plan_is_whole(&path, false)?;
        let built_for: Sizes = *sizes.get_or_insert(manifest.sizes());
        if built_for != manifest.sizes() {
            let reason = format!("built for {:?}, the stage before for {built_for:?}", manifest.sizes());
            return Err(TensorRtError::file(&path, reason + "; build the stages together").into());
        }
        let engine = load(&library, &path)?;
        compare(&path, &manifest, &engine)?;
        engines[stage as usize] =
            Some(Box::new(OnGpu { engine, _gpu: gpu.another_stream()? }) as Box<dyn StageEngine>);
    }
    match sizes {
        Some(sizes) => Ok(Foreign { engines, sizes }),
        None => Err(TensorRtError::Refused("no stage was asked for".into()).into()),
    }
}

/// A stage's engine, and what keeps the context in which it was made alive for as long.
struct OnGpu {
    engine: Engine,
    _gpu: Gpu,
}

// SAFETY: handles, used by one thread at a time, which makes the context its own before every use.
unsafe impl Send for OnGpu {}

impl StageEngine for OnGpu {
    fn ports(&self) -> Result<Vec<(bool, Port)>, EngineError> {
        Ok(self.engine.ports()?)
    }

    unsafe fn bind(&self, name: &str, address: u64) -> Result<(), EngineError> {
        // SAFETY: the caller's promise.
        Ok(unsafe { self.engine.bind(name, address) }?)
    }

    unsafe fn enqueue(&self, gpu: &Gpu) -> Result<(), EngineError> {
        // SAFETY: the stream is of the one context that every `Gpu` shares; the rest is the caller's promise.
        Ok(unsafe { self.engine.enqueue(gpu.stream.cast()) }?)
    }
}

fn load(library: &Arc<Library>, path: &Path) -> Result<Engine, TensorRtError> {
    let plan = Manifest::plan(path);
    let file = File::open(&plan).map_err(|e| TensorRtError::file(&plan, e))?;
    // SAFETY: read during this call only; a file that another process truncates meanwhile ends this one (SIGBUS), as
    // with every mapped model file.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|e| TensorRtError::file(&plan, e))?;
    Engine::new(library, &bytes)
}

/// The engine's tensors against its manifest's.
fn compare(path: &Path, manifest: &Manifest, engine: &Engine) -> Result<(), TensorRtError> {
    for (is_input, port) in engine.ports()? {
        let said = if is_input { &manifest.inputs } else { &manifest.outputs };
        let found = Tensor::from(port);
        if !said.contains(&found) {
            let reason = format!("the plan has {} {} {:?}", found.name, found.dtype, found.shape);
            return Err(TensorRtError::file(path, reason + ", its manifest not; build it again"));
        }
    }
    Ok(())
}
