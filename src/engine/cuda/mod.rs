//! The CUDA engine: the three stages on one GPU, in bf16, e4m3 or f32.
//!
//! Promises: the same numbers for the same input whatever ran before, whether stage by stage, as graphs, or with the
//! next observation's vision beside; a failing call of the driver or its libraries is an error that names it. Called
//! through [`Engine`](super::Engine). One thread at a time.
//!
//! | file | holds |
//! |---|---|
//! | `driver`, `compile`, `gemm` | the driver, the run-time compiler and cuBLASLt, as far as they are used |
//! | `lane`, `load`, `order` | a stream with its kernels; weights onto the GPU, and how rows are packed |
//! | `product`, `fp8`, `heads` | own matrix products, in bf16 and e4m3, fused with what follows them |
//! | `vision`, `prefix`, `expert`, `fused` | the stages: what each puts on its stream |
//! | `vision_weights` | SigLIP's weights, norms folded into products |
//! | `room`, `foreign` | what is allocated; stages that TensorRT computes, on these streams and in this memory |
//! | `chunk` | graphs of them, and two chunks in flight |
//! | `programs` | all kernels, for checks without a GPU |
//! | `measure`, `nvtx` | what benchmarks and profilers want to know |

#![allow(clippy::too_many_arguments)] // what records work takes all that the work reads and writes, as kernels do

mod chunk;
mod compile;
pub(super) mod driver;
mod expert;
mod foreign;
mod fp8;
mod fused;
mod gemm;
mod heads;
mod lane;
mod load;
mod measure;
mod nvtx;
mod order;
mod prefix;
mod product;
mod programs;
pub(super) mod room;
mod vision;
mod vision_weights;

use std::collections::HashSet;

use chunk::Graphs;
pub use chunk::{Kernels, Measured};
use driver::{Buffer, Gpu};
use expert::{ACTIONS, Expert};
use foreign::{ForeignExpert, ForeignPrefix, ForeignVision, Part};
use lane::Lane;
use load::Loader;
pub use measure::Spans;
use prefix::{Cache, Layout, Prefix};
pub use programs::{Program, has_compiler, programs};
use room::Room;
use vision::{Pixel, Vision};

use super::backend::Stages;
use super::calibration::Calibration;
use super::probe::Tap;
use super::tensorrt::boundary::Foreign;
use super::tensorrt::stages::Stage;
use super::weights::Weights;
use super::{EngineError, check_latest, check_leftover};
use crate::model::Pixels;
use crate::model::dims::Dims;
use crate::model::sampler::Sampler;
use crate::model::sampler::rtc::Rtc;

/// Widest rows that norms write in e4m3.
const FP8_WIDTH: usize = 2048;

