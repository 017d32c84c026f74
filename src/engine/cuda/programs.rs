//! Every program that an engine compiles, by GPU generation: for whoever checks them without a GPU.

use super::compile::{is_there, remarks};
use super::expert::ACTIONS;
use super::fused::defines;
use super::lane::{ATTENTION, E4M3, EXPERT, PRODUCTS, PRODUCTS_FP8, STAGES};
use crate::engine::EngineError;
use crate::model::dims::Dims;

/// Kernels that are compiled together.
pub struct Program {
    /// For a person: what it is, with its defines.
    pub name: String,
    sources: &'static [&'static str],
    defines: Vec<String>,
    arch: i32,
}

impl Program {
    /// Compiles it and gives what the compiler says: warnings, registers and spills.
    pub fn remarks(&self) -> Result<String, EngineError> {
        remarks(&self.sources.concat(), &self.defines, self.arch)
    }
}

/// Whether there is a compiler (NVRTC) on this machine.
pub fn has_compiler() -> bool {
    is_there()
}

/// All programs for this network's widths on GPUs of compute capability `arch` (90 for 9.0), f32, bf16 and fp8.
pub fn programs(dims: &Dims, arch: i32) -> Vec<Program> {
    let program = |name: &str, sources, defines: Vec<String>| Program {
        name: format!("sm_{arch} {name} {}", defines.join(" ")),
        sources,
        defines,
        arch,
    };
    let bf16 = || vec!["BF16".to_owned()];
    let mut all = vec![program("stages", STAGES, Vec::new()), program("stages", STAGES, bf16())];
    if arch >= 80 {
        all.push(program("attention", ATTENTION, bf16()));
    }
    if arch == 90 {
        all.push(program("products", PRODUCTS, bf16()));
        all.push(program("products of e4m3", PRODUCTS_FP8, [bf16(), vec![E4M3.to_owned()]].concat()));
    }
    if arch >= 90 && dims.expert.head_dim == 256 {
        // Hopper's matrix instructions are others for every 8 actions; elsewhere chunks of 1 to 8, 10, 50 and 64.
        let all_tiles = 1..=ACTIONS / 8;
        let tiles = all_tiles.filter(|tiles| arch == 90 || [1, 2, 7, ACTIONS / 8].contains(tiles));
        all.extend(tiles.map(|tiles| program("expert", EXPERT, defines(&dims.expert, tiles))));
    }
    all
}
