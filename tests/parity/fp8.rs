//! fp8, emulated on the CPU: near the recordings; refused in one line without a calibration that fits.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use super::{Ran, case_file, fixture, pi05, refusals::assert_refused};

fn run(args: &[&str]) -> Ran {
    pi05(&args.iter().map(AsRef::as_ref).collect::<Vec<_>>())
}

/// A copy of the tiny checkpoint, calibrated on a case.
fn calibrated(case: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("tiny")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_file() && !name.starts_with("case_") && !name.starts_with("rtc") {
            fs::copy(&path, dir.path().join(name)).unwrap();
        }
    }
    let (checkpoint, case) = (dir.path().to_str().unwrap(), case_file(case));
    let ran =
        run(&["calibrate", "--backend", "cpu", "--checkpoint", checkpoint, "--case", case.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let path = dir.path().join("calibration.safetensors");
    assert!(path.exists());
    (dir, path)
}

fn verify(checkpoint: &Path, case: &str, recipe: &str) -> Ran {
    let case = case_file(case);
    let at = checkpoint.to_str().unwrap();
    let fp8 = ["verify", "--backend", "cpu", "--dtype", "fp8", "--recipe", recipe, "--checkpoint", at];
    run(&[&fp8[..], &[case.to_str().unwrap()]].concat())
}

/// `relative mean square error 0.0110 %`
fn error(ran: &Ran) -> f64 {
    let (_, rest) = ran.stdout.split_once("relative mean square error ").unwrap();
    rest.split_once(" %").unwrap().0.parse().unwrap()
}

#[test]
fn chunks_stay_near_the_recorded_ones_and_a_finer_recipe_nearer() {
    for case in ["a", "b", "c"] {
        let (dir, _) = calibrated(case);
        let of = |recipe| {
            let ran = verify(dir.path(), case, recipe);
            assert_eq!(ran.code, 0, "{case} {recipe}: {}{}", ran.stdout, ran.stderr);
            assert!(ran.stdout.contains("(cpu fp8, "), "{}", ran.stdout);
            error(&ran)
        };
        let [fast, balanced, exact] = ["fast", "balanced", "exact"].map(of);
        assert!(exact < balanced && balanced <= fast && fast < 0.1, "{case}: {exact} {balanced} {fast}");
        assert!(fast > 1e-4, "e4m3 is not f32");
    }
}

#[test]
fn a_calibration_that_does_not_fit_is_refused() {
    let (dir, path) = calibrated("a");
    let whole = fs::read(&path).unwrap();
    let refused = |bytes: &[u8], says: &[&str]| {
        fs::write(&path, bytes).unwrap();
        assert_refused(&verify(dir.path(), "a", "balanced"), &[says, &["calibration.safetensors"]].concat());
    };
    for end in [0, 7, 8, 100, whole.len() - 1] {
        refused(&whole[..end], &["expected a calibration", "pi05 calibrate"]);
    }
    // Another name of the same length: a range, or a layer's error, is missing.
    let renamed = |from: &str, to: &str| {
        let mut bytes = whole.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    let (from, to) = ("\"prefix.layer.0.hidden\"", "\"prefix.layer.0.hiddem\"");
    refused(&renamed(from, to), &["prefix.layer.0.hidden", "pi05 calibrate"]);
    let (from, to) = ("\"error.vision.layer.1\"", "\"error.vision.layer.9\"");
    refused(&renamed(from, to), &["vision.layer.1", "pi05 calibrate"]);
    // Not a number, or none that a range can be.
    for value in [f32::NAN, f32::INFINITY, -1.0] {
        let mut bytes = whole.clone();
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&value.to_le_bytes());
        refused(&bytes, &["no positive number", "pi05 calibrate"]);
    }
    fs::remove_file(&path).unwrap();
    let said = ["no calibration", "pi05 calibrate --checkpoint"];
    assert_refused(&verify(dir.path(), "a", "balanced"), &said);

    let (_other, theirs) = calibrated("b");
    fs::copy(theirs, &path).unwrap();
    assert_eq!(verify(dir.path(), "a", "balanced").code, 0, "the same weights");
    fs::write(&path, &whole).unwrap();
    let ran = verify(dir.path(), "a", "quick");
    assert_refused(&ran, &["recipe \"quick\"", "balanced, fast, exact"]);
}

#[test]
fn the_report_has_every_layer_stage_and_reason() {
    let (dir, _) = calibrated("a");
    let recipe = dir.path().join("mine.yaml");
    let all =
        "vision: {matrices: [qkv, out, fc1, fc2], bf16_layers: [1]}\nprefix: {matrices: [gate_up, down]}";
    fs::write(&recipe, format!("error_bound: 1.0e-9\n{all}")).unwrap();
    let report = |recipe: &str| {
        let (checkpoint, case) = (dir.path().to_str().unwrap(), case_file("a"));
        let case = case.to_str().unwrap();
        let args = ["quantize-report", "--backend", "cpu", "--checkpoint", checkpoint, "--case", case];
        let ran = run(&[&args[..], &["--recipe", recipe]].concat());
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
    };
    let balanced = report("balanced");
    for what in [
        "vision.layer.0",
        "prefix.layer.2",
        "\nvision  ",
        "\nprefix  ",
        "chunk, emulated on the CPU",
        "5 of 5 layers",
    ] {
        assert!(balanced.contains(what), "{what:?} is not in {balanced}");
    }
    let mine = report(recipe.to_str().unwrap());
    assert!(mine.contains("leaves it in bf16") && mine.contains("above the bound of 1.0e-9"), "{mine}");
    assert!(mine.contains("0 of 5 layers") && mine.contains("cosine 1.0000000"), "{mine}");
    // Without a calibration it makes its own.
    fs::remove_file(dir.path().join("calibration.safetensors")).unwrap();
    assert!(report("fast").contains("ranges of these 1 frames"));
    assert!(!dir.path().join("calibration.safetensors").exists());
}

#[test]
fn wrong_usage_is_told() {
    let (tiny, case) = (fixture("tiny"), case_file("a"));
    let args = ["calibrate", "--checkpoint", tiny.to_str().unwrap(), "--case", case.to_str().unwrap()];
    for wrong in
        [["--samples", "0"], ["--percentile", "0"], ["--percentile", "100.1"], ["--percentile", "nan"]]
    {
        let ran = run(&[&args[..], &wrong].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong:?}: {}", ran.stderr);
    }
    assert_eq!(run(&args[..3]).code, 2, "no frames");
}
