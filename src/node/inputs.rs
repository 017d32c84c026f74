//! What the node hears: cameras, joint states, the task.
//!
//! Messages arrive as bytes on the spin thread, which decodes nothing but joint states and texts. A camera's newest
//! message waits in a slot for its decode worker; one that is replaced there was never worth decoding. The worker also
//! brings the image to the network's size: when the last one is there, the inference begins at once.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use r2r::qos::DurabilityPolicy;
use r2r::{Node, QosProfile};

use super::names::Names;
use super::shared::Shared;
use super::subscriptions::{Subscription, Subscriptions};
use crate::clock::Stamp;
use crate::config::Config;
use crate::messages::{CompressedImageMessage, ImageMessage, JointStateMessage, STRING};
use crate::observe::image::{RawImage, decode_compressed, decode_raw};
use crate::observe::intake::Intake;
use crate::observe::latest::Latest;

/// How long a decode worker sleeps before it looks whether it is still wanted.
const WORKER_NAP: Duration = Duration::from_millis(50);

/// Newest only, and nobody waits for a lost one.
fn sensor_qos() -> QosProfile {
    QosProfile::sensor_data().keep_last(1)
}

/// A task that was said before the node listened still counts; one that will be refused must not push it out.
fn prompt_qos() -> QosProfile {
    QosProfile::default().keep_last(10).reliable().transient_local()
}

/// Everything that a configured node listens to.
pub struct Inputs {
    cameras: Vec<CameraInput>,
    joints_topic: String,
    joints: Subscription,
    prompt_topic: String,
    prompt: Subscription,
    /// It was said that somebody publishes tasks that are not heard.
    unheard_said: bool,
}

/// The types that an image topic may have.
const IMAGES: [&str; 2] = [ImageMessage::TYPE, CompressedImageMessage::TYPE];

/// The type of an image topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Raw,
    Compressed,
}

/// One camera's subscription and its worker.
struct CameraInput {
    /// Of the model.
    slot: usize,
    topic: String,
    /// `None` until it is known what the topic carries: the middleware takes one type per topic and process.
    subscription: Option<(Form, Subscription)>,
    /// Why it cannot be subscribed to: another type is in the way for as long as this process lives.
    refused: Option<String>,
    newest: Arc<Latest<Arc<Frame>>>,
    worker: Option<JoinHandle<()>>,
}

/// A camera's message, not yet decoded.
struct Frame {
    form: Form,
    payload: Vec<u8>,
    arrived: Stamp,
}

impl Form {
    fn type_name(self) -> &'static str {
        match self {
            Self::Raw => ImageMessage::TYPE,
            Self::Compressed => CompressedImageMessage::TYPE,
        }
    }

    /// What its name says of a topic that nobody publishes yet, by image_transport's convention.
    fn named(topic: &str) -> Option<Self> {
        topic.ends_with("/compressed").then_some(Self::Compressed)
    }

    /// The one that is among the types of a topic's publishers.
    fn among(published: &[String]) -> Option<Self> {
        [Self::Raw, Self::Compressed]
            .into_iter()
            .find(|form| published.iter().any(|it| it == form.type_name()))
    }
}

impl CameraInput {
    fn subscribe(
        &mut self,
        subscriptions: &mut Subscriptions,
        node: &mut Node,
        names: &Names,
        form: Form,
    ) -> Result<(), String> {
        let messages = subscriptions.subscribe(node, names, &self.topic, form.type_name(), sensor_qos())?;
        self.subscription = Some((form, messages));
        Ok(())
    }
}

impl Inputs {
    /// Subscribes, and starts a worker for each camera. `cameras` has the configured camera of each slot of the model.
    pub fn new(
        subscriptions: &mut Subscriptions,
        node: &mut Node,
        names: &Names,
        config: &Config,
        cameras: &[Option<usize>],
        shared: &Arc<Shared>,
    ) -> Result<Self, String> {
        let mut inputs = Vec::new();
        for (slot, camera) in cameras.iter().enumerate() {
            let Some(camera) = camera.and_then(|index| config.cameras.get(index)) else { continue };
            let newest = Arc::new(Latest::new());
            let worker = thread::Builder::new().name(format!("decode {slot}")).spawn({
                let (newest, shared) = (Arc::clone(&newest), Arc::clone(shared));
                move || decode_frames(slot, &newest, &shared)
            });
            let worker = worker.map_err(|error| tracing::error!("decode worker: {error}")).ok();
            let topic = camera.topic.clone();
            let mut input = CameraInput { slot, topic, subscription: None, refused: None, newest, worker };
            let form = Form::among(&published(node, &names.resolve(&input.topic)));
            if let Some(form) = form.or(Form::named(&names.resolve(&input.topic))) {
                input.subscribe(subscriptions, node, names, form)?;
            }
            inputs.push(input);
        }
        let mut subscribe =
            |topic: &str, type_name, qos| subscriptions.subscribe(node, names, topic, type_name, qos);
        let joints = subscribe(&config.joints.topic, JointStateMessage::TYPE, sensor_qos())?;
        let prompt = subscribe(&config.prompt_topic, STRING, prompt_qos())?;
        let (joints_topic, prompt_topic) = (config.joints.topic.clone(), config.prompt_topic.clone());
        Ok(Self { cameras: inputs, joints_topic, joints, prompt_topic, prompt, unheard_said: false })
    }

