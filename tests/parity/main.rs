//! The proof of numerical truth: the engine against recordings of the reference implementations, and against π0.5
//! written a second time.
//!
//! | module | promise |
//! |---|---|
//! | `recorded` | every recorded case passes `verify`, whatever layout and number format the weights are stored in |
//! | `controls` | every way of getting π0.5 wrong that was recorded is found, and is the one that was meant |
//! | `sweep` | the engine is right for any dimensions, masks and steps, through the whole loader |
//! | `end_to_end` | robot observations lead to the recorded robot actions |
//! | `determinism` | the same input gives the same bits |
//! | `refusals` | a case that cannot be judged is refused in one line; nothing wrong passes |
//! | `fp8` | fp8 emulated on the CPU: near the recordings, and refusals |
//! | `calibrate` | ranges for fp8 are of these weights and real frames |
//! | `rtc` | real-time chunking, guided and trained, is the recorded one |
//!
//! `cargo test --release --test parity -- --ignored` runs the full-size network too: 7 GB, most of a minute.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

mod arrays;
mod calibrate;
mod controls;
mod determinism;
mod end_to_end;
mod fp8;
mod naive;
mod recorded;
mod refusals;
mod rtc;
mod sweep;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use arrays::Arrays;
use pi05_thor::{
    engine::{Choice, Engine, probe::Tap},
    model::{ModelInput, Pixels, sampler::Sampler, sampler::TimeRounding, sampler::rtc::Rtc},
    pipeline::{Model, infer},
};

/// The recorded cases of fixtures/tiny.
const CASES: [&str; 3] = ["a", "b", "c"];
/// The cameras of the recorded cases.
const CAMERAS: [&str; 3] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb"];

/// A file or folder of the recorded truth.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name)
}

fn case_file(case: &str) -> PathBuf {
    fixture(&format!("tiny/case_{case}_f32.safetensors"))
}

/// A checkpoint folder, as far as its network goes.
fn model(checkpoint: &Path) -> Model {
    Model::open_network(checkpoint.to_str().unwrap()).unwrap()
}

/// The network of a checkpoint folder.
fn engine(checkpoint: &Path) -> Engine {
    model(checkpoint).load(Choice::Cpu, |_, _| {}).unwrap()
}

/// A case's recorded inputs, run without anybody looking on: actions as bits.
fn actions(engine: &mut Engine, case: &Arrays) -> Vec<u32> {
    let (input, noise, sampler) = inputs(case);
    let (actions, _) = infer(engine, &input, &noise, &sampler, &Rtc::Off, &mut Tap::none()).unwrap();
    actions.into_iter().map(f32::to_bits).collect()
}

/// What goes into the network for a case of openpi's, without its masked slots.
fn inputs(case: &Arrays) -> (ModelInput, Vec<f32>, Sampler) {
    let image = |camera: &&str| {
        let is_there = case[&format!("in.image_mask.{camera}")].is_set()[0];
        is_there.then(|| Pixels::U8(case[&format!("raw.image_u8.{camera}")].bytes.clone()))
    };
    let tokens = case["in.tokens"].values().into_iter().zip(case["in.token_mask"].is_set());
    let tokens = tokens.filter_map(|(token, is_valid)| is_valid.then_some(token as u32)).collect();
    let input = ModelInput { images: CAMERAS.iter().map(image).collect(), tokens };
    let sampler = Sampler::euler(case["times"].shape[0], TimeRounding::Accumulated);
    (input, case["in.noise"].f32s(), sampler)
}

/// What a command did.
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

fn pi05(args: &[&OsStr]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_pi05")).args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `pi05 verify`
fn verify(checkpoint: &Path, case: &Path) -> Ran {
    pi05(&["verify".as_ref(), "--checkpoint".as_ref(), checkpoint.as_ref(), case.as_ref()])
}

impl Ran {
    /// The verdict on a stage: the last word of its line.
    fn verdict(&self, stage: &str) -> &str {
        let mut lines = self.stdout.lines().filter(|line| line.split_whitespace().next() == Some(stage));
        let line =
            lines.next().unwrap_or_else(|| panic!("no line on {stage}:\n{}{}", self.stdout, self.stderr));
        line.split_whitespace().last().unwrap()
    }

    fn assert_passed(&self) {
        let last = self.stdout.lines().last().unwrap_or_default();
        assert!(self.code == 0 && last.starts_with("ok: "), "{}\n{}{}", self.code, self.stdout, self.stderr);
        assert!(!self.stdout.contains("FAIL"), "{}", self.stdout);
    }

    /// Out of tolerance on this stage, and says so.
    fn assert_failed(&self, stage: &str) {
        assert_eq!(self.verdict(stage), "FAIL", "{stage}");
        let last = self.stdout.lines().last().unwrap_or_default();
        assert!(
            self.code == 1 && last.starts_with("FAIL: "),
            "{}\n{}{}",
            self.code,
            self.stdout,
            self.stderr
        );
    }
}
