//! `tests/run chaos SCENARIO…`: the fault runs of `fanfare_tests::scenario` at full size. Prints the seed first and one
//! line of verdict for each run; ends with 1 when a promise was broken or a target missed, with 2 when it was called
//! wrongly. What a run does stands in the library. `chaos idle` is a load for `tests/bench`.

mod idle;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fanfare_tests::rng::Rng;
use fanfare_tests::scenario::{ALL, RunSettings, Scale, Scenario, named};
use tokio::runtime::Runtime;

/// What is to be run.
#[derive(Debug)]
struct Order {
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
            Err(fault) => {
                eprintln!("chaos: {fault}");
                ExitCode::from(2)
            }
        };
    }
    let order = match parse(args.into_iter()) {
        Ok(order) => order,
        Err(fault) => {
            eprintln!("chaos: {fault}\n{}", usage());
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let mut all_ok = true;
    for scenario in &order.scenarios {
        for time in 0..order.times {
            // Seeds of repeated runs are neighbours: the generator makes them differ.
            let seed = order.seed.wrapping_add(u64::from(time));
            all_ok &= one(&runtime, scenario, seed, &order);
        }
    }
    if all_ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One run; a harness that gave up is a verdict too.
fn one(runtime: &Runtime, scenario: &Scenario, seed: u64, order: &Order) -> bool {
    println!("{} seed={seed}: {}", scenario.name.to_uppercase(), scenario.what);
    let length = Duration::from_secs_f64(order.minutes * 60.0);
    let run = || runtime.block_on((scenario.run)(RunSettings { seed, scale: order.scale, length }));
    // Nothing of a run outlives it: what a panic leaves behind ends with it.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => {
            println!("{}", outcome.line(scenario.name, seed));
            outcome.is_ok()
        }
        Err(panic) => {
            let why = panic.downcast_ref::<String>().map_or("see above", String::as_str);
            println!("{} seed={seed} BROKEN: the run gave up: {why}", scenario.name.to_uppercase());
            false
        }
    }
}

fn usage() -> String {
    let mut text = String::from(
        "usage: tests/run chaos [SCENARIO…] [--seed N] [--times N] [--minutes N] [--short]\n\
         Without a scenario: random faults for --minutes (1). Scenarios:\n",
    );
    for scenario in ALL {
        text.push_str(&format!("  {:<4} {}\n", scenario.name, scenario.what));
    }
    text + "  all  every one of them"
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Order, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // Short enough to be typed again.
    let seed = Rng::new(clock as u64).below(1_000_000);
    let mut order = Order { scenarios: Vec::new(), seed, times: 1, minutes: 1.0, scale: Scale::Full };
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--seed" => order.seed = number(&value()?)?,
            "--times" => order.times = number(&value()?)?,
            "--minutes" => order.minutes = number(&value()?)?,
            "--short" => order.scale = Scale::Short,
            "all" => order.scenarios.extend(ALL),
            name => order.scenarios.push(named(name).ok_or_else(|| format!("no scenario {name}"))?),
        }
    }
    if !(0.0..=100_000.0).contains(&order.minutes) {
        return Err(format!("--minutes {}: out of range", order.minutes));
    }
    if order.scenarios.is_empty() {
        order.scenarios.extend(named("chaos"));
    }
    Ok(order)
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is not such a number"))
}

#[cfg(test)]
mod tests {
    use super::parse;

    fn order(line: &str) -> Result<(Vec<&'static str>, u64, u32, f64), String> {
        let order = parse(line.split_whitespace().map(str::to_owned))?;
        Ok((order.scenarios.iter().map(|scenario| scenario.name).collect(), order.seed, order.times, order.minutes))
    }

    #[test]
    fn the_command_line_is_read_strictly() {
        assert_eq!(order("r5 r6 --seed 7 --times 5"), Ok((vec!["r5", "r6"], 7, 5, 1.0)));
        assert_eq!(order("--minutes 0.5 --seed 1"), Ok((vec!["r22"], 1, 1, 0.5)));
        for wrong in ["r99", "--seed", "--seed x", "--times -1", "--minutes -1", "--minutes NaN"] {
            assert!(order(wrong).is_err(), "{wrong}");
        }
    }
}
