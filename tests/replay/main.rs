//! The main job through the real binary: a bag in, safe commands out, whatever is wrong with the bag.
//! Faults read as setup → fault → recovery → invariant.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod live;
mod world;

use std::fs;
use std::path::Path;

use pi05_thor::replay::bag::Bag;
use tempfile::TempDir;
use world::*;

fn sample(name: &str) -> String {
    format!("{}/tests/data/bags/{name}", env!("CARGO_MANIFEST_DIR"))
}

// ------------------------------------------------------------------------------------------------ the way it should be

#[test]
fn the_sample_bags_play_with_the_built_in_parameters() {
    for bag in ["aloha_sim_db3", "aloha_raw"] {
        let folder = TempDir::new().unwrap();
        let out = folder.path().to_str().unwrap();
        let output = pi05(&["replay", &sample(bag), "--out", out]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "no progress bar without a terminal");
        let summary: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.path().join("summary.json")).unwrap()).unwrap();
        assert_eq!(summary["inside_limits"], true);
        assert!(summary["chunks"].as_u64().unwrap() >= 3, "{bag}");
        let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(page.contains("left_waist") && !page.contains("http://") && !page.contains("https://"));
    }
}

#[test]
fn two_runs_write_the_same_bytes() {
    let runs = [0, 1].map(|_| replay(&healthy(0, S), &parameters("")).ok());
    let [a, b] = runs.each_ref().map(|run| fs::read(run.out("commands.mcap")).unwrap());
    assert!(a == b, "commands.mcap");
    let [a, b] = runs.each_ref().map(|run| {
        let mut summary = run.summary();
        summary.as_object_mut().unwrap().remove("timings").unwrap();
        summary["bag"] = "".into(); // each run has its own temporary folder
        serde_json::to_string(&summary).unwrap()
    });
    assert_eq!(a, b);
}

#[test]
fn commands_start_at_the_measured_position_keep_the_limits_and_end_at_rest() {
    let run = replay(&healthy(0, 2 * S), &parameters("")).ok();
    let commands = run.assert_safe();
    let (first, values) = &commands[0];
    assert!((100 * MS..130 * MS).contains(first), "one latency after the first observation: {first}");
    assert!(
        (values[0] + 0.1).abs() <= 0.01 + 1e-9 && (values[1] - 0.2).abs() <= 0.02 + 1e-9,
        "{values:?} by name"
    );
    let [.., (_, before), (_, last)] = commands.as_slice() else { panic!("commands") };
    assert_eq!(before, last, "at rest");
    let summary = run.summary();
    assert_eq!(summary["inside_limits"], true);
    assert_eq!(summary["ticks"].as_u64().unwrap() as usize, commands.len());
}

#[test]
fn an_inference_takes_the_latency_that_was_asked_for_and_its_steps_are_dropped() {
    let run = replay(&healthy(0, S), &parameters("    replay: {latency_ms: 150}\n")).ok();
    let summary = run.summary();
    // Observations are taken when a message arrives; 150 ms of 20 ms steps are 7.5.
    assert!(summary["delay_ms"]["min"].as_f64().unwrap() >= 150.0, "{summary}");
    assert!(summary["dropped_steps"]["min"].as_f64().unwrap() >= 8.0, "{summary}");
    let arrivals = run.arrivals();
    assert!(arrivals.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 150 * MS), "one at a time");
}

#[test]
fn an_observation_has_every_message_of_its_moment_whatever_their_order() {
    let plain = replay(&healthy(0, S), &parameters("")).ok();
    let mut other_order = healthy(0, S);
    other_order.reverse(); // the bag is sorted by time again: only messages of the same time change places
    assert_eq!(replay(&other_order, &parameters("")).ok().arrivals(), plain.arrivals());
    // Images come every 50 ms, an inference takes 100 ms: each begins when the one before ends, with that image.
    let [begun @ .., last] = &plain.chunks()[..] else { panic!("chunks") };
    assert_eq!(begun, (0..10).map(|k| k * 100 * MS).collect::<Vec<_>>());
    assert_eq!(*last, 980 * MS, "what came after the last one began, though the bag has ended");
    assert_eq!(plain.counted(&["no_observation"]), 0);
}

