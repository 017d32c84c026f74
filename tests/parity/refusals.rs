//! Cases that cannot be judged are refused in one line that names file and tensor; what is wrong never passes.

use std::{fs, path::PathBuf};

use safetensors::Dtype;
use tempfile::TempDir;

use super::{
    Ran, arrays,
    arrays::{Array, Arrays},
    case_file, fixture, pi05, verify,
};

/// Case a with a change, in a file of its own.
pub fn changed(change: impl FnOnce(&mut Arrays)) -> (TempDir, PathBuf) {
    let mut case = arrays::read(&case_file("a"));
    change(&mut case);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("changed.safetensors");
    arrays::write(&case, &path);
    (dir, path)
}

fn verify_changed(change: impl FnOnce(&mut Arrays)) -> Ran {
    let (_dir, path) = changed(change);
    verify(&fixture("tiny"), &path)
}

/// Exit code 1, nothing on stdout, and one line that says all of this.
pub fn assert_refused(ran: &Ran, says: &[&str]) {
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
    assert_eq!(ran.stderr.trim_end().lines().count(), 1, "{}", ran.stderr);
    for what in says {
        assert!(ran.stderr.contains(what), "{what:?} is not in: {}", ran.stderr);
    }
}

#[test]
fn an_incomplete_case_is_refused() {
    for tensor in ["actions", "times", "in.noise", "in.tokens", "in.token_mask"] {
        let ran = verify_changed(|case| drop(case.remove(tensor)));
        assert_refused(&ran, &["changed.safetensors", tensor, "none"]);
    }
    let ran = verify_changed(|case| case.retain(|key, _| !key.contains("image") || key.contains("mask")));
    assert_refused(&ran, &["changed.safetensors", "in.image.base_0_rgb"]);
    // openpi's bf16 runs were recorded without their inputs.
    let ran = verify(&fixture("tiny"), &fixture("tiny/case_a_bf16.safetensors"));
    assert_refused(&ran, &["case_a_bf16.safetensors", "in.tokens", "none"]);
}

#[test]
fn inputs_that_do_not_fit_the_network_are_refused() {
    let mut tokens = vec![2i64; 24];
    let with_token = |id: i64| {
        let mut tokens = tokens.clone();
        tokens[3] = id;
        verify_changed(|case| drop(case.insert("in.tokens".into(), Array::i64(&[1, 24], &tokens))))
    };
    for id in [512, 257_151, i64::MAX, -1] {
        assert_refused(&with_token(id), &["changed.safetensors", "in.tokens", "512 rows"]);
    }
    // Behind the mask nothing is read, so nothing can be wrong.
    tokens[20] = 600;
    let ran = verify_changed(|case| {
        case.insert("in.tokens".into(), Array::i64(&[1, 24], &tokens));
    });
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""), "judged, and other tokens give other actions");

    let changes = [
        ("in.noise", Array::f32(&[1, 10, 7], &[0.5; 70])),
        ("in.noise", Array::f32(&[1, 0, 8], &[])),
        ("in.noise", Array::f32(&[2, 5, 8], &[0.5; 80])),
        ("in.noise", Array::f32(&[80], &[0.5; 80])),
        ("in.tokens", Array::f32(&[1, 24], &[2.5; 24])),
        ("in.tokens", Array::i64(&[2, 12], &[2; 24])),
        ("in.token_mask", Array::u8(&[1, 23], vec![1; 23])),
        ("in.token_mask", Array::u8(&[1, 24], vec![2; 24])),
        ("raw.image_u8.base_0_rgb", Array::u8(&[56, 55, 3], vec![0; 56 * 55 * 3])),
        ("raw.image_u8.base_0_rgb", Array::f32(&[28, 28, 3], &[0.0; 28 * 28 * 3])),
        ("times", Array::f32(&[0], &[])),
        ("times", Array::f32(&[2, 5], &[0.5; 10])),
    ];
    for (tensor, array) in changes {
        let ran = verify_changed(|case| drop(case.insert(tensor.into(), array)));
        assert_refused(&ran, &["changed.safetensors", tensor, "expected", "found"]);
    }
    let ran =
        pi05(&["verify", "--checkpoint", "synth:tiny", case_file("a").to_str().unwrap()].map(str::as_ref));
    assert_refused(&ran, &["case_a_f32.safetensors", "raw.image_u8.base_0_rgb", "[224, 224, 3]"]);
}

