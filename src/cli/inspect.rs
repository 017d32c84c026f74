//! `pi05 inspect`: what a checkpoint is, how it meets the robot, and everything that is wrong with it.

use std::fmt::{Display, Write as _};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use indicatif::HumanBytes;

use super::out::stdout;
use super::replay::load_config;
use super::{Failure, Verdict};
use crate::clock::Stamp;
use crate::config::Config;
use crate::control::Scheduler;
use crate::model::dims::{Dims, GemmaDims};
use crate::model::sampler::Sampler;
use crate::observe::{Observation, RgbImage};
use crate::pipeline::recipe::Recipe;
use crate::pipeline::setup::Setup;
use crate::pipeline::{Model, calibrated};
use crate::policy::cameras::CameraSlots;
use crate::policy::checkpoint::{Checkpoint, Faults};
use crate::policy::statistics::{FeatureStats, NormMode};
use crate::policy::{NetworkShape, Policy, PolicyError};
use crate::printable::printable;

/// Show a checkpoint's dimensions, files, statistics, tokenizer and mapping to the robot, and every problem
#[derive(clap::Args)]
#[command(after_help = "Example:\n  pi05 inspect --checkpoint synth:tiny --config config/aloha.yaml\n\n\
                        Exit code 1 if it could not run here; what only this machine lacks is said to be that.")]
pub struct Args {
    /// Checkpoint folder, synth:tiny or synth:full
    #[arg(long, value_name = "D")]
    checkpoint: String,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
}

/// What is wrong, each thing once, however many parts run into it.
#[derive(Default)]
struct Problems {
    /// With the checkpoint or the parameters.
    found: Vec<String>,
    /// With this machine alone: on another they may run.
    here: Vec<String>,
}

impl Problems {
    fn add(&mut self, problem: impl Display) {
        let problem = problem.to_string();
        if !self.found.contains(&problem) {
            self.found.push(problem);
        }
    }

    /// The value, or `None` and one problem more.
    fn of<T>(&mut self, outcome: Result<T, impl Display>) -> Option<T> {
        outcome.map_err(|problem| self.add(problem)).ok()
    }
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    let mut page = String::new();
    let mut problems = Problems::default();
    let mut notes: Vec<String> = Vec::new();
    let config = problems.of(load_config(args.config.as_deref(), Some(args.checkpoint.clone())));
    let asset_id = config.as_ref().and_then(|config| config.policy.asset_id.as_deref());

    writeln!(page, "checkpoint  {}", args.checkpoint)?;
    if let Some((model, faults)) = problems.of(Model::survey(&args.checkpoint, asset_id)) {
        let dims = problems.of(model.dims());
        if let Some(dims) = &dims {
            network(&mut page, &model, dims)?;
        }
        if let Model::Folder(checkpoint) = &model {
            files(&mut page, checkpoint, &faults)?;
            notes.extend(checkpoint.notes.iter().cloned());
        }
        for fault in [&faults.steps, &faults.statistics, &faults.tokenizer].into_iter().flatten() {
            problems.add(fault);
        }
        if let Some(config) = &config {
            robot(&mut page, config, &model.cameras(), &faults, &mut problems)?;
            sampler(&mut page, config, &model)?;
            if let Model::Folder(checkpoint) = &model {
                misfits(checkpoint, &faults, dims.as_ref(), config, &mut problems);
            }
            engine(&model, config, &mut problems);
            if let Some(dims) = &dims {
                let control = config.control_config(dims.horizon).map_err(Failure::from);
                problems.of(control.and_then(|control| Ok(Scheduler::new(control)?)));
            }
            let mode = match &model {
                Model::Folder(checkpoint) => checkpoint.statistics.as_ref().map(|found| found.action_mode),
                Model::Synthetic(_) => None,
            };
            // A policy is tried only where nothing is known to be wrong: it would say the same again.
            if problems.found.is_empty()
                && let Some(setup) = problems.of(Setup::of(model, config))
            {
                policy(&mut page, config, &setup.policy, &mut problems)?;
                if let Some(mode) = mode {
                    let mode = config.policy_options().normalization.unwrap_or(mode);
                    notes.extend(problems.of(other_units(config, &setup.policy, mode)).into_iter().flatten());
                }
            }
        }
    }
    for note in &notes {
        writeln!(page, "note        {note}")?;
    }
    let Problems { found, here } = problems;
    for problem in found.iter().flat_map(|problem| problem.lines()) {
        writeln!(page, "PROBLEM     {problem}")?;
    }
    for problem in &here {
        writeln!(page, "PROBLEM     on this machine: {problem}")?;
    }
    let (verdict, line) = match (found.is_empty(), here.is_empty()) {
        (true, true) => (Verdict::Ok, "ok          it can run"),
        (true, false) => (Verdict::Wanting, "FAIL        it could not run on this machine"),
        (false, _) => (Verdict::Wanting, "FAIL        it could not run"),
    };
    writeln!(page, "{line}")?;
    stdout().write_all(page.as_bytes())?;
    Ok(verdict)
}

