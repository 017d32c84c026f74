//! The control thread: one tick per period, and everything that goes in and out of it.
//!
//! Promises: nothing that others do makes a tick wait. Measured positions and commands pass through triple buffers,
//! chunks and requests through rings of one writer and one reader, all of them wait-free; what the tick has used goes
//! back to be freed by who made it. However the thread ends, everybody who waits for it hears of it. Called by the node and by
//! `pi05 bench control`. It knows no ROS.
//!
//! | file | holds |
//! |---|---|
//! | `mod` | [`ControlHandle`]: what the other threads hold |
//! | `ticker` | [`Ticker`]: what the thread does |
//! | [`clock`] | when ticks are due |
//! | [`outlet`] | commands and trajectories out |
//! | [`status`] | state, reason, counters, punctuality |
//! | [`real_time`] | real-time scheduling, locked memory, CPU |
//! | [`histogram`] | how late, how long |
//! | `bell` | waking without a lock |

mod bell;
pub mod clock;
pub mod histogram;
pub mod outlet;
pub mod real_time;
pub mod status;
mod ticker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use parking_lot::Mutex;
use rtrb::{Consumer, Producer, RingBuffer};
use triple_buffer::{Input, Output, triple_buffer};

use self::bell::Bell;
pub use self::clock::{Due, SimulatedTime, TickClock, monotonic};
pub use self::histogram::Distribution;
use self::histogram::Histogram;
pub use self::outlet::{Outlet, Received, Sent};
pub use self::real_time::{Grant, Granted, RealTime};
pub use self::status::{Status, Timing};
pub use self::ticker::{Ticker, stronger};
use super::plan::{Proposal, Shape};
use super::recorder::Recorder;
use super::{Accepted, Chunk, Guards, Reason, Rejected, Scheduler, Splice, State, Wants};
use crate::clock::Steady;

/// Chunks that may wait for a tick. One inference runs at a time: a second one waits only while ticks do not come.
const CHUNKS_MAX: usize = 4;
/// Chunks that may wait to be taken back.
const OUTCOMES_MAX: usize = 2 * CHUNKS_MAX;
/// Requests that may wait for a tick.
const REQUESTS_MAX: usize = 64;
/// How long a request tries to get in.
const REQUEST_PATIENCE: Duration = Duration::from_secs(1);
/// How long the last handle waits for the arm to rest before it gives the thread up.
const DROP_PATIENCE: Duration = Duration::from_secs(2);

/// How a control thread runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it ticks by.
    pub clock: TickClock,
    /// What it gives.
    pub form: Form,
    /// Older measured positions are stale (`joints.max_age_ms`).
    pub joints_max_age_ns: i64,
    /// What it asks of the system.
    pub real_time: RealTime,
    /// Who records what it does, if anybody.
    pub recorder: Option<Arc<Recorder>>,
}

impl Options {
    /// At ordinary priority, with no recorder.
    pub fn new(clock: TickClock, form: Form, joints_max_age_ns: i64) -> Self {
        Self { clock, form, joints_max_age_ns, real_time: RealTime::default(), recorder: None }
    }
}

/// What the thread gives to be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Each tick's command.
    PerTick,
    /// For each chunk that takes over and each brake, the whole way to rest.
    Trajectory,
}

/// What others may ask of control. Carried out in order, at the latest with the next tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Request {
    /// Brake and hold until resumed.
    Pause,
    /// End a pause.
    Resume,
    /// Brake, then be silent until reset.
    Stop(Reason),
    /// End a stop or a fault.
    Reset,
    /// Brake and hold; a chunk that is begun from now on takes over. Something is missing.
    Brake(Reason),
    /// Brake and hold until reset. Something broke.
    Fault(Reason),
    /// Brake, and set out from the measured positions with the next chunk. What was sent of late may not have been done.
    BeginAnew(Reason),
    /// How chunks follow each other, from the next one on, and what is not believed.
    Splice(Splice, Guards),
    /// Brake, then end the thread.
    Deactivate,
}

/// Why a request was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotCarriedOut {
    /// The thread has ended.
    #[error("control: expected a running control thread, found that it has ended; activate the node")]
    Ended,
    /// No tick came in time.
    #[error("control: expected a tick to carry the request out, found none in time; is the clock running?")]
    NoTick,
}

/// What became of a chunk.
#[derive(Debug)]
pub struct Outcome {
    /// The chunk's number.
    pub chunk: u64,
    /// The tick that it came to.
    pub at: Steady,
    /// Whether it took over.
    pub result: Result<Accepted, Rejected>,
    /// For who gave it, to be freed there.
    _spent: Box<Proposal>,
}

