//! The five lifecycle services and `~/transition_event`, by which ROS 2's tools know a managed node.

use r2r::lifecycle_msgs::msg::{
    State as StateMessage, Transition as TransitionMessage, TransitionDescription, TransitionEvent,
};
use r2r::lifecycle_msgs::srv::{ChangeState, GetAvailableStates, GetAvailableTransitions, GetState};
use r2r::{Node, Publisher, QosProfile, ServiceRequest};

use super::lifecycle::{self, State, Transition};
use super::service::{Service, answer};
use crate::clock::Stamp;

/// A client's wish for a transition, not yet answered.
pub type ChangeRequest = ServiceRequest<ChangeState::Service>;

/// The services of one node.
pub struct LifecycleServices {
    change: Service<ChangeState::Service>,
    state: Service<GetState::Service>,
    states: Service<GetAvailableStates::Service>,
    transitions: Service<GetAvailableTransitions::Service>,
    graph: Service<GetAvailableTransitions::Service>,
    events: Publisher<TransitionEvent>,
}

impl LifecycleServices {
    /// Offers them under the node's name.
    pub fn new(node: &mut Node) -> r2r::Result<Self> {
        Ok(Self {
            change: Service::new(node, "~/change_state", QosProfile::services_default())?,
            state: Service::new(node, "~/get_state", QosProfile::services_default())?,
            states: Service::new(node, "~/get_available_states", QosProfile::services_default())?,
            transitions: Service::new(node, "~/get_available_transitions", QosProfile::services_default())?,
            graph: Service::new(node, "~/get_transition_graph", QosProfile::services_default())?,
            events: node.create_publisher("~/transition_event", QosProfile::default())?,
        })
    }

    /// Answers questions about `now`, and gives the wishes for transitions.
    pub fn serve(&mut self, now: State) -> Vec<ChangeRequest> {
        self.state.drain(|request| answer(request, GetState::Response { current_state: state(now) }));
        self.states.drain(|request| {
            let available_states = State::ALL.map(state).to_vec();
            answer(request, GetAvailableStates::Response { available_states });
        });
        self.transitions.drain(|request| {
            let available = lifecycle::available(now).map(|request| description(request.transition));
            answer(request, GetAvailableTransitions::Response { available_transitions: available.collect() });
        });
        self.graph.drain(|request| {
            let graph = lifecycle::graph().into_iter().map(description);
            answer(request, GetAvailableTransitions::Response { available_transitions: graph.collect() });
        });
        let mut wishes = Vec::new();
        self.change.drain(|request| wishes.push(request));
        wishes
    }

    /// Tells `~/transition_event` that the node went this way.
    pub fn announce(&self, now: Stamp, way: Transition) {
        let event = TransitionEvent {
            timestamp: u64::try_from(now.0).unwrap_or(0),
            transition: transition(way),
            start_state: state(way.start),
            goal_state: state(way.goal),
        };
        if let Err(error) = self.events.publish(&event) {
            tracing::warn!("~/transition_event: {error}");
        }
    }
}

/// Tells the client whether its transition was made.
pub fn reply(request: ChangeRequest, success: bool) {
    answer(request, ChangeState::Response { success });
}

fn state(state: State) -> StateMessage {
    StateMessage { id: state.id(), label: state.label().to_owned() }
}

fn transition(transition: Transition) -> TransitionMessage {
    TransitionMessage { id: transition.id, label: transition.label.to_owned() }
}

fn description(way: Transition) -> TransitionDescription {
    TransitionDescription {
        transition: transition(way),
        start_state: state(way.start),
        goal_state: state(way.goal),
    }
}
