//! Tokenizer files that are not what they should be: other vocabularies, damaged and hostile ones.
//! And one that PaliGemma's golden ids accept, built here around them, since the real file cannot be shipped.

#![allow(clippy::unwrap_used, clippy::panic)] // in the functions that the tests share

use std::collections::BTreeMap;

use pi05_thor::policy::tokenizer::{Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::{Value, json};

const TINY: &[u8] = include_bytes!("data/fixtures/data/tiny_tokenizer.model");
const TINY_JSON: &[u8] = include_bytes!("data/tiny_tokenizer.json");
const DATA_JSON: &str = include_str!("data/fixtures/data/data.json");
/// SentencePiece's piece types.
const NORMAL: u8 = 1;
const UNKNOWN: u8 = 2;
const CONTROL: u8 = 3;
const USER_DEFINED: u8 = 4;
const BYTE: u8 = 6;

// ------------------------------------------------------------------------------------------------ damaged files

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_file_is_refused_or_works(
        json: bool,
        cut in prop::option::of(0.0..1.0f64),
        edits in prop::collection::vec((0.0..1.0f64, prop::option::of(any::<u8>()), any::<bool>()), 0..6),
        text in "\\PC{0,40}",
    ) {
        let mut bytes = if json { TINY_JSON } else { TINY }.to_vec();
        let place = |at: f64, len: usize| (at * len as f64) as usize;
        if let Some(at) = cut {
            bytes.truncate(place(at, bytes.len()));
        }
        for (at, byte, insert) in edits {
            let at = place(at, bytes.len());
            match byte {
                Some(byte) if insert => bytes.insert(at, byte),
                Some(byte) if at < bytes.len() => bytes[at] = byte,
                None if at < bytes.len() => { bytes.remove(at); }
                _ => {}
            }
        }
        check(&bytes, &text)?;
    }

    #[test]
    fn any_bytes_are_refused_or_work(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&bytes, "text")?;
        check(&[b"{".as_slice(), &bytes].concat(), "text")?;
    }
}

/// Either a message of one line, or a tokenizer whose ids stay inside the embedding.
fn check(bytes: &[u8], text: &str) -> Result<(), TestCaseError> {
    match Tokenizer::from_bytes(bytes, 512, "a file") {
        Err(error) => {
            let line = error.to_string();
            prop_assert!(
                line.starts_with("a file: ") && !line.contains('\n') && line.len() < 600,
                "{}",
                line
            );
        }
        Ok(tokenizer) => {
            if let Ok(ids) = tokenizer.encode(text) {
                prop_assert!(ids.iter().all(|&id| id < 512));
            }
        }
    }
    Ok(())
}

#[test]
fn a_file_of_nothing_but_claims_is_refused() {
    let mut many = [10, 0].repeat(1 << 21); // two bytes per empty piece
    assert!(refusal(&many, 1 << 21).contains("pieces, at most"));
    many.truncate(1024);
    assert!(refusal(&many, 512).contains("trained"));
    // A length far beyond the file.
    assert!(refusal(&[10, 0xff, 0xff, 0xff, 0xff, 0x7f], 512).contains("no SentencePiece model"));
    // One enormous piece: building a vocabulary takes the square of its length.
    let long = model(&[("x".repeat(1 << 20), NORMAL)]);
    assert!(refusal(&long, 1).contains("bytes, at most"));
    assert!(refusal(b"", 512).contains("tokenizer.json"));
}

#[test]
fn a_missing_or_enormous_file_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.model");
    let refusal = || Tokenizer::from_file(&path, 512).unwrap_err().to_string();
    assert!(refusal().contains("tokenizer.model"));
    std::fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    assert!(refusal().contains("larger than 64 MiB"));
}

// ------------------------------------------------------------------------------------- files of another network

#[test]
fn the_size_must_be_that_of_the_embedding() {
    for bytes in [TINY, TINY_JSON] {
        assert!(Tokenizer::from_bytes(bytes, 512, "a file").is_ok());
        for rows in [0, 511, 513, 257_152, 257_216] {
            let line = refusal(bytes, rows);
            assert!(line.contains("512 pieces") && line.contains(&format!("{rows} rows")), "{line}");
        }
    }
}

#[test]
fn special_tokens_must_stand_where_the_network_expects_them() {
    let mut pieces = tiny_pieces();
    pieces.swap(1, 2);
    let line = refusal(&model(&pieces), 512);
    assert!(line.contains("<eos> should have id 1, it has 2"), "{line}");

    let mut pieces = tiny_pieces();
    pieces[0].1 = NORMAL;
    assert!(refusal(&model(&pieces), 512).contains("<pad> should have id 0, it has none"));

    let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
    for (name, id) in [("<bos>", 3), ("<unk>", 2)] {
        file["model"]["vocab"][name] = json!(id);
    }
    file["added_tokens"][2]["id"] = json!(3);
    file["added_tokens"][3]["id"] = json!(2);
    let line = refusal(file.to_string().as_bytes(), 512);
    assert!(line.contains("<bos> should have id 2, it has 3"), "{line}");
}

