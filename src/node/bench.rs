//! `pi05 bench ros`: the node as its peers meet it, from outside, in a process of its own.
//!
//! Latency: three 640×480 rgb8 images and, last, the joint state go out; the time until their chunk is back, less what
//! the engine says it took, is what everything around the engine costs, both ways through the middleware included.
//! Period: how evenly commands come, and whether every tick gave one.

use std::env;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use futures::Stream;
use r2r::{Context, Node, PublisherUntyped, QosProfile};
use serde::Serialize;

use super::clock::RosClock;
use super::service::drain;
use crate::clock::{NS_PER_S, Stamp};
use crate::config::{Config, RobotKind};
use crate::messages::{ActionChunkMessage, ImageMessage, JointStateMessage};
use crate::replay::summary::percentile;

/// Of the images.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// Observations per second: what cameras and a policy on a robot come to.
const OBSERVATIONS_HZ: f64 = 10.0;
/// Between two images: no three cameras send at one instant, and the middleware's buffers hold less than one.
const BETWEEN_IMAGES: Duration = Duration::from_millis(3);
/// How long a chunk may take, on whatever machine; and how long none comes before the node counts as idle.
const CHUNK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a node may take to be active, and a chunk to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the bench lives, so that it disturbs nobody.
const NAMESPACE: &str = "/pi05_bench";

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Seconds of the latency's measurement, and of each rate's.
    pub seconds: f64,
    /// Control rates, Hz.
    pub rates: [f64; 3],
}

/// Latency and periods.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Observations sent.
    pub observations: usize,
    /// Chunks measured: fewer than observations where the middleware loses images.
    pub chunks: usize,
    /// Last message out to chunk in, ms.
    pub latency_ms: Percentiles,
    /// Of that, the engine's three stages, ms.
    pub engine_ms: Percentiles,
    /// The rest, ms.
    pub around_ms: Percentiles,
    /// By control rate.
    pub periods: Vec<Period>,
}

/// How evenly commands came at one rate.
#[derive(Debug, Serialize)]
pub struct Period {
    /// Control rate, Hz.
    pub rate_hz: f64,
    /// Commands received.
    pub commands: usize,
    /// Ticks between the first and the last command that gave none (by the stamps of the commands).
    pub missed: u64,
    /// Between the arrivals of two commands, ms.
    pub arrival_ms: Percentiles,
}

/// Of a sorted list.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub min: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |p| percentile(&values, p).unwrap_or(f64::NAN);
        Self { min: at(0.0), p50: at(50.0), p99: at(99.0), p999: at(99.9), max: at(100.0) }
    }
}

/// Starts nodes, feeds and measures them. `progress` hears of (done, all) seconds.
pub fn run(plan: &Plan, mut progress: impl FnMut(f64, f64)) -> Result<Results, String> {
    let said = |error: r2r::Error| format!("ROS 2: {error}");
    let context = Context::create().map_err(said)?;
    let ros = Node::create(context, "bench", NAMESPACE).map_err(said)?;
    let mut peer = Peer::new(ros).map_err(said)?;
    let all = plan.seconds * (1 + plan.rates.len()) as f64;
    let (observations, latency) = peer.latency(plan.seconds, |done| progress(done, all))?;
    let mut periods = Vec::new();
    for (index, rate_hz) in plan.rates.into_iter().enumerate() {
        let before = plan.seconds * (1 + index) as f64;
        periods.push(peer.period(rate_hz, plan.seconds, |done| progress(before + done, all))?);
    }
    let column = |f: fn(&Round) -> f64| Percentiles::of(latency.iter().map(f).collect());
    Ok(Results {
        observations,
        chunks: latency.len(),
        latency_ms: column(|round| round.latency_ms),
        engine_ms: column(|round| round.engine_ms),
        around_ms: column(|round| round.latency_ms - round.engine_ms),
        periods,
    })
}

/// One observation and its chunk.
struct Round {
    latency_ms: f64,
    engine_ms: f64,
}

