//! Plain CDR, ROS 2's wire format: fields in order, each aligned to its own size, after a 4-byte encapsulation header.

/// Why a payload is not the message that it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CdrError {
    /// Another encoding, or no message at all.
    #[error("message encapsulation 0x{found:04x}{}, expected 0x0000 or 0x0001 (plain CDR)", encapsulation(*found))]
    Encapsulation {
        /// First two bytes of the payload.
        found: u16,
    },
    /// The payload ends early.
    #[error("field {field} needs {needed} bytes at byte {at}, but the message has {length}")]
    TooShort {
        /// The field that was read.
        field: &'static str,
        /// Offset of it in the payload.
        at: usize,
        /// Bytes that it needs at least.
        needed: u64,
        /// Bytes of the whole payload.
        length: usize,
    },
    /// A string that is none.
    #[error("field {field} at byte {at} is not a UTF-8 string")]
    NotText {
        /// The field that was read.
        field: &'static str,
        /// Offset of its first character.
        at: usize,
    },
}

/// Name of an encapsulation that is not read here.
fn encapsulation(identifier: u16) -> &'static str {
    match identifier {
        0x0002 | 0x0003 => " (a parameter list, PL_CDR)",
        0x0006..=0x000b => " (XCDR2)",
        0x28b5 => " (zstd: open the bag by its folder, whose metadata.yaml tells the compression)",
        _ => "",
    }
}

/// Length of the encapsulation header; alignment counts from behind it.
const HEADER_BYTES: usize = 4;
/// The least that a string takes: its length.
const STRING_BYTES: usize = 4;

/// Reads fields one after the other.
pub(super) struct Reader<'a> {
    payload: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(payload: &'a [u8]) -> Result<Self, CdrError> {
        let mut reader = Self { payload, at: 0, big_endian: true };
        let found = u16::from_be_bytes(reader.array("encapsulation")?);
        let _options: [u8; 2] = reader.array("encapsulation")?;
        if found > 1 {
            return Err(CdrError::Encapsulation { found });
        }
        reader.big_endian = found == 0;
        Ok(reader)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, CdrError> {
        self.array(field).map(|[byte]: [u8; 1]| byte)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, CdrError> {
        self.align(4);
        let bytes = self.array(field)?;
        Ok(if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
    }

    pub(super) fn i32(&mut self, field: &'static str) -> Result<i32, CdrError> {
        self.u32(field).map(u32::cast_signed)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, CdrError> {
        self.align(8);
        let bytes = self.array(field)?;
        Ok(if self.big_endian { u64::from_be_bytes(bytes) } else { u64::from_le_bytes(bytes) })
    }

    pub(super) fn f64(&mut self, field: &'static str) -> Result<f64, CdrError> {
        self.u64(field).map(f64::from_bits)
    }

    /// A sequence of bytes.
    pub(super) fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], CdrError> {
        let length = self.u32(field)?;
        self.take(field, u64::from(length))
    }

    /// A string without its terminating zero.
    pub(super) fn string(&mut self, field: &'static str) -> Result<&'a str, CdrError> {
        let bytes = self.bytes(field)?;
        let at = self.at - bytes.len();
        let text = bytes.strip_suffix(&[0]).unwrap_or(bytes);
        std::str::from_utf8(text).map_err(|_| CdrError::NotText { field, at })
    }

    /// A sequence of strings.
    pub(super) fn strings(&mut self, field: &'static str) -> Result<Vec<&'a str>, CdrError> {
        self.sequence(field, STRING_BYTES, |reader| reader.string(field))
    }

    /// A sequence of whatever `read` reads, each of at least `bytes` bytes.
    pub(super) fn sequence<T>(
        &mut self,
        field: &'static str,
        bytes: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, CdrError>,
    ) -> Result<Vec<T>, CdrError> {
        let count = self.u32(field)?;
        self.check(field, u64::from(count) * bytes as u64)?;
        (0..count).map(|_| read(self)).collect()
    }

    /// A sequence of numbers. An empty one is not padded.
    pub(super) fn f64s(&mut self, field: &'static str) -> Result<Vec<f64>, CdrError> {
        let count = self.u32(field)?;
        if count == 0 {
            return Ok(Vec::new());
        }
        self.align(8);
        let bytes = self.take(field, u64::from(count) * 8)?;
        let (numbers, _) = bytes.as_chunks();
        let from = if self.big_endian { f64::from_be_bytes } else { f64::from_le_bytes };
        Ok(numbers.iter().map(|&bytes| from(bytes)).collect())
    }

    fn align(&mut self, to: usize) {
        self.at = (self.at - HEADER_BYTES).next_multiple_of(to) + HEADER_BYTES; // `at` is past the header, see `new`
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], CdrError> {
        let bytes = self.take(field, N as u64)?;
        bytes.first_chunk().copied().ok_or_else(|| self.too_short(field, N as u64))
    }

    fn take(&mut self, field: &'static str, count: u64) -> Result<&'a [u8], CdrError> {
        self.check(field, count)?;
        let taken = self.payload.get(self.at..).and_then(|rest| rest.get(..count as usize));
        let taken = taken.ok_or_else(|| self.too_short(field, count))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// Are that many bytes left?
    fn check(&self, field: &'static str, count: u64) -> Result<(), CdrError> {
        let left = self.payload.len().saturating_sub(self.at);
        if count > left as u64 { Err(self.too_short(field, count)) } else { Ok(()) }
    }

    fn too_short(&self, field: &'static str, needed: u64) -> CdrError {
        CdrError::TooShort { field, at: self.at, needed, length: self.payload.len() }
    }
}

/// Writes fields one after the other, little endian.
pub(super) struct Writer<'a> {
    payload: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Into a buffer whose content goes and whose memory stays.
    pub(super) fn new(payload: &'a mut Vec<u8>) -> Self {
        payload.clear();
        payload.extend([0, 1, 0, 0]);
        Self { payload }
    }

    pub(super) fn u8(&mut self, value: u8) {
        self.payload.push(value);
    }

    pub(super) fn u32(&mut self, value: u32) {
        self.align(4);
        self.payload.extend(value.to_le_bytes());
    }

    pub(super) fn i32(&mut self, value: i32) {
        self.u32(value.cast_unsigned());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.align(8);
        self.payload.extend(value.to_le_bytes());
    }

    pub(super) fn f64(&mut self, value: f64) {
        self.u64(value.to_bits());
    }

    /// Length of a sequence; none of ours comes near 2³².
    pub(super) fn length(&mut self, length: usize) {
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }

    /// A zero ends a string for many a reader: one inside becomes a space.
    pub(super) fn string(&mut self, text: &str) {
        self.length(text.len() + 1);
        self.payload.extend(text.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
        self.payload.push(0);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.payload.extend_from_slice(bytes);
    }

    pub(super) fn strings(&mut self, texts: &[impl AsRef<str>]) {
        self.length(texts.len());
        for text in texts {
            self.string(text.as_ref());
        }
    }

    pub(super) fn f64s(&mut self, values: &[f64]) {
        self.length(values.len());
        for &value in values {
            self.f64(value);
        }
    }

    fn align(&mut self, to: usize) {
        let length = (self.payload.len() - HEADER_BYTES).next_multiple_of(to) + HEADER_BYTES; // never below, see `new`
        self.payload.resize(length, 0);
    }
}
