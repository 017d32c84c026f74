//! `pi05 inspect`: what a checkpoint is, how it meets the robot, and everything that is wrong with it.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;

use super::out::stdout;
use super::replay::load_config;
use super::{Failure, Verdict};
use crate::config::Config;
use crate::control::Scheduler;
use crate::model::dims::{Dims, GemmaDims};
use crate::model::tensors::TOKEN_EMBEDDING;
use crate::pipeline::Model;
use crate::pipeline::setup::Setup;
use crate::policy::cameras::CameraSlots;
use crate::policy::checkpoint::Checkpoint;
use crate::policy::statistics::FeatureStats;
use crate::policy::tokenizer::Tokenizer;
use crate::policy::{Policy, PolicyError};
use crate::printable::printable;

/// Show a checkpoint's dimensions, files, statistics, tokenizer and mapping to the robot, and every problem
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 inspect --checkpoint synth:tiny --config config/aloha.yaml\n\n\
                        Exit code 1 if it could not run.")]
pub struct Args {
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D")]
    checkpoint: String,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let mut page = String::new();
    let mut problems: Vec<String> = Vec::new();
    let mut notes: Vec<String> = Vec::new();
    let config = load_config(args.config.as_deref(), Some(args.checkpoint.clone()));
    let config = config.map_err(|e| problems.push(e.to_string())).ok();
    let asset_id = config.as_ref().and_then(|config| config.policy.asset_id.as_deref());

    writeln!(page, "checkpoint  {}", args.checkpoint)?;
    // If the side files are broken, the network can still be shown.
    let model = Model::open(&args.checkpoint, asset_id)
        .or_else(|error| {
            problems.push(error.to_string());
            Model::open_network(&args.checkpoint)
        })
        .map_err(|error| {
            let error = error.to_string();
            if !problems.contains(&error) {
                problems.push(error);
            }
        });
    if let Ok(model) = &model {
        match model.dims() {
            Ok(dims) => network(&mut page, model, &dims)?,
            Err(error) => problems.push(error.to_string()),
        }
        if let Model::Folder(checkpoint) = model {
            files(&mut page, checkpoint)?;
            notes.extend(checkpoint.notes.iter().cloned());
        }
    }
    if let (Some(config), Ok(model)) = (&config, &model) {
        robot(&mut page, config, &model.cameras(), &mut problems)?;
        if let Model::Folder(checkpoint) = model {
            problems.extend(missing(checkpoint, config));
        }
        // A policy is tried only where nothing is known to be wrong: it would say the same again.
        if problems.is_empty() {
            match Setup::open(config) {
                Ok(setup) => policy(&mut page, config, &setup.policy, &mut notes, &mut problems)?,
                Err(error) => problems.push(error.to_string()),
            }
        }
    }
    for note in &notes {
        writeln!(page, "note        {note}")?;
    }
    for problem in problems.iter().flat_map(|problem| problem.lines()) {
        writeln!(page, "PROBLEM     {problem}")?;
    }
    let verdict = if problems.is_empty() { "ok          it can run" } else { "FAIL        it could not run" };
    writeln!(page, "{verdict}")?;
    stdout().write_all(page.as_bytes())?;
    Ok(if problems.is_empty() { Verdict::Ok } else { Verdict::Wanting })
}

/// What a policy needs beside the network and this folder does not have, or has for another network.
fn missing(checkpoint: &Checkpoint, config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    let folder = || checkpoint.folder.display().to_string();
    if checkpoint.statistics.is_none() {
        problems.push(PolicyError::NoStatistics { folder: folder() }.to_string());
    }
    let rows = checkpoint.tensors.entries.get(TOKEN_EMBEDDING).and_then(|entry| entry.shape.first());
    let file = config.policy.tokenizer.as_deref().map(Path::new).or(checkpoint.tokenizer.as_deref());
    match (file, rows) {
        (Some(file), Some(&rows)) => {
            problems.extend(Tokenizer::from_file(file, rows).err().map(|error| error.to_string()));
        }
        (None, _) if !checkpoint.hints.builtin_tokenizer => {
            problems.push(PolicyError::NoTokenizer { folder: folder() }.to_string());
        }
        _ => {}
    }
    problems
}

fn policy(
    page: &mut String,
    config: &Config,
    policy: &Policy,
    notes: &mut Vec<String>,
    problems: &mut Vec<String>,
) -> std::fmt::Result {
    writeln!(page, "policy      prompt {:?}, resize {:?}", policy.prompt_format(), policy.resize())?;
    match policy.check_prompt(&config.prompt) {
        Ok(tokens) => {
            let most = policy.shape().max_tokens;
            writeln!(page, "prompt      {:?}: at most {tokens} of {most} tokens", config.prompt)?;
        }
        Err(error) => notes.push(format!("prompt {:?}: {error}", config.prompt)),
    }
    let control = config.control_config(policy.shape().horizon);
    if let Err(error) = control.map_err(Failure::from).and_then(|control| Ok(Scheduler::new(control)?)) {
        problems.push(error.to_string());
    }
    Ok(())
}

