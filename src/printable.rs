//! Text from outside, as it may stand in a line for a person.

/// Longest piece of a file that a message repeats, in characters.
const MAX_QUOTED: usize = 160;

/// The text without line breaks or other control characters, never long.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(MAX_QUOTED) {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    if text.chars().nth(MAX_QUOTED).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_never_breaks_the_line_nor_floods_it() {
        assert_eq!(printable("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(printable(&"x".repeat(10_000)).chars().count(), MAX_QUOTED + 1);
    }
}