#[test]
fn a_slow_camera_is_waited_for_but_not_longer_than_the_skew_allows() {
    // setup: joints every 20 ms, but only every eighth image: one in 400 ms
    let fast = |(topic, _, log, _): &Message| *topic != CAMERA || (log - T0) % (400 * MS) == 0;
    let messages: Vec<Message> = healthy(0, 1300 * MS).into_iter().filter(fast).collect();
    let yaml = parameters(
        "    cameras: {base_0_rgb: {topic: eye/image_raw, max_age_ms: 1000}}\n    observe: {max_skew_ms: 300}\n",
    );
    let chunks = replay(&messages, &yaml).ok().chunks();
    // invariant: begun with a new image, or 300 ms after the one before
    assert_eq!(chunks, [0, 300, 400, 700, 800, 1100, 1200].map(|ms| ms * MS));
}

#[test]
fn the_seed_decides_the_noise() {
    let seeds = ["0", "0", "1", "-1", "-1"];
    let run = |seed: &&str| {
        replay(&healthy(0, 300 * MS), &parameters(&format!("    sampler: {{seed: {seed}}}\n"))).ok()
    };
    let [a, b, other, fresh, fresh_again] = seeds.each_ref().map(run).map(|run| run.commands());
    assert_eq!(a, b);
    assert!(a != other && a != fresh && fresh != fresh_again);
}

#[test]
fn a_written_checkpoint_is_the_built_in_one() {
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("robot.yaml");
    fs::write(&config, parameters("")).unwrap();
    let built_in = replay(&healthy(0, S), &parameters("")).ok();
    for layout in ["openpi", "lerobot"] {
        let checkpoint = folder.path().join(layout);
        let checkpoint = checkpoint.to_str().unwrap();
        let written =
            pi05(&["synth", "tiny", checkpoint, "--layout", layout, "--config", config.to_str().unwrap()]);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        let inspected = pi05(&["inspect", "--checkpoint", checkpoint, "--config", config.to_str().unwrap()]);
        assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stdout));
        let yaml = parameters(&format!("    checkpoint: {checkpoint}\n"));
        let run = replay(&healthy(0, S), &yaml).ok();
        let commands = run.assert_safe();
        if layout == "openpi" {
            assert_eq!(commands, built_in.commands());
        } else {
            assert_ne!(run.arrivals(), built_in.arrivals(), "LeRobot resizes otherwise");
        }
    }
}

/// Trained real-time chunking: what the arm will do while an inference runs stands at the beginning of its chunk.
#[test]
fn a_trained_prefix_is_what_the_chunk_before_says_and_others_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("robot.yaml"), parameters("")).unwrap();
    let written =
        pi05(&["synth", "tiny", &path("trained"), "--layout", "openpi", "--config", &path("robot.yaml")]);
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let file = Path::new(&path("trained")).join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    config["rtc_training_max_delay"] = 8.into();
    fs::write(&file, config.to_string()).unwrap();

    let rtc = "    control: {execution: rtc_trained}\n";
    let refused = replay(&healthy(0, S), &parameters(rtc));
    assert!(refused.code != Some(0) && refused.stderr.contains("rtc_trained"), "{}", refused.stderr);

    // An inference takes 100 ms, 5 steps, and one follows the other.
    let run =
        replay(&healthy(0, 2 * S), &parameters(&format!("{rtc}    checkpoint: {}\n", path("trained")))).ok();
    run.assert_safe();
    let chunks = run.actions();
    assert!(chunks.len() > 15, "{}", chunks.len());
    for pair in chunks.windows(2) {
        let [(before, old), (observed, new)] = pair else { panic!("pairs") };
        let passed = ((observed - before) / (20 * MS)) as usize;
        assert_eq!((observed - before) % (20 * MS), 0);
        for (step, (old, new)) in old[passed..].iter().zip(new).take(5).enumerate() {
            for (old, new) in old.iter().zip(new) {
                assert!(
                    (old - new).abs() < 1e-4,
                    "step {step} of the chunk of {observed}: {old} became {new}"
                );
            }
        }
        assert_ne!(old[passed + 10..passed + 15], new[10..15], "what comes later is new");
    }

    // Slower than any prefix it was trained with: a chunk is followed only where nothing is left of one before, at the
    // beginning and after a second; the fifth that is too late is a fault.
    let slow = "    replay: {latency_ms: 200}\n";
    let yaml = parameters(&format!("{rtc}{slow}    checkpoint: {}\n", path("trained")));
    let run = replay(&healthy(0, 4 * S), &yaml).ok();
    run.assert_safe();
    assert_eq!(run.actions().len(), 2);
    assert!(run.counted(&["chunk_rejected"]) >= 5, "{}", run.summary());
}

