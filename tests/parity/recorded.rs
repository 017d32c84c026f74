//! The reference implementations' recordings.

use std::{
    fs,
    path::{Path, PathBuf},
};

use half::{bf16, f16};
use pi05_thor::{
    engine::{
        Choice,
        probe::{Probe, Tap},
    },
    model::sampler::rtc::Rtc,
    pipeline::infer,
    verify::{Case, Outcome},
};
use safetensors::Dtype;
use tempfile::TempDir;

use super::{
    CAMERAS, CASES, actions, arrays,
    arrays::{Array, Arrays, largest_difference},
    case_file, engine, fixture, inputs, model, verify,
};

/// The tiny network as each code base stores it.
const CHECKPOINTS: [&str; 2] = ["tiny", "lerobot_ckpt"];

fn outcome(checkpoint: &Path, case: &Path) -> Outcome {
    let mut engine = engine(checkpoint);
    Case::read(case, &model(checkpoint)).unwrap().run(&mut engine).unwrap()
}

/// The largest difference that the specification allows a stage (§10), whatever `verify` thinks.
fn allowed(stage: &str) -> f64 {
    match stage.rsplit('.').next().unwrap() {
        "pad_mask" | "position_ids" | "att_2d_mask" | "ar_mask" => 0.0,
        "times" => 1e-6,
        "v_t" => 1e-5,
        "x_t" | "actions" => 5e-5,
        _ => 2e-5,
    }
}

#[test]
fn every_recorded_case_is_reproduced_stage_by_stage() {
    for checkpoint in CHECKPOINTS {
        for case in CASES {
            let Outcome { comparisons, skipped, .. } = outcome(&fixture(checkpoint), &case_file(case));
            for stage in &comparisons {
                let allowed = allowed(&stage.stage);
                assert!(
                    stage.max <= allowed && stage.rms <= stage.max && stage.ok(),
                    "{checkpoint} {case}: {stage:?}"
                );
                assert!(stage.tolerance <= allowed, "{stage:?}: looser than the specification");
            }
            // Nothing that was recorded goes unseen, but for cameras that are masked.
            let recorded = arrays::read(&case_file(case));
            let masked = |camera: &&&str| !recorded[&format!("in.image_mask.{camera}")].is_set()[0];
            let masked: Vec<String> =
                CAMERAS.iter().filter(masked).map(|camera| format!("vision.projected.{camera}")).collect();
            assert_eq!(skipped, masked, "{checkpoint} {case}");
            let outputs = recorded.keys().filter(|k| !k.starts_with("in.") && !k.starts_with("raw.")).count();
            assert_eq!(comparisons.len() + masked.len(), outputs, "{checkpoint} {case}");
        }
    }
}

#[test]
fn the_program_says_so() {
    for checkpoint in CHECKPOINTS {
        for case in CASES {
            let ran = verify(&fixture(checkpoint), &case_file(case));
            ran.assert_passed();
            assert_eq!((ran.verdict("actions"), ran.verdict("step.0.v_t")), ("ok", "ok"));
        }
    }
}

#[test]
fn a_case_may_hold_images_as_floats_or_any_part_of_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    let whole = arrays::read(&case_file("a"));
    let mut floats = whole.clone();
    floats.retain(|key, _| !key.starts_with("raw."));
    arrays::write(&floats, &path);
    verify(&fixture("tiny"), &path).assert_passed();

    // One stage at a time: each is computed because it is recorded, not because another one is.
    let always = |key: &str| {
        ["in.", "raw."].iter().any(|input| key.starts_with(input)) || ["times", "actions"].contains(&key)
    };
    let (tiny, mut engine) = (model(&fixture("tiny")), engine(&fixture("tiny")));
    let masked = "vision.projected.right_wrist_0_rgb";
    for stage in whole.keys().filter(|key| !always(key) && *key != masked) {
        let mut only = whole.clone();
        only.retain(|key, _| always(key) || key == stage);
        arrays::write(&only, &path);
        let Outcome { comparisons, skipped, .. } =
            Case::read(&path, &tiny).unwrap().run(&mut engine).unwrap();
        assert!(skipped.is_empty() && comparisons.len() == 3, "{stage}: {skipped:?}");
        assert!(comparisons.iter().all(|c| c.ok()), "{stage}: {comparisons:?}");
    }
}

