//! The running node's parameters: what ROS 2's parameter services read and set, without ROS.
//!
//! Promises: there is always one whole checked [`Config`]; a change that is refused changes nothing and is answered in
//! one line; every change is checked as a parameter file is, by building the whole configuration anew.

use std::collections::{BTreeMap, BTreeSet};

use super::error::shortened;
use super::parameters::{Change, Kind, Parameter, ROS_OWN, Range, Value, find, nearest};
use super::ros_file::Raw;
use super::{Config, ConfigError, layers};

/// A value as ROS 2 gives it: of any of its types.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    /// No value: a wish to undeclare.
    NotSet,
    /// Of a type that our parameters have.
    Value(Value),
    /// `PARAMETER_INTEGER_ARRAY`.
    IntegerArray(Vec<i64>),
    /// `PARAMETER_BYTE_ARRAY`.
    ByteArray(Vec<u8>),
}

/// What `describe_parameters` tells of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Descriptor {
    /// Its type.
    pub kind: Kind,
    /// Its documentation, with the unit.
    pub description: String,
    /// What the ranges below cannot say.
    pub additional_constraints: String,
    /// It cannot be set now.
    pub read_only: bool,
    /// From and to, both included.
    pub floating_point_range: Option<(f64, f64)>,
    /// From and to, both included.
    pub integer_range: Option<(i64, i64)>,
}

/// Every parameter with its value.
#[derive(Clone, Debug)]
pub struct Parameters {
    origin: String,
    /// What was given, by name; the rest comes from the robot's built-in file and the table.
    given: BTreeMap<String, Raw>,
    /// Slots keep the order in which they were given.
    order: Vec<String>,
    values: BTreeMap<String, Value>,
    config: Config,
}

/// Names of one level are joined by this.
const SEPARATOR: char = '.';

impl Parameters {
    /// From the names and values that the node was started with. `origin` stands in messages.
    ///
    /// As in a parameter file, a whole number is taken where a number is meant.
    pub fn new(given: Vec<(String, Given)>, origin: &str) -> Result<Self, ConfigError> {
        let given = given.into_iter().filter_map(|(name, given)| raw(given).map(|raw| (name, raw)));
        let (mut by_name, mut order) = (BTreeMap::new(), Vec::new());
        for (name, raw) in given {
            if by_name.insert(name.clone(), raw).is_none() {
                order.push(name);
            }
        }
        let (config, values) = resolve(&order, &by_name, origin)?;
        Ok(Self { origin: origin.to_owned(), given: by_name, order, values, config })
    }

    /// The configuration that they make.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Names and prefixes below any of `prefixes` (all, if there are none), at most `depth` levels deep (0: all), as
    /// `rcl_interfaces/srv/ListParameters` means it.
    pub fn names(&self, prefixes: &[String], depth: u64) -> (Vec<String>, Vec<String>) {
        let levels = |name: &str| name.matches(SEPARATOR).count() as u64;
        let below = |name: &str, prefix: &str| {
            let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(SEPARATOR));
            name == prefix || rest.is_some_and(|rest| depth == 0 || levels(rest) < depth)
        };
        let wanted = |name: &&String| match prefixes {
            [] => depth == 0 || levels(name) < depth,
            prefixes => prefixes.iter().any(|prefix| below(name, prefix)),
        };
        let names: Vec<String> = self.values.keys().filter(wanted).cloned().collect();
        let above =
            names.iter().filter_map(|name| name.rsplit_once(SEPARATOR).map(|(prefix, _)| prefix.to_owned()));
        let prefixes: BTreeSet<String> = above.collect();
        (names, prefixes.into_iter().collect())
    }

    /// The value of a parameter, whether given or not; `None` if there is no such parameter.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// What is to be known of a parameter. `configured`: structural ones cannot be set.
    pub fn describe(&self, name: &str, configured: bool) -> Option<Descriptor> {
        self.values.get(name)?;
        let parameter = find(name)?;
        let additional_constraints = match parameter.range {
            Range::Integer(..) | Range::Double(..) | Range::Any => String::new(),
            _ => parameter.expected(),
        };
        let is_list = matches!(parameter.kind, Kind::BoolArray | Kind::DoubleArray | Kind::StringArray);
        let floating_point_range = match parameter.range {
            Range::Double(from, to) | Range::Above(from, to) => Some((from, to)),
            _ => None,
        };
        let integer_range = match parameter.range {
            Range::Integer(from, to) => Some((from, to)),
            _ => None,
        };
        Some(Descriptor {
            kind: parameter.kind,
            description: match parameter.unit {
                "" => parameter.doc.to_owned(),
                unit => format!("{} [{unit}]", parameter.doc),
            },
            additional_constraints: match is_list && floating_point_range.is_some() {
                true => parameter.expected(),
                false => additional_constraints,
            },
            read_only: is_read_only(parameter, configured),
            floating_point_range: floating_point_range.filter(|_| !is_list),
            integer_range,
        })
    }

    /// Sets all of these or none. Gives the names whose values are others now, or why nothing was set.
    pub fn set(&mut self, changes: &[(String, Given)], configured: bool) -> Result<Vec<String>, String> {
        let (mut given, mut order) = (self.given.clone(), self.order.clone());
        for (name, value) in changes {
            if ROS_OWN.iter().any(|own| name.starts_with(own)) {
                continue;
            }
            let raw = check(name, value, configured)?;
            if given.insert(name.clone(), raw).is_none() {
                order.push(name.clone());
            }
        }
        let (config, values) = resolve(&order, &given, &self.origin).map_err(|error| one_line(&error))?;
        let changed = values.iter().filter(|(name, value)| self.values.get(*name) != Some(value));
        let changed = changed.map(|(name, _)| name.clone()).collect();
        (self.given, self.order, self.values, self.config) = (given, order, values, config);
        Ok(changed)
    }
}