#[test]
fn the_command_type_is_the_configured_one() {
    for (name, kind) in [
        ("float64_multi_array", "std_msgs/msg/Float64MultiArray"),
        ("joint_state", "sensor_msgs/msg/JointState"),
        ("joint_trajectory", "trajectory_msgs/msg/JointTrajectory"),
    ] {
        let run =
            replay(&healthy(0, 300 * MS), &parameters(&format!("    control: {{command: {name}}}\n"))).ok();
        let bag = Bag::open(run.out("commands.mcap")).unwrap();
        assert_eq!(bag.topics()[bag.topic("/commands").unwrap()].type_name, kind);
    }
}

#[test]
fn every_trajectory_goes_on_from_the_one_before_and_ends_at_rest() {
    let run = replay(&healthy(0, 2 * S), &parameters("    control: {command: joint_trajectory}\n")).ok();
    let sent = run.trajectories();
    assert!(sent.len() >= run.chunks().len() && sent.len() > 15, "{}", sent.len());
    for pair in sent.windows(2) {
        let [before, next] = pair else { panic!("pairs") };
        let (at, begins) = &next[0];
        let by_then = before.iter().rfind(|(time, _)| time <= at).unwrap();
        assert_eq!(&by_then.1, begins, "at {at}");
    }
    for trajectory in &sent {
        let [.., (before, from), (end, to)] = &trajectory[..] else { continue };
        assert_eq!(end - before, 10 * MS);
        // A tick's worth of the acceleration that the limits permit is what the last step may be fast.
        assert!(from.iter().zip(to).all(|(from, to)| (to - from).abs() <= 5.0 * 0.01 * 0.01 + 1e-9), "{end}");
    }
}

#[test]
fn a_motion_is_followed_to_its_rest_however_long_it_takes() {
    // A chunk of 50 steps lasts 12.5 s, and nothing goes stale meanwhile.
    let yaml = parameters("    control: {policy_rate_hz: 4.0}\n    joints: {max_age_ms: 60000}\n");
    let mut messages = healthy(0, S);
    messages.extend(healthy(40 * S, 41 * S));
    let run = replay(&messages, &yaml).ok();
    let commands = run.commands();
    let rests = |at: usize| commands[at].1 == commands[at - 1].1;
    let gaps: Vec<usize> =
        (2..commands.len()).filter(|&k| commands[k].0 - commands[k - 1].0 > 10 * MS).collect();
    assert_eq!(gaps.len(), 1);
    assert!(rests(gaps[0] - 1) && rests(commands.len() - 1));
    assert!(commands[gaps[0] - 1].0 > 13 * S && commands.last().unwrap().0 > 53 * S);
    assert_eq!(run.summary()["notes"], serde_json::json!([]));
}

#[test]
fn a_joint_that_is_measured_a_little_outside_returns_and_that_is_no_violation() {
    let messages: Vec<Message> = healthy(0, S)
        .into_iter()
        .map(|(topic, kind, log, payload)| match topic.as_str() {
            JOINTS => joints(log, log, &["a", "b"], &[1.03, 0.2]),
            _ => (topic, kind, log, payload),
        })
        .collect();
    let run = replay(&messages, &parameters("")).ok();
    let commands = run.commands();
    assert!(commands[0].1[0] > 1.0, "it begins where it is");
    assert!(commands.iter().rev().take(50).all(|(_, values)| values[0] <= 1.0), "and returns");
    assert_eq!(run.summary()["inside_limits"], true);
}

