//! What is written reads back the same, in both layouts; what fails leaves nothing behind.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
};

use pi05_thor::{
    model::tensors::{Dtype, TOKEN_EMBEDDING},
    policy::{
        checkpoint::{
            Checkpoint, ConfigHints, DEFAULT_CAMERAS, Layout,
            safetensors::read_header,
            write::{NewCheckpoint, NewTensor, write_checkpoint, write_safetensors},
        },
        statistics::{FeatureStats, NormMode, Statistics},
    },
};
use proptest::prelude::*;

use super::*;

fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> NewTensor {
    NewTensor { name: name.into(), dtype, shape: shape.to_vec() }
}

/// Every byte of a tensor says which tensor it is.
fn mark(tensor: &NewTensor) -> u8 {
    tensor.name.bytes().fold(7, |a, b| a.wrapping_mul(31).wrapping_add(b))
}

fn fill(tensor: &NewTensor, file: &mut dyn Write) -> io::Result<()> {
    for _ in 0..tensor.bytes().unwrap() {
        file.write_all(&[mark(tensor)])?;
    }
    Ok(())
}

fn statistics(mode: NormMode, scale: f64) -> Statistics {
    let stats = |n: usize| FeatureStats {
        mean: Some(vec![0.5 * scale; n]),
        std: Some(vec![2.0; n]),
        q01: Some(vec![-scale; n]),
        q99: Some((0..n).map(|i| 1.0 + i as f64).collect()),
        ..Default::default()
    };
    Statistics {
        state: stats(7),
        action: stats(6),
        state_mode: mode,
        action_mode: mode,
        eps: if mode == NormMode::MeanStd { 1e-5 } else { 1e-6 },
        source: String::new(),
    }
}

const HINTS: ConfigHints = ConfigHints {
    vision_heads: Some(4),
    max_token_len: Some(24),
    action_horizon: Some(10),
    action_dim: Some(8),
    image: None,
    periods: None,
    num_steps: None,
    gemma_2b: true,
    builtin_tokenizer: true,
};

fn new<'a>(layout: Layout, tensors: &'a [NewTensor], statistics: &'a Statistics) -> NewCheckpoint<'a> {
    NewCheckpoint {
        layout,
        tensors,
        hints: &HINTS,
        cameras: &DEFAULT_CAMERAS,
        image_side: 56,
        statistics,
        asset_id: "lab/arm",
        tokenizer: Some(("tokenizer.model", b"pieces")),
    }
}

fn some_tensors() -> Vec<NewTensor> {
    vec![
        tensor("action_in_proj.bias", Dtype::F16, &[3]),
        tensor(TOKEN_EMBEDDING, Dtype::BF16, &[5, 3]),
        tensor("time_mlp_in.weight", Dtype::F32, &[2, 2]),
        tensor("paligemma_with_expert.gemma_expert.model.norm.dense.bias", Dtype::BF16, &[0]),
    ]
}

#[test]
fn both_layouts_read_back_as_they_were_written() {
    let tensors = some_tensors();
    for (layout, mode, scale) in
        [(Layout::OpenPi, NormMode::Quantiles, 0.1), (Layout::LeRobot, NormMode::MeanStd, 0.25)]
    {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new/folder");
        let statistics = statistics(mode, scale);
        let mut heard = Vec::new();
        let new = new(layout, &tensors, &statistics);
        write_checkpoint(&folder, &new, fill, &mut |done, total| heard.push((done, total))).unwrap();

        let checkpoint = Checkpoint::open(&folder, None).unwrap();
        assert_eq!(checkpoint.layout, layout);
        let image = (layout == Layout::LeRobot).then_some([56; 2]);
        assert_eq!(checkpoint.hints, ConfigHints { image, ..HINTS });
        assert_eq!(checkpoint.cameras, DEFAULT_CAMERAS);
        assert_eq!(checkpoint.tokenizer, Some(folder.join("tokenizer.model")));
        assert_eq!(checkpoint.action_len, (layout == Layout::LeRobot).then_some(6));
        assert_eq!(checkpoint.notes, [""; 0]);
        let source = checkpoint.statistics.as_ref().unwrap().source.clone();
        assert_eq!(checkpoint.statistics, Some(Statistics { source, ..statistics }));

        assert_eq!(checkpoint.tensors.entries.len(), tensors.len());
        let bytes = fs::read(folder.join("model.safetensors")).unwrap();
        for tensor in &tensors {
            let entry = &checkpoint.tensors.entries[&tensor.name];
            assert_eq!((entry.dtype, &entry.shape), (tensor.dtype, &tensor.shape));
            assert_eq!(entry.offset % entry.dtype.size() as u64, 0, "aligned to its element");
            let data = &bytes[entry.offset as usize..][..tensor.bytes().unwrap() as usize];
            assert!(data.iter().all(|&b| b == mark(tensor)), "{}", tensor.name);
        }
        assert!(heard.is_sorted());
        let (done, total) = *heard.last().unwrap();
        assert_eq!(done, total);
    }
}

