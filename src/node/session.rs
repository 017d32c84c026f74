//! What exists from `configure` to `cleanup`: the loaded policy, the inputs, the threads; and while active, control.

use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use r2r::{Node, PublisherUntyped, QosProfile};

use super::clock::RosClock;
use super::commands::publish_commands;
use super::flight::{FlightLog, Wish};
use super::inference::{ChunkForm, infer_until_closed, warm_up};
use super::inputs::Inputs;
use super::names::Names;
use super::shared::Shared;
use super::statistics::InferenceStatistics;
use super::subscriptions::Subscriptions;
use crate::clock::{NS_PER_MS, Stamp, Steady};
use crate::config::{CommandType, Config, Execution};
use crate::control::thread::{Form, Options, RealTime, Request};
use crate::control::{ControlHandle, Reason, Scheduler, State};
use crate::messages::{
    ActionChunkMessage, FLOAT64_MULTI_ARRAY, JointStateMessage, JointTrajectoryMessage, decode_string,
};
use crate::observe::intake::Intake;
use crate::pipeline::inference::Inference;
use crate::pipeline::setup::Setup;
use crate::replay::flight::Labels;

/// How long a service waits for the tick that carries its request out.
const ASK_PATIENCE: Duration = Duration::from_millis(500);
/// Why the arm rests while nobody is there to move it.
const UNHEARD: &str = "nobody subscribes to the commands any more";
const HEARD_AGAIN: &str = "somebody hears the commands again";

/// What the system does not permit is said once, however often the node is activated.
static REAL_TIME_WARNED: Once = Once::new();

/// A policy that is ready to run. Made beside the spin thread, since it takes long.
pub struct Loaded {
    setup: Setup,
    inference: Inference,
    /// Such as: cpu f32.
    engine: String,
    gpu_memory: Option<usize>,
    cameras: Vec<Option<usize>>,
    takes_clean: TakesClean,
}

/// Whether the engine computes what `rtc_trained` needs, else why not.
type TakesClean = Result<(), String>;

/// A configured node's parts.
pub struct Session {
    shared: Arc<Shared>,
    setup: Setup,
    engine: String,
    gpu_memory: Option<usize>,
    takes_clean: TakesClean,
    inputs: Inputs,
    inference: Option<JoinHandle<()>>,
    commands: PublisherUntyped,
    chunks: PublisherUntyped,
    active: Option<Active>,
    /// Of the control that ended last.
    latch: Option<Request>,
    flights: Option<FlightLog>,
}

/// An active node's control.
struct Active {
    control: Arc<ControlHandle>,
    publisher: JoinHandle<()>,
    /// It was told to brake and end.
    leaving: bool,
    /// Somebody subscribes to the commands.
    heard: bool,
    /// Who publishes commands, this node among them.
    publishers: usize,
    /// What the log has: how often joint states went stale, and whether it is a fault.
    logged: (u64, bool),
}

/// Checkpoint, weights, everything that an inference could need, one inference to warm up. Every misfit is said in one line.
pub fn load(config: &Config) -> Result<Loaded, String> {
    let setup = Setup::open(config).map_err(|error| error.to_string())?;
    let cameras = setup.cameras.assign(&config.cameras).map_err(|error| error.to_string())?;
    check_fit(&setup, &Ok(()), config)?; // before it takes long
    let mut inference = setup.load(config, |_, _| ()).map_err(|error| error.to_string())?;
    warm_up(&mut inference, &cameras, config.joints.names.len()).map_err(|error| error.to_string())?;
    let engine = inference.engine.name();
    let gpu_memory = inference.engine.gpu_memory().map_err(|error| error.to_string())?;
    let takes_clean = inference.engine.check_takes_clean().map_err(|error| error.to_string());
    Ok(Loaded { setup, inference, engine, gpu_memory, cameras, takes_clean })
}

/// Whether the parameters that may change at any time fit the checkpoint.
fn check_fit(setup: &Setup, takes_clean: &TakesClean, config: &Config) -> Result<(), String> {
    config.control_config(setup.policy.shape().horizon).map_err(|error| error.to_string())?;
    check_execution(setup, takes_clean, config.control.execution)?;
    setup.policy.check_prompt(&config.prompt).map(|_| ()).map_err(|error| error.to_string())
}

