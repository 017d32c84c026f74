//! Reads the headers of safetensors files, and small files whole.
//!
//! Promises: nothing is allocated because a file claims it. The header's length is held against the file's
//! length and [`MAX_HEADER`] before it is read, and every tensor that comes out lies inside the file, with the
//! bytes that its shape and type need. Refuses what the `safetensors` crate refuses (unknown types, overlaps,
//! holes, trailing bytes) and duplicate names too.
//!
//! The checks are our own, with the crate's [`Dtype`]: its errors do not say file, expected and found, it keeps
//! the last of two tensors of one name silently, and it wants the whole file mapped first.
//! Never maps a file; that is the engine's business.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
};

pub use safetensors::Dtype;
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor},
};

use super::error::CheckpointError;
use crate::printable::printable;

/// Longest header that is read; the format's own limit.
pub const MAX_HEADER: u64 = 100_000_000;
/// Largest file that [`read_case`] reads whole.
pub const MAX_CASE: u64 = 512 << 20;
/// The entry of a header that is no tensor.
pub(super) const METADATA: &str = "__metadata__";
/// Most dimensions of a tensor; the patch embedding has 4.
const MAX_RANK: usize = 8;

/// A checked header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The file's free-form notes.
    pub metadata: BTreeMap<String, String>,
    /// Every tensor by the name it has in the file.
    pub tensors: BTreeMap<String, HeaderTensor>,
}

/// One tensor of a header. `offset .. offset + len` lies inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Bytes; what shape and type need.
    pub len: u64,
}

/// One tensor read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Little-endian elements.
    pub bytes: Vec<u8>,
}

impl RawTensor {
    /// The elements as f64 (exact but for 64-bit integers beyond 2^53); `None` for types smaller than a byte,
    /// 8-bit floats and complex numbers.
    pub fn to_f64(&self) -> Option<Vec<f64>> {
        fn map<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
            Some(bytes.as_chunks::<N>().0.iter().map(|&b| f(b)).collect())
        }
        let b = &self.bytes;
        match self.dtype {
            Dtype::F64 => map(b, f64::from_le_bytes),
            Dtype::F32 => map(b, |x| f32::from_le_bytes(x).into()),
            Dtype::F16 => map(b, |x| half::f16::from_le_bytes(x).into()),
            Dtype::BF16 => map(b, |x| half::bf16::from_le_bytes(x).into()),
            Dtype::I64 => map(b, |x| i64::from_le_bytes(x) as f64),
            Dtype::U64 => map(b, |x| u64::from_le_bytes(x) as f64),
            Dtype::I32 => map(b, |x| i32::from_le_bytes(x).into()),
            Dtype::U32 => map(b, |x| u32::from_le_bytes(x).into()),
            Dtype::I16 => map(b, |x| i16::from_le_bytes(x).into()),
            Dtype::U16 => map(b, |x| u16::from_le_bytes(x).into()),
            Dtype::I8 => map(b, |x| i8::from_le_bytes(x).into()),
            Dtype::U8 | Dtype::BOOL => map(b, |x| u8::from_le_bytes(x).into()),
            _ => None,
        }
    }
}

/// Reads and checks the header of a safetensors file.
pub fn read_header(path: &Path) -> Result<Header, CheckpointError> {
    open(path, u64::MAX).map(|(header, _)| header)
}

/// Reads a recorded case (`pi05 verify`), at most [`MAX_CASE`] bytes, every tensor whole.
pub fn read_case(path: &Path) -> Result<BTreeMap<String, RawTensor>, CheckpointError> {
    read_tensors(path, MAX_CASE)
}

/// Reads every tensor of a file of at most `cap` bytes.
pub(super) fn read_tensors(path: &Path, cap: u64) -> Result<BTreeMap<String, RawTensor>, CheckpointError> {
    let (header, mut file) = open(path, cap)?;
    let mut tensors = BTreeMap::new();
    for (name, HeaderTensor { dtype, shape, offset, len }) in header.tensors {
        let mut bytes = vec![0; len as usize]; // inside the file: at most `cap`
        file.seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| CheckpointError::io(path, e))?;
        tensors.insert(name, RawTensor { dtype, shape, bytes });
    }
    Ok(tensors)
}

