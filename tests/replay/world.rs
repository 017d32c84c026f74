//! A small robot made on the spot: two joints, one camera, a bag of what they said, and what `pi05 replay` makes of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use byteorder::LittleEndian;
use pi05_thor::clock::Stamp;
use pi05_thor::messages::{CompressedImageMessage, ImageMessage, JointStateMessage, STRING};
use pi05_thor::replay::bag::Bag;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

pub const MS: i64 = 1_000_000;
pub const S: i64 = 1000 * MS;
/// The bag's first message.
pub const T0: i64 = 1_700_000_000 * S;
pub const CAMERA: &str = "/eye/image_raw";
pub const JOINTS: &str = "/joint_states";

/// One message: topic, type, log time, payload.
pub type Message = (String, &'static str, i64, Vec<u8>);

#[derive(Serialize)]
struct CdrImage {
    stamp: (i32, u32),
    frame_id: String,
    height: u32,
    width: u32,
    encoding: String,
    is_bigendian: u8,
    step: u32,
    data: Vec<u8>,
}

#[derive(Deserialize)]
struct CdrArray {
    _dim: Vec<(String, u32, u32)>,
    _data_offset: u32,
    data: Vec<f64>,
}

fn cdr(message: &impl Serialize) -> Vec<u8> {
    let mut bytes = vec![0, 1, 0, 0];
    bytes.extend(cdr_encoding::to_vec::<_, LittleEndian>(message).unwrap());
    bytes
}

/// An rgb8 image that differs with time; `short` leaves bytes out at its end.
pub fn image(log: i64, stamp: i64, encoding: &str, short: usize) -> Message {
    let (width, height) = (32u32, 24u32);
    let data: Vec<u8> = (0..width * height * 3).map(|i| (i as i64 + log / MS) as u8).collect();
    let message = CdrImage {
        stamp: Stamp(stamp).to_ros(),
        frame_id: "eye".into(),
        height,
        width,
        encoding: encoding.into(),
        is_bigendian: 0,
        step: width * 3,
        data: data[..data.len() - short].to_vec(),
    };
    (CAMERA.into(), ImageMessage::TYPE, log, cdr(&message))
}

/// Positions of the joints `names`.
pub fn joints(log: i64, stamp: i64, names: &[&str], position: &[f64]) -> Message {
    let message = JointStateMessage {
        stamp: Stamp(stamp),
        names: names.to_vec(),
        position: position.to_vec(),
        ..Default::default()
    };
    (JOINTS.into(), JointStateMessage::TYPE, log, message.encode())
}

/// A task, on the prompt topic.
pub fn prompt(log: i64, text: &str) -> Message {
    ("/prompt".into(), STRING, log, cdr(&text.to_owned()))
}

/// The robot as it should be, from `from` to `to`: joints at 50 Hz, images at 20 Hz, stamped when they are logged.
pub fn healthy(from: i64, to: i64) -> Vec<Message> {
    let times = |every: i64| (0..).map(move |k| from + k * every).take_while(move |&t| t < to);
    let joint = |t: i64| joints(T0 + t, T0 + t, &["b", "extra", "a"], &[0.2, 9.0, -0.1]);
    let image = |t: i64| image(T0 + t, T0 + t, "rgb8", 0);
    times(20 * MS).map(joint).chain(times(50 * MS).map(image)).collect()
}

/// Of the robot's parameters, what a test changes: lines of YAML that come last and win.
pub fn parameters(extra: &str) -> String {
    format!(
        "/**:
  ros__parameters:
    robot: generic
    checkpoint: synth:tiny
    cameras:
      base_0_rgb: {{topic: eye/image_raw, max_age_ms: 200}}
    joints:
      names: [a, b]
      position_min: [-1.0, -1.0]
      position_max: [1.0, 0.9]
      velocity_max: [1.0, 2.0]
      acceleration_max: [5.0, 5.0]
    sampler: {{steps: 2}}
policy:
  ros__parameters:
    use_sim_time: false
{extra}"
    )
}

pub fn pi05(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi05")).args(args).output().unwrap()
}

/// What a replay left behind.
pub struct Replayed {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub folder: TempDir,
}

/// Writes the bag and plays it.
pub fn replay(messages: &[Message], yaml: &str) -> Replayed {
    let folder = TempDir::new().unwrap();
    let bag = folder.path().join("bag.mcap");
    write_mcap(&bag, messages);
    replay_bag(&bag, yaml, folder)
}

pub fn replay_bag(bag: &Path, yaml: &str, folder: TempDir) -> Replayed {
    let config = folder.path().join("robot.yaml");
    fs::write(&config, yaml).unwrap();
    let out = folder.path().join("out");
    let output = pi05(&[
        "replay",
        bag.to_str().unwrap(),
        "--config",
        config.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ]);
    Replayed {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        folder,
    }
}

pub fn write_mcap(path: &Path, messages: &[Message]) {
    let mut sorted: Vec<&Message> = messages.iter().collect();
    sorted.sort_by_key(|(_, _, log, _)| *log);
    let file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let mut writer = mcap::WriteOptions::new().profile("ros2").create(file).unwrap();
    let mut channels = BTreeMap::new();
    for (topic, kind, log, payload) in sorted {
        let channel = *channels.entry(topic.clone()).or_insert_with(|| {
            let schema = writer.add_schema(kind, "ros2msg", b"").unwrap();
            writer.add_channel(schema, topic, "cdr", &BTreeMap::new()).unwrap()
        });
        let time = u64::try_from(*log).unwrap();
        let header = mcap::records::MessageHeader {
            channel_id: channel,
            sequence: 0,
            log_time: time,
            publish_time: time,
        };
        writer.write_to_known_channel(&header, payload).unwrap();
    }
    writer.finish().unwrap();
}

impl Replayed {
    pub fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    /// Exit code 0, or the output in the panic.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}{}", self.stdout, self.stderr);
        self
    }

    pub fn summary(&self) -> Value {
        serde_json::from_slice(&fs::read(self.out("summary.json")).unwrap()).unwrap()
    }

    /// Sum of the counters whose name has all of `words`.
    pub fn counted(&self, words: &[&str]) -> u64 {
        let summary = self.summary();
        let counters = summary["counters"].as_object().unwrap();
        let fits = |name: &str| words.iter().all(|word| name.contains(word));
        counters.iter().filter(|(name, _)| fits(name)).map(|(_, n)| n.as_u64().unwrap()).sum()
    }

    /// Time since [`T0`] and values of every command, read from commands.mcap.
    pub fn commands(&self) -> Vec<(i64, Vec<f64>)> {
        self.records("/commands", |payload| {
            cdr_encoding::from_bytes::<CdrArray, LittleEndian>(&payload[4..]).unwrap().0.data
        })
    }

    /// When each chunk took over, since [`T0`], and the whole message.
    pub fn arrivals(&self) -> Vec<(i64, Vec<u8>)> {
        self.records("/chunks", <[u8]>::to_vec)
    }

    /// Time of the observation since [`T0`] of every chunk that took over.
    pub fn chunks(&self) -> Vec<i64> {
        let stamp = |payload: &[u8]| {
            let ((sec, nanosec), _) =
                cdr_encoding::from_bytes::<(i32, u32), LittleEndian>(&payload[4..]).unwrap();
            Stamp::from_ros(sec, nanosec).0 - T0
        };
        self.records("/chunks", stamp).into_iter().map(|(_, observed)| observed).collect()
    }

    /// The same, and their actions by step.
    pub fn actions(&self) -> Vec<(i64, Vec<Vec<f64>>)> {
        type Point = (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>, (i32, u32));
        type Trajectory = (((i32, u32), String), Vec<String>, Vec<Point>);
        let actions = |payload: &[u8]| {
            let (((stamp, _), _, points), _) =
                cdr_encoding::from_bytes::<Trajectory, LittleEndian>(&payload[4..]).unwrap();
            (Stamp::from_ros(stamp.0, stamp.1).0 - T0, points.into_iter().map(|point| point.0).collect())
        };
        self.records("/chunks", actions).into_iter().map(|(_, chunk)| chunk).collect()
    }

    /// Time since [`T0`] and values of every point of each trajectory that was commanded.
    pub fn trajectories(&self) -> Vec<Vec<(i64, Vec<f64>)>> {
        type Point = (Vec<f64>, Vec<f64>, Vec<f64>, Vec<f64>, (i32, u32));
        type Trajectory = (((i32, u32), String), Vec<String>, Vec<Point>);
        let points = |payload: &[u8]| {
            let (((stamp, _), _, points), _) =
                cdr_encoding::from_bytes::<Trajectory, LittleEndian>(&payload[4..]).unwrap();
            let start = Stamp::from_ros(stamp.0, stamp.1).0 - T0;
            let time = |(sec, nanosec): (i32, u32)| start + Stamp::from_ros(sec, nanosec).0;
            points.into_iter().map(|point| (time(point.4), point.0)).collect()
        };
        self.records("/commands", points).into_iter().map(|(_, trajectory)| trajectory).collect()
    }

    fn records<T>(&self, topic: &str, read: impl Fn(&[u8]) -> T) -> Vec<(i64, T)> {
        let bag = Bag::open(self.out("commands.mcap")).unwrap();
        let Some(topic) = bag.topic(topic) else { return Vec::new() };
        let records = bag.records(&[topic]).unwrap().map(Result::unwrap);
        records.map(|record| (record.log_time - T0, read(&record.payload))).collect()
    }

    /// Ticks come every 10 ms; each command is within the limits of [`parameters`] of the one before.
    pub fn assert_safe(&self) -> Vec<(i64, Vec<f64>)> {
        let commands = self.commands();
        for pair in commands.windows(2) {
            let [(before, from), (now, to)] = pair else { unreachable!() };
            assert_eq!(now - before, 10 * MS, "at {before}");
            for (joint, velocity_max) in [1.0, 2.0].into_iter().enumerate() {
                let moved = (to[joint] - from[joint]).abs();
                assert!(moved <= velocity_max * 0.01 + 1e-9, "joint {joint} moved {moved} at {now}");
            }
        }
        for (at, values) in &commands {
            assert!(
                (-1.0..=1.0).contains(&values[0]) && (-1.0..=0.9).contains(&values[1]),
                "{values:?} at {at}"
            );
        }
        commands
    }
}

impl std::fmt::Debug for Replayed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} {}", self.code, self.stdout, self.stderr)
    }
}

/// Only for its type name.
pub const COMPRESSED: &str = CompressedImageMessage::TYPE;