#[test]
fn a_camera_without_a_clear_mask_is_refused() {
    let mask = "in.image_mask.base_0_rgb";
    let masks = [
        Array::f32(&[1], &[f32::NAN]),
        Array::f32(&[3], &[f32::NAN, 0.0, 0.0]),
        Array::u8(&[0], vec![]),
        Array::u8(&[1], vec![2]),
    ];
    for array in masks {
        let ran = verify_changed(|case| drop(case.insert(mask.into(), array)));
        assert_refused(&ran, &["changed.safetensors", mask, "expected", "found"]);
    }
    // Nobody said that it is not there.
    let ran = verify_changed(|case| case.retain(|key, _| !key.starts_with("in.image_mask.")));
    assert_refused(&ran, &["changed.safetensors", mask, "none"]);
    let ran = verify_changed(|case| case.retain(|key, _| !key.contains("image")));
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""), "judged: without any camera come other actions");
}

#[test]
fn a_case_beyond_all_measure_is_refused_before_anything_is_made_of_it() {
    let changes = [
        ("in.noise", Array::f32(&[1, 100_000, 8], &[0.5; 800_000])),
        ("in.tokens", Array::i64(&[1, 100_000], &[2; 100_000])),
        ("times", Array::f32(&[1001], &[0.5; 1001])),
    ];
    for (tensor, array) in changes {
        let ran = verify_changed(|case| drop(case.insert(tensor.into(), array)));
        assert_refused(&ran, &["changed.safetensors", tensor, "expected", "found"]);
    }
    let ran = verify_changed(|case| {
        case.extend((0..14).map(|i| (format!("in.image_mask.camera_{i}"), Array::u8(&[1], vec![0]))));
    });
    assert_refused(&ran, &["changed.safetensors", "at most 16 cameras, found 17"]);
}

#[test]
fn what_a_file_says_cannot_pass_for_a_verdict() {
    let ran = verify_changed(|case| {
        case.insert("x\n\u{1b}[31mok: 99 stages within tolerance".into(), Array::f32(&[1], &[0.0]));
        set(case, "actions", 0, 9.0);
    });
    ran.assert_failed("actions");
    assert!(!ran.stdout.contains('\u{1b}'), "{:?}", ran.stdout);
    assert!(ran.stdout.lines().all(|line| !line.starts_with("ok: ")), "{}", ran.stdout);
    assert!(ran.stdout.contains("x\\n"), "{}", ran.stdout);
}

#[test]
fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.safetensors");
    let whole = fs::read(case_file("a")).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert_refused(&verify(&fixture("tiny"), &path), &["damaged.safetensors"]);
    }
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_refused(&verify(&fixture("tiny"), &path), &["truncated", "tensor suffix.att_2d_mask"]);
    assert_refused(&verify(&fixture("tiny"), &dir.path().join("no.safetensors")), &["no.safetensors"]);
    assert_refused(&verify(dir.path(), &case_file("a")), &[dir.path().to_str().unwrap(), "no weights"]);
}

#[test]
fn what_is_not_a_number_fails() {
    for stage in ["actions", "step.4.v_t", "prefix.kv.1.k", "vision.layer.0.mlp.base_0_rgb", "times"] {
        let ran = verify_changed(|case| set(case, stage, 3, f32::NAN));
        ran.assert_failed(stage);
    }
    let ran = verify_changed(|case| set(case, "in.noise", 3, f32::NAN));
    ran.assert_failed("actions");
}

