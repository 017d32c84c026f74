//! `pi05 bench --trace F`: when the host called and the GPU computed, in Chrome's trace format.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::Failure;
use super::bench::{Chunk, Streams};
use super::bench_gpu::pipelined_once;
use crate::engine::cuda::CudaEngine;
use crate::pipeline::just_in_time::JustInTime;

/// Chunks that are traced, after as many that are not.
const CHUNKS: u32 = 6;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Trace {
    trace_events: Vec<Event>,
    display_time_unit: &'static str,
}

/// A span, or the name of a row.
#[derive(Serialize)]
struct Event {
    name: String,
    ph: &'static str,
    pid: u32,
    tid: u32,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    ts: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<RowName>,
}

#[derive(Serialize)]
struct RowName {
    name: &'static str,
}

/// Rows, from the top.
const ROWS: [&str; 4] = ["host", "GPU: vision stream", "GPU: action stream", "GPU: denoise steps"];

/// Runs a few chunks and writes when everything was.
pub(super) fn write(
    engine: &mut CudaEngine,
    chunk: &Chunk,
    streams: Streams,
    file: &Path,
) -> Result<(), Failure> {
    let mut events = Vec::new();
    for (tid, name) in ROWS.into_iter().enumerate() {
        let args = Some(RowName { name });
        let name = "thread_name".to_owned();
        events.push(Event { name, ph: "M", pid: 1, tid: tid as u32, ts: None, dur: None, args });
    }
    let origin = engine.start_timeline(chunk.sampler.steps)?;
    let ms = |at: Instant| at.saturating_duration_since(origin).as_secs_f64() * 1e3;
    engine.start_vision(1, &chunk.input.images)?;
    engine.start_vision(0, &chunk.input.images)?;
    let mut just_in_time = JustInTime::default();
    for run in 0..2 * CHUNKS {
        let (slot, mut spans) = (run % 2, Vec::new());
        let mut span =
            |tid, name: &str, (begin, end): (f64, f64)| spans.push((tid, name.to_owned(), begin, end));
        let begin = Instant::now();
        if streams != Streams::Sequential {
            let later = just_in_time.next().filter(|_| streams == Streams::JustInTime);
            let (measured, [acting, seeing]) =
                pipelined_once(engine, chunk, run, later.map(|(later, _)| later))?;
            just_in_time.add(measured.vision_ms, measured.prefix_ms + measured.denoise_ms);
            span(0, "start actions", (ms(begin), ms(acting)));
            span(0, "start vision of the next", (ms(acting), ms(seeing)));
            span(0, "wait", (ms(seeing), ms(Instant::now())));
        } else {
            engine.start_vision(slot as usize, &chunk.input.images)?;
            let seeing = Instant::now();
            engine.start_actions(slot as usize, &chunk.input.tokens, &chunk.noise, &chunk.sampler)?;
            let acting = Instant::now();
            engine.finish()?;
            span(0, "start vision", (ms(begin), ms(seeing)));
            span(0, "start actions", (ms(seeing), ms(acting)));
            span(0, "wait", (ms(acting), ms(Instant::now())));
        }
        let gpu = engine.spans(slot as usize)?;
        span(1, "vision", gpu.vision);
        span(2, "prefix", gpu.prefix);
        span(2, "denoise", gpu.denoise);
        let ends = gpu.steps.iter().skip(1).chain([&gpu.denoise.1]);
        for (step, (&begin, &end)) in gpu.steps.iter().zip(ends).enumerate() {
            span(3, &format!("step {step}"), (begin, end));
        }
        if run >= CHUNKS {
            events.extend(spans.into_iter().map(|(tid, name, begin, end)| Event {
                name,
                ph: "X",
                pid: 1,
                tid,
                ts: Some(begin * 1e3),
                dur: Some((end - begin).max(0.0) * 1e3),
                args: None,
            }));
        }
    }
    let trace = Trace { trace_events: events, display_time_unit: "ms" };
    let written = fs::write(file, serde_json::to_string(&trace)?);
    written.map_err(|e| format!("{}: cannot be written: {e}", file.display()).into())
}
