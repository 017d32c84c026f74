//! `pi05 report`: a bag recorded beside the node, and the report of it.

use std::fs;

use pi05_thor::clock::Stamp;
use pi05_thor::messages::{
    ActionChunkMessage, FLOAT64_MULTI_ARRAY, PolicyStatusMessage, put_float64_multi_array,
};
use tempfile::TempDir;

use crate::world::*;

/// One second of a run: chunks every 100 ms, commands every 10 ms as fast as the first joint may, logged late by up to
/// 3 ms. The node is activated anew at 500 ms: its chunks count from 0 again.
fn run() -> Vec<Message> {
    let chunk = |k: i64| {
        let observed = T0 + k * 100 * MS;
        let payload = ActionChunkMessage {
            stamp: Stamp(observed),
            id: (k % 5) as u64,
            prompt: "stack",
            joint_names: vec!["a", "b"],
            steps: 10,
            period: 0.02,
            actions: vec![0.25; 20],
            tokens: 12,
            image_stamps: vec![Some(Stamp(observed)), None, None],
            joints_stamp: Stamp(observed),
            vision_ms: 30.0,
            ..Default::default()
        }
        .encode();
        ("/policy/chunks".to_owned(), ActionChunkMessage::TYPE, observed + 50 * MS, payload)
    };
    let command = |k: i64| {
        let mut payload = Vec::new();
        put_float64_multi_array(&[-0.1 + k as f64 * 0.01, 0.2], &mut payload);
        let late = k * 7 % 4 * MS;
        ("/commands".to_owned(), FLOAT64_MULTI_ARRAY, T0 + 60 * MS + k * 10 * MS + late, payload)
    };
    let status = PolicyStatusMessage { engine: "cpu f32", checkpoint: "my_model", ..Default::default() };
    let mut messages = healthy(0, S);
    messages.extend((0..9).map(chunk).chain((0..90).map(command)));
    messages.push(("/policy/status".to_owned(), PolicyStatusMessage::TYPE, T0, status.encode()));
    messages
}

fn report(messages: &[Message]) -> Replayed {
    report_with(messages, "command_topic: commands")
}

/// With these parameters of `control`.
fn report_with(messages: &[Message], control: &str) -> Replayed {
    let folder = TempDir::new().unwrap();
    let bag = folder.path().join("live.mcap");
    write_mcap(&bag, messages);
    let config = folder.path().join("robot.yaml");
    fs::write(&config, parameters(&format!("    control: {{{control}}}\n"))).unwrap();
    let out = folder.path().join("out");
    let arguments = [&bag, &config, &out].map(|path| path.to_str().unwrap());
    let output = pi05(&["report", arguments[0], "--config", arguments[1], "--out", arguments[2]]);
    Replayed {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        folder,
    }
}

#[test]
fn a_live_run_is_reported_like_a_replay() {
    let run = report(&run()).ok();
    let summary = run.summary();
    assert_eq!((&summary["chunks"], &summary["ticks"]), (&9.into(), &90.into()));
    assert_eq!(summary["chunks_followed"], 9, "numbers that begin anew are not mixed up");
    assert_eq!(summary["inside_limits"], true, "the recorder's jitter is no speed: {}", summary["joints"]);
    let peak = summary["joints"][0]["velocity_peak"].as_f64().unwrap();
    assert!((peak - 1.0).abs() < 1e-6, "{peak}");
    assert_eq!(summary["delay_ms"]["p50"], 50.0);
    assert_eq!(summary["cameras"][0]["age_p50_ms"], 20.0, "50 ms less the inference's own 30");
    assert_eq!((&summary["prompt"], &summary["checkpoint"]), (&"stack".into(), &"my_model".into()));
    assert_eq!(summary["engine"], "cpu f32");
    let page = fs::read_to_string(run.out("report.html")).unwrap();
    assert_eq!(page.matches("data:image/jpeg").count(), 9, "the image of each chunk");
}

/// The same run with commands as joint states, and with the stamps that `stamp` makes of the right ones.
fn stamped(stamp: fn(i64) -> i64) -> Vec<Message> {
    let command = |k: i64| {
        let at = T0 + 60 * MS + k * 10 * MS;
        let (_, kind, log, payload) = joints(at, stamp(at), &["b", "a"], &[0.2, -0.1 + k as f64 * 0.01]);
        ("/commands".to_owned(), kind, log, payload)
    };
    let recorded = run().into_iter().filter(|(topic, ..)| topic != "/commands");
    let recorded = recorded.map(|(topic, kind, log, payload)| match topic.as_str() {
        CAMERA => image(log + 3 * MS, stamp(log), "rgb8", 0), // logged a little after the node had it
        JOINTS => joints(log, stamp(log), &["b", "extra", "a"], &[0.2, 9.0, -0.1]),
        _ => (topic, kind, log, payload),
    });
    recorded.chain((0..90).map(command)).collect()
}

