//! The command line: which command is meant and with what, or the exit that ends the matter (help, version, faults).
//! `main` calls [`invocation`] first and acts on the result. It starts nothing, opens no socket, and prints only what is
//! the command line's own: help, faults, and the verdict of `check`.

use crate::{
    client::{Bench, Format, Health, Pace, Publish, Subscribe, Token, Transport},
    config::{self, Config, Environment, Flags, Kind, Spec},
};
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use std::{
    ffi::OsString,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

/// The exit code of a wrong configuration, file, variable or flag: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIG: u8 = 78;

/// What the process was started for.
#[derive(Debug)]
pub(crate) enum Invocation {
    /// Run the gateway.
    Serve(Box<Config>),
    /// Print a room's messages.
    Sub(Subscribe),
    /// Publish.
    Pub(Publish),
    /// Load a gateway.
    Bench(Box<Bench>),
    /// Validate a configuration file: call [`check`].
    Check(PathBuf),
    /// Ask a node whether it is ready.
    Health(Health),
}

/// Why there is nothing to do: what to print and the code to end with.
#[derive(Debug, PartialEq, Eq)]
struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn faults(text: impl std::fmt::Display) -> Self {
        Self { code: EXIT_CONFIG, text: text.to_string() }
    }

    /// Help and version go to standard output, faults to standard error. A closed one is nobody's concern.
    fn print(&self) -> ExitCode {
        let text = self.text.trim_end();
        let _ = match self.code {
            0 => writeln!(std::io::stdout(), "{text}"),
            _ => writeln!(std::io::stderr(), "{text}"),
        };
        ExitCode::from(self.code)
    }
}

/// Reads this process's arguments and environment.
///
/// # Errors
/// The exit code, after everything there is to say has been printed: 0 for help and version, 78 for faults.
pub(crate) fn invocation() -> Result<Invocation, ExitCode> {
    parse(std::env::args_os(), &Environment::of_process()).map_err(|exit| exit.print())
}

/// Validates a configuration file as `serve` would with it in this environment; prints `ok` or every fault.
pub(crate) fn check(file: &Path) -> ExitCode {
    verdict(config::check(file, &Environment::of_process())).print()
}

fn verdict(checked: Result<(), config::Faults>) -> Exit {
    match checked {
        Ok(()) => Exit { code: 0, text: "ok".to_owned() },
        Err(faults) => Exit::faults(faults),
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Invocation, Exit> {
    let matches = command().try_get_matches_from(arguments).map_err(|error| Exit {
        code: if error.use_stderr() { EXIT_CONFIG } else { 0 },
        text: error.render().to_string(),
    })?;
    match matches.subcommand() {
        None => serve(&matches, environment),
        Some(("serve", matches)) => serve(matches, environment),
        Some(("sub", matches)) => Ok(Invocation::Sub(Subscribe {
            rooms: strings(matches, "ROOM"),
            since: string(matches, "since"),
            history: matches.get_one("history").copied(),
            transport: matches.get_one("transport").copied().unwrap_or(Transport::Ws),
            url: url(matches, environment),
            token: token(matches, environment),
        })),
        Some(("pub", matches)) => publish(matches, environment),
        Some(("bench", matches)) => bench(matches, environment),
        Some(("check", matches)) if matches.get_flag("reference") => Err(Exit { code: 0, text: config::reference() }),
        Some(("check", matches)) => Ok(Invocation::Check(string(matches, "FILE").unwrap_or_default().into())),
        Some((_, matches)) => {
            let admin = string(matches, "admin").or_else(|| environment.get("FANFARE_ADMIN").map(str::to_owned));
            Ok(Invocation::Health(Health { admin: admin.unwrap_or_else(|| "127.0.0.1:8081".to_owned()) }))
        }
    }
}

fn serve(matches: &ArgMatches, environment: &Environment) -> Result<Invocation, Exit> {
    let given = |spec: &Spec| matches.get_many::<String>(spec.name).map(|v| v.cloned().collect::<Vec<_>>().join(" "));
    let flags: Flags = config::options().filter_map(|spec| Some((spec.name, given(spec)?))).collect();
    config::load(&flags, environment).map(Box::new).map(Invocation::Serve).map_err(Exit::faults)
}

fn publish(matches: &ArgMatches, environment: &Environment) -> Result<Invocation, Exit> {
    let publish = Publish {
        room: string(matches, "ROOM").unwrap_or_default(),
        data: string(matches, "DATA").unwrap_or_default(),
        event: string(matches, "event"),
        key: string(matches, "key"),
        url: url(matches, environment),
        token: token(matches, environment),
    };
    if publish.data == "-" && publish.key.is_some() {
        return Err(Exit::faults("--key: one key would make one message of all lines; it goes with DATA, not with -"));
    }
    Ok(Invocation::Pub(publish))
}

fn bench(matches: &ArgMatches, environment: &Environment) -> Result<Invocation, Exit> {
    fn one<T: Clone + Send + Sync + 'static>(matches: &ArgMatches, name: &str, otherwise: T) -> T {
        matches.get_one::<T>(name).cloned().unwrap_or(otherwise)
    }
    fn all<T: Copy + Send + Sync + 'static>(matches: &ArgMatches, name: &str) -> Vec<T> {
        matches.get_many::<T>(name).map(|values| values.copied().collect()).unwrap_or_default()
    }
    let in_flight = Pace::InFlight(one(matches, "in-flight", 1_u32) as usize);
    let count = |name, otherwise| one::<u32>(matches, name, otherwise) as usize;
    let order = Bench {
        urls: url(matches, environment).split(',').map(str::to_owned).collect(),
        publish_url: string(matches, "publish-url"),
        token: token(matches, environment),
        members: if matches.get_flag("publish-only") { 0 } else { count("members", 1000) },
        rooms: count("rooms", 1),
        room_prefix: one(matches, "room-prefix", "bench:".to_owned()),
        publishers: count("publishers", 1),
        pace: matches.get_one("rate").map_or(in_flight, |rate| Pace::Rate(*rate)),
        payload_bytes: count("payload", 128),
        seconds: one(matches, "seconds", 10.0),
        idle_seconds: one(matches, "idle", 0.0),
        connects_per_second: matches.get_one("connect-rate").copied(),
        from: all(matches, "from"),
        pids: all(matches, "pids"),
        format: if matches.get_flag("json") { Format::Json } else { Format::Text },
        progress: matches.get_flag("progress"),
    };
    order.checked().map(|order| Invocation::Bench(Box::new(order))).map_err(Exit::faults)
}

