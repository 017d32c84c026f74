//! A look inside: stages report intermediate values by the names of spec/PI05.md §14.

use std::fmt;

/// Receives intermediate values; `verify` is one.
pub trait Probe {
    /// Whether `name` is of interest; values that inference does not need are only computed if so.
    fn wants(&self, name: &str) -> bool;
    /// One value: valid slots only, row-major.
    fn record(&mut self, name: &str, data: &[f32]);
}

/// A probe or nothing. Without one, neither names nor values are made.
pub struct Tap<'a>(Option<&'a mut dyn Probe>);

impl<'a> Tap<'a> {
    /// Reports to `probe`.
    pub fn new(probe: &'a mut dyn Probe) -> Self {
        Self(Some(probe))
    }

    /// Reports to nobody.
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether there is somebody.
    pub fn is_listening(&self) -> bool {
        self.0.is_some()
    }

    /// Whether somebody wants `name`.
    pub fn wants(&self, name: fmt::Arguments<'_>) -> bool {
        self.0.as_ref().is_some_and(|probe| probe.wants(&name.to_string()))
    }

    /// Reports `data` under `name`.
    pub fn record(&mut self, name: fmt::Arguments<'_>, data: &[f32]) {
        if let Some(probe) = &mut self.0 {
            probe.record(&name.to_string(), data);
        }
    }
}
