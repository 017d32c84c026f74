//! Text to token ids, exactly as SentencePiece (openpi) or Hugging Face's `tokenizers` (LeRobot) give them
//! (spec/PI05.md §3.4).
//!
//! Promises: a tokenizer that does not fit the network is refused when it is loaded, never noticed by its actions.
//! Called by [`super::Policy`]. Never truncates or pads, and adds no BOS: the caller does.

mod anatomy;
mod paligemma;

use std::{
    collections::HashSet,
    fs::File,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use kitoken::{Definition, Kitoken, Processing, SpecialToken, SpecialTokenKind};

use anatomy::Anatomy;

/// Beginning of sequence: stands before every prompt.
pub const BOS: u32 = 2;

/// PaliGemma's `tokenizer.json` has 17 MB; nothing near this size is a tokenizer.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The tokenizer of the built-in models: 512 pieces, PaliGemma's settings.
pub const BUILTIN: &[u8] = include_bytes!("../tiny_tokenizer.model");

/// Why a tokenizer is refused, or a text could not be tokenised.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{file}: {reason}; give SentencePiece's `tokenizer.model` or Hugging Face's `tokenizer.json`")]
    Unreadable {
        /// Where.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The number of pieces is not that of the embedding.
    #[error(
        "{file}: the tokenizer has {pieces} pieces, the model's embedding {rows} rows; \
         use the tokenizer that the model was trained with"
    )]
    Size {
        /// Where.
        file: String,
        /// Pieces in the file.
        pieces: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A special token is not where the network expects it.
    #[error("{file}: {name} should have id {expected}, it has {found}; use a tokenizer made for π0.5")]
    Special {
        /// Where.
        file: String,
        /// Which token.
        name: &'static str,
        /// Id that the references use.
        expected: u32,
        /// Id in the file, or `none`.
        found: String,
    },
    /// It has PaliGemma's size, but is another one.
    #[error(
        "{file}: this is not PaliGemma's tokenizer: token {position} of {text:?} should be {expected}, \
         it is {found}; use the model's own tokenizer"
    )]
    Golden {
        /// Where.
        file: String,
        /// Known text.
        text: &'static str,
        /// First token that differs, counted from 0 at BOS.
        position: usize,
        /// Known id, or `none`.
        expected: String,
        /// Id that came out, or `none`.
        found: String,
    },
    /// A text gave an id that the embedding does not have.
    #[error(
        "a piece of the prompt has token {id}, the model's embedding {rows} rows; leave it out of the prompt"
    )]
    OutOfRange {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        rows: usize,
    },
    /// A text could not be tokenised.
    #[error("the prompt cannot be tokenised: {0}; reword it")]
    Encode(String),
}

/// A tokenizer that fits the network.
#[derive(Debug)]
pub struct Tokenizer {
    inner: Kitoken,
    /// Special tokens that a text may name literally.
    literal: Vec<SpecialTokenKind>,
    pieces: usize,
    rows: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    SentencePiece,
    HuggingFace,
}

impl Tokenizer {
    /// Reads a SentencePiece `.model` or a `tokenizer.json` for an embedding of `rows` rows.
    pub fn from_file(path: &Path, rows: usize) -> Result<Self, TokenizerError> {
        let file = path.display().to_string();
        let unreadable = |reason: String| TokenizerError::Unreadable { file: file.clone(), reason };
        let metadata = path.metadata().map_err(|e| unreadable(e.to_string()))?;
        if !metadata.is_file() {
            return Err(unreadable("not a regular file".to_owned()));
        }
        if metadata.len() > MAX_FILE_BYTES {
            return Err(unreadable(format!("larger than {} MiB, no tokenizer is", MAX_FILE_BYTES >> 20)));
        }
        let mut bytes = Vec::new();
        let open = File::open(path).map_err(|e| unreadable(e.to_string()))?;
        open.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(|e| unreadable(e.to_string()))?;
        Self::from_bytes(&bytes, rows, &file)
    }

    /// Parses what [`from_file`](Self::from_file) reads; `file` is said in errors.
    pub fn from_bytes(bytes: &[u8], rows: usize, file: &str) -> Result<Self, TokenizerError> {
        let unreadable =
            |reason: String| TokenizerError::Unreadable { file: file.to_owned(), reason: one_line(&reason) };
        let format = if bytes.trim_ascii_start().starts_with(b"{") && !bytes.starts_with(b"\n") {
            Format::HuggingFace
        } else {
            Format::SentencePiece // whose first byte is a newline: field 1, length-delimited
        };
        let anatomy = match format {
            Format::SentencePiece => Anatomy::of_sentencepiece(bytes),
            Format::HuggingFace => Anatomy::of_hugging_face(bytes),
        }
        .map_err(unreadable)?;
        anatomy.check_fit(rows, file)?;
        let tokenizer = Self::build(bytes, format, &anatomy, rows).map_err(unreadable)?;
        if paligemma::has_its_rows(rows) {
            tokenizer.check_golden(file)?;
        }
        Ok(tokenizer)
    }

    /// The 512-piece tokenizer of the built-in models, whatever the rows of their embedding.
    pub fn builtin() -> Result<Self, TokenizerError> {
        Self::from_bytes(BUILTIN, 512, "built-in tokenizer")
    }

    /// Number of token ids.
    pub fn pieces(&self) -> usize {
        self.pieces
    }