#[test]
fn messages_without_a_stamp_count_from_their_log_time() {
    let reported = |stamp| {
        let run = report_with(&stamped(stamp), "command_topic: commands, command: joint_state").ok();
        let page = fs::read_to_string(run.out("report.html")).unwrap();
        let mut summary = run.summary();
        summary["bag"] = "".into(); // each run has its own temporary folder
        (summary, page.matches("data:image/jpeg").count())
    };
    let (unstamped, stamped) = (reported(|_| 0), reported(|at| at));
    assert_eq!(unstamped, stamped);
    assert_eq!((&stamped.0["rejected"]["inputs"], stamped.1), (&0.into(), 9));
    assert!(stamped.0["duration_s"].as_f64().unwrap() < 1.0);
}

#[test]
fn what_was_not_recorded_is_said_and_the_rest_is_shown() {
    let only_chunks: Vec<Message> =
        run().into_iter().filter(|(topic, ..)| topic.starts_with("/policy")).collect();
    let run = report(&only_chunks).ok();
    assert_eq!((&run.summary()["chunks"], &run.summary()["ticks"]), (&9.into(), &0.into()));
    assert!(run.stdout.contains("joints.topic") && run.stdout.contains("control.command_topic"), "{run:?}");
}

#[test]
fn a_command_outside_its_limit_is_found() {
    let mut messages = run();
    let mut payload = Vec::new();
    put_float64_multi_array(&[0.8, 0.95], &mut payload);
    messages.push(("/commands".to_owned(), FLOAT64_MULTI_ARRAY, T0 + 960 * MS, payload));
    let run = report(&messages);
    assert_eq!(run.code, Some(1));
    assert_eq!(run.summary()["violations"]["position"], 1);
}

#[test]
fn a_command_with_a_value_that_is_no_number_or_missing_is_found_whatever_its_type() {
    let values = |values: &[f64]| {
        let mut payload = Vec::new();
        put_float64_multi_array(values, &mut payload);
        (FLOAT64_MULTI_ARRAY, payload)
    };
    let state = |names: &[&str], position: &[f64]| {
        let (_, kind, _, payload) = joints(T0, T0 + 960 * MS, names, position);
        (kind, payload)
    };
    let by_name = stamped(|at| at);
    for (recorded, control, (kind, payload), violations) in [
        (&run(), "", values(&[f64::NAN, 0.2]), 1),
        (&run(), "", values(&[0.79, 0.2, 0.0]), 2),
        (&run(), "", values(&[]), 2),
        (&by_name, "joint_state", state(&["b", "a"], &[0.2, f64::NAN]), 1),
        (&by_name, "joint_state", state(&["a"], &[0.79]), 1),
        (&by_name, "joint_state", state(&["a", "b"], &[0.79]), 2),
        (&by_name, "joint_state", state(&["a", "a", "b"], &[0.79, 0.5, 0.2]), 1),
        (&by_name, "joint_state", state(&["elbow"], &[f64::NAN]), 0), // somebody else's
    ] {
        let mut messages = recorded.clone();
        messages.push(("/commands".to_owned(), kind, T0 + 960 * MS, payload));
        let control = if control.is_empty() { "float64_multi_array" } else { control };
        let run = report_with(&messages, &format!("command_topic: commands, command: {control}"));
        assert_eq!(run.summary()["violations"]["position"], violations, "{run:?}");
        assert_eq!(run.code, Some(i32::from(violations > 0)), "{run:?}");
    }
}

#[test]
fn the_speed_of_commands_that_were_logged_together_is_not_judged_and_that_is_said() {
    // setup: a recorder that stalls for 60 ms and then logs what it missed within a millisecond, in any order
    let mut messages = run();
    let commands = messages.iter_mut().filter(|(topic, ..)| topic == "/commands");
    for (k, (_, _, log, _)) in commands.enumerate().filter(|(k, _)| (40..46).contains(k)) {
        *log = T0 + 60 * MS + 460 * MS + (46 - k as i64) * 10_000;
    }
    let run = report(&messages).ok();
    assert_eq!(run.summary()["inside_limits"], true, "{}", run.stdout);
    assert!(run.stdout.contains("commands were logged together"), "{}", run.stdout);
}

