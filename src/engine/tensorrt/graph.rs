//! A network as data: nodes in order, each with its type and shape. What [`super::stages`] writes, what `emit` hands
//! to TensorRT, and what tests compute in f32.
//!
//! Promises: shapes and types of a finished graph fit each other; whatever does not is refused here, by the name of
//! the operation, before TensorRT hears of it. Holds no weights, only where they come from.

use std::fmt;

use thiserror::Error;

/// Element types of a network's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// e4m3: between a quantisation and its dequantisation only.
    Fp8,
}

/// A node's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value(pub(super) usize);

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Comes from outside, by name.
    Input(String),
    /// A tensor of the checkpoint, row-major, perhaps seen in another shape.
    Weight(String),
    /// Per row of a weight matrix: its largest magnitude / 448, the scale of its e4m3 numbers.
    RowScales(String),
    /// Numbers written here.
    Constant(Vec<f32>),
    /// To the node's type.
    Cast(Value),
    /// `x y`, or `x yᵀ`, over the last two dimensions; those before broadcast.
    MatMul {
        /// `[…, rows, inner]`
        x: Value,
        /// `[…, inner, columns]`, or `[…, columns, inner]` transposed.
        y: Value,
        /// Whether y is transposed.
        transposed: bool,
    },
    /// Element by element; dimensions of 1 broadcast.
    Binary(Binary, Value, Value),
    /// `1 / √x`
    Rsqrt(Value),
    /// GELU with tanh.
    Gelu(Value),
    /// Over the last dimension, which stays as 1.
    Mean(Value),
    /// Over the last dimension.
    Softmax(Value),
    /// To the node's shape.
    Reshape(Value),
    /// Dimension `i` of the result is dimension `order[i]` of the operand.
    Transpose(Value, Vec<usize>),
    /// From `start`, as large as the node's shape.
    Slice(Value, Vec<usize>),
    /// Along an axis.
    Concat(Vec<Value>, usize),
    /// To e4m3: `x / scale`, one scale for all, or one per row.
    Quantize(Value, Value),
    /// Back: `x * scale`.
    Dequantize(Value, Value),
}

/// Operations on two operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// x + y
    Add,
    /// x - y
    Sub,
    /// x · y
    Mul,
}

/// An operation with the type and shape of what it gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Element type.
    pub dtype: Type,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

/// A tensor that goes in or comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: Type,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

/// Nodes in an order in which they can be computed.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    outputs: Vec<(String, Value)>,
}

/// Operands that do not fit each other: a mistake in a definition, or dimensions that it is not made for.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("network definition: {operation}: {misfit}")]
pub struct GraphError {
    /// The operation.
    pub operation: &'static str,
    /// What does not fit.
    pub misfit: String,
}

