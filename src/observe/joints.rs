//! Joint states matched by name: whatever order a robot reports its joints in, the policy sees the configured one.
//!
//! Called with the fields of `sensor_msgs/JointState` by whoever receives it. A message that cannot be trusted
//! (a joint missing or named twice, a value that is not finite) gives one error and no values; never a partial state.

use std::collections::HashMap;

use super::quoted;

/// Missing joints that an error names before it only counts them.
const NAMED_IN_ERROR: usize = 5;

/// Why the configured joint names, or one joint state, were refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JointError {
    /// No joint is configured.
    #[error("joints.names is empty: list the joints of the policy's state, in its order")]
    NoneConfigured,
    /// A configured name is the empty string.
    #[error("joints.names: entry {index} is empty: every joint needs its name")]
    EmptyName {
        /// Position in the list, from 0.
        index: usize,
    },
    /// A configured name stands twice.
    #[error("joints.names: {joint} stands at entries {first} and {second}: name every joint once")]
    ConfiguredTwice {
        /// The name, quoted.
        joint: String,
        /// Positions in the list, from 0.
        first: usize,
        /// See `first`.
        second: usize,
    },
    /// The message lacks configured joints.
    #[error("joint state of {found} joints lacks {joints}: check joints.names against the robot's names")]
    Missing {
        /// The missing names, quoted, comma-separated; at most a few.
        joints: String,
        /// How many names the message has.
        found: usize,
    },
    /// The message names a joint twice.
    #[error("joint state names {joint} twice (entries {first} and {second}): its values are ambiguous")]
    NamedTwice {
        /// The name, quoted.
        joint: String,
        /// Positions in the message, from 0.
        first: usize,
        /// See `first`.
        second: usize,
    },
    /// `name` and `position` differ in length.
    #[error("joint state has {names} names but {positions} positions: it needs one position per name")]
    Lengths {
        /// Length of `name`.
        names: usize,
        /// Length of `position`.
        positions: usize,
    },
    /// A used joint's position is NaN or infinite.
    #[error("joint state: position of {joint} is {value}: it must be a finite number")]
    NotFinite {
        /// The name, quoted.
        joint: String,
        /// What the message says: `NaN`, `inf` or `-inf`.
        value: String,
    },
}

/// Puts the positions of joint states into the configured order.
///
/// Remembers where the joints stood in the last good message: while the list of names stays the same, which is
/// checked by comparing it, a message costs no hashing.
#[derive(Clone, Debug)]
pub struct JointMap {
    names: Vec<String>,
    /// Names of the last message that had every joint, and the place in it of each of `names`.
    known: Option<(Vec<String>, Vec<usize>)>,
}

impl JointMap {
    /// From the configured names, in the order of the policy's state. They must be non-empty and unique.
    pub fn new(names: Vec<String>) -> Result<Self, JointError> {
        if names.is_empty() {
            return Err(JointError::NoneConfigured);
        }
        if let Some(index) = names.iter().position(String::is_empty) {
            return Err(JointError::EmptyName { index });
        }
        if let Err((first, second)) = places(&names) {
            return Err(JointError::ConfiguredTwice { joint: quoted(&names[first]), first, second });
        }
        Ok(Self { names, known: None })
    }

    /// The configured names.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Positions (rad, m) in configured order, from the `name` and `position` arrays of one `JointState`.
    /// Joints that are not configured are ignored, their values too; a name that stands twice is not.
    pub fn positions<S: AsRef<str>>(
        &mut self,
        names: &[S],
        positions: &[f64],
    ) -> Result<Vec<f64>, JointError> {
        if names.len() != positions.len() {
            return Err(JointError::Lengths { names: names.len(), positions: positions.len() });
        }
        let order = match &mut self.known {
            Some((known, order)) if same_names(known, names) => order,
            known => {
                let order = order_in(&self.names, names)?;
                &mut known.insert((names.iter().map(|n| n.as_ref().to_owned()).collect(), order)).1
            }
        };
        let values: Vec<f64> = order.iter().map(|&place| positions[place]).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(joint) => Err(JointError::NotFinite {
                joint: quoted(&self.names[joint]),
                value: values[joint].to_string(),
            }),
        }
    }
}

fn same_names<S: AsRef<str>>(known: &[String], names: &[S]) -> bool {
    known.len() == names.len() && known.iter().zip(names).all(|(a, b)| a == b.as_ref())
}

/// For each configured joint its place in the message.
fn order_in<S: AsRef<str>>(configured: &[String], names: &[S]) -> Result<Vec<usize>, JointError> {
    let places = places(names).map_err(|(first, second)| JointError::NamedTwice {
        joint: quoted(names[first].as_ref()),
        first,
        second,
    })?;
    let order: Vec<usize> =
        configured.iter().filter_map(|joint| places.get(joint.as_str()).copied()).collect();
    if order.len() == configured.len() {
        return Ok(order);
    }
    let missing: Vec<&String> =
        configured.iter().filter(|joint| !places.contains_key(joint.as_str())).collect();
    let named: Vec<String> = missing.iter().take(NAMED_IN_ERROR).map(|joint| quoted(joint)).collect();
    let mut joints = named.join(", ");
    if missing.len() > NAMED_IN_ERROR {
        joints += &format!(" and {} more", missing.len() - NAMED_IN_ERROR);
    }
    Err(JointError::Missing { joints, found: names.len() })
}

