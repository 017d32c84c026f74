//! Every kernel compiles for every GPU generation that the engine serves, without warnings and without spills. Needs no
//! GPU but NVIDIA's run-time compiler (scripts/check-kernels brings it): without one it says so and passes.

#![allow(clippy::unwrap_used)]

use pi05_thor::{
    engine::cuda::{has_compiler, programs},
    model::dims::Dims,
};
use rayon::prelude::*;

/// Orin, Hopper, Thor, consumer Blackwell.
const GENERATIONS: [i32; 4] = [87, 90, 110, 120];

#[test]
fn every_kernel_compiles_for_every_gpu_generation() {
    if !has_compiler() {
        assert!(std::env::var_os("PI05_KERNELS_MUST_COMPILE").is_none(), "no libnvrtc was found");
        return eprintln!("skipped: no libnvrtc; scripts/check-kernels brings it");
    }
    let all: Vec<_> = GENERATIONS.iter().flat_map(|&arch| programs(&Dims::FULL, arch)).collect();
    let bad: Vec<String> = all
        .par_iter()
        .flat_map_iter(|program| match program.remarks() {
            Ok(remarks) => {
                let kernels = remarks.matches("Compiling entry function").count();
                let worst = largest(&remarks, "Used ", " registers");
                println!("{:<110} {kernels:>3} kernels, at most {worst} registers", program.name);
                assert!(kernels > 0, "{}: {remarks}", program.name);
                complaints(&remarks).map(|line| format!("{}: {line}", program.name)).collect()
            }
            Err(error) => vec![format!("{}: {error}", program.name)],
        })
        .collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Warnings of the compiler, spills of the assembler.
fn complaints(remarks: &str) -> impl Iterator<Item = &str> {
    remarks.lines().filter(|line| {
        let spills =
            line.contains("bytes spill") && !line.contains(" 0 bytes spill stores, 0 bytes spill loads");
        spills || line.contains("warning")
    })
}

/// The largest number between these two texts.
fn largest(remarks: &str, before: &str, after: &str) -> u32 {
    let numbers = remarks.split(before).skip(1).filter_map(|rest| rest.split(after).next()?.parse().ok());
    numbers.max().unwrap_or(0)
}
