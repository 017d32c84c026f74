//! From names and raw values to a [`Config`]: the file over its robot's built-in file over the table.
//!
//! Promises: every value in the result was checked against the table, and the values fit together; an engine that this
//! build does not have is refused.

use std::collections::{BTreeMap, HashSet};
use std::env;
use std::path::Path;

use super::choices::*;
use super::error::{ConfigError, LISTED_MAX, Violation, shortened};
use super::home::from_home;
use super::parameters::{
    CAMERAS_MAX, DefaultValue, JOINTS_MAX, Kind, Parameter, ROS_OWN, Range, SLOT, TABLE, Value, camera_slot,
    find, nearest,
};
use super::ros_file::{self, Raw};
use super::urdf;
use super::{Camera, Config, Control, Joints, Observe, Policy, Recorder, Replay, Rtc, Sampler, builtin_yaml};
use crate::control::limits::{LIMIT_MAX, LIMIT_MIN};
use crate::engine::backend::BackendError;
use crate::model::sampler::rtc::PrefixSchedule;
use crate::model::sampler::{Schedule, Solver};

/// Naming one of these means another robot than the built-in one: none of the lists is taken from there.
const NAMES_THE_ROBOT: [&str; 2] = ["joints.names", "joints.action_names"];
/// Which actions are velocities: taken for positions, they would move the arm anywhere.
const VELOCITIES: &str = "joints.velocity_controlled";
/// The lists that have one entry per action.
const PER_ACTION: [&str; 6] = [
    VELOCITIES,
    "joints.position_min",
    "joints.position_max",
    "joints.velocity_max",
    "joints.acceleration_max",
    "joints.jerk_max",
];

/// Seconds in which a joint without `acceleration_max` stops from full speed: what the shipped robots' limits amount to.
const FULL_STOP_S: f64 = 0.2;

/// A checked and complete configuration, from the text of a file.
pub(super) fn config(text: &str, origin: &str) -> Result<Config, ConfigError> {
    resolve(ros_file::parse(text, origin)?, origin).map(|(config, _)| config)
}

/// A checked and complete configuration, and the value of every parameter in it by name.
pub(super) fn resolve(
    parameters: Vec<(String, Raw)>,
    origin: &str,
) -> Result<(Config, BTreeMap<String, Value>), ConfigError> {
    let file = checked(parameters, origin)?;
    let robot = match file.get("robot").or(table_default("robot").as_ref()) {
        Some(Value::String(name)) => RobotKind::from_name(name).unwrap_or(RobotKind::Aloha),
        _ => RobotKind::Aloha,
    };
    let builtin_origin = format!("config/{}.yaml", robot.name());
    let mut builtin = checked(ros_file::parse(builtin_yaml(robot), &builtin_origin)?, &builtin_origin)?;
    let mut forgets_velocities = false;
    if robot == RobotKind::Generic || NAMES_THE_ROBOT.iter().any(|name| file.get(name).is_some()) {
        let has_some = matches!(builtin.get(VELOCITIES), Some(Value::BoolArray(are)) if are.contains(&true));
        forgets_velocities = has_some && file.get(VELOCITIES).is_none();
        builtin.remove(|name| NAMES_THE_ROBOT.contains(&name) || PER_ACTION.contains(&name));
    }
    if robot == RobotKind::Generic || file.names().any(|name| camera_slot(name).is_some()) {
        builtin.remove(|name| camera_slot(name).is_some());
    }
    let mut layers = Layers { origin, file, builtin, violations: Vec::new() };
    let config = layers.config();
    layers.check_engine(&config);
    layers.check_command(&config);
    if forgets_velocities {
        let expected = format!("which actions of this {} are velocities", robot.name());
        let advice = "give one true or false per action: other joints than the built-in ones are named";
        layers.refuse(VELOCITIES, expected, "nothing".to_owned(), advice);
    }
    if layers.violations.is_empty() {
        Ok((config, layers.values()))
    } else {
        Err(ConfigError::Invalid(layers.violations))
    }
}

/// Values by name, each checked against the table on its own.
#[derive(Default)]
struct Values {
    by_name: BTreeMap<String, Value>,
    /// Camera slots in the order of the file.
    slots: Vec<String>,
}

