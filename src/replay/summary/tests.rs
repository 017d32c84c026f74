//! The promises of `summary.json`.

use proptest::prelude::*;

use super::*;
use crate::replay::recording::Measured;
use crate::replay::synthetic;

const TICKS: usize = 60;

/// Three joints that stand still just inside their upper limit of 1.0, at 100 Hz and at most 3 per second.
fn still() -> Recording {
    let info = |j: usize| JointInfo {
        name: format!("joint_{j}"),
        position_min: -1.0,
        position_max: 1.0,
        velocity_max: 3.0,
        is_velocity: false,
    };
    let command = |k: usize| CommandSample {
        stamp: Stamp(k as i64 * 10 * NS_PER_MS),
        values: vec![0.99; 3],
        chunk: 0,
        resting: false,
        limited: false,
    };
    Recording {
        joints: (0..3).map(info).collect(),
        commands: (0..TICKS).map(command).collect(),
        rate_hz: 100.0,
        end: Stamp(NS_PER_S),
        ..Recording::default()
    }
}

fn counts(recording: &Recording) -> (u64, u64) {
    let Violations { position, velocity } = summary(recording).violations;
    (position, velocity)
}

proptest! {
    #[test]
    fn one_position_outside_is_counted_once(tick in 0..TICKS, joint in 0..3_usize, by in 1e-5..0.019) {
        let mut recording = still();
        recording.commands[tick].values[joint] = 1.0 + by; // slowly enough
        prop_assert_eq!(counts(&recording), (1, 0));
        prop_assert_eq!(summary(&recording).joints[joint].violations.position, 1);
    }

    /// Measured outside by `out`, a joint may return, but not go further out than it was.
    #[test]
    fn a_joint_that_begins_outside_may_return(out in 1e-3..0.5_f64, joint in 0..3_usize, at in 1..TICKS) {
        let mut recording = still();
        let mut positions = vec![0.99; 3];
        positions[joint] = 1.0 + out;
        recording.measured_index = (0..3).map(Some).collect();
        recording.measured = vec![Measured { stamp: Stamp(0), positions }];
        for (tick, command) in recording.commands.iter_mut().enumerate() {
            command.values[joint] = (1.0 + out - 0.01 * tick as f64).max(0.99);
        }
        prop_assert_eq!(counts(&recording), (0, 0));
        recording.commands[at].values[joint] = recording.commands[at - 1].values[joint].max(1.0) + 1e-4;
        prop_assert_eq!(counts(&recording), (1, 0));
        recording.measured.clear();
        prop_assert!(counts(&recording).0 > 1, "nothing says that it began outside");
    }

    /// Outside by `out` 8 ms before the first tick, and by less at it: the later state may have come after the tick.
    #[test]
    fn a_joint_that_returns_by_itself_is_judged_by_what_was_known(out in 2e-3..0.5_f64, further in 1e-5..0.4_f64) {
        let mut recording = still();
        recording.measured_index = (0..3).map(Some).collect();
        recording.joints_max_age_ns = 100 * NS_PER_MS;
        let measured = |ms: i64, by: f64| Measured { stamp: Stamp(ms * NS_PER_MS), positions: vec![1.0 + by; 3] };
        recording.measured = vec![measured(-200, 0.9), measured(-8, out), measured(0, out - 1e-3)];
        for (tick, command) in recording.commands.iter_mut().enumerate() {
            command.values[0] = (1.0 + out - 0.01 * tick as f64).max(0.99);
        }
        prop_assert_eq!(counts(&recording), (0, 0));
        recording.commands[0].values[0] += further;
        prop_assert_eq!(counts(&recording).0, 1, "further out than it was while a state counts");
        recording.commands[0].values[0] -= further;
        recording.joints_max_age_ns = 0;
        prop_assert_eq!(counts(&recording).0, 1, "nor may what was measured too long ago be taken");
    }

    #[test]
    fn one_step_too_fast_is_counted_once(tick in 1..TICKS, joint in 0..3_usize, by in 0.0301..1.9_f64) {
        let mut recording = still();
        for command in &mut recording.commands[tick..] {
            command.values[joint] -= by;
        }
        prop_assert_eq!(counts(&recording), (0, 1));
        let peak = summary(&recording).joints[joint].velocity_peak.unwrap();
        prop_assert!((peak - by / 0.01).abs() < 1e-6);
    }

    #[test]
    fn a_value_that_is_no_number_is_counted_once(tick in 0..TICKS, joint in 0..3_usize, which in 0..3_usize) {
        let mut recording = still();
        recording.commands[tick].values[joint] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY][which];
        prop_assert_eq!(counts(&recording), (1, 0));
    }

    #[test]
    fn motion_at_its_limits_violates_none(seed in 0.0..6.0_f64, speed in 0.1..1.0_f64) {
        let mut recording = still();
        let mut at = seed.sin();
        for (k, command) in recording.commands.iter_mut().enumerate() {
            at = (at + 0.03 * speed.max((k % 2) as f64) * (seed * k as f64).cos().signum()).clamp(-1.0, 1.0);
            command.values.fill(at);
        }
        prop_assert_eq!(counts(&recording), (0, 0));
    }
}

