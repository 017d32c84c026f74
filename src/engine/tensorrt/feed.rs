//! What the stages' inputs are filled with: from observations to arrays of the shapes that [`super::stages`] fixes.
//! Absent cameras and unused prompt slots are zeros, masked, and take no position (spec/PI05.md §5.2).

use super::stages::{MASKED, Sizes};
use crate::engine::EngineError;
use crate::engine::weights::Tensor;
use crate::model::Pixels;
use crate::model::dims::Dims;

/// Which slots of the prefix are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    valid: Vec<bool>,
}

/// RoPE's tables, `[rows, head_dim / 2]` each.
#[derive(Clone, Debug, PartialEq)]
pub struct Tables {
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}

impl Slots {
    /// Of present cameras and a prompt of `tokens`; more than an engine was built for is refused.
    pub fn new(dims: &Dims, sizes: &Sizes, present: &[bool], tokens: usize) -> Result<Self, EngineError> {
        let input = |what, expected: String, found: usize| {
            Err(EngineError::Input { what, expected, found: found.to_string() })
        };
        if present.len() > sizes.cameras && present[sizes.cameras..].contains(&true) {
            let expected = format!("at most the {} that the engine was built for", sizes.cameras);
            return input("camera images", expected, present.len());
        }
        if tokens > sizes.prompt {
            let expected = format!("at most the {} tokens that the engine was built for", sizes.prompt);
            return input("prompt", expected, tokens);
        }
        let camera = |c: usize| present.get(c).copied().unwrap_or(false);
        let images = (0..sizes.cameras).flat_map(|c| std::iter::repeat_n(camera(c), dims.vision.tokens()));
        let valid: Vec<bool> = images.chain((0..sizes.prompt).map(|t| t < tokens)).collect();
        if !valid.contains(&true) {
            return input("prefix", "at least one image or prompt token".into(), 0);
        }
        Ok(Self { valid })
    }

    /// Valid ones.
    pub fn count(&self) -> usize {
        self.valid.iter().filter(|&&v| v).count()
    }

    /// Whether each is valid.
    pub fn valid(&self) -> &[bool] {
        &self.valid
    }

    /// 0 or [`MASKED`], `[1, prefix]`.
    pub fn mask(&self) -> Vec<f32> {
        self.valid.iter().map(|&valid| if valid { 0.0 } else { MASKED }).collect()
    }

    /// Positions count valid slots only.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.valid.iter().scan(0, |next, &valid| {
            let position = *next;
            *next += usize::from(valid);
            Some(position)
        })
    }
}

impl Tables {
    /// Angles in f32 with an unrounded `inv_freq` (spec/PI05.md §10).
    pub fn new(head_dim: usize, positions: impl Iterator<Item = usize>) -> Self {
        let frequency = |j: usize| 1.0 / 10_000f32.powf((2 * j) as f32 / head_dim as f32);
        let frequencies: Vec<f32> = (0..head_dim / 2).map(frequency).collect();
        let angles = positions.flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { cos, sin }
    }
}

/// Images in [-1, 1], `[cameras, side, side, 3]`; absent ones are 0.
pub fn pixels(dims: &Dims, sizes: &Sizes, images: &[Option<Pixels>]) -> Result<Vec<f32>, EngineError> {
    let (side, one) = (dims.vision.image, dims.vision.image * dims.vision.image * 3);
    let mut all = vec![0.0; sizes.cameras * one];
    for (to, image) in all.chunks_exact_mut(one).zip(images) {
        let len = match image {
            None => continue,
            Some(Pixels::U8(data)) => {
                to.iter_mut().zip(data).for_each(|(to, &byte)| *to = f32::from(byte) / 255.0 * 2.0 - 1.0);
                data.len()
            }
            Some(Pixels::F32(data)) => {
                to.iter_mut().zip(data).for_each(|(to, &value)| *to = value);
                data.len()
            }
        };
        if len != one {
            return Err(EngineError::Input {
                what: "camera image",
                expected: format!("{side}x{side}x3 values"),
                found: format!("{len} values"),
            });
        }
    }
    Ok(all)
}

/// Embeddings × √width, `[prompt, width]`; unused slots are 0.
pub fn prompt(
    dims: &Dims,
    sizes: &Sizes,
    embedding: &Tensor,
    tokens: &[u32],
) -> Result<Vec<f32>, EngineError> {
    let width = dims.language.width;
    let root = (width as f32).sqrt();
    let mut all = vec![0.0; sizes.prompt * width];
    for (to, &token) in all.chunks_exact_mut(width).zip(tokens) {
        let token = token as usize;
        if token >= dims.vocab {
            return Err(EngineError::Input {
                what: "prompt token",
                expected: format!("below the embedding's {} rows", dims.vocab),
                found: token.to_string(),
            });
        }
        embedding.convert(token * width..(token + 1) * width, to);
        to.iter_mut().for_each(|x| *x *= root);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: Sizes = Sizes { cameras: 2, prompt: 3, horizon: 50 };

    #[test]
    fn masked_slots_take_no_position() {
        let tokens = Dims::TINY.vision.tokens();
        let slots = Slots::new(&Dims::TINY, &SIZES, &[false, true], 2).unwrap();
        assert_eq!(slots.count(), tokens + 2);
        let positions: Vec<usize> = slots.positions().collect();
        assert_eq!(positions[tokens], 0);
        assert_eq!(positions[2 * tokens..], [tokens, tokens + 1, tokens + 2]);
        assert_eq!(slots.mask()[0], MASKED);
        assert_eq!(slots.mask()[2 * tokens..], [0.0, 0.0, MASKED]);
    }

    #[test]
    fn more_than_the_engine_was_built_for_is_refused() {
        let said = |present: &[bool], tokens| {
            Slots::new(&Dims::TINY, &SIZES, present, tokens).unwrap_err().to_string()
        };
        assert!(said(&[true; 3], 2).contains("at most the 2"));
        assert!(said(&[true; 2], 4).contains("at most the 3 tokens"));
        assert!(said(&[false; 2], 0).contains("at least one"));
        Slots::new(&Dims::TINY, &SIZES, &[true, true, false], 1).unwrap();
    }
}
