//! What `pi05 calibrate` measures is of these weights and these frames, and frames that tell nothing are refused.

use std::{fs, path::Path};

use pi05_thor::{
    model::names,
    pipeline::{
        Model,
        calibrated::{self, Calibrated},
    },
};

use super::{
    Ran, arrays, case_file, fixture, pi05,
    refusals::{assert_refused, changed},
};

fn calibrate(checkpoint: &str, inputs: [&str; 2], out: &Path, more: &[&str]) -> Ran {
    let mut args = vec!["calibrate", "--backend", "cpu", "--checkpoint", checkpoint];
    args.extend(inputs);
    args.extend(["--out", out.to_str().unwrap()]);
    args.extend(more);
    pi05(&args.iter().map(AsRef::as_ref).collect::<Vec<_>>())
}

fn read(checkpoint: &str, file: &Path) -> Result<Calibrated, calibrated::CalibrationError> {
    let model = Model::open_network(checkpoint).unwrap();
    let fingerprint = model.weights(|_, _| {}).unwrap().fingerprint(&model.dims().unwrap()).unwrap();
    calibrated::read(file, &fingerprint)
}

#[test]
fn every_tensor_that_fp8_rounds_has_a_range_of_its_own_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (tiny, out) = (fixture("tiny"), dir.path().join("calibration.safetensors"));
    let (tiny, case) = (tiny.to_str().unwrap(), case_file("a"));
    let run = |percentile| {
        let ran = calibrate(tiny, ["--case", case.to_str().unwrap()], &out, &["--percentile", percentile]);
        assert_eq!((ran.code, ran.stdout.lines().count()), (0, 2), "{}", ran.stderr);
        assert!(ran.stdout.contains("1 frames (cpu f32)"), "{}", ran.stdout);
        read(tiny, &out).unwrap()
    };
    let (all, most) = (run("100"), run("99"));
    assert_eq!(all, run("100"), "the same frames give the same ranges");
    let dims = Model::open_network(tiny).unwrap().dims().unwrap();
    let names = names::quantised(&dims);
    assert_eq!(all.errors.len(), dims.vision.layers + dims.language.layers);
    assert!(all.errors.values().all(|&error| 0.0 < error && error < 0.01), "{:?}", all.errors);
    let (all, most) = (all.calibration, most.calibration);
    assert_eq!(all.ranges().len(), names.len());
    for name in names {
        assert!(most.range(&name).unwrap() <= all.range(&name).unwrap(), "{name}");
    }
    assert!(names::quantised(&dims).iter().any(|name| most.range(name).unwrap() < all.range(name).unwrap()));

    let said = read("synth:tiny", &out).unwrap_err().to_string();
    assert!(said.contains("calibration.safetensors: calibrated for a checkpoint"), "{said}");
}

#[test]
fn frames_of_a_bag_are_spread_over_it() {
    let dir = tempfile::tempdir().unwrap();
    let bag = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bags/aloha_sim");
    let ranges = |samples: &str| {
        let out = dir.path().join(samples);
        let ran = calibrate("synth:tiny", ["--bag", bag.to_str().unwrap()], &out, &["--samples", samples]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert!(ran.stdout.contains(&format!("{samples} frames")), "{}", ran.stdout);
        read("synth:tiny", &out).unwrap().calibration
    };
    let (one, three) = (ranges("1"), ranges("3"));
    assert!(one.ranges().values().zip(three.ranges().values()).any(|(one, three)| one != three));
}

#[test]
fn only_a_regular_file_is_replaced_and_nothing_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, beside) = (dir.path().join("ranges"), dir.path().join("ranges.part"));
    fs::create_dir(&out).unwrap();
    fs::write(&beside, "another's").unwrap();
    let calibrate = || {
        let case = case_file("a");
        calibrate(fixture("tiny").to_str().unwrap(), ["--case", case.to_str().unwrap()], &out, &[])
    };
    assert_refused(&calibrate(), &["ranges: expected a regular file"]);
    fs::remove_dir(&out).unwrap();
    assert_eq!(calibrate().code, 0);
    assert_eq!(fs::read(&beside).unwrap(), b"another's");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn weights_that_are_no_numbers_are_named_as_the_cause() {
    let case = case_file("a");
    let damaged = |tensor: &str, command: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        fs::copy(fixture("tiny/config.json"), dir.path().join("config.json")).unwrap();
        let mut weights = arrays::read(&fixture("tiny/model.safetensors"));
        weights.get_mut(tensor).unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        arrays::write(&weights, &dir.path().join("model.safetensors"));
        let mut args = vec![command[0], "--checkpoint", dir.path().to_str().unwrap()];
        args.extend(["--case", case.to_str().unwrap(), "--backend", "cpu"]);
        args.extend(&command[1..]);
        let ran = pi05(&args.iter().map(AsRef::as_ref).collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stderr.trim_end().lines().count()), (1, 1), "{}", ran.stderr);
        for what in [dir.path().to_str().unwrap(), "the network gives NaN", "weights"] {
            assert!(ran.stderr.contains(what), "{what:?} is not in: {}", ran.stderr);
        }
        assert!(!ran.stdout.contains("NaN"), "{}", ran.stdout);
    };
    let prefix = "paligemma_with_expert.paligemma.model.language_model.layers.0.mlp.gate_proj.weight";
    let expert = "action_out_proj.bias";
    damaged(prefix, &["calibrate"]);
    damaged(prefix, &["quantize-report"]);
    damaged(expert, &["quantize-report"]);
    damaged(expert, &["steps", "--steps", "1", "--solvers", "euler", "--schedules", "linear"]);
}

#[test]
fn inputs_that_are_no_numbers_are_not_blamed_on_the_weights() {
    let (_dir, path) = changed(|case| {
        case.get_mut("in.noise").unwrap().bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let (tiny, case) = (fixture("tiny"), path.to_str().unwrap());
    for command in ["steps", "quantize-report"] {
        let args = [command, "--checkpoint", tiny.to_str().unwrap(), "--case", case, "--backend", "cpu"];
        assert_refused(&pi05(&args.map(AsRef::as_ref)), &["changed.safetensors: in.noise", "found NaN"]);
    }
}

#[test]
fn frames_that_tell_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("calibration.safetensors");
    let refused = |change: fn(&str, &mut Vec<u8>), says: &[&str]| {
        let (_dir, path) = changed(|case| {
            case.iter_mut().for_each(|(name, array)| change(name, &mut array.bytes));
        });
        let ran = calibrate(fixture("tiny").to_str().unwrap(), ["--case", path.to_str().unwrap()], &out, &[]);
        assert_refused(&ran, says);
        assert!(!out.exists());
    };
    refused(
        |name, bytes| {
            if name.starts_with("raw.image_u8.") || name.starts_with("in.image.") {
                bytes.fill(0);
            }
        },
        &["changed.safetensors: frame 1: a camera image is all one colour"],
    );
    refused(
        |name, bytes| {
            if name.starts_with("in.image_mask.") {
                bytes.fill(0);
            }
        },
        &["changed.safetensors: frame 1: no camera image"],
    );
}
