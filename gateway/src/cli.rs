//! The command line: which command to run with which arguments, or the exit of help, version, `check` and faults.
//! `main` calls [`invocation`] first and acts on the result. It opens no socket.

use crate::config::{self, Config, Environment, Flags, Spec, ValueKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use fanfare_client_cli::{ClientCommand, print_error};
use std::{ffi::OsString, io::Write as _, process::ExitCode};

/// The exit code of a wrong configuration, file, variable or flag: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// What the process is to do.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run the gateway.
    Serve(Box<Config>),
    /// Run a client command: `sub`, `pub`, `bench` or `health`.
    Client(ClientCommand),
}

/// The end of a process that has nothing else to do: what to print, and the exit code.
#[derive(Debug, PartialEq, Eq)]
struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn faults(text: impl std::fmt::Display) -> Self {
        Self { code: EXIT_CONFIG, text: text.to_string() }
    }

    /// Help and version go to standard output, faults to standard error. Nothing is done about a closed one.
    fn print(&self) -> ExitCode {
        let text = self.text.trim_end();
        match self.code {
            0 => drop(writeln!(std::io::stdout(), "{text}")),
            _ => print_error(format!("{text}\n")),
        }
        ExitCode::from(self.code)
    }
}

/// Reads this process's arguments and environment. The error is the exit code, after help, version, the result of
/// `check` (0) or faults (78) have been printed.
pub(crate) fn invocation() -> Result<Invocation, ExitCode> {
    parse(std::env::args_os(), &Environment::of_process()).map_err(|exit| exit.print())
}