/// Whether chunks can follow each other so with this checkpoint and engine.
fn check_execution(setup: &Setup, takes_clean: &TakesClean, execution: Execution) -> Result<(), String> {
    setup.policy.check_execution(execution).map_err(|error| error.to_string())?;
    if execution == Execution::RtcTrained { takes_clean.clone() } else { Ok(()) }
}

impl Session {
    /// Subscribes, offers, starts the threads. `config` may have changed while the policy was being loaded.
    pub fn new(
        subscriptions: &mut Subscriptions,
        node: &mut Node,
        names: &Names,
        clock: &Arc<RosClock>,
        config: &Config,
        loaded: Loaded,
    ) -> Result<Self, String> {
        let Loaded { setup, inference, engine, gpu_memory, cameras, takes_clean } = loaded;
        check_fit(&setup, &takes_clean, config)?;
        let intake =
            Intake::new(config, &setup.cameras.names, &cameras).map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared::new(
            Arc::clone(clock),
            config.clone(),
            Arc::clone(&setup.policy),
            intake,
            cameras.clone(),
        ));
        let command_type = match config.control.command {
            CommandType::Float64MultiArray => FLOAT64_MULTI_ARRAY,
            CommandType::JointState => JointStateMessage::TYPE,
            CommandType::JointTrajectory => JointTrajectoryMessage::TYPE,
        };
        let inputs = Inputs::new(subscriptions, node, names, config, &cameras, &shared);
        let inputs = inputs.inspect_err(|_| shared.close())?;
        let offered = offer(node, &config.control.command_topic, command_type, 1).and_then(|commands| {
            match offer(node, "~/chunks", ActionChunkMessage::TYPE, 10) {
                Ok(chunks) => Ok((commands, chunks)),
                Err(why) => {
                    node.destroy_publisher_untyped(commands);
                    Err(why)
                }
            }
        });
        let (commands, chunks) = offered.inspect_err(|_| shared.close())?;
        let labels = Labels {
            node: names.node().to_owned(),
            command_topic: names.resolve(&config.control.command_topic),
            joints_topic: names.resolve(&config.joints.topic),
            command: config.control.command,
            action_names: config.joints.action_names.clone(),
            state_names: config.joints.names.clone(),
            checkpoint: config.checkpoint.clone(),
            engine: engine.clone(),
            prompt: config.prompt.clone(),
        };
        let flights = shared.recorder.clone().map(|recorder| {
            FlightLog::new(recorder, labels, config.recorder.folder.as_deref(), Arc::clone(&shared))
        });
        let form = ChunkForm {
            joint_names: config.joints.action_names.clone(),
            policy_rate_hz: config.control.policy_rate_hz,
        };
        let thread = thread::Builder::new().name("inference".to_owned()).spawn({
            let (shared, chunks) = (Arc::clone(&shared), chunks.clone());
            move || infer_until_closed(inference, &shared, &form, &chunks)
        });
        let session = Self {
            shared,
            setup,
            engine,
            gpu_memory,
            takes_clean,
            inputs,
            inference: None,
            commands,
            chunks,
            active: None,
            latch: None,
            flights,
        };
        match thread {
            Ok(thread) => Ok(Self { inference: Some(thread), ..session }),
            Err(error) => {
                session.close(node);
                Err(format!("the inference thread: {error}"))
            }
        }
    }
}

impl Session {
    /// Takes what has arrived; gives the tasks that were said, newest last.
    pub fn take(&mut self) -> Vec<String> {
        let (shared, active) = (&self.shared, &self.active);
        let mut prompts = Vec::new();
        self.inputs.take(
            shared.clock.now(),
            |payload, now| take_joints(&payload, now, shared, active.as_ref()),
            |payload| match decode_string(&payload) {
                Ok(prompt) => prompts.push(prompt.to_owned()),
                Err(error) => shared.count("prompt_dropped", &error.to_string()),
            },
        );
        prompts
    }

