//! The CUDA engine: the three stages on one GPU, in bf16 or f32.
//!
//! Promises: the same numbers for the same input whatever ran before, whether stage by stage, as graphs, or with the
//! next observation's vision beside; a failing call of the driver or its libraries is an error that names it. Called
//! through [`Engine`](super::Engine). One thread at a time.
//!
//! | file | holds |
//! |---|---|
//! | `driver`, `compile`, `gemm` | the driver, the run-time compiler and cuBLASLt, as far as they are used |
//! | `lane`, `load` | a stream with its kernels; weights onto the GPU |
//! | `product`, `fp8` | own matrix products, in bf16 and e4m3, fused with what follows them |
//! | `vision`, `prefix`, `expert`, `fused` | the stages: what each puts on its stream |
//! | `chunk` | graphs of them, and two chunks in flight |
//! | `programs` | all kernels, for checks without a GPU |
//! | `measure`, `nvtx` | what benchmarks and profilers want to know |

#![allow(clippy::too_many_arguments)] // what records work takes all that the work reads and writes, as kernels do

mod chunk;
mod compile;
pub(super) mod driver;
mod expert;
mod fp8;
mod fused;
mod gemm;
mod lane;
mod load;
mod measure;
mod nvtx;
mod prefix;
mod product;
mod programs;
mod vision;

use std::collections::HashSet;

use chunk::Graphs;
pub use chunk::{Kernels, Measured};
use driver::{Buffer, Gpu};
use expert::{ACTIONS, Expert};
use lane::Lane;
use load::Loader;
pub use measure::Spans;
use prefix::{Cache, Layout, Prefix};
pub use programs::{Program, has_compiler, programs};
use vision::{Pixel, Vision};

use super::calibration::Calibration;
use super::probe::Tap;
use super::weights::Weights;
use super::{EngineError, check_latest, check_leftover};
use crate::model::Pixels;
use crate::model::dims::Dims;
use crate::model::sampler::Sampler;
use crate::model::sampler::rtc::Rtc;

/// Cameras that there is always room for.
const CAMERAS: usize = 3;
/// Prompt tokens that there is always room for.
const TOKENS: usize = 200;

/// Widest rows that norms write in e4m3.
const FP8_WIDTH: usize = 2048;

/// A network on a GPU.
pub struct CudaEngine {
    dims: Dims,
    room: Room,
    graphs: Graphs,
    vision: Vision,
    prefix: Prefix,
    expert: Expert,
    cache: Cache,
    /// f32 `[2, cameras * tokens, width]`
    features: Buffer,
    /// Images as they came, by slot of features.
    images: [Buffer; 2],
    /// What has run before, so that the library's algorithms are chosen.
    warm: HashSet<Warm>,
    /// How often features and keys were made: what a caller holds must be the latest.
    generation: u64,
    memory: usize,
    /// Of the GPU, before anything was put on it.
    free_before: usize,
    fp8: bool,
    /// Last, since everything else is on their GPU.
    see: Lane,
    act: Lane,
}

/// What was allocated for.
#[derive(Clone, Copy)]
struct Room {
    cameras: usize,
    tokens: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Warm {
    Vision(usize),
    Prefix(Layout),
    Denoise(Layout, usize),
}

/// Image tokens of the last vision pass.
pub struct Features {
    rows: usize,
    generation: u64,
}

/// Keys and values of the last prefix pass.
pub struct KvCache {
    layout: Layout,
    generation: u64,
}

/// A chunk's images as they go to the GPU.
struct Images<'a> {
    slots: Vec<usize>,
    pixel: Pixel,
    present: Vec<&'a Pixels>,
}

impl CudaEngine {
    /// Why no engine can be made on this machine; `None` if one can.
    pub fn missing() -> Option<String> {
        Gpu::missing()
    }

    /// The first GPU's name and compute capability (90 for 9.0), or why there is none.
    pub fn present() -> Result<(String, i32), String> {
        if let Some(reason) = Gpu::missing() {
            return Err(reason);
        }
        Gpu::open().map(|gpu| (gpu.name.clone(), gpu.arch)).map_err(|e| e.to_string())
    }

