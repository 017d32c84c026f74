//! Real-time chunking as LeRobot recorded it (spec/PI05.md §12): guided in twelve ways, trained with three delays.

use std::{fs, path::Path};

use pi05_thor::{
    model::sampler::rtc::{PrefixSchedule, guidance_weight},
    verify::{Case, Comparison},
};
use serde_json::Value;

use super::{
    arrays,
    arrays::{Array, Arrays},
    case_file, engine, fixture, model, verify,
};

/// What issue 4 allows.
const ALLOWED: f64 = 2e-5;

fn comparisons(checkpoint: &str, case: &Path) -> Vec<Comparison> {
    let (model, mut engine) = (model(&fixture(checkpoint)), engine(&fixture(checkpoint)));
    let outcome = Case::read(case, &model).unwrap().run(&mut engine).unwrap();
    assert!(outcome.skipped.is_empty(), "{:?}", outcome.skipped);
    outcome.comparisons
}

fn recorded(file: &str) -> Arrays {
    arrays::read(&fixture(&format!("tiny/{file}.safetensors")))
}

fn json() -> Value {
    serde_json::from_str(&fs::read_to_string(fixture("tiny/rtc_guided.json")).unwrap()).unwrap()
}

#[test]
fn every_recorded_way_of_steering_is_reproduced() {
    for checkpoint in ["tiny", "lerobot_ckpt"] {
        for (file, ways) in [("rtc_guided", 13), ("rtc_trained", 4)] {
            let comparisons = comparisons(checkpoint, &fixture(&format!("tiny/{file}.safetensors")));
            assert_eq!(comparisons.iter().filter(|c| c.stage.ends_with("actions")).count(), ways);
            for stage in &comparisons {
                let allowed = if stage.stage.ends_with("weights") { 1e-6 } else { ALLOWED };
                assert!(stage.max <= allowed && stage.ok(), "{checkpoint} {file}: {stage:?}");
                assert!(stage.tolerance <= allowed, "{stage:?}: looser than asked for");
            }
        }
    }
}

#[test]
fn the_program_says_so() {
    for (file, stage) in [("rtc_guided", "exp.d2.h6.actions"), ("rtc_trained", "d5.actions")] {
        let ran = verify(&fixture("tiny"), &fixture(&format!("tiny/{file}.safetensors")));
        ran.assert_passed();
        assert_eq!(ran.verdict(stage), "ok");
    }
}

#[test]
fn the_leftovers_weights_are_lerobots() {
    let json = json();
    let vectors = json["prefix_weights"].as_object().unwrap();
    assert!(vectors.len() > 20, "{}", vectors.len());
    for (key, weights) in vectors {
        let parts: Vec<&str> = key.split('|').collect();
        let number = |i: usize| parts[i].parse::<usize>().unwrap();
        let schedule = PrefixSchedule::from_name(parts[0]).unwrap();
        let found = schedule.weights(number(1), number(2), number(3));
        let recorded: Vec<f64> = weights.as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect();
        assert_eq!(found.len(), recorded.len(), "{key}");
        for (found, recorded) in found.iter().zip(recorded) {
            assert!((f64::from(*found) - recorded).abs() < 1e-6, "{key}: {found} {recorded}");
        }
    }
    for (max, weights) in json["guidance_weight_by_max"].as_object().unwrap() {
        for (k, weight) in weights.as_array().unwrap().iter().enumerate() {
            let found = guidance_weight((1.0 - k as f64 / 10.0) as f32, max.parse().unwrap());
            assert!((f64::from(found) - weight.as_f64().unwrap()).abs() < 1e-5, "{max} {k}: {found}");
        }
    }
}

/// A recording in a folder of its own, with case a's inputs beside it, or inside.
struct Moved {
    dir: tempfile::TempDir,
    case: Arrays,
}

impl Moved {
    fn new(file: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(case_file("a"), dir.path().join("case_a_f32.safetensors")).unwrap();
        Self { dir, case: recorded(file) }
    }

    fn verify(&self) -> super::Ran {
        let path = self.dir.path().join("recorded.safetensors");
        arrays::write(&self.case, &path);
        verify(&fixture("tiny"), &path)
    }

    fn change(&mut self, key: &str, change: impl Fn(f32) -> f32) {
        let array = &self.case[key];
        let values: Vec<f32> = array.f32s().into_iter().map(change).collect();
        self.case.insert(key.into(), Array::f32(&array.shape.clone(), &values));
    }
}