fn set(case: &mut Arrays, key: &str, element: usize, value: f32) {
    case.get_mut(key).unwrap().bytes[4 * element..][..4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn a_masked_slot_may_hold_anything_and_a_valid_one_may_not() {
    // Case a: the third camera is missing, slots 32 to 47; the last 7 of 24 prompt slots are padding.
    for (slot, is_masked) in
        [(31, false), (32, true), (47, true), (48, false), (64, false), (65, true), (71, true)]
    {
        let ran = verify_changed(|case| set(case, "prefix.kv.2.v", slot * 32 + 5, 100.0));
        if is_masked { ran.assert_passed() } else { ran.assert_failed("prefix.kv.2.v") }
    }
}

#[test]
fn a_stage_of_another_shape_fails() {
    let shapes: [(&str, &[usize]); 8] = [
        ("step.3.v_t", &[1, 10, 7]),
        ("actions", &[1, 5, 8]),
        ("actions", &[1, 8, 10]),
        ("prefix.embs", &[72 * 128]),
        ("prefix.kv.0.k", &[1, 1, 71, 32]),
        ("prefix.embs", &[1, 49, 128]), // the valid slots only
        ("prefix.pad_mask", &[1, 0]),
        ("suffix.embs", &[0]),
    ];
    for (stage, shape) in shapes {
        let ran = verify_changed(|case| {
            let values: Vec<f32> = case[stage].f32s()[..shape.iter().product()].to_vec();
            case.insert(stage.into(), Array::f32(shape, &values));
        });
        ran.assert_failed(stage);
        assert!(ran.stdout.contains(&format!("found {shape:?}  FAIL")), "{}", ran.stdout);
    }
    let bytes = Array::u8(&[1, 10, 64], vec![0; 640]);
    let ran = verify_changed(|case| {
        case.insert("suffix.embs".into(), Array { dtype: Dtype::F8_E4M3, ..bytes });
    });
    ran.assert_failed("suffix.embs");
    assert!(ran.stdout.contains("expected numbers, found F8_E4M3  FAIL"), "{}", ran.stdout);
    // Eleven steps where the times say ten: not a stage of this run.
    let ran = verify_changed(|case| drop(case.insert("step.10.v_t".into(), case["step.9.v_t"].clone())));
    assert_eq!(ran.code, 0);
    assert!(ran.stdout.contains("not compared") && ran.stdout.contains("step.10.v_t"), "{}", ran.stdout);
}

#[test]
fn other_times_than_the_samplers_fail() {
    let ran = verify_changed(|case| set(case, "times", 4, 0.61));
    ran.assert_failed("times");
    // Nine times: a run of nine steps, which ends elsewhere.
    let ran = verify_changed(|case| {
        let times = case["times"].f32s();
        case.insert("times".into(), Array::f32(&[9], &times[..9]));
    });
    ran.assert_failed("times");
    ran.assert_failed("actions");
}

#[test]
fn what_this_engine_cannot_do_is_refused_and_wrong_usage_is_told_apart() {
    let (checkpoint, case) = (fixture("tiny"), case_file("a"));
    let with = |args: &[&str]| {
        let all = ["verify", "--checkpoint", checkpoint.to_str().unwrap(), case.to_str().unwrap()];
        pi05(&all.iter().chain(args).map(|arg| arg.as_ref()).collect::<Vec<_>>())
    };
    with(&["--backend", "cpu", "--dtype", "f32"]).assert_passed();
    assert_refused(&with(&["--dtype", "bf16"]), &["--dtype bf16", "f32"]);
    assert_refused(&with(&["--dtype", "fp8"]), &["--dtype fp8", "f32"]);
    assert_refused(
        &with(&["--backend", "cpu", "--dtype", "fp8"]),
        &["no calibration", "pi05 calibrate --checkpoint"],
    );
    assert_refused(&with(&["--backend", "cuda"]), &["--backend cuda", "cpu"]);
    for wrong in [&["--dtype", "f64"][..], &["--backend"], &["--no-such-option"]] {
        let ran = with(wrong);
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{wrong:?}: {}", ran.stderr);
    }
    let lacking: [&[&str]; 3] =
        [&["verify"], &["verify", "--checkpoint", "synth:tiny"], &["verify", case.to_str().unwrap()]];
    for args in lacking {
        assert_eq!(pi05(&args.iter().map(|arg| arg.as_ref()).collect::<Vec<_>>()).code, 2, "{args:?}");
    }
}

#[test]
fn of_several_cases_one_that_fails_fails_all() {
    let (_dir, wrong) = changed(|case| set(case, "actions", 0, 9.0));
    let right = case_file("b");
    let ran = pi05(&[
        "verify".as_ref(),
        "--checkpoint".as_ref(),
        fixture("tiny").as_ref(),
        wrong.as_ref(),
        right.as_ref(),
    ]);
    ran.assert_failed("actions");
    assert!(ran.stdout.contains("FAIL: 1 of "), "{}", ran.stdout);
}
