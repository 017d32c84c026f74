//! Robot adapters: the robot's joints as the policy was trained to see them, and back (spec/PI05.md §9).
//!
//! Called by [`super::Policy`] before normalisation and after unnormalisation, in f64. Knows no network and no limits.

use crate::config::RobotKind;

impl RobotKind {
    /// Lengths of state and action of openpi's configuration; `None` for a generic robot.
    pub fn lengths(self) -> Option<(usize, usize)> {
        match self {
            RobotKind::Aloha => Some((ARMS * ARM, ARMS * ARM)),
            RobotKind::Droid => Some((8, 8)),
            RobotKind::Libero => Some((8, 7)),
            RobotKind::Generic => None,
        }
    }

    /// Which actions openpi's configuration trains as offsets from the state; `None` for no action.
    pub fn default_delta_mask(self) -> Option<Vec<bool>> {
        (self == RobotKind::Aloha).then(|| (0..ARMS * ARM).map(|i| !is_gripper(i)).collect())
    }
}

/// How this robot's numbers become the policy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Robot {
    /// ALOHA.
    Aloha {
        /// Physical Intelligence's own joint directions and gripper scale, which π0.5 was trained with.
        adapt_to_pi: bool,
    },
    /// DROID.
    Droid,
    /// LIBERO.
    Libero,
    /// Any other.
    Generic,
}

impl Robot {
    /// The robot's state, in its own units, as the policy takes it.
    pub fn state_in(self, state: &[f64]) -> Vec<f64> {
        match self {
            Robot::Aloha { adapt_to_pi: true } => adapt(state, gripper_to_angular),
            _ => state.to_vec(),
        }
    }

    /// One row of the policy's actions as the robot takes it: cut to `len`, in its own units.
    pub fn action_out(self, action: &[f64], len: usize) -> Vec<f64> {
        let action = &action[..len.min(action.len())];
        match self {
            Robot::Aloha { adapt_to_pi: true } => adapt(action, gripper_from_angular),
            _ => action.to_vec(),
        }
    }
}

/// Arms of an ALOHA.
const ARMS: usize = 2;
/// Values per arm: six joints and the gripper.
const ARM: usize = 7;
/// Direction of each joint of one arm against Physical Intelligence's.
const FLIP: [f64; ARM] = [1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0];

fn is_gripper(i: usize) -> bool {
    i % ARM == ARM - 1
}

/// Turns the joints to the other convention (its own inverse) and converts the grippers.
fn adapt(values: &[f64], gripper: fn(f64) -> f64) -> Vec<f64> {
    let convert = |(i, &v): (usize, &f64)| {
        let v = FLIP[i % ARM] * v;
        if is_gripper(i) { gripper(v) } else { v }
    };
    values.iter().enumerate().map(convert).collect()
}

/// Range of the angle, rad, that the π data normalised gripper states with.
const STATE_ANGLE: (f64, f64) = (0.5476, 1.6296);
/// Range of the angle, rad, that ALOHA normalises gripper commands with.
const COMMAND_ANGLE: (f64, f64) = (-0.6213, 1.4910);
/// Range of the finger's travel, m, that ALOHA normalises gripper states with.
const FINGER_TRAVEL: (f64, f64) = (0.01844, 0.05800);
/// Length of the gripper's crank and of its rod, m.
const CRANK_AND_ROD: (f64, f64) = (0.022, 0.036);

/// ALOHA's linear opening (0..1) to the normalised angle of the motor behind it.
fn gripper_to_angular(opening: f64) -> f64 {
    let (low, high) = FINGER_TRAVEL;
    let travel = opening * (high - low) + low;
    let (crank, rod) = CRANK_AND_ROD;
    let sine = (crank * crank + travel * travel - rod * rod) / (2.0 * crank * travel);
    let (low, high) = STATE_ANGLE;
    (sine.clamp(-1.0, 1.0).asin() - low) / (high - low)
}

/// The policy's gripper command to ALOHA's, both normalised angles.
fn gripper_from_angular(command: f64) -> f64 {
    let (low, high) = COMMAND_ANGLE;
    (command + STATE_ANGLE.0 - low) / (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_grippers_of_an_aloha_stay_absolute() {
        let mask = RobotKind::Aloha.default_delta_mask().unwrap();
        let absolute: Vec<usize> = (0..mask.len()).filter(|&i| !mask[i]).collect();
        assert_eq!((mask.len(), absolute), (14, vec![6, 13]));
    }

    proptest! {
        #[test]
        fn a_state_in_any_range_stays_finite(state in prop::collection::vec(-1e9..1e9f64, 14)) {
            let adapted = Robot::Aloha { adapt_to_pi: true }.state_in(&state);
            prop_assert!(adapted.iter().all(|v| v.is_finite()));
        }

        #[test]
        fn without_adaptation_nothing_changes(state in prop::collection::vec(-9.0..9.0f64, 0..20), len in 0..20usize) {
            for robot in [Robot::Aloha { adapt_to_pi: false }, Robot::Droid, Robot::Libero, Robot::Generic] {
                prop_assert_eq!(robot.state_in(&state), state.clone());
                prop_assert_eq!(robot.action_out(&state, len), &state[..len.min(state.len())]);
            }
        }
    }
}
