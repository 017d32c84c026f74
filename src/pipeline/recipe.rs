//! Recipes: which matrices are e4m3 in fp8, as data (`config/recipes/*.yaml`).
//!
//! Promises: a recipe names matrices of vision and prefix, layers that stay in bf16, and the error above which a layer does
//! too; with a calibration's ranges and errors that decides every matrix. Called where a network is loaded in fp8, and
//! by `pi05 calibrate` and `pi05 quantize-report`. Measures nothing itself.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;

use serde::Deserialize;
use thiserror::Error;

use crate::engine::calibration::{Calibration, PREFIX, Uncalibrated, VISION};
use crate::model::dims::Dims;

/// Largest recipe that is read.
const MAX_BYTES: u64 = 64 << 10;
/// The recipe where nothing else is said.
pub const DEFAULT: &str = "balanced";
/// Those that are built in.
const BUILT_IN: [(&str, &str); 3] = [
    ("balanced", include_str!("../../config/recipes/balanced.yaml")),
    ("fast", include_str!("../../config/recipes/fast.yaml")),
    ("exact", include_str!("../../config/recipes/exact.yaml")),
];
/// Matrices of a layer of vision, each with what it multiplies.
const VISION_MATRICES: [&str; 4] = ["qkv", "out", "fc1", "fc2"];
/// The same of the prefix.
const PREFIX_MATRICES: [&str; 4] = ["qkv", "o", "gate_up", "down"];

/// Why there is no recipe.
#[derive(Debug, Error)]
pub enum RecipeError {
    /// Neither built in nor a file.
    #[error("recipe \"{0}\": expected balanced, fast, exact or the path of a .yaml file")]
    Unknown(String),
    /// It cannot be read.
    #[error("recipe {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no recipe.
    #[error("recipe {file}: {reason}")]
    Malformed {
        /// The file, or the built-in recipe's name.
        file: String,
        /// What is wrong.
        reason: String,
    },
}

/// Which matrices are to be e4m3.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Its name, or the file that it is from.
    pub name: String,
    /// Relative mean square error that a layer may add, if that is asked.
    pub error_bound: Option<f64>,
    stages: [Stage; 2],
}

/// Of vision, or of the prefix.
#[derive(Clone, Debug)]
struct Stage {
    /// Which of a layer's matrices, in the order of the names above.
    matrices: [bool; 4],
    bf16_layers: Vec<usize>,
}

/// What becomes of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// `vision.layer.3`
    pub name: String,
    /// Its matrices in e4m3.
    pub matrices: Vec<&'static str>,
    /// Why none is.
    pub kept: Option<Kept>,
}

/// Why a layer stays in bf16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kept {
    /// The recipe leaves it there.
    Listed,
    /// It would add more than the recipe's bound.
    Error(f64),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    error_bound: Option<f64>,
    vision: FileStage,
    prefix: FileStage,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileStage {
    matrices: Vec<String>,
    #[serde(default)]
    bf16_layers: Vec<usize>,
}

impl Recipe {
    /// A built-in recipe, or a file's.
    pub fn open(name: &str) -> Result<Self, RecipeError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Self::parse(name, text);
        }
        if !name.ends_with(".yaml") {
            return Err(RecipeError::Unknown(name.to_owned()));
        }
        let mut text = String::new();
        let read = fs::File::open(name).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
        read.map_err(|source| RecipeError::Io { file: name.to_owned(), source })?;
        Self::parse(name, &text)
    }

    fn parse(name: &str, text: &str) -> Result<Self, RecipeError> {
        let malformed = |reason: String| {
            let reason = reason.lines().next().unwrap_or_default().to_owned();
            RecipeError::Malformed { file: name.to_owned(), reason }
        };
        if text.len() as u64 > MAX_BYTES {
            return Err(malformed(format!("more than {MAX_BYTES} bytes")));
        }
        let options = serde_saphyr::options! { with_snippet: false };
        let file: File =
            serde_saphyr::from_str_with_options(text, options).map_err(|e| malformed(e.to_string()))?;
        if let Some(bound) = file.error_bound.filter(|bound| !(*bound > 0.0 && bound.is_finite())) {
            return Err(malformed(format!("error_bound: expected a number above 0, found {bound}")));
        }
        let stage = |stage: &str, file: FileStage, known: [&str; 4]| {
            if let Some(other) = file.matrices.iter().find(|name| !known.contains(&name.as_str())) {
                let other: String = other.chars().take(40).collect();
                return Err(malformed(format!(
                    "{stage}.matrices: expected {}, found {other}",
                    known.join(", ")
                )));
            }
            let matrices = known.map(|name| file.matrices.iter().any(|listed| listed == name));
            Ok(Stage { matrices, bf16_layers: file.bf16_layers })
        };
        let stages =
            [stage("vision", file.vision, VISION_MATRICES)?, stage("prefix", file.prefix, PREFIX_MATRICES)?];
        Ok(Self { name: name.to_owned(), error_bound: file.error_bound, stages })
    }

    /// The same, and no layer is kept back for its error.
    pub fn without_bound(self) -> Self {
        Self { error_bound: None, ..self }
    }

    /// What becomes of each layer of vision and prefix. `errors`: by layer, what rounding all of its matrices adds.
    pub fn layers(&self, dims: &Dims, errors: &BTreeMap<String, f32>) -> Result<Vec<Layer>, Uncalibrated> {
        let mut layers = Vec::new();
        for (stage, name, count, matrices) in [
            (&self.stages[0], "vision", dims.vision.layers, VISION_MATRICES),
            (&self.stages[1], "prefix", dims.language.layers, PREFIX_MATRICES),
        ] {
            for i in 0..count {
                let is_last = name == "prefix" && i + 1 == count;
                let name = format!("{name}.layer.{i}");
                // Of the prefix's last layer only keys and values are made.
                let chosen = (0..4).filter(|&m| stage.matrices[m] && (m == 0 || !is_last));
                let mut matrices: Vec<_> = chosen.map(|m| matrices[m]).collect();
                let mut kept = None;
                if matrices.is_empty() || stage.bf16_layers.contains(&i) {
                    kept = Some(Kept::Listed);
                } else if let Some(bound) = self.error_bound {
                    let error =
                        errors.get(&name).ok_or_else(|| Uncalibrated(format!("the error of {name}")))?;
                    kept = (f64::from(*error) > bound).then_some(Kept::Error(f64::from(*error)));
                }
                if kept.is_some() {
                    matrices.clear();
                }
                layers.push(Layer { name, matrices, kept });
            }
        }
        Ok(layers)
    }
}

