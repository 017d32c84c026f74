//! The command line `pi05`: one file per command. Exit codes: 0 ok, 1 found wanting, 2 wrong usage.

mod bench;
mod bench_control;
mod bench_gpu;
mod bench_power;
#[cfg(feature = "ros")]
mod bench_ros;
mod bench_trace;
mod calibrate;
mod engines;
mod frames;
mod inspect;
#[cfg(feature = "ros")]
mod node;
mod out;
mod progress;
mod quantize_report;
mod replay;
mod report;
mod splice;
mod steps;
mod synth;
mod verify;

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

use crate::config::DtypeChoice;
use crate::engine::backend::Backend;
use crate::engine::cuda::CudaEngine;
use crate::engine::tensorrt::error::TensorRtError;
use crate::engine::tensorrt::stages::Format;
use crate::engine::{Choice, Precision};

/// Runs the π0.5 vision-language-action model on a robot and streams its actions to the arm in real time.
#[derive(Parser)]
#[command(name = "pi05", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Replay(replay::Args),
    Report(report::Args),
    Verify(verify::Args),
    Inspect(inspect::Args),
    Synth(synth::Args),
    Bench(bench::Args),
    Calibrate(calibrate::Args),
    QuantizeReport(quantize_report::Args),
    Engines(engines::Args),
    Steps(steps::Args),
    Splice(splice::Args),
    #[cfg(feature = "ros")]
    Node(node::Args),
}

impl Command {
    fn is_node(&self) -> bool {
        #[cfg(feature = "ros")]
        if matches!(self, Command::Node(_)) {
            return true;
        }
        false
    }
}

/// What a command found: its exit code.
enum Verdict {
    /// All is well.
    Ok,
    /// It ran, and what it looked at is not well; it has said why.
    Wanting,
}

/// Any error that ends a command; printed as one line.
type Failure = Box<dyn Error + Send + Sync>;

impl From<DtypeArg> for DtypeChoice {
    fn from(dtype: DtypeArg) -> Self {
        match dtype {
            DtypeArg::F32 => DtypeChoice::F32,
            DtypeArg::Bf16 => DtypeChoice::Bf16,
            DtypeArg::Fp8 => DtypeChoice::Fp8,
        }
    }
}

/// Number formats of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DtypeArg {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// 8-bit floats.
    Fp8,
}

/// What is logged unless RUST_LOG says otherwise: of libraries, only what may be wrong.
const LOGGED: &str = "warn,pi05_thor=info";

/// Parses the command line, runs the command, reports. Errors go to stderr as one line.
///
/// Called as `policy_node`, the name under which ROS 2's launch files know the node, it is `pi05 node`.
pub fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let called = arguments.first().and_then(|path| Path::new(path).file_name());
    if called.is_some_and(|name| name == "policy_node") {
        arguments.insert(1, "node".into());
    }
    let cli = Cli::parse_from(arguments);
    // The node's log is ROS 2's.
    if !cli.command.is_node() {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
        let is_plain = env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal() && !is_plain)
            .with_target(false)
            .init();
    }
    let outcome = match cli.command {
        Command::Replay(args) => replay::run(args),
        Command::Report(args) => report::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Calibrate(args) => calibrate::run(args),
        Command::QuantizeReport(args) => quantize_report::run(args),
        Command::Engines(args) => engines::run(args),
        Command::Steps(args) => steps::run(args),
        Command::Splice(args) => splice::run(args),
        #[cfg(feature = "ros")]
        Command::Node(args) => node::run(args),
    };
    match outcome {
        Ok(Verdict::Ok) => ExitCode::SUCCESS,
        Ok(Verdict::Wanting) => ExitCode::from(1),
        Err(failure) => {
            // If stderr is gone, nobody is left to tell.
            let _ = writeln!(io::stderr(), "pi05: {failure}");
            ExitCode::from(1)
        }
    }
}

/// The engine that the command line asks for; what there is not is refused in one line.
fn engine_choice(backend: Backend, dtype: Option<DtypeArg>) -> Result<Choice, Failure> {
    use {Backend as B, DtypeArg as D};
    let on_gpu = |option: &str, choice| match CudaEngine::missing() {
        Some(reason) => Err(format!(
            "{option}: expected an NVIDIA GPU, found none: {reason}; --backend cpu computes in f32 without one"
        )),
        None => Ok(choice),
    };
    let choice = match (backend, dtype) {
        (B::TensorRt(_), _) if cfg!(not(feature = "tensorrt")) => Err(TensorRtError::NotBuilt.to_string()),
        (B::TensorRt(_), Some(D::F32)) => {
            Err("--dtype f32: TensorRT's engines compute in bf16 or fp8; use one of them".into())
        }
        (B::TensorRt(stages), dtype) => {
            let format = if dtype == Some(D::Fp8) { Format::Fp8 } else { Format::Bf16 };
            on_gpu(&format!("--backend {backend}"), Choice::TensorRt(stages, format))
        }
        (B::Cpu, Some(D::Fp8)) => Ok(Choice::CpuFp8),
        (B::Auto, Some(D::Fp8)) => on_gpu("--dtype fp8", Choice::Cuda(Precision::Fp8)),
        (B::Cuda, Some(D::Fp8)) => on_gpu("--backend cuda", Choice::Cuda(Precision::Fp8)),
        (B::Cpu, Some(D::Bf16)) => {
            Err("--dtype bf16: the cpu engine computes in f32 only; use --dtype f32".into())
        }
        (B::Cpu, _) => Ok(Choice::Cpu),
        (B::Cuda, Some(D::F32)) => on_gpu("--backend cuda", Choice::Cuda(Precision::F32)),
        (B::Cuda, _) => on_gpu("--backend cuda", Choice::Cuda(Precision::Bf16)),
        (B::Auto, Some(D::F32)) => Ok(Choice::Auto.in_f32()),
        (B::Auto, Some(D::Bf16)) => on_gpu("--dtype bf16", Choice::Cuda(Precision::Bf16)),
        (B::Auto, None) => Ok(Choice::Auto),
    };
    choice.map_err(|refused: String| refused.into())
}
