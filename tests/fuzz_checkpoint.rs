//! Hostile checkpoints: whatever the bytes, no panic, and no more memory than a small multiple of what is on disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a test may
#![allow(unsafe_code)] // a global allocator cannot be written without; it only counts

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use pi05_thor::policy::{
    checkpoint::{
        Checkpoint,
        safetensors::{MAX_HEADER, read_case, read_header},
    },
    statistics::{FeatureStats, Statistics},
};
use proptest::prelude::*;
use tempfile::TempDir;

/// Counts the bytes that the current thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    // A thread that is being torn down is not counted.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `f` returns, and the most bytes it held at once.
fn peak<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = f();
    (result, (PEAK.get() - before) as usize)
}

/// Memory that any reading may take: paths, messages, buffers.
const CONSTANT: usize = 64 << 10;
/// Bytes held per byte of a safetensors file: the header, and a tree of its names, shapes and places.
const PER_BYTE: usize = 16;
/// Bytes held per byte of a JSON file: `0,` becomes a value of some 80, in a list that doubles as it grows.
const PER_JSON_BYTE: usize = 160;
/// Bytes that JSON takes at most beside its text, since the number of its values is capped.
const MOST_JSON: usize = 32 << 20;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures").join(name)
}

/// Reads a file of these bytes; what comes out lies inside the file and fills it.
fn read_weights(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    let (header, held) = peak(|| read_header(&path));
    assert!(held <= PER_BYTE * bytes.len() + CONSTANT, "{held} bytes held for {}", bytes.len());
    let (case, held) = peak(|| read_case(&path));
    assert!(held <= PER_BYTE * bytes.len() + CONSTANT, "{held} bytes held for {}", bytes.len());
    match header {
        Ok(header) => {
            let tensors = header.tensors.values();
            let json = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(tensors.clone().all(|t| t.offset + t.len <= bytes.len() as u64));
            assert_eq!(8 + json + tensors.map(|t| t.len).sum::<u64>(), bytes.len() as u64);
            assert_eq!(case.unwrap().len(), header.tensors.len());
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// A change to a text or to bytes.
#[derive(Clone, Debug)]
struct Change {
    at: prop::sample::Index,
    remove: usize,
    insert: Vec<u8>,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let insert = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..4),
        prop::sample::select(vec![
            "0",
            "-1",
            "1e308",
            "18446744073709551615",
            "9223372036854775808",
            "null",
            "true",
            "[]",
            "{}",
            "\"\"",
            "[[",
            "{\"",
            "NaN",
            "1.5",
            ",",
            ":",
            "\\u0000",
            "\"F64\"",
            "../",
            "/",
            "\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let change = (any::<prop::sample::Index>(), 0usize..12, insert);
    prop::collection::vec(change.prop_map(|(at, remove, insert)| Change { at, remove, insert }), 1..4)
}

fn changed(bytes: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for Change { at, remove, insert } in changes {
        let at = at.index(bytes.len() + 1);
        let end = (at + remove).min(bytes.len());
        bytes.splice(at..end, insert.iter().copied());
    }
    bytes
}

/// The file with the header's length made to fit again.
fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// A small real file: 14 statistics of two features.
static STATISTICS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    fs::read(fixture("lerobot_ckpt/policy_preprocessor_step_3_normalizer_processor.safetensors")).unwrap()
});

/// The JSON side files of both layouts, and where they belong.
static SIDE_FILES: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let read = |name| fs::read(fixture(name)).unwrap();
    let index =
        r#"{"metadata": {"total_size": 4}, "weight_map": {"time_mlp_in.bias": "model-1.safetensors"}}"#;
    vec![
        ("openpi/config.json", read("tiny/config.json")),
        ("openpi/assets/droid/norm_stats.json", read("data/assets/droid/norm_stats.json")),
        ("lerobot/config.json", read("lerobot_ckpt/config.json")),
        ("lerobot/policy_preprocessor.json", read("lerobot_ckpt/policy_preprocessor.json")),
        ("lerobot/policy_postprocessor.json", read("lerobot_ckpt/policy_postprocessor.json")),
        ("shards/model.safetensors.index.json", index.into()),
    ]
});

/// Three checkpoints, good but tiny: the one named by the first folder of `file` gets this instead of its own.
fn open_with(file: &str, content: &[u8]) -> (Result<Checkpoint, String>, usize) {
    let dir: TempDir = tempfile::tempdir().unwrap();
    let header = br#"{"time_mlp_in.bias":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let weights = with_header(header, &[0; 4]);
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    };
    for name in ["openpi/model.safetensors", "lerobot/model.safetensors", "shards/model-1.safetensors"] {
        write(name, &weights);
    }
    for (name, content) in SIDE_FILES.iter() {
        write(name, content);
    }
    for step in ["policy_preprocessor_step_3_normalizer", "policy_postprocessor_step_0_unnormalizer"] {
        write(&format!("lerobot/{step}_processor.safetensors"), &STATISTICS);
    }
    write(file, content);
    let folder = dir.path().join(file.split('/').next().unwrap());
    peak(|| Checkpoint::open(&folder, None).map_err(|error| error.to_string()))
}

#[test]
fn the_unchanged_files_open() {
    for (file, content) in SIDE_FILES.iter() {
        open_with(file, content).0.unwrap();
    }
    read_weights(&STATISTICS);
}

#[test]
fn what_is_claimed_is_not_allocated() {
    for length in [3, MAX_HEADER, MAX_HEADER + 1, u64::MAX] {
        read_weights(&[&length.to_le_bytes()[..], b"{}"].concat());
    }
    for len in [1u64 << 30, 1 << 40, u64::MAX] {
        let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{len}],"data_offsets":[0,{len}]}}}}"#);
        read_weights(&with_header(header.as_bytes(), &[0; 4]));
    }
}

