//! Whether a chunk may take over, and why not.
//!
//! Promises: what is refused changes nothing but a counter. The checks on shape and values were made before
//! ([`super::plan::Proposal`]); here are those against the clock, the running chunk and the state.

use crate::clock::{NS_PER_MS, Steady};

use super::plan::{Malformed, Plan};
use super::splice::Execution;
use super::state::State;

/// A chunk that takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Leading steps whose time had passed.
    pub dropped_steps: usize,
}

/// Why a chunk is not followed. The running plan goes on as if it had never come.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Rejected {
    /// Wrong shape, NaN or infinity, impossible times.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Its inference began before something interrupted the motion.
    #[error(
        "chunk {id}: expected one begun in epoch {current}, found epoch {found}; discarded, the motion was interrupted since"
    )]
    OldEpoch {
        /// The chunk.
        id: u64,
        /// Its epoch.
        found: u64,
        /// The epoch now.
        current: u64,
    },
    /// No chunk is taken in this state.
    #[error(
        "chunk {id}: expected control to be armed, running, braking or holding, found {state}; discarded"
    )]
    NotWanted {
        /// The chunk.
        id: u64,
        /// The state.
        state: State,
    },
    /// The arm braked and its joint states are still stale.
    #[error("chunk {id}: expected fresh joint states to set out from, found stale ones; discarded")]
    JointsStale {
        /// The chunk.
        id: u64,
    },
    /// Its last step is not after now.
    #[error(
        "chunk {id}: expected steps after now, found the last one {late_ms} ms ago; discarded, the inference is too slow for this horizon"
    )]
    Late {
        /// The chunk.
        id: u64,
        /// Milliseconds from its last step to now.
        late_ms: i64,
    },
    /// Computed from an older observation than the running chunk.
    #[error(
        "chunk {id}: expected a newer observation than that of chunk {running}, found an older one; discarded"
    )]
    Superseded {
        /// The chunk.
        id: u64,
        /// The running chunk.
        running: u64,
    },
    /// Its first step is too far from where the robot is.
    #[error(
        "chunk {id}: expected joint {joint} to begin within {most} of its measured position {measured}, found {found}; discarded"
    )]
    TooFar {
        /// The chunk.
        id: u64,
        /// Index of the joint.
        joint: usize,
        /// The bound (rad or m).
        most: f64,
        /// Where the robot is.
        measured: f64,
        /// Where the chunk begins.
        found: f64,
    },
    /// Executing open loop, a chunk came while another is executed.
    #[error("chunk {id}: expected none while chunk {running} is executed open loop; discarded")]
    NotYet {
        /// The chunk.
        id: u64,
        /// The running chunk.
        running: u64,
    },
    /// Executing open loop, it was computed from what was seen before the arm came to rest.
    #[error(
        "chunk {id}: expected an observation of the arm at rest, found an earlier one; discarded, chunks are executed open loop"
    )]
    SeenInMotion {
        /// The chunk.
        id: u64,
    },
    /// Its observation is more than one policy step ahead of now.
    #[error(
        "chunk {id}: expected an observation from before now, found one {ahead_ms} ms ahead; discarded, check the clocks"
    )]
    FromFuture {
        /// The chunk.
        id: u64,
        /// Milliseconds from now to its observation.
        ahead_ms: i64,
    },
}

impl Rejected {
    /// Why, without the numbers of the one chunk, so that equal reasons can be counted together.
    pub fn in_general(&self) -> String {
        match self {
            Self::Malformed(malformed) => malformed.to_string(),
            Self::Late { .. } => "all its steps had passed".to_owned(),
            Self::Superseded { .. } => "its observation was older than the running one's".to_owned(),
            Self::FromFuture { .. } => "its observation lay ahead of now".to_owned(),
            Self::OldEpoch { .. } => "the motion was interrupted since it was begun".to_owned(),
            Self::TooFar { joint, .. } => {
                format!("joint {joint} was to begin too far from its measured position")
            }
            Self::NotYet { .. } => "another one was executed open loop".to_owned(),
            Self::SeenInMotion { .. } => "it was observed before the arm came to rest".to_owned(),
            Self::JointsStale { .. } => "joint states were stale".to_owned(),
            Self::NotWanted { state, .. } => format!("control was {state}"),
        }
    }
}

/// From which observations an inference may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// From none: its chunk would not be followed.
    Nothing,
    /// From any that is newer than the last.
    Any,
    /// From one of the arm at rest, which it has been since after then: chunks are executed open loop, one by one.
    After(Steady),
}

impl Wants {
    /// Whether it may begin from what was observed then.
    pub fn includes(self, observed: Steady) -> bool {
        match self {
            Self::Nothing => false,
            Self::Any => true,
            Self::After(moved) => observed > moved,
        }
    }
}

/// What a chunk is judged against.
pub(super) struct Gate {
    pub state: State,
    /// The last command is where it rests, or there is none.
    pub at_rest: bool,
    /// The last time it was not.
    pub moved_at: Steady,
    pub epoch: u64,
    /// Measured positions are fresh, or the robot measures none.
    pub joints_fresh: bool,
    /// Id and observation of the chunk that is followed.
    pub running: Option<(u64, Steady)>,
    pub execution: Execution,
}

impl Gate {
    /// What [`Self::admit`] would take.
    pub fn wants(&self) -> Wants {
        match self.execution {
            _ if !self.state.takes_chunks() => Wants::Nothing,
            Execution::OpenLoop if self.at_rest => Wants::After(self.moved_at),
            Execution::OpenLoop => Wants::Nothing,
            _ => Wants::Any,
        }
    }

    /// Judges the plan of a chunk with this number and epoch, computed from what was observed then.
    pub fn admit(
        &self,
        id: u64,
        epoch: u64,
        observed: Steady,
        plan: &Plan,
        now: Steady,
    ) -> Result<Accepted, Rejected> {
        if epoch != self.epoch {
            return Err(Rejected::OldEpoch { id, found: epoch, current: self.epoch });
        }
        if !self.state.takes_chunks() {
            return Err(Rejected::NotWanted { id, state: self.state });
        }
        // An armed scheduler keeps the chunk until positions come; one that braked sets out with fresh ones only.
        if !self.joints_fresh && matches!(self.state, State::Braking | State::Holding) {
            return Err(Rejected::JointsStale { id });
        }
        let ahead = observed.0.saturating_sub(now.0);
        if ahead > plan.period_ns() {
            return Err(Rejected::FromFuture { id, ahead_ms: ahead / NS_PER_MS });
        }
        let open_loop = self.execution == Execution::OpenLoop;
        if plan.end() <= now && !open_loop {
            return Err(Rejected::Late { id, late_ms: now.0.saturating_sub(plan.end().0) / NS_PER_MS });
        }
        if let Some((running, newest)) = self.running
            && observed < newest
        {
            return Err(Rejected::Superseded { id, running });
        }
        if open_loop {
            return match self.running {
                Some((running, _)) if !self.at_rest => Err(Rejected::NotYet { id, running }),
                _ if observed <= self.moved_at => Err(Rejected::SeenInMotion { id }),
                _ => Ok(Accepted { dropped_steps: 0 }),
            };
        }
        // The steps whose time is before now; fewer than the chunk has, for its end is after now.
        let elapsed = now.0.saturating_sub(observed.0).max(0);
        Ok(Accepted { dropped_steps: (elapsed as u64).div_ceil(plan.period_ns() as u64) as usize })
    }
}
