//! Stages on the GPU: plans deserialised, their tensors bound to device memory once, runs put on one stream.
//!
//! **Has not run on hardware yet**: no GPU that TensorRT supports was at hand where it was written. `scripts/thor-check`
//! is what tries it.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;

use super::error::TensorRtError;
use super::graph::Type;
use super::manifest::{Here, Manifest, Tensor};
use super::plan::{capability_name, library_name};
use super::safe::{Engine, Library};
use super::staged::{Device, TensorRtEngine};
use super::stages::{Format, Sizes, Stage};
use crate::engine::EngineError;
use crate::engine::cuda::driver::{Buffer, Gpu};
use crate::engine::weights::Weights;
use crate::model::dims::Dims;

/// Where engines are looked for: `PI05_ENGINES`, else `engines`.
pub fn folder() -> PathBuf {
    std::env::var_os("PI05_ENGINES").map_or_else(|| PathBuf::from("engines"), PathBuf::from)
}

/// The stages' engines of `format` in [`folder`]; each must be for these weights, this GPU and this library.
pub fn open(weights: &Weights, dims: Dims, format: Format) -> Result<TensorRtEngine, EngineError> {
    let (device, sizes) = Stages::open(&folder(), format, &weights.fingerprint(&dims)?)?;
    TensorRtEngine::new(weights, dims, sizes, Box::new(device))
}

/// One stage with its tensors.
struct Bound {
    engine: Engine,
    ports: HashMap<String, (Type, usize, u64)>,
}

/// All stages on one GPU.
struct Stages {
    /// First, since their memory and GPU are below.
    stages: HashMap<&'static str, Bound>,
    _buffers: Vec<Buffer>,
    gpu: Gpu,
}

// SAFETY: addresses and handles, used by one thread at a time, which makes the context its own before every use.
unsafe impl Send for Stages {}

impl Stages {
    fn open(folder: &Path, format: Format, checkpoint_sha256: &str) -> Result<(Self, Sizes), EngineError> {
        let gpu = Gpu::open()?;
        let library = Library::open()?;
        let here = Here {
            checkpoint_sha256: Some(checkpoint_sha256.to_owned()),
            compute_capability: Some(capability_name(gpu.arch)),
            tensorrt: Some(library_name(&library)),
        };
        let mut memory: HashMap<String, (u64, usize)> = HashMap::new();
        let (mut stages, mut buffers, mut sizes) = (HashMap::new(), Vec::new(), None);
        for stage in [Stage::Vision, Stage::Prefix, Stage::Denoise] {
            let path = Manifest::path(folder, stage, format);
            let manifest = Manifest::read(&path)?;
            manifest.fits(&path, &here)?;
            manifest.plan_is_whole(&path, false)?;
            let built_for = *sizes.get_or_insert(manifest.sizes());
            if built_for != manifest.sizes() {
                let reason = format!("built for {:?}, the stage before for {built_for:?}", manifest.sizes());
                return Err(TensorRtError::file(&path, reason + "; build the stages together").into());
            }
            let mut engine = load(&library, &path)?;
            compare(&path, &manifest, &engine)?;
            let mut ports = HashMap::new();
            for (_, port) in engine.ports()? {
                let count = port.shape.iter().product::<usize>();
                let bytes = count * port.dtype.size();
                // Each stage has its own tables; everything else of one name is one.
                let shared = match port.name.as_str() {
                    "cos" | "sin" => format!("{stage}.{}", port.name),
                    name => name.to_owned(),
                };
                let (address, room) = match memory.get(&shared) {
                    Some(there) => *there,
                    None => {
                        let buffer = gpu.zeros(bytes)?;
                        let made = (buffer.address, bytes);
                        buffers.push(buffer);
                        memory.insert(shared.clone(), made);
                        made
                    }
                };
                if room != bytes {
                    let reason = format!("{}: {bytes} bytes, in another stage {room}", port.name);
                    return Err(TensorRtError::file(&path, reason + "; build the stages together").into());
                }
                // SAFETY: the buffer is as large as the tensor, and lives as long as the engine.
                unsafe { engine.bind(&port.name, address)? };
                ports.insert(port.name, (port.dtype, count, address));
            }
            stages.insert(stage.name(), Bound { engine, ports });
        }
        gpu.synchronize()?;
        let sizes = sizes.unwrap_or(Sizes { cameras: 0, prompt: 0, horizon: 0 });
        Ok((Self { stages, _buffers: buffers, gpu }, sizes))
    }

    fn port(&self, stage: Stage, name: &str) -> Result<(Type, usize, u64), EngineError> {
        let port = self.stages.get(stage.name()).and_then(|bound| bound.ports.get(name)).copied();
        port.ok_or_else(|| TensorRtError::Refused(format!("{stage}: no tensor {name}")).into())
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

impl Device for Stages {
    fn put(&mut self, stage: Stage, name: &str, values: &[f32]) -> Result<(), EngineError> {
        let (dtype, count, address) = self.port(stage, name)?;
        if dtype != Type::F32 || count != values.len() {
            let found = format!("{} f32 values", values.len());
            let expected = format!("{count} {dtype} values");
            return Err(TensorRtError::Differs { what: format!("{stage} {name}"), expected, found }.into());
        }
        self.gpu.bind()?;
        self.gpu.upload_to(address, values)
    }

    fn run(&mut self, stage: Stage) -> Result<(), EngineError> {
        self.gpu.bind()?;
        let stream = self.gpu.stream;
        let Some(bound) = self.stages.get_mut(stage.name()) else {
            return Err(TensorRtError::Refused(format!("{stage}: not loaded")).into());
        };
        // SAFETY: the stream is of the context in which the engine was made; every port was bound when it was opened.
        unsafe { bound.engine.enqueue(stream.cast())? };
        // A stage ends before the next begins, so that the times of stages are theirs.
        self.gpu.synchronize()
    }

    fn get(&mut self, stage: Stage, name: &str) -> Result<Vec<f32>, EngineError> {
        let (dtype, count, address) = self.port(stage, name)?;
        self.gpu.bind()?;
        match dtype {
            Type::F32 => self.gpu.download(address, count),
            _ => {
                let halves: Vec<u16> = self.gpu.download(address, count)?;
                let wide = |bits| match dtype {
                    Type::F16 => f16::from_bits(bits).to_f32(),
                    _ => bf16::from_bits(bits).to_f32(),
                };
                Ok(halves.into_iter().map(wide).collect())
            }
        }
    }
}
