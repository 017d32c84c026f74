//! Everything a replay leaves behind, in memory: what `commands.mcap`, `summary.json` and `report.html` are made from.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Stamp;
use crate::control::limits::{ControlMode, JointLimit};
pub use crate::observe::intake::Measured;
pub use crate::pipeline::inference::Timings;

/// Most chunks of which [`ChunkRecord::seen`] is kept.
pub const SEEN_CHUNKS: usize = 24;

/// One replay, complete. All times are bag time.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    /// Path of the bag, as given.
    pub bag: String,
    /// Checkpoint, as given (`synth:tiny`, a folder).
    pub checkpoint: String,
    /// Engine that ran, with its dtype: `cpu f32`.
    pub engine: String,
    /// Robot adapter.
    pub robot: String,
    /// Task prompt.
    pub prompt: String,
    /// Names of the camera slots, in the model's order.
    pub cameras: Vec<String>,
    /// First and last stamp of the bag's messages.
    pub start: Stamp,
    /// See `start`.
    pub end: Stamp,
    /// Steps per second of a chunk.
    pub policy_rate_hz: f64,
    /// Ticks per second.
    pub rate_hz: f64,
    /// What each command value drives, with its limits.
    pub joints: Vec<JointInfo>,
    /// For each of `joints`, the index into a measured state that it corresponds to, if any.
    pub measured_index: Vec<Option<usize>>,
    /// A command may be computed from joint states that are this old.
    pub joints_max_age_ns: i64,
    /// Every joint state used, oldest first.
    pub measured: Vec<Measured>,
    /// Every tick that gave a command, oldest first.
    pub commands: Vec<CommandSample>,
    /// Of which commands (indices) the time is not known: their speed is not judged.
    pub untimed: BTreeSet<usize>,
    /// What was sent instead of each command, oldest first, where commands are trajectories.
    pub trajectories: Vec<SentTrajectory>,
    /// How many trajectories were commanded that nobody judges: of a live run.
    pub unjudged: u64,
    /// Every inference, oldest first.
    pub chunks: Vec<ChunkRecord>,
    /// Events by name (`image_dropped: camera base_0_rgb: …`, `position_limited`, …).
    pub counters: BTreeMap<String, u64>,
    /// Notes for a person, such as "the bag ends inside a record".
    pub notes: Vec<String>,
    /// Wall time from the first inference's beginning to the last chunk, seconds; `None` of what was recorded live.
    pub wall_s: Option<f64>,
}

impl Recording {
    /// Keeps images of at most [`SEEN_CHUNKS`] chunks, evenly spread: of those whose number is a multiple of what it
    /// returns. `every` is what it returned last, 1 at first.
    pub fn thin_out_seen(&mut self, every: u64) -> u64 {
        if self.chunks.iter().filter(|chunk| chunk.seen.is_some()).count() <= SEEN_CHUNKS {
            return every;
        }
        let every = every.saturating_mul(2);
        for chunk in self.chunks.iter_mut().filter(|chunk| !chunk.id.is_multiple_of(every)) {
            chunk.seen = None;
        }
        every
    }
}

/// Name and limits of one command value.
#[derive(Clone, Debug, PartialEq)]
pub struct JointInfo {
    /// Joint name.
    pub name: String,
    /// Lower position limit (rad or m).
    pub position_min: f64,
    /// Upper position limit (rad or m).
    pub position_max: f64,
    /// Speed limit (rad/s or m/s).
    pub velocity_max: f64,
    /// The command is a velocity: all of the above is of it, and no measured position is.
    pub is_velocity: bool,
}

impl JointInfo {
    /// A joint as control limits it. Of a velocity-controlled one the command is a velocity: its range is the velocity
    /// limit, and its rate of change the acceleration limit.
    pub fn new(name: &str, limit: &JointLimit) -> Self {
        let name = name.to_owned();
        match limit.mode {
            ControlMode::Position => Self {
                name,
                position_min: limit.position_min,
                position_max: limit.position_max,
                velocity_max: limit.velocity_max,
                is_velocity: false,
            },
            ControlMode::Velocity => Self {
                name,
                position_min: -limit.velocity_max,
                position_max: limit.velocity_max,
                velocity_max: limit.acceleration_max,
                is_velocity: true,
            },
        }
    }
}

/// One control tick's output.
#[derive(Clone, Debug)]
pub struct CommandSample {
    /// Time of the tick.
    pub stamp: Stamp,
    /// One value per joint of [`Recording::joints`].
    pub values: Vec<f64>,
    /// The chunk whose plan was followed.
    pub chunk: u64,
    /// The plan's end was reached or passed: braking or holding.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

/// A trajectory to rest, as a controller that interpolates is sent it.
#[derive(Clone, Debug, PartialEq)]
pub struct SentTrajectory {
    /// Time of its first point.
    pub stamp: Stamp,
    /// Nanoseconds after `stamp`, and one value per joint of [`Recording::joints`].
    pub points: Vec<(i64, Vec<f64>)>,
}

/// One inference and the chunk it gave.
#[derive(Clone, Debug)]
pub struct ChunkRecord {
    /// Number of the chunk, from 0.
    pub id: u64,
    /// Stamp of its observation: the time of its step 0.
    pub observed: Stamp,
    /// When it took over.
    pub arrived: Stamp,
    /// Leading steps that had elapsed by then and were dropped.
    pub dropped_steps: usize,
    /// `[steps][joints]`, robot space.
    pub actions: Vec<Vec<f64>>,
    /// Prompt tokens that the model saw.
    pub tokens: usize,
    /// Age of each camera's image at the observation, ms; `None` where the camera is masked.
    pub image_age_ms: Vec<Option<f64>>,
    /// Wall time of each stage. The only part that differs between two runs.
    pub timings: Timings,
    /// What the model saw, one per camera slot: `[side, side, 3]` rgb8. Kept for [`SEEN_CHUNKS`] chunks.
    pub seen: Option<Vec<Option<Vec<u8>>>>,
    /// Side of the images in `seen`.
    pub seen_side: u32,
}
