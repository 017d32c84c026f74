//! The one table of parameters: names, types, defaults, ranges, units, documentation.
//!
//! Promises: whatever is true of a parameter is said here once. Parsing and checking files, the comments in the shipped
//! YAML files, the declarations of the ROS 2 node and the documentation are all made from [`TABLE`].

use super::choices::*;
use crate::model::sampler::rtc::PrefixSchedule;
use crate::model::sampler::{Schedule, Solver};

/// Most joints (state or action values) that a configuration may name. The largest humanoids have some seventy.
pub const JOINTS_MAX: usize = 256;
/// Most cameras. The published checkpoints have up to three.
pub const CAMERAS_MAX: usize = 8;

const LIMIT_MIN: f64 = crate::control::limits::LIMIT_MIN;
const LIMIT_MAX: f64 = crate::control::limits::LIMIT_MAX;

/// One parameter, with everything that is to be said of it.
#[derive(Debug)]
pub struct Parameter {
    /// ROS name, such as `control.rate_hz`. `<slot>` stands for any camera slot.
    pub name: &'static str,
    /// ROS type.
    pub kind: Kind,
    /// Value where a file says nothing.
    pub default: DefaultValue,
    /// What values are permitted; of a list, for each element.
    pub range: Range,
    /// Unit, or empty.
    pub unit: &'static str,
    /// When it may change.
    pub change: Change,
    /// One sentence or two for a person.
    pub doc: &'static str,
}

/// The ROS 2 parameter types in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names of rcl_interfaces/ParameterType
pub enum Kind {
    Bool,
    Integer,
    Double,
    String,
    BoolArray,
    DoubleArray,
    StringArray,
}

/// What a parameter is when a file says nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue {
    /// A yes or no.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Double(f64),
    /// A text.
    Text(&'static str),
    /// An empty list.
    Empty,
    /// It names the robot: there is no default but that of a built-in robot.
    Robot,
}

/// Permitted values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Any value of the type (numbers finite, texts without NUL).
    Any,
    /// Whole numbers, both ends included.
    Integer(i64, i64),
    /// Numbers, both ends included.
    Double(f64, f64),
    /// Numbers above the first, up to and including the second.
    Above(f64, f64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A [`Backend`].
    Backend,
    /// The name of a ROS 2 topic.
    Topic,
    /// A text that is not empty.
    NotEmpty,
}

/// When a parameter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Read when the node is configured; read-only after.
    Structural,
    /// At any time; refused with a reason if it does not fit.
    Live,
}

const fn parameter(
    name: &'static str,
    (kind, default, range): (Kind, DefaultValue, Range),
    unit: &'static str,
    change: Change,
    doc: &'static str,
) -> Parameter {
    Parameter { name, kind, default, range, unit, change, doc }
}

const fn text(default: &'static str) -> (Kind, DefaultValue, Range) {
    (Kind::String, DefaultValue::Text(default), Range::Any)
}

const fn topic(default: DefaultValue) -> (Kind, DefaultValue, Range) {
    (Kind::String, default, Range::Topic)
}