#[test]
fn ids_of_a_json_file_must_be_complete_and_unique() {
    let edit = |text: &str, id: u32| {
        let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
        file["model"]["vocab"][text] = json!(id);
        refusal(file.to_string().as_bytes(), 512)
    };
    assert!(edit("x", 4_000_000_000).contains("id 511 of 512 is missing"));
    assert!(edit("x", 511 - 1).contains("id 510 stands for both"));
}

#[test]
fn another_kind_of_model_is_refused() {
    let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
    file["model"]["type"] = json!("WordPiece");
    assert!(refusal(file.to_string().as_bytes(), 512).contains("plain BPE"));
    let mut unigram = TINY.to_vec();
    let kind = unigram.windows(2).rposition(|field| field == [3 << 3, 2]).unwrap() + 1;
    unigram[kind] = 1;
    assert!(refusal(&unigram, 512).contains("Unigram"));
}

#[test]
fn the_longest_special_token_wins_whatever_its_place() {
    let mut pieces = tiny_pieces();
    pieces[400] = ("\n\n".into(), USER_DEFINED); // behind "\n", and
    pieces[5] = ("▁▁▁▁".into(), USER_DEFINED); // before "▁▁"
    let tokenizer = Tokenizer::from_bytes(&model(&pieces), 512, "a file").unwrap();
    assert_eq!(tokenizer.encode("\n\n\n").unwrap(), [400, 4]);
    assert_eq!(tokenizer.encode(&" ".repeat(7)).unwrap(), [5, 6, 473]);
}

#[test]
fn padding_and_truncation_in_a_json_file_do_nothing() {
    let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
    file["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = json!({"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    let padded = Tokenizer::from_bytes(file.to_string().as_bytes(), 512, "a file").unwrap();
    let plain = Tokenizer::from_bytes(TINY_JSON, 512, "a file").unwrap();
    for text in ["", "up", "pick up the cube"] {
        assert_eq!(padded.encode(text).unwrap(), plain.encode(text).unwrap());
    }
}

// ---------------------------------------------------------------------------------------------------- PaliGemma

/// A vocabulary of PaliGemma's size that is built around the golden prompts: every word has its known id, and
/// its prefixes stand elsewhere, so that merging from the left makes it.
fn golden_pieces() -> Vec<(String, u8)> {
    const PIECES: usize = 257_152;
    let mut at: BTreeMap<usize, (String, u8)> = BTreeMap::new();
    for (id, name) in ["<pad>", "<eos>", "<bos>", "<unk>"].into_iter().enumerate() {
        at.insert(id, (name.into(), if id == 3 { UNKNOWN } else { CONTROL }));
    }
    for byte in 0..=255 {
        at.insert(217 + byte, (format!("<0x{byte:02X}>"), BYTE));
    }
    let data: Value = serde_json::from_str(DATA_JSON).unwrap();
    for case in data["paligemma_golden"]["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap().replace(' ', "▁");
        let split = |word: String| match word.as_str() {
            "▁moka" => vec!["▁mo".into(), "ka".into()], // the one word of two tokens
            _ => vec![word],
        };
        let words: Vec<String> = words(&text).into_iter().flat_map(split).collect();
        let ids: Vec<u64> =
            case["ids"].as_array().unwrap()[1..].iter().map(|id| id.as_u64().unwrap()).collect();
        assert_eq!(words.len(), ids.len(), "{words:?}");
        for (word, id) in words.into_iter().zip(ids) {
            let kind = if word == "\n" { USER_DEFINED } else { NORMAL };
            assert_eq!(at.entry(id as usize).or_insert((word.clone(), kind)).0, word);
        }
    }
    let known: Vec<String> = at.values().filter(|p| p.1 == NORMAL).map(|p| p.0.clone()).collect();
    let parts = known.iter().flat_map(|word| {
        let prefixes = word.char_indices().skip(1).map(|(end, _)| word[..end].to_owned());
        prefixes.chain(word.chars().map(String::from)).collect::<Vec<_>>()
    });
    let parts: std::collections::BTreeSet<String> = parts.filter(|part| !known.contains(part)).collect();
    let mut fill = parts.into_iter().chain((0..).map(|i| format!("«{i}»")));
    (0..PIECES).map(|id| at.remove(&id).unwrap_or_else(|| (fill.next().unwrap(), NORMAL))).collect()
}

/// The tokens of a golden prompt: words with their space, single digits, a lone space, punctuation.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for c in text.chars() {
        let last = words.last_mut().filter(|last| {
            let letters = last.ends_with(|l: char| l.is_alphabetic());
            c.is_alphabetic() && letters || *last == "▁" && (c.is_alphabetic() || c == '-')
        });
        match last {
            Some(last) => last.push(c),
            None => words.push(c.into()),
        }
    }
    words
}

/// Merges with the space first, then the shortest.
fn priority(text: &str) -> usize {
    text.chars().count() + if text.starts_with('▁') { 0 } else { 100 }
}

