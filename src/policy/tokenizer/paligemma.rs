//! PaliGemma's tokenizer, recognised by what it does: sizes and the ids of known prompts (spec/PI05.md §3.4).

/// Pieces of the SentencePiece model: Gemma's vocabulary, locations and segments.
pub(super) const PIECES: usize = 257_152;
/// Rows of the embedding in Hugging Face's exports, rounded up to a multiple of 64.
pub(super) const PADDED_ROWS: usize = 257_216;

/// Whether an embedding of this many rows can only be PaliGemma's.
pub(super) fn has_its_rows(rows: usize) -> bool {
    rows == PIECES || rows == PADDED_ROWS
}

/// Prompts in the forms of both references, with their ids, BOS first.
#[rustfmt::skip]
pub(super) const GOLDEN: &[(&str, &[u32])] = &[
    ("Task: pick up cube, State: 0 128 255;\nAction: ",
     &[2, 7071, 235292, 4788, 908, 28660, 235269, 3040, 235292, 235248, 235276, 235248, 235274, 235284,
       235321, 235248, 235284, 235308, 235308, 235289, 108, 4022, 235292, 235248]),
    ("Task: Pick up the black bowl and place it on the plate, State: 153 -1 128 255 0 255 253 127;\nAction: ",
     &[2, 7071, 235292, 17350, 908, 573, 2656, 14581, 578, 2040, 665, 611, 573, 8811, 235269, 3040,
       235292, 235248, 235274, 235308, 235304, 728, 235274, 235248, 235274, 235284, 235321, 235248,
       235284, 235308, 235308, 235248, 235276, 235248, 235284, 235308, 235308, 235248, 235284, 235308,
       235304, 235248, 235274, 235284, 235324, 235289, 108, 4022, 235292, 235248]),
    ("Task: pick up the book and place it in the back compartment of the caddy, State: 12 200 37 128 255 0 64 99;\nAction: ",
     &[2, 7071, 235292, 4788, 908, 573, 2870, 578, 2040, 665, 575, 573, 1355, 46416, 576, 573, 132588,
       235269, 3040, 235292, 235248, 235274, 235284, 235248, 235284, 235276, 235276, 235248, 235304,
       235324, 235248, 235274, 235284, 235321, 235248, 235284, 235308, 235308, 235248, 235276, 235248,
       235318, 235310, 235248, 235315, 235315, 235289, 108, 4022, 235292, 235248]),
    ("Task: put both moka pots on the stove, State: 3 3 3 3 3 3 3 3;\nAction: ",
     &[2, 7071, 235292, 2507, 2145, 705, 1161, 37801, 611, 573, 37932, 235269, 3040, 235292, 235248,
       235304, 235248, 235304, 235248, 235304, 235248, 235304, 235248, 235304, 235248, 235304, 235248,
       235304, 235248, 235304, 235289, 108, 4022, 235292, 235248]),
    ("pick up the bowl\n",
     &[2, 18075, 908, 573, 14581, 108]),
    ("put the object into the container 0\n",
     &[2, 1065, 573, 4018, 1280, 573, 11254, 235248, 235276, 108]),
];