const fn one_of(default: &'static str, names: &'static [&'static str]) -> (Kind, DefaultValue, Range) {
    (Kind::String, DefaultValue::Text(default), Range::OneOf(names))
}

const fn integer(default: i64, min: i64, max: i64) -> (Kind, DefaultValue, Range) {
    (Kind::Integer, DefaultValue::Integer(default), Range::Integer(min, max))
}

const fn number(default: f64, min: f64, max: f64) -> (Kind, DefaultValue, Range) {
    (Kind::Double, DefaultValue::Double(default), Range::Double(min, max))
}

const fn robot_list(kind: Kind, range: Range) -> (Kind, DefaultValue, Range) {
    (kind, DefaultValue::Robot, range)
}

const fn flags() -> (Kind, DefaultValue, Range) {
    (Kind::BoolArray, DefaultValue::Empty, Range::Any)
}

use Change::{Live, Structural};

/// Ages and skews: a minute is no observation any more.
const AGE_MAX_MS: i64 = 60_000;

/// Every parameter, in the order of the shipped files.
#[rustfmt::skip]
pub static TABLE: &[Parameter] = &[
    parameter("checkpoint", text("synth:tiny"), "", Structural,
        "Folder of a checkpoint (openpi's or LeRobot's layout), or a built-in one: synth:tiny, synth:full."),
    parameter("backend", (Kind::String, DefaultValue::Text("auto"), Range::Backend), "", Structural,
        "Engine that computes the model, or each of its stages; auto takes cuda if it can, else cpu."),
    parameter("dtype", one_of("auto", DtypeChoice::NAMES), "", Structural,
        "Number format in the engine; auto is f32 on cpu, bf16 on cuda. fp8 needs `pi05 calibrate` and a Hopper GPU; on the cpu it is emulated."),
    parameter("recipe", text("balanced"), "", Structural,
        "What fp8 rounds: balanced, fast, exact, or the path of a recipe (.yaml)."),
    parameter("robot", one_of("aloha", RobotKind::NAMES), "", Structural,
        "Robot adapter: how state and actions relate to what the model was trained with."),
    parameter("prompt", text(""), "", Live,
        "The task, in plain words; effective from the next chunk."),
    parameter("prompt_topic", topic(DefaultValue::Text("prompt")), "", Structural,
        "Topic (std_msgs/String) on which the task can be changed."),
    parameter("autostart", (Kind::Bool, DefaultValue::Bool(false), Range::Any), "", Structural,
        "Configure and activate by itself, as soon as cameras, joints and the arm's controller are there."),
    parameter("use_sim_time", (Kind::Bool, DefaultValue::Bool(false), Range::Any), "", Structural,
        "Take ROS time from /clock instead of the system clock."),
    parameter("cameras.<slot>.topic", (Kind::String, DefaultValue::Robot, Range::Topic), "", Structural,
        "Image topic of this camera slot, raw or compressed by its type; empty or left out: the slot is masked."),
    parameter("cameras.<slot>.max_age_ms", integer(200, 1, AGE_MAX_MS), "ms", Live,
        "Older images are not used."),
    // Unsynchronised cameras of 10 Hz and more are at most one frame time apart.
    parameter("observe.max_skew_ms", integer(100, 1, AGE_MAX_MS), "ms", Live,
        "Longest time between the oldest and the newest part of one observation."),
    parameter("joints.topic", topic(DefaultValue::Text("joint_states")), "", Structural,
        "Topic (sensor_msgs/JointState) of the measured positions."),
    parameter("joints.max_age_ms", integer(100, 1, AGE_MAX_MS), "ms", Live,
        "Older positions are not used."),
    // Longer than a driver that is started anew takes, shorter than a person who comes to look.
    parameter("joints.fault_after_ms", integer(5000, 1, 3_600_000), "ms", Live,
        "Without positions the arm brakes at once; without them for so long it is a fault, until ~/reset."),
    parameter("joints.names", robot_list(Kind::StringArray, Range::NotEmpty), "", Structural,
        "Joint names in the order of the policy's state."),
    parameter("joints.action_names", (Kind::StringArray, DefaultValue::Empty, Range::NotEmpty), "", Structural,
        "Names in the order of the policy's actions; empty: those of the state."),
    parameter("joints.velocity_controlled", flags(), "", Structural,
        "One per action: a velocity or a displacement per step, 0 at rest instead of held; empty: none is."),
    parameter("joints.position_min", robot_list(Kind::DoubleArray, Range::Double(-LIMIT_MAX, LIMIT_MAX)), "rad or m", Structural,
        "One per action: lowest position; not used for velocity-controlled actions."),
    parameter("joints.position_max", robot_list(Kind::DoubleArray, Range::Double(-LIMIT_MAX, LIMIT_MAX)), "rad or m", Structural,
        "One per action: highest position; not used for velocity-controlled actions."),
    parameter("joints.velocity_max", robot_list(Kind::DoubleArray, Range::Double(LIMIT_MIN, LIMIT_MAX)), "rad/s or m/s", Structural,
        "One per action: highest speed; of a velocity-controlled action, its highest magnitude."),
    parameter("joints.acceleration_max", (Kind::DoubleArray, DefaultValue::Empty, Range::Double(LIMIT_MIN, LIMIT_MAX)), "rad/s² or m/s²", Structural,
        "One per action: highest acceleration, with which motion comes to rest; empty: from full speed within 0.2 s."),
    parameter("joints.jerk_max", (Kind::DoubleArray, DefaultValue::Empty, Range::Double(LIMIT_MIN, LIMIT_MAX)), "rad/s³ or m/s³", Structural,
        "One per action: highest change of the acceleration per second; empty: not limited."),
    parameter("joints.urdf", text(""), "", Structural,
        "Path of the robot's URDF: of its limits and those above the tighter ones hold, by joint name; empty: none."),
    parameter("policy.resize", one_of("auto", ResizeChoice::NAMES), "", Structural,
        "How images are resized; auto as the checkpoint was trained (openpi: pillow, LeRobot: torch)."),
    parameter("policy.prompt_format", one_of("auto", PromptFormatChoice::NAMES), "", Structural,
        "Text around the task: state adds the joint positions, task leaves them out, task_newline is the bare task."),
    parameter("policy.adapt_to_pi", one_of("auto", AutoBool::NAMES), "", Structural,
        "ALOHA: convert joint signs and grippers to those that the base model was trained with."),
    parameter("policy.delta_mask", flags(), "", Structural,
        "One per action: the model gives it relative to the state; empty: as the checkpoint says."),
    parameter("policy.normalization", one_of("auto", NormalizationChoice::NAMES), "", Structural,
        "Which statistics normalise state and actions; auto as the checkpoint says."),
    parameter("policy.tokenizer", text(""), "", Structural,
        "Path of the tokenizer (SentencePiece .model or tokenizer.json); empty: look beside the checkpoint."),
    parameter("policy.asset_id", text(""), "", Structural,
        "openpi: folder under assets/ with the statistics; empty: the only one there."),
    parameter("control.policy_rate_hz", number(50.0, 0.01, 1000.0), "Hz", Structural,
        "Steps per second of a chunk."),
    parameter("control.rate_hz", number(100.0, 1.0, 1000.0), "Hz", Structural,
        "Control ticks, and so commands, per second."),
    parameter("control.execution", one_of("latest", Execution::NAMES), "", Live,
        "How a new chunk takes over: latest replaces the old one, ensemble averages the newest 62, rtc steers by the old one, open_loop holds in between."),
    // 3 steps of 20 ms hide the seam between chunks and are over before the next one comes.
    parameter("control.blend_steps", integer(3, 0, 50), "policy steps", Live,
        "Commands go over to a new chunk within so many steps, later only where limits need it; 0: by the limits alone."),
    parameter("control.ensemble_decay", number(0.01, -1.0, 1.0), "", Live,
        "ensemble: a chunk that is one step older has exp(-decay) of the weight; below 0 older ones have more."),
    parameter("control.open_loop_steps", integer(0, 0, 10_000), "policy steps", Live,
        "open_loop: steps of a chunk that are executed before the next one is computed; 0: all."),
    // A full turn, for a network with random weights goes anywhere; for a real arm docs/safety.md advises less.
    parameter("control.first_step_max", (Kind::Double, DefaultValue::Double(6.3), Range::Above(0.0, LIMIT_MAX)), "rad or m", Live,
        "A chunk whose first step is further than this from a measured position is discarded."),
    parameter("control.command", one_of("float64_multi_array", CommandType::NAMES), "", Structural,
        "Message type of the commands: the first two per tick, joint_trajectory per chunk."),
    parameter("control.command_topic", topic(DefaultValue::Text("commands")), "", Structural,
        "Topic of the commands."),
    parameter("control.priority", integer(40, 0, 99), "", Structural,
        "Priority of the control thread under SCHED_FIFO, where that is permitted; 0: ordinary scheduling."),
    parameter("control.lock_memory", (Kind::Bool, DefaultValue::Bool(true), Range::Any), "", Structural,
        "Keep the process's memory from being paged out, where that is permitted."),
    parameter("control.cpu", integer(-1, -1, 1023), "", Structural,
        "The one CPU that the control thread runs on; -1: any."),
    // Ten minutes at 1 kHz with 256 joints are 1.3 GB.
    parameter("recorder.seconds", (Kind::Double, DefaultValue::Double(30.0), Range::Double(0.0, 600.0)), "s", Structural,
        "Time that the flight recorder keeps in memory, to be written after a fault or by ~/record; 0: no recorder."),
    parameter("recorder.folder", text(""), "", Structural,
        "Folder of the flight recorder's files; empty: pi05_thor in $ROS_HOME (~/.ros)."),
    parameter("rtc.schedule", one_of("linear", PrefixSchedule::NAMES), "", Live,
        "rtc: how the pull towards the old chunk falls off along the steps."),
    parameter("rtc.execution_horizon", integer(10, 1, 10_000), "policy steps", Live,
        "rtc: steps of the old chunk that pull at most."),
    parameter("rtc.max_guidance_weight", number(10.0, 0.0, 1000.0), "", Live,
        "rtc: strongest pull."),
    parameter("sampler.steps", integer(0, 0, 50), "", Structural,
        "Denoising steps per chunk; 0: as the checkpoint says (LeRobot's num_inference_steps), else 10."),
    parameter("sampler.schedule", one_of("linear", Schedule::NAMES), "", Structural,
        "Time steps of the sampler."),
    parameter("sampler.solver", one_of("euler", Solver::NAMES), "", Structural,
        "Integrator of the sampler."),
    parameter("sampler.seed", integer(0, i64::MIN, i64::MAX), "", Live,
        "Seed of the noise; negative: fresh noise in every run."),
    // Below 1 ms a replay would infer without end; the default is that of a slow GPU.
    parameter("replay.latency_ms", integer(100, 1, AGE_MAX_MS), "ms", Structural,
        "Bag time that an inference takes in a replay at full speed."),
];

/// What stands for any camera slot in a name of [`TABLE`].
pub const SLOT: &str = "<slot>";

/// Parameters that ROS 2 itself gives every node: let through, used by nobody here.
pub const ROS_OWN: [&str; 2] = ["qos_overrides.", "start_type_description_service"];

/// A checked value of a parameter.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // as in Kind
pub enum Value {
    Bool(bool),
    Integer(i64),
    Double(f64),
    String(String),
    BoolArray(Vec<bool>),
    DoubleArray(Vec<f64>),
    StringArray(Vec<String>),
}

/// The parameter of this name. `cameras.left.topic` finds `cameras.<slot>.topic`.
pub fn find(name: &str) -> Option<&'static Parameter> {
    let pattern = match camera_slot(name) {
        Some((_, field)) => format!("cameras.<slot>.{field}"),
        None => name.to_owned(),
    };
    TABLE.iter().find(|p| p.name == pattern)
}

