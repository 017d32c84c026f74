//! JSON side files, walked key by key: a wrong value is refused by its path in the file, with what was expected.
//!
//! Promises that a file's size and number of values are bounded before it is parsed. Of two equal keys the last
//! counts, as in the reference implementations.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::error::CheckpointError;
use crate::printable::printable;

/// Longest side file that is read, in bytes; the largest known one, an index of shards, has 100 kB.
pub(super) const MAX_SIDE_FILE: u64 = 4 << 20;
/// Most values in one side file: a parsed value takes some 80 bytes, however little it takes in the file.
const MAX_VALUES: usize = 1 << 16;

/// A parsed side file.
#[derive(Debug)]
pub(super) struct SideFile {
    path: PathBuf,
    root: Value,
}

impl SideFile {
    /// Reads `path`; `None` if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CheckpointError> {
        let Some(bytes) = read_bounded(path)? else { return Ok(None) };
        let values = bytes.iter().filter(|b| matches!(b, b',' | b':' | b'[' | b'{')).count();
        if values > MAX_VALUES {
            let problem = format!("more than {MAX_VALUES} values: not a side file of a checkpoint");
            return Err(CheckpointError::file(path, problem));
        }
        match serde_json::from_slice(&bytes) {
            Ok(root) => Ok(Some(Self { path: path.to_owned(), root })),
            Err(e) => {
                let problem = match word_of_python(&bytes, &e) {
                    Some(word) => format!(
                        "found {word} at line {} column {}, and JSON has no such number: if it is a statistic, \
                         compute it anew from finite values, else write a number in its place",
                        e.line(),
                        e.column()
                    ),
                    None => format!("not valid JSON: {}", printable(&e.to_string())),
                };
                Err(CheckpointError::file(path, problem))
            }
        }
    }

    /// The whole file as a value.
    pub(super) fn root(&self) -> Field<'_> {
        Field { file: &self.path, key: String::new(), value: &self.root }
    }
}

/// One value of a side file, which knows where it stands.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    file: &'a Path,
    key: String,
    value: &'a Value,
}

impl<'a> Field<'a> {
    /// The member `key` of an object; `None` if it is missing or null.
    pub(super) fn get(&self, key: &str) -> Result<Option<Field<'a>>, CheckpointError> {
        let Value::Object(members) = self.value else { return Err(self.wrong("an object")) };
        Ok(members.get(key).filter(|value| !value.is_null()).map(|value| self.below(key, value)))
    }

    /// The member `key` of an object.
    pub(super) fn require(&self, key: &str, expected: &str) -> Result<Field<'a>, CheckpointError> {
        match self.get(key)? {
            Some(field) => Ok(field),
            None => Err(self.below(key, &Value::Null).wrong(expected)),
        }
    }

    /// Names and values of an object, in file order.
    pub(super) fn members(&self) -> Result<impl Iterator<Item = (&'a str, Field<'a>)>, CheckpointError> {
        let Value::Object(members) = self.value else { return Err(self.wrong("an object")) };
        Ok(members.iter().map(|(key, value)| (key.as_str(), self.below(key, value))))
    }

    /// Elements of a list.
    pub(super) fn items(&self) -> Result<impl Iterator<Item = Field<'a>>, CheckpointError> {
        let Value::Array(items) = self.value else { return Err(self.wrong("a list")) };
        Ok(items.iter().enumerate().map(|(i, value)| Field {
            file: self.file,
            key: format!("{}[{i}]", self.key),
            value,
        }))
    }

    /// A whole number from 1 to `max`.
    pub(super) fn count(&self, max: usize) -> Result<usize, CheckpointError> {
        let number = self.value.as_u64().and_then(|n| usize::try_from(n).ok());
        number
            .filter(|n| (1..=max).contains(n))
            .ok_or_else(|| self.wrong(&format!("a whole number from 1 to {max}")))
    }

    /// A finite number.
    pub(super) fn number(&self) -> Result<f64, CheckpointError> {
        self.value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong("a finite number"))
    }

    /// True or false.
    pub(super) fn flag(&self) -> Result<bool, CheckpointError> {
        self.value.as_bool().ok_or_else(|| self.wrong("true or false"))
    }

    /// A string.
    pub(super) fn text(&self) -> Result<&'a str, CheckpointError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    /// A list of strings.
    pub(super) fn texts(&self) -> Result<Vec<String>, CheckpointError> {
        self.items()?.map(|item| Ok(item.text()?.to_owned())).collect()
    }

    /// A list of finite numbers.
    pub(super) fn numbers(&self) -> Result<Vec<f64>, CheckpointError> {
        self.items()?.map(|item| item.number()).collect()
    }

    /// The error that something else was expected here.
    pub(super) fn wrong(&self, expected: &str) -> CheckpointError {
        CheckpointError::Key {
            file: self.file.to_owned(),
            key: if self.key.is_empty() { "the whole file".into() } else { printable(&self.key) },
            expected: expected.to_owned(),
            found: match self.value {
                Value::Null => "nothing".into(),
                Value::Bool(b) => b.to_string(),
                Value::Number(n) => n.to_string(),
                Value::String(s) => format!("\"{}\"", printable(s)),
                Value::Array(items) => format!("a list of {}", items.len()),
                Value::Object(members) => format!("an object of {}", members.len()),
            },
        }
    }

    fn below(&self, key: &str, value: &'a Value) -> Field<'a> {
        let key = if self.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.key) };
        Field { file: self.file, key, value }
    }
}

/// What Python writes for a number that is not finite, if that is where the parser stopped.
fn word_of_python(bytes: &[u8], stopped: &serde_json::Error) -> Option<&'static str> {
    let line = bytes.split(|&b| b == b'\n').nth(stopped.line().checked_sub(1)?)?;
    let rest = line.get(stopped.column().checked_sub(1)?..)?;
    ["NaN", "Infinity"].into_iter().find(|word| rest.starts_with(word.as_bytes()))
}

/// A whole file of at most [`MAX_SIDE_FILE`] bytes; `None` if there is no such file.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let io = |e| CheckpointError::io(path, e);
    match path.metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
        Ok(metadata) if !metadata.is_file() => {
            return Err(CheckpointError::file(path, "expected a JSON file, found something that is no file"));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|f| f.take(MAX_SIDE_FILE + 1).read_to_end(&mut bytes)).map_err(io)?;
    if bytes.len() as u64 > MAX_SIDE_FILE {
        let problem = format!("longer than {MAX_SIDE_FILE} bytes: not a side file of a checkpoint");
        return Err(CheckpointError::file(path, problem));
    }
    Ok(Some(bytes))
}
