//! Reads a SQLite recording (rosbag2's `.db3`) without ever writing: not to the file, not beside it.
//!
//! Rows come in pages by time, so memory holds some hundred keys and one message. Only of a file that was cut, or that
//! lacks rosbag2's index on time, all keys (32 bytes per message) are held and sorted.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, Params, Row, params};

use super::sqlite_pages::{page_size, u32_at, whole_rows};
use super::{BagError, Contents, MAX_MESSAGE_BYTES, Part, Topic};

/// Keys fetched at once.
const PAGE_ROWS: i64 = 512;
/// Length of SQLite's file header.
const HEADER_BYTES: u64 = 100;

/// Topics, time span and notes of the SQLite file at `path`.
pub(super) fn index(path: &Path) -> Result<Contents, BagError> {
    let cut = is_cut(path)?;
    let mut contents = Contents { topics: Vec::new(), parts: Vec::new(), span: None, notes: Vec::new() };
    if cut {
        contents.notes.push(format!("{}: truncated; read to its last whole record", path.display()));
    }
    for suffix in ["-wal", "-journal"] {
        let beside = sibling(path, suffix);
        if fs::metadata(&beside).is_ok_and(|m| m.len() > 0) {
            let beside = beside.display();
            contents.notes.push(format!(
                "{beside}: changes that SQLite has not merged are left out; merge them with: sqlite3 {} .tables",
                path.display()
            ));
        }
    }
    match topics_and_span(path, cut) {
        Ok((topics, span)) => {
            contents.topics = topics;
            contents.span = span;
            contents.parts.extend(span.map(|(start, _)| Part::Sqlite { start, cut }));
            Ok(contents)
        }
        Err(BagError::Damaged { .. } | BagError::NotABag { .. }) if cut => Ok(contents), // cut before its tables
        Err(e) => Err(e),
    }
}

type TopicsAndSpan = (Vec<(i64, Topic)>, Option<(i64, i64)>);

fn topics_and_span(path: &Path, cut: bool) -> Result<TopicsAndSpan, BagError> {
    let damaged = |e: rusqlite::Error| BagError::damaged(path, e.to_string());
    let db = open(path, cut).map_err(damaged)?;
    check_table(path, &db, "topics", &["id", "name", "type", "serialization_format"])?;
    check_table(path, &db, "messages", &["topic_id", "timestamp", "data"])?;
    let mut topics = Vec::new();
    let mut query =
        db.prepare("SELECT id, name, type, serialization_format FROM topics ORDER BY id").map_err(damaged)?;
    let rows = query
        .query_map([], |row| {
            let type_name: String = row.get(2)?;
            Ok((row.get(0)?, Topic::new(row.get(1)?, &type_name, row.get(3)?, None)))
        })
        .map_err(damaged)?;
    for row in rows.take(if cut { rows_left(path, &db, "topics") } else { usize::MAX }) {
        topics.push(row.map_err(damaged)?);
    }
    let span = if cut {
        let keys = readable_keys(path, &db);
        keys.front().zip(keys.back()).map(|(first, last)| (first.timestamp, last.timestamp))
    } else {
        // One by one, each is one end of an index; together they would read all of it. What is no number is left out
        // here (SQLite sorts it behind every number) and makes trouble when its turn comes.
        let end = |which| {
            let query = format!("SELECT {which}(timestamp) FROM messages WHERE timestamp <= {}", i64::MAX);
            db.query_row(&query, [], |row| row.get::<_, Option<i64>>(0)).map_err(damaged)
        };
        end("min")?.zip(end("max")?)
    };
    Ok((topics, span))
}

/// The messages of one file, read as they are asked for.
pub(super) struct Rows {
    path: PathBuf,
    db: Connection,
    keys: VecDeque<Key>,
    /// Where the next page begins; `None` if there is no next page.
    after: Option<(i64, i64)>,
    /// What stopped the reading of keys; reported when those before it are used up.
    failed: Option<BagError>,
    cut: bool,
    size: u64,
    topics: BTreeMap<i64, usize>,
    wanted: Vec<bool>,
}

/// A message without its payload.
#[derive(Clone, Copy)]
struct Key {
    rowid: i64,
    topic: i64,
    timestamp: i64,
    bytes: i64,
}

impl Key {
    const COLUMNS: &str = "rowid, topic_id, timestamp, length(data)";

    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { rowid: row.get(0)?, topic: row.get(1)?, timestamp: row.get(2)?, bytes: row.get(3)? })
    }
}