    /// Looks who publishes and who listens. Called now and then.
    pub fn follow_graph(&mut self, subscriptions: &mut Subscriptions, node: &mut Node, names: &Names) {
        self.inputs.follow_topics(subscriptions, node, names, &self.shared);
        let heard = self.is_heard();
        let Some(active) = self.active.as_mut() else { return };
        let topic = names.resolve(&self.shared.config().control.command_topic);
        let publishers = node.get_publishers_info_by_topic(&topic, false).map_or(1, |all| all.len());
        if publishers > active.publishers {
            let others = publishers - 1;
            tracing::warn!("{topic}: {others} others publish commands, too; the arm hears them all");
        }
        active.publishers = publishers.max(1);
        // Who comes while it still brakes counts once it rests, who comes while it ends does not.
        let counts = || !active.leaving && active.control.status().at_rest;
        let heard = heard && (active.heard || counts());
        if active.heard == heard {
            return;
        }
        active.heard = heard;
        if heard {
            tracing::info!("{HEARD_AGAIN}");
            // Who listens now has not done what was sent before: it hears nothing of that.
            match active.control.ask(Request::BeginAnew(Reason::new(HEARD_AGAIN)), ASK_PATIENCE) {
                Ok(status) => self.shared.set_heard(Some(status.tick.unwrap_or(Steady(i64::MIN)))),
                Err(_) => active.heard = false, // it does not tick: later, then
            }
        } else {
            self.shared.set_heard(None);
            tracing::warn!("{UNHEARD}; braking");
            let _ = active.control.request(Request::Brake(Reason::new(UNHEARD)));
        }
    }

    /// Says in the log what nobody should have to ask for: stale joint states, and a fault. To be called often.
    pub fn follow_control(&mut self) {
        let Some(active) = self.active.as_mut().filter(|active| !active.leaving) else { return };
        let status = active.control.status();
        let (stale, fault) = (status.counters.joints_stale, status.state == State::Fault);
        if stale > active.logged.0 {
            tracing::warn!("joint states are stale: braking until they are fresh");
        }
        if fault && !active.logged.1 {
            tracing::error!("fault: {}; the arm rests until ~/reset", status.reason);
        }
        active.logged = (stale, fault);
    }

    /// The parameters have changed to these.
    pub fn set_config(&self, config: &Config) {
        self.shared.set_config(config.clone());
        if let Some(active) = &self.active {
            active.control.set_joints_max_age(config.joints.max_age_ms * NS_PER_MS);
            let _ = active.control.request(Request::Splice(config.splice(), config.guards()));
        }
    }

    /// See [`check_execution`].
    pub fn check_execution(&self, execution: Execution) -> Result<(), String> {
        check_execution(&self.setup, &self.takes_clean, execution)
    }