fn network(page: &mut String, model: &Model, dims: &Dims) -> std::fmt::Result {
    let vision = &dims.vision;
    let gemma = |g: &GemmaDims| {
        format!(
            "{} layers × {}, {} heads × {} on 1 shared K/V head, MLP {}",
            g.layers, g.width, g.heads, g.head_dim, g.mlp
        )
    };
    writeln!(page, "layout      {:?}", model.layout())?;
    writeln!(
        page,
        "vision      {} layers × {}, {} heads, MLP {}, image {}×{} in patches of {} → {} tokens",
        vision.layers,
        vision.width,
        vision.heads,
        vision.mlp,
        vision.image,
        vision.image,
        vision.patch,
        vision.tokens()
    )?;
    writeln!(page, "prefix      {}", gemma(&dims.language))?;
    writeln!(page, "expert      {}", gemma(&dims.expert))?;
    writeln!(
        page,
        "chunk       {} steps × {} values; vocabulary {}; {} prompt tokens",
        dims.horizon, dims.action_dim, dims.vocab, dims.max_tokens
    )?;
    let parameters = dims.parameters() as f64 / 1e6;
    writeln!(page, "parameters  {parameters:.1} M in use, {}", HumanBytes(model.bytes()))
}

fn files(page: &mut String, checkpoint: &Checkpoint) -> std::fmt::Result {
    for file in &checkpoint.tensors.files {
        writeln!(page, "weights     {}", file.display())?;
    }
    match &checkpoint.tokenizer {
        Some(file) => writeln!(page, "tokenizer   {}", file.display())?,
        None if checkpoint.hints.builtin_tokenizer => writeln!(page, "tokenizer   built-in, 512 pieces")?,
        None => writeln!(page, "tokenizer   none found")?,
    }
    match &checkpoint.statistics {
        Some(statistics) => {
            writeln!(page, "statistics  {}", statistics.source)?;
            let rows = [
                ("state", statistics.state_mode, &statistics.state),
                ("action", statistics.action_mode, &statistics.action),
            ];
            for (name, mode, stats) in rows {
                writeln!(page, "            {name}: {mode:?}, {}", described(stats))?;
            }
        }
        None => writeln!(page, "statistics  none found")?,
    }
    if let Some(relative) = &checkpoint.relative_actions {
        let kept: Vec<_> = relative.exclude_joints.iter().map(|joint| printable(joint)).collect();
        writeln!(page, "actions     relative to the state, but for {}", kept.join(", "))?;
    }
    Ok(())
}

/// `8 values; q01, q99, mean, std`
fn described(stats: &FeatureStats) -> String {
    let all = [
        ("q01", &stats.q01),
        ("q99", &stats.q99),
        ("mean", &stats.mean),
        ("std", &stats.std),
        ("min", &stats.min),
        ("max", &stats.max),
        ("q10", &stats.q10),
        ("q90", &stats.q90),
    ];
    let present: Vec<&str> =
        all.iter().filter(|(_, values)| values.is_some()).map(|(name, _)| *name).collect();
    let len = all.iter().find_map(|(_, values)| values.as_ref().map(Vec::len)).unwrap_or(0);
    format!("{len} values; {}", present.join(", "))
}

fn robot(
    page: &mut String,
    config: &Config,
    slots: &CameraSlots,
    problems: &mut Vec<String>,
) -> std::fmt::Result {
    writeln!(page, "robot       {}", config.robot)?;
    for (slot, name) in slots.names.iter().map(|name| printable(name)).enumerate() {
        match config.cameras.iter().find(|camera| slots.find(&camera.slot) == Some(slot)) {
            Some(camera) => writeln!(page, "camera      {name} ← {}", camera.topic)?,
            None => writeln!(page, "camera      {name} masked")?,
        }
    }
    let one_by_one = config.cameras.chunks(1).filter_map(|camera| slots.assign(camera).err());
    let misfits: Vec<String> = one_by_one.map(|error| error.to_string()).collect();
    match slots.assign(&config.cameras) {
        Err(error) if misfits.is_empty() => problems.push(error.to_string()),
        _ => problems.extend(misfits),
    }
    let joints = &config.joints;
    writeln!(page, "state       {} ← {}", joints.names.join(", "), joints.topic)?;
    writeln!(page, "actions     {} → {}", joints.action_names.join(", "), config.control.command_topic)
}
