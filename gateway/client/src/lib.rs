//! The client commands of the program `fanfare`: `sub`, `pub`, `bench` and `health`. The program makes its command line
//! [`with_client_commands`] and runs a [`ClientCommand`] on a runtime of its own. The flags of a command are the fields
//! of its options; this file has what stands around them in the help. The commands speak the public protocol and
//! nothing else: this crate depends on no other crate of the workspace.

mod bench;
mod connection;
mod health;
mod http;
mod output;
mod publish;
mod subscribe;
mod subscription;
mod tls;
mod url;

use bench::{BenchOptions, bench};
use clap::{ArgMatches, Command, FromArgMatches as _, Subcommand};
use health::{HealthOptions, health};
pub use output::print_error;
use publish::{PublishOptions, publish};
use std::process::ExitCode;
use subscribe::{SubscribeOptions, subscribe};

/// The environment variables that belong to the client commands alone.
pub const VARIABLES: [&str; 3] = ["FANFARE_URL", "FANFARE_TOKEN", "FANFARE_CA_FILE"];

/// A client command with the values of its flags.
#[derive(Debug)]
pub struct ClientCommand(CommandOptions);

#[derive(Debug, Subcommand)]
enum CommandOptions {
    /// Print the messages of rooms as JSON lines until Ctrl-C; reconnects and resumes by itself.
    #[command(
        after_help = "Examples:\n  fanfare sub chat:1 chat:2 --history 10\n  fanfare sub chat:1 --transport sse --url https://example.com\n\n\
        Messages go to standard output, everything else to standard error. Exit code 1: a retry cannot help."
    )]
    Sub(SubscribeOptions),
    /// Publish a message, or every line of standard input, and print its cursor.
    #[command(after_help = "Example:\n  fanfare pub chat:1 '{\"text\":\"hello\"}'\n  seq 10 | fanfare pub numbers -")]
    Pub(PublishOptions),
    /// Load a gateway and report what it did and what that cost: exit code 1 if anything was lost, repeated, out of order or
    /// refused.
    #[command(after_help = "Examples:\n  fanfare bench --members 1000 --rate 20 --pids $(pidof fanfare)\n  \
        fanfare bench --publish-only --rooms 64 --publishers 4 --in-flight 4096\n\n\
        A gateway refuses more than 50 publishes a second from one session (rate_limited) and closes a session after\n\
        20 refusals (4429). The second example needs a gateway with [limits] publishes_per_second = 0: no limit.")]
    Bench(Box<BenchOptions>),
    /// Ask a node's admin listener whether it is ready: exit code 0 if so, else 1.
    #[command(after_help = "Example:\n  fanfare health --admin 127.0.0.1:8081")]
    Health(HealthOptions),
}

/// Adds the client commands to a program.
#[must_use]
pub fn with_client_commands(program: Command) -> Command {
    CommandOptions::augment_subcommands(program)
}

impl ClientCommand {
    /// Reads the matches of a program [`with_client_commands`] whose subcommand is one of them.
    ///
    /// # Errors
    /// What is wrong with the values, for the user.
    pub fn read(program: &ArgMatches) -> Result<Self, String> {
        let invocation = match CommandOptions::from_arg_matches(program).map_err(|error| error.to_string())? {
            CommandOptions::Pub(options) => CommandOptions::Pub(options.checked()?),
            CommandOptions::Bench(options) => CommandOptions::Bench(Box::new(options.checked()?)),
            other => other,
        };
        Ok(Self(invocation))
    }

    /// Runs the command to its end and gives the exit code.
    pub async fn run(self) -> ExitCode {
        match self.0 {
            CommandOptions::Sub(options) => subscribe(options).await,
            CommandOptions::Pub(options) => publish(options).await,
            CommandOptions::Bench(options) => bench(*options).await,
            CommandOptions::Health(options) => health(options).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<CommandOptions, String> {
        let program = with_client_commands(Command::new("fanfare"));
        let matches = program.try_get_matches_from(line.split(' ')).map_err(|error| error.render().to_string())?;
        ClientCommand::read(&matches).map(|command| command.0)
    }

    #[test]
    fn the_definition_holds_together() {
        with_client_commands(Command::new("fanfare")).debug_assert();
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
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_load_run_is_read_with_its_defaults() {
        let bench = |line: &str| match read(line) {
            Ok(CommandOptions::Bench(options)) => options,
            other => panic!("{line}: {other:?}"),
        };
        let options = bench("fanfare bench");
        assert_eq!((options.members, options.rooms, options.publishers, options.rate), (1000, 1, 1, None));
        let options =
            bench("fanfare bench --url ws://a,ws://b --rate 2.5 --from 127.0.0.2,127.0.0.3 --pids 1,2 --publish-only");
        assert_eq!((options.nodes().count(), options.from.len(), options.pids.len(), options.members), (2, 2, 2, 0));
        assert_eq!((options.rate, options.json), (Some(2.5), false));
        assert_eq!(bench("fanfare bench --publishers 9 --rooms 8 --in-flight 4").publishers, 4, "none without work");
    }

    #[test]
    fn values_may_begin_with_a_hyphen_where_that_has_a_meaning() {
        assert!(matches!(read("fanfare sub a --since -1OF2f_8.2"), Ok(CommandOptions::Sub(_))));
        assert!(matches!(read("fanfare pub a -1"), Ok(CommandOptions::Pub(_))));
    }

    #[test]
    fn help_shows_every_transport_and_variable_but_no_secret() {
        let help = read("fanfare sub --help").expect_err("help");
        for text in ["[possible values: ws, sse, stream, poll, short-poll]", "[env: FANFARE_TOKEN]", "--ca-file <FILE>"]
        {
            assert!(help.contains(text), "{text}:\n{help}");
        }
        assert!(VARIABLES.iter().all(|variable| help.contains(variable)), "{help}");
    }
}
