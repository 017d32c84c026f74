//! Every kernel compiles for every GPU generation that the engine serves, without warnings; what it spills is shown and
//! bounded. Needs no GPU but NVIDIA's run-time compiler (scripts/check-kernels brings it): without one it says so and
//! passes.

#![allow(clippy::unwrap_used)]

use pi05_thor::{
    engine::cuda::{Program, has_compiler, programs},
    model::dims::Dims,
};
use rayon::prelude::*;

/// Orin, Hopper, Thor, consumer Blackwell.
const GENERATIONS: [i32; 4] = [87, 90, 110, 120];
/// Bytes that a thread of any kernel may spill: the expert's do a little, and are faster for it.
const SPILLS_MAX: u32 = 256;

#[test]
fn every_kernel_compiles_for_every_gpu_generation() {
    if !has_compiler() {
        assert!(std::env::var_os("PI05_KERNELS_MUST_COMPILE").is_none(), "no libnvrtc was found");
        return eprintln!("skipped: no libnvrtc; scripts/check-kernels brings it");
    }
    let all: Vec<_> = GENERATIONS.iter().flat_map(|&arch| programs(&Dims::FULL, arch)).collect();
    println!("kernels, most registers, most bytes spilled");
    let bad: Vec<String> = all.par_iter().flat_map_iter(complaints).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Compiles it and shows what came of it; what is wrong with it.
fn complaints(program: &Program) -> Vec<String> {
    let name = &program.name;
    let remarks = match program.remarks() {
        Ok(remarks) => remarks,
        Err(error) => return vec![format!("{name}: {error}")],
    };
    let kernels = remarks.matches("Compiling entry function").count();
    let registers = largest(&remarks, "Used ", " registers");
    let spills = largest(&remarks, "bytes stack frame, ", " bytes spill stores");
    println!("{kernels:>3} {registers:>4} {spills:>4}  {name}");
    // That another generation is quicker at an instruction is no mistake.
    let warnings = remarks.lines().filter(|line| line.contains("warning") && !line.contains("Advisory"));
    let mut bad: Vec<String> = warnings.map(|line| format!("{name}: {line}")).collect();
    if kernels == 0 || registers == 0 {
        bad.push(format!("{name}: expected kernels, found none: {remarks}"));
    }
    if spills > SPILLS_MAX {
        bad.push(format!("{name}: expected at most {SPILLS_MAX} bytes of spills, found {spills}"));
    }
    bad
}

/// The largest number between these two texts.
fn largest(remarks: &str, before: &str, after: &str) -> u32 {
    let numbers = remarks.split(before).skip(1).filter_map(|rest| rest.split(after).next()?.parse().ok());
    numbers.max().unwrap_or(0)
}
