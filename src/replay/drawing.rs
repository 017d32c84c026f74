//! What the report's script draws: a [`Recording`] reduced to what a screen can show, as JSON.
//!
//! Promises a bounded size whatever the length of the replay: beyond [`MAX_SAMPLES`] a series becomes an envelope of
//! smallest and greatest values, and says so in [`Drawing::remarks`]. Called by the report only.
//! Times are seconds since the bag's start. A value that is not finite is null.

use serde::Serialize;

use super::recording::{ChunkRecord, JointInfo, Recording, Timings};
use super::summary::{GAP_PERIODS, Judged, judge};
use crate::clock::{Stamp, seconds};

/// Most samples of a series; above, several samples make one of its envelope.
pub const MAX_SAMPLES: usize = 4000;
/// Most chunks of the latency timeline; above, the slowest of several stands for them.
const MAX_CHUNKS: usize = 6000;
/// Most values in the predictions, all joints together; above, only every n-th chunk's are drawn.
const MAX_PREDICTED_VALUES: usize = 90_000;
/// A limited command this close to its limit (fraction of the limit or of its range) was held there by it.
const AT_LIMIT: f64 = 1e-3;

/// Everything that the script draws.
#[derive(Serialize)]
pub struct Drawing<'a> {
    /// End of the time axis: the bag's end, or the last command or chunk if they are later.
    end: f64,
    /// Period of a chunk's steps.
    step: f64,
    joints: Vec<JointDrawing<'a>>,
    commanded: Series,
    measured: Series,
    /// Start and end of every time in which the arm braked or held.
    resting: Vec<[f64; 2]>,
    chunks: Chunks,
    predictions: Vec<Prediction>,
    /// What was reduced, for a person.
    #[serde(skip)]
    pub remarks: Vec<String>,
}

#[derive(Serialize)]
struct JointDrawing<'a> {
    name: &'a str,
    min: Option<f64>,
    max: Option<f64>,
    /// Commands that a limit held, and commands that violate one.
    held: usize,
    violations: usize,
    /// Indices into `commanded` of what a limit held.
    limited: Vec<usize>,
    /// Indices into `commanded` of what violates a limit.
    violated: Vec<usize>,
}

/// One curve per joint over common times; an empty curve where a joint has none.
#[derive(Default, Serialize)]
struct Series {
    t: Vec<f64>,
    /// Smallest value of each envelope sample.
    lo: Vec<Vec<Option<f64>>>,
    /// Greatest value, where it is not `lo`: null for a series with all its samples.
    hi: Option<Vec<Vec<Option<f64>>>>,
    /// Two samples further apart than this are not joined.
    gap: f64,
}

/// One column per property; every chunk that the latency timeline shows.
#[derive(Default, Serialize)]
struct Chunks {
    id: Vec<u64>,
    observed: Vec<f64>,
    arrived: Vec<f64>,
    dropped: Vec<usize>,
    /// `[stage][chunk]`, ms.
    stages: [Vec<f64>; 5],
}

/// What remained of a chunk at its arrival.
#[derive(Serialize)]
struct Prediction {
    arrived: f64,
    /// Time of the first step that was not dropped.
    t: f64,
    /// `[joint][step]`.
    v: Vec<Vec<Option<f64>>>,
}

