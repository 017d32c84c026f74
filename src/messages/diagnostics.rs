//! `/diagnostics`: the health of a system, as ROS 2's tools show it.

use super::cdr::Writer;
use super::{encoded, put_header};
use crate::clock::Stamp;

/// How well something is; the number is `diagnostic_msgs/msg/DiagnosticStatus`'s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Level {
    /// As it should be.
    #[default]
    Ok = 0,
    /// Works, but somebody should look.
    Warn = 1,
    /// Does not work.
    Error = 2,
    /// Has not been heard of.
    Stale = 3,
}

/// `diagnostic_msgs/msg/DiagnosticStatus`: one component.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiagnosticStatus {
    /// How well it is.
    pub level: Level,
    /// What it is: `policy: cameras`.
    pub name: String,
    /// One line for a person.
    pub message: String,
    /// Which hardware, if any.
    pub hardware_id: String,
    /// (key, value), as shown.
    pub values: Vec<(String, String)>,
}

/// `diagnostic_msgs/msg/DiagnosticArray`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiagnosticArrayMessage {
    /// When it was so.
    pub stamp: Stamp,
    /// One per component.
    pub status: Vec<DiagnosticStatus>,
}

impl DiagnosticArrayMessage {
    /// ROS 2 name of the type.
    pub const TYPE: &'static str = "diagnostic_msgs/msg/DiagnosticArray";

    /// To a buffer of its own.
    pub fn encode(&self) -> Vec<u8> {
        encoded(|payload| {
            let mut cdr = Writer::new(payload);
            put_header(&mut cdr, self.stamp, "");
            cdr.length(self.status.len());
            for status in &self.status {
                cdr.u8(status.level as u8);
                cdr.string(&status.name);
                cdr.string(&status.message);
                cdr.string(&status.hardware_id);
                cdr.length(status.values.len());
                for (key, value) in &status.values {
                    cdr.string(key);
                    cdr.string(value);
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::messages::tests::{Header, peer_decode};

    type PeerStatus = (u8, String, String, String, Vec<(String, String)>);

    fn status() -> impl Strategy<Value = DiagnosticStatus> {
        let text = || "[a-zé ]{0,9}";
        let level = prop::sample::select(vec![Level::Ok, Level::Warn, Level::Error, Level::Stale]);
        (level, text(), text(), text(), vec((text(), text()), 0..4)).prop_map(
            |(level, name, message, hardware_id, values)| DiagnosticStatus {
                level,
                name,
                message,
                hardware_id,
                values,
            },
        )
    }

    proptest! {
        #[test]
        fn diagnostics_are_written_as_another_reads_them(ns in 0..4_000_000_000_000_000_000i64, status in vec(status(), 0..4)) {
            let message = DiagnosticArrayMessage { stamp: Stamp(ns), status: status.clone() };
            let (header, read) = peer_decode::<(Header, Vec<PeerStatus>)>(&message.encode());
            prop_assert_eq!(header, (Stamp(ns).to_ros(), String::new()));
            let expected: Vec<PeerStatus> =
                status.into_iter().map(|s| (s.level as u8, s.name, s.message, s.hardware_id, s.values)).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
