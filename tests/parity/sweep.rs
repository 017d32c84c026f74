//! Any dimensions, masks and steps: the engine, with weights from a folder that was written and opened again, against
//! the second implementation with the same weights straight from their definition.

use std::{io::Write, path::Path};

use half::{bf16, f16};
use pi05_thor::{
    model::{
        dims::{Dims, GemmaDims, Periods, VisionDims},
        names, synth,
        tensors::{Dtype, TOKEN_EMBEDDING},
    },
    policy::{
        checkpoint::{
            ConfigHints, Layout,
            write::{NewCheckpoint, NewTensor, write_checkpoint},
        },
        statistics::Statistics,
    },
    verify::Case,
};
use proptest::{
    prelude::*,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

use super::{
    arrays,
    arrays::{Array, Arrays, largest_difference},
    engine, model,
    naive::{Naive, times},
};

/// Networks that are tried.
const NETWORKS: u32 = 40;
/// Slots in openpi's order, which comes before the alphabet's, and one of the robot's own.
const CAMERAS: [&str; 4] = ["base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb", "a_fourth"];

#[derive(Clone, Debug)]
struct Trial {
    dims: Dims,
    dtype: Dtype,
    layout: Layout,
    cameras: Vec<bool>,
    /// Prompt slots: token and whether it is valid. Holes are allowed.
    prompt: Vec<(usize, bool)>,
    steps: usize,
    lerobot_times: bool,
}

fn trials() -> impl Strategy<Value = Trial> {
    let vision =
        (prop_oneof![Just(7usize), Just(14)], 1..=4usize, 1..=3usize, 1..=4usize, 5..=12usize, 5..=40usize)
            .prop_map(|(patch, grid, layers, heads, head_dim, mlp)| VisionDims {
                image: grid * patch,
                patch,
                width: heads * head_dim,
                layers,
                heads,
                mlp,
            });
    let gemma = |width: BoxedStrategy<usize>| {
        (width, 5..=50usize).prop_map(|(width, mlp)| GemmaDims {
            width,
            layers: 0,
            heads: 0,
            head_dim: 0,
            mlp,
        })
    };
    let language = gemma((9..=48usize).boxed());
    let expert = gemma((4..=20usize).prop_map(|half| 2 * half).boxed());
    let shared = (1..=3usize, 1..=8usize, (2..=10usize).prop_map(|half| 2 * half));
    let sizes = (2..=300usize, 1..=9usize, 1..=20usize, 1..=12usize);
    let dims = (vision, language, expert, shared, sizes).prop_map(
        |(vision, language, expert, (layers, heads, head_dim), (vocab, action_dim, horizon, max_tokens))| {
            Dims {
                vision,
                language: GemmaDims { layers, heads, head_dim, ..language },
                expert: GemmaDims { layers, heads, head_dim, ..expert },
                vocab,
                action_dim,
                horizon,
                max_tokens,
                periods: Periods::OFFICIAL,
            }
        },
    );
    // Only LeRobot's files can tell of others.
    let other = Just(Periods { min: 0.01, max: 2.5 });
    let layout = prop_oneof![
        Just((Layout::OpenPi, Periods::OFFICIAL)),
        Just((Layout::LeRobot, Periods::OFFICIAL)),
        other.prop_map(|periods| (Layout::LeRobot, periods)),
    ];
    let dtype = prop_oneof![Just(Dtype::F32), Just(Dtype::BF16), Just(Dtype::F16)];
    let inputs = |dims: Dims| {
        let cameras =
            prop::collection::vec(any::<bool>(), 1..=4).prop_filter("one valid", |c| c.contains(&true));
        let prompt = prop::collection::vec((0..dims.vocab, any::<bool>()), dims.max_tokens);
        (Just(dims), cameras, prompt)
    };
    (dims.prop_flat_map(inputs), dtype, layout, 1..=12usize, any::<bool>()).prop_map(
        |((dims, cameras, prompt), dtype, (layout, periods), steps, lerobot_times)| Trial {
            dims: Dims { periods, ..dims },
            dtype,
            layout,
            cameras,
            prompt,
            steps,
            lerobot_times,
        },
    )
}

impl Trial {
    /// Every tensor of the network, and the norm that inference does not use.
    fn tensors(&self) -> Vec<NewTensor> {
        let mut list = names::required(&self.dims);
        list.push((names::language_final_norm(), vec![self.dims.language.width]));
        list.into_iter().map(|(name, shape)| NewTensor { name, dtype: self.dtype, shape }).collect()
    }

    fn elements(&self, tensor: &NewTensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.bytes().unwrap() as usize];
        synth::fill(&tensor.name, &tensor.shape, tensor.dtype, 0, &mut bytes);
        bytes
    }

    fn write(&self, folder: &Path) {
        let hints = ConfigHints {
            vision_heads: Some(self.dims.vision.heads),
            max_token_len: Some(self.dims.max_tokens),
            action_horizon: Some(self.dims.horizon),
            action_dim: Some(self.dims.action_dim),
            periods: Some(self.dims.periods),
            ..ConfigHints::default()
        };
        let new = NewCheckpoint {
            layout: self.layout,
            tensors: &self.tensors(),
            hints: &hints,
            cameras: &self.cameras(),
            image_side: self.dims.vision.image,
            statistics: &Statistics::unit(3, self.dims.action_dim),
            asset_id: "any",
            tokenizer: None,
        };
        let fill = |tensor: &NewTensor, file: &mut dyn Write| file.write_all(&self.elements(tensor));
        write_checkpoint(folder, &new, fill, &mut |_, _| {}).unwrap();
    }

    fn naive(&self) -> Naive {
        let mut weights = Arrays::new();
        for tensor in self.tensors() {
            let bytes = self.elements(&tensor);
            let values: Vec<f32> = match self.dtype {
                Dtype::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
                Dtype::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).into()).collect(),
                Dtype::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).into()).collect(),
            };
            let name = match tensor.name.as_str() {
                TOKEN_EMBEDDING => "paligemma_with_expert.paligemma.lm_head.weight".to_owned(),
                name => name.to_owned(),
            };
            weights.insert(name, Array::f32(&tensor.shape, &values));
        }
        let Periods { min, max } = self.dims.periods;
        Naive::new(&weights, self.dims.vision.heads).with_periods([min, max])
    }

    fn case(&self, given: &Arrays) -> Arrays {
        self.naive().case(given, &self.cameras(), &times(self.steps, self.lerobot_times))
    }

    fn cameras(&self) -> Vec<&'static str> {
        CAMERAS[..self.cameras.len()].to_vec()
    }

    /// Inputs as a case holds them. Masked cameras have pixels, and masked slots tokens, like any other.
    fn given(&self) -> Arrays {
        let mut given = Arrays::new();
        let side = self.dims.vision.image;
        for (camera, &is_there) in CAMERAS.iter().zip(&self.cameras) {
            let pixels = synth::bytes(camera, side * side * 3);
            given.insert(format!("raw.image_u8.{camera}"), Array::u8(&[side, side, 3], pixels));
            given.insert(format!("in.image_mask.{camera}"), Array::bits(&[1], [is_there]));
        }
        let (ids, mask): (Vec<i64>, Vec<bool>) = self.prompt.iter().map(|&(id, m)| (id as i64, m)).unzip();
        given.insert("in.tokens".into(), Array::i64(&[1, ids.len()], &ids));
        given.insert("in.token_mask".into(), Array::bits(&[1, ids.len()], mask));
        let (horizon, action_dim) = (self.dims.horizon, self.dims.action_dim);
        // Sums of bytes: about normal.
        let bytes = synth::bytes("noise", horizon * action_dim * 12);
        let normal = |b: &[u8]| b.iter().map(|&b| f32::from(b) / 127.5 - 1.0).sum::<f32>() / 2.0;
        let noise: Vec<f32> = bytes.chunks(12).map(normal).collect();
        given.insert("in.noise".into(), Array::f32(&[1, horizon, action_dim], &noise));
        given
    }
}

