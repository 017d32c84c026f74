//! What is said beside each engine: for which checkpoint, GPU and TensorRT it was built, and its shapes. JSON, one file
//! per engine, `{stage}.{dtype}.json` beside `{stage}.{dtype}.plan`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::TensorRtError;
use super::graph::Port;
use super::stages::{Format, Sizes, Stage};
use crate::new_file;

/// More than any manifest has.
const MOST_BYTES: u64 = 1 << 20;

/// An engine's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `vision`, `prefix` or `denoise`.
    pub stage: String,
    /// `bf16`, `fp16` or `fp8`.
    pub dtype: String,
    /// The plan's length.
    pub plan_bytes: u64,
    /// The plan's SHA-256.
    pub plan_sha256: String,
    /// As it was named when the engine was built.
    pub checkpoint: String,
    /// [`Weights::fingerprint`](crate::engine::weights::Weights::fingerprint).
    pub checkpoint_sha256: String,
    /// Camera images.
    pub cameras: usize,
    /// Prompt slots.
    pub prompt: usize,
    /// Actions of a chunk.
    pub horizon: usize,
    /// What goes in.
    pub inputs: Vec<Tensor>,
    /// What comes out.
    pub outputs: Vec<Tensor>,
    /// The GPU's name; none if it was built for another's compute capability.
    pub gpu: Option<String>,
    /// `11.0`
    pub compute_capability: String,
    /// `TensorRT 10.13.3`, or `TensorRT-RTX 1.7.1`.
    pub tensorrt: String,
    /// What building took, seconds.
    pub build_s: f64,
}

/// A tensor that goes in or comes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// `f32`, `bf16` or `fp16`.
    pub dtype: String,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl From<Port> for Tensor {
    fn from(Port { name, dtype, shape }: Port) -> Self {
        Self { name, dtype: dtype.name().to_owned(), shape }
    }
}

/// What a manifest is compared with; what is not known is not compared.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// Of the checkpoint.
    pub checkpoint_sha256: Option<String>,
    /// Of the GPU.
    pub compute_capability: Option<String>,
    /// Of the library.
    pub tensorrt: Option<String>,
}

impl Manifest {
    /// Every manifest of a folder, in the order of stages and names; none if there is no such folder.
    pub fn all(folder: &Path) -> Result<Vec<(PathBuf, Self)>, TensorRtError> {
        let mut paths = Vec::new();
        if folder.exists() {
            for entry in fs::read_dir(folder).map_err(|e| TensorRtError::file(folder, e))? {
                let path = entry.map_err(|e| TensorRtError::file(folder, e))?.path();
                if path.extension().is_some_and(|extension| extension == "json") {
                    paths.push(path);
                }
            }
        }
        paths.sort();
        let read = |path: PathBuf| Self::read(&path).map(|manifest| (path, manifest));
        let mut all = paths.into_iter().map(read).collect::<Result<Vec<_>, _>>()?;
        all.sort_by_key(|(_, manifest)| Stage::NAMES.iter().position(|name| *name == manifest.stage));
        Ok(all)
    }

    /// Reads one; its words are checked.
    pub fn read(path: &Path) -> Result<Self, TensorRtError> {
        let wrong = |reason: String| {
            TensorRtError::file(
                path,
                format!("no engine's manifest: {reason}; run `pi05 engines build` again"),
            )
        };
        let file = File::open(path).map_err(|e| TensorRtError::file(path, e))?;
        let mut text = String::new();
        file.take(MOST_BYTES).read_to_string(&mut text).map_err(|e| wrong(e.to_string()))?;
        let manifest: Self = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        if Stage::from_name(&manifest.stage).is_none() || Format::from_name(&manifest.dtype).is_none() {
            return Err(wrong(format!("stage {:?} of {:?}", manifest.stage, manifest.dtype)));
        }
        Ok(manifest)
    }

    /// Where the manifest of a stage lies in `folder`.
    pub fn path(folder: &Path, stage: Stage, format: Format) -> PathBuf {
        folder.join(format!("{stage}.{format}.json"))
    }

    /// The plan beside a manifest.
    pub fn plan(path: &Path) -> PathBuf {
        path.with_extension("plan")
    }

