//! `pi05 bench ros`: the node from outside.

use std::io::{self, Write};

use clap::ValueEnum;

use super::out::stdout;
use super::{Failure, Verdict, progress};
use crate::node::bench::{Latency, Percentiles, Period, Plan, Robot, run as measure};

/// Measure the ROS 2 node from outside: latency around the engine, a robot's rates, the commands' period
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  export FASTRTPS_DEFAULT_PROFILES_FILE=$PWD/config/fastdds.xml   # room for images in Fast DDS\n  \
                        pi05 bench ros --seconds 60\n  \
                        pi05 bench ros --only robot -p backend=cuda -p checkpoint=path/to/checkpoint\n\n\
                        Starts the node in a process of its own, on the built-in tiny model unless a parameter says otherwise,\n\
                        configures and activates it, and feeds it three 640x480 rgb8 cameras and joint states.\n\
                        Exit code 1 and the node's reason, if it refuses, or does not come to rest without cameras."
)]
pub struct Args {
    /// Of each measurement; the commands' period is measured at 50, 100 and 250 Hz
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    /// Measure only this
    #[arg(long, value_enum, value_name = "M", value_delimiter = ',')]
    only: Vec<Measurement>,
    /// Parameter of the node; may be repeated
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE", value_parser = assignment)]
    parameters: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// From the last message of an observation to its chunk, one observation at a time.
    Latency,
    /// Cameras at 30 Hz, joint states and commands at 100 Hz; then the cameras are cut off, and the arm has to rest.
    Robot,
    /// How evenly commands come.
    Period,
}

/// As ROS 2 writes it. On our own command line `:=` would be a remapping of the bench's topics.
fn assignment(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !name.ends_with(':') => Ok(format!("{name}:={value}")),
        _ => Err("expected name=value".to_owned()),
    }
}

pub fn run(args: &Args) -> Result<Verdict, Failure> {
    let wants = |measurement| args.only.is_empty() || args.only.contains(&measurement);
    let plan = Plan {
        seconds: args.seconds.clamp(1.0, 3600.0),
        latency: wants(Measurement::Latency),
        robot: wants(Measurement::Robot),
        rates: if wants(Measurement::Period) { vec![50.0, 100.0, 250.0] } else { Vec::new() },
        parameters: args.parameters.clone(),
    };
    let bar = progress::bar("node");
    let results = measure(&plan, |done, all| {
        progress::set(&bar, (done * 1e3) as u64, (all * 1e3) as u64);
    })?;
    bar.finish_and_clear();
    let mut out = stdout();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
        return Ok(Verdict::Ok);
    }
    if let Some(latency) = &results.latency {
        print_latency(&mut out, latency)?;
    }
    if let Some(robot) = &results.robot {
        print_robot(&mut out, robot)?;
    }
    if !results.periods.is_empty() {
        head(&mut out)?;
        results.periods.iter().try_for_each(|period| print_period(&mut out, period))?;
    }
    Ok(Verdict::Ok)
}

fn print_latency(out: &mut impl Write, results: &Latency) -> io::Result<()> {
    let lost = results.observations.saturating_sub(results.chunks);
    writeln!(
        out,
        "{} chunks of {} observations, last message out to chunk in",
        results.chunks, results.observations
    )?;
    if lost * 20 > results.observations {
        writeln!(
            out,
            "{lost} observations came incomplete: the middleware lost images; see Large images in docs/ros.md"
        )?;
    }
    if results.chunks == 0 {
        return Ok(());
    }
    head(out)?;
    row(out, "latency", &results.latency_ms)?;
    row(out, "of that, engine", &results.engine_ms)?;
    row(out, "around the engine", &results.around_ms)?;
    row(out, "of that, encoding, decoding", &results.policy_ms)
}

fn print_robot(out: &mut impl Write, robot: &Robot) -> io::Result<()> {
    let Robot { engine, configure_s, tokens, chunks, chunks_hz, images_sent, interruptions, .. } = robot;
    writeln!(
        out,
        "{engine}, {tokens} prompt tokens, configured in {configure_s:.2} s: {chunks} chunks, {chunks_hz:.1} per second; \
         control interrupted {} times",
        interruptions.len()
    )?;
    if let Some(why) = interruptions.first() {
        writeln!(out, "first interruption: {why}")?;
    }
    head(out)?;
    row(out, "newest part to chunk in", &robot.latency_ms)?;
    row(out, "of that, engine", &robot.engine_ms)?;
    row(out, "around the engine", &robot.around_ms)?;
    row(out, "oldest image to chunk in", &robot.image_age_ms)?;
    row(out, "chunk to chunk", &robot.between_ms)?;
    print_period(out, &robot.period)?;
    writeln!(out, "in the node's own words ({images_sent} images sent to each camera by then):")?;
    for part in &robot.parts {
        let values: Vec<String> = part.values.iter().map(|(key, value)| format!("{key} {value}")).collect();
        writeln!(out, "  {}, {}: {}", part.name, part.message, values.join(", "))?;
    }
    let rest = &robot.rest;
    writeln!(
        out,
        "cameras cut off: braking after {:.0} ms, at rest after {:.0} ms ({}); runs again {:.0} ms after they are back",
        rest.braking_ms, rest.rest_ms, rest.reason, rest.running_again_ms
    )
}

fn print_period(out: &mut impl Write, period: &Period) -> io::Result<()> {
    let missed = format!("{} missed", period.missed);
    row(out, &format!("{:.0} Hz: period ({missed})", period.rate_hz), &period.arrival_ms)
}

fn head(out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:<28} {:>9} {:>9} {:>9} {:>9} {:>9}", "ms", "min", "p50", "p99", "p99.9", "max")
}

fn row(out: &mut impl Write, name: &str, p: &Percentiles) -> io::Result<()> {
    let Percentiles { min, p50, p99, p999, max } = p;
    writeln!(out, "{name:<28} {min:>9.3} {p50:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}")
}
