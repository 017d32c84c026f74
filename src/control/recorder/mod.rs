//! The flight recorder: what control did in the last seconds, in memory.
//!
//! Promises: everything is allocated when it is made; what the tick records is a fixed number of stores, whoever looks
//! at it meanwhile (`ring`). What other threads record, chunks and remarks, is bounded in time and bytes, the oldest goes
//! first; the tick never takes their lock. Called by the control thread and by the node; `replay::flight` makes a file of
//! it. It knows no files.

mod ring;

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use self::ring::Ring;
use super::{Reason, State};
use crate::clock::{NS_PER_S, Steady};

/// Most bytes of chunks and remarks: minutes of a large policy at 10 chunks per second.
const BYTES_MAX: usize = 64 << 20;
/// Changes of state and reason that are kept, however old.
const CHANGES: usize = 1024;
/// Longest reason, in words of 8 bytes.
const REASON_WORDS: usize = 25;
/// Of a tick, before its values.
const TICK_WORDS: usize = 6;

/// What a recorder has room for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Capacity {
    /// Time that is kept, s.
    pub seconds: f64,
    /// Ticks per second.
    pub rate_hz: f64,
    /// Values of a command.
    pub commands: usize,
    /// Values of a measured state.
    pub measured: usize,
}

/// The last seconds of control. One thread at a time ticks; any may look.
#[derive(Debug)]
pub struct Recorder {
    kept_ns: i64,
    ticks: Ring,
    measured: Ring,
    changes: Ring,
    told: Mutex<Told>,
}

/// What others than the tick record.
#[derive(Debug, Default)]
struct Told {
    chunks: VecDeque<(Steady, Arc<[u8]>)>,
    remarks: VecDeque<(Steady, String)>,
    bytes: usize,
}

/// One tick, as the thread hands it over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TickRecord<'a> {
    /// Its time.
    pub at: Steady,
    /// How much later it began, ns.
    pub late_ns: i64,
    /// How long it computed, ns.
    pub work_ns: i64,
    /// After it.
    pub state: State,
    /// After it.
    pub epoch: u64,
    /// What it commanded, if anything.
    pub command: Option<TickCommand<'a>>,
}

/// What a tick commanded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TickCommand<'a> {
    /// One per joint.
    pub values: &'a [f64],
    /// The chunk that is followed, or was before it braked.
    pub chunk: u64,
    /// Braking or holding.
    pub resting: bool,
    /// A limit changed at least one value.
    pub limited: bool,
}

/// A tick as it was recorded.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // as in TickRecord and TickCommand
pub struct Tick {
    pub at: Steady,
    pub late_ns: i64,
    pub work_ns: i64,
    pub state: State,
    pub epoch: u64,
    pub chunk: u64,
    pub resting: bool,
    pub limited: bool,
    /// Empty if nothing was commanded.
    pub values: Vec<f64>,
}

/// A change of state or reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Time of the tick, or of the last one before it.
    pub at: Steady,
    /// From then on.
    pub state: State,
    /// From then on.
    pub epoch: u64,
    /// Why; empty while all is well.
    pub reason: String,
}

/// What a recorder held at one moment; each list oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flight {
    /// Ticks.
    pub ticks: Vec<Tick>,
    /// Measured positions that ticks used.
    pub measured: Vec<(Steady, Vec<f64>)>,
    /// Changes of state or reason, the one before the first tick included.
    pub changes: Vec<Change>,
    /// Chunks, as who recorded them encoded them, and when they were handed over.
    pub chunks: Vec<(Steady, Arc<[u8]>)>,
    /// What somebody found worth a remark.
    pub remarks: Vec<(Steady, String)>,
}

impl Recorder {
    /// Allocates everything that it will ever need, but for chunks and remarks.
    pub fn new(capacity: Capacity) -> Self {
        let Capacity { seconds, rate_hz, commands, measured } = capacity;
        let rows = (seconds * rate_hz).ceil().max(1.0) as usize;
        Self {
            kept_ns: (seconds * NS_PER_S as f64) as i64,
            ticks: Ring::new(rows, TICK_WORDS + commands),
            measured: Ring::new(rows, 1 + measured),
            changes: Ring::new(CHANGES, 4 + REASON_WORDS),
            told: Mutex::default(),
        }
    }

