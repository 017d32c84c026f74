//! What a joint may do: position, velocity, acceleration and, where it is given, jerk.
//!
//! Promises: limits that were taken are finite (but for a jerk that is not limited) and can be kept: within them every
//! motion can come to rest. [`super::axis`] keeps them, tick by tick.

/// Largest magnitude of a position, velocity or acceleration limit (rad or m, per s, per s²): beyond it lies no robot,
/// and below it nothing overflows.
pub const LIMIT_MAX: f64 = 1e6;
/// Smallest velocity or acceleration limit: with less, coming to rest would take for ever.
pub const LIMIT_MIN: f64 = 1e-6;

/// What a command value means to the joint that gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlMode {
    /// A position: at rest it is held.
    Position,
    /// A velocity, or a displacement per step: at rest it is 0.
    Velocity,
}

/// Limits of one command value. In the unit of the value: rad or m (per s, per s²).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JointLimit {
    /// What the value is.
    pub mode: ControlMode,
    /// Lowest position. Not used for [`ControlMode::Velocity`].
    pub position_min: f64,
    /// Highest position. Not used for [`ControlMode::Velocity`].
    pub position_max: f64,
    /// Highest speed: of a position's change per second, or of the value itself.
    pub velocity_max: f64,
    /// Highest acceleration: of a position, or of a velocity's change per second.
    pub acceleration_max: f64,
    /// Highest change of the acceleration per second; infinite where it is not limited.
    pub jerk_max: f64,
}

/// The limits of every command value, checked: minimum below maximum, the others above 0; finite but for the jerk.
#[derive(Clone, Debug, PartialEq)]
pub struct JointLimits(Vec<JointLimit>);

/// Why limits are refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LimitsError {
    /// There are no values to limit.
    #[error("joint limits: expected at least one joint, found none; name the joints")]
    Empty,
    /// Position limits that no position satisfies, or that are not finite.
    #[error(
        "joint limits: joint {joint}: expected position_min < position_max, both within ±{LIMIT_MAX}, found {min} and {max}; correct them"
    )]
    Position {
        /// Index of the joint.
        joint: usize,
        /// Its position_min.
        min: f64,
        /// Its position_max.
        max: f64,
    },
    /// A velocity or acceleration limit outside [`LIMIT_MIN`]..=[`LIMIT_MAX`].
    #[error(
        "joint limits: joint {joint}: expected {limit} from {LIMIT_MIN} to {LIMIT_MAX}, found {found}; correct it"
    )]
    Rate {
        /// Index of the joint.
        joint: usize,
        /// `velocity_max`, `acceleration_max` or `jerk_max`.
        limit: &'static str,
        /// What it was.
        found: f64,
    },
}

impl JointLimits {
    /// Checks the limits, one per command value.
    pub fn new(joints: Vec<JointLimit>) -> Result<Self, LimitsError> {
        if joints.is_empty() {
            return Err(LimitsError::Empty);
        }
        for (joint, limit) in joints.iter().enumerate() {
            let (min, max) = (limit.position_min, limit.position_max);
            if !(-LIMIT_MAX <= min && min < max && max <= LIMIT_MAX) {
                return Err(LimitsError::Position { joint, min, max });
            }
            let rates = [
                ("velocity_max", limit.velocity_max),
                ("acceleration_max", limit.acceleration_max),
                ("jerk_max", if limit.jerk_max == f64::INFINITY { LIMIT_MAX } else { limit.jerk_max }),
            ];
            if let Some(&(name, found)) = rates.iter().find(|(_, v)| !(LIMIT_MIN..=LIMIT_MAX).contains(v)) {
                return Err(LimitsError::Rate { joint, limit: name, found });
            }
        }
        Ok(Self(joints))
    }

    /// One per command value, at least one.
    pub fn as_slice(&self) -> &[JointLimit] {
        &self.0
    }
}

/// `value`, or the nearer of the two bounds.
pub(super) fn between(value: f64, low: f64, high: f64) -> f64 {
    if value < low {
        low
    } else if value > high {
        high
    } else {
        value // as it is, down to the sign of a zero
    }
}
