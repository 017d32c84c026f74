//! The node on its spin thread: parameters, lifecycle, services, and what it tells of itself.
//!
//! Everything that takes long (loading, braking, ending threads) goes on beside the spinning: a transition is under way
//! until [`PolicyNode::turn`] finds it finished.

mod transitions;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use r2r::std_srvs::srv::{SetBool, Trigger};
use r2r::{Node, PublisherUntyped, QosProfile};

use self::transitions::{Autostart, Underway};
use super::clock::RosClock;
use super::diagnostics::{self, Rates};
use super::lifecycle::State;
use super::lifecycle_services::LifecycleServices;
use super::names::Names;
use super::parameter_files;
use super::parameters::{ParameterServices, overrides};
use super::service::{Service, answer};
use super::session::{Session, stop};
use super::subscriptions::{Subscription, Subscriptions};
use crate::clock::Stamp;
use crate::config::live::{Given, Parameters};
use crate::config::parameters::Value;
use crate::config::{Config, Execution};
use crate::control;
use crate::control::thread::{Request, stronger};
use crate::messages::{CLOCK, DiagnosticArrayMessage, PolicyStatusMessage, decode_clock};

/// Longest sleep of the spin thread: what it does beside messages waits for it at most so long.
const SPIN: Duration = Duration::from_millis(10);
/// How often the graph is asked who publishes and who listens.
const GRAPH_PERIOD: Duration = Duration::from_millis(100);
/// How often `/diagnostics` is published.
const DIAGNOSTICS_PERIOD: Duration = Duration::from_secs(1);

/// The node's name, where it is not remapped.
pub const NAME: &str = "policy";

/// How the node ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As asked.
    Asked,
    /// The engine or a thread is broken; the arm rests. Somebody should start the node anew.
    Broken(String),
}

/// The node.
pub struct PolicyNode {
    ros: Node,
    names: Names,
    subscriptions: Subscriptions,
    clock: Arc<RosClock>,
    /// Of `/clock`.
    clock_messages: Option<Subscription>,
    parameters: Parameters,
    parameter_services: ParameterServices,
    lifecycle_services: LifecycleServices,
    pause: Service<SetBool::Service>,
    stop: Service<Trigger::Service>,
    reset: Service<Trigger::Service>,
    record: Service<Trigger::Service>,
    status: PublisherUntyped,
    diagnostics: PublisherUntyped,
    state: State,
    underway: Option<Underway>,
    session: Option<Session>,
    /// The pause, stop or fault in which control was deactivated: the next one begins in it.
    latched: Option<Request>,
    autostart: Autostart,
    /// Why the last transition was refused, or why the node rests.
    reason: String,
    told: Option<Told>,
    broken: Option<String>,
    ending: bool,
    graph_asked: Instant,
    diagnosed: Instant,
    rates: Rates,
}

/// What `~/status` last said.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    lifecycle: &'static str,
    control: &'static str,
    reason: String,
    prompt: String,
    checkpoint: String,
    engine: String,
}

/// Refuses parameter files that are meant for this node, but under a name that ROS 2 does not take for it: the arm would
/// move by other limits than its own.
fn check_read<'a>(
    read: &[(String, Given)],
    node: &str,
    files: impl Iterator<Item = &'a str>,
) -> Result<(), String> {
    for file in files {
        let Ok(names) = Config::names_in(Path::new(file)) else { continue }; // what is meant for others
        if !names.is_empty() && !names.iter().any(|name| read.iter().any(|(given, _)| given == name)) {
            return Err(format!(
                "{file}: expected parameters of {node}, found a block of another name, of which nothing is read; name it {node} or /**"
            ));
        }
    }
    Ok(())
}

impl PolicyNode {
    /// Declares the parameters and offers everything that an unconfigured node offers.
    pub fn new(mut ros: Node, arguments: &[String]) -> Result<Self, String> {
        let said = |error: r2r::Error| format!("ROS 2: {error}");
        let origin = ros.fully_qualified_name().map_err(said)?;
        let overrides = overrides(&ros);
        check_read(&overrides, &origin, parameter_files(arguments))?;
        let parameters = Parameters::new(overrides, &origin).map_err(|error| error.to_string())?;
        let config = parameters.config();
        let names = Names::new(&ros.namespace().map_err(said)?, &ros.name().map_err(said)?, arguments);
        let mut subscriptions = Subscriptions::default();
        let (clock, clock_messages) = clock(&mut subscriptions, &mut ros, &names, config.use_sim_time)?;
        let latched = QosProfile::default().keep_last(1).reliable().transient_local();
        let autostart = if config.autostart { Autostart::At(Instant::now()) } else { Autostart::Off };
        Ok(Self {
            names,
            subscriptions,
            clock,
            clock_messages,
            parameter_services: ParameterServices::new(&mut ros).map_err(said)?,
            lifecycle_services: LifecycleServices::new(&mut ros).map_err(said)?,
            pause: Service::new(&mut ros, "~/pause", QosProfile::services_default()).map_err(said)?,
            stop: Service::new(&mut ros, "~/stop", QosProfile::services_default()).map_err(said)?,
            reset: Service::new(&mut ros, "~/reset", QosProfile::services_default()).map_err(said)?,
            record: Service::new(&mut ros, "~/record", QosProfile::services_default()).map_err(said)?,
            status: ros
                .create_publisher_untyped("~/status", PolicyStatusMessage::TYPE, latched)
                .map_err(said)?,
            diagnostics: ros
                .create_publisher_untyped("/diagnostics", DiagnosticArrayMessage::TYPE, QosProfile::default())
                .map_err(said)?,
            state: State::Unconfigured,
            underway: None,
            session: None,
            latched: None,
            autostart,
            reason: String::new(),
            told: None,
            broken: None,
            ending: false,
            graph_asked: Instant::now(),
            diagnosed: Instant::now(),
            rates: Rates::default(),
            parameters,
            ros,
        })
    }

