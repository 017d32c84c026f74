//! Which engine computes which stage, as people write it: `auto`, `cpu`, `cuda`, `tensorrt`, or a list that gives each
//! stage its own, `vision=tensorrt,prefix=tensorrt,denoise=cuda`.
//!
//! Promises: one type, parsed once, the same for the parameter and the command line; what is not understood is refused
//! in one line. Looks at no machine.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::tensorrt::stages::Stage;

/// Which engine computes the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// CUDA if it can, else CPU.
    #[default]
    Auto,
    /// The f32 reference.
    Cpu,
    /// CUDA kernels.
    Cuda,
    /// TensorRT engines of these stages, CUDA kernels of the others.
    TensorRt(Stages),
}

/// Some of the stages, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stages([bool; 3]);

/// Why a text names no backend.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BackendError {
    /// No such word.
    #[error("expected {expected}, found {found:?}", expected = Backend::EXPECTED)]
    Unknown {
        /// What was written.
        found: String,
    },
    /// An entry of a list that is not `stage=backend`.
    #[error("expected vision, prefix and denoise, each = cuda or tensorrt, found {0:?}")]
    Entry(String),
    /// A stage given twice.
    #[error("expected each of vision, prefix, denoise once, found {0} twice")]
    Twice(Stage),
    /// A stage left out.
    #[error("expected each of vision, prefix, denoise once, found no {0}; add {0}=cuda or {0}=tensorrt")]
    Without(Stage),
}

impl Stages {
    /// All three.
    pub const ALL: Self = Self([true; 3]);

    /// Those for which `is_in` says so; `None` if it is none.
    pub fn of(is_in: impl Fn(Stage) -> bool) -> Option<Self> {
        let stages = Stage::ALL.map(is_in);
        stages.contains(&true).then_some(Self(stages))
    }

    /// Whether this stage is one of them.
    pub fn has(self, stage: Stage) -> bool {
        self.0[stage as usize]
    }
}

impl Backend {
    /// What a text may be.
    pub const EXPECTED: &'static str =
        "auto, cpu, cuda, tensorrt or a list like vision=tensorrt,prefix=tensorrt,denoise=cuda";

    fn from_list(text: &str) -> Result<Self, BackendError> {
        let shortened = |text: &str| text.chars().take(40).collect::<String>();
        let mut given = [None; 3];
        for entry in text.split(',') {
            let parsed = entry.split_once('=').and_then(|(stage, backend)| {
                let is_tensorrt = match backend.trim() {
                    "tensorrt" => true,
                    "cuda" => false,
                    _ => return None,
                };
                Some((Stage::from_name(stage.trim())?, is_tensorrt))
            });
            let (stage, is_tensorrt) = parsed.ok_or_else(|| BackendError::Entry(shortened(entry)))?;
            if given[stage as usize].replace(is_tensorrt).is_some() {
                return Err(BackendError::Twice(stage));
            }
        }
        if let Some(stage) = Stage::ALL.into_iter().find(|&stage| given[stage as usize].is_none()) {
            return Err(BackendError::Without(stage));
        }
        let stages = Stages::of(|stage| given[stage as usize] == Some(true));
        Ok(stages.map_or(Backend::Cuda, Backend::TensorRt))
    }
}

impl FromStr for Backend {
    type Err = BackendError;

    fn from_str(text: &str) -> Result<Self, BackendError> {
        match text {
            "auto" => Ok(Backend::Auto),
            "cpu" => Ok(Backend::Cpu),
            "cuda" => Ok(Backend::Cuda),
            "tensorrt" => Ok(Backend::TensorRt(Stages::ALL)),
            list if list.contains('=') => Self::from_list(list),
            other => Err(BackendError::Unknown { found: other.chars().take(40).collect() }),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Auto => f.write_str("auto"),
            Backend::Cpu => f.write_str("cpu"),
            Backend::Cuda => f.write_str("cuda"),
            Backend::TensorRt(stages) => stages.fmt(f),
        }
    }
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ALL {
            return f.write_str("tensorrt");
        }
        let entry = |stage| format!("{stage}={}", if self.has(stage) { "tensorrt" } else { "cuda" });
        f.write_str(&Stage::ALL.map(entry).join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mixes = (1..8).filter_map(|mask: usize| Stages::of(|stage| mask >> stage as usize & 1 == 1));
        let mixes: Vec<Backend> = mixes.map(Backend::TensorRt).collect();
        assert_eq!(mixes.len(), 7);
        for backend in [Backend::Auto, Backend::Cpu, Backend::Cuda].into_iter().chain(mixes) {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
    }

    #[test]
    fn the_order_of_a_list_has_no_meaning_and_one_engine_for_all_is_that_engine() {
        let read = |text: &str| text.parse::<Backend>().unwrap().to_string();
        assert_eq!(
            read("denoise=cuda, vision=tensorrt,prefix=cuda"),
            "vision=tensorrt,prefix=cuda,denoise=cuda"
        );
        assert_eq!(read("vision=cuda,prefix=cuda,denoise=cuda"), "cuda");
        assert_eq!(read("vision=tensorrt,prefix=tensorrt,denoise=tensorrt"), "tensorrt");
    }

    #[test]
    fn what_is_not_understood_is_refused_in_one_line_that_says_why() {
        for (text, why) in [
            ("", "found \"\""),
            ("gpu", "found \"gpu\""),
            ("vision=tensorrt,prefix=tensorrt", "found no denoise; add denoise=cuda or denoise=tensorrt"),
            ("vision=tensorrt,vision=cuda,denoise=cuda", "found vision twice"),
            ("vision=cpu,prefix=cuda,denoise=cuda", "found \"vision=cpu\""),
            ("sight=cuda,prefix=cuda,denoise=cuda", "found \"sight=cuda\""),
            ("vision=cuda,", "found \"\""),
            ("vision=cuda,prefix,denoise=cuda", "found \"prefix\""),
            ("vision=\nx", "found \"vision=\\nx\""),
            ("TENSORRT", "found \"TENSORRT\""),
        ] {
            let said = text.parse::<Backend>().unwrap_err().to_string();
            assert!(said.contains(why) && said.lines().count() == 1 && said.len() < 160, "{said}");
        }
    }
}