fn resolve(
    order: &[String],
    given: &BTreeMap<String, Raw>,
    origin: &str,
) -> Result<(Config, BTreeMap<String, Value>), ConfigError> {
    let named = order.iter().filter_map(|name| Some((name.clone(), given.get(name)?.clone())));
    layers::resolve(named.collect(), origin)
}

/// One wish by itself: the name, the type (as strictly as rclcpp), the range, and whether it may change now.
fn check(name: &str, given: &Given, configured: bool) -> Result<Raw, String> {
    let short = shortened(name);
    let Some(parameter) = find(name) else {
        return Err(format!("{short}: expected a known parameter; the nearest one is {}", nearest(&short)));
    };
    let expected = parameter.expected();
    let found = match given {
        Given::Value(value) if parameter.check(value) && is_read_only(parameter, configured) => {
            return Err(format!("{short}: read-only while the node is configured; clean it up first"));
        }
        Given::Value(value) if parameter.check(value) => return Ok(raw_value(value)),
        Given::NotSet => {
            return Err(format!("{short}: expected {expected}, found nothing; it cannot be undeclared"));
        }
        Given::Value(Value::Integer(v)) if parameter.kind == Kind::Double => {
            return Err(format!("{short}: expected {expected}, found a whole number; write {v}.0"));
        }
        Given::Value(value) => raw_value(value).to_string(),
        Given::IntegerArray(v) => format!("a list of {} whole numbers", v.len()),
        Given::ByteArray(v) => format!("{} bytes", v.len()),
    };
    Err(format!("{short}: expected {expected}, found {found}"))
}

fn is_read_only(parameter: &Parameter, configured: bool) -> bool {
    configured && parameter.change == Change::Structural
}

/// The first problem; the others are there still when it is mended.
fn one_line(error: &ConfigError) -> String {
    match error {
        ConfigError::Invalid(violations) => violations.first().map_or_else(
            || error.to_string(),
            |first| {
                format!(
                    "{}: expected {}, found {}; {}",
                    first.parameter, first.expected, first.found, first.advice
                )
            },
        ),
        other => other.to_string(),
    }
}

fn raw(given: Given) -> Option<Raw> {
    match given {
        Given::NotSet => None,
        Given::Value(value) => Some(raw_value(&value)),
        Given::IntegerArray(v) => Some(Raw::List(v.into_iter().map(Raw::Integer).collect())),
        Given::ByteArray(v) => Some(Raw::List(v.into_iter().map(|byte| Raw::Integer(byte.into())).collect())),
    }
}

