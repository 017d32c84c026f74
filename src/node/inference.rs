//! The inference thread: observation in, chunk out, one at a time, until the session closes.

use std::panic::{AssertUnwindSafe, catch_unwind};

use r2r::PublisherUntyped;

use super::shared::{Job, Shared};
use crate::clock::{NS_PER_S, Stamp};
use crate::control::thread as control;
use crate::control::{Chunk, Reason};
use crate::messages::ActionChunkMessage;
use crate::observe::{Observation, RgbImage};
use crate::pipeline::chunking::{Chunking, TooLate};
use crate::pipeline::inference::{Inference, InferenceError, Request, Response};

/// How far the engine's threads step back: a tenth of the time that the others get, if all want it.
const STEP_BACK: i32 = 10;

/// What every chunk of a session has in common.
pub struct ChunkForm {
    /// One per value of a step.
    pub joint_names: Vec<String>,
    /// Steps per second.
    pub policy_rate_hz: f64,
}

/// Runs inferences as observations come. An engine that fails or panics ends the thread and is told to `shared`.
pub fn infer_until_closed(
    mut inference: Inference,
    shared: &Shared,
    form: &ChunkForm,
    chunks: &PublisherUntyped,
) {
    step_back();
    let mut payload = Vec::new();
    let mut chunking = Chunking::default();
    while let Some(job) = shared.next_job() {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut inference, &mut chunking, shared, &job)));
        match outcome {
            Ok(Ok(response)) if !is_in_time(&mut chunking, &job, &response, shared, form) => {}
            Ok(Ok(response)) => {
                // The chunk goes to the arm before anybody else.
                hand_over(&job, &response, shared, form);
                forget_refused(&mut chunking, shared, &job);
                message(&job, &response, form).put(&mut payload);
                if let (Some(recorder), Some(now)) = (&shared.recorder, shared.clock.now()) {
                    recorder.chunk(shared.clock.steady(now), &payload);
                }
                if let Err(error) = chunks.publish_raw(&payload) {
                    shared.count("chunk_unpublished", &error.to_string());
                }
                shared.statistics.lock().add(response.timings.total_ms());
            }
            Ok(Err(InferenceError::Observation(error))) => {
                shared.count("observation_dropped", &error.to_string());
                shared.statistics.lock().observations_dropped += 1;
            }
            Ok(Err(error)) => return shared.fail(error.to_string()),
            Err(_) => return shared.fail("the engine panicked".to_owned()),
        }
    }
}

/// Lets this thread step back behind those that receive and control, where the engine computes on the same cores.
/// Needs no permission.
pub fn step_back() {
    if let Err(error) = rustix::process::nice(STEP_BACK) {
        tracing::debug!("the engine's threads keep their priority: {error}");
    }
}

/// One inference on nothing but grey, so that the first real one is as quick as the others.
pub fn warm_up(
    inference: &mut Inference,
    cameras: &[Option<usize>],
    state_len: usize,
) -> Result<(), InferenceError> {
    let grey = RgbImage::new(1, 1, vec![128; 3]).map(std::sync::Arc::new);
    let observation = Observation {
        stamp: Stamp(0),
        images: cameras.iter().map(|camera| camera.and(grey.clone())).collect(),
        state: vec![0.0; state_len],
        image_stamps: vec![None; cameras.len()],
        joints_stamp: Stamp(0),
    };
    let prompt = "warm up".to_owned();
    let request = Request { id: 0, observation, resized: Vec::new(), prompt, steering: None };
    inference.run(request).map(|_| ())
}

fn run(
    inference: &mut Inference,
    chunking: &mut Chunking,
    shared: &Shared,
    job: &Job,
) -> Result<Response, InferenceError> {
    let config = shared.config();
    if let Some(seed) = config.sampler.seed {
        inference.seed = seed;
    }
    forget_refused(chunking, shared, job);
    let steering = chunking.begin(job.id, job.epoch, job.observation.stamp, &config, &inference.policy);
    inference.run(Request {
        id: job.id,
        observation: job.observation.clone(),
        resized: shared.resized(&job.observation),
        prompt: job.prompt.to_string(),
        steering,
    })
}

/// The chunk is there. False if it is too late for what it was conditioned for: then it goes nowhere.
fn is_in_time(
    chunking: &mut Chunking,
    job: &Job,
    response: &Response,
    shared: &Shared,
    form: &ChunkForm,
) -> bool {
    let (observed, rate) = (job.observation.stamp, form.policy_rate_hz);
    let now = shared.clock.now().unwrap_or(observed);
    let Err(late) = chunking.finish(job.id, job.epoch, observed, now, response.model.clone(), rate) else {
        return true;
    };
    shared.count("chunk_rejected", "it came later than it was conditioned for");
    if matches!(late, TooLate::Always { .. }) {
        let _ended = job.control.request(control::Request::Fault(Reason::new(&late.to_string())));
    }
    false
}

/// Gives the chunk to control, and counts what control says of earlier ones.
fn hand_over(job: &Job, response: &Response, shared: &Shared, form: &ChunkForm) {
    if job.control.send_chunk(&chunk(job, response, shared, form)).is_err() {
        shared.count("chunk_rejected", "control does not tick");
    }
}

/// Control counts what it refuses, by kind; here it is told and freed.
fn forget_refused(chunking: &mut Chunking, shared: &Shared, job: &Job) {
    for outcome in job.control.outcomes() {
        if let Err(rejected) = outcome.result {
            chunking.refused(outcome.chunk);
            tracing::debug!("{rejected}");
            if let Some(recorder) = &shared.recorder {
                recorder.remark(outcome.at, rejected.to_string());
            }
        }
    }
}

fn chunk(job: &Job, response: &Response, shared: &Shared, form: &ChunkForm) -> Chunk {
    Chunk {
        id: job.id,
        epoch: job.epoch,
        observed: shared.clock.steady(job.observation.stamp),
        period_ns: (NS_PER_S as f64 / form.policy_rate_hz).round() as i64,
        actions: response.actions.clone(),
    }
}

fn message<'a>(job: &'a Job, response: &Response, form: &'a ChunkForm) -> ActionChunkMessage<'a> {
    ActionChunkMessage {
        stamp: job.observation.stamp,
        id: job.id,
        prompt: &job.prompt,
        joint_names: form.joint_names.iter().map(String::as_str).collect(),
        steps: u32::try_from(response.actions.len()).unwrap_or(u32::MAX),
        period: 1.0 / form.policy_rate_hz,
        actions: response.actions.iter().flatten().copied().collect(),
        tokens: u32::try_from(response.tokens).unwrap_or(u32::MAX),
        image_stamps: job.observation.image_stamps.clone(),
        joints_stamp: job.observation.joints_stamp,
        encode_ms: response.timings.encode_ms,
        vision_ms: response.timings.vision_ms,
        prefix_ms: response.timings.prefix_ms,
        denoise_ms: response.timings.denoise_ms,
        decode_ms: response.timings.decode_ms,
    }
}
