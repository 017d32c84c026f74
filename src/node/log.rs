//! Our log lines in ROS 2's log: on the console in its form, under its level (`--log-level`), and on `/rosout`.

use std::fmt::{self, Write};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// A tracing layer that hands every event to rcl's logger of this name.
pub struct RosLog {
    logger: String,
}

impl RosLog {
    /// `logger` is the node's.
    pub fn new(logger: &str) -> Self {
        Self { logger: logger.replace('\0', "") }
    }
}

impl<S: Subscriber> Layer<S> for RosLog {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let severity = match *metadata.level() {
            Level::ERROR => r2r::LogSeverity::Error,
            Level::WARN => r2r::LogSeverity::Warn,
            Level::INFO => r2r::LogSeverity::Info,
            Level::DEBUG | Level::TRACE => r2r::LogSeverity::Debug,
        };
        let mut line = Line::default();
        event.record(&mut line);
        // A NUL would end the process inside r2r.
        let text = line.0.replace('\0', "");
        r2r::log(&text, &self.logger, metadata.file().unwrap_or(""), metadata.line().unwrap_or(0), severity);
    }
}

/// The message of an event, then its fields.
#[derive(Default)]
struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{gap}{value:?}"),
            name => write!(self.0, "{gap}{name}={value:?}"),
        };
    }
}
