//! `pi05 synth`: a procedural checkpoint as a folder.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::out::stdout;
use super::replay::load_config;
use super::{Failure, Verdict, progress};
use crate::model::{names, synth};
use crate::pipeline::Synthetic;
use crate::policy::PolicyError;
use crate::policy::checkpoint::write::{NewCheckpoint, NewTensor, write_checkpoint};
use crate::policy::checkpoint::{ConfigHints, DEFAULT_CAMERAS, Layout};
use crate::policy::statistics::Statistics;
use crate::policy::tokenizer::BUILTIN;

/// Write a procedural checkpoint: real layout, made-up weights
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 synth tiny my_checkpoint --layout lerobot\n\n\
                        tiny: 4 MB, f32. full: π0.5's own size, 6.7 GB, bf16.\n\
                        Statistics are those that change nothing; the tokenizer is the built-in one.")]
pub struct Args {
    /// Size of the network
    #[arg(value_enum, value_name = "tiny|full")]
    size: Size,
    /// Folder to write; must be empty or not there yet
    #[arg(value_name = "OUT_DIR")]
    out_dir: PathBuf,
    /// Layout of the folder
    #[arg(long, value_enum, default_value = "openpi", value_name = "openpi|lerobot")]
    layout: LayoutArg,
    /// ROS 2 parameter file whose joints the statistics are for [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Size {
    /// Widths of the fixtures.
    Tiny,
    /// π0.5's own size.
    Full,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutArg {
    /// As openpi's converter writes it.
    Openpi,
    /// As LeRobot's `save_pretrained` writes it.
    Lerobot,
}

/// Elements made at once: bounds memory, keeps all cores busy.
const ELEMENTS: usize = 1 << 22;

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let model = match args.size {
        Size::Tiny => Synthetic::Tiny,
        Size::Full => Synthetic::Full,
    };
    let joints = load_config(args.config.as_deref(), None)?.joints;
    let (dims, dtype) = (model.dims(), model.dtype());
    let (found, most) = (joints.action_names.len(), dims.action_dim);
    if found > most {
        return Err(PolicyError::TooManyActions { found, most }.into());
    }
    let mut list = names::required(&dims);
    list.push((names::language_final_norm(), vec![dims.language.width])); // unused, but in every checkpoint
    let tensors: Vec<NewTensor> =
        list.into_iter().map(|(name, shape)| NewTensor { name, dtype, shape }).collect();
    let hints = ConfigHints {
        vision_heads: Some(dims.vision.heads),
        max_token_len: Some(dims.max_tokens),
        action_horizon: Some(dims.horizon),
        action_dim: Some(dims.action_dim),
        image: None,   // `image_side` below says it
        periods: None, // the official ones
        num_steps: None,
        gemma_2b: model == Synthetic::Full,
        builtin_tokenizer: model == Synthetic::Full, // 512 pieces for 257152 rows: only because we say so
    };
    let new = NewCheckpoint {
        layout: match args.layout {
            LayoutArg::Openpi => Layout::OpenPi,
            LayoutArg::Lerobot => Layout::LeRobot,
        },
        tensors: &tensors,
        hints: &hints,
        cameras: &DEFAULT_CAMERAS,
        image_side: dims.vision.image,
        statistics: &Statistics::unit(joints.names.len(), joints.action_names.len()),
        asset_id: "synthetic",
        tokenizer: (model == Synthetic::Tiny).then_some(("tokenizer.model", BUILTIN)),
    };
    // A signal ends the writing like any other failure, which leaves no file behind.
    let ending = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ending))?;
    }
    let bar = progress::bar("writing");
    let mut buffer = Vec::new();
    let fill = |tensor: &NewTensor, file: &mut dyn Write| -> io::Result<()> {
        let all: usize = tensor.shape.iter().product();
        for first in (0..all).step_by(ELEMENTS) {
            if ending.load(Ordering::Relaxed) {
                return Err(io::Error::other("interrupted; what was written is gone again"));
            }
            buffer.resize(ELEMENTS.min(all - first) * dtype.size(), 0);
            synth::fill(&tensor.name, &tensor.shape, dtype, first, &mut buffer);
            file.write_all(&buffer)?;
        }
        Ok(())
    };
    write_checkpoint(&args.out_dir, &new, fill, &mut |done, all| progress::set(&bar, done, all))?;
    bar.finish_and_clear();
    writeln!(stdout(), "{}: {} parameters, {dtype:?}", args.out_dir.display(), dims.parameters())?;
    Ok(Verdict::Ok)
}
