//! `calibration.safetensors`: a checkpoint's activation ranges on disk, with where they come from.
//!
//! Per tensor its range, f32 `[1]`, and its means by channel before and after rounding, `mean.…`, f32 `[2, channels]`; per
//! layer, `error.vision.layer.3`, f32 `[1]`: what rounding it to e4m3 adds to its output. Metadata: `checkpoint` (a fingerprint of the weights), `frames`, `percentile`, `engine`, `source`. Written by `pi05 calibrate`, read where a network is loaded in fp8. A calibration of other weights is refused.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use safetensors::tensor::{Dtype, SafeTensors};
use thiserror::Error;

use super::recipe::{self, Layer, Recipe};
use crate::engine::calibration::{Calibration, Mean, Uncalibrated};
use crate::model::dims::Dims;
use crate::model::{names, tensors};
use crate::policy::checkpoint::CheckpointError;
use crate::policy::checkpoint::write::{NewTensor, write_safetensors};
use crate::printable::printable;

/// Largest file that is read; of π0.5 it has 5 MB.
const MAX_BYTES: u64 = 256 << 20;
/// Before the name of a layer.
const ERROR: &str = "error.";
/// Before the name of a tensor.
const MEAN: &str = "mean.";

/// Why there is no calibration.
#[derive(Debug, Error)]
pub enum CalibrationError {
    /// Nothing there.
    #[error(
        "{file}: no calibration, which fp8 needs; make one from real frames: pi05 calibrate --checkpoint {checkpoint} --bag BAG"
    )]
    Missing {
        /// The file.
        file: String,
        /// What the command would be given.
        checkpoint: String,
    },
    /// It cannot be written.
    #[error(transparent)]
    Write(#[from] CheckpointError),
    /// It cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// It is no calibration.
    #[error("{file}: expected a calibration, found {found}; make it again: pi05 calibrate")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong.
        found: String,
    },
    /// It lacks a range or an error that this network has.
    #[error("{file}: {source}")]
    Lacking {
        /// The file.
        file: String,
        /// Which.
        source: Uncalibrated,
    },
    /// It belongs to other weights.
    #[error(
        "{file}: calibrated for a checkpoint {found}, but these weights are {expected}; run pi05 calibrate again"
    )]
    OtherWeights {
        /// The file.
        file: String,
        /// Fingerprint of the weights to be loaded.
        expected: String,
        /// The file's.
        found: String,
    },
}

/// What was measured of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibrated {
    /// Ranges of activations.
    pub calibration: Calibration,
    /// By layer, the relative mean square error that rounding all of its matrices adds to its output.
    pub errors: BTreeMap<String, f32>,
}

/// Where a calibration comes from.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// Fingerprint of the weights.
    pub checkpoint: String,
    /// Observations seen.
    pub frames: usize,
    /// Percentile of the magnitudes that a range covers.
    pub percentile: f64,
    /// Backend and number format that it was measured with.
    pub engine: String,
    /// Bag or case.
    pub source: String,
}

/// Writes a calibration whole or not at all.
pub fn write(path: &Path, measured: &Calibrated, from: &Provenance) -> Result<(), CalibrationError> {
    let ranges = measured.calibration.ranges().iter().map(|(name, range)| (name.clone(), range));
    let errors = measured.errors.iter().map(|(layer, error)| (format!("{ERROR}{layer}"), error));
    let numbers = ranges.chain(errors).map(|(name, value)| (name, (vec![1], value.to_le_bytes().to_vec())));
    let means = measured.calibration.means().iter().map(|(name, Mean { exact, rounded })| {
        let bytes = exact.iter().chain(rounded).flat_map(|x| x.to_le_bytes()).collect();
        (format!("{MEAN}{name}"), (vec![2, exact.len()], bytes))
    });
    // In the order of their names: the same measurement gives the same bytes.
    let named: BTreeMap<String, (Vec<usize>, Vec<u8>)> = numbers.chain(means).collect();
    let (new, data): (Vec<_>, Vec<_>) = named
        .into_iter()
        .map(|(name, (shape, bytes))| (NewTensor { name, dtype: tensors::Dtype::F32, shape }, bytes))
        .unzip();
    let metadata = BTreeMap::from([
        ("checkpoint".to_owned(), from.checkpoint.clone()),
        ("frames".to_owned(), from.frames.to_string()),
        ("percentile".to_owned(), from.percentile.to_string()),
        ("engine".to_owned(), from.engine.clone()),
        ("source".to_owned(), from.source.clone()),
    ]);
    Ok(write_safetensors(path, &metadata, &new, |i, file| file.write_all(&data[i]), &mut |_, _| {})?)
}

/// Whether a calibration may be there: a file of a size that one has.
pub fn find(path: &Path) -> Result<(), CalibrationError> {
    let file = path.display().to_string();
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            Err(CalibrationError::Malformed { file, found: "no regular file".into() })
        }
        Ok(metadata) if metadata.len() > MAX_BYTES => {
            Err(CalibrationError::Malformed { file, found: format!("{} bytes", metadata.len()) })
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            let checkpoint = folder.map_or("D".to_owned(), |folder| folder.display().to_string());
            Err(CalibrationError::Missing { file, checkpoint })
        }
        Err(source) => Err(CalibrationError::Io { file, source }),
    }
}