/// What does not fit the network and the robot, or is lacking; what is broken has been said and is not lacking.
fn misfits(
    checkpoint: &Checkpoint,
    faults: &Faults,
    dims: Option<&Dims>,
    config: &Config,
    problems: &mut Problems,
) {
    for misfit in Policy::misfits(checkpoint, dims.map(NetworkShape::from), &config.policy_options()) {
        let is_broken = match misfit {
            PolicyError::NoStatistics { .. } => faults.steps.is_some() || faults.statistics.is_some(),
            PolicyError::NoTokenizer { .. } => faults.tokenizer.is_some(),
            _ => false,
        };
        if !is_broken {
            problems.add(misfit);
        }
    }
}

/// What the engine that the parameters ask for has not got: a checkpoint may be meant for another machine than this.
fn engine(model: &Model, config: &Config, problems: &mut Problems) {
    let choice = config.engine();
    problems.here.extend(choice.check().err().map(|error| error.to_string()));
    problems.of(Recipe::open(&config.recipe));
    if choice.is_fp8() {
        problems.of(calibrated::find(&model.calibration_file()));
    }
}

fn policy(page: &mut String, config: &Config, policy: &Policy, problems: &mut Problems) -> std::fmt::Result {
    writeln!(page, "policy      prompt {:?}, resize {:?}", policy.prompt_format(), policy.resize())?;
    match policy.check_prompt(&config.prompt) {
        Ok(tokens) => {
            let most = policy.shape().max_tokens;
            writeln!(page, "prompt      {:?}: at most {tokens} of {most} tokens", config.prompt)?;
        }
        // The node is not configured with it.
        Err(error) => problems.add(format!("prompt {:?}: {error}", printable(&config.prompt))),
    }
    Ok(())
}

/// Actions that range over so many times what the limits permit are in other units, most likely.
const OTHER_UNITS: f64 = 3.0;

