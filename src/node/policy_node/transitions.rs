//! Transitions: how one begins, when its work is done, and what it then says.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{End, PolicyNode};
use crate::control::thread::stronger;
use crate::node::lifecycle::{self, ACTIVATE, CONFIGURE, Request, State, Transition};
use crate::node::lifecycle_services::{ChangeRequest, reply};
use crate::node::session::{Loaded, Session, load};

/// How long `activate` waits for fresh inputs and for somebody who hears the commands, before it refuses.
const ACTIVATE_PATIENCE: Duration = Duration::from_secs(2);
/// Between two attempts to activate a node that starts by itself.
const AUTOSTART_PAUSE: Duration = Duration::from_secs(1);
/// Between two lines in the log that the arm still brakes. It takes as long as its limits want; what moves is not given up.
const BRAKE_REMINDER: Duration = Duration::from_secs(10);

/// A transition that has begun.
pub(super) struct Underway {
    request: Request,
    client: Option<ChangeRequest>,
    work: Work,
}

/// What a transition waits for.
pub(super) enum Work {
    /// The checkpoint.
    Loading(JoinHandle<Result<Loaded, String>>),
    /// Inputs and listeners, until then.
    Waiting(Instant),
    /// The arm's rest, which is said to take long from then on; then, but for a deactivation, the session's end.
    Braking(Instant),
    /// The session's threads.
    Closing(Option<JoinHandle<()>>),
}

/// Whether the node still has to start by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Autostart {
    /// No: not asked for, done, or somebody else has taken over.
    Off,
    /// Yes, from then on.
    At(Instant),
}

impl PolicyNode {
    pub(super) fn serve_lifecycle(&mut self) {
        for wish in self.lifecycle_services.serve(self.state) {
            let asked = &wish.message.transition;
            let (id, label) = (asked.id, asked.label.clone());
            self.autostart = Autostart::Off;
            match lifecycle::find(self.state, id, &label) {
                Ok(request) => self.begin(request, Some(wish)),
                Err(why) => {
                    tracing::warn!("refused: {why}");
                    if self.state != State::Active {
                        self.reason = why; // of an active node, the reason is why it does not move
                    }
                    reply(wish, false);
                }
            }
        }
    }

    /// A transition begins; its work goes on beside the spinning.
    fn begin(&mut self, request: Request, client: Option<ChangeRequest>) {
        if client.is_some() {
            self.reason.clear(); // one that tries again by itself has not got rid of it
        }
        let now = Instant::now();
        let work = match request.transition.goal {
            State::Configuring => {
                let config = self.parameters.config().clone();
                tracing::info!("loading {}", config.checkpoint);
                match thread::Builder::new().name("load".to_owned()).spawn(move || load(&config)) {
                    Ok(loading) => Work::Loading(loading),
                    Err(error) => {
                        tracing::error!("cannot start a thread: {error}");
                        if let Some(client) = client {
                            reply(client, false);
                        }
                        return;
                    }
                }
            }
            State::Activating => Work::Waiting(now + ACTIVATE_PATIENCE),
            goal => {
                if let Some(session) = &mut self.session {
                    if goal == State::Deactivating {
                        self.latched = None; // control has it
                    }
                    session.deactivate();
                }
                Work::Braking(now + BRAKE_REMINDER)
            }
        };
        self.enter(request.transition);
        self.underway = Some(Underway { request, client, work });
    }

    /// Looks whether the transition under way has finished.
    pub(super) fn progress(&mut self) {
        let Some(mut underway) = self.underway.take() else { return };
        let outcome = match &mut underway.work {
            Work::Loading(loading) if !loading.is_finished() => None,
            Work::Loading(_) => None, // taken below
            Work::Waiting(until) => self.try_to_activate(*until),
            Work::Braking(remind) => {
                if let Some(session) = self.session.as_ref().filter(|_| self.clock.stands()) {
                    session.give_up();
                }
                if !self.session.as_mut().is_none_or(Session::is_resting) {
                    if Instant::now() >= *remind {
                        tracing::warn!("still braking, as the arm's limits let it");
                        *remind = Instant::now() + BRAKE_REMINDER;
                    }
                    None
                } else if underway.request.transition.goal == State::Deactivating {
                    let latch = self.session.as_ref().and_then(Session::latched);
                    self.latched = stronger(self.latched, latch);
                    Some(Ok(()))
                } else {
                    let closing = self.session.take().map(|session| session.close(&mut self.ros));
                    underway.work = Work::Closing(closing);
                    None
                }
            }
            Work::Closing(closing) => closing.as_ref().is_none_or(JoinHandle::is_finished).then_some(Ok(())),
        };
        match (outcome, underway) {
            (Some(outcome), underway) => self.finish(underway, outcome),
            (None, Underway { request, client, work: Work::Loading(loading) }) if loading.is_finished() => {
                let outcome = match loading.join() {
                    Ok(loaded) => loaded.and_then(|loaded| self.configure(loaded)),
                    Err(_) => Err("loading panicked".to_owned()),
                };
                let work = Work::Closing(None);
                self.finish(Underway { request, client, work }, outcome);
            }
            (None, underway) => self.underway = Some(underway),
        }
    }

