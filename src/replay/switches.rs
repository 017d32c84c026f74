//! How smoothly chunks follow each other: the jump in commanded acceleration where one takes over from another, against
//! the jumps inside of chunks.
//!
//! Promises: judged from the commands alone. Called by `pi05 splice`. Commands with a gap between them are not compared,
//! nor those that brake or rest.

use super::recording::{CommandSample, Recording};
use crate::clock::seconds;
use crate::percentile::percentile;

/// Jumps of one kind, over ticks and joints: |change of the acceleration from one tick to the next|, rad/s² or m/s².
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Jumps {
    /// Ticks.
    pub ticks: usize,
    /// Median; `None` without any.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Greatest.
    pub max: Option<f64>,
}

/// The jumps of a whole replay.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Switches {
    /// Chunks that took over from another one.
    pub switches: usize,
    /// In the three ticks that a switch changes first: a jump is a difference of four commands.
    pub at_switch: Jumps,
    /// In all others.
    pub inside: Jumps,
    /// Share of the ticks in which a limit changed a command.
    pub limited: f64,
}

/// Judges the commands of a replay.
pub fn switches(recording: &Recording) -> Switches {
    let commands = &recording.commands;
    let period = 1.0 / recording.rate_hz;
    let (mut at_switch, mut inside) = (Vec::new(), Vec::new());
    let (mut switches, mut switch_ticks, mut inside_ticks) = (0, 0, 0);
    for (index, window) in commands.windows(4).enumerate() {
        let Ok(four) = <&[CommandSample; 4]>::try_from(window) else { continue };
        let [a, b, c, d] = four;
        let passed = seconds(d.stamp.since(a.stamp));
        if (passed - 3.0 * period).abs() > 0.1 * period || four.iter().skip(1).any(|command| command.resting)
        {
            continue;
        }
        let is_switch = a.chunk != d.chunk;
        switches += usize::from(index > 0 && c.chunk != d.chunk);
        *(if is_switch { &mut switch_ticks } else { &mut inside_ticks }) += 1;
        for joint in 0..d.values.len() {
            let value = |command: &CommandSample| command.values.get(joint).copied().unwrap_or(f64::NAN);
            let jump = value(d) - 3.0 * value(c) + 3.0 * value(b) - value(a);
            let jump = (jump / (period * period)).abs();
            if is_switch { &mut at_switch } else { &mut inside }.push(jump);
        }
    }
    let limited = commands.iter().filter(|command| command.limited).count();
    Switches {
        switches,
        at_switch: jumps(at_switch, switch_ticks),
        inside: jumps(inside, inside_ticks),
        limited: limited as f64 / commands.len().max(1) as f64,
    }
}

fn jumps(mut values: Vec<f64>, ticks: usize) -> Jumps {
    values.sort_by(f64::total_cmp);
    let at = |percent| percentile(&values, percent);
    Jumps { ticks, p50: at(50.0), p99: at(99.0), max: values.last().copied() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stamp;

    #[test]
    fn a_jump_is_found_where_it_is() {
        // Acceleration 2 per s², then 5 from the switch on.
        let (mut value, mut step, period) = (0.0, 0.0, 0.01);
        let mut recording = Recording { rate_hz: 100.0, ..Recording::default() };
        for tick in 0..40 {
            let acceleration = if tick < 20 { 2.0 } else { 5.0 };
            step += acceleration * period * period;
            value += step;
            recording.commands.push(CommandSample {
                stamp: Stamp(tick * 10_000_000),
                values: vec![value],
                chunk: u64::from(tick >= 20),
                resting: tick == 35,
                limited: tick < 4,
            });
        }
        let found = switches(&recording);
        assert_eq!((found.switches, found.at_switch.ticks, found.inside.ticks), (1, 3, 31));
        assert!((found.at_switch.max.unwrap() - 3.0).abs() < 1e-6, "{found:?}");
        assert!(found.inside.max.unwrap() < 1e-6);
        assert_eq!(found.limited, 0.1);
    }
}
