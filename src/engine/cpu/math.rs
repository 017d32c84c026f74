//! Element-wise functions over slices, vectorised for the machine's instruction set at run time (`pulp`).

use std::f32::consts::PI;

use pulp::Arch;

/// Rows are split over threads in pieces of at least this many elements.
pub const PARALLEL_ELEMENTS: usize = 1 << 14;

/// e^x to about 1 ulp, branch-free so that loops over it vectorise. -inf and anything below -87.3 give 0 or nearly so.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // x = n ln 2 + r, |r| <= ln 2 / 2; Cody-Waite in two parts; degree-6 Taylor-like polynomial (Cephes expf).
    let x = x.clamp(-87.336_54, 88.376_26);
    let n = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0; // round to nearest: 1.5 * 2^23
    let r = x - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    f32::from_bits((((n as i32) + 127) << 23) as u32) * y
}

/// `0.5 x (1 + tanh(u))`, `u = √(2/π) (x + 0.044715 x³)`; the same as `x / (1 + e^-2u)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let u = (2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x);
    x / (1.0 + exp(-2.0 * u))
}

/// `x ← GELU-tanh(x)`
pub fn gelu(x: &mut [f32]) {
    Arch::new().dispatch(|| {
        for x in x {
            *x = gelu_tanh(*x);
        }
    });
}

/// `gate ← GELU-tanh(gate) * up`
pub fn geglu(gate: &mut [f32], up: &[f32]) {
    Arch::new().dispatch(|| {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = gelu_tanh(*gate) * up;
        }
    });
}

/// `x ← x * sigmoid(x)`
pub fn silu(x: &mut [f32]) {
    Arch::new().dispatch(|| {
        for x in x {
            *x /= 1.0 + exp(-*x);
        }
    });
}

/// Softmax of one row of logits times `scale`.
pub fn softmax(row: &mut [f32], scale: f32) {
    Arch::new().dispatch(|| {
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m }) * scale;
        let mut sums = [0f32; LANES];
        let (chunks, rest) = row.as_chunks_mut::<LANES>();
        for chunk in chunks {
            for (x, sum) in chunk.iter_mut().zip(&mut sums) {
                *x = exp(*x * scale - max);
                *sum += *x;
            }
        }
        let mut sum = sums.iter().sum::<f32>();
        for x in rest {
            *x = exp(*x * scale - max);
            sum += *x;
        }
        let inverse = 1.0 / sum;
        for x in row {
            *x *= inverse;
        }
    });
}

/// LayerNorm (eps 1e-6) of one row: `out = (x - mean) / sqrt(var + eps) * weight + bias`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(|| {
        let n = x.len() as f32;
        let mean = sum_of(x, |x| x) / n;
        let variance = sum_of(x, |x| (x - mean) * (x - mean)) / n;
        let inverse = 1.0 / (variance + EPS).sqrt();
        for (((out, x), weight), bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = (x - mean) * inverse * weight + bias;
        }
    });
}

/// RMSNorm (eps 1e-6) of one row with a multiplier per channel: `out = x * rsqrt(mean(x²) + eps) * scale (+ shift)`.
pub fn rms_norm(x: &[f32], scale: &[f32], shift: Option<&[f32]>, out: &mut [f32]) {
    Arch::new().dispatch(|| {
        let inverse = 1.0 / (sum_of(x, |x| x * x) / x.len() as f32 + EPS).sqrt();
        for ((out, x), scale) in out.iter_mut().zip(x).zip(scale) {
            *out = x * inverse * scale;
        }
        if let Some(shift) = shift {
            for (out, shift) in out.iter_mut().zip(shift) {
                *out += shift;
            }
        }
    });
}

/// `x ← x + y`
pub fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// `x ← x + gate * y`, one gate per channel.
pub fn add_gated(x: &mut [f32], gate: &[f32], y: &[f32]) {
    for ((x, gate), y) in x.iter_mut().zip(gate).zip(y) {
        *x += gate * y;
    }
}

/// Epsilon of every norm.
const EPS: f32 = 1e-6;
/// Independent partial sums, so that sums vectorise and lose less.
const LANES: usize = 16;

#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += f(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|&x| f(x)).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_good_to_two_ulp() {
        let mut worst = 0f64;
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.4e-7, "{worst}");
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn gelu_is_the_tanh_form_and_not_the_erf_form() {
        let exact = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        };
        for i in -3000..3000 {
            let x = i as f32 * 4e-3;
            assert!((f64::from(gelu_tanh(x)) - exact(f64::from(x))).abs() < 1e-6, "{x}");
        }
        assert!(gelu_tanh(-100.0).abs() < 1e-30);
        assert_eq!(gelu_tanh(100.0), 100.0);
    }

    #[test]
    fn softmax_sums_to_one_and_survives_large_logits() {
        let mut row: Vec<f32> = (0..37).map(|i| i as f32 * 100.0).collect();
        softmax(&mut row, 0.25);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(row[36] > 0.999);
    }
}