#[test]
fn what_is_not_the_recorded_run_is_found() {
    let mut moved = Moved::new("rtc_guided");
    moved.verify().assert_passed();
    moved.change("linear.d2.h6.actions", |x| x + 3e-5);
    moved.verify().assert_failed("linear.d2.h6.actions");

    let mut moved = Moved::new("rtc_guided");
    moved.change("ones.d4.h5.weights", |w| w * 0.99);
    moved.verify().assert_failed("ones.d4.h5.weights");

    // Another leftover leads elsewhere, but for those that do not look at it.
    for (file, steered, free) in
        [("rtc_guided", "zeros.d2.h6.actions", "plain_actions"), ("rtc_trained", "d1.actions", "d0.actions")]
    {
        let mut moved = Moved::new(file);
        moved.change("prev_chunk_left_over", |x| x + 0.01);
        let ran = moved.verify();
        ran.assert_failed(steered);
        assert_eq!(ran.verdict(free), "ok");
    }

    // One way of steering under the name of another.
    let mut moved = Moved::new("rtc_trained");
    let d3 = moved.case["d3.actions"].clone();
    moved.case.insert("d2.actions".into(), d3);
    moved.verify().assert_failed("d2.actions");
}

#[test]
fn parameters_may_be_named_in_a_file_beside_and_inputs_may_be_inside() {
    let mut moved = Moved::new("rtc_guided");
    let beside = moved.dir.path().join("recorded.json");
    fs::copy(fixture("tiny/rtc_guided.json"), &beside).unwrap();
    moved.verify().assert_passed();
    let mut other = json();
    other["cases"]["linear.d2.h6"]["max_guidance_weight"] = 1.0.into();
    fs::write(&beside, other.to_string()).unwrap();
    moved.verify().assert_failed("linear.d2.h6.actions");
    fs::write(&beside, "{").unwrap();
    assert_refused(&moved, &["recorded.json", "JSON"]);
    fs::remove_file(beside).unwrap();

    fs::remove_file(moved.dir.path().join("case_a_f32.safetensors")).unwrap();
    assert_refused(&moved, &["recorded.safetensors", "in.noise", "case_a_f32.safetensors"]);
    let mut inputs = recorded("case_a_f32");
    inputs.retain(|key, _| key.starts_with("in.") || key.starts_with("raw.") || key == "times");
    moved.case.extend(inputs);
    moved.verify().assert_passed();
}

fn assert_refused(moved: &Moved, says: &[&str]) {
    let ran = moved.verify();
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
    assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
    for what in says {
        assert!(ran.stderr.contains(what), "{what:?} is not in: {}", ran.stderr);
    }
}

#[test]
fn a_recording_that_cannot_be_judged_is_refused() {
    let plain = recorded("rtc_guided")["plain_actions"].clone();
    for name in ["d8.actions", "cubic.d2.h6.actions", "linear.d2.actions", "d-1.actions", "some_actions"] {
        let mut moved = Moved::new("rtc_trained");
        moved.case.insert(name.into(), plain.clone());
        assert_refused(&moved, &["recorded.safetensors", name]);
    }
    let leftovers = [
        Array::f32(&[7, 9], &[0.0; 63]),
        Array::f32(&[0], &[]),
        Array::f32(&[1, 8], &[f32::NAN; 8]),
        Array::f32(&[], &[1.0]),
    ];
    for leftover in leftovers {
        let mut moved = Moved::new("rtc_trained");
        moved.case.insert("prev_chunk_left_over".into(), leftover);
        assert_refused(&moved, &["recorded.safetensors", "actions", "leftover"]);
    }
    let mut moved = Moved::new("rtc_trained");
    moved.case.insert("prev_chunk_left_over".into(), Array::f32(&[1025, 8], &[0.0; 8200]));
    assert_refused(&moved, &["recorded.safetensors", "prev_chunk_left_over", "at most 8192", "8200"]);
    let mut moved = Moved::new("rtc_trained");
    moved.case.extend((0..100).map(|i| (format!("linear.d{i}.h1.actions"), plain.clone())));
    assert_refused(&moved, &["recorded.safetensors", "at most 100 recorded actions", "found 104"]);
    let mut moved = Moved::new("rtc_trained");
    moved.case.retain(|key, _| !key.ends_with("actions"));
    assert_refused(&moved, &["recorded.safetensors", "prev_chunk_left_over", "none"]);
}
