//! docs/safety.md says what the code does: the table of states is made from the code.

use std::path::PathBuf;

use pi05_thor::control::State;
use pi05_thor::control::state::Event;

const BEGIN: &str = "<!-- states:";
const END: &str = "<!-- end of states -->";

fn table() -> String {
    let names = State::ALL.map(State::name);
    let mut table = format!("| event | {} |\n|{}\n", names.join(" | "), "---|".repeat(names.len() + 1));
    for &event in Event::ALL {
        let cells = State::ALL.map(|before| match before.after(event) {
            after if after == before => "·",
            after => after.name(),
        });
        table += &format!("| {event:?} | {} |\n", cells.join(" | "));
    }
    table
}

/// With UPDATE_SAFETY=1 it is rewritten instead.
#[test]
fn the_states_of_the_documentation_are_those_of_the_code() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/safety.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let begin = text.find(BEGIN).and_then(|at| Some(at + text[at..].find('\n')? + 1)).unwrap();
    let end = text.find(END).unwrap();
    let documented = format!("{}{}{}", &text[..begin], table(), &text[end..]);
    if std::env::var_os("UPDATE_SAFETY").is_some() {
        std::fs::write(path, documented).unwrap();
    } else {
        assert_eq!(text, documented, "docs/safety.md: run once with UPDATE_SAFETY=1");
    }
}

/// Every test that the page names is there.
#[test]
fn the_tests_that_the_documentation_names_are_there() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("docs/safety.md")).unwrap();
    let tests = ["limits.rs", "invariants.rs"]
        .map(|file| std::fs::read_to_string(root.join("tests").join(file)).unwrap());
    let named: Vec<&str> = text
        .split('`')
        .filter(|word| word.len() > 20 && word.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
        .collect();
    assert!(named.len() >= 3, "{named:?}");
    for name in named {
        assert!(tests.iter().any(|test| test.contains(&format!("fn {name}("))), "{name}");
    }
}