fn raw_value(value: &Value) -> Raw {
    match value {
        Value::Bool(v) => Raw::Bool(*v),
        Value::Integer(v) => Raw::Integer(*v),
        Value::Double(v) => Raw::Double(*v),
        Value::String(v) => Raw::Text(v.clone()),
        Value::BoolArray(v) => Raw::List(v.iter().copied().map(Raw::Bool).collect()),
        Value::DoubleArray(v) => Raw::List(v.iter().copied().map(Raw::Double).collect()),
        Value::StringArray(v) => Raw::List(v.iter().cloned().map(Raw::Text).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RobotKind;
    use crate::config::parameters::TABLE;
    use proptest::prelude::*;

    fn aloha() -> Parameters {
        Parameters::new(Vec::new(), "test").unwrap()
    }

    fn text(value: &str) -> Given {
        Given::Value(Value::String(value.to_owned()))
    }

    fn set(
        parameters: &mut Parameters,
        name: &str,
        value: Given,
        configured: bool,
    ) -> Result<Vec<String>, String> {
        parameters.set(&[(name.to_owned(), value)], configured)
    }

    #[test]
    fn without_anything_given_it_is_the_built_in_robot() {
        let parameters = aloha();
        assert_eq!(*parameters.config(), Config::builtin(RobotKind::Aloha).unwrap());
        for parameter in TABLE.iter().filter(|parameter| !parameter.name.contains('<')) {
            let value = parameters.get(parameter.name).unwrap();
            assert!(parameter.check(value), "{}", parameter.name);
        }
        assert_eq!(
            parameters.get("cameras.base_0_rgb.topic"),
            Some(&Value::String("cam_high/image_raw/compressed".to_owned()))
        );
    }

    #[test]
    fn what_is_given_counts_and_what_is_not_known_is_refused() {
        let given = vec![
            ("control.rate_hz".to_owned(), Given::Value(Value::Integer(200))), // as in a file
            ("qos_overrides./clock.depth".to_owned(), Given::Value(Value::Integer(1))),
        ];
        assert_eq!(Parameters::new(given, "test").unwrap().config().control.rate_hz, 200.0);
        let wrong = vec![("control.rate".to_owned(), Given::NotSet), ("promt".to_owned(), text("x"))];
        let error = Parameters::new(wrong, "/policy").unwrap_err().to_string();
        assert_eq!(
            error,
            "/policy: promt: expected a known parameter, found an unknown name; the nearest known one is prompt"
        );
    }

    #[test]
    fn a_change_is_taken_whole_or_not_at_all() {
        let mut parameters = aloha();
        assert_eq!(set(&mut parameters, "prompt", text("fold"), true), Ok(vec!["prompt".to_owned()]));
        assert_eq!(parameters.config().prompt, "fold");
        assert_eq!(set(&mut parameters, "prompt", text("fold"), true), Ok(Vec::new()));
        let changes = [
            ("prompt".to_owned(), text("other")),
            ("observe.max_skew_ms".to_owned(), Given::Value(Value::Integer(0))),
        ];
        assert_eq!(
            parameters.set(&changes, true),
            Err("observe.max_skew_ms: expected a whole number from 1 to 60000 [ms], found 0".to_owned())
        );
        assert_eq!(parameters.config().prompt, "fold");
    }

    #[test]
    fn refusals_say_why_in_one_line() {
        let mut parameters = aloha();
        let mut why =
            |name: &str, value: Given, configured| set(&mut parameters, name, value, configured).unwrap_err();
        assert_eq!(
            why("checkpoint", text("x"), true),
            "checkpoint: read-only while the node is configured; clean it up first"
        );
        assert_eq!(
            why("control.rate_hz", Given::Value(Value::Integer(100)), false),
            "control.rate_hz: expected a number from 1 to 1000 [Hz], found a whole number; write 100.0"
        );
        assert_eq!(
            why("prompt", Given::NotSet, true),
            "prompt: expected a text, found nothing; it cannot be undeclared"
        );
        assert_eq!(
            why("joints.position_min", Given::Value(Value::DoubleArray(vec![0.0])), false),
            "joints.position_min: expected a list of 14, one per action, found a list of 1; give one for each of \
             joints.action_names (or joints.names)"
        );
        assert!(why("sampler.step", Given::Value(Value::Integer(3)), false).contains("sampler.steps"));
    }

    #[test]
    fn descriptors_have_the_tables_ranges() {
        let parameters = aloha();
        let steps = parameters.describe("sampler.steps", true).unwrap();
        assert_eq!((steps.kind, steps.integer_range, steps.read_only), (Kind::Integer, Some((0, 50)), true));
        let rate = parameters.describe("control.rate_hz", false).unwrap();
        assert_eq!((rate.floating_point_range, rate.read_only), (Some((1.0, 1000.0)), false));
        // What a range cannot say is said in words.
        let step = parameters.describe("control.first_step_max", true).unwrap();
        assert_eq!(step.floating_point_range, Some((0.0, crate::control::limits::LIMIT_MAX)));
        assert_eq!(step.additional_constraints, "a number above 0, up to 1000000 [rad or m]");
        assert!(!parameters.describe("prompt", true).unwrap().read_only);
        assert!(
            parameters
                .describe("control.execution", true)
                .unwrap()
                .additional_constraints
                .starts_with("one of latest,")
        );
        assert_eq!(parameters.describe("nothing", true), None);
    }

    #[test]
    fn names_are_listed_by_prefix_and_depth() {
        let parameters = aloha();
        let (all, prefixes) = parameters.names(&[], 0);
        assert_eq!(all.len(), parameters.values.len());
        assert!(prefixes.contains(&"cameras.base_0_rgb".to_owned()));
        let (top, _) = parameters.names(&[], 1);
        assert!(top.contains(&"prompt".to_owned()) && top.iter().all(|name| !name.contains('.')));
        let (control, _) = parameters.names(&["control".to_owned()], 1);
        assert!(control.contains(&"control.rate_hz".to_owned()));
        assert!(control.iter().all(|name| name.starts_with("control.")));
        let (cameras, _) = parameters.names(&["cameras".to_owned()], 1);
        assert!(cameras.is_empty(), "{cameras:?}");
        assert_eq!(parameters.names(&["nothing".to_owned()], 0), (Vec::new(), Vec::new()));
    }

    fn any_given() -> impl Strategy<Value = Given> {
        prop_oneof![
            Just(Given::NotSet),
            any::<bool>().prop_map(|v| Given::Value(Value::Bool(v))),
            any::<i64>().prop_map(|v| Given::Value(Value::Integer(v))),
            any::<f64>().prop_map(|v| Given::Value(Value::Double(v))),
            ".{0,40}".prop_map(|v| Given::Value(Value::String(v))),
            proptest::collection::vec(any::<bool>(), 0..20).prop_map(|v| Given::Value(Value::BoolArray(v))),
            proptest::collection::vec(any::<f64>(), 0..20).prop_map(|v| Given::Value(Value::DoubleArray(v))),
            proptest::collection::vec(".{0,9}", 0..20).prop_map(|v| Given::Value(Value::StringArray(v))),
            proptest::collection::vec(any::<i64>(), 0..20).prop_map(Given::IntegerArray),
            proptest::collection::vec(any::<u8>(), 0..20).prop_map(Given::ByteArray),
        ]
    }

    fn any_name() -> impl Strategy<Value = String> {
        let known = (0..TABLE.len()).prop_map(|row| TABLE[row].name.replace("<slot>", "base_0_rgb"));
        prop_oneof![4 => known, 1 => "[a-z._<>]{0,30}", 1 => ".{0,30}"]
    }

    proptest! {
        /// Whatever is asked for: an answer of one line, and a configuration that is whole and is what is shown.
        #[test]
        fn any_request_leaves_a_whole_configuration(
            changes in proptest::collection::vec((any_name(), any_given()), 0..4),
            configured in any::<bool>(),
            depth in any::<u64>(),
        ) {
            let mut parameters = aloha();
            let before = parameters.clone();
            match parameters.set(&changes, configured) {
                Ok(changed) => {
                    for name in &changed {
                        prop_assert_ne!(before.get(name), parameters.get(name));
                        prop_assert!(!configured || !parameters.describe(name, true).unwrap().read_only);
                    }
                }
                Err(why) => {
                    prop_assert!(!why.contains('\n') && why.len() < 1000, "{}", why);
                    prop_assert_eq!(before.config(), parameters.config());
                    prop_assert_eq!(&before.values, &parameters.values);
                }
            }
            let (names, _) = parameters.names(&[], 0);
            for name in &names {
                let parameter = find(name).unwrap();
                prop_assert!(parameter.check(parameters.get(name).unwrap()));
            }
            let prefixes: Vec<String> = changes.iter().map(|(name, _)| name.clone()).collect();
            let (below, _) = parameters.names(&prefixes, depth);
            prop_assert!(below.iter().all(|name| names.contains(name)));
        }
    }
}
