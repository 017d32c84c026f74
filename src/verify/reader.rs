//! A case file while it is being understood.
//!
//! Promises that what goes into the network has the type, the shape and the size of such an input: nothing is computed, and
//! nothing large is made, of a tensor that was not held against these first. Called by everything that takes a case.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat_n;
use std::ops::RangeInclusive;
use std::path::Path;

use super::{Case, VerifyError};
use crate::model::sampler::{Sampler, TimeRounding};
use crate::model::{ModelInput, Pixels};
use crate::pipeline::Model;
use crate::policy::cameras::CameraSlots;
use crate::policy::checkpoint::safetensors::{Dtype, RawTensor, read_case};
use crate::policy::checkpoint::{DEFAULT_CAMERAS, Layout, MAX_CAMERAS};
use crate::printable::printable;

/// Most actions of a case's chunk; official models have at most 50. Attention among them takes the square of this.
pub(super) const MAX_HORIZON: usize = 1024;
/// Most prompt slots of a case; official models have 200. The prefix takes the square of this, seconds of the tiny network.
const MAX_SLOTS: usize = 4096;
/// Most denoise steps of a case; the reference takes 10.
const MAX_STEPS: usize = 1000;

/// Before a camera's name: whether it is there, and its image as the network takes it or as it was taken.
const MASK: &str = "in.image_mask.";
const IMAGE: &str = "in.image.";
const RAW: &str = "raw.image_u8.";

pub(super) struct Reader {
    pub(super) file: String,
    pub(super) recorded: BTreeMap<String, RawTensor>,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Self, VerifyError> {
        Ok(Self { file: path.display().to_string(), recorded: read_case(path)? })
    }

    /// A plain case: what went into the network of `model`.
    pub(super) fn case(self, model: &Model) -> Result<Case, VerifyError> {
        let dims = model.dims()?;
        let seen = self.cameras(&model.cameras())?.into_iter().map(|camera| {
            let image = self.image(&camera, dims.vision.image)?;
            Ok((camera, image))
        });
        let mut seen = seen.collect::<Result<Vec<_>, VerifyError>>()?;
        let prompt = self.prompt(dims.vocab)?;
        let slots = |seen: &[(String, Option<Pixels>)]| -> Vec<bool> {
            let of_cameras =
                seen.iter().flat_map(|(_, image)| repeat_n(image.is_some(), dims.vision.tokens()));
            of_cameras.chain(prompt.iter().map(Option::is_some)).collect()
        };
        // LeRobot appends missing cameras, openpi leaves their slots where they are (spec/PI05.md §2.2). No number
        // depends on it, so that openpi's recordings of a network hold for LeRobot's file of it too.
        if model.layout() == Layout::LeRobot && !self.has_slots(&slots(&seen)) {
            seen.sort_by_key(|(_, image)| image.is_none());
        }
        let valid = slots(&seen);
        let (cameras, images) = seen.into_iter().unzip();
        let noise = self.noise(dims.action_dim)?;
        Ok(Case {
            dims,
            horizon: noise.len() / dims.action_dim,
            sampler: self.sampler()?,
            file: self.file,
            recorded: self.recorded,
            cameras,
            input: ModelInput { images, tokens: prompt.into_iter().flatten().collect() },
            valid,
            noise,
            runs: Vec::new(),
        })
    }