    /// Whether the model reads such a task.
    pub fn check_prompt(&self, prompt: &str) -> Result<(), String> {
        self.setup.policy.check_prompt(prompt).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Whether the node may be activated: somebody hears the commands, and everything that the model needs is fresh.
    pub fn ready(&self) -> Result<(), String> {
        if !self.is_heard() {
            let topic = &self.shared.config().control.command_topic;
            return Err(format!(
                "nobody subscribes to the commands ({topic}): start the arm's controller, or remap the topic to its own"
            ));
        }
        let now =
            self.shared.clock.now().ok_or("no time yet: use_sim_time is true and nobody publishes /clock")?;
        self.shared.look(|intake| intake.ready(now))
    }

    /// Whether anybody subscribes to the commands.
    pub fn is_heard(&self) -> bool {
        self.commands.get_inter_process_subscription_count().is_ok_and(|count| count > 0)
    }

    /// Starts control: from now on the arm may move, unless `latched` (see [`Self::latched`]) keeps it from that.
    pub fn activate(&mut self, latched: Option<Request>) -> Result<(), String> {
        if !self.is_resting() {
            return Err("the control before still brakes: expected an arm at rest; try again".to_owned()); // never two
        }
        let config = self.shared.config();
        let horizon = self.setup.policy.shape().horizon;
        let control = config.control_config(horizon).map_err(|error| error.to_string())?;
        let scheduler = Scheduler::new(control).map_err(|error| error.to_string())?;
        let form = match config.control.command {
            CommandType::JointTrajectory => Form::Trajectory,
            CommandType::Float64MultiArray | CommandType::JointState => Form::PerTick,
        };
        let joints_max_age_ns = config.joints.max_age_ms * NS_PER_MS;
        let settings = &config.control;
        let real_time = match self.shared.clock.is_simulated() {
            true => RealTime::default(), // simulated time is as punctual as who publishes it
            false => {
                RealTime { priority: settings.priority, lock_memory: settings.lock_memory, cpu: settings.cpu }
            }
        };
        let recorder = self.shared.recorder.clone();
        let clock = self.shared.clock.ticks();
        let options = Options { real_time, recorder, ..Options::new(clock, form, joints_max_age_ns) };
        let started = ControlHandle::start(scheduler, options);
        let (control, outlet) = started.map_err(|error| format!("the control thread: {error}"))?;
        if let Some(warning) = control.granted().warning() {
            REAL_TIME_WARNED.call_once(|| tracing::warn!("{warning}"));
        }
        let control = Arc::new(control);
        let publisher = publish_commands(
            outlet,
            self.commands.clone(),
            config.control.command,
            config.joints.action_names.clone(),
            Arc::clone(&self.shared),
        )?;
        if let Some(measured) = self.shared.look(|intake| intake.last_measured().cloned()) {
            control.put_joints(self.shared.clock.steady(measured.stamp), &measured.positions);
        }
        if let Some(latched) = latched {
            control.ask(latched, ASK_PATIENCE).map_err(|error| error.to_string())?; // before any chunk
        }
        self.shared.run(Arc::clone(&control));
        let (leaving, heard, publishers, logged) = (false, true, 1, (0, false));
        self.active = Some(Active { control, publisher, leaving, heard, publishers, logged });
        Ok(())
    }

    /// The pause, stop or fault in which control has ended: only a person's word ends it, not the end of control.
    pub fn latched(&self) -> Option<Request> {
        self.latch
    }

    /// Brakes, then ends control; [`Self::is_resting`] tells when it has.
    pub fn deactivate(&mut self) {
        self.shared.rest();
        if let Some(active) = self.active.as_mut().filter(|active| !active.leaving) {
            active.leaving = true;
            // A thread that has ended already has nothing to brake with.
            let _ = active.control.request(Request::Deactivate);
        }
    }

    /// Ends control where it is: simulated time stands, so the arm does, and no brake would ever end.
    pub fn give_up(&self) {
        if let Some(active) = &self.active {
            active.control.give_up();
        }
    }

    /// Whether control has ended, or never begun.
    pub fn is_resting(&mut self) -> bool {
        let ended = |active: &mut Active| !active.control.is_alive() && active.publisher.is_finished();
        if let Some(active) = self.active.take_if(ended) {
            self.latch = active.control.status().latch;
        }
        self.active.is_none()
    }

    /// The clock has jumped: what was stamped before is of another time.
    pub fn clock_jumped(&self) {
        self.shared.arrived(Intake::clear);
        if let Some(active) = &self.active {
            let _ = active.control.request(Request::Brake(Reason::new("the clock has jumped")));
        }
    }

    /// `~/pause`.
    pub fn pause(&self, pause: bool) -> Result<String, String> {
        self.ask(
            "pause",
            if pause { Request::Pause } else { Request::Resume },
            &[State::Stopped, State::Fault],
        )
    }

    /// `~/stop`.
    pub fn stop(&self) -> Result<String, String> {
        self.ask("stop", stop(), &[])
    }

    /// `~/reset`.
    pub fn reset(&self) -> Result<String, String> {
        self.ask("reset", Request::Reset, &[State::Paused, State::Stopped, State::Fault])
    }

    /// What control is doing, and why it rests.
    pub fn control_state(&self) -> (&'static str, String) {
        match &self.active {
            Some(active) => {
                let status = active.control.status();
                let missing = self.shared.look(|intake| intake.waiting_because());
                let reason = match (status.reason.as_str(), missing) {
                    ("", _) => String::new(),
                    (reason, Some(missing)) => format!("{reason}; {missing}"),
                    (reason, None) => reason.to_owned(),
                };
                (status.state.name(), reason)
            }
            None => (State::Idle.name(), String::new()),
        }
    }

    /// Control, for its counters and punctuality; `None` while it does not run.
    pub fn control(&self) -> Option<&ControlHandle> {
        self.active.as_ref().map(|active| &*active.control)
    }

    /// `~/record`: a file of the last seconds. Gives the wish back if nothing is recorded.
    pub fn record(&mut self, wish: Wish) -> Result<(), Wish> {
        match &mut self.flights {
            Some(flights) => {
                flights.wish(wish);
                Ok(())
            }
            None => Err(wish),
        }
    }

    /// Writes down what is to be written down. To be called often.
    pub fn follow_flights(&mut self) {
        let state = self.control().map_or(State::Idle, |control| control.status().state);
        if let Some(flights) = &mut self.flights {
            flights.follow(state, &self.shared.config().prompt);
        }
    }

    /// Something broke that control does not know of: it is a fault, and the arm brakes. Returns once control has
    /// heard of it, or cannot.
    pub fn broke(&mut self, why: &str) {
        if let Some(flights) = &mut self.flights {
            flights.fault();
        }
        if let Some(active) = &self.active {
            // A thread that does not answer has nothing to brake with; the process ends all the same.
            let _ = active.control.ask(Request::Fault(Reason::new(why)), ASK_PATIENCE);
        }
    }

    /// Asks control, which changes nothing in the states `unmoved`.
    fn ask(&self, what: &str, request: Request, unmoved: &[State]) -> Result<String, String> {
        let Some(active) = &self.active else {
            return Err(format!("{what}: expected an active node, found an inactive one; activate it"));
        };
        if active.leaving {
            return Err(format!(
                "{what}: expected an active node, found one that deactivates; activate it then"
            ));
        }
        match active.control.ask(request, ASK_PATIENCE) {
            Ok(status) if unmoved.contains(&status.state) => {
                let word = if status.state == State::Paused { "~/pause with false" } else { "~/reset" };
                Err(format!("{what}: changes nothing in the state {}; {word} ends it", status.state))
            }
            Ok(status) => Ok(status.state.name().to_owned()),
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    /// Counts an event by name and reason.
    pub fn count(&self, what: &str, why: &str) {
        self.shared.count(what, why);
    }

    /// Why the engine or control is broken, if one is.
    pub fn failure(&self) -> Option<String> {
        let dead = |active: &&Active| !active.leaving && !active.control.is_alive();
        let control = || self.active.as_ref().filter(dead).map(|_| "the control thread has ended".to_owned());
        self.shared.failure().or_else(control)
    }

    /// Such as: cpu f32.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Bytes of the GPU's memory that the engine has taken, all that it will need; `None` without a GPU.
    pub fn gpu_memory(&self) -> Option<usize> {
        self.gpu_memory
    }

    /// The model's cameras.
    pub fn cameras(&self) -> &[String] {
        &self.setup.cameras.names
    }

    /// See [`Shared::superseded_images`].
    pub fn superseded_images(&self, slot: usize) -> u64 {
        self.shared.superseded_images(slot)
    }

    /// Lets `f` look at what has arrived.
    pub fn look<T>(&self, f: impl FnOnce(&mut Intake) -> T) -> T {
        self.shared.look(f)
    }

    /// What inferences took.
    pub fn statistics(&self) -> InferenceStatistics {
        self.shared.statistics.lock().clone()
    }

    /// Ends the session: no more messages; the threads end in their own time, which the handle tells.
    pub fn close(self, node: &mut Node) -> JoinHandle<()> {
        let Self { shared, inputs, inference, commands, chunks, flights, .. } = self;
        shared.close();
        node.destroy_publisher_untyped(commands);
        node.destroy_publisher_untyped(chunks);
        let threads: Vec<JoinHandle<()>> = inputs.into_workers().chain(inference).collect();
        // A thread that panicked has said so.
        thread::spawn(move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
            if let Some(flights) = flights {
                flights.close();
            }
        })
    }
}

/// What `~/stop` asks of control.
pub fn stop() -> Request {
    Request::Stop(Reason::new("stopped by ~/stop; ~/reset lets it go on"))
}

/// A topic that only who listens now hears.
fn offer(node: &mut Node, topic: &str, type_name: &str, depth: usize) -> Result<PublisherUntyped, String> {
    let qos = QosProfile::default().keep_last(depth).reliable().volatile();
    node.create_publisher_untyped(topic, type_name, qos).map_err(|error| {
        format!("{topic}: cannot be offered as {type_name}: {error}; check the topic's name and what else this node does with it")
    })
}

fn take_joints(payload: &[u8], now: Stamp, shared: &Shared, active: Option<&Active>) {
    let message = match JointStateMessage::decode(payload) {
        Ok(message) => message,
        Err(error) => return shared.look(|intake| intake.refuse_joints(&error)),
    };
    let stamp = if message.stamp.0 == 0 { now } else { message.stamp };
    let measured = shared.arrived(|intake| {
        intake.forget_future(None, now);
        let taken = intake.take_joints(stamp, &message.names, &message.position);
        taken.then(|| intake.last_measured().cloned()).flatten()
    });
    if let (Some(measured), Some(active)) = (measured, active) {
        active.control.put_joints(shared.clock.steady(stamp), &measured.positions);
    }
}
