//! The inference thread: observation in, chunk out, until the session closes. One at a time; where the engine has a
//! stream for vision and nothing steers the sampler, the next one begins beside the actions of this one, just in time.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Instant;

use r2r::PublisherUntyped;

use super::shared::{Job, Shared};
use crate::clock::{NS_PER_S, Stamp};
use crate::config::Execution;
use crate::control::thread as control;
use crate::control::{Chunk, Reason};
use crate::engine::EngineError;
use crate::messages::ActionChunkMessage;
use crate::observe::{Observation, RgbImage};
use crate::pipeline::chunking::{Chunking, TooLate};
use crate::pipeline::inference::{Begun, Inference, InferenceError, Request, Response};
use crate::pipeline::just_in_time::JustInTime;
use crate::policy::PolicyError;

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
    inference: Inference,
    shared: &Shared,
    form: &ChunkForm,
    chunks: &PublisherUntyped,
) {
    if inference.is_on_cpu() {
        step_back();
    }
    let mut thread = Thread {
        inference,
        shared,
        form,
        chunks,
        chunking: Chunking::default(),
        times: JustInTime::default(),
        sabotage: Sabotage::asked_for(),
        payload: Vec::new(),
    };
    let mut next = None;
    loop {
        match catch_unwind(AssertUnwindSafe(|| thread.step(next.take()))) {
            Ok(Ok(ControlFlow::Continue(begun))) => next = begun,
            Ok(Ok(ControlFlow::Break(()))) => return,
            Ok(Err(InferenceError::Observation(error))) => thread.drop_observation(&error),
            Ok(Err(error)) => return shared.fail(error.to_string()),
            Err(_) => return shared.fail("the engine panicked".to_owned()),
        }
    }
}

/// What the inference thread has at hand.
struct Thread<'a> {
    inference: Inference,
    shared: &'a Shared,
    form: &'a ChunkForm,
    chunks: &'a PublisherUntyped,
    chunking: Chunking,
    times: JustInTime,
    sabotage: Option<Sabotage>,
    payload: Vec<u8>,
}

impl Thread<'_> {
    /// One inference to its chunk; the next one begins beside it where engine and execution let it. Breaks off when the
    /// threads are to end.
    fn step(
        &mut self,
        begun: Option<(Job, Begun)>,
    ) -> Result<ControlFlow<(), Option<(Job, Begun)>>, InferenceError> {
        let (job, begun) = match begun {
            Some(begun) => begun,
            None => {
                let Some(job) = self.shared.next_job(None) else { return Ok(ControlFlow::Break(())) };
                let begun = self.begin(&job)?;
                (job, begun)
            }
        };
        let acting = self.inference.act(begun)?;
        let next = self.begin_next()?;
        if let Some(sabotage) = &self.sabotage {
            sabotage.strike(job.id)?;
        }
        let response = self.inference.finish(acting)?;
        let timings = &response.timings;
        self.times.add(timings.vision_ms, timings.prefix_ms + timings.denoise_ms);
        self.give(&job, &response);
        Ok(ControlFlow::Continue(next))
    }

    fn begin(&mut self, job: &Job) -> Result<Begun, InferenceError> {
        let config = self.shared.config();
        if let Some(seed) = config.sampler.seed {
            self.inference.seed = seed;
        }
        forget_refused(&mut self.chunking, self.shared, job);
        let observed = job.observation.stamp;
        let steering = self.chunking.begin(job.id, job.epoch, observed, &config, &self.inference.policy);
        self.inference.begin(Request {
            id: job.id,
            observation: job.observation.clone(),
            resized: self.shared.resized(&job.observation),
            prompt: job.prompt.to_string(),
            steering,
        })
    }

    /// While actions are being computed: begins the inference after them, just in time, if there is anything new to see.
    fn begin_next(&mut self) -> Result<Option<(Job, Begun)>, InferenceError> {
        let acting_since = Instant::now();
        let needs_this_chunk = matches!(
            self.shared.config().control.execution,
            Execution::Rtc | Execution::RtcTrained | Execution::OpenLoop
        );
        if needs_this_chunk || !self.inference.overlaps() {
            return Ok(None);
        }
        let Some((begin, done)) = self.times.next() else { return Ok(None) };
        thread::sleep(begin);
        let Some(job) = self.shared.next_job(Some(acting_since + done)) else { return Ok(None) };
        match self.begin(&job) {
            Ok(begun) => Ok(Some((job, begun))),
            Err(InferenceError::Observation(error)) => {
                self.drop_observation(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The chunk is there: to the arm before anybody else, unless it is too late.
    fn give(&mut self, job: &Job, response: &Response) {
        let Self { shared, form, chunking, payload, .. } = self;
        if !is_in_time(chunking, job, response, shared, form) {
            return;
        }
        hand_over(job, response, shared, form);
        forget_refused(chunking, shared, job);
        message(job, response, form).put(payload);
        if let (Some(recorder), Some(now)) = (&shared.recorder, shared.clock.now()) {
            recorder.chunk(shared.clock.steady(now), payload);
        }
        if let Err(error) = self.chunks.publish_raw(payload) {
            shared.count("chunk_unpublished", &error.to_string());
        }
        shared.statistics.lock().add(response.timings.total_ms());
    }

    fn drop_observation(&self, error: &PolicyError) {
        self.shared.count("observation_dropped", &error.to_string());
        self.shared.statistics.lock().observations_dropped += 1;
    }
}

/// For tests of what comes after: `PI05_BREAK_ENGINE=error:20` makes inference 20 fail as if the GPU were lost,
/// `panic:20` makes it panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sabotage {
    panics: bool,
    from: u64,
}

impl Sabotage {
    fn asked_for() -> Option<Self> {
        Self::parse(&std::env::var("PI05_BREAK_ENGINE").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let (how, from) = text.split_once(':')?;
        let panics = match how {
            "error" => false,
            "panic" => true,
            _ => return None,
        };
        Some(Self { panics, from: from.parse().ok()? })
    }

    #[allow(clippy::panic, reason = "asked for by a test")]
    fn strike(&self, id: u64) -> Result<(), EngineError> {
        if id < self.from {
            return Ok(());
        }
        if self.panics {
            std::panic::panic_any("PI05_BREAK_ENGINE");
        }
        let reason = "the context is lost, says PI05_BREAK_ENGINE".to_owned();
        Err(EngineError::Cuda { call: "cuStreamSynchronize".to_owned(), reason })
    }
}

/// Lets this thread step back behind those that receive and control, for one that keeps a core busy.
/// Needs no permission.
pub fn step_back() {
    if let Err(error) = rustix::process::nice(STEP_BACK) {
        tracing::debug!("the engine's threads keep their priority: {error}");
    }
}

/// Prepares for every prompt, and infers once on nothing but grey, so that the first real inference is as quick as the
/// others.
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
    inference.prepare(&observation.images)?;
    let prompt = "warm up".to_owned();
    let request = Request { id: 0, observation, resized: Vec::new(), prompt, steering: None };
    inference.run(request).map(|_| ())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_is_broken_as_asked_for_and_from_then_on() {
        assert_eq!(Sabotage::parse("error:x").or(Sabotage::parse("20")), None);
        let sabotage = Sabotage::parse("error:20").unwrap();
        assert!(sabotage.strike(19).is_ok());
        let said = sabotage.strike(21).unwrap_err().to_string();
        assert!(said.starts_with("GPU: cuStreamSynchronize: ") && !said.contains('\n'), "{said}");
    }
}
