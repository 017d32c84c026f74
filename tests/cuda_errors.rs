//! What CUDA refuses and what breaks on the GPU, caused for real. In a process of its own, whose GPU nobody can use
//! afterwards. Needs a GPU: without one it says so and passes.

#![allow(clippy::unwrap_used)]
#![allow(unsafe_code, reason = "the driver itself is made to fail, past the engine")]

use std::ffi::{CStr, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUresult};
use pi05_thor::{
    engine::{Choice, Engine, Precision, cuda::CudaEngine},
    model::{
        Pixels,
        sampler::{Sampler, TimeRounding, noise},
    },
    pipeline::{LoadError, Model},
};

const TRAP: &CStr =
    c".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry trap_at_once() { trap; }\n";

fn load() -> Result<Engine, LoadError> {
    Model::open_network("synth:tiny").unwrap().load(Choice::Cuda(Precision::Bf16), |_, _| {})
}

fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

/// What the engine says is one line that names the call.
fn is_clear(said: &str, reason: &str) {
    println!("{said}");
    assert!(said.starts_with("GPU: cu") && said.contains(reason) && !said.contains('\n'), "{said}");
}

/// Takes the GPU's memory but for this many bytes.
fn fill_all_but(left: usize) -> u64 {
    let (mut free, mut all, mut address) = (0, 0, 0);
    // SAFETY: numbers to write to.
    unsafe {
        ok(sys::cuMemGetInfo_v2(&mut free, &mut all));
        ok(sys::cuMemAlloc_v2(&mut address, free - left));
    }
    address
}

fn trap() {
    let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: pointers to write to; the text ends with 0; the kernel takes no arguments.
    unsafe {
        ok(sys::cuModuleLoadData(&mut module, TRAP.as_ptr().cast::<c_void>()));
        ok(sys::cuModuleGetFunction(&mut function, module, c"trap_at_once".as_ptr()));
        let (stream, none) = (ptr::null_mut(), ptr::null_mut());
        ok(sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, none, none));
        assert_ne!(sys::cuCtxSynchronize(), CUresult::CUDA_SUCCESS);
    }
}

#[test]
fn memory_that_is_full_and_a_context_that_is_lost_are_one_clear_line_each() {
    if let Some(reason) = CudaEngine::missing() {
        return eprintln!("skipped: {reason}");
    }
    let mut engine = load().unwrap();
    let taken = fill_all_but(96 << 20);
    is_clear(&load().err().unwrap().to_string(), "asked for");
    // SAFETY: allocated above, used by nobody.
    ok(unsafe { sys::cuMemFree_v2(taken) });
    drop(load().unwrap());

    let Engine::Cuda(engine) = &mut engine else { unreachable!("cuda was asked for") };
    let images = [Some(Pixels::U8(vec![128; 224 * 224 * 3]))];
    let (noise, sampler) = (noise(0, 0, 50 * 32), Sampler::euler(10, TimeRounding::Accumulated));
    engine.run(&images, &[1, 2, 3], &noise, &sampler).unwrap();
    trap();
    for _ in 0..2 {
        let said = engine.run(&images, &[1, 2, 3], &noise, &sampler).unwrap_err().to_string();
        is_clear(&said, "CUDA_ERROR");
    }
}
