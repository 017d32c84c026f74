//! The robot around the node: cameras, joints, an arm that hears commands; and who runs its lifecycle.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Future, FutureExt, Stream};
use r2r::diagnostic_msgs::msg::{DiagnosticArray, DiagnosticStatus};
use r2r::lifecycle_msgs::msg::Transition as TransitionMessage;
use r2r::lifecycle_msgs::srv::ChangeState;
use r2r::{Client, Node, PublisherUntyped, QosProfile};

use super::of_ros;
use super::process::{NAMESPACE, NodeProcess};
use crate::clock::Stamp;
use crate::config::{Config, RobotKind};
use crate::messages::{ActionChunkMessage, ImageMessage, JointStateMessage, PolicyStatusMessage};
use crate::node::clock::RosClock;
use crate::node::lifecycle::{ACTIVATE, CONFIGURE, Request};
use crate::node::service::drain;

/// Of the images.
const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;
/// Between two images: no three cameras send at one instant, and the middleware's buffers hold less than one.
const BETWEEN_IMAGES: Duration = Duration::from_millis(3);
/// How long a node may take to appear, to be active, and to give commands.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long loading a checkpoint and preparing an engine may take.
const LOADING_PATIENCE: Duration = Duration::from_secs(600);

/// A command that came.
pub struct Command {
    /// When it came.
    pub at: Instant,
    /// Of its tick.
    pub stamp: Stamp,
    /// It differs from the one before.
    pub moves: bool,
}

/// A chunk that came.
pub struct ChunkArrival {
    /// When it came.
    pub at: Instant,
    /// The same, ROS time.
    pub now: Stamp,
    /// The newest part of what it was made of.
    pub stamp: Stamp,
    /// The oldest image that it was made of.
    pub oldest_image: Stamp,
    /// Prompt tokens that the model read.
    pub tokens: u32,
    /// The engine's three stages.
    pub engine_ms: f64,
    /// Encoding and decoding.
    pub policy_ms: f64,
}

/// What `~/status` said.
pub struct Said {
    /// When it came.
    pub at: Instant,
    /// What control does.
    pub control: String,
    /// Why it rests.
    pub reason: String,
    /// Such as: cpu f32.
    pub engine: String,
}

/// The robot around the node.
pub struct Peer {
    /// ROS time, for the sources too.
    pub clock: Arc<RosClock>,
    /// Commands since this was last cleared.
    pub commands: Vec<Command>,
    /// Chunks since this was last cleared.
    pub chunks: Vec<ChunkArrival>,
    /// What `~/status` has said since this was last cleared.
    pub said: Vec<Said>,
    /// The last of each part of the node that `/diagnostics` told of.
    pub health: Vec<DiagnosticStatus>,
    ros: Node,
    sources: Sources,
    commands_heard: Heard<Vec<u8>>,
    chunks_heard: Heard<Vec<u8>>,
    status_heard: Heard<Vec<u8>>,
    health_heard: Heard<DiagnosticArray>,
    change: Client<ChangeState::Service>,
    position: Vec<f64>,
}

/// A topic's messages as they come.
type Heard<T> = Box<dyn Stream<Item = T> + Unpin>;

/// What cameras and joints send. May go to another thread.
#[derive(Clone)]
pub struct Sources {
    cameras: Vec<PublisherUntyped>,
    joints: PublisherUntyped,
    joint_names: Vec<String>,
    pixels: Vec<u8>,
    payload: Vec<u8>,
}

impl Sources {
    /// Cameras.
    pub fn cameras(&self) -> usize {
        self.cameras.len()
    }

    /// A picture of a camera that changes: the same one again and again would be a frozen camera.
    pub fn send_image(&mut self, camera: usize, stamp: Stamp) -> Result<(), String> {
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
        self.cameras[camera].publish_raw(&self.payload).map_err(of_ros)
    }