#[test]
fn a_velocity_rests_at_zero() {
    let yaml = parameters("    joints: {velocity_controlled: [true, false]}\n");
    let commands = replay(&healthy(0, S), &yaml).ok().commands();
    assert!(commands.iter().any(|(_, values)| values[0] != 0.0));
    assert_eq!(commands.last().unwrap().1[0], 0.0);
}

// -------------------------------------------------------------------------------------------------------------- topics

#[test]
fn topics_are_found_under_a_namespace_or_as_their_raw_twin() {
    let messages: Vec<Message> = healthy(0, 300 * MS)
        .into_iter()
        .map(|(topic, k, t, p)| (format!("/left_cell{topic}"), k, t, p))
        .collect();
    let yaml = parameters("    cameras: {base_0_rgb: {topic: eye/image_raw/compressed}}\n");
    let run = replay(&messages, &yaml).ok();
    assert!(run.stdout.contains("/left_cell/eye/image_raw is used"), "{}", run.stdout);
}

#[test]
fn parameters_that_do_not_fit_the_bag_are_refused_in_one_line() {
    for (extra, words) in [
        (
            "    cameras: {base_0_rgb: {topic: nose}}\n",
            ["cameras.base_0_rgb.topic", "nose", "/eye/image_raw"],
        ),
        (
            "    cameras: {base_0_rgb: {topic: joint_states}}\n",
            ["cameras.base_0_rgb.topic", "sensor_msgs/msg/Image", "JointState"],
        ),
        ("    joints: {topic: elbows}\n", ["joints.topic", "elbows", "/joint_states"]),
        (
            "    cameras: {third_eye: {topic: eye/image_raw}}\n",
            ["cameras.third_eye", "base_0_rgb", "third_eye"],
        ),
    ] {
        let run = replay(&healthy(0, 100 * MS), &parameters(extra));
        assert_eq!(run.code, Some(1), "{extra}");
        assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
        assert!(words.iter().all(|word| run.stderr.contains(word)), "{words:?} in {}", run.stderr);
        assert!(!run.out("commands.mcap").exists());
    }
}

#[test]
fn where_every_message_of_a_source_is_refused_the_reason_is_told() {
    type Change = fn(Message) -> Message;
    let image_as: Change = |(topic, kind, log, payload)| match topic.as_str() {
        CAMERA if log >= T0 + 100 * MS => image(log, log, "telepathy", 0),
        CAMERA => image(log, log, "rgb8", 7),
        _ => (topic, kind, log, payload),
    };
    let not_a_number: Change = |(topic, kind, log, payload)| match topic.as_str() {
        JOINTS => joints(log, log, &["a", "b"], &[f64::NAN, 0.0]),
        _ => (topic, kind, log, payload),
    };
    let as_they_are: Change = |message| message;
    for (change, joints, words) in [
        (as_they_are, "[a, wrist]", ["joints: 0 of 15 messages", "(15 times)", "lacks \"wrist\""]),
        (not_a_number, "[a, b]", ["joints: 0 of 15 messages", "(15 times)", "position of \"a\" is NaN"]),
        (image_as, "[a, b]", ["base_0_rgb: 0 of 6 messages", "(4 times)", "telepathy"]),
    ] {
        let messages: Vec<Message> = healthy(0, 300 * MS).into_iter().map(change).collect();
        let run = replay(&messages, &parameters("").replace("[a, b]", joints));
        assert_eq!(run.code, Some(1));
        let notes = run.summary()["notes"].clone();
        let [note] = &notes.as_array().unwrap()[..] else { panic!("{notes}") };
        let note = note.as_str().unwrap();
        assert!(words.iter().all(|word| note.contains(word)), "{words:?} in {note}");
        assert!(run.stdout.contains(note), "{}", run.stdout);
        assert!(run.commands().is_empty());
    }
}

