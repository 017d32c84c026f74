//! How much is allocated, and which of it the tensors of a TensorRT stage lie in. Numbers only: needs no GPU.

use super::expert::ACTIONS;
use super::prefix::Layout;
use crate::engine::tensorrt::boundary::Place;
use crate::engine::tensorrt::graph::Type;
use crate::engine::tensorrt::stages::{Sizes, Stage};
use crate::model::dims::Dims;

/// Cameras that there is always room for.
const CAMERAS: usize = 3;
/// Prompt tokens that there is always room for.
const TOKENS: usize = 200;

/// What is allocated for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Images at once.
    pub cameras: usize,
    /// Prompt tokens.
    pub tokens: usize,
    /// What stages that are not ours are fixed to.
    pub fixed: Option<Sizes>,
}

impl Room {
    /// For a model with so many cameras, and for the shapes of stages that are not ours.
    pub fn new(dims: &Dims, cameras: usize, fixed: Option<Sizes>) -> Self {
        let (fixed_cameras, prompt) = fixed.map_or((0, 0), |sizes| (sizes.cameras, sizes.prompt));
        Self {
            cameras: cameras.max(CAMERAS).max(fixed_cameras),
            tokens: dims.max_tokens.max(prompt).next_multiple_of(8).max(TOKENS),
            fixed,
        }
    }

    /// Most cameras that an observation may have.
    pub fn most_cameras(&self) -> usize {
        self.fixed.map_or(self.cameras, |sizes| sizes.cameras)
    }

    /// Longest prompt.
    pub fn most_tokens(&self) -> usize {
        self.fixed.map_or(self.tokens, |sizes| sizes.prompt)
    }

    /// Rows of features, and behind them room for the prompt's: what a prefix reads.
    pub fn rows(&self, dims: &Dims) -> usize {
        self.cameras * dims.vision.tokens() + self.tokens
    }

    /// Keys of the prefix and of the action tokens.
    pub fn keys(&self, dims: &Dims) -> usize {
        self.rows(dims) + ACTIONS
    }

    /// Keys that there are rows for; a multiple of 128.
    pub fn capacity(&self, dims: &Dims) -> usize {
        self.keys(dims).next_multiple_of(128)
    }

    /// Pixels' values of one set of images.
    pub fn pixels(&self, dims: &Dims) -> usize {
        self.cameras * dims.vision.image * dims.vision.image * 3
    }

    /// How a chunk lies in memory. `bucketed`: prompts of similar lengths alike; else all of them.
    pub fn layout(&self, image_rows: usize, tokens: usize, bucketed: bool) -> Layout {
        let most = self.most_tokens();
        Layout::new(image_rows, if bucketed { tokens } else { most }, most.next_multiple_of(8))
    }

