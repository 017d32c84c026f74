//! The node's lifecycle as ROS 2 defines it: states, transitions, and what is allowed when. No ROS types.
//!
//! Numbers and names are those of `lifecycle_msgs`, so that `ros2 lifecycle` and lifecycle managers feel at home.

/// Where the node is: at rest in a primary state, or on its way between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names of lifecycle_msgs/State
pub enum State {
    Unknown,
    Unconfigured,
    Inactive,
    Active,
    Finalized,
    Configuring,
    CleaningUp,
    ShuttingDown,
    Activating,
    Deactivating,
    ErrorProcessing,
}

/// A way from one primary state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// As in `lifecycle_msgs/Transition`.
    pub id: u8,
    /// What it is called.
    pub label: &'static str,
    /// Where it begins.
    pub start: State,
    /// The state that it ends in: for a request, the transition state.
    pub goal: State,
}

/// A transition that can be asked for, with its three outcomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// From the primary state to the transition state.
    pub transition: Transition,
    /// Where it ends if all goes well.
    pub success: State,
    /// Where it ends if it is refused.
    pub failure: State,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 11] = [
        Self::Unknown,
        Self::Unconfigured,
        Self::Inactive,
        Self::Active,
        Self::Finalized,
        Self::Configuring,
        Self::CleaningUp,
        Self::ShuttingDown,
        Self::Activating,
        Self::Deactivating,
        Self::ErrorProcessing,
    ];

    /// Its number in `lifecycle_msgs/State`.
    pub fn id(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Unconfigured => 1,
            Self::Inactive => 2,
            Self::Active => 3,
            Self::Finalized => 4,
            Self::Configuring => 10,
            Self::CleaningUp => 11,
            Self::ShuttingDown => 12,
            Self::Activating => 13,
            Self::Deactivating => 14,
            Self::ErrorProcessing => 15,
        }
    }

    /// Its name.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Unconfigured => "unconfigured",
            Self::Inactive => "inactive",
            Self::Active => "active",
            Self::Finalized => "finalized",
            Self::Configuring => "configuring",
            Self::CleaningUp => "cleaningup",
            Self::ShuttingDown => "shuttingdown",
            Self::Activating => "activating",
            Self::Deactivating => "deactivating",
            Self::ErrorProcessing => "errorprocessing",
        }
    }
}

/// `configure`: load the checkpoint, warm up, listen.
pub const CONFIGURE: Request =
    request(1, "configure", State::Unconfigured, State::Configuring, State::Inactive);
/// `cleanup`: let go of the checkpoint and the engine.
pub const CLEANUP: Request = request(2, "cleanup", State::Inactive, State::CleaningUp, State::Unconfigured);
/// `activate`: commands may flow.
pub const ACTIVATE: Request = request(3, "activate", State::Inactive, State::Activating, State::Active);
/// `deactivate`: brake and hold.
pub const DEACTIVATE: Request = request(4, "deactivate", State::Active, State::Deactivating, State::Inactive);

/// Everything that can be asked for.
pub const REQUESTS: [Request; 7] = [
    CONFIGURE,
    CLEANUP,
    ACTIVATE,
    DEACTIVATE,
    shutdown(5, State::Unconfigured),
    shutdown(6, State::Inactive),
    shutdown(7, State::Active),
];

const fn request(id: u8, label: &'static str, start: State, via: State, success: State) -> Request {
    Request { transition: Transition { id, label, start, goal: via }, success, failure: start }
}

const fn shutdown(id: u8, start: State) -> Request {
    let transition = Transition { id, label: "shutdown", start, goal: State::ShuttingDown };
    Request { transition, success: State::Finalized, failure: State::Finalized }
}

/// What can be asked for in `state`.
pub fn available(state: State) -> impl Iterator<Item = Request> {
    REQUESTS.into_iter().filter(move |request| request.transition.start == state)
}

/// The request that a client means: by its label if it gives one, else by its number.
///
/// `Err` says in one line why it cannot be done in `state`.
pub fn find(state: State, id: u8, label: &str) -> Result<Request, String> {
    let means = |request: &Request| match label {
        "" => request.transition.id == id,
        label => request.transition.label == label,
    };
    available(state).find(means).ok_or_else(|| {
        let known: Vec<&str> = available(state).map(|request| request.transition.label).collect();
        let asked = if label.is_empty() { format!("transition {id}") } else { format!("{label:.40?}") };
        let known = if known.is_empty() { "nothing, wait".to_owned() } else { known.join(" or ") };
        format!("{asked} while {}: expected {known}", state.label())
    })
}

/// The whole graph, as `get_transition_graph` shows it.
pub fn graph() -> Vec<Transition> {
    let mut graph: Vec<Transition> = REQUESTS.iter().map(|request| request.transition).collect();
    let outcomes = |first, via, success, failure| {
        [
            Transition { id: first, label: "transition_success", start: via, goal: success },
            Transition { id: first + 1, label: "transition_failure", start: via, goal: failure },
            Transition { id: first + 2, label: "transition_error", start: via, goal: State::ErrorProcessing },
        ]
    };
    for request in [CONFIGURE, CLEANUP, ACTIVATE, DEACTIVATE, shutdown(5, State::Unconfigured)] {
        let Transition { id, goal: via, .. } = request.transition;
        graph.extend(outcomes(id * 10, via, request.success, request.failure));
    }
    let mut after_error = outcomes(60, State::ErrorProcessing, State::Unconfigured, State::Finalized);
    after_error[2].goal = State::Finalized;
    graph.extend(after_error);
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_transition_of_the_graph_has_its_own_number_and_known_ends() {
        let graph = graph();
        let mut ids: Vec<u8> = graph.iter().map(|transition| transition.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), graph.len());
        assert_eq!(
            ids,
            [1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42, 50, 51, 52, 60, 61, 62]
        );
    }

    #[test]
    fn a_request_is_found_by_label_or_number_and_only_where_it_is_allowed() {
        assert_eq!(find(State::Unconfigured, 0, "configure"), Ok(CONFIGURE));
        assert_eq!(find(State::Inactive, 3, ""), Ok(ACTIVATE));
        assert_eq!(find(State::Active, 0, "shutdown").map(|r| r.transition.id), Ok(7));
        assert_eq!(
            find(State::Unconfigured, 3, "").unwrap_err(),
            "transition 3 while unconfigured: expected configure or shutdown"
        );
        assert_eq!(
            find(State::Configuring, 0, "activate").unwrap_err(),
            "\"activate\" while configuring: expected nothing, wait"
        );
        for state in State::ALL {
            for id in 0..=255 {
                assert_eq!(find(state, id, "").is_ok(), available(state).any(|r| r.transition.id == id));
            }
        }
    }
}
