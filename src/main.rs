//! `pi05`: parse, load, run, exit code.
fn main() {}
