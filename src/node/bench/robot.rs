//! The node on a robot: every source at its own rate, commands at 100 Hz; then no image comes any more.

use std::collections::BTreeMap;
use std::mem;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::peer::{ChunkArrival, Peer, Said, Sources};
use super::process::NodeProcess;
use super::{Percentiles, Period, Plan, configured};
use crate::clock::NS_PER_MS;
use crate::node::clock::RosClock;

/// Images per second of each camera; they take turns.
const IMAGES_HZ: f64 = 30.0;
/// Joint states per second.
const JOINTS_HZ: f64 = 100.0;
/// Commands per second.
const CONTROL_HZ: f64 = 100.0;
/// After the first commands: what is only slow at first is not measured.
const SETTLING: Duration = Duration::from_secs(2);
/// How long the arm may take to come to rest, and to move again.
const PATIENCE: Duration = Duration::from_secs(20);
/// So many equal commands are rest.
const RESTING: usize = 20;

/// What a robot saw.
#[derive(Debug, Serialize)]
pub struct Robot {
    /// Such as: cpu f32.
    pub engine: String,
    /// Loading, preparing and warming up, s.
    pub configure_s: f64,
    /// Prompt tokens that the model read.
    pub tokens: u32,
    /// Chunks.
    pub chunks: usize,
    /// Chunks per second.
    pub chunks_hz: f64,
    /// From one chunk to the next, ms.
    pub between_ms: Percentiles,
    /// From the newest part of an observation to its chunk, ms.
    pub latency_ms: Percentiles,
    /// Of that, the engine's three stages, ms.
    pub engine_ms: Percentiles,
    /// The rest, ms.
    pub around_ms: Percentiles,
    /// From the oldest image of an observation to its chunk, ms.
    pub image_age_ms: Percentiles,
    /// Images that each camera had sent by then, since the node was configured.
    pub images_sent: u64,
    /// Commands.
    pub period: Period,
    /// Why control left `running`, each time.
    pub interruptions: Vec<String>,
    /// What `/diagnostics` said of each part at the end of the measurement.
    pub parts: Vec<Part>,
    /// What the node did without cameras.
    pub rest: Rest,
}

/// A part of the node, in its own words.
#[derive(Debug, Serialize)]
pub struct Part {
    /// Such as: inference.
    pub name: String,
    /// One line for a person.
    pub message: String,
    /// What it counted and measured.
    pub values: BTreeMap<String, String>,
}

/// After the last image.
#[derive(Debug, Serialize)]
pub struct Rest {
    /// From the last image until control left `running`, ms.
    pub braking_ms: f64,
    /// From the last image until the commands stand still, ms.
    pub rest_ms: f64,
    /// What the node gave as its reason.
    pub reason: String,
    /// From the first image of all cameras until control runs again, ms.
    pub running_again_ms: f64,
}

/// Measures for the plan's seconds, then cuts the cameras off and gives them back.
pub fn measure(peer: &mut Peer, plan: &Plan, progress: impl FnMut(f64)) -> Result<Robot, String> {
    let (mut node, configure_s) = configured(peer, plan, CONTROL_HZ, &[])?;
    let (sources, clock, switch) = (peer.sources(), peer.clock.clone(), Switch::default());
    let robot = thread::scope(|scope| {
        let _off = Off(&switch);
        let feeding = thread::Builder::new().name("sources".to_owned());
        let feeder = feeding.spawn_scoped(scope, || feed(sources, &clock, &switch));
        let feeder = feeder.map_err(|error| format!("the sources' thread: {error}"))?;
        let robot = measure_fed(peer, &mut node, plan, configure_s, &switch, progress)?;
        switch.end.store(true, Ordering::Relaxed);
        feeder.join().map_err(|_| "the sources' thread panicked".to_owned())??;
        Ok::<_, String>(robot)
    })?;
    node.end()?;
    Ok(robot)
}

/// What the sources are told, and tell.
#[derive(Default)]
struct Switch {
    blind: AtomicBool,
    end: AtomicBool,
    /// Of each camera, so far.
    images_sent: AtomicU64,
}

/// Ends the sources, however the measurement ends.
struct Off<'a>(&'a Switch);

impl Drop for Off<'_> {
    fn drop(&mut self) {
        self.0.end.store(true, Ordering::Relaxed);
    }
}

