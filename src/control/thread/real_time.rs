//! What the thread asks of the system so that its ticks are punctual, and what it got.
//!
//! Promises: asked for once, by the thread itself, before its first tick; what is refused changes nothing but how late
//! ticks may come, and is told in one line that says what to set. Called by the control thread; the node says the line.

use std::fmt;
use std::hint::black_box;
use std::num::NonZeroU64;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, CpuSet, capabilities, sched_setaffinity, set_current_timer_slack};
use thread_priority::unix::{RealtimeThreadSchedulePolicy, ThreadSchedulePolicy};
use thread_priority::{Error as PriorityError, ThreadPriority, ThreadPriorityValue};

/// More of the stack than a tick ever uses: touched beforehand, so that no tick is the first to need a page of it.
const STACK_BYTES: usize = 64 << 10;

/// What to ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealTime {
    /// Of SCHED_FIFO, 1 to 99; `None`: ordinary scheduling.
    pub priority: Option<u8>,
    /// Keep the process's memory from being paged out.
    pub lock_memory: bool,
    /// The one CPU that the thread runs on; `None`: any.
    pub cpu: Option<usize>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    /// What was asked for.
    pub asked: RealTime,
    /// SCHED_FIFO.
    pub scheduling: Grant,
    /// Locked memory.
    pub memory: Grant,
    /// The CPU.
    pub cpu: Grant,
}

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// Nobody asked for it.
    #[default]
    NotAsked,
    /// It is so.
    Granted,
    /// The system refused.
    Refused(Errno),
}

impl RealTime {
    /// Asks the system, for the calling thread; memory is locked for the whole process.
    pub fn ask(self) -> Granted {
        let grant = |result: Result<(), Errno>| result.map_or_else(Grant::Refused, |()| Grant::Granted);
        let cpu = self.cpu.map_or(Grant::NotAsked, |cpu| grant(run_on(cpu)));
        let memory = if self.lock_memory { grant(lock_memory()) } else { Grant::NotAsked };
        let scheduling = self.priority.map_or(Grant::NotAsked, |priority| grant(fifo(priority)));
        // An ordinary thread's sleep may be prolonged by 50 µs to save power, unless it says that it cares.
        let _ = set_current_timer_slack(NonZeroU64::new(1));
        touch_stack();
        Granted { asked: self, scheduling, memory, cpu }
    }
}

impl Granted {
    /// What was refused, why and what to set, in one line; `None` if nothing was.
    pub fn warning(&self) -> Option<String> {
        let mut refused = Vec::new();
        if let (Grant::Refused(error), Some(priority)) = (self.scheduling, self.asked.priority) {
            refused.push(format!(
                "SCHED_FIFO {priority} ({error}; give this user rtprio {priority}, or the capability CAP_SYS_NICE)"
            ));
        }
        if let Grant::Refused(error) = self.memory {
            refused.push(format!(
                "locked memory ({error}; give this user memlock unlimited, or the capability CAP_IPC_LOCK)"
            ));
        }
        if let (Grant::Refused(error), Some(cpu)) = (self.cpu, self.asked.cpu) {
            refused.push(format!("CPU {cpu} ({error}; correct control.cpu)"));
        }
        if refused.is_empty() {
            return None;
        }
        let refused = refused.join(", ");
        Some(format!(
            "control: not permitted: {refused}; ticks may come late while others compute, see docs/safety.md"
        ))
    }
}

/// For diagnostics: `SCHED_FIFO 40, memory locked, CPU 3`.
impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.scheduling, self.asked.priority) {
            (Grant::Granted, Some(priority)) => write!(f, "SCHED_FIFO {priority}")?,
            (Grant::Refused(_), Some(priority)) => {
                write!(f, "ordinary scheduling (SCHED_FIFO {priority} not permitted)")?
            }
            _ => f.write_str("ordinary scheduling")?,
        }
        f.write_str(match self.memory {
            Grant::Granted => ", memory locked",
            Grant::Refused(_) => ", memory not locked (not permitted)",
            Grant::NotAsked => ", memory not locked",
        })?;
        match (self.cpu, self.asked.cpu) {
            (Grant::Granted, Some(cpu)) => write!(f, ", CPU {cpu}"),
            (Grant::Refused(_), Some(cpu)) => write!(f, ", any CPU (CPU {cpu} not permitted)"),
            _ => f.write_str(", any CPU"),
        }
    }
}