/// The ranges of what the chosen matrices multiply, all of which must be known.
pub fn ranges_of(layers: &[Layer], calibration: &Calibration) -> Result<Calibration, Uncalibrated> {
    let names: Vec<String> = layers
        .iter()
        .flat_map(|layer| {
            layer.matrices.iter().map(|matrix| format!("{}.{}", layer.name, input_of(&layer.name, matrix)))
        })
        .collect();
    calibration.only(names.iter().map(String::as_str))
}

/// What a matrix of a layer multiplies, as stages report it.
fn input_of(layer: &str, matrix: &str) -> &'static str {
    let (matrices, inputs) =
        if layer.starts_with("vision") { (VISION_MATRICES, VISION) } else { (PREFIX_MATRICES, PREFIX) };
    inputs[matrices.iter().position(|name| *name == matrix).unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::model::names;

    fn errors(dims: &Dims, error: impl Fn(&str) -> f32) -> BTreeMap<String, f32> {
        let layers = Recipe::open("fast").unwrap().layers(dims, &BTreeMap::new()).unwrap();
        layers.into_iter().map(|layer| (layer.name.clone(), error(&layer.name))).collect()
    }

    #[test]
    fn fast_rounds_all_that_fp8_can_and_exact_less() {
        let dims = Dims::TINY;
        let all = Calibration::from_ranges(names::quantised(&dims).into_iter().map(|name| (name, 1.0)));
        let chosen = |name| {
            let layers = Recipe::open(name).unwrap().layers(&dims, &errors(&dims, |_| 1e-9)).unwrap();
            ranges_of(&layers, &all).unwrap().ranges().len()
        };
        assert_eq!(chosen("fast"), all.ranges().len() - 1, "all but the projector's");
        assert_eq!(chosen("balanced"), chosen("fast"));
        assert_eq!(chosen("exact"), 2 * (dims.language.layers - 1));
    }

    #[test]
    fn a_layer_above_the_bound_stays_in_bf16() {
        let dims = Dims::TINY;
        let balanced = Recipe::open("balanced").unwrap();
        let errors = errors(&dims, |name| if name == "prefix.layer.1" { 0.5 } else { 0.0 });
        for layer in balanced.layers(&dims, &errors).unwrap() {
            let kept = (layer.name == "prefix.layer.1").then_some(Kept::Error(0.5));
            assert_eq!((layer.kept, layer.matrices.is_empty()), (kept, kept.is_some()), "{}", layer.name);
        }
        let said = balanced.layers(&dims, &BTreeMap::new()).unwrap_err().to_string();
        assert!(said.contains("vision.layer.0") && said.contains("pi05 calibrate"), "{said}");
    }

    #[test]
    fn a_range_that_is_missing_is_named() {
        let layers = Recipe::open("fast").unwrap().layers(&Dims::TINY, &BTreeMap::new()).unwrap();
        let said = ranges_of(&layers, &Calibration::default()).unwrap_err().to_string();
        assert!(said.contains("vision.layer.0.layer_norm1") && said.contains("pi05 calibrate"), "{said}");
    }

    #[test]
    fn what_is_no_recipe_is_refused_in_one_line() {
        let whole = "{matrices: []}";
        for (text, says) in [
            ("", ""),
            ("vision: 3", ""),
            (&format!("vision: {whole}"), "prefix"),
            (&format!("vision: {whole}\nprefix: {whole}\nexpert: {whole}"), "expert"),
            (&format!("vision: {whole}\nprefix: {{matrices: [fc1]}}"), "gate_up"),
            (&format!("vision: {whole}\nprefix: {{matrices: [], bf16_layers: [-1]}}"), ""),
            (&format!("error_bound: .nan\nvision: {whole}\nprefix: {whole}"), "above 0"),
            (&format!("error_bound: 0\nvision: {whole}\nprefix: {whole}"), "above 0"),
        ] {
            let said = Recipe::parse("x.yaml", text).unwrap_err().to_string();
            assert!(said.contains(says) && said.lines().count() == 1, "{text}: {said}");
        }
        assert!(Recipe::open("quick").unwrap_err().to_string().contains("balanced, fast, exact"));
        assert!(Recipe::open("/no/such.yaml").unwrap_err().to_string().starts_with("recipe /no/such.yaml: "));
    }
}
