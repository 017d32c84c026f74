//! Indexes an MCAP file: its channels, and where which messages lie.
//!
//! With a summary, the walk through the file steps over the chunks that it lists and looks only at what lies between
//! them (messages may stand outside chunks). Without one, or if it does not fit the file, every chunk is read once.

use std::collections::{BTreeMap, btree_map::Entry};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mcap::MAGIC;
use mcap::records::op;

use super::mcap_chunk::{self, Stretch};
use super::mcap_record::{Channel, ChunkIndex, Footer, HEAD_BYTES, MessageHead, Schema, Statistics, head};
use super::{BagError, Contents, MAX_CHUNK_BYTES, Part, Topic};

/// Largest summary that is used; it has some 100 bytes per chunk, so this is enough for a terabyte.
const MAX_SUMMARY_BYTES: u64 = 256 << 20;
/// Longest schema or channel record outside a chunk.
const MAX_DECLARATION_BYTES: u64 = 16 << 20;
/// Messages outside chunks are loaded together up to this size.
const PLAIN_STRETCH_BYTES: u64 = 1 << 20;
/// Footer record and the magic after it, at the end of every whole file.
const TAIL_BYTES: usize = HEAD_BYTES + Footer::BYTES + MAGIC.len();

/// Topics, stretches, time span and notes of the MCAP file at `path`.
pub(super) fn index(path: &Path) -> Result<Contents, BagError> {
    let file = File::open(path).map_err(BagError::io(path))?;
    let size = file.metadata().map_err(BagError::io(path))?.len();
    let mut source = Source { path: path.to_owned(), size, file: BufReader::new(file) };
    let mut notes = Vec::new();
    let name = path.display();
    let summary = source.summary()?;
    let unfinished = matches!(summary, Summary::Unfinished);
    let indexed = match summary {
        Summary::Usable(summary) => {
            let walk = source.walk_summary(summary)?;
            if walk.is_none() {
                notes.push(format!(
                    "{name}: its index does not fit its content; read from start to end instead"
                ));
            }
            walk
        }
        Summary::Unusable(why) => {
            notes.push(format!("{name}: {why}; read from start to end instead"));
            None
        }
        Summary::Absent | Summary::Unfinished => None,
    };
    let walk = match indexed {
        Some(walk) => walk,
        None => source.walk(Walk::default(), &BTreeMap::new())?,
    };
    match &walk.end {
        End::Whole if unfinished => {
            notes.push(format!(
                "{name}: truncated after its last message, at byte {size}; no message is missing"
            ));
        }
        End::Whole => {}
        End::Cut => notes.push(format!("{name}: truncated at byte {size}; read to its last whole record")),
        End::Damaged(at, what) => {
            notes.push(format!("{name}: damaged at byte {at} of {size}: {what}; read up to there"));
        }
    }
    Ok(walk.contents(notes))
}

/// What was learned of a file so far.
#[derive(Default)]
struct Walk {
    schemas: BTreeMap<u16, String>,
    channels: BTreeMap<u16, Topic>,
    stretches: Vec<Stretch>,
    span: Option<(i64, i64)>,
    end: End,
}

#[derive(Default)]
enum End {
    /// The data section is complete.
    #[default]
    Whole,
    /// The file ends before the data section does.
    Cut,
    /// The record that starts here makes no sense.
    Damaged(u64, String),
}

/// The summary section, its chunks by offset.
struct SummarySection {
    walk: Walk,
    chunks: BTreeMap<u64, ChunkIndex>,
}

enum Summary {
    Usable(SummarySection),
    /// The file is whole and has none.
    Absent,
    /// The file does not end as a whole file does.
    Unfinished,
    Unusable(String),
}

impl Walk {
    fn declare(&mut self, opcode: u8, body: &[u8]) -> Result<(), String> {
        if opcode == op::SCHEMA {
            let schema = Schema::parse(body).ok_or("a schema that is not readable")?;
            self.schemas.entry(schema.id).or_insert_with(|| schema.name.to_owned());
        } else if opcode == op::CHANNEL {
            let channel = Channel::parse(body).ok_or("a channel that is not readable")?;
            let type_name = self.schemas.get(&channel.schema).map_or("", String::as_str);
            if let Entry::Vacant(entry) = self.channels.entry(channel.id) {
                entry.insert(Topic::new(
                    channel.topic.to_owned(),
                    type_name,
                    channel.encoding.to_owned(),
                    Some(0),
                ));
            }
        }
        Ok(())
    }

    /// Counts a message; its log time.
    fn count(&mut self, body: &[u8]) -> Result<i64, String> {
        let message = MessageHead::parse(body).ok_or("a message without a readable header")?;
        let topic = self
            .channels
            .get_mut(&message.channel)
            .ok_or_else(|| format!("a message of channel {}, which is not declared", message.channel))?;
        topic.messages = topic.messages.map(|n| n + 1);
        let time = message.log_time;
        self.span = Some(self.span.map_or((time, time), |(a, b)| (a.min(time), b.max(time))));
        Ok(time)
    }