impl Rows {
    /// Opens the file at its earliest message. `topics`: topic id → topic; those `wanted` are read.
    pub(super) fn open(
        path: &Path,
        cut: bool,
        topics: &BTreeMap<i64, usize>,
        wanted: &[bool],
    ) -> Result<Self, BagError> {
        let damaged = |e: rusqlite::Error| BagError::damaged(path, e.to_string());
        let size = fs::metadata(path).map_err(BagError::io(path))?.len();
        let db = open(path, cut).map_err(damaged)?;
        let mut keys = VecDeque::new();
        let (mut after, mut failed) = (None, None);
        if cut {
            keys = readable_keys(path, &db);
        } else if has_time_index(&db).map_err(damaged)? {
            after = Some((i64::MIN, i64::MIN));
        } else {
            let all = format!("SELECT {} FROM messages ORDER BY timestamp, rowid", Key::COLUMNS);
            failed = add_keys(&db, &all, [], &mut keys).err().map(damaged);
        }
        let (topics, wanted) = (topics.clone(), wanted.to_owned());
        Ok(Self { path: path.to_owned(), db, keys, after, failed, cut, size, topics, wanted })
    }

    /// Log time of the next message.
    pub(super) fn next_time(&mut self) -> Result<Option<i64>, BagError> {
        loop {
            if self.keys.is_empty() {
                self.fetch_page();
            }
            if self.keys.is_empty()
                && let Some(error) = self.failed.take()
            {
                return Err(error);
            }
            let Some(key) = self.keys.front() else { return Ok(None) };
            let Some(topic) = self.topics.get(&key.topic) else {
                if self.cut {
                    return Ok(None);
                }
                let what = format!("message {} of topic {}, which is not declared", key.rowid, key.topic);
                return Err(self.damaged(what));
            };
            if self.wanted.get(*topic) == Some(&true) {
                return Ok(Some(key.timestamp));
            }
            self.keys.pop_front();
        }
    }

    /// Topic, log time and payload of the next message; call [`Rows::next_time`] first.
    pub(super) fn take(&mut self) -> Result<Option<(usize, i64, Vec<u8>)>, BagError> {
        let Some(key) = self.keys.pop_front() else { return Ok(None) };
        let Some(&topic) = self.topics.get(&key.topic) else { return Ok(None) };
        match self.payload(key) {
            Ok(payload) => Ok(Some((topic, key.timestamp, payload))),
            Err(_) if self.cut => {
                self.keys.clear(); // this row's pages are among those that are missing
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn payload(&self, key: Key) -> Result<Vec<u8>, BagError> {
        let most = self.size.min(MAX_MESSAGE_BYTES);
        if u64::try_from(key.bytes).is_ok_and(|bytes| bytes > most) {
            let what = format!("message {} claims {} bytes, expected at most {most}", key.rowid, key.bytes);
            return Err(self.damaged(what));
        }
        let read = || {
            let mut query = self.db.prepare("SELECT data FROM messages WHERE rowid = ?1")?;
            query.query_row(params![key.rowid], |row| Ok(row.get_ref(0)?.as_blob()?.to_vec()))
        };
        read().map_err(|e: rusqlite::Error| self.damaged(format!("message {}: {e}", key.rowid)))
    }

    fn fetch_page(&mut self) {
        let Some((timestamp, rowid)) = self.after.take() else { return };
        let page = format!(
            "SELECT {} FROM messages WHERE (timestamp, rowid) > (?1, ?2) ORDER BY timestamp, rowid LIMIT {PAGE_ROWS}",
            Key::COLUMNS
        );
        match add_keys(&self.db, &page, [timestamp, rowid], &mut self.keys) {
            Ok(()) => self.after = self.keys.back().map(|last| (last.timestamp, last.rowid)),
            Err(e) => self.failed = Some(self.damaged(e.to_string())),
        }
    }

    fn damaged(&self, what: String) -> BagError {
        BagError::damaged(&self.path, what)
    }
}

/// Is the file shorter than its header says? (SQLite's file format: page size at byte 16, pages at byte 28, valid if
/// the counters at bytes 24 and 92 agree.)
fn is_cut(path: &Path) -> Result<bool, BagError> {
    let file = File::open(path).map_err(BagError::io(path))?;
    let size = file.metadata().map_err(BagError::io(path))?.len();
    let mut header = Vec::new();
    file.take(HEADER_BYTES).read_to_end(&mut header).map_err(BagError::io(path))?;
    if (header.len() as u64) < HEADER_BYTES {
        return Ok(true);
    }
    let fields = (page_size(&header), u32_at(&header, 28), u32_at(&header, 24), u32_at(&header, 92));
    let (Some(page_size), Some(pages), Some(changes), Some(valid_for)) = fields else {
        return Ok(false); // SQLite will say that it is no database
    };
    Ok(changes == valid_for && size < page_size * u64::from(pages))
}

/// Opens read-only and as a file that nobody changes: no lock, no journal, nothing created beside it.
fn open(path: &Path, cut: bool) -> rusqlite::Result<Connection> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut uri = String::from("file:");
    for &byte in absolute.as_os_str().as_encoded_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-_.".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            write!(uri, "%{byte:02X}").unwrap_or_default(); // writing to a String does not fail
        }
    }
    uri.push_str("?immutable=1");
    let db = Connection::open_with_flags(uri, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI)?;
    db.pragma_update(None, "trusted_schema", false)?;
    db.pragma_update(None, "cell_size_check", true)?;
    if cut {
        // SQLite refuses a file that is shorter than its header says, except to those who may repair it.
        db.pragma_update(None, "writable_schema", true)?;
    }
    Ok(db)
}