    /// One tick. Never waits, allocates nothing.
    pub fn tick(&self, tick: &TickRecord<'_>) {
        let command = tick.command;
        let flag = |set: bool, bit: u32| u64::from(set) << bit;
        let flags = command.map_or(0, |c| flag(true, 8) | flag(c.resting, 9) | flag(c.limited, 10));
        let head = [
            tick.at.0 as u64,
            tick.late_ns as u64,
            tick.work_ns as u64,
            tick.state as u64 | flags,
            tick.epoch,
            command.map_or(0, |command| command.chunk),
        ];
        let values = command.map_or(&[][..], |command| command.values);
        self.ticks.push(head.into_iter().chain(values.iter().map(|value| value.to_bits())));
    }

    /// Measured positions that are new. Never waits, allocates nothing.
    pub fn measured(&self, at: Steady, positions: &[f64]) {
        self.measured.push([at.0 as u64].into_iter().chain(positions.iter().map(|value| value.to_bits())));
    }

    /// State or reason have changed. Never waits, allocates nothing.
    pub fn change(&self, at: Steady, state: State, epoch: u64, reason: &Reason) {
        let text = reason.as_str().as_bytes();
        let head = [at.0 as u64, state as u64, epoch, text.len() as u64];
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        self.changes.push(head.into_iter().chain(text.chunks(8).map(word)));
    }

    /// A chunk that was handed over, encoded. Not from the tick.
    pub fn chunk(&self, at: Steady, encoded: &[u8]) {
        let chunk = Arc::from(encoded);
        let mut told = self.told.lock();
        told.bytes += encoded.len();
        told.chunks.push_back((at, chunk));
        told.forget(at.0.saturating_sub(self.kept_ns));
    }

    /// Something worth a remark, such as why a chunk was refused. Not from the tick.
    pub fn remark(&self, at: Steady, text: String) {
        let mut told = self.told.lock();
        told.bytes += text.len();
        told.remarks.push_back((at, text));
        told.forget(at.0.saturating_sub(self.kept_ns));
    }

    /// Everything of the last seconds before the newest tick. The thread that ticks does not notice.
    pub fn flight(&self) -> Flight {
        let mut flight = Flight::default();
        self.ticks.look(|row| flight.ticks.extend(tick_of(row)));
        self.measured.look(|row| flight.measured.push((Steady(row[0] as i64), floats(&row[1..]))));
        self.changes.look(|row| flight.changes.extend(change_of(row)));
        {
            let told = self.told.lock();
            flight.chunks = told.chunks.iter().cloned().collect();
            flight.remarks = told.remarks.iter().cloned().collect();
        }
        let newest = flight.ticks.last().map(|tick| tick.at).unwrap_or_default();
        let since = Steady(newest.0.saturating_sub(self.kept_ns));
        flight.ticks.retain(|tick| tick.at >= since);
        flight.measured.retain(|(at, _)| *at >= since);
        flight.chunks.retain(|(at, _)| *at >= since);
        flight.remarks.retain(|(at, _)| *at >= since);
        // The state that was there before is that of the beginning.
        let before = flight.changes.iter().rposition(|change| change.at < since).unwrap_or(0);
        flight.changes.drain(..before);
        flight
    }
}

impl Told {
    /// Lets go of what is older, and of the oldest of what is too much.
    fn forget(&mut self, since_ns: i64) {
        while let Some((at, chunk)) = self.chunks.front()
            && (at.0 < since_ns || self.bytes > BYTES_MAX)
        {
            self.bytes -= chunk.len();
            self.chunks.pop_front();
        }
        while let Some((at, text)) = self.remarks.front()
            && (at.0 < since_ns || self.bytes > BYTES_MAX)
        {
            self.bytes -= text.len();
            self.remarks.pop_front();
        }
    }
}

