//! A graph handed to TensorRT, layer by layer, each compared with what the graph says of it. Weights go as they lie in
//! the checkpoint's mapping where their type fits, else converted, one by one.

use std::sync::Arc;

use half::{bf16, f16};

use super::error::TensorRtError;
use super::graph::{Binary, Graph, Node, Op, Type};
use super::result::{dims, number};
use super::safe::{Build, Constant, Library, Tensor};
use super::sys;
use crate::engine::calibration::row_scales;
use crate::engine::weights::{Tensor as Weight, Weights};
use crate::model::tensors::Dtype;

/// The checkpoint's tensors that a graph reads, kept where TensorRT finds them until it has built.
pub struct Read(Vec<Option<Weight>>);

impl Read {
    /// One per node that reads one.
    pub fn of(graph: &Graph, weights: &Weights) -> Result<Self, TensorRtError> {
        let read = |node: &Node| match &node.op {
            Op::Weight(name) | Op::RowScales(name) => {
                weights.get(name).map(Some).ok_or_else(|| TensorRtError::Missing(name.clone()))
            }
            _ => Ok(None),
        };
        graph.nodes().iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

/// The network, ready to be built.
pub fn emit<'w>(library: &Arc<Library>, graph: &Graph, read: &'w Read) -> Result<Build<'w>, TensorRtError> {
    let mut build = Build::new(library)?;
    let mut tensors: Vec<Tensor> = Vec::with_capacity(graph.nodes().len());
    for (node, weight) in graph.nodes().iter().zip(&read.0) {
        let tensor = layer(&mut build, &tensors, graph, node, weight.as_ref())?;
        let (dtype, shape) = build.describe(tensor)?;
        if dtype != Some(node.dtype) || shape != dims(&node.shape) {
            let found = dtype.map_or("another type", Type::name);
            return Err(TensorRtError::Differs {
                what: operation(&node.op),
                expected: format!("{} {:?}", node.dtype, node.shape),
                found: format!("{found} {shape:?}"),
            });
        }
        tensors.push(tensor);
    }
    for (name, value) in graph.outputs() {
        build.output(tensors[value.0], name)?;
    }
    Ok(build)
}

fn layer<'w>(
    build: &mut Build<'w>,
    tensors: &[Tensor],
    graph: &Graph,
    node: &Node,
    weight: Option<&'w Weight>,
) -> Result<Tensor, TensorRtError> {
    const SQRT: i32 = 2;
    const RECIPROCAL: i32 = 3;
    let at = |value: &super::graph::Value| tensors[value.0].index();
    let rank = node.shape.len() as i32;
    let shape = dims(&node.shape);
    match &node.op {
        Op::Input(name) => build.input(name, node.dtype, &node.shape),
        Op::Weight(name) => {
            let weight = weight.ok_or_else(|| TensorRtError::Missing(name.clone()))?;
            build.constant(node.dtype, &node.shape, stored(weight, node.dtype))
        }
        Op::RowScales(name) => {
            let weight = weight.ok_or_else(|| TensorRtError::Missing(name.clone()))?;
            build.constant(
                node.dtype,
                &node.shape,
                Constant::Made(f32_bytes(&row_scales(&weight.to_vec(), node.shape[0]))),
            )
        }
        Op::Constant(values) => build.constant(node.dtype, &node.shape, Constant::Made(f32_bytes(values))),
        // SAFETY of every call below: numbers, and arrays of this function of the length that is said.
        Op::Cast(x) => build.made(|b, m| unsafe { sys::trt_cast(b, at(x), number(node.dtype), m) }),
        Op::MatMul { x, y, transposed } => {
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_matmul(b, at(x), at(y), i32::from(*transposed), m) })
        }
        Op::Binary(operation, x, y) => {
            let operation = match operation {
                Binary::Add => 0,
                Binary::Mul => 1,
                Binary::Sub => 4,
            };
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_elementwise(b, operation, at(x), at(y), m) })
        }
        Op::Rsqrt(x) => {
            // SAFETY: as above.
            let root = build.made(|b, m| unsafe { sys::trt_unary(b, SQRT, at(x), m) })?;
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_unary(b, RECIPROCAL, root.index(), m) })
        }
        // SAFETY: as above.
        Op::Gelu(x) => build.made(|b, m| unsafe { sys::trt_gelu_tanh(b, at(x), m) }),
        // SAFETY: as above.
        Op::Mean(x) => build.made(|b, m| unsafe { sys::trt_mean_last(b, at(x), m) }),
        // SAFETY: as above.
        Op::Softmax(x) => build.made(|b, m| unsafe { sys::trt_softmax_last(b, at(x), m) }),
        // SAFETY: as above.
        Op::Reshape(x) => build.made(|b, m| unsafe { sys::trt_reshape(b, at(x), rank, shape.as_ptr(), m) }),
        Op::Transpose(x, order) => {
            let order: Vec<i32> = order.iter().map(|&d| d as i32).collect();
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_transpose(b, at(x), rank, order.as_ptr(), m) })
        }
        Op::Slice(x, start) => {
            let start = dims(start);
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_slice(b, at(x), rank, start.as_ptr(), shape.as_ptr(), m) })
        }
        Op::Concat(parts, axis) => {
            let parts: Vec<i32> = parts.iter().map(at).collect();
            let count = parts.len() as i32;
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_concat(b, parts.as_ptr(), count, *axis as i32, m) })
        }
        Op::Quantize(x, scale) => {
            let axis = axis(graph.node(*scale));
            // SAFETY: as above.
            build.made(|b, m| unsafe { sys::trt_quantize(b, at(x), at(scale), axis, m) })
        }
        Op::Dequantize(x, scale) => {
            let axis = axis(graph.node(*scale));
            // SAFETY: as above.
            build
                .made(|b, m| unsafe { sys::trt_dequantize(b, at(x), at(scale), axis, number(node.dtype), m) })
        }
    }
}

/// Rows have a scale each, or all elements one.
fn axis(scale: &Node) -> i32 {
    if scale.shape.is_empty() { -1 } else { 0 }
}

fn operation(op: &Op) -> String {
    let text = format!("{op:?}");
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    match op {
        Op::Input(name) | Op::Weight(name) => name.clone(),
        _ => text[..end].to_lowercase(),
    }
}

/// A tensor's elements as TensorRT takes them.
fn stored(weight: &Weight, dtype: Type) -> Constant<'_> {
    let bytes = weight.bytes();
    let as_it_lies = matches!(
        (weight.dtype(), dtype),
        (Dtype::F32, Type::F32) | (Dtype::BF16, Type::Bf16) | (Dtype::F16, Type::F16)
    );
    if as_it_lies && bytes.as_ptr().addr().is_multiple_of(dtype.size()) {
        return Constant::There(bytes);
    }
    let values = weight.to_vec();
    Constant::Made(match dtype {
        Type::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Type::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Type::F32 | Type::Fp8 => f32_bytes(&values), // of e4m3 there is no constant
    })
}

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
