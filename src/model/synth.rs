//! Procedural weights: the same numbers in any language, so that no big file has to be shipped.
//!
//! The seed of a tensor is the FNV-1a-64 hash of its name; element `i` is the `i`-th output of splitmix64, its top
//! 24 bits mapped to [-1, 1) and scaled to a deviation that depends on the tensor's role. Every element can be
//! computed alone, so chunks are made in parallel.

use half::f16;
use pulp::Arch;
use rayon::prelude::*;

use super::tensors::{Dtype, TOKEN_EMBEDDING};

/// FNV-1a, 64 bits.
fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// Output number `i` of splitmix64.
#[inline(always)]
fn splitmix64(seed: u64, i: u64) -> u64 {
    let mut s = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    s = (s ^ (s >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    s = (s ^ (s >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    s ^ (s >> 31)
}

/// Uniform in [-1, 1), exact in f32.
#[inline(always)]
fn unit(seed: u64, i: u64) -> f32 {
    ((splitmix64(seed, i) >> 40) as i32 - (1 << 23)) as f32 / 8_388_608.0
}

/// Mean and deviation of a tensor, by canonical name and shape.
fn mean_std(name: &str, shape: &[usize]) -> (f64, f64) {
    let fan_in = |dims: &[usize]| 1.0 / (dims.iter().product::<usize>() as f64).sqrt();
    let vision_norm = ["layer_norm1.", "layer_norm2.", "post_layernorm."].iter().any(|n| name.contains(n));
    if name.ends_with("embed_tokens.weight") {
        (0.0, fan_in(&shape[1..])) // times sqrt(width): unit variance
    } else if name.contains("position_embedding") {
        (0.0, 0.3)
    } else if name.ends_with("patch_embedding.weight") {
        (0.0, fan_in(&shape[1..]))
    } else if vision_norm {
        if name.ends_with(".weight") { (1.0, 0.1) } else { (0.0, 0.05) }
    } else if name.ends_with(".dense.weight") {
        (0.0, 0.5 * fan_in(&shape[1..]))
    } else if name.ends_with(".dense.bias") {
        (0.25, 0.25) // keeps the gates away from 0
    } else if name.ends_with("norm.weight") {
        (0.0, 0.1) // Gemma multiplies by 1 + weight
    } else if name.ends_with(".bias") {
        (0.0, 0.05)
    } else {
        (0.0, fan_in(&shape[1..]))
    }
}

/// The name that seeds a tensor. The token embedding is seeded as openpi stores it: as the tied `lm_head`.
fn seed_name(name: &str) -> &str {
    if name == TOKEN_EMBEDDING { "paligemma_with_expert.paligemma.lm_head.weight" } else { name }
}

/// Fills `out` with elements of the tensor `name` of `shape`, from element `first` on, row-major, little-endian;
/// values are rounded to `dtype`. `out.len()` is a number of elements times `dtype.size()`.
pub fn fill(name: &str, shape: &[usize], dtype: Dtype, first: usize, out: &mut [u8]) {
    match dtype {
        Dtype::F32 => fill_with(name, shape, first, out, f32::to_le_bytes),
        Dtype::BF16 => fill_with(name, shape, first, out, |w| bf16_bits(w).to_le_bytes()),
        Dtype::F16 => fill_with(name, shape, first, out, |w| f16::from_f32(w).to_le_bytes()),
    }
}

/// Finite f32 to bf16, round to nearest even; branch-free, unlike `half`'s, since billions go through here.
#[inline(always)]
fn bf16_bits(w: f32) -> u16 {
    let bits = w.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

fn fill_with<const N: usize>(
    name: &str,
    shape: &[usize],
    first: usize,
    out: &mut [u8],
    convert: impl Fn(f32) -> [u8; N] + Sync,
) {
    let (mean, std) = mean_std(name, shape);
    let (scale, offset) = ((std * 3f64.sqrt()) as f32, mean as f32);
    let seed = fnv1a64(seed_name(name));
    const ELEMENTS: usize = 1 << 16; // per task
    out.par_chunks_mut(ELEMENTS * N).enumerate().for_each(|(task, out)| {
        let start = (first + task * ELEMENTS) as u64;
        let (elements, _) = out.as_chunks_mut::<N>();
        Arch::new().dispatch(|| {
            for (i, element) in elements.iter_mut().enumerate() {
                *element = convert(unit(seed, start + i as u64) * scale + offset);
            }
        });
    });
}

/// Procedural bytes, for images: the top byte of each output.
pub fn bytes(name: &str, len: usize) -> Vec<u8> {
    let seed = fnv1a64(name);
    (0..len as u64).map(|i| (splitmix64(seed, i) >> 56) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounding_is_the_libraries() {
        for i in 0..1 << 20 {
            let w = unit(7, i) * 3.0;
            assert_eq!(bf16_bits(w), half::bf16::from_f32(w).to_bits(), "{w}");
        }
    }

    #[test]
    fn splitmix_and_fnv_are_the_published_functions() {
        assert_eq!(fnv1a64("a"), 0xAF63_DC4C_8601_EC8C);
        assert_eq!(splitmix64(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(splitmix64(0, 1), 0x6E78_9E6A_A1B9_65F4);
    }
}
