//! Subscriptions, which outlast the session that they were made for.
//!
//! r2r ends a subscription whose stream was dropped only with the topic's next message, and the middleware takes one type
//! per topic and process. So what a session leaves waits here, to be taken up by the next one; what is left and hears
//! something is dropped, so that r2r can end it. However often the node is configured, a silent topic has one subscription.

use std::cell::RefCell;
use std::rc::Rc;

use futures::{FutureExt, Stream, StreamExt};
use r2r::{Node, QosProfile};

use super::names::Names;
use super::service;

/// Serialized messages of one topic.
type Bytes = Box<dyn Stream<Item = Vec<u8>> + Unpin>;

/// Makes subscriptions and keeps those that are left. On the spin thread.
#[derive(Default)]
pub struct Subscriptions {
    left: Rc<RefCell<Vec<Source>>>,
    /// Every topic and type that there ever was, once.
    made: Vec<(String, &'static str)>,
}

/// A topic's messages, for as long as this lives.
pub struct Subscription {
    /// `None` only while it is dropped.
    source: Option<Source>,
    left: Rc<RefCell<Vec<Source>>>,
}

struct Source {
    /// As the network knows it.
    topic: String,
    type_name: &'static str,
    messages: Bytes,
}

impl Subscriptions {
    /// Subscribes, or takes up what was left. Of a topic and type the QoS is always the same.
    pub fn subscribe(
        &mut self,
        node: &mut Node,
        names: &Names,
        topic: &str,
        type_name: &'static str,
        qos: QosProfile,
    ) -> Result<Subscription, String> {
        let resolved = names.resolve(topic);
        let is_it = |source: &Source| source.topic == resolved && source.type_name == type_name;
        let left = self.left.borrow().iter().position(is_it);
        let source = match left.map(|index| self.left.borrow_mut().swap_remove(index)) {
            Some(source) => source,
            None => {
                let messages = node.subscribe_raw(topic, type_name, qos);
                let messages = messages.map_err(|error| self.refusal(&resolved, type_name, &error))?;
                if !self.made.contains(&(resolved.clone(), type_name)) {
                    self.made.push((resolved.clone(), type_name));
                }
                Source { topic: resolved, type_name, messages: Box::new(messages) }
            }
        };
        Ok(Subscription { source: Some(source), left: Rc::clone(&self.left) })
    }

    /// Drops what was left and has heard something. To be called often.
    pub fn sweep(&self) {
        self.left.borrow_mut().retain_mut(|source| source.messages.next().now_or_never().is_none());
    }

    fn refusal(&self, topic: &str, type_name: &str, error: &r2r::Error) -> String {
        let before = self.made.iter().find(|(name, other)| name == topic && *other != type_name);
        match before {
            Some((_, other)) => format!(
                "{topic}: cannot be subscribed to as {type_name}: a process takes one type per topic, and this one has taken {other}; use another topic, or start the node anew"
            ),
            None => format!(
                "{topic}: cannot be subscribed to as {type_name}: {error}; check the topic's name and what else this node does with it"
            ),
        }
    }
}

impl Subscription {
    /// Takes every message that has arrived.
    pub fn drain(&mut self, take: impl FnMut(Vec<u8>)) {
        if let Some(source) = &mut self.source {
            service::drain(&mut source.messages, take);
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.left.borrow_mut().extend(self.source.take());
    }
}
