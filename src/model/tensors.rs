//! Where every tensor of a checkpoint lies: names, types, shapes, places. No data.

use std::{collections::BTreeMap, path::PathBuf};

/// Element types that weights may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision, 4 bytes.
    F32,
    /// bfloat16, 2 bytes.
    BF16,
    /// IEEE half precision, 2 bytes.
    F16,
}

impl Dtype {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
        }
    }
}

/// One tensor's place. Checked by whoever fills the table: `offset + len` lies inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name in the file, printable.
    pub stored: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape; linear weights are `[out, in]`.
    pub shape: Vec<usize>,
    /// Index into [`TensorTable::files`].
    pub file: usize,
    /// First byte within that file.
    pub offset: u64,
}

impl TensorEntry {
    /// Number of elements; `None` on overflow.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }
}

/// All tensors of a checkpoint by canonical name: openpi's, without a leading `model.`
/// (spec/PI05.md §11), and with the token embedding under [`TOKEN_EMBEDDING`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TensorTable {
    /// The files that hold the data.
    pub files: Vec<PathBuf>,
    /// Place of each tensor.
    pub entries: BTreeMap<String, TensorEntry>,
    /// Names of tensors that are no part of π0.5, printable.
    pub foreign: Vec<String>,
}

/// Canonical name of the token embedding `[vocab, width]`. A checkpoint's [`LM_HEAD`] stands here when it has no
/// `embed_tokens.weight` (the two are tied in openpi's files).
pub const TOKEN_EMBEDDING: &str = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight";

/// The output head of Gemma-2B, tied to the token embedding in openpi's files.
pub const LM_HEAD: &str = "paligemma_with_expert.paligemma.lm_head.weight";