#[test]
fn where_every_inference_comes_to_nothing_the_reason_is_told() {
    for (line, why) in [
        ("    replay: {latency_ms: 3000}", "all its steps had passed"),
        (&format!("    prompt: {}", "a".repeat(4097)), "the prompt has 4097 bytes"),
    ] {
        let run = replay(&healthy(0, 4 * S), &parameters(line));
        assert_eq!(run.code, Some(1));
        assert!(run.stdout.contains("no chunk was taken") && run.stdout.contains(why), "{}", run.stdout);
    }
}

#[test]
fn a_bag_without_messages_of_the_topics_is_found_wanting() {
    let only_prompts = vec![
        prompt(T0, "hello"),
        (CAMERA.into(), COMPRESSED, T0, Vec::new()),
        joints(T0, T0, &["a", "b"], &[0.0, 0.0]),
    ];
    let run = replay(&only_prompts, &parameters(""));
    assert_eq!(run.code, Some(1));
    assert!(run.stdout.contains("base_0_rgb: 0 of 1 messages taken"), "{run:?}");
}

// -------------------------------------------------------------------------------------------------------------- faults

#[test]
fn a_frozen_camera_stops_inference_and_the_arm_and_its_return_resumes_both() {
    // setup: one healthy second; fault: no images from 1 s to 3 s; recovery: images again
    let frozen = |(topic, _, log, _): &Message| *topic == CAMERA && (T0 + S..T0 + 3 * S).contains(log);
    let messages: Vec<Message> = healthy(0, 4 * S).into_iter().filter(|m| !frozen(m)).collect();
    let run = replay(&messages, &parameters("")).ok();
    // invariant: no observation with an image older than 200 ms; at rest meanwhile; within limits throughout
    let chunks = run.chunks();
    assert!(!chunks.iter().any(|&t| t > 950 * MS + 200 * MS && t < 3 * S), "{chunks:?}");
    assert!(chunks.iter().any(|&t| t >= 3 * S));
    let commands = run.assert_safe();
    let at = |t: i64| commands.iter().rfind(|(time, _)| *time <= t).unwrap();
    assert_eq!(at(2800 * MS).1, at(2990 * MS).1, "at rest before the camera returns");
    assert_eq!(run.counted(&["no_observation", "base_0_rgb", "too old"]), 1);
}

#[test]
fn stale_joints_stop_inference() {
    let stale = |(topic, _, log, _): &Message| *topic == JOINTS && *log > T0 + S;
    let messages: Vec<Message> = healthy(0, 3 * S).into_iter().filter(|m| !stale(m)).collect();
    let run = replay(&messages, &parameters("")).ok();
    assert!(run.chunks().iter().all(|&t| t <= S + 100 * MS));
    run.assert_safe();
    assert_eq!(run.counted(&["no_observation", "joints", "too old"]), 1);
}

#[test]
fn a_fault_is_told_with_its_reason_and_time_wherever_results_are_read() {
    // setup: a healthy second; fault: no joint states for two seconds, where one is too long; then they are back
    let gone = |(topic, _, log, _): &Message| *topic == JOINTS && (T0 + S..T0 + 3 * S).contains(log);
    let before: Vec<Message> = healthy(0, 5 * S).into_iter().filter(|m| !gone(m)).collect();
    let yaml = parameters("    joints: {fault_after_ms: 1000}\n");
    let run = replay(&before, &yaml).ok();
    assert!(run.chunks().iter().all(|&t| t < 2 * S), "a fault lasts until somebody resets it");
    let summary = run.summary();
    let [note] = &summary["notes"].as_array().unwrap()[..] else { panic!("{}", summary["notes"]) };
    let note = note.as_str().unwrap();
    let rest = note.strip_prefix("fault at ").unwrap_or_else(|| panic!("{note}"));
    let at: f64 = rest.split_once(" s ").unwrap().0.parse().unwrap();
    assert!((2.0..2.5).contains(&at), "stale after 0.98 s and some, for a second: {note}");
    assert!(note.contains("joint states were stale for longer than joints.fault_after_ms"), "{note}");
    let page = fs::read_to_string(run.out("report.html")).unwrap();
    assert!(run.stdout.contains(note) && page.contains(note), "{}", run.stdout);
    assert_eq!(summary["level"], "attention");

    // A pause of the recording resets nothing: the arm stays where it is, and the note is the same.
    let mut messages = before;
    messages.extend(healthy(65 * S, 66 * S));
    let run = replay(&messages, &yaml).ok();
    assert!(run.chunks().iter().all(|&t| t < 2 * S));
    assert_eq!(run.counted(&["gap_skipped"]), 1);
    assert!(run.stdout.contains(note), "{}", run.stdout);
}