    pub(super) fn wrong(
        &self,
        what: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> VerifyError {
        let (what, expected, found) = (printable(what), expected.into(), printable(&found.into()));
        VerifyError::Case { file: self.file.clone(), what, expected, found }
    }

    pub(super) fn tensor(&self, key: &str) -> Result<&RawTensor, VerifyError> {
        self.recorded.get(key).ok_or_else(|| self.wrong(key, "a recorded tensor", "none"))
    }

    /// The elements of a tensor whose size is known to be sane.
    pub(super) fn values(&self, key: &str) -> Result<Vec<f64>, VerifyError> {
        let tensor = self.tensor(key)?;
        tensor.to_f64().ok_or_else(|| self.wrong(key, "numbers", format!("{:?}", tensor.dtype)))
    }

    /// A tensor of this shape.
    fn shaped(&self, key: &str, shape: &[usize]) -> Result<&RawTensor, VerifyError> {
        let tensor = self.tensor(key)?;
        if !is_shape(&tensor.shape, shape) {
            return Err(self.wrong(key, format!("{shape:?}"), format!("{:?}", tensor.shape)));
        }
        Ok(tensor)
    }

    /// A list of so many values.
    fn list(&self, key: &str, lengths: RangeInclusive<usize>) -> Result<Vec<f64>, VerifyError> {
        let shape = &self.tensor(key)?.shape;
        let length = shape.iter().product();
        if !lengths.contains(&length) || !is_shape(shape, &[length]) {
            let expected = format!("a list of {} to {} values", lengths.start(), lengths.end());
            return Err(self.wrong(key, expected, format!("{shape:?}")));
        }
        self.values(key)
    }

    /// What of `count` is there: ones and zeros.
    fn mask(&self, key: &str, count: usize) -> Result<Vec<bool>, VerifyError> {
        self.shaped(key, &[count])?;
        let bit = |value: f64| match value {
            0.0 => Ok(false),
            1.0 => Ok(true),
            other => Err(self.wrong(key, "0 or 1", other.to_string())),
        };
        self.values(key)?.into_iter().map(bit).collect()
    }

    /// All cameras that have a mask or an image: the model's in its order, then openpi's, then any others by name.
    fn cameras(&self, slots: &CameraSlots) -> Result<Vec<String>, VerifyError> {
        let keys = self.recorded.keys();
        let names: BTreeSet<&str> = keys
            .filter_map(|key| [MASK, IMAGE, RAW].iter().find_map(|prefix| key.strip_prefix(prefix)))
            .collect();
        if names.len() > MAX_CAMERAS {
            let expected = format!("at most {MAX_CAMERAS} cameras");
            return Err(self.wrong(&format!("{MASK}*"), expected, names.len().to_string()));
        }
        let mut names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let last = usize::MAX;
        names.sort_by_key(|name| {
            let of_openpi = DEFAULT_CAMERAS.iter().position(|camera| camera == name);
            (slots.find(name).unwrap_or(last), of_openpi.unwrap_or(last))
        });
        Ok(names)
    }

    /// Whether these slots were recorded as the valid ones.
    fn has_slots(&self, valid: &[bool]) -> bool {
        let recorded = self.recorded.get("prefix.pad_mask");
        let recorded = recorded.filter(|mask| mask.shape.iter().product::<usize>() == valid.len());
        let bits = recorded.and_then(RawTensor::to_f64);
        bits.is_some_and(|bits| bits.iter().zip(valid).all(|(&bit, &valid)| (bit != 0.0) == valid))
    }

    /// `raw.image_u8.*` `[side, side, 3]`, else `in.image.*` `[1, 3, side, side]`; `None` if the camera is masked.
    fn image(&self, camera: &str, side: usize) -> Result<Option<Pixels>, VerifyError> {
        if !self.mask(&format!("{MASK}{camera}"), 1)?[0] {
            return Ok(None);
        }
        let raw = format!("{RAW}{camera}");
        if !self.recorded.contains_key(&raw) {
            let key = format!("{IMAGE}{camera}");
            self.shaped(&key, &[3, side, side])?;
            let (values, plane) = (self.values(&key)?, side * side);
            let pixels = (0..plane).flat_map(|i| [i, plane + i, 2 * plane + i]);
            return Ok(Some(Pixels::F32(pixels.map(|i| values[i] as f32).collect())));
        }
        let tensor = self.shaped(&raw, &[side, side, 3])?;
        if tensor.dtype != Dtype::U8 {
            return Err(self.wrong(&raw, "bytes (U8)", format!("{:?}", tensor.dtype)));
        }
        Ok(Some(Pixels::U8(tensor.bytes.clone())))
    }

    /// The prompt's slots: token ids below `vocab`, `None` where masked.
    fn prompt(&self, vocab: usize) -> Result<Vec<Option<u32>>, VerifyError> {
        let ids = self.list("in.tokens", 0..=MAX_SLOTS)?;
        let mask = self.mask("in.token_mask", ids.len())?;
        let slot = |(id, is_valid): (f64, bool)| {
            if !is_valid {
                return Ok(None);
            }
            if !(0.0..vocab as f64).contains(&id) || id.fract() != 0.0 {
                let expected = format!("ids below the embedding's {vocab} rows");
                return Err(self.wrong("in.tokens", expected, id.to_string()));
            }
            Ok(Some(id as u32))
        };
        ids.into_iter().zip(mask).map(slot).collect()
    }

    /// `[1, horizon, action_dim]`
    fn noise(&self, action_dim: usize) -> Result<Vec<f32>, VerifyError> {
        let shape = &self.tensor("in.noise")?.shape;
        let horizon = shape.iter().product::<usize>() / action_dim;
        if !(1..=MAX_HORIZON).contains(&horizon) || !is_shape(shape, &[horizon, action_dim]) {
            let expected = format!("[1, horizon, {action_dim}] of a horizon of 1 to {MAX_HORIZON}");
            return Err(self.wrong("in.noise", expected, format!("{shape:?}")));
        }
        Ok(self.values("in.noise")?.iter().map(|&x| x as f32).collect())
    }

    /// As many steps as there are times, with the rounding that comes closest to them.
    fn sampler(&self) -> Result<Sampler, VerifyError> {
        let times = self.list("times", 1..=MAX_STEPS)?;
        let [openpi, lerobot] = [TimeRounding::Accumulated, TimeRounding::Direct]
            .map(|rounding| Sampler::euler(times.len(), rounding));
        let distance = |sampler: &Sampler| -> f64 {
            sampler.times().iter().zip(&times).map(|(a, b)| (f64::from(*a) - b).abs()).sum()
        };
        Ok(if distance(&lerobot) < distance(&openpi) { lerobot } else { openpi })
    }
}

/// Whether two shapes are the same but for ones.
pub(super) fn is_shape(found: &[usize], expected: &[usize]) -> bool {
    telling(found) == telling(expected)
}

/// A shape without ones, which say nothing: `[1, 10, 8]` is `[10, 8]`.
pub(super) fn telling(shape: &[usize]) -> Vec<usize> {
    shape.iter().copied().filter(|&size| size != 1).collect()
}
