//! Matrix products: `y = x Wᵀ + b` with weights where they lie, and the two products of attention.

use std::cell::RefCell;

use gemm::Parallelism;
use rayon::prelude::*;

use crate::engine::calibration::{E4M3_MAX, Mean, Rounded, e4m3};
use crate::engine::weights::{Tensor, Weights};

/// A linear layer. The weight `[out, in]` stays in its file's type and is widened to f32 block by block.
pub struct Linear {
    weight: Tensor,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
    /// How x is rounded, if x and the weight are to be e4m3 as on a GPU.
    e4m3: Option<Rounded>,
}

/// Below this many multiply-adds a product is not worth waking another thread.
const PARALLEL_WORK: usize = 1 << 20;
/// Rows of a weight that are widened together: large enough to use `x` well, small enough to stay in a cache.
const BLOCK_ELEMENTS: usize = 1 << 21;

thread_local! {
    /// A block of weights as f32; kept, since fresh pages would cost more than the widening.
    static WIDENED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl Linear {
    /// The layer `name` (`.weight`, and `.bias` if there is one). `None` if the weight is not there.
    pub fn new(weights: &Weights, name: &str) -> Option<Self> {
        let weight = weights.get(&format!("{name}.weight"))?;
        let outputs = *weight.shape().first()?;
        let inputs = weight.shape()[1..].iter().product();
        let bias = weights.get(&format!("{name}.bias")).map(|bias| bias.to_vec());
        Some(Self { weight, bias, inputs, outputs, e4m3: None })
    }

    /// The same with its products in e4m3, if x is to be rounded: rows of the weight have their own scales.
    pub fn rounded(self, x: Option<Rounded>) -> Self {
        Self { e4m3: x, ..self }
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `y = x Wᵀ + b`; x `[m, in]`, y `[m, out]`.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let (n, k) = (self.outputs, self.inputs);
        let m = x.len() / k;
        assert!(x.len() == m * k && y.len() == m * n, "invariant of the callers: shapes come from one Dims");
        let threads = if m * n * k < PARALLEL_WORK { 1 } else { rayon::current_num_threads() };
        let rounded = self.e4m3.as_ref().map(|&Rounded { scale, .. }| {
            let inverse = 1.0 / scale;
            x.iter().map(|x| e4m3(x * inverse) * scale).collect::<Vec<_>>()
        });
        let mean = self.e4m3.as_ref().and_then(|rounded| rounded.mean.as_ref());
        let x = rounded.as_deref().unwrap_or(x);
        let lying = self.weight.as_f32().filter(|_| rounded.is_none());
        let mut block = n.div_ceil(threads);
        if lying.is_none() {
            block = block.min((BLOCK_ELEMENTS / k).max(16));
        }
        let y = Columns(y.as_mut_ptr());
        let one_block = |start: usize| {
            let rows = block.min(n - start);
            let elements = start * k..(start + rows) * k;
            let multiply = |weight: &[f32]| {
                let (x, weight) = (Rows::packed(x, k), Rows::packed(weight, k));
                // SAFETY: `y` is [m, n] row-major and borrowed mutably by `apply`; this call writes its columns
                // start..start + rows only, and no other block has any of them.
                unsafe { gemm_into(x, weight, Sum::Columns, y.at(start), n) };
            };
            match lying {
                Some(weight) => multiply(&weight[elements]),
                None => WIDENED.with_borrow_mut(|widened| {
                    widened.resize(widened.len().max(elements.len()), 0.0);
                    let widened = &mut widened[..elements.len()];
                    self.weight.convert(elements, widened);
                    if rounded.is_none() {
                        return multiply(widened);
                    }
                    let shifts =
                        widened.chunks_exact_mut(k).map(|row| round_row(row, mean)).collect::<Vec<_>>();
                    multiply(widened);
                    for i in 0..m {
                        // SAFETY: row i's columns start..start + rows, which are this block's own.
                        let y = unsafe { std::slice::from_raw_parts_mut(y.at(i * n + start), rows) };
                        super::math::add(y, &shifts);
                    }
                }),
            }
        };
        if threads == 1 {
            (0..n).step_by(block).for_each(one_block);
        } else {
            (0..n.div_ceil(block)).into_par_iter().for_each(|b| one_block(b * block));
        }
        if let Some(bias) = &self.bias {
            // SAFETY: all blocks are done; this is the only access to y [m, n].
            let y = unsafe { std::slice::from_raw_parts_mut(y.at(0), m * n) };
            y.chunks_exact_mut(n).for_each(|row| super::math::add(row, bias));
        }
    }

    /// [`Self::apply`] into a vector that is resized to fit.
    pub fn apply_to(&self, x: &[f32], y: &mut Vec<f32>) {
        y.resize(x.len() / self.inputs * self.outputs, 0.0);
        self.apply(x, y);
    }

    /// [`Self::apply`] into a new vector.
    pub fn of(&self, x: &[f32]) -> Vec<f32> {
        let mut y = Vec::new();
        self.apply_to(x, &mut y);
        y
    }
}

/// A row of weights to multiples of its own scale: its largest magnitude is the largest e4m3 number. What the product
/// loses by all rounding in the mean.
fn round_row(row: &mut [f32], mean: Option<&Mean>) -> f32 {
    let dot = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
    let exact = mean.map_or(0.0, |mean| dot(row, &mean.exact));
    let largest = row.iter().fold(1e-30f32, |max, w| max.max(w.abs()));
    let (scale, inverse) = (largest / E4M3_MAX, E4M3_MAX / largest);
    row.iter_mut().for_each(|w| *w = e4m3(*w * inverse) * scale);
    exact - mean.map_or(0.0, |mean| dot(row, &mean.rounded))
}

/// A matrix that several threads fill, each its own columns.
#[derive(Clone, Copy)]
struct Columns(*mut f32);

// SAFETY: the pointer is only dereferenced through disjoint columns, see `Linear::apply`.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

impl Columns {
    fn at(&self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

/// Floating-point operations per second of one large product on all cores: what this engine could reach at best.
pub fn peak_flops() -> f64 {
    const SIDE: usize = 1536;
    let x = vec![0.5f32; SIDE * SIDE];
    let mut y = vec![0f32; SIDE * SIDE];
    let product = |y: &mut [f32]| {
        let threads = rayon::current_num_threads();
        let rows = SIDE.div_ceil(threads);
        y.par_chunks_mut(rows * SIDE).zip(x.par_chunks(rows * SIDE)).for_each(|(y, part)| {
            product_transposed(Rows::packed(part, SIDE), Rows::packed(&x, SIDE), y);
        });
    };
    product(&mut y); // warm-up
    let best = (0..3).map(|_| {
        let start = std::time::Instant::now();
        product(&mut y);
        start.elapsed().as_secs_f64()
    });
    2.0 * (SIDE * SIDE * SIDE) as f64 / best.fold(f64::INFINITY, f64::min)
}

/// A strided read-only matrix: row `i` starts at `i * stride`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// First row's elements onwards.
    pub data: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Elements per row.
    pub columns: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a> Rows<'a> {
    /// Tightly packed rows.
    pub fn packed(data: &'a [f32], columns: usize) -> Self {
        Self { data, rows: data.len() / columns, columns, stride: columns }
    }

    fn assert_inside(&self) {
        let end = self.rows.checked_sub(1).map_or(0, |last| last * self.stride + self.columns);
        assert!(
            end <= self.data.len() && self.columns <= self.stride,
            "invariant of the caller: rows lie inside"
        );
    }
}

/// `y = a bᵀ`: y `[a.rows, b.rows]`, packed. One thread.
pub fn product_transposed(a: Rows<'_>, b: Rows<'_>, y: &mut [f32]) {
    assert!(y.len() == a.rows * b.rows, "invariant of the caller");
    // SAFETY: y has a.rows rows of b.rows elements, borrowed mutably.
    unsafe { gemm_into(a, b, Sum::Columns, y.as_mut_ptr(), b.rows) };
}

/// `y = a b`: a `[m, k]`, b `[k, n]`, y `[m, n]`, packed. One thread.
pub fn product(a: Rows<'_>, b: Rows<'_>, y: &mut [f32]) {
    assert!(y.len() == a.rows * b.columns, "invariant of the caller");
    // SAFETY: y has a.rows rows of b.columns elements, borrowed mutably.
    unsafe { gemm_into(a, b, Sum::Rows, y.as_mut_ptr(), b.columns) };
}

/// What of the right-hand matrix is summed over, along with the left-hand one's columns.
#[derive(Clone, Copy)]
enum Sum {
    /// `a bᵀ`
    Columns,
    /// `a b`
    Rows,
}

/// The product of `a` and `b`, `[m, n]`; row i starts at `y + i * y_stride`. One thread.
///
/// # Safety
/// The `n` elements from `y + i * y_stride` are valid for writes for every i < m, and nobody else uses them.
unsafe fn gemm_into(a: Rows<'_>, b: Rows<'_>, sum: Sum, y: *mut f32, y_stride: usize) {
    a.assert_inside();
    b.assert_inside();
    let b_stride = b.stride as isize;
    let (k, n, b_along_n, b_along_k) = match sum {
        Sum::Columns => (b.columns, b.rows, b_stride, 1),
        Sum::Rows => (b.rows, b.columns, 1, b_stride),
    };
    assert!(a.columns == k, "invariant of the caller: as many terms on both sides");
    // SAFETY: a and b lie inside their slices, checked above; y by contract.
    unsafe {
        gemm::gemm(
            a.rows,
            n,
            k,
            y,
            1,
            y_stride as isize,
            false,
            a.data.as_ptr(),
            1,
            a.stride as isize,
            b.data.as_ptr(),
            b_along_n,
            b_along_k,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