impl Type {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Type::F32 => 4,
            Type::Bf16 | Type::F16 => 2,
            Type::Fp8 => 1,
        }
    }

    /// As manifests have it.
    pub fn name(self) -> &'static str {
        match self {
            Type::F32 => "f32",
            Type::Bf16 => "bf16",
            Type::F16 => "fp16",
            Type::Fp8 => "fp8",
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Graph {
    /// Every node; operands come before what reads them.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// What comes out.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// A value's node.
    pub fn node(&self, value: Value) -> &Node {
        &self.nodes[value.0]
    }

    /// What goes in.
    pub fn input_ports(&self) -> Vec<Port> {
        let port = |node: &Node| match &node.op {
            Op::Input(name) => {
                Some(Port { name: name.clone(), dtype: node.dtype, shape: node.shape.clone() })
            }
            _ => None,
        };
        self.nodes.iter().filter_map(port).collect()
    }

    /// What comes out.
    pub fn output_ports(&self) -> Vec<Port> {
        let port = |(name, value): &(String, Value)| {
            let node = self.node(*value);
            Port { name: name.clone(), dtype: node.dtype, shape: node.shape.clone() }
        };
        self.outputs.iter().map(port).collect()
    }

    /// A tensor from outside.
    pub fn input(&mut self, name: &str, dtype: Type, shape: &[usize]) -> Value {
        self.push(Op::Input(name.to_owned()), dtype, shape.to_vec())
    }

    /// Names what comes out.
    pub fn output(&mut self, name: impl Into<String>, value: Value) {
        self.outputs.push((name.into(), value));
    }

    /// A checkpoint's tensor in `dtype`. `shape` may be another view of as many elements.
    pub fn weight(&mut self, name: impl Into<String>, dtype: Type, shape: &[usize]) -> Value {
        self.push(Op::Weight(name.into()), dtype, shape.to_vec())
    }

    /// e4m3 scales of a weight matrix' rows.
    pub fn row_scales(&mut self, name: impl Into<String>, rows: usize) -> Value {
        self.push(Op::RowScales(name.into()), Type::F32, vec![rows])
    }

    /// f32 numbers.
    pub fn constant(&mut self, values: Vec<f32>, shape: &[usize]) -> Result<Value, GraphError> {
        if values.len() != shape.iter().product::<usize>() {
            return Err(misfit("constant", format!("{} values for {shape:?}", values.len())));
        }
        Ok(self.push(Op::Constant(values), Type::F32, shape.to_vec()))
    }

    /// To `dtype`; nothing if it has it.
    pub fn cast(&mut self, x: Value, dtype: Type) -> Value {
        let node = self.node(x);
        if node.dtype == dtype {
            return x;
        }
        let shape = node.shape.clone();
        self.push(Op::Cast(x), dtype, shape)
    }

    /// `x y`, or `x yᵀ`.
    pub fn matmul(&mut self, x: Value, y: Value, transposed: bool) -> Result<Value, GraphError> {
        const NAME: &str = "matmul";
        let (a, b) = (self.node(x), self.node(y));
        let dtype = same_type(NAME, a, b)?;
        let rank = a.shape.len();
        if rank < 2 || b.shape.len() != rank {
            return Err(misfit(NAME, format!("{:?} and {:?}", a.shape, b.shape)));
        }
        let (columns, inner) = if transposed {
            (b.shape[rank - 2], b.shape[rank - 1])
        } else {
            (b.shape[rank - 1], b.shape[rank - 2])
        };
        if a.shape[rank - 1] != inner {
            return Err(misfit(NAME, format!("{:?} and {:?}", a.shape, b.shape)));
        }
        let mut shape = broadcast(NAME, &a.shape[..rank - 2], &b.shape[..rank - 2])?;
        shape.extend([a.shape[rank - 2], columns]);
        Ok(self.push(Op::MatMul { x, y, transposed }, dtype, shape))
    }

    /// Element by element.
    pub fn binary(&mut self, operation: Binary, x: Value, y: Value) -> Result<Value, GraphError> {
        const NAME: &str = "elementwise";
        let (a, b) = (self.node(x), self.node(y));
        let dtype = same_type(NAME, a, b)?;
        let shape = broadcast(NAME, &a.shape, &b.shape)?;
        Ok(self.push(Op::Binary(operation, x, y), dtype, shape))
    }

    /// `x + y`
    pub fn add(&mut self, x: Value, y: Value) -> Result<Value, GraphError> {
        self.binary(Binary::Add, x, y)
    }

    /// `x · y`
    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value, GraphError> {
        self.binary(Binary::Mul, x, y)
    }

    /// `1 / √x`
    pub fn rsqrt(&mut self, x: Value) -> Value {
        self.like(Op::Rsqrt(x), x)
    }

    /// GELU with tanh.
    pub fn gelu(&mut self, x: Value) -> Value {
        self.like(Op::Gelu(x), x)
    }

    /// Softmax over the last dimension.
    pub fn softmax(&mut self, x: Value) -> Value {
        self.like(Op::Softmax(x), x)
    }

    /// Mean over the last dimension, which stays as 1.
    pub fn mean(&mut self, x: Value) -> Value {
        let (dtype, mut shape) = (self.node(x).dtype, self.node(x).shape.clone());
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        self.push(Op::Mean(x), dtype, shape)
    }

    /// The same elements in another shape.
    pub fn reshape(&mut self, x: Value, shape: &[usize]) -> Result<Value, GraphError> {
        let node = self.node(x);
        if node.shape == shape {
            return Ok(x);
        }
        if node.shape.iter().product::<usize>() != shape.iter().product::<usize>() {
            return Err(misfit("reshape", format!("{:?} to {shape:?}", node.shape)));
        }
        let dtype = node.dtype;
        Ok(self.push(Op::Reshape(x), dtype, shape.to_vec()))
    }

    /// Dimension `i` of the result is dimension `order[i]` of `x`.
    pub fn transpose(&mut self, x: Value, order: &[usize]) -> Result<Value, GraphError> {
        let node = self.node(x);
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..node.shape.len()) {
            return Err(misfit("transpose", format!("{:?} by {order:?}", node.shape)));
        }
        let (dtype, shape) = (node.dtype, order.iter().map(|&d| node.shape[d]).collect());
        Ok(self.push(Op::Transpose(x, order.to_vec()), dtype, shape))
    }

    /// `size` elements of each dimension from `start`.
    pub fn slice(&mut self, x: Value, start: &[usize], size: &[usize]) -> Result<Value, GraphError> {
        let node = self.node(x);
        let fits = start.len() == node.shape.len()
            && size.len() == node.shape.len()
            && start.iter().zip(size).zip(&node.shape).all(|((start, size), all)| start + size <= *all);
        if !fits {
            return Err(misfit("slice", format!("{size:?} at {start:?} of {:?}", node.shape)));
        }
        let dtype = node.dtype;
        Ok(self.push(Op::Slice(x, start.to_vec()), dtype, size.to_vec()))
    }

    /// One after the other along `axis`.
    pub fn concat(&mut self, parts: &[Value], axis: usize) -> Result<Value, GraphError> {
        const NAME: &str = "concatenation";
        let Some(first) = parts.first().map(|&part| self.node(part)) else {
            return Err(misfit(NAME, "nothing".into()));
        };
        let mut shape = first.shape.clone();
        let mut all = 0;
        for &part in parts {
            let node = self.node(part);
            same_type(NAME, first, node)?;
            let others = |shape: &[usize]| -> Vec<usize> {
                shape.iter().enumerate().filter(|(d, _)| *d != axis).map(|(_, n)| *n).collect()
            };
            if axis >= node.shape.len() || others(&node.shape) != others(&shape) {
                return Err(misfit(NAME, format!("{:?} and {:?}", first.shape, node.shape)));
            }
            all += node.shape[axis];
        }
        shape[axis] = all;
        let dtype = first.dtype;
        Ok(self.push(Op::Concat(parts.to_vec(), axis), dtype, shape))
    }

    /// `x` rounded to e4m3 in units of `scale` (one number, or one per row), and back in its own type.
    pub fn through_fp8(&mut self, x: Value, scale: Value) -> Result<Value, GraphError> {
        let (node, scales) = (self.node(x), self.node(scale));
        let fits = match scales.shape[..] {
            [] => true,
            [rows] => node.shape.len() == 2 && node.shape[0] == rows,
            _ => false,
        };
        if !fits || scales.dtype != Type::F32 {
            return Err(misfit("quantisation", format!("{:?} by {:?}", node.shape, scales.shape)));
        }
        let (dtype, shape) = (node.dtype, node.shape.clone());
        let small = self.push(Op::Quantize(x, scale), Type::Fp8, shape.clone());
        Ok(self.push(Op::Dequantize(small, scale), dtype, shape))
    }

    fn like(&mut self, op: Op, x: Value) -> Value {
        let (dtype, shape) = (self.node(x).dtype, self.node(x).shape.clone());
        self.push(op, dtype, shape)
    }

    fn push(&mut self, op: Op, dtype: Type, shape: Vec<usize>) -> Value {
        self.nodes.push(Node { op, dtype, shape });
        Value(self.nodes.len() - 1)
    }
}