/// Reads the calibration of the weights with this fingerprint.
pub fn read(path: &Path, checkpoint: &str) -> Result<Calibrated, CalibrationError> {
    find(path)?;
    let file = path.display().to_string();
    let malformed =
        |found: String| CalibrationError::Malformed { file: file.clone(), found: printable(&found) };
    let bytes = fs::read(path).map_err(|source| CalibrationError::Io { file: file.clone(), source })?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| malformed(e.to_string()))?;
    let found = header.metadata().as_ref().and_then(|metadata| metadata.get("checkpoint").cloned());
    let found = found.ok_or_else(|| malformed("a safetensors file without `checkpoint`".into()))?;
    if found != checkpoint {
        let expected = checkpoint.to_owned();
        return Err(CalibrationError::OtherWeights { file, expected, found: printable(&found) });
    }
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
    let (mut ranges, mut errors, mut means) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, view) in tensors.tensors() {
        if view.dtype() != Dtype::F32 {
            return Err(malformed(format!("{name} in {:?}", view.dtype())));
        }
        if let Some(of) = name.strip_prefix(MEAN) {
            let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let mut exact: Vec<f32> = values.collect();
            if exact.iter().any(|x| !x.is_finite()) {
                return Err(malformed(format!("{name} with what is no number")));
            }
            let rounded = exact.split_off(exact.len() / 2);
            means.insert(of.to_owned(), Mean { exact, rounded });
            continue;
        }
        let value = <[u8; 4]>::try_from(view.data()).ok().map(f32::from_le_bytes);
        let value = value.filter(|value| value.is_finite() && *value >= 0.0);
        match (name.strip_prefix(ERROR), value) {
            (Some(layer), Some(error)) => errors.insert(layer.to_owned(), error),
            (None, Some(range)) if range > 0.0 => ranges.insert(name, range),
            _ => return Err(malformed(format!("{name} that is no positive number"))),
        };
    }
    Ok(Calibrated { calibration: Calibration::from_ranges(ranges).with_means(means), errors })
}

impl Calibrated {
    /// The ranges of what a recipe rounds, and what becomes of each layer. `path`: the file, for what it lacks.
    pub fn by(
        &self,
        recipe: &Recipe,
        dims: &Dims,
        path: &Path,
    ) -> Result<(Calibration, Vec<Layer>), CalibrationError> {
        let lacking = |source| CalibrationError::Lacking { file: path.display().to_string(), source };
        let layers = recipe.layers(dims, &self.errors).map_err(lacking)?;
        let chosen = recipe::ranges_of(&layers, &self.calibration).map_err(lacking)?;
        for name in chosen.ranges().keys() {
            let (width, mean) = (names::quantised_width(dims, name), chosen.means().get(name));
            if mean.is_none_or(|mean| mean.exact.len() != width || mean.rounded.len() != width) {
                return Err(lacking(Uncalibrated(format!("the {width} means of {name}"))));
            }
        }
        Ok((chosen, layers))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_calibration_comes_back_as_written_for_its_own_weights_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("calibration.safetensors");
        assert!(matches!(read(&path, "7"), Err(CalibrationError::Missing { .. })));
        let ranges = BTreeMap::from([("prefix.layer.0.hidden".to_owned(), 3.5), ("a".to_owned(), 0.25)]);
        let errors = BTreeMap::from([("prefix.layer.0".to_owned(), 0.0)]);
        let mean = Mean { exact: vec![1.0, -2.0], rounded: vec![0.5, 0.0] };
        let means = BTreeMap::from([("a".to_owned(), mean)]);
        let calibration =
            Calibrated { calibration: Calibration::from_ranges(ranges).with_means(means), errors };
        let from = Provenance {
            checkpoint: "7".into(),
            frames: 3,
            percentile: 99.9,
            engine: "cpu f32".into(),
            source: "bag".into(),
        };
        write(&path, &calibration, &from).unwrap();
        assert_eq!(read(&path, "7").unwrap(), calibration);
        let bytes = fs::read(&path).unwrap();
        write(&path, &calibration, &from).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "the same measurement, the same bytes");
        assert!(matches!(read(&path, "8"), Err(CalibrationError::OtherWeights { .. })));
        let forged = Provenance { checkpoint: "9\nok".into(), ..from.clone() };
        write(&path, &calibration, &forged).unwrap();
        let said = read(&path, "7").unwrap_err().to_string();
        assert!(said.contains("a checkpoint 9\\nok,"), "{said:?}");
        let calibration = Calibration::from_ranges([("a".to_owned(), 0.0)]);
        let zero = Calibrated { calibration, errors: BTreeMap::new() };
        write(&path, &zero, &from).unwrap();
        assert!(matches!(read(&path, "7"), Err(CalibrationError::Malformed { .. })));
        fs::write(&path, b"nonsense").unwrap();
        assert!(matches!(read(&path, "7"), Err(CalibrationError::Malformed { .. })));
    }
}
