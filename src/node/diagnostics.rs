//! `/diagnostics`: the node's health, as `rqt_robot_monitor` and the like show it.

use std::collections::HashMap;
use std::fmt::Display;
use std::time::Instant;

use super::lifecycle::State;
use super::session::Session;
use crate::clock::{NS_PER_MS, Stamp};
use crate::control::thread::Distribution;
use crate::control::{ControlHandle, State as ControlState};
use crate::messages::{DiagnosticArrayMessage, DiagnosticStatus, Level};
use crate::observe::intake::{Intake, SourceStatistics};
use crate::observe::snapshot::FROZEN_NS;

/// A source that has been silent for so long is gone, whatever its `max_age_ms`.
const OLD_NS: i64 = 1_000 * NS_PER_MS;

/// One status for the node, one per source, one for inferences, one for control. `node` is its full name.
pub fn report(
    node: &str,
    now: Stamp,
    state: State,
    reason: &str,
    session: Option<&Session>,
    rates: &mut Rates,
) -> DiagnosticArrayMessage {
    let name = |part: &str| format!("{}: {part}", node.trim_start_matches('/'));
    let mut whole = DiagnosticStatus {
        name: name("policy"),
        message: if reason.is_empty() { state.label().to_owned() } else { reason.to_owned() },
        level: if reason.is_empty() { Level::Ok } else { Level::Warn },
        values: vec![value("state", state.label())],
        ..DiagnosticStatus::default()
    };
    let mut status = Vec::new();
    if let Some(session) = session {
        whole.values.push(value("engine", session.engine()));
        session.look(|intake| {
            status.extend(sources(&name, now, session, intake, rates));
            for (event, count) in intake.counters().iter() {
                whole.values.push(value(event, count));
            }
        });
        status.push(inference(name("inference"), session));
        status.extend(session.control().map(|control| self::control(name("control"), control)));
    }
    status.insert(0, whole);
    DiagnosticArrayMessage { stamp: now, status }
}

/// Counts of the last report, to make rates of.
#[derive(Debug, Default)]
pub struct Rates {
    last: HashMap<String, (Instant, u64)>,
}

impl Rates {
    /// Per second since the last report; `None` in the first.
    fn of(&mut self, what: &str, count: u64) -> Option<f64> {
        let now = Instant::now();
        let (before, counted) = self.last.insert(what.to_owned(), (now, count))?;
        let seconds = (now - before).as_secs_f64();
        (seconds > 0.0).then(|| count.saturating_sub(counted) as f64 / seconds)
    }
}

fn sources(
    name: &dyn Fn(&str) -> String,
    now: Stamp,
    session: &Session,
    intake: &Intake,
    rates: &mut Rates,
) -> Vec<DiagnosticStatus> {
    let slot_of = |source: &str| session.cameras().iter().position(|camera| camera == source);
    let status = |source: &SourceStatistics| {
        let slot = slot_of(&source.name);
        let frozen = slot.and_then(|slot| intake.unchanged_for(slot)).filter(|&ns| ns >= FROZEN_NS);
        let explained = |what: &str| match source.explanation() {
            Some(why) => format!("{what}; {why}"),
            None => what.to_owned(),
        };
        let (level, message) = match (source.newest, frozen) {
            (None, _) => (Level::Stale, explained("nothing received")),
            (Some(_), Some(ns)) => {
                (Level::Warn, format!("frozen: the same pixels for {} ms", ns / NS_PER_MS))
            }
            (Some(stamp), None) if now.since(stamp) > OLD_NS => {
                (Level::Warn, explained("no longer received"))
            }
            (Some(_), None) => (Level::Ok, "received".to_owned()),
        };
        let mut values = vec![value("taken", source.taken), value("refused", source.refused)];
        if let Some(rate) = rates.of(&source.name, source.taken) {
            values.push(value("rate_hz", format!("{rate:.1}")));
        }
        if let Some(stamp) = source.newest {
            values.push(value("age_ms", now.since(stamp) / NS_PER_MS));
        }
        if let Some(slot) = slot {
            values.push(value("superseded", session.superseded_images(slot)));
        }
        DiagnosticStatus { level, name: name(&source.name), message, values, ..DiagnosticStatus::default() }
    };
    intake.sources().map(status).collect()
}

fn inference(name: String, session: &Session) -> DiagnosticStatus {
    let statistics = session.statistics();
    let (level, message) = match &statistics.waiting_for {
        Some(why) => (Level::Warn, format!("waiting: {why}")),
        None => (Level::Ok, "running".to_owned()),
    };
    let mut values = vec![value("chunks", statistics.chunks)];
    values.extend(session.gpu_memory().map(|bytes| value("gpu_memory_mib", bytes >> 20)));
    for (key, percent) in [("p50_ms", 50.0), ("p99_ms", 99.0)] {
        if let Some(ms) = statistics.percentile_ms(percent) {
            values.push(value(key, format!("{ms:.3}")));
        }
    }
    DiagnosticStatus { level, name, message, values, ..DiagnosticStatus::default() }
}

fn control(name: String, handle: &ControlHandle) -> DiagnosticStatus {
    let status = handle.status();
    let level = match status.state {
        ControlState::Running | ControlState::Idle => Level::Ok,
        ControlState::Fault => Level::Error,
        _ => Level::Warn,
    };
    let message = match status.reason.as_str() {
        "" => status.state.to_string(),
        reason => format!("{}: {reason}", status.state),
    };
    let timing = &status.timing;
    let mut values = vec![
        value("state", status.state),
        value("epoch", status.epoch),
        value("overruns", timing.overruns),
        value("late_max_us", timing.late_max_ns / 1000),
        value(
            "late_mean_us",
            timing.late_total_ns / 1000 / i64::try_from(timing.ticks.max(1)).unwrap_or(i64::MAX),
        ),
        value("work_max_us", timing.work_max_ns / 1000),
        value("real_time", handle.granted()),
        value("commands", timing.sent),
        value("commands_lost", timing.lost),
    ];
    for (what, times) in [("late", handle.lateness()), ("work", handle.work())] {
        let percentiles = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999)];
        let entry = |(key, share)| Some(value(&format!("{what}_{key}_us"), microseconds(&times, share)?));
        values.extend(percentiles.into_iter().filter_map(entry));
    }
    values.extend(status.counters.entries().map(|(key, count)| value(key, count)));
    DiagnosticStatus { level, name, message, values, ..DiagnosticStatus::default() }
}

fn microseconds(times: &Distribution, share: f64) -> Option<String> {
    times.quantile_ns(share).map(|ns| format!("{:.1}", ns as f64 / 1e3))
}

fn value(key: &str, value: impl Display) -> (String, String) {
    (key.to_owned(), value.to_string())
}