    /// Puts the tensors that `dims` implies on the first GPU, as bf16 or f32. `cameras`: how many the model has.
    /// `calibration`: with one, vision's and the prefix's matrices are e4m3.
    pub fn new(
        weights: &Weights,
        dims: Dims,
        bf16: bool,
        calibration: Option<&Calibration>,
        cameras: usize,
    ) -> Result<Self, EngineError> {
        let gpu = Gpu::open()?;
        let fp8 = calibration.is_some();
        let widest = dims.vision.width.max(dims.language.width);
        if fp8 && gpu.arch != 90 {
            return Err(EngineError::Fp8(format!("{} of compute capability {}", gpu.name, gpu.arch)));
        }
        if fp8 && widest > FP8_WIDTH {
            return Err(EngineError::Input {
                what: "dtype fp8",
                expected: format!("a network no wider than {FP8_WIDTH}"),
                found: widest.to_string(),
            });
        }
        let (free, _) = gpu.memory()?;
        let room =
            Room { cameras: cameras.max(CAMERAS), tokens: dims.max_tokens.next_multiple_of(8).max(TOKENS) };
        let slot_rows = room.cameras * dims.vision.tokens();
        let rows = slot_rows + room.tokens;
        let keys = rows + ACTIONS;
        let size = if bf16 { 2 } else { 4 };
        let mut load = Loader::new(&gpu, weights, bf16, calibration)?;
        let vision = Vision::new(&gpu, &mut load, &dims, room.cameras, bf16)?;
        let prefix = Prefix::new(&gpu, &mut load, &dims, rows, size)?;
        let expert = Expert::new(&gpu, &mut load, weights, &dims, keys, bf16)?;
        let loaded = load.bytes;
        drop(load);
        let cache = Cache::new(&gpu, &dims, keys, expert.needs_transposed_values(), size)?;
        let pixels = room.cameras * dims.vision.image * dims.vision.image * 3;
        let images = [gpu.zeros(pixels * 4)?, gpu.zeros(pixels * 4)?];
        let features = gpu.zeros(2 * slot_rows * dims.language.width * 4)?;
        let graphs = Graphs::new(pixels, cache.capacity, ACTIONS * dims.action_dim)?;
        let see = Lane::new(gpu.another_stream()?, bf16, fp8)?;
        let act = Lane::new(gpu, bf16, fp8)?;
        act.gpu.synchronize()?;
        let memory = free.saturating_sub(act.gpu.memory()?.0);
        tracing::info!("{}: {} MiB of weights, {} MiB in all", act.gpu.name, loaded >> 20, memory >> 20);
        Ok(Self {
            dims,
            room,
            graphs,
            vision,
            prefix,
            expert,
            cache,
            features,
            images,
            warm: HashSet::new(),
            generation: 0,
            memory,
            free_before: free,
            fp8,
            see,
            act,
        })
    }

    /// The network's dimensions.
    pub fn dims(&self) -> &Dims {
        &self.dims
    }

    /// Whether it computes in bf16, else f32.
    pub fn is_bf16(&self) -> bool {
        self.act.bf16
    }

    /// Whether vision's and the prefix's matrices are e4m3.
    pub fn is_fp8(&self) -> bool {
        self.fp8
    }

    /// What weights and activations took of the GPU's memory, bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// What there is less of the GPU's free memory than before the engine was made, bytes: with its graphs. Right if
    /// nobody else uses the GPU.
    pub fn memory_now(&self) -> Result<usize, EngineError> {
        self.act.gpu.bind()?;
        Ok(self.free_before.saturating_sub(self.act.gpu.memory()?.0))
    }

    /// The GPU's name.
    pub fn device(&self) -> &str {
        &self.act.gpu.name
    }