#[test]
fn a_change_in_no_time_is_too_fast() {
    let mut recording = still();
    recording.commands[30].stamp = recording.commands[29].stamp;
    assert_eq!(counts(&recording), (0, 0), "standing still is not");
    recording.commands[30].values[1] = 0.98;
    assert_eq!(counts(&recording), (0, 1));
    assert_eq!(
        serde_json::to_value(summary(&recording)).unwrap()["joints"][1]["velocity_peak"],
        serde_json::Value::Null
    );
}

#[test]
fn a_speed_is_not_judged_where_the_time_is_not_known() {
    let mut recording = still();
    recording.commands[30].values[1] = 0.5;
    assert_eq!(counts(&recording), (0, 2), "to it and from it");
    recording.untimed = [30].into();
    assert_eq!(counts(&recording), (0, 0));
    recording.commands[30].values[1] = 1.5;
    assert_eq!(counts(&recording), (1, 0), "its position is");
}

#[test]
fn only_timings_differ_between_two_runs() {
    let text = |slower: f64| {
        let mut recording = synthetic::recording(2, 0);
        for chunk in &mut recording.chunks {
            chunk.timings.denoise_ms *= slower;
        }
        let mut json = serde_json::to_value(summary(&recording)).unwrap();
        let timings = json.as_object_mut().unwrap().shift_remove("timings").unwrap();
        (serde_json::to_string(&json).unwrap(), timings)
    };
    let (one, other) = (text(1.0), text(1.5));
    assert_eq!(one.0, other.0);
    assert_ne!(one.1, other.1);
}

#[test]
fn a_replay_is_summed_up() {
    let mut recording = synthetic::recording(6, 0);
    recording.counters.insert("chunk_rejected: not finite".into(), 3);
    recording.counters.insert("velocity_limited: left_waist".into(), 4);
    recording.counters.insert("velocity_limited: right_waist".into(), 5);
    let s = summary(&recording);
    assert_eq!((s.ticks, s.chunks, s.chunks_followed), (588, 42, 42));
    assert_eq!((s.rejected.chunks, s.rejected.inputs), (3, 2));
    assert_eq!(s.limited.by_kind["velocity_limited"], 9);
    assert_eq!((s.delay_ms.p50, s.dropped_steps.max, s.tokens_max), (Some(100.0), Some(5.0), Some(52)));
    assert_eq!((s.first_command_s, s.longest_gap_s), (Some(0.12), Some(0.01)));
    assert_eq!((s.cameras[0].masked, s.cameras[2].images + s.cameras[2].masked), (0, 42));
    assert!(s.inside_limits, "{:?}", s.violations);
    assert_eq!(s.verdict, "588 ticks, 42 chunks, 3 rejected, 2 inputs refused, commands inside limits");
    assert_eq!(s.level, Level::Attention);
    let rate = s.timings.chunks_per_second.unwrap() * s.timings.stages.total.mean_ms.unwrap();
    assert!((rate - 1000.0).abs() < 1e-9);
}

#[test]
fn a_hole_in_the_commands_is_told() {
    let mut recording = still();
    recording.commands.drain(20..50);
    let s = summary(&recording);
    assert_eq!((s.longest_gap_s, s.level), (Some(0.31), Level::Attention));
    assert!(s.verdict.contains("0.31 s without a command"), "{}", s.verdict);
    assert_eq!(summary(&still()).level, Level::Ok);
}

#[test]
fn nothing_is_summed_up_too() {
    let s = summary(&Recording::default());
    assert_eq!((s.level, s.inside_limits, s.longest_gap_s), (Level::Attention, true, None));
    assert_eq!(s.timings, TimingSummary::default());
    assert!(
        serde_json::to_string(&s)
            .unwrap()
            .starts_with("{\"verdict\":\"0 ticks, 0 chunks, 0 rejected, nothing commanded\"")
    );
}
