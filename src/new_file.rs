//! Files that stand under their name only when all of them is on disk.
//!
//! Promises: what fails before [`NewFile::keep`] leaves nothing behind, touches no other file, and a file that had the
//! name keeps it. Only regular files are replaced: never a device, pipe or folder. Called by all that writes files which
//! others read; knows nothing of what is in them.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A file on its way to its name.
pub struct NewFile {
    file: File,
    path: PathBuf,
    /// Where it is until then: beside, under a name that nobody can know and nothing has.
    partial: Partial,
}

/// A file that disappears unless it was renamed.
struct Partial(PathBuf);

impl NewFile {
    /// Begins the file `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.metadata().is_ok_and(|there| !there.is_file()) {
            let reason = "expected a regular file or nothing there, found something else: name another file";
            return Err(io::Error::new(ErrorKind::InvalidInput, reason));
        }
        // The standard library's own randomness, which differs every time.
        let partial =
            path.with_file_name(format!(".pi05-{:016x}.partial", RandomState::new().hash_one(path)));
        let file = OpenOptions::new().write(true).create_new(true).open(&partial)?;
        Ok(Self { file, path: path.to_owned(), partial: Partial(partial) })
    }

    /// Waits for the disk, then gives the file its name.
    pub fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial.0, &self.path)
    }
}

/// Writes a small file.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_all(bytes)?;
    file.keep()
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Gone already after the rename; otherwise there is nobody left to tell.
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::net::UnixListener;

    use super::*;

    fn names(folder: &Path) -> Vec<PathBuf> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_once_it_is_whole_and_nothing_stays_of_one_that_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let mut file = NewFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(file);
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["a".into()], b"old".to_vec()));
        write(&path, b"new").unwrap();
        assert_eq!((names(folder.path()), fs::read(&path).unwrap()), (vec!["a".into()], b"new".to_vec()));
    }

    #[test]
    fn only_regular_files_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let [taken, socket] = ["folder", "socket"].map(|name| folder.path().join(name));
        fs::create_dir(&taken).unwrap();
        let _socket = UnixListener::bind(&socket).unwrap();
        for path in [&taken, &socket] {
            let refused = write(path, b"new").unwrap_err().to_string();
            assert!(refused.contains("expected a regular file"), "{refused}");
        }
        assert!(taken.is_dir());
        assert_eq!(names(folder.path()), [Path::new("folder"), Path::new("socket")]);
    }
}
