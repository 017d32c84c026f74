//! Which topics of a bag feed the model, and what a person wants to hear about the choice.

use thiserror::Error;

use super::bag::Bag;
use crate::config::Config;
use crate::messages::{CompressedImageMessage, ImageMessage, JointStateMessage, STRING};
use crate::policy::cameras::{CameraError, CameraSlots};

/// Parameters and bag do not fit together.
#[derive(Debug, Error)]
pub enum TopicError {
    /// The bag has no such topic.
    #[error(
        "{bag}: {parameter}: expected topic {topic}, found {}; correct the parameter{}{}",
        listed(.found), if .parameter.starts_with("cameras.") { ", or leave the camera out to mask it" } else { "" },
        .damage.iter().map(|note| format!(" (note: {note})")).collect::<String>()
    )]
    Missing {
        /// The bag.
        bag: String,
        /// Parameter that names the topic.
        parameter: String,
        /// The topic.
        topic: String,
        /// Topics of the right type.
        found: Vec<String>,
        /// What is known to be wrong with the bag: the topic may have been in what is lost.
        damage: Box<[String]>,
    },
    /// The topic has another type.
    #[error("{bag}: {parameter}: expected topic {topic} of type {expected}, found {found}")]
    Type {
        /// The bag.
        bag: String,
        /// Parameter that names the topic.
        parameter: String,
        /// The topic.
        topic: String,
        /// Types that would do.
        expected: String,
        /// Its type.
        found: String,
    },
    /// Cameras that do not fit the model.
    #[error(transparent)]
    Cameras(#[from] CameraError),
}

/// What a topic of the bag is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `sensor_msgs/Image` of this camera slot.
    RawCamera(usize),
    /// `sensor_msgs/CompressedImage` of this camera slot.
    CompressedCamera(usize),
    /// Joint states.
    Joints,
    /// The task.
    Prompt,
}

/// The topics that are read: (index in the bag, role), and notes for a person.
#[derive(Debug)]
pub struct Topics {
    /// Index into [`Bag::topics`] and role.
    pub roles: Vec<(usize, Role)>,
    /// For each camera slot of the model, the configured camera.
    pub cameras: Vec<Option<usize>>,
    /// What was understood although it was not said exactly so.
    pub notes: Vec<String>,
}

const IMAGES: [&str; 2] = [ImageMessage::TYPE, CompressedImageMessage::TYPE];
/// Topics that an error message lists at most.
const LISTED: usize = 12;

impl Topics {
    /// Finds the configured topics in the bag. `slots` are the model's cameras.
    pub fn resolve(bag: &Bag, config: &Config, slots: &CameraSlots) -> Result<Self, TopicError> {
        let cameras = slots.assign(&config.cameras)?;
        let mut topics = Self { roles: Vec::new(), cameras: cameras.clone(), notes: Vec::new() };
        for (slot, camera) in cameras.into_iter().enumerate() {
            let Some(camera) = camera.and_then(|index| config.cameras.get(index)) else { continue };
            let parameter = format!("cameras.{}.topic", camera.slot);
            let topic = topics.find(bag, &parameter, &camera.topic, &IMAGES)?;
            let raw = bag.topics()[topic].type_name == ImageMessage::TYPE;
            topics
                .roles
                .push((topic, if raw { Role::RawCamera(slot) } else { Role::CompressedCamera(slot) }));
        }
        let joints = topics.find(bag, "joints.topic", &config.joints.topic, &[JointStateMessage::TYPE])?;
        topics.roles.push((joints, Role::Joints));
        if let Some(prompt) = bag.topic(&config.prompt_topic).filter(|&t| bag.topics()[t].type_name == STRING)
        {
            topics.roles.push((prompt, Role::Prompt));
        }
        Ok(topics)
    }

    fn find(&mut self, bag: &Bag, parameter: &str, name: &str, types: &[&str]) -> Result<usize, TopicError> {
        find(bag, parameter, name, types, &mut self.notes)
    }
}

/// Index of a topic of one of `types`: by its name, else its raw or compressed twin, else the only one whose
/// name ends so (a bag that was recorded inside a namespace).
pub(super) fn find(
    bag: &Bag,
    parameter: &str,
    name: &str,
    types: &[&str],
    notes: &mut Vec<String>,
) -> Result<usize, TopicError> {
    let fits = |topic: &usize| types.contains(&bag.topics()[*topic].type_name.as_str());
    if let Some(topic) = bag.topic(name) {
        return if fits(&topic) {
            Ok(topic)
        } else {
            Err(TopicError::Type {
                bag: bag.path().display().to_string(),
                parameter: parameter.to_owned(),
                topic: bag.topics()[topic].name.clone(),
                expected: types.join(" or "),
                found: bag.topics()[topic].type_name.clone(),
            })
        };
    }
    let twin = match name.strip_suffix("/compressed") {
        Some(raw) => raw.to_owned(),
        None => format!("{name}/compressed"),
    };
    let ending = |name: &str| {
        let end = format!("/{}", name.trim_start_matches('/'));
        let mut all = (0..bag.topics().len()).filter(|t| fits(t) && bag.topics()[*t].name.ends_with(&end));
        all.next().filter(|_| all.next().is_none())
    };
    let found = bag.topic(&twin).filter(fits).or_else(|| ending(name)).or_else(|| ending(&twin));
    match found {
        Some(topic) => {
            let found = &bag.topics()[topic].name;
            notes.push(format!("{parameter}: the bag has no topic {name}; {found} is used"));
            Ok(topic)
        }
        None => Err(TopicError::Missing {
            bag: bag.path().display().to_string(),
            parameter: parameter.to_owned(),
            topic: name.to_owned(),
            found: (0..bag.topics().len()).filter(fits).map(|t| bag.topics()[t].name.clone()).collect(),
            damage: bag.notes().into(),
        }),
    }
}

fn listed(topics: &[String]) -> String {
    match topics {
        [] => "no topic of that type".to_owned(),
        topics if topics.len() <= LISTED => topics.join(", "),
        topics => format!("{}, and {} more", topics[..LISTED].join(", "), topics.len() - LISTED),
    }
}
