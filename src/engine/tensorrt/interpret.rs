//! Computes a graph in f32, or rounded to each node's type: the truth about a definition, without TensorRT.

use std::cell::RefCell;
use std::collections::HashMap;

use half::{bf16, f16};
use rayon::prelude::*;

use super::graph::{Binary, Graph, Op, Type, Value};
use crate::engine::calibration::{e4m3, row_scales};
use crate::engine::weights::Weights;

thread_local! {
    /// Largest magnitude of what each activation's quantisation took, while somebody watches.
    static RANGES: RefCell<Option<Vec<f32>>> = const { RefCell::new(None) };
}

/// Runs `work`; the largest magnitudes that were quantised in one scale, in the order of first computation.
pub fn watch(work: impl FnOnce()) -> Vec<f32> {
    RANGES.set(Some(Vec::new()));
    work();
    RANGES.take().unwrap_or_default()
}

/// A node's numbers, row-major.
type Array = Vec<f32>;

/// Whether what a node gives is rounded to its type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Everything stays f32: is the definition right?
    Never,
    /// As TensorRT would: is it precise enough?
    AsTyped,
}

/// Computes the outputs by name.
pub fn interpret(
    graph: &Graph,
    weights: &Weights,
    inputs: &HashMap<String, Array>,
    rounding: Rounding,
) -> HashMap<String, Array> {
    let mut values: Vec<Array> = Vec::new();
    for node in graph.nodes() {
        let of = |v: Value| &values[v.0];
        let shape = |v: Value| &graph.node(v).shape;
        let len = node.shape.iter().product::<usize>();
        let map = |v: Value, f: &dyn Fn(f32) -> f32| -> Array { of(v).iter().map(|&x| f(x)).collect() };
        let mut out: Array = match &node.op {
            Op::Input(name) => inputs[name].clone(),
            Op::Weight(name) => weights.get(name).unwrap().to_vec(),
            Op::RowScales(name) => {
                let tensor = weights.get(name).unwrap();
                row_scales(&tensor.to_vec(), tensor.shape()[0])
            }
            Op::Constant(values) => values.clone(),
            Op::Cast(x) | Op::Reshape(x) => of(*x).clone(),
            Op::MatMul { x, y, transposed } => matmul(of(*x), shape(*x), of(*y), shape(*y), *transposed),
            Op::Binary(operation, x, y) => {
                let (a, b) = (expand(of(*x), shape(*x), &node.shape), expand(of(*y), shape(*y), &node.shape));
                let apply = |(a, b): (f32, f32)| match operation {
                    Binary::Add => a + b,
                    Binary::Sub => a - b,
                    Binary::Mul => a * b,
                };
                a.into_iter().zip(b).map(apply).collect()
            }
            Op::Rsqrt(x) => map(*x, &|x| 1.0 / x.sqrt()),
            Op::Gelu(x) => map(*x, &|x| {
                0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
            }),
            Op::Mean(x) => {
                let width = *shape(*x).last().unwrap();
                of(*x).chunks_exact(width).map(|row| row.iter().sum::<f32>() / width as f32).collect()
            }
            Op::Softmax(x) => {
                let mut data = of(*x).clone();
                for row in data.chunks_exact_mut(*node.shape.last().unwrap()) {
                    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    row.iter_mut().for_each(|x| *x = (*x - max).exp());
                    let sum: f32 = row.iter().sum();
                    row.iter_mut().for_each(|x| *x /= sum);
                }
                data
            }
            Op::Transpose(x, order) => {
                let strides = strides(shape(*x));
                let strides: Vec<usize> = order.iter().map(|&d| strides[d]).collect();
                offsets(&node.shape, &strides).map(|at| of(*x)[at]).collect()
            }
            Op::Slice(x, start) => {
                let strides = strides(shape(*x));
                let first: usize = start.iter().zip(&strides).map(|(i, s)| i * s).sum();
                offsets(&node.shape, &strides).map(|at| of(*x)[first + at]).collect()
            }
            Op::Concat(parts, axis) => {
                let inner = |v: Value| shape(v)[*axis..].iter().product::<usize>();
                let outer = node.shape[..*axis].iter().product::<usize>();
                let row =
                    |i: usize| parts.iter().flat_map(move |&p| &of(p)[i * inner(p)..(i + 1) * inner(p)]);
                (0..outer).flat_map(row).copied().collect()
            }
            Op::Quantize(x, scale) | Op::Dequantize(x, scale) => {
                let forth = matches!(node.op, Op::Quantize(..));
                let (data, scales) = (of(*x), of(*scale));
                let row = data.len() / scales.len();
                if forth && scales.len() == 1 {
                    let range = data.iter().fold(0f32, |m, x| m.max(x.abs()));
                    RANGES.with_borrow_mut(|ranges| ranges.iter_mut().for_each(|all| all.push(range)));
                }
                let scaled =
                    |i: usize| if forth { data[i] / scales[i / row] } else { data[i] * scales[i / row] };
                (0..data.len()).map(scaled).collect()
            }
        };
        assert_eq!(out.len(), len, "{:?}", node.op);
        if rounding == Rounding::AsTyped {
            out.iter_mut().for_each(|x| *x = rounded(*x, node.dtype));
        }
        values.push(out);
    }
    graph.outputs().iter().map(|(name, value)| (name.clone(), values[value.0].clone())).collect()
}

fn rounded(x: f32, dtype: Type) -> f32 {
    match dtype {
        Type::F32 => x,
        Type::Bf16 => bf16::from_f32(x).to_f32(),
        Type::F16 => f16::from_f32(x).to_f32(),
        Type::Fp8 => e4m3(x),
    }
}

fn matmul(x: &[f32], x_shape: &[usize], y: &[f32], y_shape: &[usize], transposed: bool) -> Array {
    let rank = x_shape.len();
    let (rows, inner) = (x_shape[rank - 2], x_shape[rank - 1]);
    let columns = if transposed { y_shape[rank - 2] } else { y_shape[rank - 1] };
    let batches = x.len() / (rows * inner);
    let y_batches = y.len() / (columns * inner);
    let strides = if transposed { [columns * inner, 1, inner] } else { [columns * inner, columns, 1] };
    let y: Array = offsets(&[y_batches, inner, columns], &strides).map(|at| y[at]).collect();
    let mut out = vec![0.0; batches * rows * columns];
    out.par_chunks_exact_mut(columns).enumerate().for_each(|(row, sums)| {
        let y = &y[(row / rows % y_batches) * columns * inner..][..columns * inner];
        for (a, y) in x[row * inner..][..inner].iter().zip(y.chunks_exact(columns)) {
            sums.iter_mut().zip(y).for_each(|(sum, b)| *sum += a * b);
        }
    });
    out
}

fn expand(x: &[f32], from: &[usize], to: &[usize]) -> Array {
    if from == to {
        return x.to_vec();
    }
    let strides = strides(from);
    let strides: Vec<usize> = from.iter().zip(strides).map(|(&n, s)| if n == 1 { 0 } else { s }).collect();
    offsets(to, &strides).map(|at| x[at]).collect()
}

fn strides(shape: &[usize]) -> Vec<usize> {
    (0..shape.len()).map(|d| shape[d + 1..].iter().product()).collect()
}

/// Where every element of a shape lies, row-major, in an array of these strides.
fn offsets(shape: &[usize], strides: &[usize]) -> impl Iterator<Item = usize> {
    let mut all = vec![0];
    for (&count, &stride) in shape.iter().zip(strides) {
        all = all.iter().flat_map(|at| (0..count).map(move |i| at + i * stride)).collect();
    }
    all.into_iter()
}