#[test]
fn broken_messages_are_dropped_and_counted_by_reason() {
    let mut messages = healthy(0, S);
    let at = T0 + 500 * MS;
    messages.extend([
        image(at + MS, at + MS, "rgb8", 7),
        image(at + 2 * MS, at + 2 * MS, "telepathy", 0),
        (CAMERA.into(), "sensor_msgs/msg/Image", at + 3 * MS, vec![1, 2, 3]),
        joints(at + 4 * MS, at + 4 * MS, &["a", "b"], &[f64::NAN, 0.0]),
        joints(at + 5 * MS, at + 5 * MS, &["a", "a", "b"], &[0.0, 0.0, 0.0]),
        joints(at + 6 * MS, at + 6 * MS, &["a"], &[0.0]),
        (JOINTS.into(), "sensor_msgs/msg/JointState", at + 7 * MS, Vec::new()),
    ]);
    let run = replay(&messages, &parameters("")).ok();
    assert_eq!(run.counted(&["image_dropped"]), 3);
    assert_eq!(run.counted(&["image_dropped", "telepathy"]), 1);
    assert_eq!(run.counted(&["joints_dropped"]), 4);
    let healthy = replay(&healthy(0, S), &parameters("")).ok();
    assert_eq!(run.chunks().len(), healthy.chunks().len());
    run.assert_safe();
}

#[test]
fn a_clock_that_jumps_clears_the_buffers_and_brakes_until_everything_is_fresh() {
    // setup: a healthy second; fault: all stamps leap, whichever source is the first to say so
    for (jump, from) in [(-1000 * S, S), (1000 * S, S), (-1000 * S, 1050 * MS)] {
        let shifted = |t: i64| if t >= T0 + from { t + jump } else { t };
        let messages: Vec<Message> = healthy(0, 2 * S)
            .into_iter()
            .map(|(topic, _, log, _)| match topic.as_str() {
                CAMERA => image(log, shifted(log), "rgb8", 0),
                _ => joints(log, shifted(log), &["a", "b"], &[-0.1, 0.2]),
            })
            .collect();
        let run = replay(&messages, &parameters("")).ok();
        assert_eq!(run.counted(&["clock_jump"]), 1, "{jump}");
        assert!(run.counted(&["interruptions"]) >= 1, "{jump}: it brakes");
        let commands = run.assert_safe();
        assert!(commands.len() > 180 && commands.len() < 400, "{}", commands.len());
        assert!(run.chunks().iter().any(|&t| t > S + 100 * MS), "inference goes on");
    }
}

#[test]
fn a_camera_whose_stamps_freeze_or_begin_anew_is_alone_in_that_and_its_return_resumes() {
    // setup: five healthy seconds; fault: from 1 s to 3 s the camera's stamps stand still, or count from 0
    let stamps: [fn(i64) -> i64; 2] = [|_| T0 + S, |log| log - T0];
    for stamp in stamps {
        let messages: Vec<Message> = healthy(0, 5 * S)
            .into_iter()
            .map(|(topic, kind, log, payload)| match (T0 + S..T0 + 3 * S).contains(&log) && topic == CAMERA {
                true => image(log, stamp(log), "rgb8", 0),
                false => (topic, kind, log, payload),
            })
            .collect();
        let run = replay(&messages, &parameters("")).ok();
        // invariant: no inference while it lasts, every joint state counts; recovery: as after any other drop-out
        let chunks = run.chunks();
        assert!(!chunks.iter().any(|t| (1300 * MS..3 * S).contains(t)), "{chunks:?}");
        assert!(chunks.iter().filter(|t| **t >= 3 * S).count() >= 15, "{chunks:?}");
        let [jumps, stale, dropped] =
            ["clock_jump", "joints_stale", "joints_dropped"].map(|name| run.counted(&[name]));
        assert_eq!((jumps, stale, dropped), (0, 0, 0));
        assert!(run.counted(&["out_of_step", "base_0_rgb"]) >= 15);
        run.assert_safe();
    }
}

