//! `pi05 bench ros`: the node from outside.

use std::io::{self, Write};

use super::{Failure, Verdict, progress};
use crate::node::bench::{Percentiles, Plan, Results, run as measure};

/// Measure the ROS 2 node from outside: latency around the engine, and the commands' period
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  export FASTRTPS_DEFAULT_PROFILES_FILE=$PWD/config/fastdds.xml   # room for images in Fast DDS\n  \
                        pi05 bench ros --seconds 60\n\n\
                        Starts the node in a process of its own on the built-in tiny model, feeds it three 640x480 rgb8\n\
                        cameras and joint states, and measures at 50, 100 and 250 Hz."
)]
pub struct Args {
    /// Of each of the four measurements
    #[arg(long, value_name = "S", default_value_t = 60.0)]
    seconds: f64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<Verdict, Failure> {
    let seconds = args.seconds.clamp(1.0, 3600.0);
    let bar = progress::bar("node");
    let results = measure(&Plan { seconds, rates: [50.0, 100.0, 250.0] }, |done, all| {
        progress::set(&bar, (done * 1e3) as u64, (all * 1e3) as u64);
    })?;
    bar.finish_and_clear();
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&results)?)?;
    } else {
        print(&mut out, &results)?;
    }
    Ok(Verdict::Ok)
}

fn print(out: &mut impl Write, results: &Results) -> io::Result<()> {
    let lost = results.observations.saturating_sub(results.chunks);
    writeln!(
        out,
        "{} chunks of {} observations, last message out to chunk in",
        results.chunks, results.observations
    )?;
    if lost * 20 > results.observations {
        writeln!(
            out,
            "{lost} observations came incomplete: the middleware lost images. With Fast DDS, set \
             FASTRTPS_DEFAULT_PROFILES_FILE to config/fastdds.xml"
        )?;
    }
    writeln!(out, "{:<28} {:>9} {:>9} {:>9} {:>9} {:>9}", "ms", "min", "p50", "p99", "p99.9", "max")?;
    let mut row = |name: &str, p: &Percentiles| {
        let Percentiles { min, p50, p99, p999, max } = p;
        writeln!(out, "{name:<28} {min:>9.3} {p50:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}")
    };
    row("latency", &results.latency_ms)?;
    row("of that, engine", &results.engine_ms)?;
    row("around the engine", &results.around_ms)?;
    for period in &results.periods {
        let missed = format!("{} missed", period.missed);
        row(&format!("{:.0} Hz: period ({missed})", period.rate_hz), &period.arrival_ms)?;
    }
    Ok(())
}