    /// Writes it, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<(), TensorRtError> {
        let text = serde_json::to_string_pretty(self).map_err(|e| TensorRtError::file(path, e))?;
        write_whole(path, format!("{text}\n").as_bytes())
    }

    /// What the engine was built for against what is here. `path`: the manifest's.
    pub fn fits(&self, path: &Path, here: &Here) -> Result<(), TensorRtError> {
        let pairs = [
            ("checkpoint", &self.checkpoint_sha256, &here.checkpoint_sha256),
            ("GPU of compute capability", &self.compute_capability, &here.compute_capability),
            ("library", &self.tensorrt, &here.tensorrt),
        ];
        for (what, built, here) in pairs {
            if let Some(here) = here.as_ref().filter(|here| *here != built) {
                let [built, here] = [built, here].map(|text| text.chars().take(40).collect());
                return Err(TensorRtError::Stale { file: path.display().to_string(), what, built, here });
            }
        }
        Ok(())
    }

    /// Whether the plan is the one that was built: its length, and if `whole` every byte.
    pub fn plan_is_whole(&self, path: &Path, whole: bool) -> Result<(), TensorRtError> {
        let plan = Self::plan(path);
        let file = File::open(&plan).map_err(|e| TensorRtError::file(&plan, e))?;
        let len = file.metadata().map_err(|e| TensorRtError::file(&plan, e))?.len();
        if len != self.plan_bytes {
            let reason = format!("expected {} bytes as its manifest says, found {len}", self.plan_bytes);
            return Err(TensorRtError::file(&plan, reason + "; run `pi05 engines build` again"));
        }
        if whole && sha256_of(file).map_err(|e| TensorRtError::file(&plan, e))? != self.plan_sha256 {
            let reason = "its bytes are not those that its manifest says; run `pi05 engines build` again";
            return Err(TensorRtError::file(&plan, reason));
        }
        Ok(())
    }

    /// What its shapes were fixed to.
    pub fn sizes(&self) -> Sizes {
        Sizes { cameras: self.cameras, prompt: self.prompt, horizon: self.horizon }
    }
}

/// Writes a file whole or not at all.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), TensorRtError> {
    new_file::write(path, bytes).map_err(|e| TensorRtError::file(path, e))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn sha256_of(mut file: File) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            read => hash.update(&piece[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            stage: "vision".into(),
            dtype: "bf16".into(),
            plan_bytes: 4,
            plan_sha256: sha256(b"plan"),
            checkpoint: "synth:tiny".into(),
            checkpoint_sha256: "abc".into(),
            cameras: 3,
            prompt: 200,
            horizon: 50,
            inputs: vec![Tensor { name: "pixels".into(), dtype: "f32".into(), shape: vec![3, 224, 224, 3] }],
            outputs: vec![],
            gpu: None,
            compute_capability: "12.0".into(),
            tensorrt: "TensorRT-RTX 1.7.1".into(),
            build_s: 0.5,
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_the_plan_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = Manifest::path(folder.path(), Stage::Vision, Format::Bf16);
        manifest().write(&path).unwrap();
        assert_eq!(Manifest::all(folder.path()).unwrap(), [(path.clone(), manifest())]);
        let said = |whole| manifest().plan_is_whole(&path, whole).map_err(|e| e.to_string());
        assert!(said(true).unwrap_err().contains("vision.bf16.plan"));
        fs::write(Manifest::plan(&path), b"plan").unwrap();
        said(true).unwrap();
        fs::write(Manifest::plan(&path), b"pla").unwrap();
        assert!(said(false).unwrap_err().contains("expected 4 bytes"));
        fs::write(Manifest::plan(&path), b"plam").unwrap();
        said(false).unwrap();
        assert!(said(true).unwrap_err().contains("its bytes are not"));
    }

    #[test]
    fn an_engine_of_another_checkpoint_gpu_or_version_is_refused_in_one_line() {
        let (manifest, path) = (manifest(), Path::new("engines/vision.bf16.json"));
        manifest.fits(path, &Here::default()).unwrap();
        let some = |text: &str| Some(text.to_owned());
        let same = Here {
            checkpoint_sha256: some("abc"),
            compute_capability: some("12.0"),
            tensorrt: some("TensorRT-RTX 1.7.1"),
        };
        manifest.fits(path, &same).unwrap();
        for (here, what) in [
            (
                Here { checkpoint_sha256: some("abd"), ..same.clone() },
                "checkpoint: built for abc, here is abd",
            ),
            (Here { compute_capability: some("11.0"), ..same.clone() }, "built for 12.0, here is 11.0"),
            (Here { tensorrt: some("TensorRT 10.13.3"), ..same.clone() }, "here is TensorRT 10.13.3"),
        ] {
            let said = manifest.fits(path, &here).unwrap_err().to_string();
            assert!(
                said.contains(what) && said.contains("vision.bf16.json") && !said.contains('\n'),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        for text in
            ["", "{}", "[1]", &serde_json::to_string(&Manifest { stage: "a".into(), ..manifest() }).unwrap()]
        {
            fs::write(&path, text).unwrap();
            let said = Manifest::all(folder.path()).unwrap_err().to_string();
            assert!(said.contains("x.json: no engine's manifest"), "{said}");
        }
        assert_eq!(Manifest::all(&folder.path().join("none")).unwrap(), []);
    }
}
