//! The arguments of the client commands: what clap knows of them, and the values that a command runs with. The program's
//! command line adds [`commands`] to its own and gives the matches back to [`ClientCommand::read`]. It starts nothing.

use crate::{
    Token,
    bench::{Bench, Format, Pace, bench},
    health::{Health, health},
    publish::{Publish, publish},
    subscribe::{Subscribe, Transport, subscribe},
};
use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{PossibleValuesParser, TypedValueParser as _},
};
use std::process::ExitCode;

/// The environment variables that belong to the client commands alone.
pub const VARIABLES: [&str; 2] = ["FANFARE_URL", "FANFARE_TOKEN"];

/// Gives the text of an environment variable, if it is set and UTF-8.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A client command with the values it runs with.
#[derive(Debug)]
pub struct ClientCommand(Order);

#[derive(Debug)]
enum Order {
    /// Print a room's messages.
    Sub(Subscribe),
    /// Publish.
    Pub(Publish),
    /// Load a gateway.
    Bench(Box<Bench>),
    /// Ask a node whether it is ready.
    Health(Health),
}

/// The client commands, as subcommands of the program.
#[must_use]
pub fn commands() -> [Command; 4] {
    [sub_command(), pub_command(), bench_command(), health_command()]
}

impl ClientCommand {
    /// Reads the matches of the subcommand `name`, one of [`commands`]. A flag comes before its environment variable, which
    /// comes before the default.
    ///
    /// # Errors
    /// What is wrong with the values, for the user.
    pub fn read(name: &str, matches: &ArgMatches, environment: Environment<'_>) -> Result<Self, String> {
        let order = match name {
            "sub" => Order::Sub(Subscribe {
                rooms: strings(matches, "ROOM"),
                since: string(matches, "since"),
                history: matches.get_one("history").copied(),
                transport: matches.get_one("transport").copied().unwrap_or(Transport::Ws),
                url: url(matches, environment),
                token: token(matches, environment),
            }),
            "pub" => Order::Pub(read_pub(matches, environment)?),
            "bench" => Order::Bench(Box::new(read_bench(matches, environment)?)),
            _ => {
                let admin = string(matches, "admin").or_else(|| environment("FANFARE_ADMIN"));
                Order::Health(Health { admin: admin.unwrap_or_else(|| "127.0.0.1:8081".to_owned()) })
            }
        };
        Ok(Self(order))
    }

    /// Runs the command to its end and gives the exit code.
    pub async fn run(self) -> ExitCode {
        match self.0 {
            Order::Sub(order) => subscribe(order).await,
            Order::Pub(order) => publish(order).await,
            Order::Bench(order) => bench(*order).await,
            Order::Health(order) => health(order).await,
        }
    }
}

fn read_pub(matches: &ArgMatches, environment: Environment<'_>) -> Result<Publish, String> {
    let publish = Publish {
        room: string(matches, "ROOM").unwrap_or_default(),
        data: string(matches, "DATA").unwrap_or_default(),
        event: string(matches, "event"),
        key: string(matches, "key"),
        url: url(matches, environment),
        token: token(matches, environment),
    };
    if publish.data == "-" && publish.key.is_some() {
        return Err("--key: one key would make one message of all lines; it goes with DATA, not with -".to_owned());
    }
    Ok(publish)
}

fn read_bench(matches: &ArgMatches, environment: Environment<'_>) -> Result<Bench, String> {
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
    order.checked()
}

fn string(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned()
}

fn strings(matches: &ArgMatches, name: &str) -> Vec<String> {
    matches.get_many::<String>(name).map(|values| values.cloned().collect()).unwrap_or_default()
}

fn url(matches: &ArgMatches, environment: Environment<'_>) -> String {
    let url = string(matches, "url").or_else(|| environment("FANFARE_URL"));
    url.unwrap_or_else(|| "ws://127.0.0.1:8080".to_owned())
}

fn token(matches: &ArgMatches, environment: Environment<'_>) -> Option<Token> {
    string(matches, "token").or_else(|| environment("FANFARE_TOKEN")).map(Token::new)
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

fn health_command() -> Command {
    Command::new("health")
        .about("Ask a node's admin listener whether it is ready: exit code 0 if so, else 1")
        .arg(value("admin", "HOST:PORT", "The admin listener [env: FANFARE_ADMIN] [default: 127.0.0.1:8081]"))
        .after_help("Example:\n  fanfare health --admin 127.0.0.1:8081")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, variables: &[(&str, &str)]) -> Result<Order, String> {
        let program = Command::new("fanfare").subcommands(commands());
        let matches = program.try_get_matches_from(line.split(' ')).map_err(|error| error.render().to_string())?;
        let (name, matches) = matches.subcommand().expect("a command");
        let environment = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        ClientCommand::read(name, matches, &environment).map(|command| command.0)
    }

    #[test]
    fn the_definition_holds_together() {
        Command::new("fanfare").subcommands(commands()).debug_assert();
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            "fanfare sub",
            "fanfare sub a --since x.1 --history 3",
            "fanfare sub a --transport pigeon",
            "fanfare pub a",
            "fanfare pub a - --key k",
            "fanfare bench --rate 1 --in-flight 1",
            "fanfare bench --rate 0",
            "fanfare bench --payload 8",
            "fanfare bench --publish-only --members 3",
            "fanfare bench --room-prefix a\"b",
        ] {
            assert!(read(line, &[]).is_err(), "{line}");
        }
    }

    #[test]
    fn a_load_run_is_read_with_its_defaults() {
        let bench = |line: &str| match read(line, &[]) {
            Ok(Order::Bench(order)) => order,
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
        let transport = |line: &str| match read(line, &[]) {
            Ok(Order::Sub(sub)) => sub.transport,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(transport("fanfare sub a --since -1OF2f_8.2"), Transport::Ws);
        let help = read("fanfare sub --help", &[]).expect_err("help");
        for expected in Transport::ALL {
            let name = expected.name();
            assert_eq!(transport(&format!("fanfare sub a --transport {name}")), expected);
            assert!(help.contains(name), "{name}: {help}");
        }
    }

    #[test]
    fn a_flag_comes_before_the_environment_before_the_default() {
        let variables = [("FANFARE_URL", "ws://b"), ("FANFARE_ADMIN", "b:1"), ("FANFARE_TOKEN", "t")];
        let sub = |line: &str, variables: &[(&str, &str)]| match read(line, variables) {
            Ok(Order::Sub(sub)) => (sub.url, sub.token),
            other => panic!("{other:?}"),
        };
        assert_eq!(sub("fanfare sub a", &[]), ("ws://127.0.0.1:8080".to_owned(), None));
        assert_eq!(sub("fanfare sub a", &variables), ("ws://b".to_owned(), Some(Token::new("t".to_owned()))));
        assert_eq!(
            sub("fanfare sub a --url ws://c --token u", &variables),
            ("ws://c".into(), Some(Token::new("u".to_owned())))
        );
        let Ok(Order::Health(health)) = read("fanfare health", &variables) else { panic!("health is no command") };
        assert_eq!(health.admin, "b:1");
        let Ok(Order::Pub(publish)) = read("fanfare pub a -1", &[]) else { panic!("pub is no command") };
        assert_eq!(publish.data, "-1");
    }
}
