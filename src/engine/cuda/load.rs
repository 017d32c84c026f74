//! Weights onto the GPU: converted by all cores into pinned memory while the piece before is copied.

use half::bf16;
use rayon::prelude::*;

use super::driver::{Buffer, Event, Gpu, Launch, Pinned};
use super::lane::{Kernels, STAGES, compiled};
use crate::engine::EngineError;
use crate::engine::calibration::{Calibration, Mean, Rounded};
use crate::engine::weights::{Tensor, Weights};

/// Bytes of a staging buffer.
const STAGING: usize = 64 << 20;
/// Elements that one thread converts at a time.
const PIECE: usize = 1 << 18;

/// A matrix on the GPU: in the engine's type, or in e4m3 with scales.
pub struct Weight {
    pub values: Buffer,
    scales: Option<Scales>,
}

struct Scales {
    /// f32, of the matrix's rows: their scale times that of what they are multiplied with.
    multipliers: Buffer,
    /// f32, of the matrix's rows: their bias, and what rounding takes away in the mean.
    bias: Buffer,
    /// 1 / scale of what they are multiplied with.
    inverse: f32,
}

impl Weight {
    /// What activations are multiplied by before they become e4m3; 0: they stay bf16.
    pub fn inverse(&self) -> f32 {
        self.scales.as_ref().map_or(0.0, |scales| scales.inverse)
    }

    /// Where the rows' multipliers are, or 0.
    pub fn multipliers(&self) -> u64 {
        self.scales.as_ref().map_or(0, |scales| scales.multipliers.address)
    }

    /// Where the rows' biases in f32 are, of an e4m3 matrix, or 0.
    pub fn bias(&self) -> u64 {
        self.scales.as_ref().map_or(0, |scales| scales.bias.address)
    }

    pub fn is_fp8(&self) -> bool {
        self.scales.is_some()
    }
}

/// What rows and columns of an e4m3 matrix must be multiples of: the library's products take no other.
const FP8_MULTIPLE: usize = 16;

/// Puts tensors on the GPU.
pub struct Loader<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    bf16: bool,
    staging: [(Pinned, Event); 2],
    turn: usize,
    fp8: Option<(&'a Calibration, Kernels)>,
    /// Bytes on the GPU so far.
    pub bytes: usize,
}

impl<'a> Loader<'a> {
    /// `calibration`: what matrices are multiplied with that [`Loader::weight`] makes e4m3.
    pub fn new(
        gpu: &'a Gpu,
        weights: &'a Weights,
        bf16: bool,
        calibration: Option<&'a Calibration>,
    ) -> Result<Self, EngineError> {
        let fp8 = match calibration {
            Some(calibration) => {
                let names = [("quantise_rows", 0)];
                Some((calibration, compiled(gpu, STAGES, &["BF16".to_owned()], &names)?))
            }
            None => None,
        };
        let staging = || Ok::<_, EngineError>((Pinned::new(STAGING)?, Event::new()?));
        Ok(Self { gpu, weights, bf16, staging: [staging()?, staging()?], turn: 0, fp8, bytes: 0 })
    }

    pub fn tensor(&self, name: &str) -> Result<Tensor, EngineError> {
        self.weights.get(name).ok_or_else(|| EngineError::Missing(name.to_owned()))
    }

    /// Matrices one below the other, in the engine's type; rows are padded with zeros to `pitch` elements.
    pub fn matrices(&mut self, names: &[String], pitch: Option<usize>) -> Result<Buffer, EngineError> {
        self.ordered(names, pitch, None)
    }

    /// Matrices one below the other, in the engine's type, rows in an order (order.rs) that leaves each in its matrix.
    pub fn packed(&mut self, names: &[String], order: &[i32]) -> Result<Weight, EngineError> {
        let values = self.ordered(names, None, Some(order))?;
        Ok(Weight { values, scales: None })
    }

    fn ordered(
        &mut self,
        names: &[String],
        pitch: Option<usize>,
        order: Option<&[i32]>,
    ) -> Result<Buffer, EngineError> {
        let tensors = names.iter().map(|name| self.tensor(name)).collect::<Result<Vec<_>, _>>()?;
        let size = if self.bf16 { 2 } else { 4 };
        let columns = |t: &Tensor| t.shape()[1..].iter().product::<usize>();
        let pitch = pitch.unwrap_or_else(|| tensors.first().map_or(1, columns));
        let rows: usize = tensors.iter().map(|t| t.shape()[0]).sum();
        let buffer = self.gpu.zeros(rows * pitch * size)?;
        self.bytes += buffer.bytes;
        let (mut at, mut above) = (buffer.address, 0);
        for tensor in &tensors {
            let (rows, columns) = (tensor.shape()[0], columns(tensor));
            let step = (STAGING / (pitch * size)).max(1);
            let source = |row: usize| order.map_or(row, |order| order[above + row] as usize - above);
            for first in (0..rows).step_by(step) {
                let count = step.min(rows - first);
                self.piece(tensor, &|row| source(first + row) * columns, count, columns, pitch, at)?;
                at += (count * pitch * size) as u64;
            }
            above += rows;
        }
        Ok(buffer)
    }