    /// Stage 1: image tokens of the present cameras.
    pub fn vision(&mut self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Features, EngineError> {
        self.see.gpu.bind()?;
        let images = self.images(images)?;
        let rows = images.slots.len() * self.dims.vision.tokens();
        self.generation += 1;
        if rows > 0 {
            let bytes = self.graphs.stage_images(0, &images)?;
            self.graphs.upload_images(&self.see.gpu, 0, &self.images[0], bytes)?;
            let (at, features) = (self.images[0].address, self.features.address);
            if self.warm.insert(Warm::Vision(images.slots.len())) {
                self.vision.record(
                    &mut self.see,
                    at,
                    images.pixel,
                    &images.slots,
                    features,
                    &mut Tap::none(),
                )?;
            }
            self.vision.record(&mut self.see, at, images.pixel, &images.slots, features, tap)?;
            self.see.gpu.synchronize()?;
            self.see.keep();
        }
        Ok(Features { rows, generation: self.generation })
    }

    /// Stage 2: the prefix (image tokens, then prompt tokens) to keys and values. Every token sees every token.
    pub fn prefix(
        &mut self,
        features: &Features,
        tokens: &[u32],
        tap: &mut Tap,
    ) -> Result<KvCache, EngineError> {
        self.act.gpu.bind()?;
        check_latest("features", features.generation, self.generation)?;
        self.check_prompt(features.rows, tokens)?;
        let layout = Layout::new(features.rows, tokens.len(), self.room.tokens);
        self.act.gpu.upload_to(self.cache.request.address, &request(layout, 0, tokens))?;
        let valid = layout.image_rows + tokens.len();
        self.warm_prefix(layout)?;
        self.put_prefix(layout, valid, tap)?;
        self.act.gpu.synchronize()?;
        self.act.keep();
        self.generation += 1;
        Ok(KvCache { layout, generation: self.generation })
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
        self.act.gpu.bind()?;
        check_latest("keys and values", kv.generation, self.generation)?;
        let horizon = self.horizon(noise)?;
        let shape = [horizon, self.dims.action_dim];
        check_leftover(rtc, shape)?;
        self.expert.prepare(&self.act, sampler, rtc, horizon, tap)?;
        if self.warm.insert(Warm::Denoise(kv.layout, horizon)) {
            self.put_denoise(kv.layout, horizon, sampler, rtc, &mut Tap::none())?;
        }
        self.act.gpu.upload_to(self.expert.action.address, &rtc.start(noise))?;
        self.put_denoise(kv.layout, horizon, sampler, rtc, tap)?;
        let actions = self.act.gpu.download(self.expert.action.address, noise.len())?;
        self.act.keep();
        Ok(actions)
    }

    fn warm_prefix(&mut self, layout: Layout) -> Result<(), EngineError> {
        if self.warm.insert(Warm::Prefix(layout)) {
            self.put_prefix(layout, 0, &mut Tap::none())?;
        }
        Ok(())
    }

    fn put_prefix(&mut self, layout: Layout, valid: usize, tap: &mut Tap) -> Result<(), EngineError> {
        let slot_rows = self.room.cameras * self.dims.vision.tokens();
        self.prefix.record(&mut self.act, &self.cache, &self.features, slot_rows, layout, valid, tap)
    }

    fn put_denoise(
        &mut self,
        layout: Layout,
        horizon: usize,
        sampler: &Sampler,
        rtc: &Rtc,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        self.expert.record(&mut self.act, &self.cache, layout, horizon, sampler, rtc, tap)
    }

    /// Checks images and what they are made of.
    fn images<'a>(&self, images: &'a [Option<Pixels>]) -> Result<Images<'a>, EngineError> {
        let (slots, present): (Vec<usize>, Vec<&Pixels>) =
            images.iter().enumerate().filter_map(|(slot, image)| Some((slot, image.as_ref()?))).unzip();
        if present.len() > self.room.cameras {
            return Err(EngineError::Input {
                what: "camera images",
                expected: format!("at most {}", self.room.cameras),
                found: present.len().to_string(),
            });
        }
        let side = self.dims.vision.image;
        for image in &present {
            let len = match image {
                Pixels::U8(data) => data.len(),
                Pixels::F32(data) => data.len(),
            };
            if len != side * side * 3 {
                return Err(EngineError::Input {
                    what: "camera image",
                    expected: format!("{side}x{side}x3 values"),
                    found: format!("{len} values"),
                });
            }
        }
        let bytes = present.iter().all(|image| matches!(image, Pixels::U8(_)));
        Ok(Images { slots, pixel: if bytes { Pixel::U8 } else { Pixel::F32 }, present })
    }

    fn check_prompt(&self, image_rows: usize, tokens: &[u32]) -> Result<(), EngineError> {
        let input = |what, expected: String, found: String| Err(EngineError::Input { what, expected, found });
        if image_rows + tokens.len() == 0 {
            return input("prefix", "at least one image or prompt token".into(), "none".into());
        }
        if tokens.len() > self.room.tokens {
            return input("prompt", format!("at most {} tokens", self.room.tokens), tokens.len().to_string());
        }
        match tokens.iter().find(|&&token| token as usize >= self.dims.vocab) {
            Some(token) => input(
                "prompt token",
                format!("below the embedding's {} rows", self.dims.vocab),
                token.to_string(),
            ),
            None => Ok(()),
        }
    }

    /// Rows of `noise`.
    fn horizon(&self, noise: &[f32]) -> Result<usize, EngineError> {
        let action_dim = self.dims.action_dim;
        if noise.is_empty() || !noise.len().is_multiple_of(action_dim) || noise.len() > ACTIONS * action_dim {
            return Err(EngineError::Input {
                what: "noise",
                expected: format!("[horizon, {action_dim}] with a horizon of at most {ACTIONS}"),
                found: format!("{} values", noise.len()),
            });
        }
        Ok(noise.len() / action_dim)
    }
}

/// What the prefix reads: valid rows, which features, then the prompt, padded. Without tokens, for a first try, at least
/// one row is valid: attention to no key is no number, and would stay in the cache beyond the keys of shorter prompts.
fn request(layout: Layout, slot: usize, tokens: &[u32]) -> Vec<i32> {
    let mut request = vec![(layout.image_rows + tokens.len()).max(1) as i32, slot as i32];
    request.extend(tokens.iter().map(|&token| token as i32));
    request.resize(2 + layout.rows - layout.image_rows, 0);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_always_has_a_key() {
        for (image_rows, tokens, valid) in [(0, 0, 1), (0, 3, 3), (256, 0, 256), (512, 20, 532)] {
            let layout = Layout::new(image_rows, tokens.max(1), 200);
            let request = request(layout, 1, &vec![7; tokens]);
            assert_eq!(request[..2], [valid, 1], "{image_rows} and {tokens}");
            assert_eq!(request.len(), 2 + layout.rows - image_rows);
        }
    }
}
