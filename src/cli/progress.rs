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

/// A bar over a network's parameters while `load` makes or reads them.
pub fn weights<T>(load: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T) -> T {
    let bar = bar("weights");
    let loaded = load(&mut |made, all| set(&bar, made as u64, all as u64));
    bar.finish_and_clear();
    loaded
}

/// Sets both ends of a bar.
pub fn set(bar: &ProgressBar, done: u64, all: u64) {
    bar.set_length(all);
    bar.set_position(done);
}