    fn configure(&mut self, loaded: Loaded) -> Result<(), String> {
        let config = self.parameters.config();
        let session =
            Session::new(&mut self.subscriptions, &mut self.ros, &self.names, &self.clock, config, loaded)?;
        tracing::info!("{} on {}", config.checkpoint, session.engine());
        self.session = Some(session);
        Ok(())
    }

    fn try_to_activate(&mut self, until: Instant) -> Option<Result<(), String>> {
        let Some(session) = &mut self.session else {
            return Some(Err("there is no configured policy".to_owned()));
        };
        match session.ready() {
            Ok(()) => Some(session.activate(self.latched)),
            Err(why) if Instant::now() >= until => Some(Err(why)),
            Err(_) => None,
        }
    }

    /// The transition has come to its end.
    fn finish(&mut self, underway: Underway, outcome: Result<(), String>) {
        let Underway { request, client, .. } = underway;
        let via = request.transition.goal;
        let (ok, goal) = match &outcome {
            Ok(()) => (true, request.success),
            Err(_) => (false, request.failure),
        };
        let id = request.transition.id.min(5) * 10 + u8::from(!ok);
        let label = if ok { "transition_success" } else { "transition_failure" };
        self.enter(Transition { id, label, start: via, goal });
        let by_itself = client.is_none();
        if let Some(client) = client {
            reply(client, ok);
        }
        if let Err(why) = outcome {
            let what = request.transition.label;
            // One that starts by itself tries again and again: once is enough to say so, whatever its numbers.
            if !by_itself {
                tracing::error!("{what} refused: {why}");
                self.reason = why;
            } else if !same_but_for_numbers(&self.reason, &why) {
                tracing::warn!("{what}: {why}");
                self.reason = why;
            }
            if self.autostart != Autostart::Off {
                let again = goal == State::Inactive;
                self.autostart =
                    if again { Autostart::At(Instant::now() + AUTOSTART_PAUSE) } else { Autostart::Off };
            }
        } else {
            self.reason.clear();
            tracing::info!("{}", goal.label());
            if goal == State::Active {
                self.autostart = Autostart::Off;
            }
        }
    }

    fn enter(&mut self, way: Transition) {
        self.state = way.goal;
        self.lifecycle_services.announce(self.now(), way);
    }

    pub(super) fn start_by_itself(&mut self) {
        let Autostart::At(when) = self.autostart else { return };
        if self.underway.is_none() && Instant::now() >= when {
            match self.state {
                State::Unconfigured => self.begin(CONFIGURE, None),
                State::Inactive => self.begin(ACTIVATE, None),
                _ => {}
            }
        }
    }

    /// Whether everything is at rest and cleaned up, after [`Self::end`].
    pub(super) fn ended(&mut self) -> Option<End> {
        if !self.ending {
            return None;
        }
        let loading = matches!(&self.underway, Some(Underway { work: Work::Loading(_), .. }));
        if self.state == State::Finalized || loading {
            return Some(self.broken.take().map_or(End::Asked, End::Broken));
        }
        if self.underway.is_none()
            && let Ok(request) = lifecycle::find(self.state, 0, "shutdown")
        {
            self.begin(request, None);
        }
        None
    }
}

fn same_but_for_numbers(one: &str, other: &str) -> bool {
    let is_text = |c: &char| !c.is_ascii_digit();
    one.chars().filter(is_text).eq(other.chars().filter(is_text))
}
