//! The cameras of a model, and which of the robot's belongs to each.

use crate::config;
use crate::printable::printable;

/// The camera slots of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameraSlots {
    /// Their names, in the model's order: `base_0_rgb`, …
    pub names: Vec<String>,
    /// Other names that the checkpoint gives them: (other name, name).
    pub aliases: Vec<(String, String)>,
}

/// Configured cameras that do not fit the model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CameraError {
    /// A camera that the model does not have.
    #[error("cameras.{slot}: expected one of the model's cameras {}, found {slot}", .expected.join(", "))]
    Unknown {
        /// As configured.
        slot: String,
        /// The model's cameras.
        expected: Vec<String>,
    },
    /// Two names of one slot.
    #[error("cameras.{first} and cameras.{second} are both the model's camera {slot}: keep one of them")]
    Twice {
        /// As configured.
        first: String,
        /// As configured.
        second: String,
        /// The model's camera.
        slot: String,
    },
}

impl CameraSlots {
    /// The slot of this name or other name.
    pub fn find(&self, name: &str) -> Option<usize> {
        let alias = self.aliases.iter().find(|(alias, _)| alias == name);
        let name = alias.map_or(name, |(_, slot)| slot);
        self.names.iter().position(|slot| slot == name)
    }

    /// For each slot the index of its camera in `configured`; `None` is masked.
    pub fn assign(&self, configured: &[config::Camera]) -> Result<Vec<Option<usize>>, CameraError> {
        let mut cameras = vec![None; self.names.len()];
        for (index, camera) in configured.iter().enumerate() {
            let expected = || self.names.iter().map(|name| printable(name)).collect();
            let unknown = || CameraError::Unknown { slot: printable(&camera.slot), expected: expected() };
            let slot = self.find(&camera.slot).ok_or_else(unknown)?;
            if let Some(first) = cameras[slot].replace(index) {
                return Err(CameraError::Twice {
                    first: printable(&configured[first].slot),
                    second: printable(&camera.slot),
                    slot: printable(&self.names[slot]),
                });
            }
        }
        Ok(cameras)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots() -> CameraSlots {
        CameraSlots {
            names: ["base", "left", "right"].map(str::to_owned).to_vec(),
            aliases: vec![("top".to_owned(), "base".to_owned())],
        }
    }

    fn cameras(names: &[&str]) -> Vec<config::Camera> {
        let camera = |slot: &&str| config::Camera {
            slot: (*slot).to_owned(),
            topic: format!("{slot}/image_raw"),
            max_age_ms: 200,
        };
        names.iter().map(camera).collect()
    }

    #[test]
    fn cameras_are_found_by_either_name_and_the_rest_is_masked() {
        assert_eq!(slots().assign(&cameras(&["right", "base"])).unwrap(), [Some(1), None, Some(0)]);
        assert_eq!(slots().assign(&cameras(&["top"])).unwrap(), [Some(0), None, None]);
    }

    #[test]
    fn a_camera_that_does_not_fit_is_refused_by_name() {
        let said = |names: &[&str]| slots().assign(&cameras(names)).unwrap_err().to_string();
        assert_eq!(
            said(&["base", "nose"]),
            "cameras.nose: expected one of the model's cameras base, left, right, found nose"
        );
        let forged = CameraSlots { names: vec!["base\nok".to_owned()], aliases: Vec::new() };
        let forged = forged.assign(&cameras(&["nose"])).unwrap_err().to_string();
        assert!(forged.contains("cameras base\\nok,"), "{forged:?}");
        assert_eq!(
            said(&["base", "top"]),
            "cameras.base and cameras.top are both the model's camera base: keep one of them"
        );
    }
}
