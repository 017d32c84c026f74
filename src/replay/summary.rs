//! What a replay did, in numbers: `summary.json`.
//!
//! Promises that everything but [`Summary::timings`] is the same for two replays of the same bag with the same
//! seed at `--speed max`, with keys in a fixed order, and that the limits are judged from the commands, and from where
//! the arm was measured when they began: it does not believe what the controller says about itself. Called by `replay` and by the report. Never fails: a
//! number that cannot be told is null.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::recording::{CommandSample, JointInfo, Recording, Timings};
use crate::clock::{NS_PER_MS, NS_PER_S, Stamp, seconds};
use crate::percentile::percentile;

/// A position this far (rad or m) outside its limit is rounding, not a violation.
pub const POSITION_TOLERANCE: f64 = 1e-6;
/// A speed this far above its limit, as a fraction of the limit, is rounding of stamps to nanoseconds.
pub const VELOCITY_TOLERANCE: f64 = 1e-5;
/// Two commands further apart than this many tick periods have a gap between them.
pub const GAP_PERIODS: f64 = 1.5;

/// `summary.json`. The fields stand there in this order.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The replay in one line for a person.
    pub verdict: String,
    /// How that line is meant.
    pub level: Level,
    /// Path of the bag, as given.
    pub bag: String,
    /// Checkpoint, as given.
    pub checkpoint: String,
    /// Engine that ran, with its dtype.
    pub engine: String,
    /// Robot adapter.
    pub robot: String,
    /// Task prompt.
    pub prompt: String,
    /// One per camera slot, in the model's order.
    pub cameras: Vec<CameraSummary>,
    /// From the bag's first to its last message.
    pub duration_s: f64,
    /// Steps per second of a chunk.
    pub policy_rate_hz: f64,
    /// Ticks per second, as configured.
    pub rate_hz: f64,
    /// Ticks that gave a command.
    pub ticks: u64,
    /// Trajectories that were commanded and whose limits are not judged: of a live run with such commands.
    pub unjudged_trajectories: u64,
    /// Ticks that braked or held because the plan's end was reached.
    pub resting_ticks: u64,
    /// Inferences.
    pub chunks: u64,
    /// Chunks that at least one tick followed.
    pub chunks_followed: u64,
    /// Most prompt tokens that the model saw.
    pub tokens_max: Option<u64>,
    /// Bag time from an observation to the arrival of its chunk, ms.
    pub delay_ms: Spread,
    /// Leading steps of a chunk dropped at its arrival because their time had passed.
    pub dropped_steps: Spread,
    /// What was refused on the way.
    pub rejected: Rejected,
    /// Where a limit changed a command.
    pub limited: Limited,
    /// Bag time of the first command, seconds since the bag's start.
    pub first_command_s: Option<f64>,
    /// Bag time of the last command, seconds since the bag's start.
    pub last_command_s: Option<f64>,
    /// Longest time between two consecutive commands, seconds.
    pub longest_gap_s: Option<f64>,
    /// Whether every command kept every limit: both counts of `violations` are 0.
    pub inside_limits: bool,
    /// Sums over the joints.
    pub violations: Violations,
    /// One per command value, in the order of the configuration.
    pub joints: Vec<JointSummary>,
    /// Events by name, as counted on the way.
    pub counters: BTreeMap<String, u64>,
    /// What a person should know, such as "the bag ends inside a record".
    pub notes: Vec<String>,
    /// Wall time: the only part that differs between two runs.
    pub timings: TimingSummary,
}

/// How a replay went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to remark.
    Ok,
    /// There are notes, refusals or gaps, or nothing was commanded.
    Attention,
    /// A command violated a limit.
    Violation,
}

/// One camera slot over the whole replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CameraSummary {
    /// Name of the slot.
    pub name: String,
    /// Chunks that saw an image of it.
    pub images: u64,
    /// Chunks for which it was masked.
    pub masked: u64,
    /// Median age of its image at the observation.
    pub age_p50_ms: Option<f64>,
    /// Greatest age of its image at the observation.
    pub age_max_ms: Option<f64>,
}

/// How a quantity is spread over the chunks; null without chunks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: Option<f64>,
    /// Median.
    pub p50: Option<f64>,
    /// Greatest.
    pub max: Option<f64>,
}

/// Sums over [`Recording::counters`]. A counter's kind is its name up to the first colon; kinds that end with
/// `_rejected`, `_dropped` or `_discarded` say that something was refused.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Rejected {
    /// Of kinds that begin with `chunk`.
    pub chunks: u64,
    /// Of all other kinds: images, joint states, …
    pub inputs: u64,
}

