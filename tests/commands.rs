//! What commands.mcap promises: complete, in order, the same bytes for the same recording, all or nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pi05_thor::clock::{NS_PER_MS, NS_PER_S, Stamp};
use pi05_thor::config::CommandType;
use pi05_thor::messages::JointStateMessage;
use pi05_thor::replay::bag::Bag;
use pi05_thor::replay::commands::write_commands;
use pi05_thor::replay::recording::{
    ChunkRecord, CommandSample, JointInfo, Measured, Recording, SentTrajectory, Timings,
};

const START: i64 = 1_760_000_000 * NS_PER_S;
const TYPES: [(CommandType, &str); 3] = [
    (CommandType::Float64MultiArray, "std_msgs/msg/Float64MultiArray"),
    (CommandType::JointState, "sensor_msgs/msg/JointState"),
    (CommandType::JointTrajectory, "trajectory_msgs/msg/JointTrajectory"),
];

/// Three chunks over 1.5 s, ticks at 100 Hz, states at 50 Hz with one value that no joint has.
fn recording() -> Recording {
    let joint = |name: &str| JointInfo {
        name: name.to_owned(),
        position_min: -1.0,
        position_max: 1.0,
        velocity_max: 1.0,
        is_velocity: false,
    };
    let at = |ms: i64| Stamp(START + ms * NS_PER_MS);
    let chunk = |id: u64| ChunkRecord {
        id,
        observed: at(500 * id as i64),
        arrived: at(500 * id as i64 + 100),
        dropped_steps: 5,
        actions: (0..50).map(|step| vec![0.01 * f64::from(step), -1.0]).collect(),
        tokens: 20,
        image_age_ms: vec![],
        timings: Timings::default(),
        seen: None,
        seen_side: 0,
    };
    let tick = |ms: i64| CommandSample {
        stamp: at(ms),
        values: vec![0.001 * ms as f64, -1.0],
        chunk: (ms as u64 - 100) / 500,
        resting: false,
        limited: false,
    };
    let trajectory = |ms: i64| SentTrajectory {
        stamp: at(ms),
        points: (0..100).map(|k| (k * 10 * NS_PER_MS, vec![0.01 * k as f64, -1.0])).collect(),
    };
    Recording {
        policy_rate_hz: 50.0,
        rate_hz: 100.0,
        joints: vec![joint("left"), joint("right")],
        measured_index: vec![Some(2), Some(0)],
        measured: (0..75)
            .map(|k| Measured { stamp: at(20 * k), positions: vec![k as f64, 0.5, -1.0] })
            .collect(),
        commands: (10..150).map(|k| tick(10 * k)).collect(),
        trajectories: [100, 600, 1100].map(trajectory).into(),
        chunks: (0..3).map(chunk).collect(),
        counters: BTreeMap::new(),
        ..Recording::default()
    }
}

fn written(recording: &Recording, command: CommandType, folder: &Path) -> Bag {
    let path = folder.join("commands.mcap");
    write_commands(recording, command, &path).unwrap();
    Bag::open(&path).unwrap()
}

#[test]
fn every_tick_state_and_chunk_is_in_the_file_under_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording();
    for (command, type_name) in TYPES {
        let bag = written(&recording, command, folder.path());
        assert_eq!(bag.notes(), [] as [&str; 0]);
        let topics: Vec<_> = bag.topics().iter().map(|t| (t.name.as_str(), t.type_name.as_str())).collect();
        let chunks = ("/chunks", "trajectory_msgs/msg/JointTrajectory");
        assert_eq!(
            topics,
            [("/commands", type_name), ("/joint_states", "sensor_msgs/msg/JointState"), chunks]
        );
        let times = |topic| bag.records(&[topic]).unwrap().map(|r| r.unwrap().log_time).collect::<Vec<_>>();
        let ticks: Vec<_> = recording.commands.iter().map(|c| c.stamp.0).collect();
        match command {
            CommandType::JointTrajectory => {
                assert_eq!(times(0), [100, 600, 1100].map(|ms| START + ms * NS_PER_MS))
            }
            _ => assert_eq!(times(0), ticks),
        }
        assert_eq!(times(1), recording.measured.iter().map(|m| m.stamp.0).collect::<Vec<_>>());
        assert_eq!(times(2), recording.chunks.iter().map(|c| c.arrived.0).collect::<Vec<_>>());
    }
}

#[test]
fn commanded_and_measured_joints_have_the_same_names() {
    let folder = tempfile::tempdir().unwrap();
    let recording = recording();
    let bag = written(&recording, CommandType::JointState, folder.path());
    for record in bag.records(&[0, 1]).unwrap() {
        let record = record.unwrap();
        let state = JointStateMessage::decode(&record.payload).unwrap();
        assert_eq!(state.stamp.0, record.log_time);
        if record.topic == 0 {
            assert_eq!(state.names, ["left", "right"]);
        } else {
            assert_eq!(state.names, ["right", "state_1", "left"]);
            assert_eq!(state.position[1..], [0.5, -1.0]);
        }
    }
}

#[test]
fn the_same_recording_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    for (command, _) in TYPES {
        let bytes = || {
            written(&recording(), command, folder.path());
            fs::read(folder.path().join("commands.mcap")).unwrap()
        };
        assert_eq!(bytes(), bytes());
    }
}

#[test]
fn an_empty_recording_gives_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let bag = written(&Recording::default(), CommandType::Float64MultiArray, folder.path());
    assert_eq!(bag.topics().len(), 3);
    assert_eq!(bag.time_range(), None);
    assert_eq!(bag.notes(), [] as [&str; 0]);
}

#[test]
fn only_the_finished_file_has_the_name() {
    let folder = tempfile::tempdir().unwrap();
    written(&recording(), CommandType::JointState, folder.path());
    let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["commands.mcap"]);

    let missing = folder.path().join("nowhere/commands.mcap");
    let error = write_commands(&recording(), CommandType::JointState, &missing).unwrap_err().to_string();
    assert!(error.contains("nowhere/commands.mcap.partial: cannot be written: No such file"), "{error}");

    // What cannot be renamed leaves nothing behind.
    let occupied = folder.path().join("occupied");
    fs::create_dir_all(occupied.join("full")).unwrap();
    assert!(write_commands(&recording(), CommandType::JointState, &occupied).is_err());
    assert!(!folder.path().join("occupied.partial").exists());
}

#[test]
fn a_full_disk_is_reported_and_leaves_the_old_file() {
    if !Path::new("/dev/full").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("commands.mcap");
    fs::write(&path, b"the old one").unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.path().join("commands.mcap.partial")).unwrap();
    let error = write_commands(&recording(), CommandType::JointState, &path).unwrap_err().to_string();
    assert!(error.contains("commands.mcap: cannot be written"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"the old one");
}
