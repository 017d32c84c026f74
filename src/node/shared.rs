//! What the threads of a configured node share.
//!
//! Promises: every lock here is held for a move or a copy, never while something is decoded, computed or sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::clock::RosClock;
use super::statistics::InferenceStatistics;
use crate::clock::{NS_PER_MS, Stamp, Steady};
use crate::config::Config;
use crate::control::recorder::{Capacity, Recorder};
use crate::control::{ControlHandle, Wants};
use crate::model::Pixels;
use crate::observe::intake::{Intake, Next};
use crate::observe::snapshot::NotReady;
use crate::observe::{Observation, RgbImage};
use crate::policy::Policy;

/// How long the inference thread sleeps at most before it looks whether it is still wanted.
const NAP: Duration = Duration::from_millis(50);

/// No time is after it.
const UNHEARD: i64 = i64::MAX;

/// Shared by the spin thread, the decode workers and the inference thread.
pub struct Shared {
    /// ROS time and steady time.
    pub clock: Arc<RosClock>,
    /// Inferences so far.
    pub statistics: Mutex<InferenceStatistics>,
    /// The last seconds, if they are recorded.
    pub recorder: Option<Arc<Recorder>>,
    intake: Mutex<Intake>,
    /// Something arrived in `intake`, or `running` or `closed` changed.
    changed: Condvar,
    running: Mutex<Option<Run>>,
    /// Commands of ticks after this time may be published: what was sent before concerns nobody who listens now.
    heard_after: AtomicI64,
    config: Mutex<Arc<Config>>,
    prompt: Mutex<Arc<str>>,
    closed: AtomicBool,
    failure: Mutex<Option<String>>,
    /// The configured camera of each slot of the model.
    cameras: Vec<Option<usize>>,
    superseded: Vec<AtomicU64>,
    policy: Arc<Policy>,
    /// By slot, the newest images as the network takes them: one may be in use while the next one comes.
    resized: Vec<Mutex<[Option<Resized>; 2]>>,
}

/// An image, and the same as the network takes it.
struct Resized {
    image: Arc<RgbImage>,
    pixels: Pixels,
}

/// An active node's control, and the number of its next inference.
struct Run {
    control: Arc<ControlHandle>,
    next_id: u64,
}

/// What the inference thread is to do next.
pub struct Job {
    /// Number of the inference.
    pub id: u64,
    /// What the robot sees and feels.
    pub observation: Observation,
    /// The task.
    pub prompt: Arc<str>,
    /// Who gets the chunk.
    pub control: Arc<ControlHandle>,
    /// Control's epoch as the inference begins.
    pub epoch: u64,
}

impl Shared {
    /// `cameras` has the configured camera of each slot of the model.
    pub fn new(
        clock: Arc<RosClock>,
        config: Config,
        policy: Arc<Policy>,
        intake: Intake,
        cameras: Vec<Option<usize>>,
    ) -> Self {
        let capacity = config.recorder.seconds.map(|seconds| Capacity {
            seconds,
            rate_hz: config.control.rate_hz,
            commands: config.joints.action_names.len(),
            measured: config.joints.names.len(),
        });
        Self {
            clock,
            statistics: Mutex::default(),
            recorder: capacity.map(|capacity| Arc::new(Recorder::new(capacity))),
            intake: Mutex::new(intake),
            changed: Condvar::new(),
            running: Mutex::new(None),
            heard_after: AtomicI64::new(UNHEARD),
            prompt: Mutex::new(config.prompt.as_str().into()),
            config: Mutex::new(Arc::new(config)),
            closed: AtomicBool::new(false),
            failure: Mutex::new(None),
            policy,
            resized: cameras.iter().map(|_| Mutex::default()).collect(),
            superseded: cameras.iter().map(|_| AtomicU64::new(0)).collect(),
            cameras,
        }
    }