/// The other threads' hold on the control thread. When the last one lets go, the arm brakes and the thread ends.
#[derive(Debug)]
pub struct ControlHandle {
    shared: Arc<Shared>,
    clock: TickClock,
    /// Of the chunks that it takes.
    shape: Shape,
    /// The locks are among the callers; the tick knows none of them.
    joints: Mutex<Input<Joints>>,
    chunks: Mutex<Producer<Box<Proposal>>>,
    chunks_sent: AtomicU64,
    outcomes: Mutex<Consumer<Outcome>>,
    /// And how many were made.
    requests: Mutex<(Producer<Request>, u64)>,
    status: Mutex<Output<Status>>,
    granted: Granted,
    has_thread: bool,
}

/// What thread and handles share beside the queues.
#[derive(Debug)]
struct Shared {
    alive: AtomicBool,
    given_up: AtomicBool,
    joints_max_age_ns: AtomicI64,
    /// How much later than its time each tick began, and how long it computed.
    lateness: Histogram,
    work: Histogram,
    /// Something was handed to the outlet.
    sent: Bell,
    /// State, reason or number of requests taken have changed.
    changed: Bell,
}

impl Shared {
    fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }
}

/// Measured positions and their time.
#[derive(Clone, Debug)]
struct Joints {
    at: Steady,
    positions: Vec<f64>,
}

