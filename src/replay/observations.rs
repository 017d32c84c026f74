//! A few complete observations of a bag, evenly spread: what `pi05 steps` measures on. Nothing is inferred or commanded.

use super::bag::Bag;
use super::bag_clock::{BagClock, Stamped};
use super::message::{Left, Message};
use super::player::ReplayError;
use super::topics::Topics;
use crate::config::Config;
use crate::observe::Observation;
use crate::observe::intake::{Intake, Next};

/// Up to `count` observations with the prompt of their time, the first at the start of the bag. Messages that cannot be
/// used are passed over, as a replay does; of a damaged bag the readable part counts.
pub fn observations(
    bag: &Bag,
    config: &Config,
    cameras: &[String],
    topics: &Topics,
    count: usize,
) -> Result<Vec<(Observation, String)>, ReplayError> {
    let mut intake = Intake::new(config, cameras, &topics.cameras)?;
    let mut clock = BagClock::of(bag, topics)?;
    let mut prompt = config.prompt.clone();
    let mut found: Vec<(Observation, String)> = Vec::new();
    let (first, last) = bag.time_range().unwrap_or_default();
    let apart = last.saturating_sub(first) / count.max(1) as i64;
    let indices: Vec<usize> = topics.roles.iter().map(|(index, _)| *index).collect();
    for record in bag.records(&indices)? {
        let Ok(record) = record else { break };
        if found.len() == count {
            break;
        }
        for &(index, role) in topics.roles.iter().filter(|(index, _)| *index == record.topic) {
            let Ok(message) = Message::decode(role, &record.payload) else { continue };
            let stamped = Stamped { topic: index, stamp: message.stamp(), log_time: record.log_time };
            let reading = clock.read(stamped);
            if reading.jumped {
                intake.clear();
            }
            if let Left::Prompt(text) = message.give_to(&mut intake, reading.time) {
                text.clone_into(&mut prompt);
            }
            let due = record.log_time.saturating_sub(first) >= apart.saturating_mul(found.len() as i64);
            if due && let Next::Ready(observation) = intake.next_observation(reading.at) {
                found.push((observation, prompt.clone()));
            }
        }
    }
    Ok(found)
}
