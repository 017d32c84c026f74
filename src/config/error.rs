//! Why a configuration is refused: one line per problem, for a person.

/// A configuration that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{origin}: expected a readable parameter file, found: {reason}; check the path")]
    Unreadable {
        /// Path of the file.
        origin: String,
        /// What the system says.
        reason: String,
    },
    /// The text is no ROS 2 parameter file.
    #[error(
        "{origin}: expected a ROS 2 parameter file, found: {reason}; see config/generic.yaml for the form"
    )]
    Malformed {
        /// Where the text is from.
        origin: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// Parameters that are unknown, of a wrong type, out of range, or that do not fit together. One line each.
    #[error("{}", lines(.0))]
    Invalid(Vec<Violation>),
}

/// One parameter that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {parameter}: expected {expected}, found {found}; {advice}")]
pub struct Violation {
    /// The file.
    pub origin: String,
    /// The parameter's name, shortened if it is absurd.
    pub parameter: String,
    /// What is permitted.
    pub expected: String,
    /// What is there.
    pub found: String,
    /// What to do.
    pub advice: String,
}

/// Most violations that are listed.
pub(super) const LISTED_MAX: usize = 20;
/// Longest piece of a file that is repeated in a message, in characters.
const QUOTED_MAX: usize = 60;

/// Text from a file, on one line and of bounded length.
pub(super) fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTED_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED_MAX).is_some() {
        short.push('…');
    }
    short
}

fn lines(violations: &[Violation]) -> String {
    let mut lines: Vec<String> = violations.iter().take(LISTED_MAX).map(ToString::to_string).collect();
    if violations.len() > LISTED_MAX {
        lines.push("and more of the kind".to_owned());
    }
    lines.join("\n")
}
