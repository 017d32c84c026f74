//! `pi05 bench ros`: the node as its peers meet it, from outside, in a process of its own.
//!
//! Latency: three 640×480 rgb8 images and, last, the joint state go out; the time until their chunk is back, less what
//! the engine says it took, is what everything around the engine costs, both ways through the middleware included.
//! Robot: sources at a robot's rates, until the cameras are cut off and the arm must come to rest.
//! Period: how evenly commands come, and whether every tick gave one.

mod peer;
mod process;
mod robot;

use std::mem;
use std::time::{Duration, Instant};

use r2r::{Context, Node};
use serde::Serialize;

use self::peer::{Command, Peer};
use self::process::NodeProcess;
pub use self::robot::{Part, Rest, Robot};
use crate::clock::{NS_PER_S, Stamp};
use crate::percentile::percentile;

/// Observations per second: what cameras and a policy on a robot come to.
const OBSERVATIONS_HZ: f64 = 10.0;
/// How long a chunk may take, on whatever machine; and how long none comes before the node counts as idle.
const CHUNK_PATIENCE: Duration = Duration::from_secs(1);
/// Images and joint states come together here, far slower than on a robot, and slower still after a chunk that did not
/// come: none of them is lost for that.
const AGES: [&str; 4] = [
    "cameras.base_0_rgb.max_age_ms:=3000",
    "cameras.left_wrist_0_rgb.max_age_ms:=3000",
    "cameras.right_wrist_0_rgb.max_age_ms:=3000",
    "joints.max_age_ms:=3000",
];

/// What is measured, on which node.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seconds of each measurement.
    pub seconds: f64,
    /// From the last message of an observation to its chunk.
    pub latency: bool,
    /// Sources at a robot's rates, then no cameras any more.
    pub robot: bool,
    /// Control rates at which the commands' period is measured, Hz.
    pub rates: Vec<f64>,
    /// Parameters of the node beside the bench's own: `name:=value`, as ROS 2 writes them.
    pub parameters: Vec<String>,
}

/// Of each measurement that was asked for.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    /// Last message out to chunk in.
    #[serde(flatten)]
    pub latency: Option<Latency>,
    /// At a robot's rates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub robot: Option<Robot>,
    /// By control rate.
    pub periods: Vec<Period>,
}

/// Observations, one after the other.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Observations sent.
    pub observations: usize,
    /// Chunks measured: fewer than observations where the middleware loses images.
    pub chunks: usize,
    /// Last message out to chunk in, ms.
    pub latency_ms: Percentiles,
    /// Of that, the engine's three stages, ms.
    pub engine_ms: Percentiles,
    /// The rest, ms.
    pub around_ms: Percentiles,
    /// Of the rest, encoding and decoding, ms: what remains are the middleware, threads that wake and, if they were not
    /// ready before the joint state came, images.
    pub policy_ms: Percentiles,
}

/// How evenly commands came at one rate.
#[derive(Debug, Serialize)]
pub struct Period {
    /// Control rate, Hz.
    pub rate_hz: f64,
    /// Commands received.
    pub commands: usize,
    /// Ticks between the first and the last command that gave none (by the stamps of the commands).
    pub missed: u64,
    /// Between the arrivals of two commands, ms.
    pub arrival_ms: Percentiles,
}

/// Of a sorted list.
#[derive(Debug, Serialize)]
#[allow(missing_docs)]
pub struct Percentiles {
    pub min: f64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Percentiles {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |p| percentile(&values, p).unwrap_or(f64::NAN);
        Self { min: at(0.0), p50: at(50.0), p99: at(99.0), p999: at(99.9), max: at(100.0) }
    }
}

impl Period {
    fn of(commands: &[Command], rate_hz: f64) -> Result<Self, String> {
        let period_ns = NS_PER_S as f64 / rate_hz;
        let ticks = match (commands.first(), commands.last()) {
            (Some(first), Some(last)) => {
                (last.stamp.since(first.stamp) as f64 / period_ns).round() as u64 + 1
            }
            _ => return Err(format!("no commands came at {rate_hz} Hz")),
        };
        let between = |pair: &[Command]| (pair[1].at - pair[0].at).as_secs_f64() * 1e3;
        Ok(Self {
            rate_hz,
            commands: commands.len(),
            missed: ticks.saturating_sub(commands.len() as u64),
            arrival_ms: Percentiles::of(commands.windows(2).map(between)),
        })
    }
}

/// Starts nodes, feeds and measures them. `progress` hears of (done, all) seconds. A node that refuses a transition, or
/// ends, is an error that says why.
pub fn run(plan: &Plan, mut progress: impl FnMut(f64, f64)) -> Result<Results, String> {
    let context = Context::create().map_err(of_ros)?;
    let ros = Node::create(context, "bench", process::NAMESPACE).map_err(of_ros)?;
    let mut peer = Peer::new(ros).map_err(of_ros)?;
    let measurements = usize::from(plan.latency) + usize::from(plan.robot) + plan.rates.len();
    let all = plan.seconds * measurements as f64;
    let mut before = 0.0;
    let mut results = Results::default();
    if plan.latency {
        results.latency = Some(latency(&mut peer, plan, |done| progress(done, all))?);
        before += plan.seconds;
    }
    if plan.robot {
        results.robot = Some(robot::measure(&mut peer, plan, |done| progress(before + done, all))?);
        before += plan.seconds;
    }
    for &rate_hz in &plan.rates {
        results.periods.push(period(&mut peer, plan, rate_hz, |done| progress(before + done, all))?);
        before += plan.seconds;
    }
    Ok(results)
}

