//! `pi05 engines build`: a stage of a checkpoint → a plan and its manifest in a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::emit::{Read, emit};
use super::error::TensorRtError;
use super::graph::Graph;
use super::manifest::{Manifest, sha256, write_whole};
use super::safe::{Library, OnProgress};
use super::stages::{Format, Sizes, Stage, define};
use crate::engine::calibration::Calibration;
use crate::engine::cuda::CudaEngine;
use crate::engine::weights::Weights;
use crate::model::dims::Dims;

/// Kernel timings of earlier builds, in the folder of the engines.
const TIMING_CACHE: &str = "timing.cache";

/// Builds engines for one GPU.
pub struct Builder {
    library: Arc<Library>,
    target: Target,
}

/// What engines are built for.
enum Target {
    Present { name: String, capability: i32 },
    Other { capability: i32 },
}

/// What to build.
pub struct Request<'a> {
    /// Where the weights come from, for the manifest.
    pub checkpoint: &'a str,
    /// Their fingerprint.
    pub checkpoint_sha256: &'a str,
    /// The weights.
    pub weights: &'a Weights,
    /// Their dimensions.
    pub dims: &'a Dims,
    /// What the shapes are fixed to.
    pub sizes: Sizes,
    /// Number format.
    pub format: Format,
    /// Whether the denoise stage is to take clean actions, for `rtc_trained`.
    pub trained: bool,
    /// Ranges, for e4m3.
    pub calibration: Option<&'a Calibration>,
    /// Where the plan and its manifest go.
    pub out: &'a Path,
}

/// A library's name and version, as manifests have it.
pub fn library_name(library: &Library) -> String {
    let name = if Library::is_rtx() { "TensorRT-RTX" } else { "TensorRT" };
    format!("{name} {}", library.version())
}

/// `12.0` of 120.
pub fn capability_name(capability: i32) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}

impl Builder {
    /// For the present GPU, or with TensorRT-RTX for a compute capability (120 for 12.0). The GPU is asked for before
    /// the library: without one, some versions hand out pointers to nothing.
    pub fn new(compute_capability: Option<i32>) -> Result<Self, TensorRtError> {
        let target = match compute_capability {
            Some(_) if !Library::is_rtx() => {
                let reason = "--compute-capability: TensorRT builds for the present GPU only; TensorRT-RTX builds for others";
                return Err(TensorRtError::Refused(reason.into()));
            }
            Some(capability) => Target::Other { capability },
            None => {
                let (name, capability) = CudaEngine::present().map_err(TensorRtError::NoGpu)?;
                Target::Present { name, capability }
            }
        };
        Ok(Self { library: Library::open()?, target })
    }

    /// Builds one stage. Returns the manifest and where it lies.
    pub fn build(
        &self,
        stage: Stage,
        request: &Request<'_>,
        on_progress: &OnProgress<'_>,
    ) -> Result<(PathBuf, Manifest), TensorRtError> {
        let started = Instant::now();
        let Request { dims, sizes, format, calibration, trained, .. } = *request;
        let graph = define(stage, dims, &sizes, format, calibration, trained)?;
        let cache = request.out.join(TIMING_CACHE);
        let (plan, timings) =
            self.plan(&graph, request.weights, &fs::read(&cache).unwrap_or_default(), on_progress)?;
        fs::create_dir_all(request.out).map_err(|e| TensorRtError::file(request.out, e))?;
        if let Some(timings) = timings {
            write_whole(&cache, timings.bytes())?;
        }
        let path = Manifest::path(request.out, stage, request.format);
        // The old manifest never stands beside the new plan.
        if path.exists() {
            fs::remove_file(&path).map_err(|e| TensorRtError::file(&path, e))?;
        }
        write_whole(&Manifest::plan(&path), plan.bytes())?;
        let (gpu, capability) = match &self.target {
            Target::Present { name, capability } => (Some(name.clone()), *capability),
            Target::Other { capability } => (None, *capability),
        };
        let manifest = Manifest {
            stage: stage.name().to_owned(),
            dtype: request.format.name().to_owned(),
            plan_bytes: plan.bytes().len() as u64,
            plan_sha256: sha256(plan.bytes()),
            checkpoint: request.checkpoint.to_owned(),
            checkpoint_sha256: request.checkpoint_sha256.to_owned(),
            cameras: request.sizes.cameras,
            prompt: request.sizes.prompt,
            horizon: request.sizes.horizon,
            inputs: graph.input_ports().into_iter().map(Into::into).collect(),
            outputs: graph.output_ports().into_iter().map(Into::into).collect(),
            gpu,
            compute_capability: capability_name(capability),
            tensorrt: library_name(&self.library),
            build_s: started.elapsed().as_secs_f64(),
        };
        manifest.write(&path)?;
        Ok((path, manifest))
    }

    /// A graph's plan, and what was measured on the way.
    fn plan(
        &self,
        graph: &Graph,
        weights: &Weights,
        timings: &[u8],
        on_progress: &OnProgress<'_>,
    ) -> Result<(super::safe::Plan, Option<super::safe::Plan>), TensorRtError> {
        let read = Read::of(graph, weights)?;
        let mut network = emit(&self.library, graph, &read)?;
        match self.target {
            Target::Other { capability } => network.for_compute_capability(capability)?,
            Target::Present { .. } => network.with_timing_cache(timings)?,
        }
        network.finish(on_progress)
    }
}