fn string(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned()
}

fn strings(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).map(|values| values.cloned().collect()).unwrap_or_default()
}

fn url(matches: &ArgMatches, environment: &Environment) -> String {
    let url = string(matches, "url").or_else(|| environment.get("FANFARE_URL").map(str::to_owned));
    url.unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned())
}

fn token(matches: &ArgMatches, environment: &Environment) -> Option<Token> {
    string(matches, "token").or_else(|| environment.get("FANFARE_TOKEN").map(str::to_owned)).map(Token::new)
}

/// The whole command line. `serve` is what happens without a command, so its flags stand at the top as well.
fn command() -> Command {
    Command::new("fanfare")
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
        .subcommand(sub_command())
        .subcommand(pub_command())
        .subcommand(bench_command())
        .subcommand(
            Command::new("check")
                .about("Validate a configuration file: print ok or every fault (exit code 78)")
                .arg(Arg::new("FILE").required_unless_present("reference").help("The file"))
                .arg(Arg::new("reference").long("reference").action(ArgAction::SetTrue).help(
                    "Print the reference of all options and sections instead (Markdown)",
                ))
                .after_help("Example:\n  fanfare check /etc/fanfare.toml"),
        )
        .subcommand(
            Command::new("health")
                .about("Ask a node's admin listener whether it is ready: exit code 0 if so, else 1")
                .arg(value("admin", "HOST:PORT", "The admin listener [env: FANFARE_ADMIN] [default: 127.0.0.1:8081]"))
                .after_help("Example:\n  fanfare health --admin 127.0.0.1:8081"),
        )
}

fn sub_command() -> Command {
    Command::new("sub")
        .about("Print the messages of rooms as JSON lines until Ctrl-C; reconnects and resumes by itself")
        .arg(Arg::new("ROOM").required(true).num_args(1..).help("Rooms to join"))
        .arg(
            value("since", "CURSOR", "Start after this place; with several rooms their cursors joined by ~")
                // An epoch may begin with one.
                .allow_hyphen_values(true),
        )
        .arg(
            value("history", "N", "Start with the last N messages of each room")
                .value_parser(clap::value_parser!(u32))
                .conflicts_with("since"),
        )
        .arg(value("transport", "NAME", "How to follow them; poll waits for messages, short-poll asks again and again [default: ws]")
            .value_parser(PossibleValuesParser::new(Transport::ALL.map(Transport::name)).map(|name| Transport::named(&name))))
        .args(server_flags())
        .after_help(
            "Examples:\n  fanfare sub chat:1 chat:2 --history 10\n  fanfare sub chat:1 --transport sse --url http://127.0.0.1:8080\n\n\
             Messages go to standard output, everything else to standard error. Exit code 1: a retry cannot help.",
        )
}

