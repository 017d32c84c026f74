//! What a tokenizer file consists of, and whether that fits a network: counted before anything is built from it.

use std::collections::{HashMap, HashSet};

use sentencepiece_model::{ModelType, SentencePieceModel, Type};
use serde::Deserialize;

use super::{TokenizerError, paligemma};

/// Longer pieces are no pieces: PaliGemma's longest has 93 bytes. Building takes the square of this per piece.
const MAX_PIECE_BYTES: usize = 512;

/// Names and ids that every reference hard-codes.
const SPECIALS: [(&str, u32); 4] = [("<pad>", 0), ("<eos>", 1), ("<bos>", super::BOS), ("<unk>", 3)];

/// The pieces of a tokenizer, without how they are put together.
pub(super) struct Anatomy {
    /// Ids are `0..pieces`, each taken once.
    pub pieces: usize,
    /// Ids from here on are added tokens, at the end of the vocabulary.
    added_from: usize,
    /// Ids of [`SPECIALS`].
    specials: [Option<u32>; 4],
    /// Unknown characters become byte tokens.
    pub byte_fallback: bool,
    /// Hugging Face's added tokens: id, text, and whether it is looked for before spaces are replaced.
    pub added: Vec<(u32, String, bool)>,
}

impl Anatomy {
    /// Of a SentencePiece model.
    pub fn of_sentencepiece(bytes: &[u8]) -> Result<Self, String> {
        // Two bytes can claim a piece, which takes forty: what is claimed is counted first.
        let claimed = count_pieces(bytes).ok_or("no SentencePiece model")?;
        if claimed > MAX_PIECES {
            return Err(format!("{claimed} pieces, at most {MAX_PIECES} are expected"));
        }
        let model =
            SentencePieceModel::from_slice(bytes).map_err(|e| format!("no SentencePiece model ({e})"))?;
        let trainer = model.trainer().ok_or("the SentencePiece model does not say how it was trained")?;
        if trainer.model_type() != ModelType::Bpe {
            return Err(format!("the SentencePiece model is {:?}, π0.5's is BPE", trainer.model_type()));
        }
        let mut by_text = HashMap::with_capacity(model.pieces().len());
        for (id, piece) in (0u32..).zip(model.pieces()) {
            check_text(id, piece.piece())?;
            if by_text.insert(piece.piece(), (id, piece.r#type())).is_some() {
                return Err(format!("piece {:?} stands twice in it", piece.piece()));
            }
        }
        let find = |text: &str, kind: Type| by_text.get(text).filter(|p| p.1 == kind).map(|p| p.0);
        Ok(Self {
            pieces: model.pieces().len(),
            added_from: model.pieces().len(),
            specials: [
                find(trainer.pad_piece(), Type::Control),
                find(trainer.eos_piece(), Type::Control),
                find(trainer.bos_piece(), Type::Control),
                find(trainer.unk_piece(), Type::Unknown),
            ],
            byte_fallback: trainer.byte_fallback(),
            added: Vec::new(),
        })
    }

    /// Of a `tokenizer.json`.
    pub fn of_hugging_face(bytes: &[u8]) -> Result<Self, String> {
        let file: HuggingFace =
            serde_json::from_slice(bytes).map_err(|e| format!("no tokenizer.json of a BPE model ({e})"))?;
        let model = file.model;
        if model.kind.is_some_and(|kind| kind != "BPE")
            || model.end_of_word_suffix.is_some_and(|s| !s.is_empty())
            || model.continuing_subword_prefix.is_some_and(|s| !s.is_empty())
            || model.dropout.is_some_and(|d| d != 0.0)
        {
            return Err("the tokenizer is not a plain BPE model as π0.5's is".to_owned());
        }
        // It could never be applied: vocabulary and merges are of two tokenizers.
        for merge in model.merges.iter().flatten() {
            let (left, right) = merge.pieces().ok_or("a merge is not of two pieces")?;
            let whole = [left, right].concat();
            if let Some(piece) = [left, right, &whole].into_iter().find(|&p| !model.vocab.contains_key(p)) {
                return Err(format!(
                    "{left:?} and {right:?} are merged, but {piece:?} is not in its vocabulary"
                ));
            }
        }
        let mut ids = HashMap::with_capacity(model.vocab.len());
        let added = file.added_tokens.iter().flatten();
        let vocabulary = model.vocab.iter().map(|(text, &id)| (id, text));
        for (id, text) in vocabulary.chain(added.clone().map(|token| (token.id, &token.content))) {
            check_text(id, text)?;
            if let Some(other) = ids.insert(id, text).filter(|other| *other != text) {
                return Err(format!("id {id} stands for both {other:?} and {text:?}"));
            }
        }
        let pieces = ids.len();
        if let Some(missing) = (0u32..).take(pieces).find(|id| !ids.contains_key(id)) {
            return Err(format!("id {missing} of {pieces} is missing"));
        }
        let added_ids: HashSet<usize> = added.clone().map(|token| token.id as usize).collect();
        let added_from = (0..pieces).rev().find(|id| !added_ids.contains(id)).map_or(0, |id| id + 1);
        let by_added = |name: &str| added.clone().find(|token| token.content == name).map(|token| token.id);
        Ok(Self {
            pieces,
            added_from,
            specials: SPECIALS.map(|(name, _)| model.vocab.get(name).copied().or_else(|| by_added(name))),
            byte_fallback: model.byte_fallback.unwrap_or(false),
            added: added.clone().map(|token| (token.id, token.content.clone(), !token.normalized)).collect(),
        })
    }

    /// Size and special ids against an embedding of `rows` rows.
    pub fn check_fit(&self, rows: usize, file: &str) -> Result<(), TokenizerError> {
        let pieces = self.pieces;
        let fits = if paligemma::has_its_rows(rows) {
            // Exports round the embedding up, and Hugging Face's file adds `<image>` behind the pieces.
            (self.added_from..=pieces).contains(&paligemma::PIECES) && pieces <= paligemma::PADDED_ROWS
        } else {
            pieces == rows
        };
        if !fits {
            return Err(TokenizerError::Size { file: file.to_owned(), pieces, rows });
        }
        for ((name, expected), found) in SPECIALS.into_iter().zip(self.specials) {
            if found != Some(expected) {
                let found = found.map_or("none".to_owned(), |id| id.to_string());
                return Err(TokenizerError::Special { file: file.to_owned(), name, expected, found });
            }
        }
        Ok(())
    }
}

/// Four times PaliGemma's vocabulary.
const MAX_PIECES: usize = 4 * paligemma::PIECES;

fn check_text(id: u32, text: &str) -> Result<(), String> {
    match text.len() {
        0 => Err(format!("piece {id} is empty")),
        1..=MAX_PIECE_BYTES => Ok(()),
        n => Err(format!("piece {id} has {n} bytes, at most {MAX_PIECE_BYTES} are expected")),
    }
}

/// Number of pieces (field 1, length-delimited) at the top level of a protobuf message; `None` if it is none.
fn count_pieces(mut bytes: &[u8]) -> Option<usize> {
    const PIECE: u64 = 1 << 3 | 2;
    let mut pieces = 0;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let len = match key & 7 {
            0 => varint(&mut bytes).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(&mut bytes)?).ok()?,
            5 => 4,
            _ => return None,
        };
        bytes = bytes.get(len..)?;
        pieces += usize::from(key == PIECE);
    }
    Some(pieces)
}

/// Takes one base-128 number off the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    const LONGEST: usize = 10;
    let len = bytes.iter().take(LONGEST).position(|b| b & 0x80 == 0)? + 1;
    let (head, tail) = bytes.split_at(len);
    *bytes = tail;
    Some(head.iter().rev().fold(0, |n, b| n << 7 | u64::from(b & 0x7f)))
}

#[derive(Deserialize)]
struct HuggingFace {
    added_tokens: Option<Vec<AddedToken>>,
    model: BpeModel,
}

/// Two pieces that become one: `["a", "b"]`, or `"a b"` in older files.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Pair(String, String),
    Text(String),
}

impl Merge {
    fn pieces(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Pair(left, right) => Some((left, right)),
            Merge::Text(text) => text.split_once(' '),
        }
    }
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    normalized: bool,
}

#[derive(Deserialize)]
struct BpeModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: HashMap<String, u32>,
    merges: Option<Vec<Merge>>,
    byte_fallback: Option<bool>,
    end_of_word_suffix: Option<String>,
    continuing_subword_prefix: Option<String>,
    dropout: Option<f64>,
}