/// Where the controller says that it limited.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Limited {
    /// Ticks of which at least one value was changed by a limit.
    pub ticks: u64,
    /// Counters of kinds that end with `_limited`, summed by kind.
    pub by_kind: BTreeMap<String, u64>,
}

/// Commands outside limits, counted once per tick and joint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Violations {
    /// Values outside the position limits, missing or not finite. Not those of a joint that was measured outside when
    /// the commands began, and that returns: never further out than it was.
    pub position: u64,
    /// Changes from one tick to the next that were faster than the speed limit.
    pub velocity: u64,
}

/// One command value over the whole replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JointSummary {
    /// Joint name.
    pub name: String,
    /// Lower position limit (rad or m); null if there is none.
    pub position_min: f64,
    /// Upper position limit; null if there is none.
    pub position_max: f64,
    /// Smallest finite command.
    pub command_min: Option<f64>,
    /// Greatest finite command.
    pub command_max: Option<f64>,
    /// Speed limit (rad/s or m/s); null if there is none.
    pub velocity_max: f64,
    /// Greatest speed between two consecutive ticks, on average over the time between them; null if it is
    /// infinite (a change in no time).
    pub velocity_peak: Option<f64>,
    /// Commands outside limits.
    pub violations: Violations,
}

/// Wall time of the inferences.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TimingSummary {
    /// Inferences per second of wall time spent in them; null without any.
    pub chunks_per_second: Option<f64>,
    /// Chunks per second of wall time from the first inference to the last chunk, reading and decoding the bag included:
    /// what a replay at full speed gives. Null of what was recorded live.
    pub replayed_chunks_per_second: Option<f64>,
    /// The stages in order, `total` last.
    #[serde(flatten)]
    pub stages: StageTimings,
}

/// Wall time by stage, milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StageTimings {
    /// Resize, normalise, tokenise.
    pub encode: Latency,
    /// SigLIP and projector, all cameras.
    pub vision: Latency,
    /// Prefix to K/V.
    pub prefix: Latency,
    /// All denoise steps.
    pub denoise: Latency,
    /// Unnormalise and robot adapter.
    pub decode: Latency,
    /// Sum of the stages, chunk by chunk.
    pub total: Latency,
}

/// Spread of one stage's wall time, milliseconds; null without chunks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Arithmetic mean.
    pub mean_ms: Option<f64>,
    /// Median.
    pub p50_ms: Option<f64>,
    /// 90th percentile.
    pub p90_ms: Option<f64>,
    /// 99th percentile.
    pub p99_ms: Option<f64>,
    /// Greatest.
    pub max_ms: Option<f64>,
}

/// The summary of a replay.
pub fn summary(recording: &Recording) -> Summary {
    let commands = &recording.commands;
    let joints: Vec<JointSummary> =
        recording.joints.iter().enumerate().map(|(j, info)| joint_summary(recording, j, info)).collect();
    let violations = joints.iter().fold(Violations::default(), |sum, joint| Violations {
        position: sum.position + joint.violations.position,
        velocity: sum.velocity + joint.violations.velocity,
    });
    let since_start = |stamp: Stamp| seconds(stamp.since(recording.start));
    let delays = recording.chunks.iter().map(|c| c.arrived.since(c.observed) as f64 / NS_PER_MS as f64);

    let mut summary = Summary {
        verdict: String::new(),
        level: Level::Ok,
        bag: recording.bag.clone(),
        checkpoint: recording.checkpoint.clone(),
        engine: recording.engine.clone(),
        robot: recording.robot.clone(),
        prompt: recording.prompt.clone(),
        cameras: camera_summaries(recording),
        duration_s: since_start(recording.end),
        policy_rate_hz: recording.policy_rate_hz,
        rate_hz: recording.rate_hz,
        ticks: commands.len() as u64,
        unjudged_trajectories: recording.unjudged,
        resting_ticks: commands.iter().filter(|c| c.resting).count() as u64,
        chunks: recording.chunks.len() as u64,
        chunks_followed: commands.iter().map(|c| c.chunk).collect::<BTreeSet<_>>().len() as u64,
        tokens_max: recording.chunks.iter().map(|c| c.tokens as u64).max(),
        delay_ms: spread(delays.collect()),
        dropped_steps: spread(recording.chunks.iter().map(|c| c.dropped_steps as f64).collect()),
        rejected: rejected(&recording.counters),
        limited: limited(recording),
        first_command_s: commands.first().map(|c| since_start(c.stamp)),
        last_command_s: commands.last().map(|c| since_start(c.stamp)),
        longest_gap_s: commands.windows(2).map(|w| w[1].stamp.since(w[0].stamp)).max().map(seconds),
        inside_limits: violations == Violations::default(),
        violations,
        joints,
        counters: recording.counters.clone(),
        notes: recording.notes.clone(),
        timings: timings(recording),
    };
    (summary.level, summary.verdict) = verdict(&summary);
    summary
}