fn misfit(operation: &'static str, misfit: String) -> GraphError {
    GraphError { operation, misfit }
}

fn same_type(operation: &'static str, a: &Node, b: &Node) -> Result<Type, GraphError> {
    if a.dtype != b.dtype {
        return Err(misfit(operation, format!("{} and {}", a.dtype, b.dtype)));
    }
    Ok(a.dtype)
}

fn broadcast(operation: &'static str, a: &[usize], b: &[usize]) -> Result<Vec<usize>, GraphError> {
    let one = |(&a, &b): (&usize, &usize)| match (a, b) {
        (a, b) if a == b => Some(a),
        (1, n) | (n, 1) => Some(n),
        _ => None,
    };
    let shape = (a.len() == b.len()).then(|| a.iter().zip(b).map(one).collect::<Option<Vec<_>>>()).flatten();
    shape.ok_or_else(|| misfit(operation, format!("{a:?} and {b:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let mut g = Graph::default();
        let a = g.input("a", Type::F32, &[2, 3]);
        let b = g.input("b", Type::F32, &[3, 2]);
        let c = g.input("c", Type::Bf16, &[2, 3]);
        let said = |r: Result<Value, GraphError>| r.unwrap_err().to_string();
        assert!(said(g.matmul(a, b, true)).contains("matmul: [2, 3] and [3, 2]"));
        assert!(said(g.add(a, c)).contains("f32 and bf16"));
        assert!(said(g.add(a, b)).contains("elementwise"));
        assert!(said(g.reshape(a, &[7])).contains("reshape"));
        assert!(said(g.slice(a, &[0, 2], &[1, 2])).contains("slice"));
        assert!(said(g.concat(&[a, b], 0)).contains("concatenation"));
        assert!(said(g.transpose(a, &[0, 0])).contains("transpose"));
        assert_eq!(g.matmul(a, b, false).map(|v| g.node(v).shape.clone()), Ok(vec![2, 2]));
    }
}