#[test]
fn simulated_time_may_begin_with_a_stamp_of_zero_and_pass_slowly() {
    let plain = replay(&healthy(0, S), &parameters("")).ok();
    for slower in [1, 30] {
        let messages: Vec<Message> = healthy(0, S)
            .into_iter()
            .map(|(topic, _, log, _)| {
                let (log, stamp) = (T0 + (log - T0) * slower, log - T0);
                if topic == CAMERA {
                    image(log, stamp, "rgb8", 0)
                } else {
                    joints(log, stamp, &["b", "a"], &[0.2, -0.1])
                }
            })
            .collect();
        let run = replay(&messages, &parameters("")).ok();
        // What is stamped 0 counts from its log time, here at most 0.6 s too early: the first inference has to wait.
        assert!(run.chunks().len() + 1 >= plain.chunks().len(), "{slower}: {:?}", run.chunks());
        assert_eq!((run.counted(&["clock_jump"]), run.counted(&["joints_stale"])), (0, 0), "{slower}");
        let duration = run.summary()["duration_s"].as_f64().unwrap();
        assert!((duration - 0.96).abs() <= 0.021, "{slower}: {duration}");
    }
}

#[test]
fn messages_without_a_stamp_count_from_their_log_time() {
    let messages: Vec<Message> = healthy(0, S)
        .into_iter()
        .map(|(topic, _, log, _)| match topic.as_str() {
            CAMERA => image(log, 0, "rgb8", 0),
            _ => joints(log, 0, &["b", "a"], &[0.2, -0.1]),
        })
        .collect();
    let unstamped = replay(&messages, &parameters("")).ok();
    assert_eq!(unstamped.commands(), replay(&healthy(0, S), &parameters("")).ok().commands());
}

#[test]
fn an_hour_without_messages_is_not_an_hour_of_ticks() {
    let mut messages = healthy(0, S);
    messages.extend(healthy(3600 * S, 3601 * S));
    let run = replay(&messages, &parameters("")).ok();
    assert!(run.summary()["ticks"].as_u64().unwrap() < 2500);
    assert_eq!(run.counted(&["gap_skipped"]), 1);
    assert!(run.chunks().iter().any(|&t| t > 3600 * S), "and inference resumes");
}

#[test]
fn a_gap_is_no_fault_however_long_joints_may_stay_away() {
    // setup: a second of messages; fault: none for a minute; recovery: another second, which begins between two ticks
    let mut messages = healthy(0, S);
    messages.extend(healthy(61 * S + 5 * MS, 62 * S));
    for fault_after_ms in [1000, 20_000, 3_600_000] {
        let yaml = parameters(&format!("    joints: {{fault_after_ms: {fault_after_ms}}}\n"));
        let run = replay(&messages, &yaml).ok();
        let resumed = run.chunks().iter().filter(|&&t| t >= 61 * S).count();
        assert!(resumed >= 10, "{resumed} chunks after the gap, with {fault_after_ms} ms");
        // invariant: that the recording paused is told as that, not as a fault of the robot
        assert_eq!(run.counted(&["gap_skipped"]), 1);
        assert_eq!(run.summary()["notes"], serde_json::json!([]), "{fault_after_ms}");
    }
}

