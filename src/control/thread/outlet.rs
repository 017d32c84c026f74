//! The way out: what each tick gave, for the thread that publishes it.
//!
//! Promises: the tick writes into a wait-free triple buffer and rings; it never waits, and allocates nothing but for a
//! trajectory. The newest wins: what the publisher was too slow for is lost and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use triple_buffer::{Input, Output, triple_buffer};

use super::Shared;
use crate::clock::Steady;
use crate::control::preview::{Preview, Trajectory};
use crate::control::{Command, State};

/// One command, as it goes to the arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sent<'a> {
    /// Time of the tick that gave it.
    pub at: Steady,
    /// One per joint, in the order of the limits.
    pub values: &'a [f64],
    /// The chunk that is followed, or was before it braked.
    pub chunk: u64,
    /// What control was doing.
    pub state: State,
    /// Braking or holding.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

/// What [`Outlet::receive`] finds.
#[derive(Clone, Debug, PartialEq)]
pub enum Received<'a> {
    /// A tick's command ([`super::Form::PerTick`]).
    Command(Sent<'a>),
    /// The whole way to rest, from now on ([`super::Form::Trajectory`]).
    Trajectory(Trajectory),
    /// Nothing within the time.
    Nothing,
    /// Control has ended and everything was taken.
    Ended,
}

/// The publisher's end. One thread takes from it.
#[derive(Debug)]
pub struct Outlet {
    newest: Output<Slot>,
    shared: Arc<Shared>,
}

/// The tick's end.
#[derive(Debug)]
pub(super) struct Inlet {
    slot: Input<Slot>,
    shared: Arc<Shared>,
}

#[derive(Clone, Debug)]
struct Slot {
    at: Steady,
    values: Vec<f64>,
    chunk: u64,
    state: State,
    resting: bool,
    limited: bool,
    trajectory: Option<Preview>,
}

pub(super) fn outlet(joints: usize, shared: &Arc<Shared>) -> (Inlet, Outlet) {
    let (slot, newest) = triple_buffer(&Slot {
        at: Steady(0),
        values: vec![0.0; joints],
        chunk: 0,
        state: State::Idle,
        resting: false,
        limited: false,
        trajectory: None,
    });
    (Inlet { slot, shared: Arc::clone(shared) }, Outlet { newest, shared: Arc::clone(shared) })
}

impl Inlet {
    /// Hands a command over. True if the one before it was not taken.
    pub fn put_command(&mut self, at: Steady, command: &Command, state: State) -> bool {
        let slot = self.slot.input_buffer_mut();
        slot.at = at;
        slot.values.copy_from_slice(command.values);
        (slot.chunk, slot.resting, slot.limited) = (command.chunk, command.resting, command.limited);
        slot.state = state;
        self.publish()
    }

    /// Hands a way to rest over; the points are made where it is taken.
    pub fn put_trajectory(&mut self, preview: Preview) -> bool {
        self.slot.input_buffer_mut().trajectory = Some(preview);
        self.publish()
    }

    fn publish(&mut self) -> bool {
        let lost = self.slot.publish();
        self.shared.sent.ring();
        lost
    }
}

impl Outlet {
    /// Waits up to `timeout` for something that was not taken yet.
    pub fn receive(&mut self, timeout: Duration) -> Received<'_> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let rung = self.shared.sent.rung();
            let alive = self.shared.is_alive(); // before looking: what it gave last is taken first
            if self.newest.update() {
                break;
            }
            if !alive {
                return Received::Ended;
            }
            let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Received::Nothing;
            }
            self.shared.sent.wait(rung, left);
        }
        let slot = self.newest.output_buffer_mut();
        if let Some(preview) = slot.trajectory.take() {
            return Received::Trajectory(preview.trajectory());
        }
        let Slot { at, ref values, chunk, state, resting, limited, .. } = *slot;
        Received::Command(Sent { at, values, chunk, state, resting, limited })
    }
}
