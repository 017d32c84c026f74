//! When the flight recorder's memory becomes a file: after a fault, or when somebody asks (`~/record`).
//!
//! Promises: files are written by a thread of their own that steps back behind all others, one at a time; the spin thread
//! and the tick wait for nothing. What cannot be written (a full disk, no permission) is said, counted, answered, and of
//! no other consequence. Called on the spin thread.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use r2r::ServiceRequest;
use r2r::std_srvs::srv::Trigger;

use super::clock::RosClock;
use super::inference::step_back;
use super::service::answer;
use super::shared::Shared;
use crate::control::State;
use crate::control::recorder::Recorder;
use crate::replay::flight::{Labels, write_flight};

/// After a fault, so that the brake is in the file.
const AFTER_FAULT: Duration = Duration::from_secs(1);

/// A client that wants a file.
pub type Wish = ServiceRequest<Trigger::Service>;

/// The recorder of one session, and who writes it down.
pub struct FlightLog {
    recorder: Arc<Recorder>,
    labels: Labels,
    folder: PathBuf,
    shared: Arc<Shared>,
    /// A fault happened: then it is to be written.
    due: Option<Instant>,
    faulty: bool,
    wishes: Vec<Wish>,
    writing: Option<Writing>,
}

/// A file on its way, and who waits for it.
struct Writing {
    thread: JoinHandle<Result<PathBuf, String>>,
    wishes: Vec<Wish>,
}

impl FlightLog {
    /// Nothing is written until there is a reason to. `folder` as configured.
    pub fn new(recorder: Arc<Recorder>, labels: Labels, folder: Option<&str>, shared: Arc<Shared>) -> Self {
        let folder = folder.map_or_else(default_folder, PathBuf::from);
        let (due, faulty, wishes, writing) = (None, false, Vec::new(), None);
        Self { recorder, labels, folder, shared, due, faulty, wishes, writing }
    }

    /// Somebody wants a file of the last seconds; answered when it is there.
    pub fn wish(&mut self, wish: Wish) {
        self.wishes.push(wish);
    }

    /// Something broke that control does not know of.
    pub fn fault(&mut self) {
        self.due.get_or_insert(Instant::now() + AFTER_FAULT);
    }

    /// Control's state, as it is now; begins and ends what is to be written. To be called often.
    pub fn follow(&mut self, state: State, prompt: &str) {
        // A fault outlasts the end of control, and is the same one afterwards.
        let faulty = state == State::Fault || (self.faulty && state == State::Idle);
        if faulty && !self.faulty {
            self.fault();
        }
        self.faulty = faulty;
        if let Some(writing) = self.writing.take_if(|writing| writing.thread.is_finished()) {
            self.finish(writing);
        }
        let due = self.due.is_some_and(|due| Instant::now() >= due);
        if self.writing.is_none() && (due || !self.wishes.is_empty()) {
            prompt.clone_into(&mut self.labels.prompt);
            self.begin(due);
        }
    }

    /// The session ends: writes at once what is still to be written, and waits for it. Not on the spin thread.
    pub fn close(mut self) {
        if let Some(writing) = self.writing.take() {
            self.finish(writing);
        }
        if self.due.is_some() || !self.wishes.is_empty() {
            self.begin(self.due.is_some());
        }
        if let Some(writing) = self.writing.take() {
            self.finish(writing);
        }
    }

    fn begin(&mut self, after_fault: bool) {
        if after_fault {
            self.due = None;
        }
        let wishes = std::mem::take(&mut self.wishes);
        let path =
            self.folder.join(file_name(&self.labels.node, if after_fault { "fault" } else { "request" }));
        let (recorder, labels) = (Arc::clone(&self.recorder), self.labels.clone());
        let clock = Arc::clone(&self.shared.clock);
        let write = move || write(&recorder, &labels, &clock, &path);
        match thread::Builder::new().name("flight".to_owned()).spawn(write) {
            Ok(thread) => self.writing = Some(Writing { thread, wishes }),
            Err(error) => self.tell(wishes, Err(format!("the thread that writes it: {error}"))),
        }
    }

    fn finish(&mut self, writing: Writing) {
        let outcome = writing.thread.join().unwrap_or_else(|_| Err("writing it panicked".to_owned()));
        self.tell(writing.wishes, outcome);
    }

    fn tell(&self, wishes: Vec<Wish>, outcome: Result<PathBuf, String>) {
        let (success, message) = match outcome {
            Ok(path) => {
                tracing::info!("flight recorder: {}", path.display());
                (true, path.display().to_string())
            }
            Err(why) => {
                tracing::warn!("flight recorder: {why}");
                self.shared.count("recording_failed", &why);
                (false, format!("record: {why}"))
            }
        };
        for wish in wishes {
            answer(wish, Trigger::Response { success, message: message.replace('\0', "") });
        }
    }
}

fn write(recorder: &Recorder, labels: &Labels, clock: &RosClock, path: &Path) -> Result<PathBuf, String> {
    step_back();
    let flight = recorder.flight();
    if flight.ticks.is_empty() {
        return Err("expected ticks to write down, found none; activate the node first".to_owned());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| {
            format!("{}: cannot be made: {error}; correct recorder.folder", folder.display())
        })?;
    }
    write_flight(&flight, labels, |at| clock.stamp(at), path).map_err(|error| error.to_string())?;
    Ok(path.to_owned())
}

/// Where ROS 2 keeps its logs and such.
fn default_folder() -> PathBuf {
    let home = env::var_os("ROS_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let home = home.or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".ros")));
    home.unwrap_or_default().join("pi05_thor")
}

/// `left_policy_1763720430.123_fault.mcap`: node, system time, why.
fn file_name(node: &str, why: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let node = node.trim_matches('/').replace('/', "_");
    format!("{node}_{}.{:03}_{why}.mcap", now.as_secs(), now.subsec_millis())
}