#[test]
fn a_merge_of_what_is_no_piece_is_refused() {
    let with = |merge: Value| {
        let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
        file["model"]["merges"].as_array_mut().unwrap().push(merge);
        refusal(file.to_string().as_bytes(), 512)
    };
    assert!(with(json!(["zz", "qq"])).contains("\"zz\" is not in its vocabulary"));
    let whole = with(json!(["▁the", "▁the"]));
    assert!(whole.contains("\"▁the▁the\" is not in its vocabulary"), "{whole}");
}

#[test]
fn paligemma_is_known_by_its_golden_ids() {
    let mut pieces = golden_pieces();
    let file = model(&pieces);
    for rows in [257_152, 257_216] {
        let tokenizer = Tokenizer::from_bytes(&file, rows, "a file").unwrap();
        assert_eq!(tokenizer.pieces(), 257_152);
        assert_eq!(tokenizer.encode("Task: ").unwrap(), [7071, 235292, 235248]);
    }
    // The same size and the same special ids, two words exchanged.
    pieces.swap(573, 611);
    let error = Tokenizer::from_bytes(&model(&pieces), 257_152, "a file").unwrap_err();
    let TokenizerError::Golden { position, expected, found, .. } = &error else { panic!("{error}") };
    assert_eq!((*position, expected.as_str(), found.as_str()), (5, "573", "611"));
    assert!(!error.to_string().contains('\n'), "{error}");
}

#[test]
fn paligemmas_json_may_end_with_added_tokens() {
    let pieces = golden_pieces();
    let mut order: Vec<&str> = pieces.iter().filter(|p| p.1 == NORMAL).map(|p| p.0.as_str()).collect();
    order.sort_by_key(|text| priority(text));
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, p)| (p.0.clone(), json!(id))).collect();
    let merge = |text: &&str| {
        let (left, right) = text.split_at(text.char_indices().next_back()?.0);
        (vocab.contains_key(left) && vocab.contains_key(right)).then(|| json!([left, right]))
    };
    let merges: Vec<Value> = order.iter().filter_map(merge).collect();
    let mut file: Value = serde_json::from_slice(TINY_JSON).unwrap();
    let added = |id: usize, text: &str, special: bool| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    let specials = ["<pad>", "<eos>", "<bos>", "<unk>"].into_iter().enumerate();
    let mut tokens: Vec<Value> = specials.map(|(id, text)| added(id, text, true)).collect();
    tokens.push(added(108, "\n", false));
    file["model"]["vocab"] = vocab.clone().into();
    file["model"]["merges"] = merges.into();
    let load = |tokens: &[Value], rows: usize| {
        let mut file = file.clone();
        file["added_tokens"] = tokens.into();
        Tokenizer::from_bytes(file.to_string().as_bytes(), rows, "a file")
    };
    assert_eq!(load(&tokens, 257_152).unwrap().pieces(), 257_152);
    tokens.push(added(257_152, "<image>", true));
    let tight = load(&tokens, 257_152).unwrap();
    let error = tight.encode("see <image>").unwrap_err();
    assert!(matches!(error, TokenizerError::OutOfRange { id: 257_152, rows: 257_152 }));
    let padded = load(&tokens, 257_216).unwrap();
    assert!(padded.encode("see <image>").unwrap().contains(&257_152));
    // A piece of the vocabulary itself may not stand there.
    tokens.pop();
    file["model"]["vocab"]["one too many"] = json!(257_152);
    file["added_tokens"] = tokens.into();
    let error = Tokenizer::from_bytes(file.to_string().as_bytes(), 257_216, "a file").unwrap_err();
    assert!(matches!(error, TokenizerError::Size { pieces: 257_153, .. }), "{error}");
}

// ------------------------------------------------------------------------------------------------------- writing

fn refusal(bytes: &[u8], rows: usize) -> String {
    let line = Tokenizer::from_bytes(bytes, rows, "a file").unwrap_err().to_string();
    assert!(!line.contains('\n'));
    line
}

/// The 512 pieces of the tiny model: text and type.
fn tiny_pieces() -> Vec<(String, u8)> {
    let model = sentencepiece_model::SentencePieceModel::from_slice(TINY).unwrap();
    model.pieces().iter().map(|p| (p.piece().to_owned(), p.r#type() as u8)).collect()
}

/// A SentencePiece file with these pieces and the settings of the tiny model.
fn model(pieces: &[(String, u8)]) -> Vec<u8> {
    let field = |out: &mut Vec<u8>, number: u8, bytes: &[u8]| {
        out.push(number << 3 | 2);
        let mut len = bytes.len();
        while len > 0x7f {
            out.push(len as u8 | 0x80);
            len >>= 7;
        }
        out.push(len as u8);
        out.extend(bytes);
    };
    let mut out = Vec::new();
    for (text, kind) in pieces {
        let mut piece = Vec::new();
        field(&mut piece, 1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend((-(priority(text) as f32)).to_le_bytes());
        piece.extend([3 << 3, *kind]);
        field(&mut out, 1, &piece);
    }
    // What follows the pieces of the tiny model: its settings.
    let mut rest = TINY;
    while rest[0] == 1 << 3 | 2 {
        rest = &rest[2 + usize::from(rest[1])..];
    }
    out.extend(rest);
    out
}
