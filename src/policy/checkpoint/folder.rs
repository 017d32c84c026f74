//! Looking for files in a folder that strangers filled: no path out of it, no endless search.

use std::{
    ffi::OsStr,
    io::ErrorKind,
    path::{Component, Path, PathBuf},
};

use super::error::CheckpointError;

/// How many levels of folders are searched.
const MAX_DEPTH: usize = 4;
/// How many files and folders are looked at.
const MAX_ENTRIES: usize = 10_000;

/// `relative` below `folder`, if it stays there: no `..`, no root, nothing unprintable.
pub(super) fn inside(folder: &Path, relative: &str) -> Option<PathBuf> {
    let path = Path::new(relative);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_)));
    (stays && !relative.is_empty() && !relative.contains(char::is_control)).then(|| folder.join(path))
}

/// The files up to [`MAX_DEPTH`] levels below `root` whose name `wanted` accepts: nearest first, then by name.
/// None if there is no such folder.
pub(super) fn files_below(
    root: &Path,
    wanted: impl Fn(&OsStr) -> bool,
) -> Result<Vec<PathBuf>, CheckpointError> {
    let mut found = Vec::new();
    let mut seen = 0;
    let mut level = vec![root.to_owned()];
    for _ in 0..=MAX_DEPTH {
        let mut next = Vec::new();
        for folder in std::mem::take(&mut level) {
            for path in entries(&folder, &mut seen)? {
                if path.is_dir() {
                    next.push(path);
                } else if path.is_file() && path.file_name().is_some_and(&wanted) {
                    found.push(path);
                }
            }
        }
        level = next;
    }
    Ok(found)
}

/// What lies directly in `folder`, by name; nothing if there is no such folder.
pub(super) fn entries(folder: &Path, seen: &mut usize) -> Result<Vec<PathBuf>, CheckpointError> {
    let io = |e| CheckpointError::io(folder, e);
    let listing = match folder.read_dir() {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(Vec::new()),
        listing => listing.map_err(io)?,
    };
    let mut paths = Vec::new();
    for entry in listing {
        paths.push(entry.map_err(io)?.path());
        *seen += 1;
        if *seen > MAX_ENTRIES {
            let problem = format!("more than {MAX_ENTRIES} files: give the checkpoint a folder of its own");
            return Err(CheckpointError::file(folder, problem));
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        let folder = Path::new("/ckpt");
        assert_eq!(inside(folder, "a/b.safetensors"), Some("/ckpt/a/b.safetensors".into()));
        for out in ["", "..", "../x", "a/../../x", "/etc/passwd", ".", "./x", "a\nb", "a\0b"] {
            assert_eq!(inside(folder, out), None, "{out:?}");
        }
    }
}