    /// Joints at rest.
    pub fn send_joints(&mut self, stamp: Stamp) -> Result<(), String> {
        let joints = JointStateMessage {
            stamp,
            names: self.joint_names.iter().map(String::as_str).collect(),
            position: vec![0.1; self.joint_names.len()],
            ..JointStateMessage::default()
        };
        self.joints.publish_raw(&joints.encode()).map_err(of_ros)
    }
}

impl Peer {
    /// Everything that the node will meet.
    pub fn new(mut ros: Node) -> r2r::Result<Self> {
        let sensor = QosProfile::sensor_data().keep_last(1);
        let camera = |ros: &mut Node, index: usize| {
            ros.create_publisher_untyped(&format!("cam_{index}"), ImageMessage::TYPE, sensor.clone())
        };
        let cameras = (0..3).map(|index| camera(&mut ros, index)).collect::<r2r::Result<_>>()?;
        let joints = ros.create_publisher_untyped("joint_states", JointStateMessage::TYPE, sensor)?;
        let joint_names =
            Config::builtin(RobotKind::Aloha).map(|config| config.joints.names).unwrap_or_default();
        let pixels = vec![0; (WIDTH * HEIGHT * 3) as usize];
        let latched = QosProfile::default().keep_last(100).reliable().transient_local();
        let many = QosProfile::default().keep_last(1000);
        Ok(Self {
            clock: Arc::new(RosClock::system()),
            commands: Vec::new(),
            chunks: Vec::new(),
            said: Vec::new(),
            health: Vec::new(),
            sources: Sources { cameras, joints, joint_names, pixels, payload: Vec::new() },
            commands_heard: Box::new(ros.subscribe_raw("commands", JointStateMessage::TYPE, many)?),
            chunks_heard: Box::new(ros.subscribe_raw(
                "policy/chunks",
                ActionChunkMessage::TYPE,
                QosProfile::default(),
            )?),
            status_heard: Box::new(ros.subscribe_raw("policy/status", PolicyStatusMessage::TYPE, latched)?),
            health_heard: Box::new(ros.subscribe("/diagnostics", QosProfile::default())?),
            change: ros.create_client::<ChangeState::Service>(
                "policy/change_state",
                QosProfile::services_default(),
            )?,
            position: Vec::new(),
            ros,
        })
    }

    /// Its cameras and joints, for a thread of their own.
    pub fn sources(&self) -> Sources {
        self.sources.clone()
    }

    /// A new node loads its checkpoint; gives the seconds that it took.
    pub fn configure(&mut self, node: &mut NodeProcess) -> Result<f64, String> {
        self.turn();
        (self.said, self.health) = (Vec::new(), Vec::new());
        self.wait(node, PATIENCE, "the node to say its status", |peer| !peer.said.is_empty())?;
        let begun = Instant::now();
        match self.change(node, CONFIGURE, LOADING_PATIENCE, |_| Ok(()))? {
            true => Ok(begun.elapsed().as_secs_f64()),
            false => Err(format!("configure refused: {}", self.reason(node)?)),
        }
    }

    /// A configured node is activated and gives commands, while `feed` feeds it. Tried again where messages were lost.
    pub fn activate(
        &mut self,
        node: &mut NodeProcess,
        mut feed: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !self.change(node, ACTIVATE, PATIENCE, &mut feed)? {
            if Instant::now() > deadline {
                return Err(format!("activate refused: {}", self.reason(node)?));
            }
        }
        self.commands.clear();
        while self.commands.len() < 10 {
            if Instant::now() > deadline {
                return Err(format!("the node gave no commands within {} s", PATIENCE.as_secs()));
            }
            feed(self)?;
            self.turn_until(Instant::now() + Duration::from_millis(20));
        }
        Ok(())
    }