#[test]
fn rows_may_be_recorded_in_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    let whole = arrays::read(&case_file("c"));
    // Case c: the middle camera is missing, so slots 16 to 31 are masked.
    let rows = |name: &str, width: usize, rows: &[usize]| {
        let values = whole[name].f32s();
        let values: Vec<f32> =
            rows.iter().flat_map(|r| values[r * width..(r + 1) * width].to_vec()).collect();
        Array::f32(&[1, rows.len(), width], &values)
    };
    let every_7th: Vec<usize> = (0..72).step_by(7).collect();
    let parts = [
        ("prefix.embs[:20]", rows("prefix.embs", 128, &(0..20).collect::<Vec<_>>())),
        ("prefix.kv.2.k[::7]", rows("prefix.kv.2.k", 32, &every_7th)),
        ("vision.projected.base_0_rgb[:3]", rows("vision.projected.base_0_rgb", 128, &[0, 1, 2])),
        ("step.1.v_t[::4]", rows("step.1.v_t", 8, &[0, 4, 8])),
        ("suffix.embs[:8]", rows("suffix.embs", 64, &(0..8).collect::<Vec<_>>())),
    ];
    for (key, array) in &parts {
        let mut case = whole.clone();
        case.insert((*key).into(), array.clone());
        arrays::write(&case, &path);
        let ran = verify(&fixture("tiny"), &path);
        ran.assert_passed();
        assert_eq!(ran.verdict(key), "ok");

        // One row less is not the part that was named; neither is another row in its place.
        let width = array.shape[2];
        let fewer = [1, array.shape[1] - 1, width];
        case.insert((*key).into(), Array::f32(&fewer, &array.f32s()[width..]));
        arrays::write(&case, &path);
        verify(&fixture("tiny"), &path).assert_failed(key);
        let mut other = array.f32s();
        other.rotate_left(width);
        case.insert((*key).into(), Array::f32(&array.shape, &other));
        arrays::write(&case, &path);
        verify(&fixture("tiny"), &path).assert_failed(key);
    }
}

#[test]
fn rows_that_are_all_masked_are_not_called_compared() {
    let (dir, mut case) = (tempfile::tempdir().unwrap(), arrays::read(&case_file("a")));
    case.insert("in.image_mask.base_0_rgb".into(), Array::u8(&[1], vec![0]));
    case.insert("prefix.embs[:8]".into(), Array::f32(&[1, 8, 128], &[0.0; 8 * 128]));
    let path = dir.path().join("case.safetensors");
    arrays::write(&case, &path);
    let outcome = outcome(&fixture("tiny"), &path);
    assert!(outcome.skipped.iter().any(|key| key == "prefix.embs[:8]"), "{:?}", outcome.skipped);
    assert!(outcome.comparisons.iter().all(|c| c.stage != "prefix.embs[:8]"));
}

/// LeRobot's folder of the tiny network with these cameras, the first in whose order the features stand.
fn lerobot_with(cameras: [&str; 3]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("lerobot_ckpt/model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let config = fs::read_to_string(fixture("lerobot_ckpt/config.json")).unwrap();
    let config =
        CAMERAS.iter().enumerate().fold(config, |text, (i, old)| text.replace(old, &format!("@{i}@")));
    let config =
        cameras.iter().enumerate().fold(config, |text, (i, new)| text.replace(&format!("@{i}@"), new));
    fs::write(dir.path().join("config.json"), config).unwrap();
    dir
}

/// A recorded case whose first, second and third camera are called this.
fn renamed(case: &str, cameras: [&str; 3]) -> (TempDir, PathBuf) {
    let name = |key: &String| {
        let renames = CAMERAS.iter().zip(cameras);
        let found = renames.filter_map(|(old, new)| Some(format!("{}{new}", key.strip_suffix(old)?))).next();
        found.unwrap_or_else(|| key.clone())
    };
    let case: Arrays = arrays::read(&case_file(case)).iter().map(|(k, v)| (name(k), v.clone())).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    arrays::write(&case, &path);
    (dir, path)
}

#[test]
fn lerobots_cameras_are_in_the_checkpoints_order_whatever_they_are_called() {
    for cameras in [
        ["left", "right", "top"], // by name
        ["top", "left", "right"],
        ["zed", "mid", "arm"],
        ["right_wrist_0_rgb", "left_wrist_0_rgb", "base_0_rgb"], // openpi's names, and not its order
    ] {
        for case in ["a", "b"] {
            let (_dir, path) = renamed(case, cameras);
            let ran = verify(lerobot_with(cameras).path(), &path);
            ran.assert_passed();
            assert_eq!((ran.verdict("prefix.embs"), ran.verdict("actions")), ("ok", "ok"), "{cameras:?}");
        }
    }
    // The same case is another one for a checkpoint that has them in another order.
    let (_dir, path) = renamed("b", ["top", "left", "right"]);
    verify(lerobot_with(["left", "top", "right"]).path(), &path).assert_failed("prefix.embs");
}

#[test]
fn a_camera_that_lerobot_misses_has_the_last_slot() {
    // Case c is without its middle camera: openpi's slots 16 to 31, LeRobot's 32 to 47.
    let mut case = arrays::read(&case_file("c"));
    let mask = case["prefix.pad_mask"].values();
    assert!(mask[16..32].iter().all(|&bit| bit == 0.0) && mask[32..48].iter().all(|&bit| bit == 1.0));
    let slots: Vec<usize> = (0..16).chain(32..48).chain(16..32).chain(48..72).collect();
    case.remove("suffix.att_2d_mask"); // of slots, too
    for array in case.values_mut().filter(|array| array.shape.contains(&72)) {
        let row = array.bytes.len() / 72;
        let rows = slots.iter().flat_map(|slot| array.bytes[slot * row..(slot + 1) * row].to_vec());
        array.bytes = rows.collect();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    arrays::write(&case, &path);
    verify(&fixture("lerobot_ckpt"), &path).assert_passed();
    verify(&fixture("tiny"), &path).assert_failed("prefix.pad_mask");
    // Without the mask nobody but the checkpoint tells whose slots they are.
    case.remove("prefix.pad_mask");
    arrays::write(&case, &path);
    verify(&fixture("lerobot_ckpt"), &path).assert_passed();
    verify(&fixture("tiny"), &path).assert_failed("prefix.embs");
}

#[test]
fn looking_on_changes_nothing() {
    struct WantsAll(usize);
    impl Probe for WantsAll {
        fn wants(&self, _: &str) -> bool {
            true
        }
        fn record(&mut self, _: &str, _: &[f32]) {
            self.0 += 1;
        }
    }
    for case in CASES {
        let case = arrays::read(&case_file(case));
        let (input, noise, sampler) = inputs(&case);
        let mut probe = WantsAll(0);
        let mut tap = Tap::new(&mut probe);
        let (seen, _) =
            infer(&mut engine(&fixture("tiny")), &input, &noise, &sampler, &Rtc::Off, &mut tap).unwrap();
        let seen: Vec<u32> = seen.into_iter().map(f32::to_bits).collect();
        assert_eq!(seen, actions(&mut engine(&fixture("tiny")), &case));
        assert!(probe.0 > 100, "{} stages", probe.0);
    }
}

/// The tiny checkpoint with its weights stored otherwise.
fn stored(weights: &Arrays) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("tiny/config.json"), dir.path().join("config.json")).unwrap();
    arrays::write(weights, &dir.path().join("model.safetensors"));
    dir
}