fn pub_command() -> Command {
    Command::new("pub")
        .about("Publish a message, or every line of standard input, and print where it stands")
        .arg(Arg::new("ROOM").required(true).help("The room"))
        .arg(
            Arg::new("DATA")
                .required(true)
                .allow_negative_numbers(true)
                .help("The message, as JSON; - reads one message per line from standard input"),
        )
        .arg(value("event", "NAME", "The message's event name"))
        .arg(value("key", "KEY", "Idempotency key: a repetition within 5 minutes publishes nothing new"))
        .args(server_flags())
        .after_help("Example:\n  fanfare pub chat:1 '{\"text\":\"hello\"}'\n  seq 10 | fanfare pub numbers -")
}

fn bench_command() -> Command {
    let count = |name, help| value(name, "N", help).value_parser(clap::value_parser!(u32).range(1..=10_000_000));
    let seconds = |name, help| value(name, "SECONDS", help).value_parser(clap::value_parser!(f64));
    let switch = |name, help| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    Command::new("bench")
        .about("Load a gateway and report what it did and what that cost: exit code 1 if anything was lost, repeated, out of order or refused")
        .args(server_flags().map(|flag| match flag.get_id().as_str() {
            "url" => flag.help("The gateway; several nodes, with commas, share the members [env: FANFARE_URL] [default: ws://127.0.0.1:8080]"),
            _ => flag,
        }))
        .arg(value("publish-url", "URL", "The node that the publishers use [default: the first of --url]"))
        .arg(value("transport", "NAME", "What the members speak [default: ws]").value_parser(["ws"]))
        .arg(count("members", "Sessions that each join one room [default: 1000]"))
        .arg(count("rooms", "Rooms, which the members and the messages take in turn [default: 1]"))
        .arg(value("room-prefix", "TEXT", "The rooms' names but for their number [default: bench:]"))
        .arg(
            value("rate", "MSG/S", "Publish so many a second by the clock; latency counts from the time by the clock")
                .value_parser(clap::value_parser!(f64))
                .conflicts_with("in-flight"),
        )
        .arg(count("in-flight", "Publish as fast as so many messages on their way allow; one is, until all members of its room have it [default: 1]"))
        .arg(
            value("publishers", "N", "Publisher sessions, which share the rooms; 0: only count what another run publishes [default: 1]")
                .value_parser(clap::value_parser!(u32).range(0..=10_000)),
        )
        .arg(switch("publish-only", "No members: measure acknowledged publishes").conflicts_with("members"))
        .arg(count("payload", "Size of a message's data, in bytes [default: 128]"))
        .arg(seconds("seconds", "How long to publish [default: 10]"))
        .arg(seconds("idle", "Do nothing for so long between joining and publishing, and report the gateway's CPU [default: 0]"))
        .arg(count("connect-rate", "Connections to begin in a second [default: as they are accepted]"))
        .arg(
            value("from", "IP,IP", "Local addresses to connect from in turn: each has 28,000 ports, and past half of them finding one takes long")
                .value_parser(clap::value_parser!(std::net::IpAddr))
                .value_delimiter(','),
        )
        .arg(
            value("pids", "PID,PID", "Processes on this machine whose CPU and memory to report")
                .value_parser(clap::value_parser!(u32))
                .value_delimiter(','),
        )
        .arg(switch("progress", "Show every second how it goes, also where standard error is no terminal"))
        .arg(switch("json", "Print the report as one JSON object"))
        .after_help(
            "Examples:\n  fanfare bench --members 1000 --rate 20 --pids $(pidof fanfare)\n  \
             fanfare bench --publish-only --rooms 64 --publishers 4 --in-flight 4096\n\n\
             The gateway's limits count: [limits] publishes_per_second = 0 lifts the one on publishers.",
        )
}

