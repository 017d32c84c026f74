//! Safetensors files as the tests read and write them: with the format's own crate, not with ours.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A file's tensors by name.
pub type Arrays = BTreeMap<String, Array>;

/// One tensor, row-major and little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Array {
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self::new(Dtype::F32, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn i64(shape: &[usize], values: &[i64]) -> Self {
        Self::new(Dtype::I64, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub fn u8(shape: &[usize], bytes: Vec<u8>) -> Self {
        Self::new(Dtype::U8, shape, bytes)
    }

    pub fn bits(shape: &[usize], bits: impl IntoIterator<Item = bool>) -> Self {
        Self::u8(shape, bits.into_iter().map(u8::from).collect())
    }

    fn new(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len() * 8, shape.iter().product::<usize>() * dtype.bitsize());
        Self { dtype, shape: shape.to_vec(), bytes }
    }

    /// The elements, exact for every type that a fixture has.
    pub fn values(&self) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|&b| value(b)).collect()
        }
        match self.dtype {
            Dtype::F64 => each(&self.bytes, f64::from_le_bytes),
            Dtype::F32 => each(&self.bytes, |b| f32::from_le_bytes(b).into()),
            Dtype::BF16 => each(&self.bytes, |b| half::bf16::from_le_bytes(b).into()),
            Dtype::F16 => each(&self.bytes, |b| half::f16::from_le_bytes(b).into()),
            Dtype::I64 => each(&self.bytes, |b| i64::from_le_bytes(b) as f64),
            Dtype::U8 => each(&self.bytes, |b| u8::from_le_bytes(b).into()),
            other => panic!("no fixture has {other:?}"),
        }
    }

    /// The elements of a tensor whose values f32 can hold.
    pub fn f32s(&self) -> Vec<f32> {
        self.values().iter().map(|&v| v as f32).collect()
    }

    /// Which elements are not 0.
    pub fn is_set(&self) -> Vec<bool> {
        self.values().iter().map(|&v| v != 0.0).collect()
    }
}

pub fn read(path: &Path) -> Arrays {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let array = |t: &TensorView<'_>| Array::new(t.dtype(), t.shape(), t.data().to_vec());
    file.tensors().iter().map(|(name, tensor)| (name.clone(), array(tensor))).collect()
}

pub fn write(arrays: &Arrays, path: &Path) {
    let views = arrays.iter().map(|(name, Array { dtype, shape, bytes })| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Largest difference between two equally long lists; NaN if any value is.
pub fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "as many values");
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |worst, d| if d > worst || d.is_nan() { d } else { worst })
}