    /// Adds a message outside chunks to the stretch before it, or begins a new one.
    fn add_plain(&mut self, offset: u64, length: u64, time: i64) {
        match self.stretches.last_mut() {
            Some(last)
                if !last.chunk
                    && last.offset + last.length == offset
                    && last.length + length <= PLAIN_STRETCH_BYTES =>
            {
                last.length += length;
                last.start = last.start.min(time);
            }
            _ => self.stretches.push(Stretch { offset, length, start: time, chunk: false, cut: false }),
        }
    }

    /// Reads a chunk for what it declares and holds: all of it, or what is there of a cut one.
    fn add_chunk(&mut self, mut stretch: Stretch, record: &[u8]) -> Result<(), String> {
        let data = mcap_chunk::unpack(record, stretch.cut)?;
        let mut start = None;
        for item in mcap_chunk::records(&data) {
            let taken = item.and_then(|(opcode, body)| {
                let body = data.get(body).unwrap_or_default();
                if opcode != op::MESSAGE {
                    return self.declare(opcode, body);
                }
                let time = self.count(body)?;
                start = Some(start.map_or(time, |s: i64| s.min(time)));
                Ok(())
            });
            match taken {
                Err(_) if stretch.cut => break,
                taken => taken?,
            }
        }
        if let Some(start) = start {
            stretch.start = start;
            self.stretches.push(stretch);
        }
        Ok(())
    }

    fn contents(self, notes: Vec<String>) -> Contents {
        Contents {
            topics: self.channels.into_iter().map(|(id, topic)| (i64::from(id), topic)).collect(),
            parts: self.stretches.into_iter().map(Part::Mcap).collect(),
            span: self.span,
            notes,
        }
    }
}

/// The file, read from anywhere.
struct Source {
    path: PathBuf,
    size: u64,
    file: BufReader<File>,
}

impl Source {
    /// Goes through the data section; chunks in `known` are taken as listed.
    fn walk(&mut self, mut walk: Walk, known: &BTreeMap<u64, ChunkIndex>) -> Result<Walk, BagError> {
        let mut at = MAGIC.len() as u64;
        loop {
            if let Some(chunk) = known.get(&at) {
                let ChunkIndex { offset, length, start, .. } = *chunk;
                walk.stretches.push(Stretch { offset, length, start, chunk: true, cut: false });
                at = at.saturating_add(length).saturating_add(chunk.message_index_length);
                continue;
            }
            match self.step(&mut walk, at)? {
                Step::Next(next) => at = next,
                Step::End(end) => {
                    walk.end = end;
                    return Ok(walk);
                }
            }
        }
    }

    /// Takes in the record at `at`.
    fn step(&mut self, walk: &mut Walk, at: u64) -> Result<Step, BagError> {
        let left = self.size.saturating_sub(at);
        if left < HEAD_BYTES as u64 {
            return Ok(Step::End(End::Cut));
        }
        let mut first = [0; HEAD_BYTES];
        self.read_at(at, &mut first)?;
        let (opcode, body) = head(first);
        let whole = body <= left - HEAD_BYTES as u64;
        if matches!(opcode, op::DATA_END | op::FOOTER) {
            return Ok(Step::End(End::Whole));
        }
        if opcode == 0 {
            return Ok(Step::End(End::Damaged(at, "no record begins there".to_owned())));
        }
        let length = if whole { HEAD_BYTES as u64 + body } else { left };
        let taken = match opcode {
            op::CHUNK => {
                let stretch = Stretch { offset: at, length, start: 0, chunk: true, cut: !whole };
                match mcap_chunk::read(&self.path, &stretch) {
                    Err(BagError::Damaged { what, .. }) => Err(what),
                    record => walk.add_chunk(stretch, &record?),
                }
            }
            _ if !whole => Ok(()),
            op::MESSAGE if length > MAX_CHUNK_BYTES => {
                Err(format!("a message of {body} bytes, expected at most {MAX_CHUNK_BYTES}"))
            }
            op::MESSAGE => {
                let head = self.body(body.min(MessageHead::BYTES as u64))?;
                walk.count(&head).map(|time| walk.add_plain(at, length, time))
            }
            op::SCHEMA | op::CHANNEL if body > MAX_DECLARATION_BYTES => {
                Err(format!("a declaration of {body} bytes, expected at most {MAX_DECLARATION_BYTES}"))
            }
            op::SCHEMA | op::CHANNEL => {
                let body = self.body(body)?;
                walk.declare(opcode, &body)
            }
            _ => Ok(()),
        };
        Ok(match taken {
            // Of a cut chunk the records up to the cut were taken; what follows them is the cut, not damage.
            Ok(()) | Err(_) if !whole => Step::End(End::Cut),
            Ok(()) => Step::Next(at + length),
            Err(what) => Step::End(End::Damaged(at, what)),
        })
    }