/// Slot and field of a camera parameter. A slot may have dots of its own (`observation.images.top`).
pub fn camera_slot(name: &str) -> Option<(&str, &str)> {
    let (slot, field) = name.strip_prefix("cameras.")?.rsplit_once('.')?;
    (!slot.is_empty()).then_some((slot, field))
}

/// The known name that looks most like this one.
pub fn nearest(name: &str) -> String {
    let slot = camera_slot(name).map_or(SLOT, |(slot, _)| slot);
    let known = TABLE.iter().map(|p| p.name.replace(SLOT, slot));
    let likeness = |known: &str| {
        // `rate_hz` means `control.rate_hz`: the last part counts as well as the whole.
        let last = known.rsplit('.').next().unwrap_or(known);
        strsim::jaro_winkler(name, known).max(strsim::jaro_winkler(name, last))
    };
    known.max_by(|a, b| likeness(a).total_cmp(&likeness(b))).unwrap_or_default()
}

impl Parameter {
    /// What it takes, for a person: `a number above 0, up to 1000000 [rad or m]`.
    pub fn expected(&self) -> String {
        let what = match self.kind {
            Kind::Bool => "true or false",
            Kind::Integer => "a whole number",
            Kind::Double => "a number",
            Kind::String => "a text",
            Kind::BoolArray => "a list of true and false",
            Kind::DoubleArray => "a list of numbers",
            Kind::StringArray => "a list of texts",
        };
        let range = match self.range {
            Range::OneOf(names) => return format!("one of {}", names.join(", ")),
            Range::Backend => return Backend::EXPECTED.to_owned(),
            Range::Topic => return "a ROS 2 topic name".to_owned(),
            Range::NotEmpty => ", none empty".to_owned(),
            Range::Any | Range::Integer(i64::MIN, i64::MAX) => String::new(),
            Range::Integer(min, max) => format!(" from {min} to {max}"),
            Range::Double(min, max) => format!(" from {min} to {max}"),
            Range::Above(min, max) => format!(" above {min}, up to {max}"),
        };
        let unit = if self.unit.is_empty() { String::new() } else { format!(" [{}]", self.unit) };
        format!("{what}{range}{unit}")
    }

