//! What control is doing, and what may come after it: one table.
//!
//! Promises: whatever happens in whatever state, the state after it stands in the table of [`State::after`]; there is
//! no other way from one state to another. The table decides what may be followed; how the arm comes to rest is the
//! scheduler's part.

use std::fmt;

/// What control is doing. [`State::name`] is what `PolicyStatus.control` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not active: no chunk is taken, nothing is sent.
    #[default]
    Idle,
    /// Active, but nothing was sent yet: waits for a chunk and for measured positions to start from.
    Armed,
    /// Commands follow a chunk.
    Running,
    /// Commands decelerate. A fresh chunk takes over.
    Braking,
    /// Commands stay as they are. A fresh chunk takes over.
    Holding,
    /// Somebody paused: brakes, then holds, until resumed.
    Paused,
    /// Somebody stopped: brakes, then nothing is sent, until reset.
    Stopped,
    /// Something broke: brakes, then holds, until reset.
    Fault,
}

impl State {
    /// Every state, in the order of the table's columns.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Armed,
        Self::Running,
        Self::Braking,
        Self::Holding,
        Self::Paused,
        Self::Stopped,
        Self::Fault,
    ];

    /// The word for it in status messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Armed => "armed",
            Self::Running => "running",
            Self::Braking => "braking",
            Self::Holding => "holding",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Fault => "fault",
        }
    }

    /// A chunk may take over. In the other states every chunk is refused.
    pub fn takes_chunks(self) -> bool {
        matches!(self, Self::Armed | Self::Running | Self::Braking | Self::Holding)
    }

    /// Only a person's word ends it.
    pub fn is_latched(self) -> bool {
        matches!(self, Self::Paused | Self::Stopped | Self::Fault)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes the events, the table and its documentation out of one text.
macro_rules! transitions {
    ($($(#[doc = $doc:literal])+ $event:ident:
        $idle:ident $armed:ident $running:ident $braking:ident
        $holding:ident $paused:ident $stopped:ident $fault:ident;)*) => {
        /// What can happen to a [`State`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[doc = $doc])+ $event,)*
        }

        impl Event {
            /// Every event, in the order of the table's rows.
            pub const ALL: &[Self] = &[$(Self::$event),*];
        }

        impl State {
            /// The state after an event.
            ///
            /// | event | in idle | armed | running | braking | holding | paused | stopped | fault |
            /// |---|---|---|---|---|---|---|---|---|
            $(#[doc = concat!(
                "| ", stringify!($event), " | ", stringify!($idle), " | ", stringify!($armed), " | ",
                stringify!($running), " | ", stringify!($braking), " | ", stringify!($holding), " | ",
                stringify!($paused), " | ", stringify!($stopped), " | ", stringify!($fault), " |"
            )])*
            pub const fn after(self, event: Event) -> State {
                let row = match event {
                    $(Event::$event => [
                        State::$idle, State::$armed, State::$running, State::$braking,
                        State::$holding, State::$paused, State::$stopped, State::$fault,
                    ],)*
                };
                row[self as usize]
            }
        }
    };
}

#[rustfmt::skip]
transitions! {
    // event       idle  armed   running braking holding paused  stopped fault
    /// Control begins.
    Arm:           Armed Armed   Running Braking Holding Paused  Stopped Fault;
    /// Control ends.
    Disarm:        Idle  Idle    Idle    Idle    Idle    Idle    Idle    Idle;
    /// Commands follow a new chunk from now on.
    Follow:        Idle  Running Running Running Running Paused  Stopped Fault;
    /// The chunk's last step has passed and no newer chunk came.
    Exhausted:     Idle  Armed   Braking Braking Holding Paused  Stopped Fault;
    /// Something is not as it must be: joint states are stale, a camera is lost.
    Brake:         Idle  Armed   Braking Braking Holding Paused  Stopped Fault;
    /// The commands have come to rest.
    Rest:          Idle  Armed   Running Holding Holding Paused  Stopped Fault;
    /// There is no command to hold.
    Silence:       Idle  Armed   Armed   Armed   Armed   Paused  Stopped Fault;
    /// A person pauses.
    Pause:         Idle  Paused  Paused  Paused  Paused  Paused  Stopped Fault;
    /// A person lets it go on. Rest or silence, if they are there, are said right after.
    Resume:        Idle  Armed   Running Braking Holding Braking Stopped Fault;
    /// A person stops.
    Stop:          Idle  Stopped Stopped Stopped Stopped Stopped Stopped Fault;
    /// A person says that the cause of the stop or fault is gone. Rest or silence are said right after.
    Reset:         Idle  Armed   Running Braking Holding Paused  Braking Braking;
    /// Something broke.
    Fault:         Idle  Fault   Fault   Fault   Fault   Fault   Fault   Fault;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = (State, Event, State)> {
        State::ALL.into_iter().flat_map(|s| Event::ALL.iter().map(move |&e| (s, e, s.after(e))))
    }

    #[test]
    fn names_are_those_of_the_status_message() {
        let message = include_str!("../../msg/PolicyStatus.msg");
        let names = State::ALL.map(State::name).join(" | ");
        assert!(message.contains(&names), "{names}");
        assert!(State::ALL.iter().enumerate().all(|(column, &state)| state as usize == column));
    }

    #[test]
    fn only_a_chunk_makes_it_run_and_only_where_chunks_are_taken() {
        for (before, event, after) in all().filter(|(before, _, after)| before != after) {
            assert!(after != State::Running || (event == Event::Follow && before.takes_chunks()), "{before}");
        }
        for state in State::ALL {
            assert_eq!(state.after(Event::Follow) == State::Running, state.takes_chunks(), "{state}");
        }
    }

    #[test]
    fn a_latch_is_left_by_a_persons_word_only() {
        for (before, event, after) in
            all().filter(|(before, _, after)| before.is_latched() && before != after)
        {
            let permitted = match before {
                State::Paused => {
                    matches!(event, Event::Resume | Event::Stop | Event::Fault | Event::Disarm)
                }
                State::Stopped => matches!(event, Event::Reset | Event::Fault | Event::Disarm),
                _ => matches!(event, Event::Reset | Event::Disarm),
            };
            assert!(permitted, "{before} -{event:?}-> {after}");
        }
    }

    #[test]
    fn what_interrupts_never_leaves_it_running() {
        for (before, event, after) in all() {
            if matches!(event, Event::Brake | Event::Pause | Event::Stop | Event::Fault | Event::Disarm) {
                assert_ne!(after, State::Running, "{before} {event:?}");
            }
            if before == State::Idle {
                assert_eq!(after == State::Idle, event != Event::Arm);
            }
        }
    }
}
