//! What a joint may do within one tick: position and velocity limits, or velocity and acceleration limits.
//!
//! Promises: for any desired value, NaN and infinity included, the limited value is finite, at most one tick's worth
//! away from the value before it, and a value that was within limits is passed on unchanged, bit for bit.
//! Called by the scheduler in every tick. Position-controlled joints are not yet limited in acceleration while they
//! move along a chunk; the brake at a plan's end is.

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
    /// Highest acceleration: of the brake, and of a velocity's change per second.
    pub acceleration_max: f64,
}

/// A value after the limits, and which of them changed it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limited {
    /// The permitted value.
    pub value: f64,
    /// The desired value was NaN or infinite, and was replaced by holding (position) or by 0 (velocity).
    pub not_finite: bool,
    /// A position limit changed it.
    pub position: bool,
    /// The velocity limit changed it.
    pub velocity: bool,
    /// The acceleration limit changed it ([`ControlMode::Velocity`] only).
    pub acceleration: bool,
}

impl Limited {
    /// Any limit changed the value.
    pub fn any(&self) -> bool {
        self.not_finite || self.position || self.velocity || self.acceleration
    }
}

impl JointLimit {
    /// The permitted value nearest to `desired`, `dt` seconds after `previous`.
    ///
    /// Position: within the position limits, and at most `velocity_max * dt` from `previous`; a `previous` outside the
    /// position limits is led back at no more than that speed.
    /// Velocity: within ± `velocity_max`, and at most `acceleration_max * dt` from `previous`.
    ///
    /// `previous` is finite; a `dt` that is negative or NaN counts as 0.
    pub fn limit(&self, previous: f64, desired: f64, dt: f64) -> Limited {
        let not_finite = !desired.is_finite();
        let dt = dt.max(0.0);
        match self.mode {
            ControlMode::Position => {
                let wanted = if not_finite { previous } else { desired };
                let inside = between(wanted, self.position_min, self.position_max);
                let value = within(inside, previous, self.velocity_max * dt);
                Limited {
                    value,
                    not_finite,
                    position: inside != wanted,
                    velocity: value != inside,
                    acceleration: false,
                }
            }
            ControlMode::Velocity => {
                let wanted = if not_finite { 0.0 } else { desired };
                let slow = between(wanted, -self.velocity_max, self.velocity_max);
                let value = within(slow, previous, self.acceleration_max * dt);
                Limited {
                    value,
                    not_finite,
                    position: false,
                    velocity: slow != wanted,
                    acceleration: value != slow,
                }
            }
        }
    }
}

/// The limits of every command value, checked: finite, minimum below maximum, velocity and acceleration above 0.
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
        /// `velocity_max` or `acceleration_max`.
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
            for (name, found) in
                [("velocity_max", limit.velocity_max), ("acceleration_max", limit.acceleration_max)]
            {
                if !(LIMIT_MIN..=LIMIT_MAX).contains(&found) {
                    return Err(LimitsError::Rate { joint, limit: name, found });
                }
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

/// `value`, or the value at distance `reach` from `centre` on its side.
fn within(value: f64, centre: f64, reach: f64) -> f64 {
    between(value, centre - reach, centre + reach)
}
