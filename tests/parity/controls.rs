//! The second implementation against the recordings: right when left alone, found out in every way of being wrong.

use std::fs;

use serde_json::Value;

use super::{
    CAMERAS, CASES, arrays,
    arrays::{Arrays, largest_difference},
    case_file, fixture,
    naive::{Mutation, Naive, times},
    verify,
};

/// The recorded negative controls and what they change. `prefix_positions_arange` was recorded with `cumsum` replaced
/// by `arange`, which openpi's masks are made with, too: it makes the prefix causal besides moving positions.
const CONTROLS: [(&str, Mutation); 9] = [
    ("causal_action_tokens", Mutation::CausalActionTokens),
    ("no_sqrt_width_on_lang", Mutation::NoSqrtWidthOnLang),
    ("sqrt_width_on_images", Mutation::SqrtWidthOnImages),
    ("masks_ignored", Mutation::MasksIgnored),
    ("prefix_positions_arange", Mutation::CumsumIsArange),
    ("cos_before_sin", Mutation::CosBeforeSin),
    ("no_gate", Mutation::NoGate),
    ("rope_interleaved_rotate", Mutation::RopeInterleavedRotate),
    ("erf_gelu_gemma", Mutation::ErfGeluGemma),
];
/// Vision heads of the tiny network.
const HEADS: usize = 4;

/// A recorded case's inputs through the second implementation.
fn naive_case(recorded: &Arrays, mutation: Mutation) -> Arrays {
    let naive = Naive::new(&arrays::read(&fixture("tiny/model.safetensors")), HEADS).mutated(mutation);
    naive.case(recorded, &CAMERAS, &times(recorded["times"].shape[0], false))
}

/// How far a case's actions are from the recorded ones.
fn deviation(case: &Arrays, recorded: &Arrays) -> f64 {
    largest_difference(&case["actions"].values(), &recorded["actions"].values())
}

#[test]
fn the_second_implementation_agrees_with_the_recordings() {
    let dir = tempfile::tempdir().unwrap();
    for case in CASES {
        let recorded = arrays::read(&case_file(case));
        let naive = naive_case(&recorded, Mutation::None);
        let mut compared = 0;
        for (key, array) in &naive {
            let Some(expected) = recorded.get(key) else { continue };
            assert_eq!(array.shape, expected.shape, "{key}");
            // Masked slots included: both keep them, and mix everything there.
            let worst = largest_difference(&array.values(), &expected.values());
            assert!(worst <= 2e-5, "case {case}, {key}: {worst}");
            compared += 1;
        }
        assert!(compared > 30, "{compared} tensors");
        let path = dir.path().join("case.safetensors");
        arrays::write(&naive, &path);
        verify(&fixture("tiny"), &path).assert_passed();
    }
}

#[test]
fn every_negative_control_fails_by_as_much_as_recorded() {
    let meta: Value = serde_json::from_str(&fs::read_to_string(fixture("tiny/meta.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    for case in CASES {
        let recorded = arrays::read(&case_file(case));
        let controls = meta["cases"][case]["negative_controls"].as_object().unwrap();
        assert_eq!(controls.len(), CONTROLS.len(), "all of them are tried");
        for (name, mutation) in CONTROLS {
            let wrong = naive_case(&recorded, mutation);
            let (found, expected) = (deviation(&wrong, &recorded), controls[name].as_f64().unwrap());
            arrays::write(&wrong, &path);
            let ran = verify(&fixture("tiny"), &path);
            if expected == 0.0 {
                assert_eq!((case, name), ("b", "masks_ignored"), "the one where nothing is masked");
                ran.assert_passed();
            } else {
                ran.assert_failed("actions");
                let ratio = found / expected;
                assert!((0.98..1.02).contains(&ratio), "case {case}, {name}: {found}, recorded {expected}");
            }
        }
    }
}

/// Positions alone, with the prefix as bidirectional as it should be (§5.2: 0.2 to 0.5).
#[test]
fn masked_slots_must_not_advance_the_positions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("case.safetensors");
    for (case, moves) in [("a", true), ("b", false), ("c", true)] {
        let recorded = arrays::read(&case_file(case));
        let wrong = naive_case(&recorded, Mutation::PrefixPositionsArange);
        arrays::write(&wrong, &path);
        let ran = verify(&fixture("tiny"), &path);
        if moves {
            ran.assert_failed("actions");
            ran.assert_failed("prefix.position_ids");
            assert!((0.2..0.5).contains(&deviation(&wrong, &recorded)), "case {case}");
        } else {
            ran.assert_passed(); // nothing is masked
        }
    }
}