fn server_flags() -> [Arg; 2] {
    [
        value("url", "URL", "The gateway, ws:// or http:// [env: FANFARE_URL] [default: ws://127.0.0.1:8080]"),
        value("token", "TOKEN", "Token or API key [env: FANFARE_TOKEN]"),
    ]
}

fn value(name: &'static str, shape: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(shape).help(help)
}

/// An option of the table as a flag; its value is read by the table, together with the other layers.
fn flag(spec: &Spec) -> Arg {
    let help = format!("{} [env: {}] [default: {}]", spec.help, spec.variable(), spec.default);
    let flag = Arg::new(spec.name).long(spec.flag()).help(help);
    match spec.kind {
        Kind::Switch => {
            let flag = flag.value_name("true|false").num_args(0..=1).require_equals(true);
            flag.default_missing_value("true")
        }
        Kind::List => flag.value_name(spec.value).action(ArgAction::Append),
        Kind::Text | Kind::Number => flag.value_name(spec.value),
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
            "fanfare sub a --since x.1 --history 3",
            "fanfare sub a --transport pigeon",
            "fanfare pub a",
            "fanfare pub a - --key k",
            "fanfare check",
            "fanfare bench --rate 1 --in-flight 1",
            "fanfare bench --rate 0",
            "fanfare bench --payload 8",
            "fanfare bench --publish-only --members 3",
            "fanfare bench --room-prefix a\"b",
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
        assert_eq!(verdict(Ok(())), Exit { code: 0, text: "ok".to_owned() });
        let missing = verdict(config::check(Path::new("/nowhere/at/all.toml"), &Environment::default()));
        assert_eq!(missing.code, EXIT_CONFIG);
        assert!(missing.text.contains("cannot be opened"));
    }

    #[test]
    fn a_load_run_is_read_with_its_defaults() {
        let bench = |line: &str| match run(line) {
            Ok(Invocation::Bench(order)) => order,
            other => panic!("{line}: {other:?}"),
        };
        let order = bench("fanfare bench");
        assert_eq!((order.members, order.rooms, order.publishers, order.pace), (1000, 1, 1, Pace::InFlight(1)));
        let order =
            bench("fanfare bench --url ws://a,ws://b --rate 2.5 --from 127.0.0.2,127.0.0.3 --pids 1,2 --publish-only");
        assert_eq!((order.urls.len(), order.from.len(), order.pids.len(), order.members), (2, 2, 2, 0));
        assert_eq!((order.pace, order.format), (Pace::Rate(2.5), Format::Text));
        assert_eq!(bench("fanfare bench --publishers 9 --rooms 8 --in-flight 4").publishers, 4, "none without work");
    }

    #[test]
    fn sub_knows_every_transport_by_its_name() {
        let transport = |line: &str| match run(line) {
            Ok(Invocation::Sub(sub)) => sub.transport,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(transport("fanfare sub a --since -1OF2f_8.2"), Transport::Ws);
        let help = exit("fanfare sub --help").text;
        for expected in Transport::ALL {
            let name = expected.name();
            assert_eq!(transport(&format!("fanfare sub a --transport {name}")), expected);
            assert!(help.contains(name), "{name}: {help}");
        }
    }

    #[test]
    fn client_commands_take_the_flag_before_the_environment_before_the_default() {
        let environment: Environment = [("FANFARE_URL", "ws://b"), ("FANFARE_ADMIN", "b:1"), ("FANFARE_TOKEN", "t")]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), OsString::from(value)))
            .collect();
        let sub = |line: &str, environment: &Environment| match parse(line.split(' ').map(OsString::from), environment)
        {
            Ok(Invocation::Sub(sub)) => (sub.url, sub.token),
            other => panic!("{other:?}"),
        };
        assert_eq!(sub("fanfare sub a", &Environment::default()), ("ws://127.0.0.1:8080".to_owned(), None));
        assert_eq!(sub("fanfare sub a", &environment), ("ws://b".to_owned(), Some(Token::new("t".to_owned()))));
        assert_eq!(
            sub("fanfare sub a --url ws://c --token u", &environment),
            ("ws://c".into(), Some(Token::new("u".to_owned())))
        );
        let Ok(Invocation::Health(health)) = parse(["fanfare", "health"].map(OsString::from), &environment) else {
            panic!("health is no command")
        };
        assert_eq!(health.admin, "b:1");
        let Ok(Invocation::Pub(publish)) = run("fanfare pub a -1") else { panic!("pub is no command") };
        assert_eq!(publish.data, "-1");
    }
}