/// A network on a GPU.
pub struct CudaEngine {
    dims: Dims,
    room: Room,
    graphs: Graphs,
    vision: Part<Vision, ForeignVision>,
    prefix: Part<Prefix, ForeignPrefix>,
    expert: Expert,
    cache: Cache,
    /// f32 `[2, cameras * tokens + prompt, width]`: the prompt's rows are there for prefixes that are not ours.
    features: Buffer,
    /// Images by slot of features, for a vision that is not ours.
    images: Vec<Buffer>,
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
    /// `calibration`: with one, vision's and the prefix's matrices are e4m3. `foreign`: stages that are not ours, in bf16
    /// only; their weights stay where they are.
    pub fn new(
        weights: &Weights,
        dims: Dims,
        bf16: bool,
        calibration: Option<&Calibration>,
        cameras: usize,
        foreign: Option<Foreign>,
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
        let room = Room::new(&dims, cameras, foreign.as_ref().map(|foreign| foreign.sizes));
        let (rows, keys) = (room.rows(&dims), room.keys(&dims));
        let size = if bf16 { 2 } else { 4 };
        let [see_for_us, read_for_us, act_for_us] = foreign.map_or([None, None, None], |f| f.engines);
        let mut load = Loader::new(&gpu, weights, bf16, calibration)?;
        let vision = match see_for_us {
            Some(engine) => Part::Foreign(Box::new(ForeignVision::new(engine, &dims, &room)?)),
            None => Part::Own(Box::new(Vision::new(&gpu, &mut load, &dims, room.cameras, bf16)?)),
        };
        let prefix = match read_for_us {
            Some(engine) => {
                Part::Foreign(Box::new(ForeignPrefix::new(&mut load, engine, &dims, &room, &gpu)?))
            }
            None => Part::Own(Box::new(Prefix::new(&gpu, &mut load, &dims, rows, size)?)),
        };
        let act_for_us =
            act_for_us.map(|engine| ForeignExpert::new(engine, &dims, &room, &gpu)).transpose()?;
        let expert = Expert::new(&gpu, &mut load, weights, &dims, keys, bf16, act_for_us)?;
        let loaded = load.bytes;
        drop(load);
        let cache = Cache::new(&gpu, &dims, keys, expert.needs_transposed_values(), size)?;
        if let Part::Foreign(prefix) = &prefix {
            prefix.bind_cache(&cache)?;
        }
        if let Some(expert) = expert.foreign() {
            expert.bind_cache(&cache)?;
        }
        let pixels = room.pixels(&dims);
        let copies = if vision.is_foreign() { 2 } else { 0 };
        let images = (0..copies).map(|_| gpu.zeros(pixels * 4)).collect::<Result<_, _>>()?;
        let features = gpu.zeros(2 * rows * dims.language.width * 4)?;
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

    /// The stages that TensorRT computes, if it does any.
    pub fn foreign(&self) -> Option<Stages> {
        Stages::of(|stage| match stage {
            Stage::Vision => self.vision.is_foreign(),
            Stage::Prefix => self.prefix.is_foreign(),
            Stage::Denoise => self.expert.foreign().is_some(),
        })
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

    /// The GPU's place on the PCI bus, by which NVIDIA's other libraries know it.
    pub fn bus(&self) -> Result<String, EngineError> {
        self.act.gpu.bus()
    }

    /// Stage 1: image tokens of the present cameras.
    pub fn vision(&mut self, images: &[Option<Pixels>], tap: &mut Tap) -> Result<Features, EngineError> {
        self.see.gpu.bind()?;
        let images = self.images(images)?;
        let rows = images.slots.len() * self.dims.vision.tokens();
        self.generation += 1;
        if rows > 0 {
            self.graphs.stage_images(0, &images)?;
            if self.warm.insert(Warm::Vision(images.slots.len())) {
                self.put_vision(0, images.pixel, &images.slots, &mut Tap::none())?;
            }
            self.put_vision(0, images.pixel, &images.slots, tap)?;
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
        let layout = self.layout(features.rows, tokens.len());
        self.act.gpu.upload_to(self.cache.request.address, &request(layout, 0, tokens))?;
        let valid = layout.image_rows + tokens.len();
        self.warm_prefix(layout, 0)?;
        self.put_prefix(layout, 0, valid, tap)?;
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
        if rtc.clean_rows() > 0 {
            self.check_takes_clean()?;
        }
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

    /// That chunks may begin with clean actions, as trained real-time chunking has them.
    pub fn check_takes_clean(&self) -> Result<(), EngineError> {
        match self.expert.foreign().filter(|foreign| !foreign.takes_clean()) {
            None => Ok(()),
            Some(_) => Err(EngineError::Input {
                what: "control.execution",
                expected: "a denoise stage built with --rtc-trained, or denoise=cuda".into(),
                found: "rtc_trained on one of TensorRT that was built without".into(),
            }),
        }
    }

    /// In the slot that the caller is about to read: vision of another observation may be writing to the other.
    fn warm_prefix(&mut self, layout: Layout, slot: usize) -> Result<(), EngineError> {
        if self.warm.insert(Warm::Prefix(layout)) {
            self.put_prefix(layout, slot, 0, &mut Tap::none())?;
        }
        Ok(())
    }

    /// Where the features of a slot begin.
    fn features_of(&self, slot: usize) -> u64 {
        self.features.address + (slot * self.room.rows(&self.dims) * self.dims.language.width * 4) as u64
    }

    /// How a chunk lies in memory. Where no kernel of ours gains from less padding, one layout does for all prompts.
    fn layout(&self, image_rows: usize, tokens: usize) -> Layout {
        let is_fixed = self.prefix.is_foreign() && self.expert.foreign().is_some();
        self.room.layout(image_rows, tokens, !is_fixed)
    }

    /// The slot's staged images to the slot's features.
    fn put_vision(
        &mut self,
        slot: usize,
        pixel: Pixel,
        slots: &[usize],
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let (staged, features) = (&self.graphs.images[slot], self.features_of(slot));
        match &self.vision {
            Part::Own(vision) => vision.record(&mut self.see, staged.on_gpu()?, pixel, slots, features, tap),
            Part::Foreign(vision) => {
                let side = self.dims.vision.image;
                let images = self.images[slot].address;
                self.see.gpu.upload_later(images, staged, slots.len() * side * side * 3 * 4)?;
                vision.record(&self.see, images, slots, features, tap)
            }
        }
    }

    /// `slot`: where the features are; a prefix of ours takes it from the request.
    fn put_prefix(
        &mut self,
        layout: Layout,
        slot: usize,
        valid: usize,
        tap: &mut Tap,
    ) -> Result<(), EngineError> {
        let features = self.features_of(slot);
        match &self.prefix {
            Part::Own(prefix) => {
                let rows = self.room.rows(&self.dims);
                prefix.record(&mut self.act, &self.cache, &self.features, rows, layout, valid, tap)
            }
            Part::Foreign(prefix) => prefix.record(&self.act, &self.cache, features, layout, valid, tap),
        }
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
        if present.len() > self.room.most_cameras() {
            return Err(EngineError::Input {
                what: "camera images",
                expected: format!("at most {}", self.room.most_cameras()),
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
        // TensorRT's vision takes f32.
        let bytes = !self.vision.is_foreign() && present.iter().all(|image| matches!(image, Pixels::U8(_)));
        Ok(Images { slots, pixel: if bytes { Pixel::U8 } else { Pixel::F32 }, present })
    }

    fn check_prompt(&self, image_rows: usize, tokens: &[u32]) -> Result<(), EngineError> {
        let input = |what, expected: String, found: String| Err(EngineError::Input { what, expected, found });
        if image_rows + tokens.len() == 0 {
            return input("prefix", "at least one image or prompt token".into(), "none".into());
        }
        let most = self.room.most_tokens();
        if tokens.len() > most {
            return input("prompt", format!("at most {most} tokens"), tokens.len().to_string());
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
        let (horizon, fixed) = (noise.len() / action_dim, self.expert.foreign().map(|f| f.horizon));
        if let Some(fixed) = fixed.filter(|fixed| *fixed != horizon) {
            return Err(EngineError::Input {
                what: "chunk",
                expected: format!("{fixed} actions, as the denoise stage's engine was built for"),
                found: horizon.to_string(),
            });
        }
        Ok(horizon)
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
