//! Paths that begin at home: no shell has seen what stands in a parameter file or behind `checkpoint:=`.

use std::path::{Path, PathBuf};

/// `~/` in front is the home folder, where there is one.
pub fn from_home(path: String, home: Option<PathBuf>) -> String {
    match (path.strip_prefix("~/"), home.as_deref().and_then(Path::to_str)) {
        (Some(rest), Some(home)) if !home.is_empty() => format!("{}/{rest}", home.trim_end_matches('/')),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tilde_in_front_is_the_home_folder() {
        for (path, home, expected) in [
            ("~/pi05", Some("/ada"), "/ada/pi05"),
            ("~/pi05", Some("/ada/"), "/ada/pi05"),
            ("~/pi05", Some("/"), "/pi05"),
            ("~/pi05", Some(""), "~/pi05"),
            ("~/pi05", None, "~/pi05"),
            ("~ada/pi05", Some("/ada"), "~ada/pi05"),
            ("a/~/pi05", Some("/ada"), "a/~/pi05"),
            ("synth:tiny", Some("/ada"), "synth:tiny"),
        ] {
            assert_eq!(from_home(path.to_owned(), home.map(PathBuf::from)), expected, "{path}, {home:?}");
        }
    }
}