impl<'a> Drawing<'a> {
    /// Reduces a recording.
    pub fn new(recording: &'a Recording) -> Self {
        let time = |stamp: Stamp| round(seconds(stamp.since(recording.start)));
        let (commands, measured, chunks) = (&recording.commands, &recording.measured, &recording.chunks);
        let last = [Some(recording.end), commands.last().map(|c| c.stamp), chunks.last().map(|c| c.arrived)];
        let stride = commands.len().div_ceil(MAX_SAMPLES).max(1);
        let command_times: Vec<f64> = commands.iter().map(|c| time(c.stamp)).collect();
        let measured_times: Vec<f64> = measured.iter().map(|m| time(m.stamp)).collect();

        let mut joints = Vec::new();
        let (mut commanded_values, mut measured_values) = (Vec::new(), Vec::new());
        for (j, info) in recording.joints.iter().enumerate() {
            let judged: Vec<Judged> = judge(recording, j, info).collect();
            let limited =
                indices(judged.iter().zip(commands).map(|(at, c)| c.limited && held_by_limit(at, info)));
            let violated = indices(judged.iter().map(|at| at.position_violated || at.velocity_violated));
            joints.push(JointDrawing {
                name: &info.name,
                min: finite(info.position_min),
                max: finite(info.position_max),
                held: limited.len(),
                violations: violated.len(),
                limited: thinned(limited, stride),
                violated: thinned(violated, stride),
            });
            commanded_values.push(judged.iter().map(|at| at.value.unwrap_or(f64::NAN)).collect());
            let index = recording.measured_index.get(j).copied().flatten();
            measured_values.push(match index {
                Some(i) => measured.iter().map(|m| m.positions.get(i).copied().unwrap_or(f64::NAN)).collect(),
                None => Vec::new(),
            });
        }

        let mut drawing = Self {
            end: last.into_iter().flatten().map(time).fold(0.0, f64::max),
            step: period(recording.policy_rate_hz),
            joints,
            commanded: Series::new(
                &command_times,
                &commanded_values,
                GAP_PERIODS * period(recording.rate_hz),
            ),
            measured: Series::new(&measured_times, &measured_values, 0.0),
            resting: Vec::new(),
            chunks: Chunks::default(),
            predictions: Vec::new(),
            remarks: Vec::new(),
        };
        let resting = thinned(indices(commands.iter().map(|c| c.resting)), stride);
        drawing.resting = spans(&resting, &drawing.commanded);
        for (name, n) in [("commands", commands.len()), ("joint states", measured.len())] {
            if n > MAX_SAMPLES {
                let every = n.div_ceil(MAX_SAMPLES);
                drawing.remarks.push(format!(
                    "{name}: {n} samples are drawn as smallest and greatest of {every} at a time"
                ));
            }
        }
        drawing.take_chunks(recording, time);
        drawing.take_predictions(recording, time);
        drawing
    }

    fn take_chunks(&mut self, recording: &Recording, time: impl Fn(Stamp) -> f64) {
        let every = recording.chunks.len().div_ceil(MAX_CHUNKS).max(1);
        if every > 1 {
            self.remarks.push(format!("chunks: the slowest of {every} at a time is drawn"));
        }
        let total = |c: &&ChunkRecord| c.timings.total_ms();
        for group in recording.chunks.chunks(every) {
            let Some(chunk) = group.iter().max_by(|a, b| total(a).total_cmp(&total(b))) else { continue };
            self.chunks.id.push(chunk.id);
            self.chunks.observed.push(time(chunk.observed));
            self.chunks.arrived.push(time(chunk.arrived));
            self.chunks.dropped.push(chunk.dropped_steps);
            let Timings { encode_ms, vision_ms, prefix_ms, denoise_ms, decode_ms } = chunk.timings;
            let stages = [encode_ms, vision_ms, prefix_ms, denoise_ms, decode_ms];
            for (column, ms) in self.chunks.stages.iter_mut().zip(stages) {
                column.push((ms * 1e3).round() / 1e3);
            }
        }
    }

    fn take_predictions(&mut self, recording: &Recording, time: impl Fn(Stamp) -> f64) {
        let rest = |c: &ChunkRecord| c.actions.len().saturating_sub(c.dropped_steps);
        let values: usize = recording.chunks.iter().map(rest).sum::<usize>() * recording.joints.len();
        let every = values.div_ceil(MAX_PREDICTED_VALUES).max(1);
        if every > 1 {
            self.remarks.push(format!("predictions: one chunk in {every} is drawn"));
        }
        for chunk in recording.chunks.iter().step_by(every) {
            let steps = chunk.actions.get(chunk.dropped_steps..).unwrap_or_default();
            let of_joint = |j: usize| steps.iter().map(|s| s.get(j).and_then(|&v| finite(v))).collect();
            self.predictions.push(Prediction {
                arrived: time(chunk.arrived),
                t: round(time(chunk.observed) + chunk.dropped_steps as f64 * self.step),
                v: (0..recording.joints.len()).map(of_joint).collect(),
            });
        }
    }
}

impl Series {
    /// `values` is `[joint][sample]`; a joint without samples stays without. `gap` 0: to be told from the times.
    fn new(times: &[f64], values: &[Vec<f64>], gap: f64) -> Self {
        let every = times.len().div_ceil(MAX_SAMPLES).max(1);
        let t: Vec<f64> = times.iter().copied().step_by(every).collect();
        let fold = |joint: &Vec<f64>, pick: fn(f64, f64) -> f64| -> Vec<Option<f64>> {
            // f64::min and f64::max pass over what is not a number.
            joint.chunks(every).map(|c| finite(c.iter().copied().fold(f64::NAN, pick))).collect()
        };
        let mut steps: Vec<f64> = t.windows(2).map(|w| w[1] - w[0]).collect();
        steps.sort_by(f64::total_cmp);
        let usual = steps.get(steps.len() / 2).copied().unwrap_or_default();
        Self {
            lo: values.iter().map(|joint| fold(joint, f64::min)).collect(),
            hi: (every > 1).then(|| values.iter().map(|joint| fold(joint, f64::max)).collect()),
            gap: round(if gap > 0.0 && every == 1 { gap } else { 3.0 * usual }),
            t,
        }
    }
}