/// Images and joint states, each when it is due, until the end.
fn feed(mut sources: Sources, clock: &RosClock, switch: &Switch) -> Result<(), String> {
    let now = || clock.now().unwrap_or_default();
    let (start, period) = (Instant::now(), Duration::from_secs_f64(1.0 / IMAGES_HZ));
    let cameras = sources.cameras();
    let between = period / cameras as u32;
    let mut images: Vec<Instant> = (0..cameras as u32).map(|camera| start + between * camera).collect();
    let mut joints = start;
    while !switch.end.load(Ordering::Relaxed) {
        for (camera, due) in images.iter_mut().enumerate() {
            if *due <= Instant::now() {
                *due += period;
                if !switch.blind.load(Ordering::Relaxed) {
                    sources.send_image(camera, now())?;
                    switch.images_sent.fetch_add(u64::from(camera == 0), Ordering::Relaxed);
                }
            }
        }
        if joints <= Instant::now() {
            joints += Duration::from_secs_f64(1.0 / JOINTS_HZ);
            sources.send_joints(now())?;
        }
        let next = images.iter().min().map_or(joints, |&image| image.min(joints));
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

fn measure_fed(
    peer: &mut Peer,
    node: &mut NodeProcess,
    plan: &Plan,
    configure_s: f64,
    switch: &Switch,
    mut progress: impl FnMut(f64),
) -> Result<Robot, String> {
    peer.activate(node, |_| Ok(()))?;
    peer.wait(node, PATIENCE, "control to run", |peer| is(peer, "running"))?;
    peer.turn_until(Instant::now() + SETTLING);

    let engine = peer.said.last().map(|said| said.engine.clone()).unwrap_or_default();
    forget(peer);
    let start = Instant::now();
    peer.wait(node, Duration::from_secs_f64(plan.seconds + 60.0), "the measurement's end", |_| {
        progress(start.elapsed().as_secs_f64());
        start.elapsed().as_secs_f64() >= plan.seconds
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let chunks = mem::take(&mut peer.chunks);
    let interruptions = interruptions(&peer.said);
    let period = Period::of(&peer.commands, CONTROL_HZ)?;
    let (parts, images_sent) = (parts(peer), switch.images_sent.load(Ordering::Relaxed));
    let rest = blind(peer, node, switch)?;

    let column = |f: fn(&ChunkArrival) -> f64| Percentiles::of(chunks.iter().map(f));
    let between = |pair: &[ChunkArrival]| (pair[1].at - pair[0].at).as_secs_f64() * 1e3;
    Ok(Robot {
        engine,
        configure_s,
        tokens: chunks.last().map_or(0, |chunk| chunk.tokens),
        chunks: chunks.len(),
        chunks_hz: chunks.len() as f64 / seconds,
        between_ms: Percentiles::of(chunks.windows(2).map(between)),
        latency_ms: column(latency_ms),
        engine_ms: column(|chunk| chunk.engine_ms),
        around_ms: column(|chunk| latency_ms(chunk) - chunk.engine_ms),
        image_age_ms: column(|chunk| chunk.now.since(chunk.oldest_image) as f64 / NS_PER_MS as f64),
        images_sent,
        period,
        interruptions,
        parts,
        rest,
    })
}

fn latency_ms(chunk: &ChunkArrival) -> f64 {
    chunk.now.since(chunk.stamp) as f64 / NS_PER_MS as f64
}

/// Cuts the cameras off until the arm rests, then gives them back until it moves.
fn blind(peer: &mut Peer, node: &mut NodeProcess, switch: &Switch) -> Result<Rest, String> {
    peer.wait(node, PATIENCE, "control to run", |peer| peer.said.is_empty() || is(peer, "running"))?;
    forget(peer);
    let cut = Instant::now();
    switch.blind.store(true, Ordering::Relaxed);
    peer.wait(node, PATIENCE, "the arm to rest without cameras", |peer| {
        let last = peer.commands.len().saturating_sub(RESTING);
        is(peer, "holding") && last > 0 && peer.commands[last..].iter().all(|command| !command.moves)
    })?;
    let ms = |at: Instant| at.duration_since(cut).as_secs_f64() * 1e3;
    let braking = peer.said.iter().find(|said| said.control != "running").map_or(cut, |said| said.at);
    let moved = peer.commands.iter().rfind(|command| command.moves).map_or(cut, |command| command.at);
    let reason = peer.said.last().map(|said| said.reason.clone()).unwrap_or_default();
    let again = Instant::now();
    switch.blind.store(false, Ordering::Relaxed);
    peer.wait(node, PATIENCE, "control to run again", |peer| is(peer, "running"))?;
    Ok(Rest {
        braking_ms: ms(braking),
        rest_ms: ms(moved),
        reason,
        running_again_ms: again.elapsed().as_secs_f64() * 1e3,
    })
}

/// Each time that control, which ran, ran no more.
fn interruptions(said: &[Said]) -> Vec<String> {
    let mut ran = true;
    let mut interruptions = Vec::new();
    for said in said {
        let runs = said.control == "running";
        if ran && !runs {
            interruptions.push(said.reason.clone());
        }
        ran = runs;
    }
    interruptions
}

fn forget(peer: &mut Peer) {
    peer.said.clear();
    peer.commands.clear();
    peer.chunks.clear();
}

/// Whether control does this, as the node last said.
fn is(peer: &Peer, control: &str) -> bool {
    peer.said.last().is_some_and(|said| said.control == control)
}

fn parts(peer: &Peer) -> Vec<Part> {
    let part = |status: &r2r::diagnostic_msgs::msg::DiagnosticStatus| Part {
        name: status.name.rsplit(": ").next().unwrap_or_default().to_owned(),
        message: status.message.clone(),
        values: status.values.iter().map(|pair| (pair.key.clone(), pair.value.clone())).collect(),
    };
    peer.health.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_is_counted_once_however_many_states_it_goes_through() {
        let said = |control: &str, reason: &str| Said {
            at: Instant::now(),
            control: control.to_owned(),
            reason: reason.to_owned(),
            engine: String::new(),
        };
        assert!(interruptions(&[said("running", "")]).is_empty());
        let all = [("braking", "a"), ("holding", "a; b"), ("running", ""), ("running", ""), ("holding", "c")];
        assert_eq!(interruptions(&all.map(|(control, reason)| said(control, reason))), ["a", "c"]);
    }
}
