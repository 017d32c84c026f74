//! What the GPU takes of energy and how fast its clock runs while inferences are measured: by NVIDIA's management library
//! (NVML), where there is one.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::Clock;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;

/// Between two looks. The counter of energy moves no faster than ten times per second.
const EVERY: Duration = Duration::from_millis(100);
/// Looks without which nothing is said.
const LEAST: usize = 10;

/// Of a GPU, over all runs that count.
#[derive(Serialize)]
pub struct Power {
    /// Mean, W.
    watts: f64,
    /// What the GPU keeps under by a slower clock, W.
    limit_watts: Option<f64>,
    /// J of one inference, idle time until the next one included.
    joules: f64,
    /// Of the multiprocessors, MHz: least, mean, greatest.
    clock_mhz: [f64; 3],
    /// The fastest that this clock may be, MHz.
    clock_limit_mhz: Option<u32>,
}

/// A thread that looks.
pub struct Meter {
    done: Arc<AtomicBool>,
    looking: JoinHandle<Result<Seen, NvmlError>>,
    began: Instant,
}

#[derive(Default)]
struct Seen {
    /// When, the counter in mJ, the clock in MHz.
    looks: Vec<(Instant, u64, u32)>,
    limit_watts: Option<f64>,
    clock_limit_mhz: Option<u32>,
}

impl Meter {
    /// Of the GPU on this PCI bus. It looks at once, so that the library is there by [`Self::begin`].
    pub fn new(bus: String) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let looking = thread::spawn(move || look(&bus, &is_done));
        Self { done, looking, began: Instant::now() }
    }

    /// What came before does not count.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Of so many inferences since [`Self::begin`]. `None` where nobody tells, or after too short a time.
    pub fn end(self, runs: u32) -> Option<Power> {
        let took = self.began.elapsed();
        self.done.store(true, Ordering::Relaxed);
        let seen = self
            .looking
            .join()
            .ok()?
            .inspect_err(|e| tracing::debug!("power is not measured: NVML: {e}"))
            .ok()?;
        let looks: Vec<_> = seen.looks.iter().filter(|(at, ..)| *at >= self.began).collect();
        let ([first, .., last], true) = (looks.as_slice(), looks.len() >= LEAST) else { return None };
        let watts = last.1.checked_sub(first.1)? as f64 * 1e-3 / (last.0 - first.0).as_secs_f64();
        let clocks = || looks.iter().map(|(.., mhz)| f64::from(*mhz));
        Some(Power {
            watts,
            limit_watts: seen.limit_watts,
            joules: watts * took.as_secs_f64() / f64::from(runs),
            clock_mhz: [
                clocks().fold(f64::MAX, f64::min),
                clocks().sum::<f64>() / looks.len() as f64,
                clocks().fold(0.0, f64::max),
            ],
            clock_limit_mhz: seen.clock_limit_mhz,
        })
    }
}

fn look(bus: &str, is_done: &AtomicBool) -> Result<Seen, NvmlError> {
    let library = Nvml::init()?;
    let gpu = library.device_by_pci_bus_id(bus)?;
    let mut seen = Seen {
        limit_watts: gpu.enforced_power_limit().ok().map(|mw| f64::from(mw) * 1e-3),
        clock_limit_mhz: gpu.max_clock_info(Clock::SM).ok(),
        ..Seen::default()
    };
    while !is_done.load(Ordering::Relaxed) {
        seen.looks.push((Instant::now(), gpu.total_energy_consumption()?, gpu.clock_info(Clock::SM)?));
        thread::sleep(EVERY);
    }
    Ok(seen)
}

impl Power {
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let [least, mean, greatest] = self.clock_mhz;
        write!(out, "{:.0} W", self.watts)?;
        if let Some(limit) = self.limit_watts {
            write!(out, " of {limit:.0}")?;
        }
        write!(
            out,
            ", {:.2} J per inference; clock {mean:.0} MHz ({least:.0} to {greatest:.0})",
            self.joules
        )?;
        match self.clock_limit_mhz {
            Some(limit) => writeln!(out, " of {limit}"),
            None => writeln!(out),
        }
    }
}