    /// Takes what comes within a millisecond.
    pub fn turn(&mut self) {
        self.ros.spin_once(Duration::from_millis(1));
        let at = Instant::now();
        let now = self.clock.now().unwrap_or_default();
        drain(&mut self.commands_heard, |payload| {
            if let Ok(command) = JointStateMessage::decode(&payload) {
                let moves = command.position != self.position;
                self.commands.push(Command { at, stamp: command.stamp, moves });
                self.position = command.position;
            }
        });
        drain(&mut self.status_heard, |payload| {
            if let Ok(status) = PolicyStatusMessage::decode(&payload) {
                self.said.push(Said {
                    at,
                    control: status.control.to_owned(),
                    reason: status.reason.to_owned(),
                    engine: status.engine.to_owned(),
                });
            }
        });
        let ours = NAMESPACE.trim_start_matches('/');
        drain(&mut self.health_heard, |health| {
            if health.status.iter().any(|part| part.name.starts_with(ours)) {
                self.health = health.status;
            }
        });
        drain(&mut self.chunks_heard, |payload| {
            if let Ok(chunk) = ActionChunkMessage::decode(&payload) {
                self.chunks.push(ChunkArrival {
                    at,
                    now,
                    stamp: chunk.stamp,
                    oldest_image: chunk.image_stamps.iter().flatten().min().copied().unwrap_or(chunk.stamp),
                    tokens: chunk.tokens,
                    engine_ms: chunk.vision_ms + chunk.prefix_ms + chunk.denoise_ms,
                    policy_ms: chunk.encode_ms + chunk.decode_ms,
                });
            }
        });
    }

    /// Takes what comes until then.
    pub fn turn_until(&mut self, time: Instant) {
        while Instant::now() < time {
            self.turn();
        }
    }

    /// Three images, then the joint state, all of one moment; gives it, and when the last was sent.
    pub fn observe(&mut self) -> Result<(Stamp, Instant), String> {
        let stamp = self.clock.now().unwrap_or_default();
        for camera in 0..self.sources.cameras() {
            self.sources.send_image(camera, stamp)?;
            self.turn_until(Instant::now() + BETWEEN_IMAGES);
        }
        let sent = Instant::now();
        self.sources.send_joints(stamp)?;
        Ok((stamp, sent))
    }

    /// Takes what comes until `done`; an error if the node ends before, or that lasts too long.
    pub fn wait(
        &mut self,
        node: &mut NodeProcess,
        patience: Duration,
        what: &str,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        while !done(self) {
            if let Some(status) = node.ended() {
                return Err(format!("the node ended with {status} while the bench waited for {what}"));
            }
            if Instant::now() > deadline {
                return Err(format!("waited {} s for {what}", patience.as_secs()));
            }
            self.turn();
        }
        Ok(())
    }

    /// Asks for a transition and tells whether it was made; meanwhile, `feed`.
    fn change(
        &mut self,
        node: &mut NodeProcess,
        wanted: Request,
        patience: Duration,
        mut feed: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<bool, String> {
        let mut offered = Box::pin(Node::is_available(&self.change).map_err(of_ros)?);
        self.wait(node, PATIENCE, "~/change_state", |_| offered.as_mut().now_or_never().is_some())?;
        let label = wanted.transition.label;
        let transition = TransitionMessage { id: wanted.transition.id, label: label.to_owned() };
        let answer = self.change.request(&ChangeState::Request { transition }).map_err(of_ros)?;
        let mut answer: Pin<Box<dyn Future<Output = r2r::Result<ChangeState::Response>>>> = Box::pin(answer);
        let (mut made, mut fed) = (None, Ok(()));
        self.wait(node, patience, &format!("the answer to {label}"), |peer| {
            made = answer.as_mut().now_or_never();
            fed = feed(peer);
            made.is_some() || fed.is_err()
        })?;
        fed?;
        match made {
            Some(answer) => answer.map(|answer| answer.success).map_err(of_ros),
            None => Ok(false),
        }
    }

    /// Why the last transition was refused.
    fn reason(&mut self, node: &mut NodeProcess) -> Result<String, String> {
        let given = |peer: &mut Self| peer.said.last().is_some_and(|said| !said.reason.is_empty());
        self.wait(node, PATIENCE, "the reason of a refusal", given)?;
        Ok(self.said.last_mut().map(|said| mem::take(&mut said.reason)).unwrap_or_default())
    }
}
