//! The text that the network reads: the task, and the robot's state as digits (spec/PI05.md §3.2, §3.3).
//!
//! Pure string work, called by [`super::Policy`]; knows no tokenizer. Never fails: any text and any number have a form.

/// What stands in the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptFormat {
    /// `Task: …, State: …;\nAction: `: π0.5's own form.
    StateInPrompt,
    /// The task and a newline, tokenised one after the other: openpi's `discrete_state_input=False`.
    TaskOnlyNewline,
    /// `Task: …;\nAction: `: LeRobot's `include_state_in_prompt=False`.
    TaskOnly,
}

impl PromptFormat {
    /// The texts to tokenise one after another, after a single BOS; joined they are the prompt.
    /// `state` is the normalised state, only the robot's own dimensions.
    pub fn compose(self, prompt: &str, state: &[f64]) -> Vec<String> {
        let task = clean(prompt);
        match self {
            PromptFormat::StateInPrompt => {
                let bins: Vec<String> = state.iter().map(|&s| bin(s).to_string()).collect();
                vec![format!("Task: {task}, State: {};\nAction: ", bins.join(" "))]
            }
            PromptFormat::TaskOnlyNewline => vec![task, "\n".to_owned()],
            PromptFormat::TaskOnly => vec![format!("Task: {task};\nAction: ")],
        }
    }
}

/// Index of the bin of a normalised value: 256 bins over [-1, 1), counted by the left edges `-1 + i/128` that
/// do not lie above `s`. Below the first edge -1, above the last 255; NaN counts as above, as NumPy sorts it.
pub fn bin(s: f64) -> i32 {
    let lies_above = |edge: i32| -1.0 + f64::from(edge) / 128.0 > s;
    (0..256).take_while(|&edge| !lies_above(edge)).count() as i32 - 1
}

/// The task without surrounding white space, underscores and newlines replaced by spaces; case is kept.
pub fn clean(prompt: &str) -> String {
    prompt.trim_matches(is_python_space).replace(['_', '\n'], " ")
}

/// What Python's `str.strip` removes: Unicode white space, and the four information separators besides.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn strips_what_python_strips() {
        // Every code point with str.isspace() in Python 3.11, and four that look like it.
        let space = "\t\n\u{b}\u{c}\r\u{1c}\u{1d}\u{1e}\u{1f} \u{85}\u{a0}\u{1680}\u{2000}\u{2001}\u{2002}\u{2003}\
                     \u{2004}\u{2005}\u{2006}\u{2007}\u{2008}\u{2009}\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}";
        assert_eq!((0..=0x10ffff).filter_map(char::from_u32).filter(|&c| is_python_space(c)).count(), 29);
        assert_eq!(clean(&format!("{space}go_on{space}")), "go on");
        for kept in ['\u{180e}', '\u{200b}', '\u{2060}', '\u{feff}'] {
            assert_eq!(clean(&kept.to_string()), kept.to_string());
        }
    }

    #[test]
    fn only_underscore_and_newline_become_spaces() {
        assert_eq!(clean("A_b\nc\td\re"), "A b c\td\re");
    }

    proptest! {
        #[test]
        fn bins_follow_the_formula(s in prop_oneof![-1.1..1.1f64, any::<f64>(), (-140..140i32).prop_map(|i| f64::from(i) / 128.0)]) {
            let expected = if s.is_nan() { 255.0 } else { ((s + 1.0) * 128.0).floor().clamp(-1.0, 255.0) };
            // The comparison is exact, the formula's sum is rounded: they may differ where s + 1 is not exact.
            if s.is_nan() || s + 1.0 - 1.0 == s || s.abs() > 2.0 {
                prop_assert_eq!(f64::from(bin(s)), expected);
            }
        }
    }
}