/// The robot around the node: cameras, joints, arm.
struct Peer {
    ros: Node,
    clock: RosClock,
    cameras: Vec<PublisherUntyped>,
    joints: PublisherUntyped,
    commands: Box<dyn Stream<Item = Vec<u8>> + Unpin>,
    chunks: Box<dyn Stream<Item = Vec<u8>> + Unpin>,
    /// Of commands, with their stamps.
    arrivals: Vec<(Instant, Stamp)>,
    joint_names: Vec<String>,
    pixels: Vec<u8>,
    payload: Vec<u8>,
}

impl Peer {
    fn new(mut ros: Node) -> r2r::Result<Self> {
        let sensor = QosProfile::sensor_data().keep_last(1);
        let camera = |ros: &mut Node, index: usize| {
            ros.create_publisher_untyped(&format!("cam_{index}"), ImageMessage::TYPE, sensor.clone())
        };
        let cameras = (0..3).map(|index| camera(&mut ros, index)).collect::<r2r::Result<_>>()?;
        let names = Config::builtin(RobotKind::Aloha).map(|config| config.joints.names).unwrap_or_default();
        Ok(Self {
            clock: RosClock::system(),
            cameras,
            joints: ros.create_publisher_untyped("joint_states", JointStateMessage::TYPE, sensor)?,
            commands: Box::new(ros.subscribe_raw(
                "commands",
                JointStateMessage::TYPE,
                QosProfile::default().keep_last(1000),
            )?),
            chunks: Box::new(ros.subscribe_raw(
                "policy/chunks",
                ActionChunkMessage::TYPE,
                QosProfile::default(),
            )?),
            arrivals: Vec::new(),
            joint_names: names,
            pixels: vec![0; (WIDTH * HEIGHT * 3) as usize],
            payload: Vec::new(),
            ros,
        })
    }

    /// Observations sent, and those that gave a chunk.
    fn latency(
        &mut self,
        seconds: f64,
        mut progress: impl FnMut(f64),
    ) -> Result<(usize, Vec<Round>), String> {
        let _node = NodeProcess::start(100.0)?;
        let (mut observations, mut rounds) = (0, Vec::new());
        self.wait_until_active()?;
        self.wait_until_idle();
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < seconds {
            let next = Instant::now() + Duration::from_secs_f64(1.0 / OBSERVATIONS_HZ);
            let (stamp, sent) = self.observe()?;
            observations += 1;
            rounds.extend(self.wait_for_chunk(stamp, sent, next.max(sent + CHUNK_PATIENCE)));
            self.turn_until(next);
            progress(start.elapsed().as_secs_f64());
        }
        Ok((observations, rounds))
    }

    fn period(
        &mut self,
        rate_hz: f64,
        seconds: f64,
        mut progress: impl FnMut(f64),
    ) -> Result<Period, String> {
        let _node = NodeProcess::start(rate_hz)?;
        self.wait_until_active()?;
        self.arrivals.clear();
        let start = Instant::now();
        let mut next = start;
        while start.elapsed().as_secs_f64() < seconds {
            next += Duration::from_secs_f64(1.0 / OBSERVATIONS_HZ);
            self.observe()?;
            self.turn_until(next);
            progress(start.elapsed().as_secs_f64());
        }
        let period_ns = NS_PER_S as f64 / rate_hz;
        let arrivals = &self.arrivals;
        let ticks = match (arrivals.first(), arrivals.last()) {
            (Some((_, first)), Some((_, last))) => (last.since(*first) as f64 / period_ns).round() as u64 + 1,
            _ => return Err(format!("no commands came at {rate_hz} Hz")),
        };
        let between = |pair: &[(Instant, Stamp)]| (pair[1].0 - pair[0].0).as_secs_f64() * 1e3;
        Ok(Period {
            rate_hz,
            commands: arrivals.len(),
            missed: ticks.saturating_sub(arrivals.len() as u64),
            arrival_ms: Percentiles::of(arrivals.windows(2).map(between).collect()),
        })
    }

    /// Feeds the node until the first commands come.
    fn wait_until_active(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        self.turn();
        self.arrivals.clear();
        while self.arrivals.len() < 10 {
            if Instant::now() > deadline {
                return Err(format!("the node gave no commands within {} s", PATIENCE.as_secs()));
            }
            self.observe()?;
            self.turn_until(Instant::now() + Duration::from_millis(20));
        }
        Ok(())
    }