/// Whether the last bit of the noise moves a velocity so far that agreement would be luck. Very narrow networks do.
fn amplifies_rounding(trial: &Trial, case: &Arrays) -> bool {
    let mut given = trial.given();
    let next: Vec<f32> = given["in.noise"].f32s().iter().map(|x| f32::from_bits(x.to_bits() + 1)).collect();
    let shape = given["in.noise"].shape.clone();
    given.insert("in.noise".into(), Array::f32(&shape, &next));
    let moved = trial.case(&given);
    let steps = case.keys().filter(|key| key.ends_with(".v_t"));
    steps.into_iter().any(|key| largest_difference(&case[key].values(), &moved[key].values()) > 5e-6)
}

#[test]
fn any_network_and_any_masks_agree_with_the_second_implementation() {
    let config = ProptestConfig { cases: NETWORKS, failure_persistence: None, ..ProptestConfig::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng)
        .run(&trials(), |trial| {
            let dir = tempfile::tempdir().unwrap();
            let checkpoint = dir.path().join("checkpoint");
            trial.write(&checkpoint);
            let mut engine = engine(&checkpoint);
            prop_assert_eq!(engine.dims(), &trial.dims);

            let naive = trial.case(&trial.given());
            prop_assume!(!amplifies_rounding(&trial, &naive));
            let path = dir.path().join("case.safetensors");
            arrays::write(&naive, &path);
            let outcome = Case::read(&path, &model(&checkpoint)).unwrap().run(&mut engine).unwrap();
            for stage in &outcome.comparisons {
                prop_assert!(stage.max <= 2e-5, "{:?}", stage);
            }
            let is_masked = |key: &String| key.starts_with("vision.projected.");
            prop_assert!(outcome.skipped.iter().all(is_masked), "{:?}", outcome.skipped);
            let actions = outcome.comparisons.last().unwrap();
            prop_assert_eq!(&actions.stage, "actions");
            // The actions are worth comparing: neither nothing nor just the noise.
            let moved = largest_difference(&naive["actions"].values(), &naive["in.noise"].values());
            prop_assert!(moved > 0.1 && moved < 100.0, "{}", moved);
            Ok(())
        })
        .unwrap();
}
