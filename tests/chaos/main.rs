//! `tests/run chaos SCENARIO…`: the fault runs of `fanfare_tests::scenario` at full size. It prints the seed and, at the
//! end of each run, one line with the outcome. Its exit status is 1 if a promise was broken or a target missed, and 2 if
//! the arguments are wrong. `chaos idle` is a load for `tests/bench`.

mod idle;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fanfare_tests::rng::Rng;
use fanfare_tests::scenario::{ALL, RunSettings, Scale, Scenario, named};
use tokio::runtime::Runtime;

/// What the command line asks for.
#[derive(Debug)]
struct Arguments {
    scenarios: Vec<&'static Scenario>,
    seed: u64,
    times: u32,
    minutes: f64,
    scale: Scale,
}

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "--help") {
        println!("{}", usage());
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "idle") {
        return match idle::main(&args[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("chaos: {error}");
                ExitCode::from(2)
            }
        };
    }
    let arguments = match parse(args.into_iter()) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("chaos: {error}\n{}", usage());
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let mut all_ok = true;
    for scenario in &arguments.scenarios {
        for time in 0..arguments.times {
            // The generator gives different sequences for consecutive seeds.
            let seed = arguments.seed.wrapping_add(u64::from(time));
            all_ok &= run_one(&runtime, scenario, seed, &arguments);
        }
    }
    if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a scenario once and prints its outcome. A panic of the harness counts as a broken run.
fn run_one(runtime: &Runtime, scenario: &Scenario, seed: u64, arguments: &Arguments) -> bool {
    println!("{} seed={seed}: {}", scenario.name.to_uppercase(), scenario.what);
    let length = Duration::from_secs_f64(arguments.minutes * 60.0);
    let run = || runtime.block_on((scenario.run)(RunSettings { seed, scale: arguments.scale, length }));
    // A run starts everything it needs and drops it at its end, so after a panic nothing broken is left.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => {
            println!("{}", outcome.line(scenario.name, seed));
            outcome.is_ok()
        }
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map_or("see above", String::as_str);
            println!("{} seed={seed} BROKEN: the run failed: {why}", scenario.name.to_uppercase());
            false
        }
    }
}

fn usage() -> String {
    let mut text = String::from(
        "usage: tests/run chaos [SCENARIO…] [--seed N] [--times N] [--minutes N] [--short]\n\
         Without a scenario: random faults for --minutes (default 1). Scenarios:\n",
    );
    for scenario in ALL {
        text.push_str(&format!("  {:<4} {}\n", scenario.name, scenario.what));
    }
    text + "  all  all of them"
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // Short enough to type it again.
    let seed = Rng::new(clock as u64).below(1_000_000);
    let mut arguments = Arguments { scenarios: Vec::new(), seed, times: 1, minutes: 1.0, scale: Scale::Full };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => arguments.seed = number(&value()?)?,
            "--times" => arguments.times = number(&value()?)?,
            "--minutes" => arguments.minutes = number(&value()?)?,
            "--short" => arguments.scale = Scale::Small,
            "all" => arguments.scenarios.extend(ALL),
            name => arguments.scenarios.push(named(name).ok_or_else(|| format!("no scenario {name}"))?),
        }
    }
    if !(0.0..=100_000.0).contains(&arguments.minutes) {
        return Err(format!("--minutes {}: out of range", arguments.minutes));
    }
    if arguments.scenarios.is_empty() {
        arguments.scenarios.extend(named("chaos"));
    }
    Ok(arguments)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is not a number that fits here"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn arguments(line: &str) -> Result<(Vec<&'static str>, u64, u32, f64), String> {
        let arguments = parse(line.split_whitespace().map(str::to_owned))?;
        Ok((
            arguments.scenarios.iter().map(|scenario| scenario.name).collect(),
            arguments.seed,
            arguments.times,
            arguments.minutes,
        ))
    }

    #[test]
    fn wrong_arguments_are_refused() {
        assert_eq!(arguments("r5 r6 --seed 7 --times 5"), Ok((vec!["r5", "r6"], 7, 5, 1.0)));
        assert_eq!(arguments("--minutes 0.5 --seed 1"), Ok((vec!["r22"], 1, 1, 0.5)));
        for wrong in ["r99", "--seed", "--seed x", "--times -1", "--minutes -1", "--minutes NaN"] {
            assert!(arguments(wrong).is_err(), "{wrong}");
        }
    }
}