impl Values {
    fn get(&self, name: &str) -> Option<&Value> {
        self.by_name.get(name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    fn remove(&mut self, gone: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| !gone(name));
        if self.names().all(|name| camera_slot(name).is_none()) {
            self.slots.clear();
        }
    }
}

/// Refuses unknown names, wrong types and values out of range; all of them at once.
fn checked(parameters: Vec<(String, Raw)>, origin: &str) -> Result<Values, ConfigError> {
    let mut values = Values::default();
    let mut violations = Vec::new();
    for (name, raw) in parameters {
        if violations.len() > LISTED_MAX {
            break; // nobody reads more, and each costs a search
        }
        if ROS_OWN.iter().any(|own| name.starts_with(own)) {
            continue;
        }
        let violation = |expected: String, advice: String| Violation {
            origin: origin.to_owned(),
            parameter: shortened(&name),
            expected,
            found: raw.to_string(),
            advice,
        };
        let Some(parameter) = find(&name) else {
            let advice = format!("the nearest known one is {}", shortened(&nearest(&name)));
            violations.push(Violation {
                found: "an unknown name".to_owned(),
                ..violation("a known parameter".to_owned(), advice)
            });
            continue;
        };
        match value(parameter, &raw) {
            Some(value) => {
                if let Some((slot, _)) = camera_slot(&name)
                    && !values.slots.iter().any(|known| known == slot)
                {
                    values.slots.push(slot.to_owned());
                }
                values.by_name.insert(name, value);
            }
            None => violations.push(violation(parameter.expected(), advice(parameter, &raw))),
        }
    }
    if violations.is_empty() { Ok(values) } else { Err(ConfigError::Invalid(violations)) }
}

/// The raw value as the parameter's type, if it is one and in range. Whole numbers are taken where numbers are meant.
fn value(parameter: &Parameter, raw: &Raw) -> Option<Value> {
    fn list<T>(items: &[Raw], one: impl Fn(&Raw) -> Option<T>) -> Option<Vec<T>> {
        items.iter().map(one).collect()
    }
    fn boolean(raw: &Raw) -> Option<bool> {
        if let Raw::Bool(v) = raw { Some(*v) } else { None }
    }
    fn double(raw: &Raw) -> Option<f64> {
        match raw {
            Raw::Double(v) => Some(*v),
            Raw::Integer(v) => Some(*v as f64),
            _ => None,
        }
    }
    fn text(raw: &Raw) -> Option<String> {
        if let Raw::Text(v) = raw { Some(v.clone()) } else { None }
    }
    let value = match (parameter.kind, raw) {
        (Kind::Bool, raw) => Value::Bool(boolean(raw)?),
        (Kind::Integer, Raw::Integer(v)) => Value::Integer(*v),
        (Kind::Double, raw) => Value::Double(double(raw)?),
        // `adapt_to_pi: true` without quotes is meant as the word.
        (Kind::String, Raw::Bool(v))
            if parameter.check(&Value::String(v.to_string())) && is_choice(parameter) =>
        {
            Value::String(v.to_string())
        }
        (Kind::String, raw) => Value::String(text(raw)?),
        (Kind::BoolArray, Raw::List(items)) => Value::BoolArray(list(items, boolean)?),
        (Kind::DoubleArray, Raw::List(items)) => Value::DoubleArray(list(items, double)?),
        (Kind::StringArray, Raw::List(items)) => Value::StringArray(list(items, text)?),
        _ => return None,
    };
    parameter.check(&value).then_some(value)
}

fn is_choice(parameter: &Parameter) -> bool {
    matches!(parameter.range, Range::OneOf(_))
}

/// What to do about a value that is not taken.
fn advice(parameter: &Parameter, raw: &Raw) -> String {
    let wants_list = matches!(parameter.kind, Kind::BoolArray | Kind::DoubleArray | Kind::StringArray);
    let wrong_entry = |item: &Raw| value(parameter, &Raw::List(vec![item.clone()])).is_none();
    match raw {
        Raw::List(items) if wants_list => match items.iter().position(wrong_entry) {
            Some(index) => format!("correct entry {index}, which is {}", items[index]),
            None => "correct it or leave it out".to_owned(),
        },
        Raw::List(_) => "give one value".to_owned(),
        _ if wants_list => "write it as [a, b, …]".to_owned(),
        Raw::Bool(_) | Raw::Integer(_) | Raw::Double(_) if parameter.kind == Kind::String => {
            "put it in quotes".to_owned()
        }
        Raw::Text(text) if parameter.range == Range::Backend => match text.parse::<Backend>() {
            Err(reason @ (BackendError::Twice(_) | BackendError::Without(_))) => reason.to_string(),
            _ => "correct it or leave it out".to_owned(),
        },
        _ => "correct it or leave it out".to_owned(),
    }
}

/// The table's default, if it has one.
fn table_default(name: &str) -> Option<Value> {
    let parameter = find(name)?;
    match (parameter.default, parameter.kind) {
        (DefaultValue::Bool(v), _) => Some(Value::Bool(v)),
        (DefaultValue::Integer(v), _) => Some(Value::Integer(v)),
        (DefaultValue::Double(v), _) => Some(Value::Double(v)),
        (DefaultValue::Text(v), _) => Some(Value::String(v.to_owned())),
        (DefaultValue::Empty, Kind::BoolArray) => Some(Value::BoolArray(Vec::new())),
        (DefaultValue::Empty, Kind::DoubleArray) => Some(Value::DoubleArray(Vec::new())),
        (DefaultValue::Empty, _) => Some(Value::StringArray(Vec::new())),
        (DefaultValue::Robot, _) => None,
    }
}

/// The three layers, and what was found wrong while reading them. A missing value is a violation and reads as empty.
struct Layers<'a> {
    origin: &'a str,
    file: Values,
    builtin: Values,
    violations: Vec<Violation>,
}

