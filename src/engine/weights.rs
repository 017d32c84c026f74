//! Weights in memory: mapped from their files and used where they lie, or made procedurally.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::{Advice, Mmap, MmapMut};
use pulp::Arch;
use sha2::{Digest, Sha256};

use super::EngineError;
use crate::model::dims::Dims;
use crate::model::names;
use crate::model::synth;
use crate::model::tensors::{Dtype, TensorTable};

/// Bytes of a tensor that a fingerprint looks at, at the start, in the middle and at the end.
const SAMPLE: usize = 4096;

/// One tensor's elements. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Arc<[usize]>,
    store: Store,
    bytes: Range<usize>,
}

#[derive(Clone)]
enum Store {
    Mapped(Arc<Mmap>),
    Made(Arc<MmapMut>),
}

/// All tensors by canonical name.
pub struct Weights {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// Maps the files of a checkpoint. Nothing is read yet; pages come in as they are used.
    pub fn map(table: &TensorTable) -> Result<Self, EngineError> {
        let mut maps = Vec::with_capacity(table.files.len());
        for path in &table.files {
            let error = |source| EngineError::Map { file: path.display().to_string(), source };
            let file = File::open(path).map_err(error)?;
            // SAFETY: the mapping is private and only read. Another process that changes or truncates the file while
            // we run could change weights or kill this process (SIGBUS): the same contract every mapped model file has.
            let map = unsafe { Mmap::map(&file) }.map_err(error)?;
            // Advice only; a kernel that refuses it still works.
            let _ = map.advise(Advice::WillNeed);
            maps.push(Arc::new(map));
        }
        let mut tensors = BTreeMap::new();
        for (name, entry) in &table.entries {
            let map = &maps[entry.file];
            let len = entry.elements().and_then(|n| n.checked_mul(entry.dtype.size()));
            let start = usize::try_from(entry.offset).ok();
            let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
            let (Some(start), Some(end)) = (start, end.filter(|&end| end <= map.len())) else {
                return Err(EngineError::OutOfFile {
                    file: table.files[entry.file].display().to_string(),
                    tensor: name.clone(),
                    end: entry.offset.saturating_add(len.unwrap_or(usize::MAX) as u64),
                    len: map.len() as u64,
                });
            };
            let tensor = Tensor {
                dtype: entry.dtype,
                shape: entry.shape.as_slice().into(),
                store: Store::Mapped(map.clone()),
                bytes: start..end,
            };
            tensors.insert(name.clone(), tensor);
        }
        Ok(Self { tensors })
    }

    /// Makes the procedural weights of a built-in network in memory, in its own dtype.
    /// `progress` is told how many parameters each step made.
    pub fn synthetic(
        dims: &Dims,
        dtype: Dtype,
        mut progress: impl FnMut(usize),
    ) -> Result<Self, EngineError> {
        let mut tensors = BTreeMap::new();
        for (name, shape) in names::required(dims) {
            let len = shape.iter().product::<usize>();
            let bytes = 0..len * dtype.size();
            let mut map = MmapMut::map_anon(bytes.end).map_err(EngineError::OutOfMemory)?;
            // Advice only: gigabytes in 4 KiB pages cost more to fault in than to compute.
            #[cfg(target_os = "linux")]
            let _ = map.advise(Advice::HugePage);
            synth::fill(&name, &shape, dtype, 0, &mut map);
            tensors.insert(
                name,
                Tensor { dtype, shape: shape.into(), store: Store::Made(Arc::new(map)), bytes },
            );
            progress(len);
        }
        Ok(Self { tensors })
    }

    /// Which weights these are, at a glance: SHA-256, in hexadecimal, of the name, type and shape of every tensor that `dims`
    /// implies, and of a sample of its elements. Training changes all of a tensor's elements, so a sample tells.
    pub fn fingerprint(&self, dims: &Dims) -> Result<String, EngineError> {
        let mut hash = Sha256::new();
        for (name, _) in names::required(dims) {
            let tensor = self.get(&name).ok_or_else(|| EngineError::Missing(name.clone()))?;
            hash.update(format!("{name} {:?} {:?}\n", tensor.dtype(), tensor.shape()));
            let bytes = tensor.bytes();
            let last = bytes.len().saturating_sub(SAMPLE);
            for start in [0, last / 2, last] {
                hash.update(&bytes[start..bytes.len().min(start + SAMPLE)]);
            }
        }
        Ok(format!("{:x}", hash.finalize()))
    }

    /// A tensor that is in the table; `None` otherwise.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).cloned()
    }
}

impl Tensor {
    /// Row-major shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Raw little-endian elements.
    pub fn bytes(&self) -> &[u8] {
        let all: &[u8] = match &self.store {
            Store::Mapped(map) => map,
            Store::Made(map) => map,
        };
        &all[self.bytes.clone()]
    }

    /// The elements where they lie, if they are f32 and aligned.
    pub fn as_f32(&self) -> Option<&[f32]> {
        (self.dtype == Dtype::F32).then(|| bytemuck::try_cast_slice(self.bytes()).ok()).flatten()
    }

    /// Elements `range` as f32 (exact for every dtype), into `out` of the same length.
    pub fn convert(&self, range: Range<usize>, out: &mut [f32]) {
        let size = self.dtype.size();
        let bytes = &self.bytes()[range.start * size..range.end * size];
        match self.dtype {
            Dtype::F32 => each(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => each(bytes, out, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
            Dtype::F16 => each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        }
    }

    /// Elements `range` as bf16, rounded to nearest even, little-endian into `out` of two bytes each.
    pub fn store_bf16(&self, range: Range<usize>, out: &mut [u8]) {
        if self.dtype == Dtype::BF16 {
            out.copy_from_slice(&self.bytes()[range.start * 2..range.end * 2]);
            return;
        }
        let mut values = vec![0.0; range.len()];
        self.convert(range, &mut values);
        let (pairs, _) = out.as_chunks_mut::<2>();
        for (pair, value) in pairs.iter_mut().zip(values) {
            *pair = bf16::from_f32(value).to_le_bytes();
        }
    }

    /// Elements `range` as f32, little-endian into `out` of four bytes each.
    pub fn store_f32(&self, range: Range<usize>, out: &mut [u8]) {
        let mut values = vec![0.0; range.len()];
        self.convert(range, &mut values);
        out.copy_from_slice(bytemuck::cast_slice(&values));
    }

    /// All elements as f32.
    pub fn to_vec(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        self.convert(0..out.len(), &mut out);
        out
    }
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    Arch::new().dispatch(|| {
        for (value, &chunk) in out.iter_mut().zip(chunks) {
            *value = convert(chunk);
        }
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_fingerprint_is_of_the_weights() {
        let of =
            |dims: &Dims, dtype| Weights::synthetic(dims, dtype, |_| {}).unwrap().fingerprint(dims).unwrap();
        assert_eq!(of(&Dims::TINY, Dtype::F32), of(&Dims::TINY, Dtype::F32));
        assert_ne!(of(&Dims::TINY, Dtype::F32), of(&Dims::TINY, Dtype::BF16));
        assert_ne!(of(&Dims::TINY, Dtype::F32), of(&Dims { vocab: 513, ..Dims::TINY }, Dtype::F32));
    }
}