/// Joints of which the checkpoint's actions, in the robot's numbers, range far beyond their limits. Only where positions
/// are commanded and learnt as such; `mode` is how the checkpoint's statistics make actions.
fn other_units(config: &Config, policy: &Policy, mode: NormMode) -> Result<Vec<String>, PolicyError> {
    let bound: f32 = match mode {
        NormMode::Quantiles | NormMode::Quantile10 | NormMode::MinMax => 1.0,
        NormMode::MeanStd => 2.0,
        NormMode::Identity => return Ok(Vec::new()),
    };
    // What is not relative does not depend on what is seen.
    let observation = Observation {
        images: vec![RgbImage::new(1, 1, vec![0; 3]).map(Arc::new)],
        image_stamps: vec![None],
        state: vec![0.0; config.joints.names.len()],
        stamp: Stamp(0),
        joints_stamp: Stamp(0),
    };
    let encoded = policy.encode(&observation, "")?;
    let shape = policy.shape();
    let row = |value: f32| -> Result<Vec<f64>, PolicyError> {
        let rows = policy.decode(&vec![value; shape.horizon * shape.action_dim], &encoded)?;
        Ok(rows.into_iter().next().unwrap_or_default())
    };
    let joints = &config.joints;
    let limits = joints.position_min.iter().zip(&joints.position_max).zip(&joints.velocity_controlled);
    let ranges = row(-bound)?.into_iter().zip(row(bound)?).zip(limits).zip(&joints.action_names);
    let told =
        ranges.enumerate().filter_map(|(index, (((one, other), ((min, max), is_velocity)), joint))| {
            let is_offset = policy.delta_mask().get(index).copied().unwrap_or(false);
            let is_far = (one - other).abs() > OTHER_UNITS * (max - min);
            (is_far && !is_offset && !is_velocity).then(|| {
                let (from, to) = (one.min(other), one.max(other));
                let joint = printable(joint);
                let range = format!("range from {from:.3} to {to:.3}, its limits from {min} to {max}");
                format!("the checkpoint's actions of joint {joint} {range}: other units?")
            })
        });
    Ok(told.collect())
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

/// How many steps will run, and who says so.
fn sampler(page: &mut String, config: &Config, model: &Model) -> std::fmt::Result {
    let Sampler { steps, solver, schedule, .. } =
        config.sampler.of(model.time_rounding(), model.denoise_steps());
    let said = match model {
        Model::Folder(checkpoint) => checkpoint.hints.num_steps,
        Model::Synthetic(_) => None,
    };
    let reason = match (config.sampler.steps, said) {
        (Some(_), Some(said)) => {
            format!("as sampler.steps says; the checkpoint's num_inference_steps: {said}")
        }
        (Some(_), None) => "as sampler.steps says".to_owned(),
        (None, Some(_)) => "as the checkpoint's num_inference_steps says".to_owned(),
        (None, None) => "as neither sampler.steps nor the checkpoint says otherwise".to_owned(),
    };
    let (solver, schedule) = (solver.name(), schedule.name());
    writeln!(page, "sampler     {steps} steps, {reason}; solver {solver}, schedule {schedule}")
}

fn files(page: &mut String, checkpoint: &Checkpoint, faults: &Faults) -> std::fmt::Result {
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
        None if faults.steps.is_some() || faults.statistics.is_some() => {
            writeln!(page, "statistics  unusable")?;
        }
        None => writeln!(page, "statistics  none found")?,
    }
    if let Some(relative) = &checkpoint.relative_actions {
        let kept: Vec<_> = relative.exclude_joints.iter().map(|joint| printable(joint)).collect();
        match relative.action_names {
            Some(_) => writeln!(page, "actions     relative to the state, but for {}", kept.join(", "))?,
            None => writeln!(page, "actions     all relative to the state, for they have no names")?,
        }
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
    faults: &Faults,
    problems: &mut Problems,
) -> std::fmt::Result {
    writeln!(page, "robot       {}", config.robot)?;
    for (slot, name) in slots.names.iter().map(|name| printable(name)).enumerate() {
        match config.cameras.iter().find(|camera| slots.find(&camera.slot) == Some(slot)) {
            Some(camera) => writeln!(page, "camera      {name} ← {}", camera.topic)?,
            None => writeln!(page, "camera      {name} masked")?,
        }
    }
    // Without the steps nobody knows which other names the slots have.
    if faults.steps.is_none() {
        let one_by_one = config.cameras.chunks(1).filter_map(|camera| slots.assign(camera).err());
        let misfits: Vec<_> = one_by_one.collect();
        match slots.assign(&config.cameras) {
            Err(error) if misfits.is_empty() => problems.add(error),
            _ => misfits.into_iter().for_each(|misfit| problems.add(misfit)),
        }
    }
    let joints = &config.joints;
    writeln!(page, "state       {} ← {}", joints.names.join(", "), joints.topic)?;
    writeln!(page, "actions     {} → {}", joints.action_names.join(", "), config.control.command_topic)
}