#[test]
fn the_embedding_is_stored_as_each_layout_stores_it() {
    let (lm_head, statistics) =
        ("paligemma_with_expert.paligemma.lm_head.weight", statistics(NormMode::Quantiles, 0.5));
    let tensors = some_tensors();
    let dir = tempfile::tempdir().unwrap();
    let header = |layout, name: &str| {
        let folder = dir.path().join(name);
        write_checkpoint(&folder, &new(layout, &tensors, &statistics), fill, &mut |_, _| {}).unwrap();
        read_header(&folder.join("model.safetensors")).unwrap()
    };
    let openpi = header(Layout::OpenPi, "openpi");
    let truth = read_header(&fixture("tiny/model.safetensors")).unwrap();
    assert_eq!(openpi.metadata, truth.metadata);
    assert!(openpi.tensors.contains_key(lm_head) && !openpi.tensors.contains_key(TOKEN_EMBEDDING));
    let lerobot = header(Layout::LeRobot, "lerobot");
    assert!(lerobot.tensors.keys().all(|name| name.starts_with("model.")));
    assert!(lerobot.tensors.contains_key(&format!("model.{lm_head}")));
    assert!(lerobot.tensors.contains_key(&format!("model.{TOKEN_EMBEDDING}")));
}

#[test]
fn the_official_library_reads_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensors = some_tensors();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&path, &metadata, &tensors, |i, file| fill(&tensors[i], file), &mut |_, _| {}).unwrap();
    let bytes = fs::read(&path).unwrap();
    let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.len(), tensors.len());
    for tensor in &tensors {
        let view = read.tensor(&tensor.name).unwrap();
        assert_eq!(view.shape(), tensor.shape);
        assert!(view.data().iter().all(|&b| b == mark(tensor)));
    }
    assert_eq!((bytes.len() - tensors.iter().map(|t| t.bytes().unwrap() as usize).sum::<usize>()) % 8, 0);
}

#[test]
fn a_failure_leaves_the_folder_as_it_was() {
    let (tensors, good) = (some_tensors(), statistics(NormMode::Quantiles, 0.5));
    let dir = tempfile::tempdir().unwrap();
    let empty = || fs::read_dir(dir.path()).unwrap().next().is_none();
    for layout in [Layout::OpenPi, Layout::LeRobot] {
        let new = new(layout, &tensors, &good);
        let full_disk = |_: &NewTensor, file: &mut dyn Write| {
            file.write_all(&[1])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        };
        let error = write_checkpoint(dir.path(), &new, full_disk, &mut |_, _| {}).unwrap_err();
        assert!(one_line(error, &dir.path().join("model.safetensors")).contains("no storage space"));
        assert!(empty());

        let short = |_: &NewTensor, _: &mut dyn Write| Ok(());
        let error = write_checkpoint(dir.path(), &new, short, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("16 of 16 bytes were not written"), "{error}");
        let long = |t: &NewTensor, file: &mut dyn Write| fill(t, file).and_then(|()| file.write_all(&[0]));
        let error = write_checkpoint(dir.path(), &new, long, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("longer than its shape"), "{error}");
        assert!(empty());

        let mut bad = good.clone();
        bad.action.q99 = None;
        let error =
            write_checkpoint(dir.path(), &NewCheckpoint { statistics: &bad, ..new }, fill, &mut |_, _| {});
        assert!(error.unwrap_err().to_string().contains("q99"));
        let out = NewCheckpoint { asset_id: "../..", tokenizer: Some(("../t", b"")), ..new };
        write_checkpoint(dir.path(), &out, fill, &mut |_, _| {}).unwrap_err();
        assert!(empty());
    }
}

#[test]
fn nothing_is_written_over() {
    let (tensors, statistics) = (some_tensors(), statistics(NormMode::Quantiles, 0.5));
    let dir = tiny();
    let before = fs::read(dir.path().join("config.json")).unwrap();
    let new = new(Layout::OpenPi, &tensors, &statistics);
    let error = write_checkpoint(dir.path(), &new, fill, &mut |_, _| {}).unwrap_err();
    assert!(one_line(error, dir.path()).contains("not empty"));
    assert_eq!(fs::read(dir.path().join("config.json")).unwrap(), before);

    let twice = [tensor("a", Dtype::F32, &[1]), tensor("a", Dtype::F32, &[1])];
    let path = dir.path().join("x.safetensors");
    let error =
        write_safetensors(&path, &BTreeMap::new(), &twice, |_, _| Ok(()), &mut |_, _| {}).unwrap_err();
    assert_eq!(one_line(error, &path), "tensor a: was to be written twice");
    let reserved = [tensor("__metadata__", Dtype::F32, &[1])];
    let error =
        write_safetensors(&path, &BTreeMap::new(), &reserved, |_, _| Ok(()), &mut |_, _| {}).unwrap_err();
    assert_eq!(one_line(error, &path), "tensor __metadata__: the format keeps this name for itself");
    let huge = [tensor("a", Dtype::F32, &[usize::MAX, 2])];
    let error = write_safetensors(&path, &BTreeMap::new(), &huge, |_, _| Ok(()), &mut |_, _| {}).unwrap_err();
    assert!(one_line(error, &path).starts_with("tensor a: shape"));
    assert!(!path.exists());
}

proptest! {
    #[test]
    fn any_table_reads_back_the_same(
        tensors in prop::collection::btree_map(".{1,12}", (0usize..3, prop::collection::vec(0usize..5, 0..5)), 0..10)
    ) {
        let tensors: Vec<_> = tensors
            .into_iter()
            .filter(|(name, _)| name != "__metadata__")
            .map(|(name, (dtype, shape))| tensor(&name, [Dtype::F32, Dtype::BF16, Dtype::F16][dtype], &shape))
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write_safetensors(&path, &BTreeMap::new(), &tensors, |i, f| fill(&tensors[i], f), &mut |_, _| {}).unwrap();
        let header = read_header(&path).unwrap();
        prop_assert_eq!(header.tensors.len(), tensors.len());
        for t in &tensors {
            let read = &header.tensors[&t.name];
            prop_assert_eq!(&read.shape, &t.shape);
            prop_assert_eq!(read.dtype.to_string(), format!("{:?}", t.dtype));
        }
    }
}