/// What ROS 2 says went wrong.
fn of_ros(error: r2r::Error) -> String {
    format!("ROS 2: {error}")
}

/// One observation and its chunk.
struct Round {
    latency_ms: f64,
    engine_ms: f64,
    policy_ms: f64,
}

fn latency(peer: &mut Peer, plan: &Plan, mut progress: impl FnMut(f64)) -> Result<Latency, String> {
    let mut node = start(peer, plan, 100.0)?;
    let (mut observations, mut rounds) = (0, Vec::new());
    wait_until_idle(peer);
    let start = Instant::now();
    while start.elapsed().as_secs_f64() < plan.seconds {
        let next = Instant::now() + Duration::from_secs_f64(1.0 / OBSERVATIONS_HZ);
        let (stamp, sent) = peer.observe()?;
        observations += 1;
        rounds.extend(wait_for_chunk(peer, stamp, sent, next.max(sent + CHUNK_PATIENCE)));
        peer.turn_until(next);
        progress(start.elapsed().as_secs_f64());
    }
    node.end()?;
    let column = |f: fn(&Round) -> f64| Percentiles::of(rounds.iter().map(f));
    Ok(Latency {
        observations,
        chunks: rounds.len(),
        latency_ms: column(|round| round.latency_ms),
        engine_ms: column(|round| round.engine_ms),
        around_ms: column(|round| round.latency_ms - round.engine_ms),
        policy_ms: column(|round| round.policy_ms),
    })
}

fn period(
    peer: &mut Peer,
    plan: &Plan,
    rate_hz: f64,
    mut progress: impl FnMut(f64),
) -> Result<Period, String> {
    let mut node = start(peer, plan, rate_hz)?;
    peer.commands.clear();
    let start = Instant::now();
    let mut next = start;
    while start.elapsed().as_secs_f64() < plan.seconds {
        next += Duration::from_secs_f64(1.0 / OBSERVATIONS_HZ);
        peer.observe()?;
        peer.turn_until(next);
        progress(start.elapsed().as_secs_f64());
    }
    node.end()?;
    Period::of(&peer.commands, rate_hz)
}

/// An active node that moves the arm.
fn start(peer: &mut Peer, plan: &Plan, rate_hz: f64) -> Result<NodeProcess, String> {
    let (mut node, _) = configured(peer, plan, rate_hz, &AGES)?;
    peer.activate(&mut node, |peer| peer.observe().map(|_| ()))?;
    Ok(node)
}

/// A configured node, and the seconds that this took. The plan's parameters win over `own`.
fn configured(
    peer: &mut Peer,
    plan: &Plan,
    rate_hz: f64,
    own: &[&str],
) -> Result<(NodeProcess, f64), String> {
    let rate = format!("control.rate_hz:={rate_hz:?}");
    let own = own.iter().copied().chain([rate.as_str()]);
    let mut node = NodeProcess::start(own.chain(plan.parameters.iter().map(String::as_str)))?;
    let seconds = peer.configure(&mut node)?;
    Ok((node, seconds))
}

/// Until nothing is under way from what the node was fed before.
fn wait_until_idle(peer: &mut Peer) {
    let mut last = Instant::now();
    while last.elapsed() < CHUNK_PATIENCE {
        peer.turn();
        if !mem::take(&mut peer.chunks).is_empty() {
            last = Instant::now();
        }
    }
}

/// The chunk of the observation of `stamp`; none if it is not there by `deadline`.
fn wait_for_chunk(peer: &mut Peer, stamp: Stamp, sent: Instant, deadline: Instant) -> Option<Round> {
    while Instant::now() < deadline {
        peer.turn();
        if let Some(chunk) = mem::take(&mut peer.chunks).into_iter().find(|chunk| chunk.stamp == stamp) {
            let latency_ms = chunk.at.duration_since(sent).as_secs_f64() * 1e3;
            return Some(Round { latency_ms, engine_ms: chunk.engine_ms, policy_ms: chunk.policy_ms });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_counts_the_ticks_that_gave_no_command() {
        let start = Instant::now();
        let command = |ms: u64| Command {
            at: start + Duration::from_millis(ms),
            stamp: Stamp(ms as i64 * 1_000_000),
            moves: true,
        };
        let commands: Vec<Command> = [0, 10, 20, 50, 60].map(command).into();
        let period = Period::of(&commands, 100.0).unwrap();
        assert_eq!((period.commands, period.missed), (5, 2));
        assert_eq!((period.arrival_ms.min, period.arrival_ms.max), (10.0, 30.0));
        assert!(Period::of(&[], 100.0).unwrap_err().contains("no commands came at 100 Hz"));
    }
}
