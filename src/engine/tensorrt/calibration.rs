//! Ranges of activations for e4m3, read from `calibration.safetensors`: per name one f32, the largest magnitude that was
//! seen (or its percentile) over real frames.
//!
//! Names are the probe's (spec/PI05.md §14) where it has one, of what goes into a product:
//! `vision.layer.{i}.{layer_norm1,attention,layer_norm2,hidden}`, `vision.post_layernorm`,
//! `prefix.layer.{i}.{input_layernorm,attention,post_attention_layernorm,hidden}`. `attention` is what the heads give,
//! before the output projection; `hidden` is what goes into the MLP's last matrix.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use thiserror::Error;

/// e4m3's largest number.
pub const LARGEST: f32 = 448.0;
/// More than any calibration has: a few hundred numbers.
const MOST_BYTES: u64 = 16 << 20;

/// Largest magnitude by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    ranges: BTreeMap<String, f32>,
}

/// Why ranges cannot be used.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// The file.
    #[error("{file}: {reason}; run `pi05 calibrate` again")]
    File {
        /// Which.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A range that the network needs.
    #[error(
        "calibration: no range of {0}: it was made for another network; run `pi05 calibrate` on this checkpoint"
    )]
    Missing(String),
}

impl Calibration {
    /// Reads a file. Tensors of more than one element are other things than ranges, and are left alone.
    pub fn read(path: &Path) -> Result<Self, CalibrationError> {
        let error = |reason: String| CalibrationError::File { file: path.display().to_string(), reason };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| error(e.to_string()))?;
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|e| error(e.to_string()))?;
        if bytes.len() as u64 > MOST_BYTES {
            return Err(error(format!("expected at most {MOST_BYTES} bytes, found more")));
        }
        let tensors =
            SafeTensors::deserialize(&bytes).map_err(|e| error(format!("no safetensors file: {e}")))?;
        let mut ranges = BTreeMap::new();
        for (name, tensor) in tensors.iter() {
            let (Dtype::F32, Ok(value)) = (tensor.dtype(), <[u8; 4]>::try_from(tensor.data())) else {
                continue;
            };
            let range = f32::from_le_bytes(value);
            if !range.is_finite() || range <= 0.0 {
                return Err(error(format!("{name}: expected a range above 0, found {range}")));
            }
            ranges.insert(name.to_owned(), range);
        }
        Ok(Self { ranges })
    }

    /// Ranges by name.
    pub fn from_ranges(ranges: impl IntoIterator<Item = (String, f32)>) -> Self {
        Self { ranges: ranges.into_iter().collect() }
    }

    /// The step of e4m3 for activations called `name`.
    pub fn scale(&self, name: &str) -> Result<f32, CalibrationError> {
        let range = self.ranges.get(name).ok_or_else(|| CalibrationError::Missing(name.to_owned()))?;
        Ok(range / LARGEST)
    }
}

/// The e4m3 scale of each row of a weight matrix: its largest magnitude / 448; of a row of zeros, 1.
pub fn row_scales(values: &[f32], rows: usize) -> Vec<f32> {
    let largest = |row: &[f32]| row.iter().fold(0f32, |max, x| max.max(x.abs()));
    let scale = |largest: f32| if largest > 0.0 { largest / LARGEST } else { 1.0 };
    values.chunks_exact((values.len() / rows.max(1)).max(1)).map(|row| scale(largest(row))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(entries: &[(&str, Dtype, Vec<u8>)]) -> Result<Calibration, CalibrationError> {
        let views = entries.iter().map(|(name, dtype, data)| {
            let shape = vec![data.len() / 4];
            (*name, safetensors::tensor::TensorView::new(*dtype, shape, data).unwrap())
        });
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        Calibration::read(&path)
    }

    #[test]
    fn a_range_becomes_a_scale_and_what_is_no_range_is_left_alone() {
        let one = ("a", Dtype::F32, 44.8f32.to_le_bytes().to_vec());
        let calibration = written(&[one, ("histogram", Dtype::F32, vec![0; 64])]).unwrap();
        assert_eq!(calibration.scale("a").unwrap(), 0.1);
        assert!(calibration.scale("b").unwrap_err().to_string().contains("no range of b"));
    }

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
            let said = written(&[("a", Dtype::F32, bad.to_le_bytes().to_vec())]).unwrap_err().to_string();
            assert!(said.contains("a: expected a range above 0"), "{said}");
        }
        let said =
            Calibration::read(Path::new("/nonexistent/calibration.safetensors")).unwrap_err().to_string();
        assert!(said.contains("pi05 calibrate"), "{said}");
    }
}
