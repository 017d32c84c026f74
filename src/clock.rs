//! The two times of the system, as types that cannot be mixed up.

use std::fmt;

/// ROS time: nanoseconds since the Unix epoch, as message headers say it. May jump.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

/// Steady time: nanoseconds since an arbitrary start; never jumps, never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Steady(pub i64);

/// Nanoseconds in one second.
pub const NS_PER_S: i64 = 1_000_000_000;
/// Nanoseconds in one millisecond.
pub const NS_PER_MS: i64 = 1_000_000;
/// How far a stamp may lie ahead of `now` and still count as age 0: clocks of two machines under NTP, and `now` read
/// from a clock that is published at a coarse rate. Further ahead, a clock is wrong.
pub const FUTURE_TOLERANCE_NS: i64 = 100 * NS_PER_MS;

/// Nanoseconds as seconds.
pub fn seconds(ns: i64) -> f64 {
    ns as f64 / NS_PER_S as f64
}

impl Stamp {
    /// From the two fields of `builtin_interfaces/Time`.
    pub fn from_ros(sec: i32, nanosec: u32) -> Self {
        Self(i64::from(sec) * NS_PER_S + i64::from(nanosec))
    }

    /// The two fields of `builtin_interfaces/Time`; saturates outside what they can say.
    pub fn to_ros(self) -> (i32, u32) {
        let sec = self.0.div_euclid(NS_PER_S);
        let sec = i32::try_from(sec).unwrap_or(if sec < 0 { i32::MIN } else { i32::MAX });
        (sec, self.0.rem_euclid(NS_PER_S) as u32) // < 1e9
    }

    /// The stamp of a header, or if it is 0, which is none, when the message came.
    pub fn or(self, arrived: Stamp) -> Stamp {
        if self.0 == 0 { arrived } else { self }
    }

    /// Nanoseconds from `earlier` to `self`; negative if `self` is the earlier one. Saturates.
    pub fn since(self, earlier: Stamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09} s", self.0.div_euclid(NS_PER_S), self.0.rem_euclid(NS_PER_S))
    }
}
