//! The log of the process. Lines go to standard error through a bounded queue and a thread of their own, so that a
//! reader of standard error that is slow, stops or goes away neither delays nor ends anything. A line that does not fit
//! the queue, or cannot be written, is dropped and counted.

use crate::config::{Config, LogFormat};
use prometheus::IntCounter;
use std::{
    io::{self, IsTerminal as _, Write},
    panic,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// Lines that may wait to be written, and their bytes. A node in trouble writes some tens of lines a second, so this is
/// about a minute without a reader.
const LINES_MAX: usize = 4096;
const BYTES_MAX: usize = 1 << 20;
/// A line is cut after this many bytes: a field may hold text of a peer.
const LINE_MAX: usize = 8 << 10;
/// How long the end of the process waits for lines that are queued.
const FLUSH: Duration = Duration::from_secs(1);

static LOG: OnceLock<Log> = OnceLock::new();

/// The queue of lines; `tracing` writes to it as to a file.
#[derive(Clone)]
pub(crate) struct Log {
    queue: SyncSender<LogRequest>,
    bytes: Arc<AtomicUsize>,
    dropped: IntCounter,
}

enum LogRequest {
    Line(Vec<u8>),
    /// Answered once all earlier lines have been written.
    Flush(SyncSender<()>),
}

/// Sends `tracing`'s lines and the messages of panics to standard error from now on. Called once, by `main`. Returns the
/// counter of the lines that were dropped.
///
/// # Errors
/// The operating system refuses a thread.
pub(crate) fn start(config: &Config) -> io::Result<IntCounter> {
    let log = Log::new(io::stderr())?;
    let dropped = log.dropped.clone();
    let log = LOG.get_or_init(|| log);
    let lines = tracing_subscriber::fmt().with_max_level(config.log_level);
    let lines = lines.with_writer(|| log.clone()).with_target(false);
    match config.log {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).init(),
    }
    panic::set_hook(Box::new(|panicked| {
        // One line, as every other: a panic's own text has several.
        let text = panicked.to_string().replace('\n', " ");
        tracing::error!(thread = thread::current().name(), "{text}");
    }));
    Ok(dropped)
}

/// Waits until the lines that are queued have been written, a second at the longest.
pub(crate) fn flush() {
    if let Some(log) = LOG.get() {
        log.flush();
    }
}

impl Log {
    fn new(writer: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, entries) = sync_channel(LINES_MAX);
        let dropped = IntCounter::new("fanfare_log_lines_dropped_total", "Log lines that standard error did not take.");
        let dropped = dropped.map_err(io::Error::other)?;
        let log = Self { queue, bytes: Arc::default(), dropped };
        let (bytes, dropped) = (Arc::clone(&log.bytes), log.dropped.clone());
        thread::Builder::new().name("log".to_owned()).spawn(move || write_lines(&entries, writer, &bytes, &dropped))?;
        Ok(log)
    }

    fn flush(&self) {
        let (written, wait) = sync_channel(1);
        // A full queue means that nothing reads the log.
        if self.queue.try_send(LogRequest::Flush(written)).is_ok() {
            let _ = wait.recv_timeout(FLUSH);
        }
    }
}

impl Write for Log {
    /// Takes one line, which `tracing` writes in one call. Never waits, never fails.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut taken = line[..line.len().min(LINE_MAX)].to_vec();
        if taken.len() < line.len() {
            taken.push(b'\n');
        }
        let bytes = taken.len();
        if self.bytes.fetch_add(bytes, Relaxed) + bytes > BYTES_MAX
            || self.queue.try_send(LogRequest::Line(taken)).is_err()
        {
            self.bytes.fetch_sub(bytes, Relaxed);
            self.dropped.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread that writes. After lines were dropped it says how many, as soon as a line can be written again.
fn write_lines(entries: &Receiver<LogRequest>, mut writer: impl Write, bytes: &AtomicUsize, dropped: &IntCounter) {
    let mut reported = 0;
    for entry in entries {
        let line = match entry {
            LogRequest::Flush(written) => {
                let _ = written.send(()); // who asked may have stopped waiting
                continue;
            }
            LogRequest::Line(line) => line,
        };
        bytes.fetch_sub(line.len(), Relaxed);
        if writer.write_all(&line).is_err() {
            dropped.inc();
            continue;
        }
        let lost = dropped.get() - reported;
        if lost > 0 {
            reported += lost;
            tracing::warn!(lines = lost, "log lines were dropped, because standard error did not take them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Takes the first line, then blocks until the test lets it go on.
    struct Stuck(mpsc::Sender<Vec<u8>>, Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.0.send(line.to_vec()).unwrap();
            self.1.recv().map_err(io::Error::other)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stops_costs_lines_and_nothing_else() {
        let (written, lines) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        let mut log = Log::new(Stuck(written, gate)).unwrap();
        log.write_all(b"the first\n").unwrap();
        assert_eq!(lines.recv().unwrap(), b"the first\n");
        // The writer is stuck in that line now. As many fit as the queue holds.
        for _ in 0..LINES_MAX + 5 {
            log.write_all(b"another\n").unwrap();
        }
        assert_eq!(log.dropped.get(), 5);
        for _ in 0..=LINES_MAX {
            go_on.send(()).unwrap();
        }
        // A flush before the writer has made room in the queue would not wait.
        for _ in 0..LINES_MAX {
            assert_eq!(lines.recv().unwrap(), b"another\n");
        }
        log.flush();
        assert_eq!(log.bytes.load(Relaxed), 0);
    }

    #[test]
    fn lines_are_bounded_in_bytes_too_and_a_long_one_is_cut() {
        let (written, lines) = mpsc::channel();
        let (go_on, gate) = mpsc::channel();
        let mut log = Log::new(Stuck(written, gate)).unwrap();
        log.write_all(&[b'x'; 3 * LINE_MAX]).unwrap();
        let first = lines.recv().unwrap();
        assert_eq!((first.len(), first.last()), (LINE_MAX + 1, Some(&b'\n')));
        let fits = BYTES_MAX / LINE_MAX;
        for _ in 0..fits + 3 {
            log.write_all(&[b'x'; LINE_MAX]).unwrap();
        }
        assert_eq!(log.dropped.get(), 3);
        drop(go_on);
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut log = Log::new(Closed).unwrap();
        log.write_all(b"lost\n").unwrap();
        log.flush();
        assert_eq!(log.dropped.get(), 1);
    }
}