    /// One matrix.
    pub fn matrix(&mut self, name: String) -> Result<Buffer, EngineError> {
        self.matrices(&[name], None)
    }

    /// Matrices one below the other, possibly none, with their biases, if they have any; `of`: what they are multiplied
    /// with, by its name in the calibration.
    pub fn weight(&mut self, names: &[String], biases: &[String], of: &str) -> Result<Weight, EngineError> {
        let values = self.matrices(names, None)?;
        let chosen =
            self.fp8.as_ref().and_then(|(calibration, kernels)| Some((calibration.chosen(of)?, kernels)));
        let (Some((Rounded { scale, mean }, kernels)), Some(first)) = (chosen, names.first()) else {
            return Ok(Weight { values, scales: None });
        };
        let first = self.tensor(first)?;
        let k: usize = first.shape()[1..].iter().product();
        let rows = values.bytes / 2 / k;
        if !k.is_multiple_of(FP8_MULTIPLE) || !rows.is_multiple_of(FP8_MULTIPLE) {
            return Ok(Weight { values, scales: None });
        }
        let (narrow, multipliers) = (self.gpu.zeros(rows * k)?, self.gpu.zeros(rows * 4)?);
        let Mean { exact, rounded } = mean.unwrap_or_default();
        let mut means = [exact, rounded].concat();
        means.resize(2 * k, 0.0); // all of one length, which was checked where the file was read
        let mut bias = self.values(biases)?;
        bias.resize(rows, 0.0);
        let (means, bias) = (self.gpu.buffer(&means)?, self.gpu.buffer(&bias)?);
        let args = [
            (&values).into(),
            (&narrow).into(),
            (&multipliers).into(),
            (&means).into(),
            (&bias).into(),
            k.into(),
            scale.into(),
        ];
        self.gpu.launch(kernels["quantise_rows"], Launch::new([rows, 1, 1], 128, 0), false, &args)?;
        self.gpu.synchronize()?;
        self.bytes = self.bytes + narrow.bytes + multipliers.bytes + bias.bytes - values.bytes;
        Ok(Weight { values: narrow, scales: Some(Scales { multipliers, bias, inverse: 1.0 / scale }) })
    }

    /// Whether [`Loader::weight`] may make a matrix e4m3 that is multiplied with this.
    pub fn is_chosen(&self, of: &str) -> bool {
        self.fp8.as_ref().is_some_and(|(calibration, _)| calibration.chosen(of).is_some())
    }

    /// Vectors one after the other, in the engine's type.
    pub fn vectors(&mut self, names: &[String]) -> Result<Buffer, EngineError> {
        let values = self.values(names)?;
        let buffer = if self.bf16 {
            self.gpu.buffer(&values.iter().map(|&v| bf16::from_f32(v).to_bits()).collect::<Vec<_>>())?
        } else {
            self.gpu.buffer(&values)?
        };
        self.bytes += buffer.bytes;
        Ok(buffer)
    }

    /// A vector in f32, each value plus `offset`.
    pub fn wide(&mut self, name: &str, offset: f32) -> Result<Buffer, EngineError> {
        let values: Vec<f32> = self.tensor(name)?.to_vec().iter().map(|v| v + offset).collect();
        self.bytes += size_of_val(values.as_slice());
        self.gpu.buffer(&values)
    }

    fn values(&self, names: &[String]) -> Result<Vec<f32>, EngineError> {
        let mut values = Vec::new();
        for name in names {
            values.extend(self.tensor(name)?.to_vec());
        }
        Ok(values)
    }

    /// `count` rows of a tensor, which begin at these elements, to device memory at `to`.
    fn piece(
        &mut self,
        tensor: &Tensor,
        start: &(dyn Fn(usize) -> usize + Sync),
        count: usize,
        columns: usize,
        pitch: usize,
        to: u64,
    ) -> Result<(), EngineError> {
        let size = if self.bf16 { 2 } else { 4 };
        let (pinned, copied) = &mut self.staging[self.turn];
        self.turn = 1 - self.turn;
        copied.wait()?;
        let bytes = &mut pinned.bytes()[..count * pitch * size];
        let rows = (PIECE / columns).max(1);
        bytes.par_chunks_mut(rows * pitch * size).enumerate().for_each(|(piece, bytes)| {
            for (row, bytes) in bytes.chunks_exact_mut(pitch * size).enumerate() {
                let start = start(piece * rows + row);
                let (filled, rest) = bytes.split_at_mut(columns * size);
                rest.fill(0);
                if size == 2 {
                    tensor.store_bf16(start..start + columns, filled);
                } else {
                    tensor.store_f32(start..start + columns, filled);
                }
            }
        });
        self.gpu.upload_later(to, pinned, count * pitch * size)?;
        self.gpu.mark(copied, false)
    }
}
