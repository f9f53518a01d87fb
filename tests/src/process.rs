//! Child processes that end with the test that started them. Called by `cluster`, `redis`, `nginx` and the tests of
//! the program itself. It signals only processes that it started.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::wait::{eventually_within, patience};

/// How much of the end of a log a failed test prints, in bytes.
const LOG_TAIL: usize = 4_000;

/// A program with its arguments and environment, which can be started more than once.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, String)>,
    /// The signal that the kernel sends when the test process dies, and that a drop sends first: KILL, or TERM for a
    /// server that must end its own children.
    end: &'static str,
}

impl Launch {
    /// `program`; messages and the log file use `name` for it.
    #[must_use]
    pub fn new(name: &str, program: impl Into<PathBuf>) -> Self {
        Self { name: name.to_owned(), program: program.into(), args: Vec::new(), env: Vec::new(), end: "KILL" }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// The program and the arguments of another launch as further arguments, for a program that runs another one.
    #[must_use]
    pub fn follow(self, other: &Self) -> Self {
        self.arg(&other.program).args(&other.args)
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Ends it with SIGTERM first; for servers that must end children of their own.
    #[must_use]
    pub fn ends_by_term(mut self) -> Self {
        self.end = "TERM";
        self
    }

    /// The command, without the `FANFARE_` variables of the developer's own environment.
    fn command(&self) -> Command {
        let setpriv = Path::new("/usr/bin/setpriv");
        let mut command = if setpriv.exists() {
            // If the test process is killed it cannot clean up, so the kernel ends the child.
            let mut command = Command::new(setpriv);
            command.arg("--pdeathsig").arg(self.end).arg("--").arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FANFARE_") {
                command.env_remove(name);
            }
        }
        command.args(&self.args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null());
        command
    }

    /// Starts it with its output in `directory/<name>.log`; a second start appends to that file.
    ///
    /// # Panics
    /// If the program or its log cannot be opened.
    #[must_use]
    pub fn start(&self, directory: &Path) -> Process {
        let log = directory.join(format!("{}.log", self.name));
        let err = File::options().create(true).append(true).open(log).expect("the log file opens");
        self.start_with_stderr(directory, err)
    }

    /// Starts it with another standard error than the log file.
    ///
    /// # Panics
    /// As [`Launch::start`].
    #[must_use]
    pub fn start_with_stderr(&self, directory: &Path, stderr: impl Into<Stdio>) -> Process {
        let log = directory.join(format!("{}.log", self.name));
        let out = File::options().create(true).append(true).open(&log).expect("the log file opens");
        let child = self.command().stdout(out).stderr(stderr).spawn();
        let child = child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        Process { launch: self.clone(), child, directory: directory.to_owned(), log }
    }

    /// Runs it to its end and returns its output.
    ///
    /// # Panics
    /// If it does not end within [`patience`].
    pub async fn run(&self) -> Output {
        let limit = patience();
        let mut command = tokio::process::Command::from(self.command());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
        let child = child.unwrap_or_else(|error| panic!("{}: {error}", self.program.display()));
        let what = format!("the end of {}", self.name);
        let output = crate::wait::within_time(limit, &what, child.wait_with_output()).await;
        let output = output.expect("the output of a child is readable");
        Output {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The result of a program that has run to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running child process. Dropping it ends the process and, while a test panics, prints the end of its log.
#[derive(Debug)]
pub struct Process {
    launch: Launch,
    child: Child,
    directory: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Its standard output and standard error so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Starts it again in the same way after it has ended, and appends to its log.
    ///
    /// # Panics
    /// If the program cannot be started.
    pub fn start_again(&mut self) {
        *self = self.launch.start(&self.directory);
    }

    /// A file in the directory of its log.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Its resident memory; `None` once it has ended.
    #[must_use]
    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(self.child.id())
    }

    /// Sends a signal, given by its name without `SIG`.
    ///
    /// # Panics
    /// If `kill` cannot be run.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success(), "{}: no such process", self.launch.name);
    }

    /// Kills it with SIGKILL and reaps it.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended by itself and returns its exit status.
    ///
    /// # Panics
    /// If it still runs after `limit`.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let name = self.launch.name.clone();
        let mut status = None;
        eventually_within(limit, &format!("{name} has ended"), async || {
            status = self.child.try_wait().expect("a child can be waited for");
            status.is_some()
        })
        .await;
        status.expect("the condition was that it has ended")
    }
}

/// The resident memory of a process; `None` if it has ended.
#[must_use]
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            if self.launch.end == "TERM" {
                self.signal("TERM");
                let deadline = Instant::now() + Duration::from_secs(2);
                while self.is_running() && Instant::now() < deadline {
                    std::thread::yield_now();
                }
            }
            self.kill();
        }
        if std::thread::panicking() {
            let log = self.log();
            let mut from = log.len().saturating_sub(LOG_TAIL);
            while !log.is_char_boundary(from) {
                from += 1;
            }
            eprintln!("--- the end of the log of {} ---\n{}", self.launch.name, &log[from..]);
        }
    }
}
