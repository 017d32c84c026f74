//! Which files make up a bag: `metadata.yaml` where there is one that can be read, else the files that are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::BagError;

/// Largest `metadata.yaml` that is read. A bag of 100 topics and 1000 files has under 1 MiB.
const MAX_METADATA_BYTES: u64 = 16 << 20;

/// The files of a bag in order, and how they are to be read.
pub(super) struct Layout {
    pub(super) files: Vec<PathBuf>,
    /// Each message is compressed on its own.
    pub(super) zstd_messages: bool,
    /// Messages per topic, as `metadata.yaml` says.
    pub(super) counts: BTreeMap<String, u64>,
    pub(super) notes: Vec<String>,
}

impl Layout {
    fn plain(files: Vec<PathBuf>, notes: Vec<String>) -> Self {
        Self { files, zstd_messages: false, counts: BTreeMap::new(), notes }
    }
}

/// Finds the files of the bag at `path`.
pub(super) fn layout(path: &Path) -> Result<Layout, BagError> {
    let found = fs::metadata(path).map_err(BagError::io(path))?;
    if found.is_file() {
        refuse_compressed(path)?;
        return Ok(Layout::plain(vec![path.to_owned()], Vec::new()));
    }
    if !found.is_dir() {
        return Err(not_a_bag(path, "neither a file nor a folder"));
    }
    let metadata = path.join("metadata.yaml");
    let layout = if metadata.is_file() {
        match read_metadata(&metadata)? {
            Ok(information) => from_metadata(path, &metadata, information)?,
            // The files know what is in them. Where there are none, what is wrong with the metadata is of more use.
            Err(damaged) => {
                let instead = || BagError::damaged(&metadata, damaged.clone());
                from_names(path, &format!("metadata.yaml is damaged ({damaged})")).map_err(|_| instead())?
            }
        }
    } else {
        from_names(path, "no metadata.yaml")?
    };
    for file in &layout.files {
        if !fs::metadata(file).map_err(BagError::io(file))?.is_file() {
            return Err(not_a_bag(file, "not a regular file"));
        }
    }
    Ok(layout)
}

/// Does the name end as a bag's file does?
pub(super) fn is_bag_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "mcap" || e == "db3")
}

#[derive(Deserialize)]
struct Metadata {
    rosbag2_bagfile_information: Information,
}

#[derive(Deserialize)]
struct Information {
    storage_identifier: String,
    relative_file_paths: Vec<String>,
    #[serde(default)]
    compression_format: Option<String>,
    #[serde(default)]
    compression_mode: Option<String>,
    #[serde(default)]
    topics_with_message_count: Vec<TopicCount>,
}

#[derive(Deserialize)]
struct TopicCount {
    topic_metadata: TopicMetadata,
    message_count: u64,
}

#[derive(Deserialize)]
struct TopicMetadata {
    name: String,
}

/// What `metadata.yaml` says; inside, why it says nothing.
fn read_metadata(path: &Path) -> Result<Result<Information, String>, BagError> {
    let size = fs::metadata(path).map_err(BagError::io(path))?.len();
    if size > MAX_METADATA_BYTES {
        return Ok(Err(format!("{size} bytes, expected at most {MAX_METADATA_BYTES}")));
    }
    let bytes = fs::read(path).map_err(BagError::io(path))?;
    let text = String::from_utf8_lossy(&bytes); // what is no text is no metadata either
    let metadata: Result<Metadata, _> = serde_saphyr::from_str(&text);
    Ok(metadata.map(|metadata| metadata.rosbag2_bagfile_information).map_err(|e| {
        let reason = e.to_string();
        format!("not the metadata of a bag: {}", reason.lines().next().unwrap_or_default())
    }))
}

fn from_metadata(folder: &Path, path: &Path, information: Information) -> Result<Layout, BagError> {
    if !["mcap", "sqlite3"].contains(&information.storage_identifier.as_str()) {
        return Err(BagError::Unsupported {
            path: path.to_owned(),
            what: format!(
                "storage_identifier \"{}\", expected mcap or sqlite3",
                information.storage_identifier
            ),
            instead: "convert it with: ros2 bag convert".to_owned(),
        });
    }
    let mut notes = Vec::new();
    let mut files = Vec::new();
    for listed in &information.relative_file_paths {
        files.push(listed_file(folder, path, listed)?);
    }
    if files.is_empty() {
        return Err(not_a_bag(path, "lists no files"));
    }
    for extra in bag_files(folder)?.iter().filter(|extra| !files.contains(extra)) {
        notes.push(format!("{}: not listed in metadata.yaml, left out", extra.display()));
    }
    let mode = information.compression_mode.unwrap_or_default().to_ascii_lowercase();
    let format = information.compression_format.unwrap_or_default();
    let zstd_messages = mode == "message";
    if zstd_messages && format != "zstd" {
        return Err(BagError::Unsupported {
            path: path.to_owned(),
            what: format!("messages compressed with \"{format}\", expected zstd"),
            instead: "convert it with: ros2 bag convert".to_owned(),
        });
    }
    let topics = information.topics_with_message_count.into_iter();
    let counts = topics.map(|topic| (topic.topic_metadata.name, topic.message_count)).collect();
    Ok(Layout { files, zstd_messages, counts, notes })
}

/// A file that `metadata.yaml` lists. Only its name counts: old bags put the folder before it, and nothing outside
/// the folder is ever opened. Where a file compressed as a whole was decompressed beside it, that one is taken.
fn listed_file(folder: &Path, metadata: &Path, listed: &str) -> Result<PathBuf, BagError> {
    let Some(name) = Path::new(listed).file_name() else {
        return Err(BagError::damaged(metadata, format!("lists \"{listed}\", which names no file")));
    };
    let file = folder.join(name);
    let plain = file.with_extension("");
    if is_compressed(&file) && plain.is_file() {
        return Ok(plain);
    }
    refuse_compressed(&file)?;
    Ok(file)
}

/// `why` the names have to do.
fn from_names(folder: &Path, why: &str) -> Result<Layout, BagError> {
    let files = bag_files(folder)?;
    if files.is_empty() {
        return Err(not_a_bag(folder, "a folder without metadata.yaml and without .mcap or .db3 files"));
    }
    let kinds = |kind: &str| files.iter().any(|file| file.extension().is_some_and(|e| e == kind));
    if kinds("mcap") && kinds("db3") {
        return Err(not_a_bag(
            folder,
            "a folder without metadata.yaml that holds both .mcap and .db3 files; name one",
        ));
    }
    let note = format!("{}: {why}, read the {} file(s) that are there", folder.display(), files.len());
    Ok(Layout::plain(files, vec![note]))
}

/// The bag files of a folder by name.
fn bag_files(folder: &Path) -> Result<Vec<PathBuf>, BagError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(BagError::io(folder))? {
        let path = entry.map_err(BagError::io(folder))?.path();
        if is_bag_file(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "zstd" || e == "zst")
}

fn refuse_compressed(path: &Path) -> Result<(), BagError> {
    if !is_compressed(path) {
        return Ok(());
    }
    Err(BagError::Unsupported {
        path: path.to_owned(),
        what: "compressed as a whole file".to_owned(),
        instead: format!(
            "decompress it first: zstd -d {} -o {}",
            path.display(),
            path.with_extension("").display()
        ),
    })
}

fn not_a_bag(path: &Path, found: &str) -> BagError {
    BagError::NotABag { path: path.to_owned(), found: found.to_owned() }
}
