//! Parameter files from anywhere: no panic, no memory beyond a small multiple of the text, always an answer.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pi05_thor::config::parameters::TABLE;
use pi05_thor::config::{Config, FILE_MAX};
use proptest::prelude::*;

/// Counts the bytes that each thread has in use, and their peak: other tests run beside.
struct Metered;

thread_local! {
    // What one thread allocates another may free: it may be below 0.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    IN_USE.set(IN_USE.get() + bytes);
    PEAK.set(PEAK.get().max(IN_USE.get()));
}

#[global_allocator]
static ALLOCATOR: Metered = Metered;

#[allow(unsafe_code)] // an allocator is nothing but unsafe; it passes everything on to the system's
unsafe impl GlobalAlloc for Metered {
    // SAFETY: the caller's promises are passed on unchanged.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as above.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Parses, and checks the answer and the memory that it took.
fn parse(text: &str) -> Result<(), TestCaseError> {
    let before = IN_USE.get();
    PEAK.set(before);
    let result = Config::from_yaml(text, "fuzz.yaml");
    let peak = (PEAK.get() - before).unsigned_abs();
    // A list of one-character numbers makes some 100 bytes of every two.
    prop_assert!(peak <= 512 * 1024 + 200 * text.len(), "{peak} bytes for a text of {}", text.len());
    if let Err(error) = result {
        let message = error.to_string();
        prop_assert!(message.len() < 20_000 && message.lines().count() <= 21, "{message}");
        prop_assert!(message.lines().all(|line| line.starts_with("fuzz.yaml: ") || line.starts_with("and ")));
    }
    Ok(())
}

/// Values that are right, wrong, and strange.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "1",
            "-1",
            "0",
            "50.0",
            "1e400",
            "-.inf",
            ".nan",
            "0x7f",
            "99999999999999999999999",
            "true",
            "no",
            "null",
            "~",
            "[]",
            "{}",
            "\"\"",
            "\"\\0\"",
            "\"\\ud800\"",
            "[1, 2]",
            "[[1]]",
            "[true, 1]",
            "{a: {b: 1}}",
            "&a x",
            "*a",
            "!!binary aGk=",
            "!!float 1",
            "!tag x",
            "|\n      text",
            "aloha",
            "generic",
            "synth:tiny",
            "'",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,20}",
        any::<f64>().prop_map(|v| v.to_string()),
        any::<i64>().prop_map(|v| v.to_string()),
    ]
}

fn any_name() -> impl Strategy<Value = String> {
    let known: Vec<String> = TABLE.iter().map(|p| p.name.replace("<slot>", "base_0_rgb")).collect();
    prop_oneof![4 => prop::sample::select(known), 1 => "[a-z.]{1,30}", 1 => "cameras\\.[a-z.]{0,9}\\.topic"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text(text in ".{0,400}") {
        parse(&text)?;
    }

    #[test]
    fn any_yaml_like_text(text in "([a-z*/&{}\\[\\]:,'\"#|>!%@~<. 0-9-]|ros__parameters:|/\\*\\*:|\n {0,8}){0,120}") {
        parse(&text)?;
    }

    #[test]
    fn any_parameters(entries in prop::collection::vec((any_name(), any_value()), 0..12)) {
        let lines: String = entries.iter().map(|(name, value)| format!("    {name}: {value}\n")).collect();
        parse(&format!("/**:\n  ros__parameters:\n{lines}"))?;
    }

    /// A shipped file with a few bytes changed, cut out or doubled.
    #[test]
    fn a_damaged_file(edits in prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, any::<u8>()), 1..6)) {
        let mut bytes = pi05_thor::config::builtin_yaml(pi05_thor::config::RobotKind::Generic).as_bytes().to_vec();
        for (index, kind, byte) in edits {
            let at = index.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => { bytes.remove(at); }
                _ => bytes.insert(at, byte),
            }
        }
        parse(&String::from_utf8_lossy(&bytes))?;
    }
}

/// Texts made to cost much.
#[test]
fn hostile_files_cost_little() {
    let inside = |body: &str| format!("/**:\n  ros__parameters:\n{body}");
    let laughs: String = (0..30).map(|k| format!("a{}: &a{} [*a{k}, *a{k}]\n", k + 1, k + 1)).collect();
    let names: String = (0..15_000).map(|k| format!("    n{k}: 1\n")).collect();
    for text in [
        "[".repeat(FILE_MAX),
        "{a: ".repeat(FILE_MAX / 4),
        "- ".repeat(FILE_MAX / 2),
        "a:\n".repeat(FILE_MAX / 3),
        format!("a0: &a0 [x]\n{laughs}"),
        inside(&format!("    joints.names: [{}1]\n", "1, ".repeat(80_000))),
        inside(&format!("    joints.position_min: [{}1]\n", "1,".repeat(15_000))),
        inside(&format!("    prompt: \"{}\"\n", "\\u0041".repeat(40_000))),
        inside(&format!("    {}: 1\n", "a.".repeat(100_000))),
        inside(&names),
        inside(&format!("    ? {}\n    : {{{names}}}\n", "k".repeat(100_000))),
        "--- 1\n".repeat(40_000),
        "# comment\n".repeat(26_000),
    ] {
        let start = std::time::Instant::now();
        parse(&text).unwrap();
        assert!(start.elapsed().as_secs() < 5, "{:?} for {:.40}", start.elapsed(), text);
    }
}