    /// Asks the node to brake, deactivate, clean up and end. [`Self::turn`] tells when it has.
    pub fn end(&mut self) {
        self.ending = true;
        self.autostart = Autostart::Off;
    }

    /// Something is broken: brakes, then ends. [`Self::turn`] tells when it has.
    pub fn break_down(&mut self, why: &str) {
        if self.broken.is_none() {
            tracing::error!("{why}; braking, then this process ends");
            self.broken = Some(why.to_owned());
            if let Some(session) = &mut self.session {
                session.broke(why);
            }
            self.tell(); // that it is a fault, before control ends
            if let Some(session) = &mut self.session {
                session.deactivate();
            }
        }
        self.end();
    }

    /// One turn: waits a moment for messages, then does everything that there is to do.
    pub fn turn(&mut self) -> Option<End> {
        self.ros.spin_once(SPIN);
        self.subscriptions.sweep();
        self.follow_clock();
        self.serve_parameters();
        self.serve_lifecycle();
        self.serve_control();
        self.take_inputs();
        self.progress();
        self.watch();
        self.start_by_itself();
        self.tell();
        self.ended()
    }

    fn follow_clock(&mut self) {
        let mut jumped = self.clock.update();
        if let Some(messages) = &mut self.clock_messages {
            messages.drain(|payload| {
                if let Ok(now) = decode_clock(&payload) {
                    jumped |= self.clock.simulate(now);
                }
            });
        }
        if jumped {
            tracing::warn!("the clock has jumped: buffers cleared, braking until everything is fresh");
            if let Some(session) = &self.session {
                session.clock_jumped();
            }
        }
    }

    fn now(&self) -> Stamp {
        self.clock.now().unwrap_or_default()
    }

    fn serve_parameters(&mut self) {
        let configured = self.session.is_some() || self.underway.is_some();
        let session = &self.session;
        let now = self.clock.now().unwrap_or_default();
        let mut started = false;
        self.parameter_services.serve(now, configured, &mut self.parameters, |parameters, changes| {
            if let Some(session) = session {
                for (name, given) in changes {
                    if let ("prompt", Given::Value(Value::String(prompt))) = (name.as_str(), given) {
                        session.check_prompt(prompt)?;
                    }
                    if let ("control.execution", Given::Value(Value::String(name))) = (name.as_str(), given)
                        && let Some(execution) = Execution::from_name(name)
                    {
                        session.check_execution(execution)?;
                    }
                }
            }
            let changed = parameters.set(changes, configured)?;
            started |= changed.iter().any(|name| name == "autostart");
            if let Some(session) = session {
                session.set_config(parameters.config());
            }
            Ok(changed)
        });
        if started {
            let wanted = self.parameters.config().autostart;
            self.autostart = if wanted { Autostart::At(Instant::now()) } else { Autostart::Off };
        }
        self.set_clock();
    }

    /// `use_sim_time` may have changed, which it can only while nothing runs by the clock.
    fn set_clock(&mut self) {
        let simulated = self.parameters.config().use_sim_time;
        if simulated != self.clock.is_simulated() {
            match clock(&mut self.subscriptions, &mut self.ros, &self.names, simulated) {
                Ok((clock, messages)) => (self.clock, self.clock_messages) = (clock, messages),
                Err(why) => tracing::error!("{why}"),
            }
        }
    }

    fn serve_control(&mut self) {
        let session = self.session.as_ref();
        let ask = |what: &str, ask: &dyn Fn(&Session) -> Result<String, String>| match session {
            Some(session) => ask(session),
            None => Err(format!(
                "{what}: expected an active node, found an unconfigured one; configure and activate it"
            )),
        };
        // A stop that came with a reset or a resume has the last word.
        self.reset.drain(|request| {
            let (success, message) = told(ask("reset", &Session::reset));
            answer(request, Trigger::Response { success, message });
        });
        self.pause.drain(|request| {
            let pause = request.message.data;
            let (success, message) = told(ask("pause", &|session| session.pause(pause)));
            answer(request, SetBool::Response { success, message });
        });
        // Where control is not there yet, or ends, the next one begins stopped.
        let changes = matches!(self.state, State::Activating | State::Deactivating);
        let is_between = self.state != State::Active && (changes || self.autostart != Autostart::Off);
        let latched = &mut self.latched;
        self.stop.drain(|request| {
            let (success, message) = told(if is_between {
                *latched = stronger(*latched, Some(stop()));
                Ok(control::State::Stopped.name().to_owned())
            } else {
                ask("stop", &Session::stop)
            });
            answer(request, Trigger::Response { success, message });
        });
        let session = &mut self.session;
        self.record.drain(|request| {
            let refused = match session {
                Some(session) => {
                    session.record(request).map_err(|request| (request, "recorder.seconds is 0"))
                }
                None => Err((request, "the node is not configured")),
            };
            if let Err((request, why)) = refused {
                let message = format!("record: expected a flight recorder, found none: {why}");
                answer(request, Trigger::Response { success: false, message });
            }
        });
    }