/// Refuses a database that is no rosbag2 recording, or whose table is a view or computes its columns.
fn check_table(path: &Path, db: &Connection, table: &str, columns: &[&str]) -> Result<(), BagError> {
    let damaged = |e: rusqlite::Error| BagError::damaged(path, e.to_string());
    let not_a_bag = |found: String| BagError::NotABag { path: path.to_owned(), found };
    let kind = "SELECT type FROM pragma_table_list WHERE schema = 'main' AND name = ?1";
    let kind: Option<String> = db.query_row(kind, [table], |row| row.get(0)).optional().map_err(damaged)?;
    if kind.as_deref() != Some("table") {
        return Err(not_a_bag(format!("a SQLite database without a table \"{table}\"")));
    }
    for column in columns {
        let plain = "SELECT 1 FROM pragma_table_xinfo(?1) WHERE name = ?2 AND hidden = 0";
        let found: Option<i64> =
            db.query_row(plain, [table, column], |row| row.get(0)).optional().map_err(damaged)?;
        if found.is_none() {
            return Err(not_a_bag(format!(
                "a SQLite database whose table \"{table}\" has no column \"{column}\""
            )));
        }
    }
    Ok(())
}

/// Does an index begin with the time? rosbag2 makes one.
fn has_time_index(db: &Connection) -> rusqlite::Result<bool> {
    let query = "SELECT count(*) FROM pragma_index_list('messages') AS list, pragma_index_info(list.name) AS column \
                 WHERE list.partial = 0 AND column.seqno = 0 AND column.name = 'timestamp'";
    db.query_row(query, [], |row| row.get::<_, i64>(0)).map(|count| count > 0)
}

/// Adds what a query of [`Key::COLUMNS`] gives up to its first error.
fn add_keys(
    db: &Connection,
    sql: &str,
    params: impl Params,
    keys: &mut VecDeque<Key>,
) -> rusqlite::Result<()> {
    let mut query = db.prepare(sql)?;
    for key in query.query_map(params, Key::from_row)? {
        keys.push_back(key?);
    }
    Ok(())
}

/// The keys of a cut file before the first row that is not whole, by time.
fn readable_keys(path: &Path, db: &Connection) -> VecDeque<Key> {
    let whole = rows_left(path, db, "messages");
    let mut keys = Vec::new();
    let all = format!("SELECT {} FROM messages NOT INDEXED ORDER BY rowid", Key::COLUMNS);
    if let Ok(mut query) = db.prepare(&all)
        && let Ok(rows) = query.query_map([], Key::from_row)
    {
        keys.extend(rows.take(whole).map_while(Result::ok));
    }
    keys.sort_by_key(|key| (key.timestamp, key.rowid));
    keys.into()
}

/// How many rows of a table, by their ids, a cut file has before the first one that is not whole.
fn rows_left(path: &Path, db: &Connection, table: &str) -> usize {
    let root = "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = ?1";
    db.query_row(root, [table], |row| row.get(0)).map_or(0, |root| whole_rows(path, root))
}

/// The file that SQLite keeps beside `path`.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
