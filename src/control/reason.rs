//! Why the arm rests: a short text that is handed about without being allocated or freed.

use std::fmt;

/// Longest reason, bytes. What is longer is cut.
const LENGTH_MAX: usize = 200;

/// A text of up to 200 bytes, by value: it passes through the control tick, which neither allocates nor frees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    text: [u8; LENGTH_MAX],
    length: u8,
}

impl Reason {
    /// No reason: all is well.
    pub const NONE: Self = Self { text: [0; LENGTH_MAX], length: 0 };

    /// Keeps what fits of `text`.
    pub fn new(text: &str) -> Self {
        let length = text.floor_char_boundary(LENGTH_MAX);
        let mut reason = Self::NONE;
        reason.text[..length].copy_from_slice(&text.as_bytes()[..length]);
        reason.length = length as u8; // at most LENGTH_MAX
        reason
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default() // made of a str, cut at a character
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_comes_back_as_it_was_and_a_long_one_is_cut_between_characters() {
        assert_eq!(Reason::new("camera lost").as_str(), "camera lost");
        assert_eq!(Reason::NONE.as_str(), "");
        let long = "ü".repeat(150);
        assert_eq!(Reason::new(&format!("x{long}")).as_str(), format!("x{}", "ü".repeat(99)));
    }
}
