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
