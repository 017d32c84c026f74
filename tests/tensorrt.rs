//! TensorRT without TensorRT's GPUs: the shim against every header at hand, the real networks built by TensorRT-RTX for
//! a named compute capability, and the refusals. `scripts/tensorrt-dev` fetches headers and library; without them the
//! tests that need them say so and pass.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pi05(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pi05"))
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn the_shim_compiles_against_every_header_at_hand_and_links_nothing_of_tensorrt() {
    let headers = root().join(".tensorrt/headers");
    let Ok(entries) = headers.read_dir() else {
        eprintln!("skipped: no headers; scripts/tensorrt-dev fetches them");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut compiled = 0;
    for entry in entries.map(|e| e.unwrap().path()).filter(|path| path.join("NvInfer.h").is_file()) {
        for half in ["build", "run"] {
            let object = folder.path().join("shim.o");
            let source = root().join(format!("src/engine/tensorrt/shim/{half}.cpp"));
            let output = Command::new("c++")
                .args([
                    "-std=c++17",
                    "-O0",
                    "-fPIC",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    "-Wno-deprecated-declarations",
                ])
                .args(["-isystem".as_ref(), entry.as_os_str(), "-isystem".as_ref(), headers.as_os_str()])
                .args(["-c".as_ref(), source.as_os_str(), "-o".as_ref(), object.as_os_str()])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}, {half}: {}", entry.display(), said(&output));
            let symbols = said(&Command::new("nm").arg("--undefined-only").arg(&object).output().unwrap());
            for foreign in ["createInfer", "getInfer", "getPlugin", "cuda", "cuInit"] {
                assert!(!symbols.contains(foreign), "{}, {half}: refers to {foreign}", entry.display());
            }
        }
        compiled += 1;
    }
    assert!(compiled >= 3, "{compiled} sets of headers");
}

#[test]
fn an_empty_folder_has_no_engines() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().display().to_string();
    let listed = pi05(&["engines", "list", "--out", &out], &[]);
    assert!(listed.status.success() && said(&listed).contains("no engines"), "{}", said(&listed));
    assert_eq!(pi05(&["engines", "check", "--out", &out], &[]).status.code(), Some(1));
}