    /// Takes what has arrived. The newest image of each camera goes to its worker, the newest joint state to `joints`,
    /// every text to `prompt`. While there is no time, what would bear a stamp is let go.
    pub fn take(
        &mut self,
        now: Option<Stamp>,
        mut joints: impl FnMut(Vec<u8>, Stamp),
        prompt: impl FnMut(Vec<u8>),
    ) {
        for camera in &mut self.cameras {
            let Some((form, messages)) = &mut camera.subscription else { continue };
            let mut newest = None;
            messages.drain(|payload| newest = Some(payload));
            if let (Some(payload), Some(arrived)) = (newest, now) {
                camera.newest.put(Arc::new(Frame { form: *form, payload, arrived }));
            }
        }
        let mut newest = None;
        self.joints.drain(|payload| newest = Some(payload));
        if let (Some(payload), Some(arrived)) = (newest, now) {
            joints(payload, arrived);
        }
        self.prompt.drain(prompt);
    }

    /// Subscribes to cameras of which it turns out only now what they publish, and tells `shared` what is the matter with
    /// topics. Called now and then.
    pub fn follow_topics(
        &mut self,
        subscriptions: &mut Subscriptions,
        node: &mut Node,
        names: &Names,
        shared: &Shared,
    ) {
        for camera in &mut self.cameras {
            let topic = names.resolve(&camera.topic);
            let published = published(node, &topic);
            let form = Form::among(&published);
            if let (None, None, Some(form)) = (&camera.subscription, &camera.refused, form) {
                match camera.subscribe(subscriptions, node, names, form) {
                    Ok(()) => tracing::info!("{} carries {}", camera.topic, form.type_name()),
                    Err(why) => camera.refused = Some(why),
                }
            }
            let trouble = match (&camera.subscription, form) {
                (Some((taken, _)), Some(form)) if form != *taken => Some(format!(
                    "{topic} carries {} now, this node listens to {}; start the node anew",
                    form.type_name(),
                    taken.type_name()
                )),
                (Some(_), Some(_)) => None,
                _ => camera.refused.clone().or_else(|| trouble(&topic, &published, &IMAGES)),
            };
            let lost = "raw images may be lost on their way (docs/ros.md, Large images)";
            shared.look(|intake| {
                let trouble = trouble.or_else(|| silent(intake, Some(camera.slot), &topic, lost));
                intake.set_trouble(Some(camera.slot), trouble);
            });
        }
        let topic = names.resolve(&self.joints_topic);
        let trouble = trouble(&topic, &published(node, &topic), &[JointStateMessage::TYPE]);
        shared.look(|intake| {
            let trouble = trouble.or_else(|| silent(intake, None, &topic, "does its source run?"));
            intake.set_trouble(None, trouble);
        });
        let topic = names.resolve(&self.prompt_topic);
        let publishers = node.get_publishers_info_by_topic(&topic, false).unwrap_or_default();
        let unheard = publishers.iter().any(|it| it.qos_profile.durability == DurabilityPolicy::Volatile);
        if unheard && !self.unheard_said {
            self.unheard_said = true;
            tracing::warn!(
                "{topic}: a publisher is volatile and not heard; publish tasks as transient local"
            );
        }
    }

    /// The workers, to wait for once the session has closed.
    pub fn into_workers(self) -> impl Iterator<Item = JoinHandle<()>> {
        self.cameras.into_iter().filter_map(|camera| camera.worker)
    }
}

/// The types that a topic's publishers send.
fn published(node: &Node, topic: &str) -> Vec<String> {
    let publishers = node.get_publishers_info_by_topic(topic, false).unwrap_or_default();
    publishers.into_iter().map(|publisher| publisher.topic_type).collect()
}

/// Why nothing can be heard on a topic: nobody publishes it, or as something else.
fn trouble(topic: &str, published: &[String], expected: &[&str]) -> Option<String> {
    match published.first() {
        None => Some(format!("nobody publishes {topic}")),
        Some(_) if published.iter().any(|it| expected.contains(&it.as_str())) => None,
        Some(found) => {
            Some(format!("{topic} has another type: expected {}, found {found}", expected.join(" or ")))
        }
    }
}

/// What to say of a topic that has publishers but of which no message has come yet.
fn silent(intake: &Intake, slot: Option<usize>, topic: &str, advice: &str) -> Option<String> {
    (!intake.has_heard(slot)).then(|| format!("{topic} has a publisher, but nothing of it arrives; {advice}"))
}

/// A camera's worker: decodes the newest message, and the newest after that, until the session closes.
fn decode_frames(slot: usize, newest: &Latest<Arc<Frame>>, shared: &Shared) {
    let mut seen = 0;
    while !shared.is_closed() {
        let Some((generation, frame)) = newest.wait_newer_than(seen, WORKER_NAP) else { continue };
        shared.superseded(slot, generation - seen - 1);
        seen = generation;
        take_frame(slot, &frame, shared);
    }
}

fn take_frame(slot: usize, frame: &Frame, shared: &Shared) {
    let stamped = |stamp: Stamp| if stamp.0 == 0 { frame.arrived } else { stamp };
    let (stamp, image) = match frame.form {
        Form::Raw => match ImageMessage::decode(&frame.payload) {
            Ok(message) => (stamped(message.stamp), decode_raw(&RawImage::from(&message))),
            Err(error) => return shared.look(|intake| intake.refuse_image(slot, &error)),
        },
        Form::Compressed => match CompressedImageMessage::decode(&frame.payload) {
            Ok(message) => (stamped(message.stamp), decode_compressed(message.format, message.data)),
            Err(error) => return shared.look(|intake| intake.refuse_image(slot, &error)),
        },
    };
    let image = image.map(Arc::new);
    if let Ok(image) = &image {
        shared.resize(slot, image);
    }
    shared.arrived(|intake| {
        intake.forget_future(Some(slot), frame.arrived);
        intake.take_image(slot, stamp, image);
    });
}