    /// Until nothing is under way from what it was fed before.
    fn wait_until_idle(&mut self) {
        let mut last = Instant::now();
        while last.elapsed() < CHUNK_PATIENCE {
            if !self.turn().is_empty() {
                last = Instant::now();
            }
        }
    }

    /// Takes what comes within a millisecond: keeps the commands' arrivals, gives the chunks: the stamp of each, and the engine's time, ms.
    fn turn(&mut self) -> Vec<(Stamp, f64)> {
        self.ros.spin_once(Duration::from_millis(1));
        let now = Instant::now();
        drain(&mut self.commands, |payload| {
            if let Ok(command) = JointStateMessage::decode(&payload) {
                self.arrivals.push((now, command.stamp));
            }
        });
        let mut chunks = Vec::new();
        drain(&mut self.chunks, |payload| {
            if let Ok(chunk) = ActionChunkMessage::decode(&payload) {
                chunks.push((chunk.stamp, chunk.vision_ms + chunk.prefix_ms + chunk.denoise_ms));
            }
        });
        chunks
    }

    fn turn_until(&mut self, time: Instant) {
        while Instant::now() < time {
            self.turn();
        }
    }

    /// Three images, then the joint state, all of one moment; gives it, and when the last was sent.
    fn observe(&mut self) -> Result<(Stamp, Instant), String> {
        let stamp = self.clock.now().unwrap_or_default();
        // A picture that changes: the same one again and again would be a frozen camera.
        let grey = (stamp.0 / 1_000_000) as u8;
        self.pixels.iter_mut().step_by(997).for_each(|pixel| *pixel = grey);
        let image = ImageMessage {
            stamp,
            frame_id: "",
            height: HEIGHT,
            width: WIDTH,
            encoding: "rgb8",
            is_bigendian: false,
            step: WIDTH * 3,
            data: &self.pixels,
        };
        image.put(&mut self.payload);
        let said = |error: r2r::Error| format!("ROS 2: {error}");
        for index in 0..self.cameras.len() {
            self.cameras[index].publish_raw(&self.payload).map_err(said)?;
            self.turn_until(Instant::now() + BETWEEN_IMAGES);
        }
        let joints = JointStateMessage {
            stamp,
            names: self.joint_names.iter().map(String::as_str).collect(),
            position: vec![0.1; self.joint_names.len()],
            ..JointStateMessage::default()
        };
        let joints = joints.encode();
        let sent = Instant::now();
        self.joints.publish_raw(&joints).map_err(said)?;
        Ok((stamp, sent))
    }

    /// The chunk of the observation of `stamp`; none if it is not there by `deadline`.
    fn wait_for_chunk(&mut self, stamp: Stamp, sent: Instant, deadline: Instant) -> Option<Round> {
        while Instant::now() < deadline {
            if let Some((_, engine_ms)) = self.turn().into_iter().find(|(of, _)| *of == stamp) {
                return Some(Round { latency_ms: sent.elapsed().as_secs_f64() * 1e3, engine_ms });
            }
        }
        None
    }
}

/// A node of its own process, killed at the end.
struct NodeProcess(Child);

impl NodeProcess {
    fn start(rate_hz: f64) -> Result<Self, String> {
        let program = env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
        let mut command = Command::new(program);
        command.args(["node", "--ros-args", "--log-level", "warn", "-r"]).arg(format!("__ns:={NAMESPACE}"));
        let cameras = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];
        // Images and joint states come together here, far slower than on a robot, and slower still after a chunk that
        // did not come: none of them is lost for that.
        let cameras = cameras.iter().enumerate().flat_map(|(i, slot)| {
            [format!("cameras.{slot}.topic:=cam_{i}"), format!("cameras.{slot}.max_age_ms:=3000")]
        });
        let parameters = [
            "autostart:=true".to_owned(),
            "control.command:=joint_state".to_owned(),
            "joints.max_age_ms:=3000".to_owned(),
            format!("control.rate_hz:={rate_hz:?}"),
        ];
        for parameter in cameras.chain(parameters) {
            command.arg("-p").arg(parameter);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        child.map(Self).map_err(|error| format!("the node: {error}"))
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