    /// The tokens of `text`, without BOS. Every id is below the rows of the embedding.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        // A pattern in a `tokenizer.json` may give up on a text, for which kitoken has only a panic.
        let ids = catch_unwind(AssertUnwindSafe(|| self.inner.encode(text, self.literal.as_slice())))
            .map_err(|_| TokenizerError::Encode("the tokenizer's patterns gave up".to_owned()))?
            .map_err(|e| TokenizerError::Encode(one_line(&e.to_string())))?;
        match ids.iter().find(|&&id| id as usize >= self.rows) {
            Some(&id) => Err(TokenizerError::OutOfRange { id, rows: self.rows }),
            None => Ok(ids),
        }
    }

    /// Hands the file to kitoken and sets it up to do what the reference does and nothing else.
    fn build(bytes: &[u8], format: Format, anatomy: &Anatomy, rows: usize) -> Result<Self, String> {
        let build = || -> Result<Kitoken, String> {
            let definition = match format {
                Format::SentencePiece => Definition::from_sentencepiece_slice(bytes),
                Format::HuggingFace => Definition::from_tokenizers_slice(bytes),
            };
            let mut definition = definition.map_err(|e| e.to_string())?;
            // Padding and truncation are the caller's. Unknown characters fall back to bytes; then a run of the
            // unknown token can only stand for literal ones, which the references do not collapse.
            let keep = |p: &Processing| !anatomy.byte_fallback && matches!(p, Processing::Collapse { .. });
            definition.config.processing.retain(keep);
            // kitoken drops an added token that the merges can make as well; the reference looks for it first.
            let kept: HashSet<Vec<u8>> = definition.specials.iter().map(|s| s.bytes.clone()).collect();
            let dropped = anatomy.added.iter().filter(|(_, text, _)| !kept.contains(text.as_bytes()));
            definition.specials.extend(dropped.map(|(id, text, raw)| SpecialToken {
                id: *id,
                bytes: text.clone().into_bytes(),
                kind: SpecialTokenKind::Priority,
                ident: None,
                score: 0.0,
                extract: *raw,
            }));
            // Both references take the longest special token that fits, not the first.
            definition.specials.sort_by_key(|special| std::cmp::Reverse(special.bytes.len()));
            Kitoken::from_definition(definition).map_err(|e| e.to_string())
        };
        // kitoken trusts its input in places (it unwraps the longest piece of an empty vocabulary).
        let inner = catch_unwind(AssertUnwindSafe(build)).unwrap_or_else(|_| Err("damaged".to_owned()))?;
        let literal = match format {
            Format::SentencePiece => vec![SpecialTokenKind::Priority],
            Format::HuggingFace => {
                vec![SpecialTokenKind::Priority, SpecialTokenKind::Control, SpecialTokenKind::Unknown]
            }
        };
        Ok(Self { inner, literal, pieces: anatomy.pieces, rows })
    }

    /// PaliGemma's tokenizer gives known ids for known prompts.
    fn check_golden(&self, file: &str) -> Result<(), TokenizerError> {
        for &(text, expected) in paligemma::GOLDEN {
            let mut found = vec![BOS];
            let unreadable = |e: TokenizerError| TokenizerError::Unreadable {
                file: file.to_owned(),
                reason: format!("{text:?}: {e}"),
            };
            found.extend(self.encode(text).map_err(unreadable)?);
            if found != expected {
                let position = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
                let say = |ids: &[u32]| ids.get(position).map_or("none".to_owned(), u32::to_string);
                let (expected, found) = (say(expected), say(&found));
                return Err(TokenizerError::Golden {
                    file: file.to_owned(),
                    text,
                    position,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

/// A library's message as one short line.
fn one_line(message: &str) -> String {
    const LONGEST: usize = 200;
    let line: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    line.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn recorded(name: &str) -> (std::path::PathBuf, Vec<u8>) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    }

    fn json(name: &str) -> Value {
        serde_json::from_slice(&recorded(name).1).unwrap()
    }

    fn with_bos(tokenizer: &Tokenizer, case: &Value) -> Value {
        let ids = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
        [&[BOS], ids.as_slice()].concat().into()
    }

    #[test]
    fn the_tiny_model_gives_the_recorded_ids_and_pieces() {
        let (path, bytes) = recorded("fixtures/data/tiny_tokenizer.model");
        assert_eq!(bytes, BUILTIN);
        let model = sentencepiece_model::SentencePieceModel::from_slice(bytes).unwrap();
        let data = json("fixtures/data/data.json");
        let cases = data["tiny_tokenizer"]["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 7);
        for tokenizer in [Tokenizer::from_file(&path, 512).unwrap(), Tokenizer::builtin().unwrap()] {
            for case in cases {
                assert_eq!(with_bos(&tokenizer, case), case["ids"], "{}", case["text"]);
                let ids = tokenizer.encode(case["text"].as_str().unwrap()).unwrap();
                let pieces: Vec<&str> = ids.iter().map(|&id| model.pieces()[id as usize].piece()).collect();
                assert_eq!(Value::from(pieces), case["pieces"]);
            }
        }
    }

    /// Odd strings through real SentencePiece and real `tokenizers`: unicode, control characters, runs of spaces,
    /// special tokens spelled out (which only `tokenizers` reads as such).
    #[test]
    fn both_formats_give_what_the_real_libraries_give() {
        let recording = json("tokenizer_cases.json");
        let cases = recording["cases"].as_array().unwrap();
        assert!(cases.len() >= 200);
        for (format, file) in
            [("sentencepiece", "fixtures/data/tiny_tokenizer.model"), ("hugging_face", "tiny_tokenizer.json")]
        {
            let tokenizer = Tokenizer::from_file(&recorded(file).0, 512).unwrap();
            for case in cases {
                assert_eq!(with_bos(&tokenizer, case), case[format], "{format} {}", case["text"]);
            }
        }
    }
}
