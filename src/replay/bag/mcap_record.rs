//! The few MCAP records that reading messages needs, parsed from bytes (format: mcap.dev/spec).
//!
//! Every length is checked against the bytes that are there before it is used; strings and payloads are borrowed.
//! The `mcap` crate, which writes our files, is not used to read strangers' ones: its parser reserves what a length
//! field claims before it looks at what follows.

/// Opcode and length, which stand before every record's body.
pub(super) const HEAD_BYTES: usize = 9;

/// Opcode and body length of the record that starts with `head`.
pub(super) fn head(head: [u8; HEAD_BYTES]) -> (u8, u64) {
    let [opcode, length @ ..] = head;
    (opcode, u64::from_le_bytes(length))
}

/// Reads fields one after the other; `None` where the bytes run out or are not what they should be.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// Nanoseconds; those after the year 2262 are taken for damage.
    fn time(&mut self) -> Option<i64> {
        self.u64()?.try_into().ok()
    }

    /// Bytes after a 32-bit length.
    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(length as usize)
    }

    fn string(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.prefixed()?).ok()
    }
}

/// Name of a message type; its definition is not needed.
pub(super) struct Schema<'a> {
    pub(super) id: u16,
    pub(super) name: &'a str,
}

impl<'a> Schema<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        Some(Self { id: fields.u16()?, name: fields.string()? })
    }
}

/// A topic of one publisher.
pub(super) struct Channel<'a> {
    pub(super) id: u16,
    pub(super) schema: u16,
    pub(super) topic: &'a str,
    pub(super) encoding: &'a str,
}

impl<'a> Channel<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        Some(Self {
            id: fields.u16()?,
            schema: fields.u16()?,
            topic: fields.string()?,
            encoding: fields.string()?,
        })
    }
}

/// What stands before a message's payload.
pub(super) struct MessageHead {
    pub(super) channel: u16,
    pub(super) log_time: i64,
}

impl MessageHead {
    /// Channel, sequence number, log time, publish time.
    pub(super) const BYTES: usize = 2 + 4 + 8 + 8;

    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        let channel = fields.u16()?;
        let _sequence = fields.u32()?;
        let log_time = fields.time()?;
        let _publish_time = fields.u64()?;
        Some(Self { channel, log_time })
    }
}

/// A chunk's header and the compressed bytes that follow it: all of them, or what is there of a cut chunk.
pub(super) struct Chunk<'a> {
    pub(super) size: u64,
    pub(super) crc: u32,
    pub(super) compression: &'a str,
    pub(super) compressed: &'a [u8],
    /// All compressed bytes are there.
    pub(super) whole: bool,
}

impl<'a> Chunk<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        let (_start, _end) = (fields.u64()?, fields.u64()?);
        let size = fields.u64()?;
        let crc = fields.u32()?;
        let compression = fields.string()?;
        let claimed = usize::try_from(fields.u64()?).ok();
        let whole = claimed.and_then(|n| fields.bytes(n));
        Some(Self {
            size,
            crc,
            compression,
            compressed: whole.unwrap_or(fields.rest),
            whole: whole.is_some(),
        })
    }
}

/// Where a chunk lies, as the summary says.
pub(super) struct ChunkIndex {
    pub(super) start: i64,
    pub(super) offset: u64,
    /// Bytes of the chunk record, its head included.
    pub(super) length: u64,
    /// Bytes of the message indexes that follow it.
    pub(super) message_index_length: u64,
}

impl ChunkIndex {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        let start = fields.time()?;
        let _end = fields.u64()?;
        let (offset, length) = (fields.u64()?, fields.u64()?);
        let _message_index_offsets = fields.prefixed()?;
        Some(Self { start, offset, length, message_index_length: fields.u64()? })
    }
}

/// Counts over the whole file.
pub(super) struct Statistics {
    pub(super) messages: u64,
    pub(super) channels: u32,
    pub(super) chunks: u32,
    pub(super) start: i64,
    pub(super) end: i64,
    pub(super) per_channel: Vec<(u16, u64)>,
}

impl Statistics {
    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        let messages = fields.u64()?;
        let _schemas = fields.u16()?;
        let channels = fields.u32()?;
        let (_attachments, _metadata) = (fields.u32()?, fields.u32()?);
        let chunks = fields.u32()?;
        let (start, end) = (fields.time()?, fields.time()?);
        let mut pairs = Fields::new(fields.prefixed()?);
        let mut per_channel = Vec::new();
        while !pairs.rest.is_empty() {
            per_channel.push((pairs.u16()?, pairs.u64()?));
        }
        Some(Self { messages, channels, chunks, start, end, per_channel })
    }
}

/// The last record of a whole file.
pub(super) struct Footer {
    /// Offset of the summary section; 0 if there is none.
    pub(super) summary_start: u64,
    /// Checksum of the summary section and this record up to here; 0 if there is none.
    pub(super) summary_crc: u32,
}

impl Footer {
    /// Length of its body.
    pub(super) const BYTES: usize = 8 + 8 + 4;

    pub(super) fn parse(body: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(body);
        let summary_start = fields.u64()?;
        let _summary_offset_start = fields.u64()?;
        Some(Self { summary_start, summary_crc: fields.u32()? })
    }
}