#[test]
fn half_precision_weights_are_widened_exactly() {
    let weights = arrays::read(&fixture("tiny/model.safetensors"));
    let case = arrays::read(&case_file("a"));
    let exact = actions(&mut engine(&fixture("tiny")), &case);
    let to_bf16 = |x: f32| (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes());
    let to_f16 = |x: f32| (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes());
    type Round<'a> = &'a dyn Fn(f32) -> (f32, [u8; 2]);
    for (dtype, round) in [(Dtype::BF16, &to_bf16 as Round<'_>), (Dtype::F16, &to_f16)] {
        let (mut wide, mut narrow) = (weights.clone(), weights.clone());
        for (wide, narrow) in wide.values_mut().zip(narrow.values_mut()) {
            let rounded: Vec<(f32, [u8; 2])> = wide.f32s().into_iter().map(round).collect();
            *wide = Array::f32(&wide.shape, &rounded.iter().map(|r| r.0).collect::<Vec<_>>());
            narrow.dtype = dtype;
            narrow.bytes = rounded.iter().flat_map(|r| r.1).collect();
        }
        let of = |weights: &Arrays| actions(&mut engine(stored(weights).path()), &case);
        let (wide, narrow) = (of(&wide), of(&narrow));
        assert_eq!(wide, narrow, "{dtype:?}: the same numbers, stored in 4 bytes or in 2");
        let moved = largest_difference(&floats(&narrow), &case["actions"].values());
        assert!(
            narrow != exact && moved < 5e-2,
            "{dtype:?}: rounding the weights moves the actions by {moved}"
        );
    }
}

#[test]
fn where_the_weights_lie_changes_nothing() {
    let case = arrays::read(&case_file("b"));
    // One more blank at the end of the header: no tensor lies at a multiple of its element any more.
    let bytes = fs::read(fixture("tiny/model.safetensors")).unwrap();
    let (length, rest) = bytes.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap());
    let (header, data) = rest.split_at(length as usize);
    let dir = stored(&Arrays::new());
    let moved = [&(length + 1).to_le_bytes(), header, b" ", data].concat();
    fs::write(dir.path().join("model.safetensors"), moved).unwrap();
    let expected = actions(&mut engine(&fixture("tiny")), &case);
    assert_eq!(actions(&mut engine(dir.path()), &case), expected);
    assert_eq!(actions(&mut engine(&fixture("lerobot_ckpt")), &case), expected, "LeRobot's layout");
}

fn floats(bits: &[u32]) -> Vec<f64> {
    bits.iter().map(|&b| f32::from_bits(b).into()).collect()
}

#[test]
fn the_full_size_recording_fits_the_full_size_network() {
    assert!(Case::read(&fixture("full_f32.safetensors"), &model(Path::new("synth:full"))).is_ok());
}

#[test]
#[ignore = "needs 7 GB of memory, and a release build to end within a minute"]
fn the_full_size_network_gives_the_recorded_actions() {
    let model = model(Path::new("synth:full"));
    let case = Case::read(&fixture("full_f32.safetensors"), &model).unwrap();
    let Outcome { comparisons, skipped, .. } =
        case.run(&mut model.load(Choice::Cpu, |_, _| {}).unwrap()).unwrap();
    for stage in &comparisons {
        assert!(stage.ok(), "{stage:?}");
    }
    assert_eq!(skipped, ["bf16.actions"]);
    let actions = comparisons.iter().find(|c| c.stage == "actions").unwrap();
    assert!(actions.max <= 1e-4, "{actions:?}");
}