/// Declares a getter of one type.
macro_rules! getter {
    ($name:ident, $variant:ident, $type:ty) => {
        fn $name(&mut self, name: &str) -> $type {
            match self.layered(name) {
                Some(Value::$variant(value)) => value,
                _ => {
                    self.missing(name);
                    <$type>::default()
                }
            }
        }
    };
}

impl Layers<'_> {
    getter!(boolean, Bool, bool);
    getter!(integer, Integer, i64);
    getter!(double, Double, f64);
    getter!(text, String, String);
    getter!(booleans, BoolArray, Vec<bool>);
    getter!(doubles, DoubleArray, Vec<f64>);
    getter!(texts, StringArray, Vec<String>);

    /// A text that may be a path.
    fn path(&mut self, name: &str) -> String {
        from_home(self.text(name), env::home_dir())
    }

    fn config(&mut self) -> Config {
        let joints = self.joints();
        Config {
            checkpoint: self.path("checkpoint"),
            backend: self.choice("backend", |text| text.parse().ok(), Backend::Auto),
            dtype: self.choice("dtype", DtypeChoice::from_name, DtypeChoice::Auto),
            recipe: self.path("recipe"),
            robot: self.choice("robot", RobotKind::from_name, RobotKind::Aloha),
            prompt: self.text("prompt"),
            prompt_topic: self.text("prompt_topic"),
            autostart: self.boolean("autostart"),
            use_sim_time: self.boolean("use_sim_time"),
            cameras: self.cameras(),
            observe: Observe { max_skew_ms: self.integer("observe.max_skew_ms") },
            policy: self.policy(joints.action_names.len()),
            joints,
            control: Control {
                policy_rate_hz: self.double("control.policy_rate_hz"),
                rate_hz: self.double("control.rate_hz"),
                execution: self.choice("control.execution", Execution::from_name, Execution::Latest),
                blend_steps: self.count("control.blend_steps"),
                ensemble_decay: self.double("control.ensemble_decay"),
                open_loop_steps: self.count("control.open_loop_steps"),
                first_step_max: self.double("control.first_step_max"),
                command: self.choice(
                    "control.command",
                    CommandType::from_name,
                    CommandType::Float64MultiArray,
                ),
                command_topic: self.text("control.command_topic"),
                priority: u8::try_from(self.integer("control.priority")).ok().filter(|&p| p > 0),
                lock_memory: self.boolean("control.lock_memory"),
                cpu: usize::try_from(self.integer("control.cpu")).ok(),
            },
            recorder: Recorder {
                seconds: Some(self.double("recorder.seconds")).filter(|&seconds| seconds > 0.0),
                folder: Some(self.path("recorder.folder")).filter(|folder| !folder.is_empty()),
            },
            rtc: Rtc {
                schedule: self.choice("rtc.schedule", PrefixSchedule::from_name, PrefixSchedule::Linear),
                execution_horizon: self.count("rtc.execution_horizon"),
                max_guidance_weight: self.double("rtc.max_guidance_weight"),
            },
            sampler: Sampler {
                steps: Some(self.count("sampler.steps")).filter(|&steps| steps > 0),
                schedule: self.choice("sampler.schedule", Schedule::from_name, Schedule::Linear),
                solver: self.choice("sampler.solver", Solver::from_name, Solver::Euler),
                seed: u64::try_from(self.integer("sampler.seed")).ok(),
            },
            replay: Replay { latency_ms: self.integer("replay.latency_ms") },
        }
    }

    fn cameras(&mut self) -> Vec<Camera> {
        let layer = if self.file.slots.is_empty() { &self.builtin } else { &self.file };
        let slots = layer.slots.clone();
        let mut cameras = Vec::new();
        for slot in slots {
            let camera = Camera {
                topic: self.text(&format!("cameras.{slot}.topic")),
                max_age_ms: self.integer(&format!("cameras.{slot}.max_age_ms")),
                slot,
            };
            if !camera.topic.is_empty() {
                cameras.push(camera);
            }
        }
        if !(1..=CAMERAS_MAX).contains(&cameras.len()) {
            let found = format!("{} cameras", cameras.len());
            let expected = format!("1 to {CAMERAS_MAX} cameras with a topic");
            self.refuse("cameras", expected, found, "give cameras.<slot>.topic for each camera of the robot");
        }
        cameras
    }

    fn joints(&mut self) -> Joints {
        let names = self.texts("joints.names");
        self.check_names("joints.names", &names);
        let mut action_names = self.texts("joints.action_names");
        if action_names.is_empty() {
            action_names.clone_from(&names);
        } else {
            self.check_names("joints.action_names", &action_names);
        }
        let actions = action_names.len();
        let mut velocity_controlled = self.booleans("joints.velocity_controlled");
        if velocity_controlled.is_empty() {
            velocity_controlled = vec![false; actions];
        }
        let velocity_max = self.doubles("joints.velocity_max");
        let mut acceleration_max = self.doubles("joints.acceleration_max");
        let accelerations = if acceleration_max.is_empty() { actions } else { acceleration_max.len() };
        if acceleration_max.is_empty() {
            acceleration_max = velocity_max.iter().map(|v| (v / FULL_STOP_S).min(LIMIT_MAX)).collect();
        }
        let mut jerk_max = self.doubles("joints.jerk_max");
        let jerks = if jerk_max.is_empty() { actions } else { jerk_max.len() };
        if jerk_max.is_empty() {
            jerk_max = vec![f64::INFINITY; actions];
        }
        let mut joints = Joints {
            topic: self.text("joints.topic"),
            max_age_ms: self.integer("joints.max_age_ms"),
            fault_after_ms: self.integer("joints.fault_after_ms"),
            position_min: self.doubles("joints.position_min"),
            position_max: self.doubles("joints.position_max"),
            velocity_max,
            acceleration_max,
            jerk_max,
            names,
            action_names,
            velocity_controlled,
        };
        let lengths = [
            joints.velocity_controlled.len(),
            joints.position_min.len(),
            joints.position_max.len(),
            joints.velocity_max.len(),
            accelerations,
            jerks,
        ];
        for (name, length) in PER_ACTION.into_iter().zip(lengths) {
            self.check_length(name, actions, length);
        }
        let lengths_fit = lengths.iter().all(|&length| length == actions);
        let limits_fit = self.check_position_limits(&joints);
        let urdf = self.path("joints.urdf");
        if lengths_fit && limits_fit && !urdf.is_empty() {
            self.tighten(&mut joints, &urdf);
        }
        joints
    }

    /// Of the limits of the parameters and those of the URDF the tighter ones hold.
    fn tighten(&mut self, joints: &mut Joints, path: &str) {
        let expected = || "the path of a URDF with limits of the joints above 0".to_owned();
        let limits = match urdf::read(Path::new(path)) {
            Ok(limits) => limits,
            Err(found) => {
                return self.refuse(
                    "joints.urdf",
                    expected(),
                    format!("{}: {found}", shortened(path)),
                    "correct it",
                );
            }
        };
        if !joints.action_names.iter().any(|name| limits.contains_key(name)) {
            let found = format!("{}, which has none of joints.action_names", shortened(path));
            return self.refuse("joints.urdf", expected(), found, "give the URDF of this robot, or none");
        }
        let mut wrong = None;
        for (joint, name) in joints.action_names.iter().enumerate() {
            let Some(limit) = limits.get(name) else { continue };
            let rates = [
                ("velocity", limit.velocity, &mut joints.velocity_max[joint]),
                ("acceleration", limit.acceleration, &mut joints.acceleration_max[joint]),
                ("jerk", limit.jerk, &mut joints.jerk_max[joint]),
            ];
            for (what, found, held) in rates {
                match found {
                    Some(found) if found < LIMIT_MIN => {
                        wrong = Some(format!("{what} {found} of joint {}", shortened(name)))
                    }
                    Some(found) => *held = held.min(found),
                    None => {}
                }
            }
            if !joints.velocity_controlled[joint] {
                let (min, max) = (&mut joints.position_min[joint], &mut joints.position_max[joint]);
                let (lowest, highest) = (*min, *max);
                *min = limit.lower.map_or(lowest, |lower| lowest.max(lower));
                *max = limit.upper.map_or(highest, |upper| highest.min(upper));
                if *min >= *max {
                    let [lower, upper] = [limit.lower, limit.upper]
                        .map(|limit| limit.map_or("none".to_owned(), |limit| limit.to_string()));
                    wrong = Some(format!(
                        "lower limit {lower} and upper limit {upper} of joint {}, which leave nothing of its \
                         position_min {lowest} to position_max {highest}",
                        shortened(name)
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.refuse("joints.urdf", expected(), wrong, "correct it");
        }
    }

    fn check_names(&mut self, parameter: &str, names: &[String]) {
        let mut seen = HashSet::new();
        if let Some(twice) = names.iter().find(|name| !seen.insert(*name)) {
            let found = format!("\"{}\" twice", shortened(twice));
            self.refuse(parameter, "names that are all different".to_owned(), found, "rename or remove one");
        }
        // An empty list of a missing parameter has been refused already.
        if names.len() > JOINTS_MAX || (names.is_empty() && self.layered(parameter).is_some()) {
            let expected = format!("1 to {JOINTS_MAX} names");
            self.refuse(parameter, expected, format!("{} names", names.len()), "name the robot's joints");
        }
    }

    /// Only a list that the file (or the robot) gives can have a wrong length; a missing one has been refused already.
    fn check_length(&mut self, parameter: &str, expected: usize, found: usize) {
        if found != expected && self.layered(parameter).is_some() {
            let expected = format!("a list of {expected}, one per action");
            let advice = "give one for each of joints.action_names (or joints.names)";
            self.refuse(parameter, expected, format!("a list of {found}"), advice);
        }
    }

    /// Whether they fit.
    fn check_position_limits(&mut self, joints: &Joints) -> bool {
        let limits = joints.position_min.iter().zip(&joints.position_max).zip(&joints.action_names);
        let wrong = limits.clone().find(|((min, max), _)| min >= max);
        if let Some(((min, max), name)) = wrong {
            let found = format!("{min} for {}, whose position_max is {max}", shortened(name));
            let expected = "less than joints.position_max".to_owned();
            self.refuse("joints.position_min", expected, found, "correct the one or the other");
        }
        wrong.is_none()
    }

    fn policy(&mut self, actions: usize) -> Policy {
        let delta_mask = Some(self.booleans("policy.delta_mask")).filter(|mask| !mask.is_empty());
        if let Some(mask) = &delta_mask {
            self.check_length("policy.delta_mask", actions, mask.len());
        }
        Policy {
            resize: self.choice("policy.resize", ResizeChoice::from_name, ResizeChoice::Auto),
            prompt_format: self.choice(
                "policy.prompt_format",
                PromptFormatChoice::from_name,
                PromptFormatChoice::Auto,
            ),
            adapt_to_pi: self.choice("policy.adapt_to_pi", AutoBool::from_name, AutoBool::Auto),
            delta_mask,
            normalization: self.choice(
                "policy.normalization",
                NormalizationChoice::from_name,
                NormalizationChoice::Auto,
            ),
            tokenizer: Some(self.path("policy.tokenizer")).filter(|path| !path.is_empty()),
            asset_id: Some(self.text("policy.asset_id")).filter(|id| !id.is_empty()),
        }
    }

    /// Refuses trajectories of what is no position.
    fn check_command(&mut self, config: &Config) {
        let Config { control, joints, .. } = config;
        let velocity = joints.velocity_controlled.iter().position(|&velocity| velocity);
        if let (CommandType::JointTrajectory, Some(joint)) = (control.command, velocity) {
            let expected = "float64_multi_array or joint_state with velocity-controlled actions".to_owned();
            let name =
                joints.action_names.get(joint).map_or_else(|| joint.to_string(), |name| shortened(name));
            let found =
                format!("\"joint_trajectory\", whose points are positions, and action {name}, a velocity");
            self.refuse("control.command", expected, found, "correct it or joints.velocity_controlled");
        }
    }

    /// Refuses engines that this build does not have, and number formats that they do not compute in.
    fn check_engine(&mut self, config: &Config) {
        let Backend::TensorRt(_) = config.backend else { return };
        if cfg!(not(feature = "tensorrt")) {
            let (runs, found) = ("auto or cpu or cuda", format!("\"{}\"", config.backend));
            let advice = format!("TensorRT is in builds with --features tensorrt, this one runs only {runs}");
            self.refuse("backend", runs.to_owned(), found, &advice);
        } else if config.dtype == DtypeChoice::F32 {
            let (expected, advice) = ("auto, bf16 or fp8", "TensorRT's engines compute in no other");
            self.refuse("dtype", expected.to_owned(), "\"f32\"".to_owned(), advice);
        }
    }

    /// Every parameter's value; those of cameras by slot.
    fn values(&self) -> BTreeMap<String, Value> {
        let slots = if self.file.slots.is_empty() { &self.builtin.slots } else { &self.file.slots };
        let names = TABLE.iter().flat_map(|parameter| match parameter.name.contains(SLOT) {
            true => slots.iter().map(|slot| parameter.name.replace(SLOT, slot)).collect(),
            false => vec![parameter.name.to_owned()],
        });
        names.filter_map(|name| self.layered(&name).map(|value| (name, value))).collect()
    }

    /// From the file, else from the robot's built-in file, else from the table.
    fn layered(&self, name: &str) -> Option<Value> {
        self.file.get(name).or(self.builtin.get(name)).cloned().or_else(|| table_default(name))
    }

    /// The table's range lets through the words of the enum only, so that `otherwise` is not reached.
    fn choice<T>(&mut self, name: &str, from_name: fn(&str) -> Option<T>, otherwise: T) -> T {
        from_name(&self.text(name)).unwrap_or(otherwise)
    }

    /// A whole number whose range in the table begins at 0 or above.
    fn count(&mut self, name: &str) -> usize {
        usize::try_from(self.integer(name)).unwrap_or_default()
    }

    fn missing(&mut self, name: &str) {
        let expected = find(name).map_or_else(String::new, Parameter::expected);
        self.refuse(name, expected, "nothing".to_owned(), "it names the robot and has no default: give it");
    }

    fn refuse(&mut self, parameter: &str, expected: String, found: String, advice: &str) {
        self.violations.push(Violation {
            origin: self.origin.to_owned(),
            parameter: shortened(parameter),
            expected,
            found,
            advice: advice.to_owned(),
        });
    }
}