/// One command value of one tick, judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judged {
    /// The value, unless it is missing or not finite.
    pub value: Option<f64>,
    /// Speed since the tick before (rad/s or m/s); infinite for a change in no time.
    pub velocity: Option<f64>,
    /// The value is missing, not finite, or outside its limits and not on the way back into them.
    pub position_violated: bool,
    /// The speed is above its limit.
    pub velocity_violated: bool,
}

/// Judges value `joint` of every tick against `info`.
pub(super) fn judge<'a>(
    recording: &'a Recording,
    joint: usize,
    info: &'a JointInfo,
) -> impl Iterator<Item = Judged> + 'a {
    let commands = &recording.commands;
    // How far outside it may still be. Who begins outside may return, but not go further out.
    let (mut below, mut above) = (0.0, 0.0);
    let value_at = move |c: &CommandSample| c.values.get(joint).copied().filter(|v| v.is_finite());
    commands.iter().enumerate().map(move |(i, command)| {
        let value = value_at(command);
        let previous = i.checked_sub(1).and_then(|i| commands.get(i));
        let period =
            |previous: &CommandSample| command.stamp.since(previous.stamp) as f64 * recording.rate_hz;
        if previous.is_none_or(|previous| period(previous) > GAP_PERIODS * NS_PER_S as f64)
            && let Some((least, most)) = measured(recording, joint, info, command.stamp)
        {
            (below, above) = (outside(info.position_min, least), outside(most, info.position_max));
        }
        let untimed = |i| recording.untimed.contains(&i);
        let timed = previous.filter(|_| recording.untimed.is_empty() || !(untimed(i) || untimed(i - 1)));
        let velocity = timed.and_then(|previous| {
            let moved = (value? - value_at(previous)?).abs();
            let dt = seconds(command.stamp.since(previous.stamp));
            Some(match moved > 0.0 {
                false => 0.0,
                true if dt > 0.0 => moved / dt,
                true => f64::INFINITY,
            })
        });
        // Written so that a limit that is not a number allows nothing.
        let inside = |v: f64| {
            v >= info.position_min - below - POSITION_TOLERANCE
                && v <= info.position_max + above + POSITION_TOLERANCE
        };
        let position_violated = !value.is_some_and(inside);
        if let Some(value) = value {
            below = outside(info.position_min, value).min(below);
            above = outside(value, info.position_max).min(above);
        }
        let slow = |v: f64| v <= info.velocity_max * (1.0 + VELOCITY_TOLERANCE);
        Judged { value, velocity, position_violated, velocity_violated: !velocity.is_none_or(slow) }
    })
}

/// By how much `low` is above `high`; 0 if it is not.
fn outside(low: f64, high: f64) -> f64 {
    (low - high).max(0.0) // 0 for NaN
}

/// Between which positions a joint was measured lately, by `at`: a state that came late was not yet there when the
/// command was computed, and an older one counted.
fn measured(recording: &Recording, joint: usize, info: &JointInfo, at: Stamp) -> Option<(f64, f64)> {
    let index = recording.measured_index.get(joint).copied().flatten().filter(|_| !info.is_velocity)?;
    let number = |stamp: Stamp| recording.measured.partition_point(|measured| measured.stamp <= stamp);
    let by_now = number(at);
    let oldest = Stamp(at.0.saturating_sub(recording.joints_max_age_ns).saturating_sub(1));
    let lately = recording.measured.get(number(oldest).min(by_now.saturating_sub(1))..by_now)?;
    let positions = lately.iter().filter_map(|measured| measured.positions.get(index).copied());
    let none = (f64::INFINITY, f64::NEG_INFINITY);
    let (least, most) = positions.fold(none, |(least, most), p| (least.min(p), most.max(p)));
    (least <= most).then_some((least, most))
}

fn joint_summary(recording: &Recording, joint: usize, info: &JointInfo) -> JointSummary {
    let mut out = JointSummary {
        name: info.name.clone(),
        position_min: info.position_min,
        position_max: info.position_max,
        command_min: None,
        command_max: None,
        velocity_max: info.velocity_max,
        velocity_peak: None,
        violations: Violations::default(),
    };
    for judged in judge(recording, joint, info) {
        if let Some(value) = judged.value {
            out.command_min = Some(out.command_min.map_or(value, |v| v.min(value)));
            out.command_max = Some(out.command_max.map_or(value, |v| v.max(value)));
        }
        if let Some(velocity) = judged.velocity {
            out.velocity_peak = Some(out.velocity_peak.map_or(velocity, |v| v.max(velocity)));
        }
        out.violations.position += u64::from(judged.position_violated);
        out.violations.velocity += u64::from(judged.velocity_violated);
    }
    out
}