#[test]
fn the_dearest_headers_stay_within_their_multiple() {
    let tensors = |entry: &dyn Fn(usize) -> String| {
        let entries: Vec<_> = (0..20_000).map(entry).collect();
        with_header(format!("{{{}}}", entries.join(",")).as_bytes(), &[])
    };
    let info = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    read_weights(&tensors(&|i| format!("\"{i}\":{info}")));
    let deep = r#"{"dtype":"U8","shape":[0,1,1,1,1,1,1,1],"data_offsets":[0,0]}"#;
    read_weights(&tensors(&|i| format!("\"{i}\":{deep}")));
    read_weights(&tensors(&|_| format!("\"\":{info}")));
    let long = format!(r#"{{"":{{"dtype":"U8","shape":[{}1]}}}}"#, "1,".repeat(500_000));
    read_weights(&with_header(long.as_bytes(), &[]));
    read_weights(&with_header("[".repeat(500_000).as_bytes(), &[]));
    let metadata: Vec<_> = (0..50_000).map(|i| format!("\"{i}\":\"\"")).collect();
    read_weights(&with_header(format!("{{\"__metadata__\":{{{}}}}}", metadata.join(",")).as_bytes(), &[]));
}

#[test]
fn the_dearest_side_files_stay_within_their_bound() {
    let list = |item: &str, n: usize| format!("[{}{item}]", format!("{item},").repeat(n));
    let mut dearest = vec![list("0", 65_000), list("0", 1_900_000), list("{}", 30_000), "[".repeat(4 << 20)];
    dearest.push(format!("\"{}\"", "x".repeat(4 << 20)));
    dearest.push(format!(r#"{{"norm_stats": {{"state": {{"q01": {}}}}}}}"#, list("1e9", 60_000)));
    let members: Vec<_> = (0..30_000).map(|i| format!("\"{i}\":0")).collect();
    dearest.push(format!("{{{}}}", members.join(",")));
    dearest.push(format!(r#"{{"input_features": {{"{}": {{"type": "VISUAL"}}}}}}"#, "k".repeat(4_000_000)));
    for (file, _) in SIDE_FILES.iter() {
        for text in &dearest {
            let (opened, held) = open_with(file, text.as_bytes());
            let bound = 4 * text.len() + MOST_JSON;
            assert!(held <= bound, "{file}: {held} bytes held for {}: {opened:?}", text.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        read_weights(&bytes);
        read_weights(&with_header(&bytes, &[0; 8]));
    }

    #[test]
    fn a_real_file_with_changes_anywhere(changes in changes()) {
        read_weights(&changed(&STATISTICS, &changes));
    }

    #[test]
    fn a_real_header_changed_but_of_the_right_length(changes in changes()) {
        let (header, data) = STATISTICS[8..].split_at(1000);
        read_weights(&with_header(&changed(header, &changes), data));
    }

    /// Places and shapes that are nearly right.
    #[test]
    fn offsets_and_shapes_of_all_kinds(
        tensors in prop::collection::vec(
            (prop::collection::vec(0u64..5, 0..3), -2i64..3, -2i64..3, prop::option::weighted(0.05, any::<u64>())),
            0..5,
        ),
        data in -3i64..4,
    ) {
        let mut at = 0i64;
        let mut entries = Vec::new();
        for (i, (shape, early, late, wild)) in tensors.iter().enumerate() {
            let len = 4 * shape.iter().product::<u64>() as i64;
            // Mostly exact, sometimes off by a little.
            let (early, late) = if i % 2 == 0 { (0, 0) } else { (*early, *late) };
            let (begin, end) = ((at + early).max(0), (at + len + late).max(0));
            at += len;
            let end = wild.unwrap_or(end as u64);
            entries.push(format!(r#""t{i}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#));
        }
        let header = format!("{{{}}}", entries.join(","));
        read_weights(&with_header(header.as_bytes(), &vec![0; (at + data).max(0) as usize]));
        read_weights(&with_header(header.as_bytes(), &vec![0; at as usize]));
    }

    #[test]
    fn side_files_with_changes(file in 0usize..6, changes in changes()) {
        let (name, content) = &SIDE_FILES[file];
        let content = changed(content, &changes);
        let (opened, held) = open_with(name, &content);
        let others: usize = SIDE_FILES.iter().map(|(_, content)| content.len()).sum();
        let bound = PER_JSON_BYTE * (content.len() + others) + CONSTANT;
        prop_assert!(held <= bound, "{held} bytes held for {}", content.len());
        if let Err(message) = opened {
            prop_assert!(!message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn a_state_file_with_changes(changes in changes()) {
        let file = "lerobot/policy_preprocessor_step_3_normalizer_processor.safetensors";
        if let Ok(checkpoint) = open_with(file, &changed(&STATISTICS, &changes)).0 {
            let Statistics { state, action, .. } = checkpoint.statistics.unwrap();
            for FeatureStats { mean, std, min, max, q01, q99, q10, q90 } in [state, action] {
                // A name may have been changed: which statistics are needed is for the normalisation to say.
                let given: Vec<_> = [mean, std, min, max, q01, q99, q10, q90].into_iter().flatten().collect();
                prop_assert!(given.iter().flatten().all(|x| x.is_finite()));
                prop_assert!(given.iter().all(|values| !values.is_empty() && values.len() == given[0].len()));
            }
        }
    }
}