#[test]
fn a_new_prompt_counts_from_the_next_chunk_and_one_that_does_not_fit_changes_nothing() {
    let plain = replay(&healthy(0, S), &parameters("")).ok();
    let mut changed = healthy(0, S);
    changed.push(prompt(T0 + 500 * MS, "stack the cubes"));
    let run = replay(&changed, &parameters("")).ok();
    for ((arrived, chunk), (_, as_before)) in run.arrivals().iter().zip(&plain.arrivals()) {
        // An inference takes 100 ms; one that begins at 500 ms knows the prompt of 500 ms.
        assert_eq!(chunk == as_before, *arrived < 600 * MS, "the chunk of {arrived}");
    }
    assert!(run.stdout.contains("stack the cubes"));

    let mut too_long = healthy(0, S);
    too_long.push(prompt(T0 + 500 * MS, &"zebra ".repeat(150)));
    let run = replay(&too_long, &parameters("")).ok();
    assert_eq!(run.counted(&["prompt_dropped", "tokens"]), 1);
    assert_eq!(run.commands(), plain.commands());

    // Of the parameters it is cut off, as the references do, and that is said.
    let run = replay(&healthy(0, S), &parameters(&format!("    prompt: \"{}\"", "zebra ".repeat(150)))).ok();
    assert!(run.stdout.contains("its end was cut off: shorten it"), "{}", run.stdout);
}

#[test]
fn a_cut_bag_plays_to_its_last_whole_record_and_says_so() {
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(format!("{}/aloha_raw.mcap", sample("aloha_raw"))).unwrap();
    let cut = folder.path().join("cut.mcap");
    fs::write(&cut, &bytes[..bytes.len() * 2 / 3]).unwrap();
    let out = folder.path().join("out");
    let output = pi05(&["replay", cut.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("truncated"), "{stdout}");
    let summary = fs::read_to_string(out.join("summary.json")).unwrap();
    assert!(summary.contains("truncated"));
}

#[test]
fn where_a_topic_is_missing_it_is_said_that_the_bag_is_cut() {
    let folder = TempDir::new().unwrap();
    let bytes = fs::read(format!("{}/aloha_raw.mcap", sample("aloha_raw"))).unwrap();
    let cut = folder.path().join("cut.mcap");
    fs::write(&cut, &bytes[..200]).unwrap();
    for command in ["replay", "splice"] {
        let output = pi05(&[command, cut.to_str().unwrap()]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{command}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("expected topic") && stderr.contains("truncated"), "{stderr}");
    }
}

#[test]
fn splices_of_a_bag_without_an_observation_are_found_wanting() {
    let folder = TempDir::new().unwrap();
    let (bag, config) = (folder.path().join("bag.mcap"), folder.path().join("robot.yaml"));
    write_mcap(&bag, &healthy(0, 300 * MS));
    fs::write(&config, parameters("").replace("[a, b]", "[a, wrist]")).unwrap();
    let output = pi05(&["splice", bag.to_str().unwrap(), "--config", config.to_str().unwrap()]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout.contains("note: ") && stdout.contains("lacks \"wrist\""), "{stdout}");
}

#[test]
fn results_are_whole_or_not_there() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let output = pi05(&["replay", &sample("aloha_raw"), "--out", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains(file.to_str().unwrap()) && stderr.lines().count() == 1, "{stderr}");

    // A full disk: every write to this device fails.
    if Path::new("/dev/full").exists() {
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink("/dev/full", out.join("commands.mcap.partial")).unwrap();
        let output = pi05(&["replay", &sample("aloha_raw"), "--out", out.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains("commands.mcap"));
        assert!(!out.join("commands.mcap").exists());
    }
}

#[test]
fn real_time_takes_the_time_of_the_bag() {
    let folder = TempDir::new().unwrap();
    let bag = folder.path().join("bag.mcap");
    write_mcap(&bag, &healthy(0, 2 * S));
    let config = folder.path().join("robot.yaml");
    fs::write(&config, parameters("")).unwrap();
    let out = folder.path().join("out");
    let start = std::time::Instant::now();
    let output = pi05(&[
        "replay",
        bag.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--speed",
        "2",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(start.elapsed().as_secs_f64() >= 0.95, "two bag seconds at twice the speed");
    let replayed = Replayed { code: Some(0), stdout: String::new(), stderr: String::new(), folder };
    assert!(!replayed.chunks().is_empty());
    replayed.assert_safe();
}
