//! Kernels from their CUDA C++ sources by NVRTC, kept on disk: named by a hash of source, options, architecture and
//! compiler, so that nothing stale is ever loaded.

use std::env;
use std::ffi::{CStr, CString};
use std::fs;
use std::path::PathBuf;
use std::ptr;

use cudarc::nvrtc::sys::{self, nvrtcResult};

use super::driver::failed;
use crate::engine::EngineError;
use crate::new_file;

/// `$PI05_CACHE`, else `$XDG_CACHE_HOME/pi05_thor`, else `~/.cache/pi05_thor`; `None`: nothing is kept.
pub fn cache_folder() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PI05_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("pi05_thor")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/pi05_thor")))
}

/// Writes a cache file so that a reader sees all of it or nothing. A cache that cannot be written is said, and done without.
pub fn keep(name: &str, bytes: &[u8]) {
    let Some(folder) = cache_folder() else { return };
    let written = fs::create_dir_all(&folder).and_then(|()| new_file::write(&folder.join(name), bytes));
    if let Err(e) = written {
        tracing::warn!("{}: cannot be kept for the next start: {e}", folder.join(name).display());
    }
}

/// The machine code of `source` for compute capability `arch`.
pub fn cubin(source: &str, defines: &[String], arch: i32) -> Result<Vec<u8>, EngineError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two integers to write to.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    let options = options(defines, arch);
    let key = format!("{major}.{minor} {options:?} {source}");
    let name = format!("kernels-sm{arch}-{:016x}.cubin", fnv(key.as_bytes()));
    if let Some(kept) = cache_folder().and_then(|folder| fs::read(folder.join(&name)).ok()) {
        return Ok(kept);
    }
    let (compiled, _) = compile(source, &options)?;
    keep(&name, &compiled);
    Ok(compiled)
}

/// What the compiler says of `source`: warnings, and the assembler's registers and spills, kernel by kernel. Keeps nothing.
pub fn remarks(source: &str, defines: &[String], arch: i32) -> Result<String, EngineError> {
    let mut options = options(defines, arch);
    options.push("--ptxas-options=-v".to_owned());
    compile(source, &options).map(|(_, log)| log)
}

/// Whether there is a compiler on this machine.
pub fn is_there() -> bool {
    // SAFETY: looks for the library, calls nothing in it.
    unsafe { sys::is_culib_present() }
}

fn options(defines: &[String], arch: i32) -> Vec<String> {
    // Instructions of Hopper's and Blackwell's own need the architecture-specific target.
    let suffix = if arch >= 90 { "a" } else { "" };
    let mut options = vec![format!("--gpu-architecture=sm_{arch}{suffix}"), "--std=c++17".to_owned()];
    options.extend(defines.iter().map(|define| format!("-D{define}")));
    options
}

/// FNV-1a, 64 bit.
pub fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Machine code, and what the compiler said.
fn compile(source: &str, options: &[String]) -> Result<(Vec<u8>, String), EngineError> {
    let text = |s: &str| CString::new(s).map_err(|e| failed("nvrtcCreateProgram", e));
    let (source, name) = (text(source)?, text("pi05.cu")?);
    let options = options.iter().map(|o| text(o)).collect::<Result<Vec<_>, _>>()?;
    let options: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
    let mut program = ptr::null_mut();
    // SAFETY: the strings outlive the calls; sizes come from the compiler itself; the program is destroyed once.
    unsafe {
        check(
            "nvrtcCreateProgram",
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            ),
        )?;
        let compiled = sys::nvrtcCompileProgram(program, options.len() as i32, options.as_ptr());
        let (mut size, mut log) = (0, Vec::new());
        if sys::nvrtcGetProgramLogSize(program, &mut size) == nvrtcResult::NVRTC_SUCCESS {
            log.resize(size, 0u8);
            sys::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
        }
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned();
        let result = if compiled == nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(program, &mut size)).and_then(|()| {
                let mut bytes = vec![0u8; size];
                let got = sys::nvrtcGetCUBIN(program, bytes.as_mut_ptr().cast());
                check("nvrtcGetCUBIN", got).map(|()| (bytes, log))
            })
        } else {
            Err(failed("nvrtcCompileProgram", log))
        };
        sys::nvrtcDestroyProgram(&mut program);
        result
    }
}

fn check(call: &str, result: nvrtcResult) -> Result<(), EngineError> {
    if result == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: a static string of the compiler's.
    let reason = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(failed(call, reason.to_string_lossy()))
}