fn fifo(priority: u8) -> Result<(), Errno> {
    let priority = ThreadPriorityValue::try_from(priority).map_err(|_| Errno::INVAL)?;
    thread_priority::unix::set_thread_priority_and_policy(
        thread_priority::unix::thread_native_id(),
        ThreadPriority::Crossplatform(priority),
        ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
    )
    .map_err(|error| match error {
        PriorityError::OS(code) => Errno::from_raw_os_error(code),
        _ => Errno::INVAL,
    })
}

/// Locks pages as they are used, those of the future too.
///
/// Not what is merely mapped: a mapped checkpoint or the stacks of many threads would be read in at once. And only where
/// there is no limit: under one, whoever allocates beyond it later would be refused, and the process would end.
fn lock_memory() -> Result<(), Errno> {
    let unlimited = getrlimit(Resource::Memlock).current.is_none();
    let capable = || capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    if !unlimited && !capable() {
        return Err(Errno::PERM);
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

fn run_on(cpu: usize) -> Result<(), Errno> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)
}

#[inline(never)]
fn touch_stack() {
    black_box(&mut [0u8; STACK_BYTES]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{sched_getaffinity, set_capabilities};

    /// On a thread of its own, whose capabilities are dropped: what it may not, this test sees for real.
    fn without_capabilities<T: Send>(f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let mut sets = capabilities(None).unwrap();
                sets.effective -= CapabilitySet::SYS_NICE | CapabilitySet::IPC_LOCK;
                set_capabilities(None, sets).unwrap();
                f()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn what_is_not_permitted_is_one_warning_that_says_what_to_set() {
        if getrlimit(Resource::Rtprio).current != Some(0) || getrlimit(Resource::Memlock).current.is_none() {
            return; // this user is permitted everything without any capability
        }
        let asked = RealTime { priority: Some(40), lock_memory: true, cpu: None };
        let granted = without_capabilities(|| asked.ask());
        assert_eq!(
            (granted.scheduling, granted.memory),
            (Grant::Refused(Errno::PERM), Grant::Refused(Errno::PERM))
        );
        let warning = granted.warning().unwrap();
        for word in ["SCHED_FIFO 40", "rtprio 40", "memlock unlimited", "docs/safety.md"] {
            assert!(warning.contains(word), "{warning}");
        }
        assert!(!warning.contains('\n') && !warning.contains("CPU"), "{warning}");
        assert!(granted.to_string().starts_with("ordinary scheduling (SCHED_FIFO 40 not permitted)"));
    }

    #[test]
    fn a_thread_runs_on_the_cpu_that_was_named_and_one_that_is_not_there_is_refused() {
        std::thread::spawn(|| {
            let permitted = sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).rfind(|&cpu| permitted.is_set(cpu)).unwrap();
            let granted = RealTime { cpu: Some(cpu), ..RealTime::default() }.ask();
            assert_eq!((granted.cpu, granted.warning()), (Grant::Granted, None));
            let now = sched_getaffinity(None).unwrap();
            assert!(now.count() == 1 && now.is_set(cpu));
            for none in [CpuSet::MAX_CPU - 1, CpuSet::MAX_CPU, usize::MAX] {
                let granted = RealTime { cpu: Some(none), ..RealTime::default() }.ask();
                assert!(granted.warning().unwrap().contains("control.cpu"));
            }
            assert!(sched_getaffinity(None).unwrap().is_set(cpu), "a refusal changes nothing");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_nobody_asks_for_is_not_warned_of() {
        let granted = std::thread::spawn(|| RealTime::default().ask()).join().unwrap();
        assert_eq!(granted, Granted::default());
        assert_eq!(granted.warning(), None);
        assert_eq!(granted.to_string(), "ordinary scheduling, memory not locked, any CPU");
    }
}
