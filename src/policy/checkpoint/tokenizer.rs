//! Finds the tokenizer's file: in the checkpoint's folder, else where the reference implementations keep theirs.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{error::CheckpointError, folder};

/// Names that a tokenizer's file has, the best first.
const NAMES: [&str; 3] = ["tokenizer.model", "paligemma_tokenizer.model", "tokenizer.json"];
/// Rows of an embedding of PaliGemma's vocabulary, also as padded by some converters.
const PALIGEMMA_ROWS: [usize; 2] = [257_152, 257_216];

/// The folders where openpi and LeRobot keep PaliGemma's tokenizer.
#[derive(Clone, Debug, Default)]
pub(super) struct Caches {
    openpi: Option<PathBuf>,
    hub: Option<PathBuf>,
}

impl Caches {
    /// Where `OPENPI_DATA_HOME`, `HF_HOME` and `HOME` say.
    pub(super) fn from_env() -> Self {
        let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = var("HOME").map(|home| home.join(".cache"));
        let below = |name| cache.as_ref().map(|cache| cache.join(name));
        Self {
            openpi: var("OPENPI_DATA_HOME").or_else(|| below("openpi")),
            hub: var("HF_HOME").or_else(|| below("huggingface")).map(|home| home.join("hub")),
        }
    }
}

/// The tokenizer for an embedding of `rows` rows, if there is one.
pub(super) fn find(
    folder: &Path,
    rows: Option<usize>,
    caches: &Caches,
) -> Result<Option<PathBuf>, CheckpointError> {
    let is_file = |path: &PathBuf| path.is_file() && path.file_name().is_some_and(may_be_tokenizer);
    let mut files: Vec<_> = folder::entries(folder, &mut 0)?.into_iter().filter(is_file).collect();
    files.extend(folder::files_below(&folder.join(super::openpi::ASSETS), may_be_tokenizer)?);
    let (here, below): (Vec<_>, Vec<_>) = files.iter().partition(|path| path.parent() == Some(folder));
    for place in [here, below] {
        for name in NAMES {
            if let Some(path) = place.iter().find(|path| path.ends_with(name)) {
                return Ok(Some(PathBuf::from(path)));
            }
        }
    }
    if let [only] = files.as_slice() {
        return Ok(Some(only.clone()));
    }
    if rows.is_some_and(|rows| PALIGEMMA_ROWS.contains(&rows)) {
        return in_caches(caches);
    }
    Ok(None)
}

/// One of the usual names, or any SentencePiece model.
fn may_be_tokenizer(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|e| e == "model") || NAMES.iter().any(|n| name == *n)
}

fn in_caches(caches: &Caches) -> Result<Option<PathBuf>, CheckpointError> {
    let openpi = caches.openpi.as_ref().map(|home| home.join("big_vision").join(NAMES[1]));
    if let Some(path) = openpi.filter(|path| path.is_file()) {
        return Ok(Some(path));
    }
    let Some(hub) = &caches.hub else { return Ok(None) };
    let snapshots = hub.join("models--google--paligemma-3b-pt-224").join("snapshots");
    let snapshots = folder::entries(&snapshots, &mut 0)?.into_iter();
    Ok(snapshots.map(|snapshot| snapshot.join(NAMES[2])).find(|path| path.is_file()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn touch(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn the_folder_comes_before_its_assets_and_they_before_the_caches() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ckpt");
        fs::create_dir(&folder).unwrap();
        let caches = Caches { openpi: Some(dir.path().join("openpi")), hub: Some(dir.path().join("hub")) };
        let find = |rows| find(&folder, Some(rows), &caches).unwrap();
        assert_eq!(find(257_152), None);

        let snapshot = "hub/models--google--paligemma-3b-pt-224/snapshots/0f/tokenizer.json";
        let snapshot = touch(dir.path(), snapshot);
        assert_eq!(find(257_152), Some(snapshot));
        let big_vision = touch(dir.path(), "openpi/big_vision/paligemma_tokenizer.model");
        assert_eq!(find(257_216), Some(big_vision));
        assert_eq!(find(512), None, "another vocabulary's tokenizer is of no use");

        let only = touch(&folder, "my.model");
        assert_eq!(find(257_152), Some(only));
        let asset = touch(&folder, "assets/a/b/tokenizer.json");
        assert_eq!(find(257_152), Some(asset));
        let json = touch(&folder, "tokenizer.json");
        assert_eq!(find(512), Some(json));
        let model = touch(&folder, "tokenizer.model");
        assert_eq!(find(512), Some(model));
    }

    #[test]
    fn of_two_unnamed_models_none_is_guessed() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), "a.model");
        touch(dir.path(), "b.model");
        assert_eq!(find(dir.path(), Some(257_152), &Caches::default()).unwrap(), None);
    }
}