fn camera_summaries(recording: &Recording) -> Vec<CameraSummary> {
    let of_slot = |(slot, name): (usize, &String)| {
        let age = |c: &super::recording::ChunkRecord| c.image_age_ms.get(slot).copied().flatten();
        let ages = sorted(recording.chunks.iter().filter_map(age).collect());
        CameraSummary {
            name: name.clone(),
            images: ages.len() as u64,
            masked: (recording.chunks.len() - ages.len()) as u64,
            age_p50_ms: percentile(&ages, 50.0),
            age_max_ms: ages.last().copied(),
        }
    };
    recording.cameras.iter().enumerate().map(of_slot).collect()
}

/// A counter's kind: `image_dropped: camera base_0_rgb` → `image_dropped`.
fn kind(counter: &str) -> &str {
    counter.split(':').next().unwrap_or_default().trim()
}

fn rejected(counters: &BTreeMap<String, u64>) -> Rejected {
    let mut sum = Rejected::default();
    for (name, count) in counters {
        let kind = kind(name);
        if ["_rejected", "_dropped", "_discarded"].iter().any(|end| kind.ends_with(end)) {
            let which = if kind.starts_with("chunk") { &mut sum.chunks } else { &mut sum.inputs };
            *which = which.saturating_add(*count);
        }
    }
    sum
}

fn limited(recording: &Recording) -> Limited {
    let mut by_kind = BTreeMap::<String, u64>::new();
    for (name, count) in recording.counters.iter().filter(|(name, _)| kind(name).ends_with("_limited")) {
        let sum = by_kind.entry(kind(name).to_owned()).or_default();
        *sum = sum.saturating_add(*count);
    }
    Limited { ticks: recording.commands.iter().filter(|c| c.limited).count() as u64, by_kind }
}

fn timings(recording: &Recording) -> TimingSummary {
    let of = |stage: fn(&Timings) -> f64| {
        let all = sorted(recording.chunks.iter().map(|c| stage(&c.timings)).collect());
        Latency {
            mean_ms: (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64),
            p50_ms: percentile(&all, 50.0),
            p90_ms: percentile(&all, 90.0),
            p99_ms: percentile(&all, 99.0),
            max_ms: all.last().copied(),
        }
    };
    let stages = StageTimings {
        encode: of(|t| t.encode_ms),
        vision: of(|t| t.vision_ms),
        prefix: of(|t| t.prefix_ms),
        denoise: of(|t| t.denoise_ms),
        decode: of(|t| t.decode_ms),
        total: of(Timings::total_ms),
    };
    let chunks_per_second = stages.total.mean_ms.filter(|&ms| ms > 0.0).map(|ms| 1000.0 / ms);
    let wall_s = recording.wall_s.filter(|&s| s > 0.0);
    let replayed_chunks_per_second = wall_s.map(|s| recording.chunks.len() as f64 / s);
    TimingSummary { chunks_per_second, replayed_chunks_per_second, stages }
}

fn verdict(s: &Summary) -> (Level, String) {
    let count = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let mut parts = vec![
        count(s.ticks, "tick", "ticks"),
        count(s.chunks, "chunk", "chunks"),
        format!("{} rejected", s.rejected.chunks),
    ];
    if s.rejected.inputs > 0 {
        parts.push(count(s.rejected.inputs, "input refused", "inputs refused"));
    }
    let gap = s.longest_gap_s.filter(|gap| gap * s.rate_hz > GAP_PERIODS);
    if let Some(gap) = gap {
        parts.push(format!("{gap:.2} s without a command"));
    }
    parts.push(match (s.ticks, s.inside_limits) {
        (0, _) if s.unjudged_trajectories > 0 => {
            let trajectories = count(s.unjudged_trajectories, "trajectory", "trajectories");
            format!("{trajectories} commanded, not judged")
        }
        (0, _) => "nothing commanded".to_owned(),
        (_, true) => "commands inside limits".to_owned(),
        (_, false) => format!(
            "commands OUTSIDE limits ({} of position, {} of speed)",
            s.violations.position, s.violations.velocity
        ),
    });
    let remark = !s.notes.is_empty() || s.rejected != Rejected::default() || gap.is_some() || s.ticks == 0;
    let level = match (s.inside_limits, remark) {
        (false, _) => Level::Violation,
        (true, true) => Level::Attention,
        (true, false) => Level::Ok,
    };
    (level, parts.join(", "))
}

/// Finite values only, upwards.
fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    values
}

fn spread(values: Vec<f64>) -> Spread {
    let values = sorted(values);
    Spread { min: values.first().copied(), p50: percentile(&values, 50.0), max: values.last().copied() }
}

#[cfg(test)]
mod tests;
