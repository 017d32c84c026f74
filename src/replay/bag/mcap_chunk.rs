//! Loads one stretch of an MCAP file (a chunk, or messages outside chunks) and brings its messages in time order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::vec;

use mcap::records::op;

use super::mcap_record::{Chunk, HEAD_BYTES, MessageHead, head};
use super::{BagError, MAX_CHUNK_BYTES};

/// Bytes of a file that are loaded as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Offset of its first record's head.
    pub(super) offset: u64,
    /// Bytes, heads included. Within the file.
    pub(super) length: u64,
    /// Log time of its earliest message.
    pub(super) start: i64,
    /// One chunk record; else records that are not in a chunk.
    pub(super) chunk: bool,
    /// The file ends inside it.
    pub(super) cut: bool,
}

/// A stretch in memory: its messages of the wanted topics, earliest first.
pub(super) struct Loaded {
    data: Vec<u8>,
    messages: vec::IntoIter<Message>,
}

struct Message {
    log_time: i64,
    topic: usize,
    payload: Range<usize>,
}

impl Message {
    fn parse(data: &[u8], body: Range<usize>, topics: &BTreeMap<i64, usize>) -> Result<Self, String> {
        let head = data.get(body.clone()).and_then(MessageHead::parse);
        let MessageHead { channel, log_time } = head.ok_or("a message without a readable header")?;
        let topic = topics.get(&i64::from(channel));
        let topic = *topic.ok_or_else(|| format!("a message of channel {channel}, which is not declared"))?;
        Ok(Self { log_time, topic, payload: body.start + MessageHead::BYTES..body.end })
    }
}

impl Loaded {
    /// Reads `stretch` and keeps the messages whose channel leads (by `topics`) to a topic that is `wanted`.
    pub(super) fn read(
        path: &Path,
        stretch: &Stretch,
        topics: &BTreeMap<i64, usize>,
        wanted: &[bool],
    ) -> Result<Self, BagError> {
        let bytes = read(path, stretch)?;
        let damaged = |what: String| BagError::damaged(path, format!("{what} (byte {})", stretch.offset));
        let data = if stretch.chunk { unpack(&bytes, stretch.cut).map_err(damaged)? } else { bytes };
        let mut messages = Vec::new();
        for record in records(&data) {
            let message = record.and_then(|(opcode, body)| {
                if opcode == op::MESSAGE { Message::parse(&data, body, topics).map(Some) } else { Ok(None) }
            });
            match message {
                Ok(message) => {
                    messages.extend(message.filter(|message| wanted.get(message.topic) == Some(&true)));
                }
                Err(_) if stretch.cut => break,
                Err(what) => return Err(damaged(what)),
            }
        }
        messages.sort_by_key(|m| m.log_time);
        Ok(Self { data, messages: messages.into_iter() })
    }

    /// Bytes held.
    pub(super) fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// Log time of the next message.
    pub(super) fn next_time(&self) -> Option<i64> {
        self.messages.as_slice().first().map(|m| m.log_time)
    }

    /// Topic, log time and payload of the next message.
    pub(super) fn take(&mut self) -> Option<(usize, i64, Vec<u8>)> {
        let message = self.messages.next()?;
        Some((message.topic, message.log_time, self.data.get(message.payload)?.to_vec()))
    }
}

/// The bytes of a stretch, as they are in the file.
pub(super) fn read(path: &Path, stretch: &Stretch) -> Result<Vec<u8>, BagError> {
    if stretch.length > MAX_CHUNK_BYTES {
        let Stretch { offset, length, .. } = stretch;
        let what = format!("a chunk of {length} bytes at byte {offset}, expected at most {MAX_CHUNK_BYTES}");
        return Err(BagError::damaged(path, what));
    }
    let mut file = File::open(path).map_err(BagError::io(path))?;
    file.seek(SeekFrom::Start(stretch.offset)).map_err(BagError::io(path))?;
    let mut bytes = Vec::new();
    file.take(stretch.length).read_to_end(&mut bytes).map_err(BagError::io(path))?;
    if (bytes.len() as u64) < stretch.length {
        return Err(BagError::damaged(path, "the file became shorter while it was read"));
    }
    Ok(bytes)
}

/// The records inside a chunk, decompressed and checked; of a chunk that is `cut` what can be had, unchecked.
pub(super) fn unpack(record: &[u8], cut: bool) -> Result<Vec<u8>, String> {
    let chunk = record
        .split_first_chunk()
        .filter(|(first, _)| head(**first).0 == op::CHUNK)
        .and_then(|(_, body)| Chunk::parse(body))
        .ok_or("no chunk where the index has one")?;
    if chunk.size > MAX_CHUNK_BYTES {
        return Err(format!("a chunk claims {} bytes, expected at most {MAX_CHUNK_BYTES}", chunk.size));
    }
    let mut data = Vec::new();
    let done = match chunk.compression {
        "" => chunk.compressed.take(chunk.size).read_to_end(&mut data),
        "zstd" => zstd::Decoder::with_buffer(chunk.compressed)
            .and_then(|decoder| decoder.take(chunk.size).read_to_end(&mut data)),
        "lz4" => lz4::Decoder::new(chunk.compressed)
            .and_then(|decoder| decoder.take(chunk.size).read_to_end(&mut data)),
        other => return Err(format!("a chunk compressed with \"{other}\", expected zstd, lz4 or nothing")),
    };
    if cut {
        return Ok(data);
    }
    if !chunk.whole {
        return Err("a chunk that is longer than its record".to_owned());
    }
    done.map_err(|e| format!("a chunk does not decompress: {e}"))?;
    if data.len() as u64 != chunk.size {
        return Err(format!("a chunk of {} bytes, expected {}", data.len(), chunk.size));
    }
    let crc = crc32fast::hash(&data);
    if chunk.crc != 0 && chunk.crc != crc {
        return Err(format!("a chunk with checksum {crc:08x}, expected {:08x}", chunk.crc));
    }
    Ok(data)
}

/// The records in `data`: opcode and where the body lies. Ends after the first error.
pub(super) fn records(data: &[u8]) -> impl Iterator<Item = Result<(u8, Range<usize>), String>> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = data.get(at..).filter(|rest| !rest.is_empty())?;
        let Some((first, body)) = rest.split_first_chunk() else {
            at = data.len();
            return Some(Err("a record's head is incomplete".to_owned()));
        };
        let (opcode, length) = head(*first);
        match usize::try_from(length).ok().filter(|&n| n <= body.len()) {
            Some(length) => {
                let start = at + HEAD_BYTES;
                at = start + length;
                Some(Ok((opcode, start..at)))
            }
            None => {
                at = data.len();
                Some(Err(format!("a record claims {length} bytes where {} are left", body.len())))
            }
        }
    })
}