#[test]
fn a_chunk_is_read_by_the_names_of_its_joints() {
    let chunk = |joint_names: Vec<&'static str>, actions: [f64; 2]| {
        let payload = ActionChunkMessage {
            stamp: Stamp(T0),
            joint_names,
            steps: 10,
            period: 0.02,
            actions: actions.repeat(10),
            ..Default::default()
        };
        ("/policy/chunks".to_owned(), ActionChunkMessage::TYPE, T0 + 50 * MS, payload.encode())
    };
    let reported = |names: [&'static str; 2], actions: [f64; 2]| {
        let mut messages = healthy(0, S);
        messages.push(chunk(names.into(), actions));
        let run = report(&messages);
        let page = fs::read_to_string(run.out("report.html")).unwrap();
        (run.summary()["chunks"].as_u64().unwrap(), page.replace(run.folder.path().to_str().unwrap(), ""))
    };
    assert_eq!(reported(["b", "a"], [0.75, 0.25]), reported(["a", "b"], [0.25, 0.75]));
    assert_ne!(reported(["b", "a"], [0.25, 0.75]).1, reported(["a", "b"], [0.25, 0.75]).1);
    assert_eq!(reported(["a", "elbow"], [0.25, 0.75]).0, 0, "of another robot");
}

#[test]
fn broken_messages_of_the_node_are_counted() {
    let mut messages = run();
    let uneven =
        ActionChunkMessage { steps: u32::MAX, joint_names: vec!["a", "b"], ..Default::default() }.encode();
    messages.push(("/policy/chunks".to_owned(), ActionChunkMessage::TYPE, T0 + 980 * MS, uneven));
    messages.push(("/policy/chunks".to_owned(), ActionChunkMessage::TYPE, T0 + 981 * MS, vec![0, 1, 0]));
    messages.push(("/commands".to_owned(), FLOAT64_MULTI_ARRAY, T0 + 982 * MS, vec![0, 1, 0, 0, 9]));
    let run = report(&messages).ok();
    assert_eq!((run.counted(&["chunk_rejected"]), run.counted(&["command_dropped"])), (2, 1));
    assert_eq!(run.summary()["chunks"], 9);
}

#[test]
fn a_bag_without_the_node_is_refused_in_one_line() {
    let run = report(&healthy(0, 100 * MS));
    assert_eq!(run.code, Some(1));
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
    assert!(run.stderr.contains("ActionChunk"), "{}", run.stderr);
}

#[test]
fn a_run_of_another_robot_than_the_parameters_name_is_told_as_that() {
    let others = || run().into_iter().filter(|(topic, ..)| topic != "/policy/chunks");
    let chunk = ActionChunkMessage {
        stamp: Stamp(T0),
        joint_names: vec!["shoulder", "elbow", "wrist"],
        steps: 1,
        actions: vec![0.0; 3],
        ..Default::default()
    };
    let payload = chunk.encode();
    let chunk = ("/policy/chunks".to_owned(), ActionChunkMessage::TYPE, T0 + 50 * MS, payload);
    let run = report(&others().chain([chunk]).collect::<Vec<_>>());
    assert_eq!(run.code, Some(1));
    let told = "the joints shoulder, elbow, wrist; the parameters name a, b";
    assert!(run.stdout.contains(told) && run.stdout.contains("--config"), "{}", run.stdout);

    // Commands of another width are another robot's, where all are.
    let mut wide = Vec::new();
    put_float64_multi_array(&[0.0; 3], &mut wide);
    let rewritten = others().map(|(topic, kind, log, payload)| match topic.as_str() {
        "/commands" => (topic, kind, log, wide.clone()),
        _ => (topic, kind, log, payload),
    });
    let run = report(
        &rewritten.chain(self::run().into_iter().filter(|m| m.0 == "/policy/chunks")).collect::<Vec<_>>(),
    );
    assert_eq!((run.code, run.counted(&["command_dropped"])), (Some(0), 90), "{run:?}");
    assert!(run.stdout.contains("nothing commanded"), "{}", run.stdout);
}

#[test]
fn trajectories_are_counted_and_said_to_be_unjudged_and_ticks_of_the_flight_recorder_are_judged() {
    let control = "command_topic: commands, command: joint_trajectory";
    let kind = "trajectory_msgs/msg/JointTrajectory";
    let sent = run().into_iter().map(|(topic, was, log, payload)| match topic.as_str() {
        "/commands" => (topic, kind, log, payload),
        _ => (topic, was, log, payload),
    });
    let run = report_with(&sent.collect::<Vec<_>>(), control).ok();
    let line = run.stdout.lines().next().unwrap();
    assert!(line.contains("90 trajectories commanded, not judged"), "{line}");
    assert!(
        run.stdout.contains("note: commands are trajectories") && !line.contains("nothing"),
        "{}",
        run.stdout
    );

    let flight = report_with(&stamped(|at| at), control).ok();
    assert_eq!(flight.summary()["ticks"], 90);
    assert!(flight.stdout.contains("commands inside limits"), "{}", flight.stdout);
}