/// Whether a limited command stands where a limit would have put it. The recording says only that the tick was
/// limited, not which of its values.
fn held_by_limit(at: &Judged, info: &JointInfo) -> bool {
    let near = |limit: f64| {
        let range = info.position_max - info.position_min;
        at.value.is_some_and(|v| (v - limit).abs() <= AT_LIMIT * range.min(1.0))
    };
    let fast = at.velocity.is_some_and(|v| v >= info.velocity_max * (1.0 - AT_LIMIT));
    fast || near(info.position_min) || near(info.position_max)
}

/// Where the marks are.
fn indices(marks: impl Iterator<Item = bool>) -> Vec<usize> {
    marks.enumerate().filter(|(_, marked)| *marked).map(|(i, _)| i).collect()
}

/// The same places after every `stride` samples have become one.
fn thinned(mut indices: Vec<usize>, stride: usize) -> Vec<usize> {
    indices.iter_mut().for_each(|i| *i /= stride);
    indices.dedup();
    indices
}

/// Runs of neighbouring samples as times.
fn spans(indices: &[usize], series: &Series) -> Vec<[f64; 2]> {
    let time = |i: usize| series.t.get(i).copied().unwrap_or_default();
    let joined = |a: usize, b: usize| b == a + 1 && time(b) - time(a) <= series.gap;
    indices
        .chunk_by(|&a, &b| joined(a, b))
        .filter_map(|run| Some([time(*run.first()?), time(*run.last()?)]))
        .collect()
}

fn period(rate_hz: f64) -> f64 {
    if rate_hz > 0.0 { 1.0 / rate_hz } else { 0.0 }
}

/// To 0.1 ms, 0.1 mrad, 0.1 mm: finer than a screen shows.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4 + 0.0 // no minus zero
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then(|| round(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::synthetic;

    #[test]
    fn an_envelope_keeps_the_extremes_and_passes_over_what_is_not_a_number() {
        let n = 3 * MAX_SAMPLES;
        let times: Vec<f64> = (0..n).map(|i| i as f64).collect();
        let mut values = vec![0.5; n];
        (values[7], values[8], values[9]) = (-2.0, f64::NAN, 3.0);
        (values[12], values[13], values[14]) = (f64::NAN, f64::NAN, f64::NAN);
        let series = Series::new(&times, &[values, vec![]], 0.0);
        assert_eq!(series.t.len(), MAX_SAMPLES);
        let hi = series.hi.unwrap();
        assert_eq!((series.lo[0][2], hi[0][2]), (Some(-2.0), Some(0.5)));
        assert_eq!((series.lo[0][3], hi[0][3]), (Some(0.5), Some(3.0)));
        assert_eq!((series.lo[0][4], hi[0][4]), (None, None));
        assert!(series.lo[1].is_empty(), "a joint without samples stays without");
    }

    #[test]
    fn a_short_replay_is_drawn_whole() {
        let recording = synthetic::recording(6, 0);
        let drawing = Drawing::new(&recording);
        assert_eq!(drawing.remarks, Vec::<String>::new());
        assert_eq!(drawing.commanded.t.len(), recording.commands.len());
        assert!(drawing.commanded.hi.is_none());
        assert_eq!(drawing.predictions.len(), recording.chunks.len());
        assert_eq!(drawing.predictions[0].v[0].len(), 45, "50 steps, 5 of them past at arrival");
        assert_eq!(drawing.resting.len(), 1, "while the camera was frozen");
    }

    #[test]
    fn marks_stand_on_the_joint_that_was_limited() {
        let mut recording = synthetic::recording(1, 0);
        for command in &mut recording.commands {
            command.values.fill(0.5);
            command.limited = false;
        }
        let held = recording.joints[1].position_max;
        for command in &mut recording.commands[40..43] {
            command.values[1] = held;
            command.limited = true;
        }
        let drawing = Drawing::new(&recording);
        assert_eq!(drawing.joints[1].limited, [40, 41, 42]);
        assert!(drawing.joints[0].limited.is_empty());
    }
}