    /// The parameters as they are now.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.lock())
    }

    /// Live parameters have changed.
    pub fn set_config(&self, config: Config) {
        self.intake.lock().set_limits(&config, &self.cameras);
        *self.prompt.lock() = config.prompt.as_str().into();
        *self.config.lock() = Arc::new(config);
    }

    /// Lets `f` look at or add to what has arrived, and wakes the inference thread.
    pub fn arrived<T>(&self, f: impl FnOnce(&mut Intake) -> T) -> T {
        let result = f(&mut self.intake.lock());
        self.changed.notify_all();
        result
    }

    /// Lets `f` look at what has arrived.
    pub fn look<T>(&self, f: impl FnOnce(&mut Intake) -> T) -> T {
        f(&mut self.intake.lock())
    }

    /// Counts an event by name and reason.
    pub fn count(&self, what: &str, why: &str) {
        self.intake.lock().count(what, why);
    }

    /// Images of a camera that a newer one replaced before they were decoded.
    pub fn superseded(&self, slot: usize, count: u64) {
        if let Some(counter) = self.superseded.get(slot) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// See [`Self::superseded`].
    pub fn superseded_images(&self, slot: usize) -> u64 {
        self.superseded.get(slot).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }

    /// Brings an image that has come to the network's size. One that cannot be is left to the inference, which says why.
    pub fn resize(&self, slot: usize, image: &Arc<RgbImage>) {
        if let (Some(newest), Ok(pixels)) = (self.resized.get(slot), self.policy.resize_image(image)) {
            let mut newest = newest.lock();
            newest.rotate_left(1);
            newest[1] = Some(Resized { image: Arc::clone(image), pixels });
        }
    }

    /// The images of an observation as [`Self::resize`] left them, by slot.
    pub fn resized(&self, observation: &Observation) -> Vec<Option<Pixels>> {
        let pixels = |(image, newest): (&Option<Arc<RgbImage>>, &Mutex<[Option<Resized>; 2]>)| {
            let image = image.as_ref()?;
            let newest = newest.lock();
            let same = newest.iter().flatten().find(|resized| Arc::ptr_eq(&resized.image, image));
            same.map(|resized| resized.pixels.clone())
        };
        observation.images.iter().zip(&self.resized).map(pixels).collect()
    }

    /// From now on inferences run, numbered from 0, and `control` gets their chunks.
    pub fn run(&self, control: Arc<ControlHandle>) {
        *self.running.lock() = Some(Run { control, next_id: 0 });
        self.set_heard(Some(Steady(i64::MIN)));
    }

    /// Somebody hears the commands of the ticks after this one; `None`: nobody does, and while that is so no inference
    /// begins and nothing is published.
    pub fn set_heard(&self, after: Option<Steady>) {
        self.heard_after.store(after.map_or(UNHEARD, |after| after.0), Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the command of a tick may be published: not while nobody hears it, nor what is left of a brake to who comes
    /// then.
    pub fn may_publish(&self, command: Steady) -> bool {
        command.0 > self.heard_after.load(Ordering::Acquire)
    }

    fn is_heard(&self) -> bool {
        self.heard_after.load(Ordering::Acquire) != UNHEARD
    }

    /// No inference begins any more.
    pub fn rest(&self) {
        *self.running.lock() = None;
    }

    /// Ends the threads.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    /// Whether the threads are to end.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The engine is broken: nothing can be inferred any more.
    pub fn fail(&self, why: String) {
        self.failure.lock().get_or_insert(why);
    }

    /// Why the engine is broken, if it is.
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().clone()
    }

    /// Waits for the next inference to do; `None` when the threads are to end, or none has come `until` then.
    pub fn next_job(&self, until: Option<Instant>) -> Option<Job> {
        let mut intake = self.intake.lock();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if self.is_closed() || left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let mut nap = left.unwrap_or(NAP).min(NAP);
            if let (Some(now), Some((control, wants, epoch))) = (self.clock.now(), self.accepting()) {
                match intake.next_observation(now) {
                    Next::Ready(observation) => {
                        let wanted = wants.includes(self.clock.steady(observation.stamp));
                        if let Some(id) = wanted.then(|| self.take_id()).flatten() {
                            drop(intake);
                            let prompt = Arc::clone(&self.prompt.lock());
                            return Some(Job { id, observation, prompt, control, epoch });
                        }
                    }
                    Next::NotYet { ask_again } => {
                        if let Some(ask_again) = ask_again {
                            nap = nap.min(time_until(now, ask_again));
                        }
                    }
                    Next::NotReady(not_ready) => self.wait_for(&not_ready),
                }
            }
            self.changed.wait_for(&mut intake, nap);
        }
    }

    /// Control, what it wants chunks of, and its epoch; `None` if it would follow none.
    fn accepting(&self) -> Option<(Arc<ControlHandle>, Wants, u64)> {
        let running = self.running.lock();
        let run = running.as_ref().filter(|_| self.is_heard())?;
        let (wants, epoch) = run.control.wants();
        (wants != Wants::Nothing).then(|| (Arc::clone(&run.control), wants, epoch))
    }

    fn take_id(&self) -> Option<u64> {
        let mut running = self.running.lock();
        let run = running.as_mut()?;
        run.next_id += 1;
        Some(run.next_id - 1)
    }

    fn wait_for(&self, not_ready: &NotReady) {
        self.statistics.lock().waiting_for = Some(not_ready.to_string());
    }
}

/// Time from `now` to `then`, at least a millisecond.
fn time_until(now: Stamp, then: Stamp) -> Duration {
    Duration::from_nanos(then.since(now).max(NS_PER_MS).unsigned_abs())
}
