//! For tests: a replay that never happened but looks like one. Two ALOHA arms follow slow waves, a policy predicts
//! a second ahead ten times a second, its camera freezes for a while, and limits bite now and then.

use std::collections::BTreeSet;

use crate::clock::{NS_PER_MS, Stamp, seconds};

use super::recording::{ChunkRecord, CommandSample, JointInfo, Measured, Recording, Timings};

const START: Stamp = Stamp(1_760_000_000_000_000_000);
const STEPS: usize = 50;
const POLICY_RATE_HZ: f64 = 50.0;
const TICK_MS: i64 = 10;
const CHUNK_MS: i64 = 100;
const PICTURE_SIDE: u32 = 224;
const ARM: [(&str, f64, f64, f64, f64); 7] = [
    // name, lower, upper, speed limit, home
    ("waist", -3.1, 3.1, 3.1, 0.0),
    ("shoulder", -1.85, 1.25, 3.1, -0.96),
    ("elbow", -1.76, 1.6, 3.1, 1.16),
    ("forearm_roll", -3.1, 3.1, 3.1, 0.0),
    ("wrist_angle", -1.87, 2.18, 3.1, -0.3),
    ("wrist_rotate", -3.1, 3.1, 3.1, 0.0),
    ("gripper", 0.0, 1.0, 2.5, 0.5),
];

/// A replay of `seconds` s with pictures of every `seen_every`-th chunk (0: of none), inside its limits.
pub(crate) fn recording(seconds: i64, seen_every: u64) -> Recording {
    let joints: Vec<JointInfo> = ["left", "right"]
        .iter()
        .flat_map(|side| {
            ARM.iter().map(move |&(name, position_min, position_max, velocity_max, _)| JointInfo {
                name: format!("{side}_{name}"),
                position_min,
                position_max,
                velocity_max,
                is_velocity: false,
            })
        })
        .collect();
    let n = joints.len();
    let measured = (0..seconds * 50)
        .map(|k| {
            let ms = k * 20;
            let t = ms as f64 / 1e3;
            let feel = |j: usize| wave(j, t - 0.05) + 0.004 * noise(k as f64, j as f64);
            Measured { stamp: at_ms(ms), positions: (0..n).map(feel).collect() }
        })
        .collect();
    // The camera freezes in the middle of the bag: no inference for a while, so that the plan runs out.
    let frozen = |ms: i64| (seconds * 450..seconds * 450 + 1700).contains(&ms);
    let chunks: Vec<ChunkRecord> = (0..)
        .map(|k| 20 + k * CHUNK_MS)
        .take_while(|ms| ms + CHUNK_MS < seconds * 1000)
        .filter(|&ms| !frozen(ms))
        .enumerate()
        .map(|(id, ms)| chunk(id as u64, ms, n, seen_every))
        .collect();
    let commands = follow(&chunks, &joints, seconds * 1000);
    let limited = commands.iter().filter(|c| c.limited).count() as u64;

    Recording {
        wall_s: None,
        bag: "bags/aloha_transfer_cube".into(),
        checkpoint: "synth:tiny".into(),
        engine: "cpu f32".into(),
        robot: "aloha".into(),
        prompt: "transfer the cube".into(),
        cameras: ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"].map(String::from).into(),
        start: START,
        end: at_ms(seconds * 1000),
        policy_rate_hz: POLICY_RATE_HZ,
        rate_hz: 1000.0 / TICK_MS as f64,
        measured_index: (0..n).map(Some).collect(),
        joints_max_age_ns: 100 * NS_PER_MS,
        joints,
        measured,
        commands,
        untimed: BTreeSet::new(),
        trajectories: Vec::new(),
        unjudged: 0,
        chunks,
        counters: [
            ("image_dropped: camera right_wrist_0_rgb: data shorter than step x height".to_owned(), 2),
            ("inference_skipped: camera base_0_rgb older than 200 ms".to_owned(), 17),
            ("position_limited".to_owned(), limited),
        ]
        .into(),
        notes: vec![],
    }
}

fn at_ms(ms: i64) -> Stamp {
    Stamp(START.0 + ms * NS_PER_MS)
}

/// In -1..1, the same for the same arguments.
fn noise(a: f64, b: f64) -> f64 {
    ((a * 12.9898 + b * 78.233).sin() * 43758.5453).fract()
}

fn wave(joint: usize, t: f64) -> f64 {
    let home = ARM[joint % 7].4;
    let phase = joint as f64 * 0.7;
    if joint % 7 == 6 {
        return 0.5 + 0.485 * (4.0 * (1.5 * t + phase).sin()).tanh(); // opens and closes, past its limits
    }
    home + 0.25 * (1.26 * t + phase).sin() * t.clamp(0.0, 1.0) + 0.04 * (5.0 * t + 2.0 * phase).sin()
}