    /// Its comment in a YAML file: the documentation with the unit, and below it the words to choose from.
    pub fn comment(&self) -> String {
        match (self.range, self.unit) {
            (Range::OneOf(names), _) => format!("{}\n{}", self.doc, names.join(" | ")),
            (Range::Backend, _) => format!("{}\n{}", self.doc, Backend::EXPECTED),
            (_, "") => self.doc.to_owned(),
            (_, unit) => format!("{} [{unit}]", self.doc),
        }
    }

    /// Whether `value` is of the right type and in range.
    pub fn check(&self, value: &Value) -> bool {
        match (self.kind, value) {
            (Kind::Bool, Value::Bool(_)) | (Kind::BoolArray, Value::BoolArray(_)) => true,
            (Kind::Integer, Value::Integer(v)) => match self.range {
                Range::Integer(min, max) => (min..=max).contains(v),
                _ => true,
            },
            (Kind::Double, Value::Double(v)) => self.permits_double(*v),
            (Kind::DoubleArray, Value::DoubleArray(v)) => v.iter().all(|&v| self.permits_double(v)),
            (Kind::String, Value::String(v)) => self.permits_text(v),
            (Kind::StringArray, Value::StringArray(v)) => v.iter().all(|v| self.permits_text(v)),
            _ => false,
        }
    }

    fn permits_double(&self, value: f64) -> bool {
        value.is_finite()
            && match self.range {
                Range::Double(min, max) => (min..=max).contains(&value),
                Range::Above(min, max) => value > min && value <= max,
                _ => true,
            }
    }

    fn permits_text(&self, value: &str) -> bool {
        !value.contains('\0')
            && match self.range {
                Range::OneOf(names) => names.contains(&value),
                Range::Backend => value.parse::<Backend>().is_ok(),
                Range::NotEmpty => !value.trim().is_empty(),
                // An empty camera topic is how a launch argument leaves a camera out.
                Range::Topic => is_topic(value) || (value.is_empty() && self.name.starts_with("cameras.")),
                _ => true,
            }
    }
}

/// Names that ROS 2 takes for a topic: `a/b`, `/a/b`, `~/b`; letters, digits, underscores, no part that is empty or
/// starts with a digit.
fn is_topic(name: &str) -> bool {
    let path = name.strip_prefix("~/").or(name.strip_prefix('/')).unwrap_or(name);
    name.len() <= 255
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
}
