//! `pi05`: parse, load, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    pi05_thor::cli::main()
}