    fn take_inputs(&mut self) {
        let Some(session) = &mut self.session else { return };
        // The newest that the model can read: one that is refused changes nothing.
        for prompt in session.take().into_iter().rev() {
            match session.check_prompt(&prompt) {
                Ok(()) => return self.take_prompt(prompt),
                Err(why) => session.count("prompt_dropped", &why),
            }
        }
    }

    /// What is said on the topic is the parameter's new value, so that there is but one task.
    fn take_prompt(&mut self, prompt: String) {
        let Some(session) = self.session.as_ref().filter(|_| prompt != self.parameters.config().prompt)
        else {
            return;
        };
        match self.parameters.set(&[("prompt".to_owned(), Given::Value(Value::String(prompt.clone())))], true)
        {
            Ok(changed) => {
                session.set_config(self.parameters.config());
                let now = self.clock.now().unwrap_or_default();
                self.parameter_services.announce(now, &self.parameters, &changed);
                tracing::info!("prompt: {prompt:?}");
            }
            Err(why) => session.count("prompt_dropped", &why),
        }
    }

    /// Looks after what can go wrong while nobody asks.
    fn watch(&mut self) {
        if self.graph_asked.elapsed() >= GRAPH_PERIOD {
            self.graph_asked = Instant::now();
            if let Some(session) = &mut self.session {
                session.follow_graph(&mut self.subscriptions, &mut self.ros, &self.names);
            }
        }
        if let Some(session) = &mut self.session {
            session.follow_control();
            session.follow_flights();
        }
        let failure = self.session.as_ref().and_then(Session::failure);
        if let Some(why) = failure {
            self.break_down(&why);
        }
    }

    /// `~/status` on every change, `/diagnostics` every second.
    fn tell(&mut self) {
        let config = self.parameters.config();
        let (control, resting) = match &self.session {
            Some(session) => session.control_state(),
            None => ("idle", String::new()),
        };
        let reason = if resting.is_empty() { self.reason.clone() } else { resting };
        let told = Told {
            lifecycle: primary(self.state).label(),
            control,
            reason,
            prompt: config.prompt.clone(),
            checkpoint: config.checkpoint.clone(),
            engine: self.session.as_ref().map_or(String::new(), |session| session.engine().to_owned()),
        };
        if self.told.as_ref() != Some(&told) {
            let message = PolicyStatusMessage {
                stamp: self.now(),
                lifecycle: told.lifecycle,
                control: told.control,
                reason: &told.reason,
                prompt: &told.prompt,
                checkpoint: &told.checkpoint,
                engine: &told.engine,
            };
            publish(&self.status, "~/status", &message.encode());
            self.told = Some(told);
        }
        if self.diagnosed.elapsed() >= DIAGNOSTICS_PERIOD {
            self.diagnosed = Instant::now();
            let name = self.ros.fully_qualified_name().unwrap_or_default();
            let report = diagnostics::report(
                &name,
                self.now(),
                self.state,
                &self.reason,
                self.session.as_ref(),
                &mut self.rates,
            );
            publish(&self.diagnostics, "/diagnostics", &report.encode());
        }
    }
}

/// The clock of the parameter `use_sim_time`.
fn clock(
    subscriptions: &mut Subscriptions,
    ros: &mut Node,
    names: &Names,
    simulated: bool,
) -> Result<(Arc<RosClock>, Option<Subscription>), String> {
    if !simulated {
        return Ok((Arc::new(RosClock::system()), None));
    }
    let qos = QosProfile::sensor_data().keep_last(1);
    let messages = subscriptions.subscribe(ros, names, "/clock", CLOCK, qos)?;
    Ok((Arc::new(RosClock::simulated()), Some(messages)))
}

/// A transition state shows as the primary state that it left.
fn primary(state: State) -> State {
    match state {
        State::Configuring => State::Unconfigured,
        State::CleaningUp | State::Activating => State::Inactive,
        State::Deactivating => State::Active,
        State::ShuttingDown => State::Finalized,
        state => state,
    }
}

fn told(outcome: Result<String, String>) -> (bool, String) {
    let (success, message) = match outcome {
        Ok(message) => (true, message),
        Err(message) => (false, message),
    };
    (success, message.replace('\0', ""))
}

fn publish(publisher: &PublisherUntyped, topic: &str, payload: &[u8]) {
    if let Err(error) = publisher.publish_raw(payload) {
        tracing::warn!("{topic}: {error}");
    }
}