fn parse(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Invocation, Exit> {
    let matches = command().try_get_matches_from(arguments).map_err(|error| Exit {
        code: if error.use_stderr() { EXIT_CONFIG } else { 0 },
        text: error.render().to_string(),
    })?;
    match matches.subcommand() {
        None => serve(&matches, environment),
        Some(("serve", matches)) => serve(matches, environment),
        Some(("check", matches)) if matches.get_flag("reference") => Err(Exit { code: 0, text: config::reference() }),
        Some(("check", matches)) => Err(check(matches, environment)),
        Some(_) => ClientCommand::read(&matches).map(Invocation::Client).map_err(Exit::faults),
    }
}

fn serve(matches: &ArgMatches, environment: &Environment) -> Result<Invocation, Exit> {
    let given = |spec: &Spec| matches.get_many::<String>(spec.name).map(|v| v.cloned().collect::<Vec<_>>().join(" "));
    let flags: Flags = config::options().filter_map(|spec| Some((spec.name, given(spec)?))).collect();
    config::load(&flags, environment).map(Box::new).map(Invocation::Serve).map_err(Exit::faults)
}

/// Validates a configuration file as `serve` would with it in this environment: `ok` or every fault.
fn check(matches: &ArgMatches, environment: &Environment) -> Exit {
    let file = matches.get_one::<String>("FILE").cloned().unwrap_or_default();
    match config::load(&Flags::from([("config", file)]), environment) {
        Ok(_) => Exit { code: 0, text: "ok".to_owned() },
        Err(faults) => Exit::faults(faults),
    }
}

/// The whole command line. Without a command the program serves, so the flags of `serve` are also at the top level.
fn command() -> Command {
    let server = Command::new("fanfare")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A realtime gateway: rooms over WebSocket, through Redis, on every node.\nWithout a command it serves.")
        .after_help("Example:\n  fanfare --listen 127.0.0.1:8080\n  fanfare sub news &\n  fanfare pub news '{\"hello\":\"world\"}'")
        .args(config::options().map(flag))
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(
            Command::new("serve")
                .about("Run the gateway (the default)")
                .args(config::options().map(flag))
                .after_help("Example:\n  fanfare serve --listen 0.0.0.0:8080 --open --redis redis://redis:6379 --log json"),
        )
        .subcommand(
            Command::new("check")
                .about("Validate a configuration file: print ok or every fault (exit code 78)")
                .arg(Arg::new("FILE").required_unless_present("reference").help("The file"))
                .arg(Arg::new("reference").long("reference").action(ArgAction::SetTrue).help(
                    "Print the reference of all options and sections instead (Markdown)",
                ))
                .after_help("Example:\n  fanfare check /etc/fanfare.toml"),
        );
    fanfare_client_cli::with_client_commands(server)
}

/// The flag of an option. Its value is read by the table, as those of the other layers are.
fn flag(spec: &Spec) -> Arg {
    let help = format!("{} [env: {}] [default: {}]", spec.help, spec.variable(), spec.default);
    let flag = Arg::new(spec.name).long(spec.flag()).help(help);
    match spec.kind {
        ValueKind::Switch => {
            let flag = flag.value_name("true|false").num_args(0..=1).require_equals(true);
            flag.default_missing_value("true")
        }
        ValueKind::List(value) => flag.value_name(value).action(ArgAction::Append),
        ValueKind::Seconds => flag.value_name("SECONDS"),
        ValueKind::Text(value) | ValueKind::Number(value) => flag.value_name(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Invocation, Exit> {
        parse(line.split(' ').map(OsString::from), &Environment::default())
    }

    fn exit(line: &str) -> Exit {
        run(line).expect_err(line)
    }

    #[test]
    fn the_definition_holds_together() {
        command().debug_assert();
    }

    #[test]
    fn serving_is_the_default_and_has_the_same_flags() {
        let node = |line: &str| match run(line) {
            Ok(Invocation::Serve(config)) => (config.node, config.listen.port(), config.redis.len()),
            other => panic!("{line}: {other:?}"),
        };
        let expected = ("a".to_owned(), 0, 2);
        let flags = "--node a --listen 127.0.0.1:0 --redis redis://a --redis redis://b --open";
        assert_eq!(node(&format!("fanfare serve {flags}")), expected);
        assert_eq!(node(&format!("fanfare {flags}=false")), expected);
        assert!(matches!(run("fanfare"), Ok(Invocation::Serve(_))));
    }

    #[test]
    fn help_and_version_end_well_and_everything_wrong_ends_with_78() {
        for line in [
            "fanfare --help",
            "fanfare serve --help",
            "fanfare sub --help",
            "fanfare pub --help",
            "fanfare bench --help",
        ] {
            let exit = exit(line);
            assert!(exit.code == 0 && exit.text.contains("Example"), "{line}: {exit:?}");
        }
        for line in ["fanfare check --help", "fanfare health --help", "fanfare check --reference"] {
            assert_eq!(exit(line).code, 0, "{line}");
        }
        assert_eq!(exit("fanfare --version"), Exit { code: 0, text: "fanfare 0.1.0\n".to_owned() });
        for line in [
            "fanfare --nope",
            "fanfare nope",
            "fanfare serve --listen",
            "fanfare serve --shards 0 --log xml",
            "fanfare sub",
            "fanfare pub a - --key k",
            "fanfare check",
            "fanfare bench --rate 0",
        ] {
            assert_eq!(exit(line).code, EXIT_CONFIG, "{line}");
        }
        assert_eq!(exit("fanfare --shards 0 --log xml").text.lines().count(), 2);
    }

    #[test]
    fn every_option_of_the_table_is_in_the_help() {
        let help = exit("fanfare serve --help").text;
        for spec in config::options() {
            assert!(help.contains(&format!("--{}", spec.flag())) && help.contains(&spec.variable()), "{}", spec.name);
        }
    }

    #[test]
    fn check_says_ok_or_every_fault() {
        assert_eq!(exit("fanfare check /dev/null"), Exit { code: 0, text: "ok".to_owned() });
        let missing = exit("fanfare check /nowhere/at/all.toml");
        assert_eq!(missing.code, EXIT_CONFIG);
        assert!(missing.text.contains("cannot be opened"));
    }
}