fn tick_of(row: &[u64]) -> Option<Tick> {
    let (&[at, late_ns, work_ns, state, epoch, chunk], values) = row.split_first_chunk()?;
    let is_set = |bit: u32| state >> bit & 1 == 1;
    Some(Tick {
        at: Steady(at as i64),
        late_ns: late_ns as i64,
        work_ns: work_ns as i64,
        state: state_of(state & 0xff)?,
        epoch,
        chunk,
        resting: is_set(9),
        limited: is_set(10),
        values: if is_set(8) { floats(values) } else { Vec::new() },
    })
}

fn change_of(row: &[u64]) -> Option<Change> {
    let (&[at, state, epoch, length], words) = row.split_first_chunk()?;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).take(length as usize).collect();
    let reason = String::from_utf8_lossy(&bytes).into_owned();
    Some(Change { at: Steady(at as i64), state: state_of(state)?, epoch, reason })
}

fn state_of(number: u64) -> Option<State> {
    State::ALL.iter().copied().find(|&state| state as u64 == number)
}

fn floats(words: &[u64]) -> Vec<f64> {
    words.iter().map(|&word| f64::from_bits(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i64 = 1_000_000;

    fn recorder() -> Recorder {
        Recorder::new(Capacity { seconds: 1.0, rate_hz: 100.0, commands: 2, measured: 3 })
    }

    fn tick(at: i64, values: &[f64]) -> TickRecord<'_> {
        let command = TickCommand { values, chunk: 7, resting: true, limited: false };
        let (state, epoch) = (State::Braking, 3);
        TickRecord { at: Steady(at), late_ns: 5, work_ns: 6, state, epoch, command: Some(command) }
    }

    #[test]
    fn the_last_second_is_there_as_it_was_recorded() {
        let recorder = recorder();
        recorder.change(Steady(0), State::Armed, 0, &Reason::new("no chunk yet"));
        recorder.change(Steady(10 * MS), State::Running, 0, &Reason::NONE);
        for k in 0..250 {
            let at = k * 10 * MS;
            recorder.measured(Steady(at), &[0.1, 0.2, k as f64]);
            recorder.tick(&tick(at, &[k as f64, -0.5]));
            if k % 10 == 0 {
                recorder.chunk(Steady(at), &[k as u8; 100]);
                recorder.remark(Steady(at), format!("chunk {k}"));
            }
        }
        let reason = "a reason that takes more than one word of eight bytes: ü";
        recorder.change(Steady(2400 * MS), State::Fault, 4, &Reason::new(reason));
        recorder.tick(&TickRecord { command: None, ..tick(2500 * MS, &[]) });
        let flight = recorder.flight();
        let times: Vec<i64> = flight.ticks.iter().map(|tick| tick.at.0 / MS).collect();
        assert_eq!((times[0], times.len()), (1510, 100), "as many as it has room for");
        let Tick { late_ns, work_ns, state, epoch, chunk, resting, limited, .. } = flight.ticks[0];
        assert_eq!((late_ns, work_ns, state, epoch, chunk), (5, 6, State::Braking, 3, 7));
        assert!(resting && !limited);
        assert_eq!(flight.ticks[0].values, [151.0, -0.5]);
        assert!(flight.ticks[99].values.is_empty());
        assert_eq!(flight.measured[0], (Steady(1500 * MS), vec![0.1, 0.2, 150.0]));
        assert_eq!(flight.chunks.iter().map(|(_, bytes)| bytes[0]).min(), Some(150));
        assert_eq!(flight.remarks[0].1, "chunk 150");
        let states: Vec<_> =
            flight.changes.iter().map(|change| (change.state, change.reason.as_str())).collect();
        assert_eq!(states, [(State::Running, ""), (State::Fault, reason)], "from the one that was there on");
    }

    #[test]
    fn the_longest_reason_fits() {
        let recorder = recorder();
        let reason = Reason::new(&"x".repeat(1000));
        recorder.change(Steady(0), State::Fault, 0, &reason);
        assert_eq!(recorder.flight().changes[0].reason, reason.as_str());
    }

    #[test]
    fn chunks_are_bounded_in_bytes_too() {
        let recorder = recorder();
        (0..100).for_each(|k| recorder.chunk(Steady(k), &vec![0; 1 << 20]));
        let flight = recorder.flight();
        assert_eq!(flight.chunks.len(), 64);
        assert_eq!(flight.chunks[0].0, Steady(36));
    }
}
