//! `pi05 steps`: what other numbers of steps, solvers and schedules would change, and cost.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::ArgGroup;
use serde::Serialize;

use super::out::stdout;
use super::replay::load_config;
use super::{Failure, Verdict, progress};
use crate::config::{self, Backend, Config, DtypeChoice};
use crate::engine::{self, Engine};
use crate::model::sampler::{Schedule, Solver, TimeRounding, noise};
use crate::pipeline::Model;
use crate::pipeline::inference::Inference;
use crate::pipeline::setup::Setup;
use crate::replay::bag::Bag;
use crate::replay::observations::observations;
use crate::replay::topics::Topics;
use crate::steps::{Measurement, Row, Start, Table};
use crate::verify::Case;

/// Compare numbers of steps, solvers and schedules with a fine solution: difference, evaluations, latency
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
                        pi05 steps --checkpoint tests/data/fixtures/tiny --case tests/data/fixtures/tiny/case_a_f32.safetensors\n  \
                        pi05 steps --checkpoint synth:tiny --bag tests/data/bags/aloha_sim --steps 2,5,10 --solvers euler,heun\n\n\
                        Differences are between normalised actions (the network's own), for the same observation and\n\
                        noise; the fine solution is rk4 on the linear schedule. `*`: nothing is nearer with as few evaluations;\n\
                        `<`: what the parameters sampler.* ask for. The full-size network takes long on a CPU: choose --fine 50\n\
                        and few --steps, --solvers, --schedules.")]
#[command(group = ArgGroup::new("inputs").args(["case", "bag"]).required(true))]
pub struct Args {
    /// Checkpoint folder, synth:tiny or synth:full [default: parameter `checkpoint`]
    #[arg(long, value_name = "D")]
    checkpoint: Option<String>,
    /// Recorded case: its inputs and noise
    #[arg(long, value_name = "CASE.safetensors")]
    case: Option<PathBuf>,
    /// rosbag2 folder, .mcap or .db3 file: some of its observations
    #[arg(long, value_name = "BAG")]
    bag: Option<PathBuf>,
    /// ROS 2 parameter file [default: the built-in config/aloha.yaml]
    #[arg(long, value_name = "F")]
    config: Option<PathBuf>,
    /// Observations taken from a bag, evenly spread
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    observations: u32,
    /// Numbers of steps, 1 to 50
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,3,5,10,20",
          value_parser = clap::value_parser!(u16).range(1..=50))]
    steps: Vec<u16>,
    /// Solvers [default: all]
    #[arg(long, value_name = "S,…", value_delimiter = ',', value_parser = parse_solver)]
    solvers: Vec<Solver>,
    /// Schedules [default: all]
    #[arg(long, value_name = "S,…", value_delimiter = ',', value_parser = parse_schedule)]
    schedules: Vec<Schedule>,
    /// Most steps of the fine solution, which are doubled from 25 until that changes it by less than 1e-3 (rms)
    #[arg(long, value_name = "N", default_value_t = 800, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    fine: u32,
    /// Engine: auto, cpu, cuda, tensorrt, or each stage's, as vision=tensorrt,prefix=tensorrt,denoise=cuda
    #[arg(long, default_value = "auto", value_name = "B")]
    backend: Backend,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_solver(text: &str) -> Result<Solver, String> {
    Solver::from_name(text).ok_or_else(|| format!("expected one of {}", Solver::NAMES.join(", ")))
}

fn parse_schedule(text: &str) -> Result<Schedule, String> {
    Schedule::from_name(text).ok_or_else(|| format!("expected one of {}", Schedule::NAMES.join(", ")))
}

/// Everything that is measured on.
struct Subject {
    engine: Engine,
    starts: Vec<Start>,
    rounding: TimeRounding,
    /// Where the parameters leave them open.
    steps: usize,
    columns: usize,
}

#[derive(Serialize)]
struct Results<'a> {
    backend: &'static str,
    dtype: &'static str,
    checkpoint: &'a str,
    inputs: String,
    observations: usize,
    horizon: usize,
    columns: usize,
    threads: usize,
    configured: &'a Row,
    #[serde(flatten)]
    table: &'a Table,
}

pub fn run(args: Args) -> Result<Verdict, Failure> {
    if !matches!(args.backend, Backend::Auto | Backend::Cpu) {
        return Err("--backend: steps are compared on the cpu engine only; use --backend cpu".into());
    }
    let config = load_config(args.config.as_deref(), args.checkpoint.clone())?;
    let mut subject = match (&args.case, &args.bag) {
        (Some(case), _) => of_case(&config, case)?,
        (None, Some(bag)) => of_bag(&config, bag, args.observations as usize)?,
        (None, None) => return Err("neither --case nor --bag".into()), // clap has refused it
    };
    let (mut choices, configured) = choices(&args, &config, subject.steps);
    if !choices.contains(&configured) {
        choices.push(configured);
    }
    let measurement = Measurement {
        starts: &subject.starts,
        rounding: subject.rounding,
        columns: subject.columns,
        fine_steps: args.fine as usize,
    };
    let bar = progress::bar("evaluations");
    let table = measurement.run(&mut subject.engine, &choices, |made, all| {
        progress::set(&bar, made as u64, all as u64);
    });
    let table = table.map_err(|e| format!("{}: {e}", config.checkpoint))?;
    bar.finish_and_clear();

    let is_configured = |row: &Row| (row.steps, row.solver, row.schedule) == configured;
    let inputs = args.case.or(args.bag).unwrap_or_default().display().to_string();
    let values = subject.starts.first().map_or(0, |start| start.noise.len());
    let results = Results {
        backend: "cpu",
        dtype: "f32",
        checkpoint: &config.checkpoint,
        inputs,
        observations: subject.starts.len(),
        horizon: values / subject.engine.dims().action_dim,
        columns: subject.columns,
        threads: rayon::current_num_threads(),
        configured: table.rows.iter().find(|row| is_configured(row)).unwrap_or(&table.fine),
        table: &table,
    };
    let mut out = stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results, is_configured)?;
    }
    Ok(Verdict::Ok)
}

