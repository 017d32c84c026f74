//! Finds the safetensors files of a folder and makes one table of them.
//!
//! Promises that every entry of the table lies inside its file and has a type the engines can read. Which tensors
//! must be there, and with which shapes, is for the dimensions to say.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    path::{Path, PathBuf},
};

use super::{
    error::CheckpointError,
    folder,
    json::SideFile,
    names::{Role, role},
    safetensors::{self, Header, HeaderTensor},
};
use crate::{
    model::tensors::{Dtype, LM_HEAD, TOKEN_EMBEDDING, TensorEntry, TensorTable},
    printable::printable,
};

/// Name of the weights in one file.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Name of the list of shards, where the weights stand in several.
const INDEX: &str = "model.safetensors.index.json";
/// Most names that a note repeats.
const MAX_LISTED: usize = 3;

/// The table of a folder's weights, and notes for a person.
pub(super) fn read(folder: &Path) -> Result<(TensorTable, Vec<String>), CheckpointError> {
    let single = folder.join(WEIGHTS);
    if single.exists() {
        let header = safetensors::read_header(&single)?;
        return table(vec![(single, header)]);
    }
    if let Some(index) = SideFile::read(&folder.join(INDEX))? {
        return table(shards(folder, &index)?);
    }
    let hint = if folder.join("params").is_dir() {
        "; params/ holds JAX weights: convert them with openpi's convert_jax_model_to_pytorch.py"
    } else {
        ""
    };
    Err(CheckpointError::NoWeights { folder: folder.to_owned(), hint })
}

/// The headers of all shards that the index names; each named tensor must be in the shard it is said to be in.
fn shards(folder: &Path, index: &SideFile) -> Result<Vec<(PathBuf, Header)>, CheckpointError> {
    let expected = "an object: the shard of each tensor";
    let mut wanted: BTreeMap<PathBuf, BTreeSet<&str>> = BTreeMap::new();
    for (tensor, shard) in index.root().require("weight_map", expected)?.members()? {
        let Some(path) = folder::inside(folder, shard.text()?) else {
            return Err(shard.wrong("the name of a file in this folder"));
        };
        wanted.entry(path).or_default().insert(tensor);
    }
    let mut headers = Vec::new();
    for (path, tensors) in wanted {
        let header = safetensors::read_header(&path)?;
        if let Some(missing) = tensors.into_iter().find(|&t| !header.tensors.contains_key(t)) {
            let problem = format!("{INDEX} says that it stands here, but it does not");
            return Err(CheckpointError::tensor(&path, missing, problem));
        }
        headers.push((path, header));
    }
    Ok(headers)
}

/// One table from the headers of all files, by canonical names.
fn table(headers: Vec<(PathBuf, Header)>) -> Result<(TensorTable, Vec<String>), CheckpointError> {
    let mut files = Vec::new();
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    let mut foreign = Vec::new();
    let mut notes = Vec::new();
    for (path, header) in headers {
        for (stored, tensor) in header.tensors {
            let name = match role(&stored) {
                Role::Network(name) => name,
                Role::TiedEmbedding => LM_HEAD.to_owned(),
                Role::Ignored => continue,
                Role::Memory => {
                    notes.push(format!("{} belongs to the memory option and is ignored", printable(&stored)));
                    continue;
                }
                Role::Unknown => {
                    foreign.push(printable(&stored));
                    continue;
                }
            };
            match parts.entry(name) {
                Entry::Vacant(place) => place.insert(Part { stored, tensor, file: files.len() }),
                Entry::Occupied(_) => {
                    let problem = "the checkpoint has it twice, with and without a leading \"model.\", under an \
                                   older name or in two shards: remove one";
                    return Err(CheckpointError::tensor(&path, &stored, problem));
                }
            };
        }
        files.push(path);
    }
    if let Some(head) = parts.remove(LM_HEAD) {
        parts.entry(TOKEN_EMBEDDING.to_owned()).or_insert(head);
    }
    if !foreign.is_empty() {
        let more = if foreign.len() > MAX_LISTED { ", …" } else { "" };
        let listed = foreign[..foreign.len().min(MAX_LISTED)].join(", ");
        notes.push(format!("tensors that are no part of π0.5, ignored: {} ({listed}{more})", foreign.len()));
    }
    let mut entries = BTreeMap::new();
    for (name, part) in parts {
        let Some(dtype) = weight_dtype(part.tensor.dtype) else {
            let problem = format!("expected F32, BF16 or F16, found {}", part.tensor.dtype);
            return Err(CheckpointError::tensor(&files[part.file], &part.stored, problem));
        };
        let HeaderTensor { shape, offset, .. } = part.tensor;
        entries.insert(
            name,
            TensorEntry { stored: printable(&part.stored), dtype, shape, file: part.file, offset },
        );
    }
    Ok((TensorTable { files, entries, foreign }, notes))
}

/// A tensor of the network, before its type is known to be usable.
struct Part {
    stored: String,
    tensor: HeaderTensor,
    file: usize,
}

fn weight_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::BF16 => Some(Dtype::BF16),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        _ => None,
    }
}