/// Opens a file of at most `cap` bytes and checks its header.
fn open(path: &Path, cap: u64) -> Result<(Header, File), CheckpointError> {
    let io = |e| CheckpointError::io(path, e);
    let refuse = |problem: String| Err(CheckpointError::file(path, problem));

    // Asked before opening: opening a pipe would wait for ever.
    if !path.metadata().map_err(io)?.is_file() {
        return refuse("not a regular file".into());
    }
    let mut file = File::open(path).map_err(io)?;
    let on_disk = file.metadata().map_err(io)?.len();
    if on_disk > cap {
        return refuse(format!("{on_disk} bytes long: at most {cap} are read"));
    }
    let Some(room) = on_disk.checked_sub(8) else {
        return refuse(format!(
            "expected a safetensors file, found {on_disk} bytes: download or copy it again"
        ));
    };
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    if &length == b"version " {
        return refuse("a Git LFS pointer, not the file itself: run `git lfs pull`".into());
    }
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return refuse(format!(
            "claims a header of {length} bytes, at most {MAX_HEADER} are read: not a safetensors file"
        ));
    }
    if length > room {
        return refuse(format!(
            "claims a header of {length} bytes, the file has {room} after its first 8: download or copy it again"
        ));
    }
    let mut json = vec![0; length as usize]; // at most MAX_HEADER, and all of it is on disk
    file.read_exact(&mut json).map_err(io)?;
    let raw: RawHeader = match serde_json::from_slice(&json) {
        Ok(raw) => raw,
        Err(e) => return refuse(format!("the header cannot be read: {}", printable(&e.to_string()))),
    };
    drop(json);
    Ok((check(path, raw, 8 + length, on_disk)?, file))
}

/// Holds every tensor against its shape, its neighbours and the file. `data`: where the tensors begin.
fn check(path: &Path, raw: RawHeader, data: u64, on_disk: u64) -> Result<Header, CheckpointError> {
    let mut tensors = BTreeMap::new();
    for (name, RawInfo { dtype, shape, offsets: (begin, end) }) in raw.tensors {
        let refuse = |problem: String| Err(CheckpointError::tensor(path, &name, problem));
        let Some(dtype) = dtype_from_name(&dtype) else {
            return refuse(format!("expected a dtype such as F32 or BF16, found {:?}", printable(&dtype)));
        };
        let Some(needed) = bytes_needed(dtype, &shape) else {
            return refuse(format!("shape {shape:?} of {dtype} is too large or fills no whole bytes"));
        };
        match end.checked_sub(begin) {
            None => return refuse(format!("begins at {begin} but ends before, at {end}")),
            Some(len) if len != needed => {
                return refuse(format!("shape {shape:?} of {dtype} needs {needed} bytes, found {len}"));
            }
            Some(_) => {}
        }
        let (Some(offset), Ok(shape)) =
            (data.checked_add(begin), shape.iter().map(|&d| usize::try_from(d)).collect())
        else {
            return refuse(format!("begins at {begin}, shape {shape:?}: beyond what can be addressed"));
        };
        if tensors.contains_key(&name) {
            return refuse("stands twice in the header".into());
        }
        tensors.insert(name, HeaderTensor { dtype, shape, offset, len: needed });
    }

    let mut places: Vec<_> = tensors.iter().collect();
    places.sort_by_key(|(_, t)| (t.offset, t.len));
    let mut end = data;
    let mut before = "the header";
    for (name, t) in places {
        let ends = t.offset.saturating_add(t.len);
        if ends > on_disk {
            return Err(CheckpointError::Truncated {
                file: path.to_owned(),
                found: on_disk,
                tensor: printable(name),
                end: ends,
            });
        }
        if t.offset != end {
            let how = if t.offset < end { "overlaps" } else { "leaves a hole after" };
            let problem =
                format!("begins at byte {} and {how} {}, which ends at {end}", t.offset, printable(before));
            return Err(CheckpointError::tensor(path, name, problem));
        }
        (end, before) = (ends, name);
    }
    if end != on_disk {
        let extra = on_disk - end;
        return Err(CheckpointError::file(
            path,
            format!("{extra} bytes stand after the last tensor, expected none"),
        ));
    }
    Ok(Header { metadata: raw.metadata, tensors })
}

fn dtype_from_name(name: &str) -> Option<Dtype> {
    let name: de::value::StrDeserializer<'_, de::value::Error> = name.into_deserializer();
    Dtype::deserialize(name).ok()
}

/// `None` on overflow, or where the elements do not fill whole bytes.
fn bytes_needed(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
    let bits = elements.checked_mul(dtype.bitsize() as u64)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// A header as JSON says it: every entry kept, also two of one name.
#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawInfo)>,
}

#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    #[serde(rename = "data_offsets")]
    offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut header = RawHeader::default();
                while let Some(name) = map.next_key::<String>()? {
                    let named = |e| de::Error::custom(format_args!("{}: {e}", printable(&name)));
                    if name == METADATA {
                        header.metadata = map.next_value().map_err(named)?;
                    } else {
                        let info = map.next_value().map_err(named)?;
                        header.tensors.push((name, info));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A list of at most [`MAX_RANK`] dimensions; a longer one is refused while it is read.
fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Dims;
    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a shape of at most {MAX_RANK} dimensions")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut dims = Vec::new();
            while dims.len() < MAX_RANK {
                match seq.next_element()? {
                    Some(dim) => dims.push(dim),
                    None => return Ok(dims),
                }
            }
            match seq.next_element::<IgnoredAny>()? {
                Some(_) => Err(de::Error::invalid_length(MAX_RANK + 1, &self)),
                None => Ok(dims),
            }
        }
    }
    deserializer.deserialize_seq(Dims)
}