/// A choice of steps, solver and schedule.
type Choice = (usize, Solver, Schedule);

/// What to measure, and what the parameters ask for, of a checkpoint that asks for so many steps.
fn choices(args: &Args, config: &Config, steps: usize) -> (Vec<Choice>, Choice) {
    fn or_all<T: Copy>(chosen: &[T], names: &[&str], from_name: fn(&str) -> Option<T>) -> Vec<T> {
        if chosen.is_empty() {
            names.iter().filter_map(|name| from_name(name)).collect()
        } else {
            chosen.to_vec()
        }
    }
    let mut choices = Vec::new();
    for schedule in or_all(&args.schedules, Schedule::NAMES, Schedule::from_name) {
        for solver in or_all(&args.solvers, Solver::NAMES, Solver::from_name) {
            for steps in args.steps.iter().map(|&steps| usize::from(steps)) {
                if !choices.contains(&(steps, solver, schedule)) {
                    choices.push((steps, solver, schedule));
                }
            }
        }
    }
    let config::Sampler { steps: given, solver, schedule, .. } = config.sampler;
    (choices, (given.unwrap_or(steps), solver, schedule))
}

fn of_case(config: &Config, path: &Path) -> Result<Subject, Failure> {
    let model = Model::open_network(&config.checkpoint)?;
    let columns = model.dims()?.action_dim;
    let start = Case::read(path, &model)?.start()?;
    let engine = progress::weights(|told| model.load(engine::Choice::Cpu, told))?;
    let (rounding, steps) = (model.time_rounding(), model.denoise_steps());
    Ok(Subject { engine, starts: vec![start], rounding, steps, columns })
}

fn of_bag(config: &Config, path: &Path, count: usize) -> Result<Subject, Failure> {
    let bag = Bag::open(path)?;
    let setup = Setup::open(config)?;
    let topics = Topics::resolve(&bag, config, &setup.cameras)?;
    let observations = observations(&bag, config, &setup.cameras.names, &topics, count)?;
    if observations.is_empty() {
        let path = path.display();
        return Err(format!("{path}: no complete observation: `pi05 replay` says what is missing").into());
    }
    let config = &Config { backend: Backend::Cpu, dtype: DtypeChoice::Auto, ..config.clone() };
    let Inference { engine, policy, seed, .. } = progress::weights(|told| setup.load(config, told))?;
    let shape = policy.shape();
    let starts = observations.iter().zip(0..).map(|((observation, prompt), id)| {
        let input = policy.encode(observation, prompt)?.input;
        Ok(Start { input, noise: noise(seed, id, shape.horizon * shape.action_dim) })
    });
    Ok(Subject {
        engine,
        starts: starts.collect::<Result<_, Failure>>()?,
        rounding: setup.model.time_rounding(),
        steps: setup.model.denoise_steps(),
        columns: config.joints.action_names.len(),
    })
}

fn print(
    out: &mut impl Write,
    results: &Results<'_>,
    is_configured: impl Fn(&Row) -> bool,
) -> io::Result<()> {
    let Results { backend, dtype, checkpoint, inputs, observations, horizon, columns, threads, .. } = results;
    let Table { fine, rows } = results.table;
    writeln!(
        out,
        "{backend} {dtype}, {checkpoint}, {threads} threads; {inputs}: {observations} observations, {horizon} × {columns} actions"
    )?;
    writeln!(
        out,
        "fine solution: {} with {} {} steps, {} evaluations, {:.2} ms; half as many steps differ by rms {:.1e}, max {:.1e}",
        fine.solver, fine.steps, fine.schedule, fine.evaluations, fine.denoise_ms, fine.rms, fine.max
    )?;
    writeln!(
        out,
        "{:<10} {:<13} {:>5} {:>11} {:>10} {:>10} {:>11} {:>10}",
        "schedule", "solver", "steps", "evaluations", "rms Δ", "max |Δ|", "cosine", "denoise ms"
    )?;
    for row in rows {
        let Row { steps, solver, schedule, evaluations, rms, max, cosine, denoise_ms, nearest } = row;
        let mark = if *nearest { " *" } else { "" };
        let configured = if is_configured(row) { " <" } else { "" };
        let (schedule, solver) = (schedule.name(), solver.name());
        writeln!(
            out,
            "{schedule:<10} {solver:<13} {steps:>5} {evaluations:>11} {rms:>10.2e} {max:>10.2e} {cosine:>11.8} {denoise_ms:>10.2}{mark}{configured}"
        )?;
    }
    Ok(())
}