impl ControlHandle {
    /// Starts the thread: armed, ticking from now on (or from the first simulated time on).
    pub fn start(scheduler: Scheduler, options: Options) -> io::Result<(Self, Outlet)> {
        let (clock, real_time) = (options.clock.clone(), options.real_time);
        let (ticker, mut handle, outlet) = Self::without_thread(scheduler, options);
        let (told, granted) = bounded(1);
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            let _ = told.send(real_time.ask()); // who starts it waits for it
            ticker.run(clock);
        })?;
        handle.has_thread = true;
        handle.granted = granted.recv().unwrap_or_default();
        Ok((handle, outlet))
    }

    /// The same, but whoever has the [`Ticker`] ticks.
    pub fn without_thread(scheduler: Scheduler, options: Options) -> (Ticker, Self, Outlet) {
        let Options { clock, form, joints_max_age_ns, recorder, .. } = options;
        let shared = Arc::new(Shared {
            alive: AtomicBool::new(true),
            given_up: AtomicBool::new(false),
            joints_max_age_ns: AtomicI64::new(joints_max_age_ns),
            lateness: Histogram::new(),
            work: Histogram::new(),
            sent: Bell::default(),
            changed: Bell::default(),
        });
        let told = Status::of(&scheduler);
        let (joints_in, joints) = triple_buffer(&Joints { at: Steady(i64::MIN), positions: Vec::new() });
        let (chunks_in, chunks) = RingBuffer::new(CHUNKS_MAX);
        let (outcomes, outcomes_out) = RingBuffer::new(OUTCOMES_MAX);
        let (requests_in, requests) = RingBuffer::new(REQUESTS_MAX);
        let (status, status_out) = triple_buffer(&told);
        let (inlet, outlet) = outlet::outlet(scheduler.joints(), &shared);
        let shape = scheduler.shape();
        let ticker = Ticker {
            sent_revision: scheduler.revision(),
            scheduler,
            form,
            joints,
            chunks,
            outcomes,
            requests,
            requests_taken: 0,
            chunks_taken: 0,
            inlet,
            status,
            told,
            shared: Arc::clone(&shared),
            timing: Timing::default(),
            last_tick: None,
            recorder,
            recorded_joints: Steady(i64::MIN),
            leaving: false,
            latch: None,
        };
        let handle = Self {
            shared,
            clock,
            shape,
            joints: Mutex::new(joints_in),
            chunks: Mutex::new(chunks_in),
            chunks_sent: AtomicU64::new(0),
            outcomes: Mutex::new(outcomes_out),
            requests: Mutex::new((requests_in, 0)),
            status: Mutex::new(status_out),
            granted: Granted::default(),
            has_thread: false,
        };
        (ticker, handle, outlet)
    }

    /// The newest measured positions, in the order of the configured state, and when they were measured.
    pub fn put_joints(&self, at: Steady, positions: &[f64]) {
        let mut joints = self.joints.lock();
        let slot = joints.input_buffer_mut();
        slot.at = at;
        slot.positions.clear();
        slot.positions.extend_from_slice(positions);
        joints.publish();
    }

    /// `joints.max_age_ms` has changed.
    pub fn set_joints_max_age(&self, ns: i64) {
        self.shared.joints_max_age_ns.store(ns, Ordering::Relaxed);
    }

    /// Hands a chunk over, looked at and laid out here; what becomes of it is told by [`Self::outcomes`]. Refused if the
    /// thread has ended, or does not tick, or if nobody asks for outcomes.
    pub fn send_chunk(&self, chunk: &Chunk) -> Result<(), NotCarriedOut> {
        if !self.is_alive() {
            return Err(NotCarriedOut::Ended);
        }
        let proposal = Box::new(Proposal::new(chunk, self.shape));
        self.chunks.lock().push(proposal).map_err(|_| NotCarriedOut::NoTick)?;
        self.chunks_sent.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// What became of the chunks since the last time it was asked, oldest first.
    pub fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        std::iter::from_fn(|| self.outcomes.lock().pop().ok())
    }

    /// Hands a request over and returns at once. Gives its number: carried out when [`Status::requests_taken`] is there.
    pub fn request(&self, request: Request) -> Result<u64, NotCarriedOut> {
        let mut requests = self.requests.lock();
        let (queue, made) = &mut *requests;
        let give_up = Instant::now() + REQUEST_PATIENCE;
        // Nobody waits to be woken: the tick would have to do it.
        while queue.push(request).is_err() {
            if !self.is_alive() {
                return Err(NotCarriedOut::Ended);
            }
            if Instant::now() >= give_up {
                return Err(NotCarriedOut::NoTick);
            }
            thread::sleep(Duration::from_millis(1));
        }
        if !self.is_alive() {
            return Err(NotCarriedOut::Ended);
        }
        *made += 1;
        self.clock.wake();
        Ok(*made)
    }

    /// Hands a request over and waits up to `timeout` until it is carried out. Gives the status after it.
    pub fn ask(&self, request: Request, timeout: Duration) -> Result<Status, NotCarriedOut> {
        let number = self.request(request)?;
        let status = self.wait_until(timeout, |status| status.requests_taken >= number);
        match status {
            Some(status) => Ok(status),
            None if self.is_alive() => Err(NotCarriedOut::NoTick),
            None => Err(NotCarriedOut::Ended),
        }
    }

    /// The newest status. That of a thread that has ended without being told to is a fault.
    pub fn status(&self) -> Status {
        let alive = self.is_alive(); // before looking: the last status is told first
        let mut status = *self.status.lock().read();
        if !alive && status.state != State::Idle && !self.shared.given_up.load(Ordering::Acquire) {
            status.state = State::Fault;
            status.reason = Reason::new("the control thread has ended unexpectedly");
        }
        status
    }

    /// What the system granted the thread as it began.
    pub fn granted(&self) -> &Granted {
        &self.granted
    }

    /// How much later than their time ticks began.
    pub fn lateness(&self) -> Distribution {
        self.shared.lateness.distribution()
    }

    /// How long ticks computed, hand-over included.
    pub fn work(&self) -> Distribution {
        self.shared.work.distribution()
    }

    /// Waits up to `timeout` for a status that is `wanted`. It is looked at when state, reason or requests change.
    pub fn wait_until(&self, timeout: Duration, wanted: impl Fn(&Status) -> bool) -> Option<Status> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let rung = self.shared.changed.rung();
            let alive = self.is_alive();
            let status = self.status();
            if wanted(&status) {
                return Some(status);
            }
            let left = deadline.map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
            if left.is_zero() || !alive {
                return None;
            }
            self.shared.changed.wait(rung, left);
        }
    }

    /// From which observations an inference may begin, and the epoch that its chunk must bear. Executing open loop, from
    /// none while a chunk is on its way.
    pub fn wants(&self) -> (Wants, u64) {
        let sent = self.chunks_sent.load(Ordering::Acquire); // before looking
        let status = self.status();
        match status.wants {
            Wants::After(_) if status.chunks_taken < sent => (Wants::Nothing, status.epoch),
            wants => (wants, status.epoch),
        }
    }

    /// Whether the thread runs.
    pub fn is_alive(&self) -> bool {
        self.shared.is_alive()
    }

    /// Ends the thread where it is, without a brake: for a clock that stands, by which no tick will ever be due.
    pub fn give_up(&self) {
        self.shared.given_up.store(true, Ordering::Release);
        self.clock.wake();
    }

    /// Waits up to `timeout` until the thread has ended. Whether it has.
    pub fn wait_for_end(&self, timeout: Duration) -> bool {
        self.wait_until(timeout, |_| !self.is_alive());
        !self.is_alive()
    }
}

impl Drop for ControlHandle {
    fn drop(&mut self) {
        if self.has_thread && self.request(Request::Deactivate).is_ok() {
            self.wait_for_end(DROP_PATIENCE);
        }
        self.give_up();
    }
}