fn chunk(id: u64, observed_ms: i64, joints: usize, seen_every: u64) -> ChunkRecord {
    let t = observed_ms as f64 / 1e3;
    let step = |k: usize| {
        let ahead = k as f64 / POLICY_RATE_HZ;
        let drift = |j: usize| noise(id as f64, j as f64) * (0.01 + 0.12 * ahead * ahead);
        (0..joints).map(|j| wave(j, t + ahead) + drift(j)).collect()
    };
    let slow = 1.0 + 0.15 * noise(id as f64, 99.0) + if id % 23 == 5 { 0.9 } else { 0.0 };
    let right_wrist_lost = id % 40 > 27;
    let picture = |slot: usize| (slot != 2 || !right_wrist_lost).then(|| picture(slot, t));
    ChunkRecord {
        id,
        observed: at_ms(observed_ms),
        arrived: at_ms(observed_ms + 100),
        dropped_steps: 5,
        actions: (0..STEPS).map(step).collect(),
        tokens: 52,
        image_age_ms: (0..3)
            .map(|slot| {
                (slot != 2 || !right_wrist_lost).then_some(12.0 + 9.0 * slot as f64 + (id % 7) as f64 * 6.5)
            })
            .collect(),
        timings: Timings {
            encode_ms: 3.1 * slow,
            vision_ms: 21.0 * slow,
            prefix_ms: 17.5 * slow,
            denoise_ms: 30.0 * slow + 4.0 * noise(id as f64, 3.0),
            decode_ms: 0.6,
        },
        seen: (seen_every > 0 && id.is_multiple_of(seen_every)).then(|| (0..3).map(picture).collect()),
        seen_side: PICTURE_SIDE,
    }
}

/// A table, a cube that moves, and two grippers: enough to see that a picture is the right way round.
fn picture(slot: usize, t: f64) -> Vec<u8> {
    let (cx, cy) = (112.0 + 60.0 * t.sin(), 130.0 + 20.0 * (t + slot as f64).cos());
    let mut pixels = Vec::new();
    for y in 0..PICTURE_SIDE {
        for x in 0..PICTURE_SIDE {
            let (x, y) = (f64::from(x), f64::from(y));
            let grain = 10.0 * noise(x + 31.0 * t, y + slot as f64);
            let [r, g, b] = if (x - cx).abs() < 18.0 && (y - cy).abs() < 18.0 {
                [200.0, 40.0, 40.0]
            } else if (x - cx + 45.0).hypot(y - cy - 10.0) < 14.0
                || (x - cx - 45.0).hypot(y - cy - 10.0) < 14.0
            {
                [40.0, 42.0, 48.0]
            } else if y > 70.0 {
                [150.0 + 0.2 * y, 120.0 + 0.1 * y, 80.0 + 30.0 * slot as f64]
            } else {
                [90.0, 110.0 + 0.5 * y, 130.0 + 0.5 * x]
            };
            pixels.extend([r + grain, g + grain, b + grain].map(|v| v as u8));
        }
    }
    pixels
}

/// A controller's simplest form: the newest chunk that has arrived, interpolated, held at its end, limited.
fn follow(chunks: &[ChunkRecord], joints: &[JointInfo], end_ms: i64) -> Vec<CommandSample> {
    let mut commands: Vec<CommandSample> = Vec::new();
    let mut newest = 0;
    for ms in (0..end_ms).step_by(TICK_MS as usize) {
        let now = at_ms(ms);
        while chunks.get(newest + 1).is_some_and(|c| c.arrived <= now) {
            newest += 1;
        }
        let Some(chunk) = chunks.get(newest).filter(|c| c.arrived <= now) else { continue };
        let at = seconds(now.since(chunk.observed)) * POLICY_RATE_HZ;
        let resting = at >= (STEPS - 1) as f64;
        let at = at.min((STEPS - 1) as f64);
        let (k, part) = (at.floor() as usize, at.fract());
        let next = (k + 1).min(STEPS - 1);
        let mut limited = false;
        let value = |(j, info): (usize, &JointInfo)| {
            let wanted = chunk.actions[k][j] * (1.0 - part) + chunk.actions[next][j] * part;
            let mut value = wanted.clamp(info.position_min, info.position_max);
            if let Some(previous) = commands.last() {
                let most = info.velocity_max * TICK_MS as f64 / 1e3;
                value = value.clamp(previous.values[j] - most, previous.values[j] + most);
            }
            limited |= value != wanted;
            value
        };
        let values = joints.iter().enumerate().map(value).collect();
        commands.push(CommandSample { stamp: now, values, chunk: chunk.id, resting, limited });
    }
    commands
}