/// The place of every name, or the first two places that hold the same one.
fn places<S: AsRef<str>>(names: &[S]) -> Result<HashMap<&str, usize>, (usize, usize)> {
    let mut places = HashMap::with_capacity(names.len());
    for (second, name) in names.iter().enumerate() {
        if let Some(first) = places.insert(name.as_ref(), second) {
            return Err((first, second));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(names: &[&str]) -> JointMap {
        JointMap::new(names.iter().map(|n| n.to_string()).collect()).unwrap()
    }

    #[test]
    fn configured_names_must_be_there_and_unique() {
        assert_eq!(JointMap::new(vec![]).unwrap_err(), JointError::NoneConfigured);
        let error = |names: &[&str]| {
            JointMap::new(names.iter().map(|n| n.to_string()).collect()).unwrap_err().to_string()
        };
        assert!(error(&["a", ""]).contains("entry 1 is empty"));
        assert!(error(&["a", "b", "a"]).contains("\"a\" stands at entries 0 and 2"));
    }

    #[test]
    fn every_fault_names_its_joint() {
        let mut map = map(&["waist", "elbow"]);
        let error = |map: &mut JointMap, names: &[&str], positions: &[f64]| {
            map.positions(names, positions).unwrap_err().to_string()
        };
        assert!(error(&mut map, &["waist", "wrist"], &[0.0, 0.0]).contains("lacks \"elbow\""));
        assert!(error(&mut map, &[], &[]).contains("lacks \"waist\", \"elbow\""));
        assert!(error(&mut map, &["waist", "elbow", "waist"], &[0.0; 3]).contains("\"waist\" twice"));
        assert!(error(&mut map, &["waist", "x", "elbow", "x"], &[0.0; 4]).contains("\"x\" twice"));
        assert!(error(&mut map, &["waist", "elbow"], &[0.0]).contains("2 names but 1 positions"));
        assert!(error(&mut map, &["waist", "elbow"], &[]).contains("2 names but 0 positions"));
        assert!(error(&mut map, &["waist", "elbow"], &[0.0, f64::NAN]).contains("\"elbow\" is NaN"));
        assert!(
            error(&mut map, &["elbow", "waist"], &[f64::NEG_INFINITY, 0.0]).contains("\"elbow\" is -inf")
        );
    }

    #[test]
    fn a_long_list_of_missing_joints_is_counted() {
        let names: Vec<String> = (0..14).map(|i| format!("joint{i}")).collect();
        let error = JointMap::new(names).unwrap().positions(&["other"], &[0.0]).unwrap_err().to_string();
        assert!(error.contains("\"joint4\" and 9 more"), "{error}");
    }

    #[test]
    fn a_hostile_name_cannot_fill_the_log() {
        let hostile = "\n\u{1b}[31m".repeat(1000);
        let error = map(&["a"]).positions(&[&hostile, &hostile], &[0.0; 2]).unwrap_err().to_string();
        assert!(error.len() < 200 && !error.chars().any(char::is_control), "{error}");
    }

    #[test]
    fn a_value_that_nobody_uses_may_be_nan() {
        assert_eq!(map(&["a"]).positions(&["b", "a"], &[f64::NAN, 1.5]), Ok(vec![1.5]));
    }

    #[test]
    fn a_message_in_another_order_is_not_read_with_the_old_one() {
        let mut map = map(&["a", "b"]);
        for _ in 0..2 {
            assert_eq!(map.positions(&["a", "b"], &[1.0, 2.0]), Ok(vec![1.0, 2.0]));
            assert_eq!(map.positions(&["b", "a"], &[2.0, 1.0]), Ok(vec![1.0, 2.0]));
            assert_eq!(map.positions(&["b", "x", "a"], &[2.0, 9.0, 1.0]), Ok(vec![1.0, 2.0]));
            assert!(map.positions(&["b", "c"], &[2.0, 1.0]).is_err());
        }
    }

    proptest! {
        /// Whatever the order and however many joints stand between, each value follows its name.
        #[test]
        fn values_follow_their_names(
            joints in proptest::collection::hash_map("[a-z]{1,8}", -10.0..10.0f64, 1..20),
            extra in proptest::collection::hash_map("[A-Z]{1,8}", -10.0..10.0f64, 0..5),
            order in any::<proptest::sample::Index>(),
        ) {
            let configured: Vec<String> = joints.keys().cloned().collect();
            let mut message: Vec<(String, f64)> = joints.clone().into_iter().chain(extra).collect();
            let turn = order.index(message.len());
            message.sort_by(|a, b| a.1.total_cmp(&b.1));
            message.rotate_left(turn);
            let (names, positions): (Vec<String>, Vec<f64>) = message.into_iter().unzip();
            let mut map = JointMap::new(configured.clone()).unwrap();
            let expected: Vec<f64> = configured.iter().map(|name| joints[name]).collect();
            prop_assert_eq!(map.positions(&names, &positions), Ok(expected.clone()));
            prop_assert_eq!(map.positions(&names, &positions), Ok(expected));
        }
    }
}
