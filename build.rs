//! Compiles the shim to TensorRT's C++ when the feature `tensorrt` asks for it. Nothing of TensorRT is linked: the
//! library is opened when it is needed.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "tensorrt")]
    tensorrt::compile();
}

#[cfg(feature = "tensorrt")]
mod tensorrt {
    use std::env;
    use std::path::{Path, PathBuf};
    use std::process::exit;

    const SHIM: &str = "src/engine/tensorrt/shim";
    /// Where NvInfer.h is searched for: `TENSORRT_INCLUDE_DIR` (several with `:` between), then where packages put it.
    const TENSORRT: [&str; 3] =
        ["/usr/include/aarch64-linux-gnu", "/usr/include/x86_64-linux-gnu", "/usr/local/tensorrt/include"];
    /// The same for cuda_runtime_api.h, which NvInfer.h includes.
    const CUDA: [&str; 1] = ["/usr/local/cuda/include"];

    pub fn compile() {
        for variable in ["TENSORRT_INCLUDE_DIR", "CUDA_HOME"] {
            println!("cargo:rerun-if-env-changed={variable}");
        }
        println!("cargo:rerun-if-changed={SHIM}");
        let given = env::var("TENSORRT_INCLUDE_DIR").unwrap_or_default();
        let given: Vec<PathBuf> = given.split(':').filter(|d| !d.is_empty()).map(PathBuf::from).collect();
        let cuda_home = env::var("CUDA_HOME").map(|home| Path::new(&home).join("include")).ok();
        let tensorrt = given.iter().cloned().chain(TENSORRT.map(PathBuf::from));
        let cuda = given.iter().cloned().chain(cuda_home).chain(CUDA.map(PathBuf::from));
        let tensorrt = folder_of("NvInfer.h", tensorrt);
        let cuda = folder_of("cuda_runtime_api.h", cuda);
        cc::Build::new()
            .cpp(true)
            .std("c++17")
            .files(["build.cpp", "run.cpp"].map(|file| format!("{SHIM}/{file}")))
            .include(SHIM)
            .flag("-isystem")
            .flag(tensorrt)
            .flag("-isystem")
            .flag(cuda)
            .flag("-Wno-deprecated-declarations") // what newer versions deprecate, older ones need
            .flag("-fvisibility=hidden")
            .extra_warnings(true)
            .compile("pi05_tensorrt_shim");
        println!("cargo:rustc-link-lib=dl");
    }

    fn folder_of(header: &str, folders: impl Iterator<Item = PathBuf>) -> PathBuf {
        let Some(folder) = folders.into_iter().find(|folder| folder.join(header).is_file()) else {
            eprintln!(
                "feature tensorrt: {header} not found: install TensorRT's development files and CUDA, or set \
                 TENSORRT_INCLUDE_DIR (and CUDA_HOME) to the folders with NvInfer.h and cuda_runtime_api.h"
            );
            exit(1);
        };
        folder
    }
}