#[test]
fn an_engine_of_something_else_is_refused_from_its_manifest() {
    let folder = tempfile::tempdir().unwrap();
    let manifest = |plan_bytes: u32| {
        format!(
            r#"{{"stage": "vision", "dtype": "bf16", "plan_bytes": {plan_bytes}, "plan_sha256": "0", "checkpoint": "D",
            "checkpoint_sha256": "0123", "cameras": 3, "prompt": 200, "horizon": 50, "inputs": [], "outputs": [],
            "gpu": "another", "compute_capability": "3.5", "tensorrt": "TensorRT 8.6.1", "build_s": 1.0}}"#
        )
    };
    let out = folder.path().display().to_string();
    let check = |manifest: &str, more: &[&str]| {
        std::fs::write(folder.path().join("vision.bf16.json"), manifest).unwrap();
        std::fs::write(folder.path().join("vision.bf16.plan"), "plan").unwrap();
        let output = pi05(&[&["engines", "check", "--out", &out], more].concat(), &[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        said(&output)
    };
    let text = check(&manifest(4), &["--checkpoint", "synth:tiny"]);
    assert!(text.contains("FAIL") && text.contains("checkpoint: built for 0123, here is"), "{text}");
    let text = check(&manifest(5), &[]);
    assert!(
        text.contains("FAIL") && (text.contains("built for") || text.contains("expected 5 bytes")),
        "{text}"
    );
    let text = check("{}", &[]);
    assert!(text.contains("vision.bf16.json: no engine's manifest"), "{text}");
}

#[cfg(not(feature = "tensorrt"))]
#[test]
fn without_the_feature_building_is_refused_in_one_line() {
    let output = pi05(&["engines", "build", "--checkpoint", "synth:tiny"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("--features tensorrt"), "{}", said(&output));
    assert_eq!(said(&output).lines().count(), 1);
}

#[cfg(feature = "tensorrt")]
mod with_the_feature {
    use std::path::PathBuf;

    use super::*;
    use pi05_thor::engine::calibration::Calibration;
    use pi05_thor::engine::tensorrt::manifest::Manifest;
    use pi05_thor::engine::tensorrt::plan::{Builder, Request};
    use pi05_thor::engine::tensorrt::safe::Library;
    use pi05_thor::engine::tensorrt::stages::{Format, Sizes, Stage};
    use pi05_thor::engine::weights::Weights;
    use pi05_thor::model::dims::{Dims, GemmaDims, VisionDims};
    use pi05_thor::model::tensors::Dtype;

    const STAGES: [Stage; 3] = [Stage::Vision, Stage::Prefix, Stage::Denoise];

    /// A builder for compute capability 12.0, if TensorRT-RTX is here; it must be where `TENSORRT_LIBRARY` names it.
    fn builder() -> Option<Builder> {
        if !Library::is_rtx() {
            eprintln!("skipped: built with the headers of TensorRT, which builds for the present GPU only");
            return None;
        }
        match Builder::new(Some(120)) {
            Ok(builder) => Some(builder),
            Err(reason) => {
                assert!(std::env::var_os("TENSORRT_LIBRARY").is_none(), "{reason}");
                eprintln!("skipped: {reason}");
                None
            }
        }
    }

    /// Ranges for every product: their size has no bearing on whether a network builds.
    fn ranges(dims: &Dims) -> Calibration {
        let mut names = vec!["vision.post_layernorm".to_owned()];
        for i in 0..dims.vision.layers {
            names.extend(
                ["layer_norm1", "attention", "layer_norm2", "hidden"]
                    .map(|p| format!("vision.layer.{i}.{p}")),
            );
        }
        for i in 0..dims.language.layers {
            let parts = ["input_layernorm", "attention", "post_attention_layernorm", "hidden"];
            names.extend(parts.map(|p| format!("prefix.layer.{i}.{p}")));
        }
        Calibration::from_ranges(names.into_iter().map(|name| (name, 8.0)))
    }

    fn shapes(tensors: &[pi05_thor::engine::tensorrt::manifest::Tensor]) -> Vec<String> {
        tensors.iter().map(|t| format!("{} {} {:?}", t.name, t.dtype, t.shape)).collect()
    }

    /// Builds every stage. What TensorRT says of every layer's type and shape is compared on the way.
    fn build(builder: &Builder, dims: Dims, sizes: Sizes, dtype: Dtype, formats: &[Format], trained: bool) {
        let weights = Weights::synthetic(&dims, dtype, |_| {}).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let calibration = ranges(&dims);
        for &format in formats {
            for stage in STAGES {
                let request = Request {
                    checkpoint: "procedural",
                    checkpoint_sha256: &weights.fingerprint(&dims).unwrap(),
                    weights: &weights,
                    dims: &dims,
                    sizes,
                    format,
                    trained,
                    calibration: Some(&calibration),
                    out: folder.path(),
                };
                let (path, manifest) = builder
                    .build(stage, &request, &|_, _, _| {})
                    .unwrap_or_else(|e| panic!("{stage} {format}: {e}"));
                assert_eq!(Manifest::read(&path).unwrap(), manifest);
                manifest.plan_is_whole(&path, true).unwrap();
                std::fs::remove_file(&path).unwrap(); // large at full width: disks are small
                assert_eq!(manifest.compute_capability, "12.0");
                let (inputs, outputs) = (shapes(&manifest.inputs), shapes(&manifest.outputs));
                let prefix = sizes.prefix(&dims);
                let kv = [prefix, dims.language.head_dim];
                match stage {
                    Stage::Vision => {
                        let rows = sizes.cameras * dims.vision.tokens();
                        assert_eq!(inputs, [format!("pixels f32 {:?}", [sizes.cameras, 224, 224, 3])]);
                        assert_eq!(outputs, [format!("features f32 {:?}", [rows, dims.language.width])]);
                    }
                    Stage::Prefix => {
                        assert_eq!(inputs.len(), 4, "{inputs:?}");
                        assert_eq!(outputs.len(), 2 * dims.language.layers);
                        assert_eq!(outputs[0], format!("k.0 bf16 {kv:?}"));
                    }
                    Stage::Denoise => {
                        let more = if trained { 2 } else { 0 };
                        assert_eq!(inputs.len(), 5 + more + 2 * dims.expert.layers, "{inputs:?}");
                        assert!(inputs.contains(&format!("v.0 bf16 {kv:?}")), "{inputs:?}");
                        assert_eq!(outputs, [format!("velocity f32 {:?}", [sizes.horizon, dims.action_dim])]);
                    }
                }
            }
        }
    }

    #[test]
    fn the_tiny_networks_build() {
        let Some(builder) = builder() else { return };
        let sizes = Sizes { cameras: 3, prompt: 200, horizon: 50 };
        build(&builder, Dims::TINY, sizes, Dtype::F32, &[Format::Bf16, Format::Fp16, Format::Fp8], true);
    }

    #[test]
    fn full_size_layers_build() {
        let Some(builder) = builder() else { return };
        // Two layers of Gemma: of the last one only K and V are made.
        let dims = Dims {
            vision: VisionDims { layers: 1, ..Dims::FULL.vision },
            language: GemmaDims { layers: 2, ..Dims::FULL.language },
            expert: GemmaDims { layers: 2, ..Dims::FULL.expert },
            vocab: 16,
            ..Dims::FULL
        };
        let sizes = Sizes { cameras: 3, prompt: 200, horizon: 50 };
        build(&builder, dims, sizes, Dtype::BF16, &[Format::Bf16, Format::Fp8], false);
    }

    #[test]
    fn engines_are_built_listed_and_checked_by_command() {
        if builder().is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        let build = ["engines", "build", "--checkpoint", "synth:tiny", "--out", &out];
        let built =
            pi05(&[&build[..], &["--stages", "denoise", "--compute-capability", "12.0"]].concat(), &[]);
        assert!(built.status.success(), "{}", said(&built));
        let listed = said(&pi05(&["engines", "list", "--out", &out], &[]));
        assert!(listed.contains("denoise") && listed.contains("12.0"), "{listed}");
        let check = ["engines", "check", "--out", &out, "--checkpoint"];
        let same = pi05(&[&check[..], &["synth:tiny"]].concat(), &[]);
        assert!(
            said(&same).contains("ok: ") || said(&same).contains("GPU of compute capability"),
            "{}",
            said(&same)
        );
        let tiny = root().join("tests/data/fixtures/tiny").display().to_string();
        let other = pi05(&[&check[..], &[&tiny]].concat(), &[]);
        assert_eq!(other.status.code(), Some(1));
        assert!(
            said(&other).contains("FAIL: ") && said(&other).contains("checkpoint: built for"),
            "{}",
            said(&other)
        );
        let fp8 = pi05(&[&build[..], &["--dtype", "fp8", "--compute-capability", "12.0"]].concat(), &[]);
        assert!(said(&fp8).contains("pi05 calibrate"), "{}", said(&fp8));
    }

    /// A library that pretends to be TensorRT.
    fn pretender(folder: &Path, version: &str, builder: &str) -> PathBuf {
        let (source, library) = (folder.join("pretender.c"), folder.join("libpretender.so"));
        let code = format!(
            "int getInferLibVersion(void) {{ return {version}; }}\n\
             void* createInferBuilder_INTERNAL(void* l, int v) {{ (void)l; (void)v; return (void*){builder}; }}\n"
        );
        std::fs::write(&source, code).unwrap();
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status().unwrap();
        assert!(compiled.success());
        library
    }

    fn refusal(library: &str) -> String {
        let mut arguments = vec!["engines", "build", "--checkpoint", "synth:tiny", "--stages", "denoise"];
        if Library::is_rtx() {
            arguments.extend(["--compute-capability", "12.0"]);
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().display().to_string();
        arguments.extend(["--out", &out]);
        let output = pi05(&arguments, &[("TENSORRT_LIBRARY", library)]);
        assert_eq!(output.status.code(), Some(1));
        let text = said(&output);
        let last = text.lines().last().unwrap_or_default().to_owned();
        assert!(last.starts_with("pi05: "), "{text}");
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        last
    }

    #[test]
    fn libraries_that_will_not_do_are_refused_in_one_line() {
        if !Library::is_rtx() {
            return; // without a GPU nothing is opened
        }
        let folder = tempfile::tempdir().unwrap();
        let with = |version: &str, builder: &str| {
            refusal(&pretender(folder.path(), version, builder).display().to_string())
        };
        let here = Library::header_version().to_string();
        let number: String = here.split('.').map(|part| format!("{part:0>2}")).collect();
        let number = number.trim_start_matches('0');
        let major = with("90500", "0");
        assert!(major.contains("version 9.5, but this program was built with the headers"), "{major}");
        for garbage in ["0", "8", "0x1234567"] {
            let said = with(number, garbage);
            assert!(said.contains("createInferBuilder"), "{garbage}: {said}");
        }
        assert!(refusal("libc.so.6").contains("no TensorRT library"));
        assert!(refusal("/nonexistent/libnvinfer.so").contains("set TENSORRT_LIBRARY"));
    }

    #[test]
    fn without_a_gpu_nothing_is_built_for_the_present_one() {
        if pi05_thor::engine::cuda::CudaEngine::missing().is_none() {
            return;
        }
        let said = Builder::new(None).err().unwrap().to_string();
        assert!(said.contains("--compute-capability"), "{said}");
    }
}
