//! Progress bars on stderr; nothing where stderr is no terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over bytes, parameters or any other count.
pub fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0); // hidden by indicatif itself where stderr is no terminal
    let template = "{msg} {wide_bar} {percent:>3} %  {eta:>4}";
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}

/// Sets both ends of a bar.
pub fn set(bar: &ProgressBar, done: u64, all: u64) {
    bar.set_length(all);
    bar.set_position(done);
}
