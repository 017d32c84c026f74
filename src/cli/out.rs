//! Where commands print to.

use std::io::{self, ErrorKind, StdoutLock, Write};

/// Standard output. A reader that has left (`pi05 … | head`) silences a command but does not end it: what it writes gets
/// written, and its exit code is that of its verdict.
pub struct Out(StdoutLock<'static>);

/// Locked as long as it lives.
pub fn stdout() -> Out {
    Out(io::stdout().lock())
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        heard(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        heard(self.0.flush(), ())
    }
}

/// `unheard` where nobody listens any more.
fn heard<T>(written: io::Result<T>, unheard: T) -> io::Result<T> {
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(unheard),
        written => written,
    }
}
