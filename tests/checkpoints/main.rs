//! Checkpoint folders: what opens, what is refused and with which words, what is written and read back.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may

mod opens;
mod refuses;
mod writes;

use std::{
    fs,
    path::{Path, PathBuf},
};

use pi05_thor::policy::checkpoint::{Checkpoint, CheckpointError};
use tempfile::TempDir;

/// A file or folder of the recorded truth.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name)
}

/// A folder of its own with these files of `from`.
fn folder_with(from: &Path, files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        fs::copy(from.join(file), dir.path().join(file)).unwrap();
    }
    dir
}

/// The tiny model in openpi's layout, without statistics.
fn tiny() -> TempDir {
    folder_with(&fixture("tiny"), &["config.json", "model.safetensors"])
}

/// The tiny model in LeRobot's layout, complete.
fn lerobot() -> TempDir {
    folder_with(
        &fixture("lerobot_ckpt"),
        &[
            "config.json",
            "model.safetensors",
            "policy_preprocessor.json",
            "policy_postprocessor.json",
            PRE_STATE,
            POST_STATE,
        ],
    )
}

const PRE_STATE: &str = "policy_preprocessor_step_3_normalizer_processor.safetensors";
const POST_STATE: &str = "policy_postprocessor_step_0_unnormalizer_processor.safetensors";

/// Writes a file into the folder, with the folders above it.
fn put(dir: &TempDir, file: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// Replaces text of a JSON side file that must be there.
fn edit(dir: &TempDir, file: &str, from: &str, to: &str) {
    let path = dir.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// The bytes of a safetensors file with this header and this much data.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The header of a file that holds these tensors one after the other, and its number of data bytes.
fn header_of(tensors: &[(&str, &str, &[u64])]) -> (String, u64) {
    let mut end = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape)| {
            let size = match *dtype {
                "F64" | "I64" => 8,
                "F32" => 4,
                "U8" => 1,
                _ => 2,
            };
            let begin = end;
            end += shape.iter().product::<u64>() * size;
            format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    (format!("{{{}}}", entries.join(",")), end)
}

/// A folder whose only file is a sparse `model.safetensors` with these tensors.
fn sparse(tensors: &[(&str, &str, &[u64])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    put_sparse(&dir, "model.safetensors", tensors);
    dir
}

fn put_sparse(dir: &TempDir, file: &str, tensors: &[(&str, &str, &[u64])]) {
    let (header, data) = header_of(tensors);
    let path = put(dir, file, safetensors(&header, 0));
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + data).unwrap();
}

/// The refusal of a folder, which must be one line that names `file`, or the folder where that is empty.
fn refusal_naming(dir: &TempDir, asset_id: Option<&str>, file: &str) -> String {
    let refused = Checkpoint::open(dir.path(), asset_id).map(|checkpoint| checkpoint.notes);
    let named = if file.is_empty() { dir.path().to_owned() } else { dir.path().join(file) };
    one_line(refused.expect_err("must be refused"), &named)
}

/// The message without the path, which it must begin with.
fn one_line(error: CheckpointError, file: &Path) -> String {
    let message = error.to_string();
    assert!(!message.contains('\n'), "one line: {message}");
    let rest = message.strip_prefix(&format!("{}: ", file.display()));
    rest.unwrap_or_else(|| panic!("expected {} at the start of: {message}", file.display())).to_owned()
}
