//! Brings the records of all files and chunks of a bag in one order, by log time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Read;

use super::mcap_chunk::Loaded;
use super::sqlite_file::Rows;
use super::{Bag, BagError, BagFile, MAX_MESSAGE_BYTES, MAX_OVERLAP_BYTES, Part, Record};

/// Iterator over records; made by [`Bag::records`].
pub struct Records<'a> {
    bag: &'a Bag,
    wanted: Vec<bool>,
    /// Every part of every file, in the order of the files.
    parts: Vec<State<'a>>,
    /// The parts that have more to give: log time that no further message of it precedes, index into `parts`.
    queue: BinaryHeap<Reverse<(i64, usize)>>,
    /// Bytes of loaded chunks.
    held: u64,
    last: i64,
    /// An error that was met behind a record which had to be given first.
    failed: Option<BagError>,
}

enum State<'a> {
    /// Not opened yet; only its start is known.
    Waiting(&'a BagFile, &'a Part),
    Chunk(Loaded),
    Rows(Box<Rows>),
    Done,
}

impl<'a> Records<'a> {
    pub(super) fn new(bag: &'a Bag, topics: &[usize]) -> Self {
        let wanted = (0..bag.topics.len()).map(|topic| topics.contains(&topic)).collect();
        let parts = bag.files.iter().flat_map(|file| file.parts.iter().map(move |part| (file, part)));
        let queue = parts.clone().enumerate().map(|(i, (_, part))| Reverse((part.start(), i))).collect();
        let parts = parts.map(|(file, part)| State::Waiting(file, part)).collect();
        Self { bag, wanted, parts, queue, held: 0, last: i64::MIN, failed: None }
    }

    /// The next record of all; opens what is due.
    fn advance(&mut self) -> Result<Option<Record>, BagError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while let Some(Reverse((_, index))) = self.queue.pop() {
            let Some(state) = self.parts.get_mut(index) else { continue };
            let mut taken = None;
            let next = match state {
                State::Waiting(file, Part::Mcap(stretch)) => {
                    let loaded = Loaded::read(&file.path, stretch, &file.topics, &self.wanted)?;
                    self.held += loaded.size();
                    if self.held > MAX_OVERLAP_BYTES {
                        let what = format!("chunks of more than {MAX_OVERLAP_BYTES} bytes overlap in time");
                        return Err(BagError::damaged(&file.path, what));
                    }
                    let next = loaded.next_time();
                    if next.is_none() {
                        self.held -= loaded.size();
                    }
                    *state = State::Chunk(loaded);
                    next
                }
                State::Waiting(file, Part::Sqlite { cut, .. }) => {
                    let mut rows = Rows::open(&file.path, *cut, &file.topics, &self.wanted)?;
                    let next = rows.next_time()?;
                    *state = State::Rows(Box::new(rows));
                    next
                }
                State::Chunk(loaded) => {
                    taken = loaded.take();
                    if loaded.next_time().is_none() {
                        self.held -= loaded.size();
                    }
                    loaded.next_time()
                }
                State::Rows(rows) => {
                    taken = rows.take()?;
                    rows.next_time().unwrap_or_else(|error| {
                        self.failed = Some(error);
                        None
                    })
                }
                State::Done => None,
            };
            match next {
                Some(time) => self.queue.push(Reverse((time, index))),
                None => *state = State::Done,
            }
            if let Some((topic, log_time, payload)) = taken {
                return self.record(topic, log_time, payload).map(Some);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
        }
        Ok(None)
    }

    fn record(&mut self, topic: usize, log_time: i64, payload: Vec<u8>) -> Result<Record, BagError> {
        if log_time < self.last {
            let what = format!("a message of time {log_time} comes after {}: its index is wrong", self.last);
            return Err(BagError::damaged(&self.bag.path, what));
        }
        self.last = log_time;
        let payload = if self.bag.zstd_messages { self.decompress(&payload)? } else { payload };
        Ok(Record { topic, log_time, payload })
    }

    fn decompress(&self, payload: &[u8]) -> Result<Vec<u8>, BagError> {
        let mut plain = Vec::new();
        zstd::Decoder::with_buffer(payload)
            .and_then(|decoder| decoder.take(MAX_MESSAGE_BYTES + 1).read_to_end(&mut plain))
            .map_err(|e| BagError::damaged(&self.bag.path, format!("a message does not decompress: {e}")))?;
        if plain.len() as u64 > MAX_MESSAGE_BYTES {
            let what = format!("a message of more than {MAX_MESSAGE_BYTES} bytes when decompressed");
            return Err(BagError::damaged(&self.bag.path, what));
        }
        Ok(plain)
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, BagError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.advance().transpose();
        if !matches!(record, Some(Ok(_))) {
            self.queue.clear();
            self.parts.clear();
        }
        record
    }
}