    /// The walk with the help of the summary; `None` if the summary does not fit the file.
    fn walk_summary(&mut self, summary: SummarySection) -> Result<Option<Walk>, BagError> {
        let SummarySection { walk, chunks } = summary;
        let (stated_span, stated) = (walk.span, walk.channels.clone());
        let walked = self.walk(walk, &chunks)?;
        let visited = walked.stretches.iter().filter(|s| chunks.contains_key(&s.offset)).count();
        if !matches!(walked.end, End::Whole)
            || visited != chunks.len()
            || walked.channels.len() != stated.len()
        {
            return Ok(None);
        }
        // The counts are those stated: the walk has seen only messages outside chunks.
        Ok(Some(Walk { span: stated_span, channels: stated, ..walked }))
    }

    /// Reads the summary section, if the file ends as a whole file does.
    fn summary(&mut self) -> Result<Summary, BagError> {
        let mut tail = [0; TAIL_BYTES];
        let Some(footer_at) = self.size.checked_sub(TAIL_BYTES as u64).filter(|&at| at >= MAGIC.len() as u64)
        else {
            return Ok(Summary::Unfinished);
        };
        self.read_at(footer_at, &mut tail)?;
        let footer = tail
            .split_first_chunk()
            .filter(|(first, _)| head(**first) == (op::FOOTER, Footer::BYTES as u64))
            .and_then(|(_, rest)| rest.ends_with(MAGIC).then(|| Footer::parse(rest)).flatten());
        let Some(footer) = footer else {
            return Ok(Summary::Unfinished);
        };
        if footer.summary_start == 0 {
            return Ok(Summary::Absent);
        }
        let size = footer_at.checked_sub(footer.summary_start).filter(|&n| n <= MAX_SUMMARY_BYTES);
        let Some(size) = size else {
            return Ok(Summary::Unusable("its index is not where the footer says".to_owned()));
        };
        self.seek(footer.summary_start)?;
        let section = self.body(size)?;
        if footer.summary_crc != 0 {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&section);
            crc.update(tail.get(..HEAD_BYTES + 16).unwrap_or_default()); // up to the checksum itself
            if crc.finalize() != footer.summary_crc {
                return Ok(Summary::Unusable("its index has a wrong checksum".to_owned()));
            }
        }
        Ok(match summary_section(&section) {
            Ok(summary) => Summary::Usable(summary),
            Err(why) => Summary::Unusable(format!("its index is not usable ({why})")),
        })
    }

    /// The next `length` bytes, which the caller has checked to be in the file.
    fn body(&mut self, length: u64) -> Result<Vec<u8>, BagError> {
        let mut bytes = Vec::new();
        (&mut self.file).take(length).read_to_end(&mut bytes).map_err(BagError::io(&self.path))?;
        if (bytes.len() as u64) < length {
            return Err(BagError::io(&self.path)(io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(bytes)
    }

    fn read_at(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), BagError> {
        self.seek(at)?;
        self.file.read_exact(bytes).map_err(BagError::io(&self.path))
    }

    /// Moves to `at`, keeping what is buffered if it is near.
    fn seek(&mut self, at: u64) -> Result<(), BagError> {
        let here = self.file.stream_position().map_err(BagError::io(&self.path))?;
        let moved = match at.checked_signed_diff(here) {
            Some(offset) => self.file.seek_relative(offset),
            None => self.file.seek(SeekFrom::Start(at)).map(drop),
        };
        moved.map_err(BagError::io(&self.path))
    }
}

enum Step {
    Next(u64),
    End(End),
}

/// Parses a summary; refuses one that does not account for every channel and chunk.
fn summary_section(section: &[u8]) -> Result<SummarySection, String> {
    let mut walk = Walk::default();
    let mut chunks = BTreeMap::new();
    let mut statistics = None;
    let mut channels = Vec::new();
    for record in mcap_chunk::records(section) {
        let (opcode, body) = record?;
        let body = section.get(body).unwrap_or_default();
        match opcode {
            op::SCHEMA => walk.declare(opcode, body)?,
            op::CHANNEL => channels.push(body),
            op::STATISTICS => statistics = Some(Statistics::parse(body).ok_or("unreadable statistics")?),
            op::CHUNK_INDEX => {
                let chunk = ChunkIndex::parse(body)
                    .filter(|chunk| chunk.length >= HEAD_BYTES as u64) // so that the walk advances
                    .ok_or("an unreadable chunk index")?;
                chunks.insert(chunk.offset, chunk);
            }
            _ => {}
        }
    }
    for body in channels {
        walk.declare(op::CHANNEL, body)?; // after all schemas: a summary may have them in any order
    }
    let statistics = statistics.ok_or("no statistics")?;
    if statistics.channels as usize != walk.channels.len() || statistics.chunks as usize != chunks.len() {
        return Err("it does not list every channel and chunk".to_owned());
    }
    let counts: BTreeMap<u16, u64> = statistics.per_channel.into_iter().collect();
    let counted = counts.values().try_fold(0, |sum: u64, &n| sum.checked_add(n)) == Some(statistics.messages);
    for (id, topic) in &mut walk.channels {
        topic.messages = counted.then(|| counts.get(id).copied().unwrap_or(0));
    }
    walk.span = (statistics.messages > 0).then_some((statistics.start, statistics.end));
    Ok(SummarySection { walk, chunks })
}
