//! Writes safetensors files of any size, tensor by tensor, and other files so that none is ever half there.
//!
//! Promises that a file stands under its name only when all of it is on disk: a full disk or a failing source
//! leaves nothing behind. Holds no more of a tensor than its source hands over at a time.

use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::{error::CheckpointError, safetensors::METADATA};
use crate::{
    model::tensors::Dtype,
    new_file::{self, NewFile},
};

/// Bytes that are gathered before they go to disk.
const BUFFER: usize = 1 << 20;

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
}

impl NewTensor {
    /// Bytes that it takes; `None` on overflow.
    pub fn bytes(&self) -> Option<u64> {
        let size = self.dtype.size() as u64;
        self.shape.iter().try_fold(size, |n, &d| n.checked_mul(d as u64))
    }
}

/// Writes a safetensors file. Wider types come first, so that every tensor begins at a multiple of its element;
/// otherwise the order is kept.
///
/// `fill` gets the index of a tensor and writes its little-endian elements, best in pieces of many kB; `progress`
/// hears of (bytes written, bytes in all) after each piece.
pub fn write_safetensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[NewTensor],
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), CheckpointError> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(tensors[i].dtype.size()));

    let mut entries = Map::new();
    if !metadata.is_empty() {
        entries.insert(METADATA.into(), json!(metadata));
    }
    let mut total = 0u64;
    let mut lengths = vec![0; tensors.len()];
    for &i in &order {
        let NewTensor { name, dtype, shape } = &tensors[i];
        let end = tensors[i].bytes().and_then(|len| {
            lengths[i] = len;
            total.checked_add(len)
        });
        let Some(end) = end else {
            return Err(CheckpointError::tensor(
                path,
                name,
                format!("shape {shape:?} is too large to write"),
            ));
        };
        let entry = json!({"dtype": dtype_name(*dtype), "shape": shape, "data_offsets": [total, end]});
        if name == METADATA {
            return Err(CheckpointError::tensor(path, name, "the format keeps this name for itself"));
        }
        if entries.insert(name.clone(), entry).is_some() {
            return Err(CheckpointError::tensor(path, name, "was to be written twice"));
        }
        total = end;
    }
    let mut header = Value::Object(entries).to_string();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));

    write_whole(path, |file| {
        let io = |e| CheckpointError::io(path, e);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(header.as_bytes()).map_err(io)?;
        let mut done = 0;
        for &i in &order {
            let mut room = Room { file, left: lengths[i], done, total, progress };
            fill(i, &mut room).map_err(io)?;
            if room.left > 0 {
                let problem = format!("{} of {} bytes were not written", room.left, lengths[i]);
                return Err(CheckpointError::tensor(path, &tensors[i].name, problem));
            }
            done += lengths[i];
        }
        Ok(())
    })
}

/// Writes a small file.
pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    new_file::write(path, bytes).map_err(|e| CheckpointError::io(path, e))
}

/// Writes through a buffer into a file that has its name only then.
fn write_whole(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<NewFile>) -> Result<(), CheckpointError>,
) -> Result<(), CheckpointError> {
    let io = |e| CheckpointError::io(path, e);
    let mut file = BufWriter::with_capacity(BUFFER, NewFile::create(path).map_err(io)?);
    write(&mut file)?;
    file.into_inner().map_err(|e| io(e.into_error()))?.keep().map_err(io)
}

/// The place of one tensor in the file: takes exactly as many bytes as belong there.
struct Room<'a> {
    file: &'a mut BufWriter<NewFile>,
    left: u64,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Write for Room<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a tensor's data is longer than its shape",
            ));
        };
        self.file.write_all(bytes)?;
        self.left = left;
        self.done += bytes.len() as u64;
        (self.progress)(self.done, self.total);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // once, at the end of the file
    }
}

fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::BF16 => "BF16",
        Dtype::F16 => "F16",
    }
}