    /// Where the tensors of a stage of these sizes lie: the table that [`super::foreign`] binds by. `trained`: of a
    /// denoise stage that takes clean actions.
    pub fn places(&self, stage: Stage, dims: &Dims, sizes: &Sizes, trained: bool) -> Vec<Place> {
        let (lm, ex, side) = (&dims.language, &dims.expert, dims.vision.image);
        let (prefix, half) = (sizes.prefix(dims), lm.head_dim / 2);
        let features = self.rows(dims) * lm.width * 4;
        let tables = self.capacity(dims) * half * 4;
        let keys = self.capacity(dims) * lm.head_dim * 2;
        let table = |rows, bytes| {
            ["cos", "sin"].map(|name| Place::read(name, Type::F32, &[rows, half], bytes)).to_vec()
        };
        let mask = Place::read("mask", Type::F32, &[1, prefix], prefix * 4);
        let cache = |place: fn(String, Type, &[usize], usize) -> Place| {
            let names = (0..lm.layers).flat_map(|i| [format!("k.{i}"), format!("v.{i}")]);
            names.map(|name| place(name, Type::Bf16, &[prefix, lm.head_dim], keys)).collect::<Vec<_>>()
        };
        match stage {
            Stage::Vision => {
                let rows = sizes.cameras * dims.vision.tokens();
                let pixels = [sizes.cameras, side, side, 3];
                vec![
                    Place::read("pixels", Type::F32, &pixels, self.pixels(dims) * 4),
                    Place::written("features", Type::F32, &[rows, lm.width], features),
                ]
            }
            Stage::Prefix => {
                let embs = Place::read("embs", Type::F32, &[prefix, lm.width], features);
                [vec![embs, mask], table(prefix, tables), cache(Place::written)].concat()
            }
            Stage::Denoise => {
                let (actions, norms) = ([sizes.horizon, dims.action_dim], 2 * ex.layers + 1);
                let (bytes, one) = (ACTIONS * dims.action_dim * 4, norms * 3 * ex.width * 4);
                let modulation = |name| Place::read(name, Type::F32, &[norms, 3, ex.width], one);
                let mut own = vec![
                    Place::read("x", Type::F32, &actions, bytes),
                    modulation("modulation"),
                    mask,
                    Place::written("velocity", Type::F32, &actions, bytes),
                ];
                if trained {
                    let clean = Place::read("clean", Type::F32, &[sizes.horizon, 1], ACTIONS * 4);
                    own.extend([modulation("modulation.clean"), clean]);
                }
                [own, table(sizes.horizon, ACTIONS * half * 4), cache(Place::read)].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensorrt::boundary::agree;
    use crate::engine::tensorrt::graph::Port;
    use crate::engine::tensorrt::stages::{Format, define};

    /// What is wrong with tensors.
    type Change<'a> = dyn Fn(&mut Vec<(bool, Port)>) + 'a;

    const SIZES: Sizes = Sizes { cameras: 2, prompt: 37, horizon: 50 };

    fn ports(stage: Stage, dims: &Dims, sizes: &Sizes, trained: bool) -> Vec<(bool, Port)> {
        let graph = define(stage, dims, sizes, Format::Bf16, None, trained).unwrap();
        let inputs = graph.input_ports().into_iter().map(|port| (true, port));
        inputs.chain(graph.output_ports().into_iter().map(|port| (false, port))).collect()
    }

    #[test]
    fn every_tensor_of_every_stage_has_its_place() {
        for dims in [Dims::TINY, Dims::FULL] {
            for sizes in [SIZES, Sizes { cameras: 5, prompt: 300, horizon: ACTIONS }] {
                let room = Room::new(&dims, 3, Some(sizes));
                for stage in Stage::ALL {
                    for trained in [false, true] {
                        let places = room.places(stage, &dims, &sizes, trained);
                        agree(stage, &ports(stage, &dims, &sizes, trained), &places).unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn what_would_not_fit_its_place_is_refused_in_one_line() {
        let dims = Dims::TINY;
        let room = Room::new(&dims, 3, Some(SIZES));
        let said = |stage: Stage, change: &Change<'_>| {
            let mut ports = ports(stage, &dims, &SIZES, false);
            change(&mut ports);
            let said =
                agree(stage, &ports, &room.places(stage, &dims, &SIZES, false)).unwrap_err().to_string();
            assert!(said.lines().count() == 1 && said.contains("engines build"), "{said}");
            said
        };
        for stage in Stage::ALL {
            for i in 0..ports(stage, &dims, &SIZES, false).len() {
                let changes: [(&str, &Change<'_>); 5] = [
                    ("found none", &|ports| drop(ports.remove(i))),
                    ("put", &|ports| ports[i].0 = !ports[i].0),
                    ("fp16", &|ports| ports[i].1.dtype = Type::F16),
                    ("[", &|ports| ports[i].1.shape[0] += 1),
                    ("another", &|ports| ports[i].1.name = "another".into()),
                ];
                for (says, change) in changes {
                    let said = said(stage, change);
                    assert!(says == "another" || said.contains(says), "{said}");
                }
            }
        }
        let extra = Port { name: "prompt".into(), dtype: Type::F32, shape: vec![37, 64] };
        let text = said(Stage::Prefix, &|ports| ports.push((true, extra.clone())));
        assert!(text.contains("prefix tensor prompt: expected none, found an input f32 [37, 64]"), "{text}");
        // A denoise stage that takes clean actions is another one.
        let places = room.places(Stage::Denoise, &dims, &SIZES, false);
        agree(Stage::Denoise, &ports(Stage::Denoise, &dims, &SIZES, true), &places).unwrap_err();
    }

    #[test]
    fn a_tensor_larger_than_its_memory_is_refused() {
        let dims = Dims::TINY;
        let small = Room::new(&dims, 3, Some(SIZES));
        for (stage, sizes) in [
            (Stage::Vision, Sizes { cameras: 4, ..SIZES }),
            (Stage::Prefix, Sizes { prompt: 2000, ..SIZES }),
            (Stage::Denoise, Sizes { horizon: ACTIONS + 1, ..SIZES }),
        ] {
            let ports = ports(stage, &dims, &sizes, false);
            let said =
                agree(stage, &ports, &small.places(stage, &dims, &sizes, false)).unwrap_err().to_string();
            assert!(said.contains("expected at most") && said.contains("bytes, found"), "{said}");
        }
        // Shapes whose product is no number.
        let huge = vec![(true, Port { name: "x".into(), dtype: Type::F32, shape: vec![usize::MAX, 2] })];
        let place = Place::read("x", Type::F32, &[usize::MAX, 2], 8);
        agree(Stage::Denoise, &huge, &[place]).unwrap_err();
    }

    #[test]
    fn rows_of_a_chunk_never_leave_their_memory() {
        for dims in [Dims::TINY, Dims::FULL] {
            for sizes in [None, Some(SIZES), Some(Sizes { prompt: 201, ..SIZES })] {
                let room = Room::new(&dims, 2, sizes);
                for (tokens, bucketed) in (0..=room.most_tokens()).flat_map(|t| [(t, true), (t, false)]) {
                    let layout = room.layout(room.most_cameras() * dims.vision.tokens(), tokens, bucketed);
                    assert!(layout.rows <= room.rows(&dims) && layout.rows >= layout.image_rows + tokens);
                }
                assert!(room.capacity(&dims) >= room.rows(&dims) + ACTIONS);
            }
        }
    }
}
