//! The layers together: which one wins, what is refused, and that all faults are listed at once.

use super::{
    fault::{Faults, Location},
    options::Draft,
    settings::node_name,
    value::RedisUrl,
    *,
};
use crate::policy::{class::Class, origin::Origin, peer::Network};
use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))).collect()
}

fn flags(given: &[(&'static str, &str)]) -> Flags {
    given.iter().map(|(name, value)| (*name, (*value).to_owned())).collect()
}

/// A file of its own for each test, gone with it.
struct Written(PathBuf);

impl Written {
    fn new(text: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("fanfare-config-{}-{number}.toml", std::process::id()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn load(&self) -> Result<Config, Faults> {
        load(&flags(&[("config", self.0.to_str().unwrap())]), &Environment::default())
    }

    /// The faults, without the path in front of them.
    fn faults(&self) -> Vec<String> {
        let path = format!("{}:", self.0.display());
        self.load().unwrap_err().lines().iter().map(|line| line.replace(&path, "")).collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn flags_beat_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = Written::new("drain = 1\nredis_wait = \"1m\"\nshards = 1\n");
    let path = file.0.to_str().unwrap();
    let environment = environment(&[("FANFARE_REDIS_WAIT", "2"), ("FANFARE_SHARDS", "2"), ("FANFARE_CONFIG", path)]);
    let config = load(&flags(&[("shards", "3")]), &environment).unwrap();
    assert_eq!(config.listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)));
    assert_eq!((config.drain.as_secs(), config.redis_wait.as_secs(), config.shards), (1, 2, 3));
}

#[test]
fn a_higher_layer_replaces_a_list() {
    let file = Written::new("redis = [\"redis://a\", \"redis://b\"]\n");
    assert_eq!(file.load().unwrap().redis.iter().map(RedisUrl::expose).collect::<Vec<_>>(), ["redis://a", "redis://b"]);
    let given = flags(&[("config", file.0.to_str().unwrap()), ("redis", "redis://c:1 redis://d:2")]);
    let config = load(&given, &Environment::default()).unwrap();
    assert_eq!(config.redis.iter().map(RedisUrl::expose).collect::<Vec<_>>(), ["redis://c:1", "redis://d:2"]);
}

#[test]
fn origins_are_set_by_the_file_by_a_variable_or_by_flags() {
    let file = Written::new("[auth]\norigins = [\"https://a\", \"https://b\"]\n");
    let config = flags(&[("config", file.0.to_str().unwrap())]);
    let origins =
        |flags: &Flags, environment: &Environment| load(flags, environment).map(|config| config.origins.len());
    assert_eq!(origins(&config, &Environment::default()), Ok(2));
    let variable = environment(&[("FANFARE_ORIGINS", "http://c:1 http://d http://e")]);
    assert_eq!(origins(&config, &variable), Ok(3));
    let flag = flags(&[("config", file.0.to_str().unwrap()), ("origins", "http://f")]);
    assert_eq!(origins(&flag, &variable), Ok(1));
    let faults = load(&flags(&[("origins", "localhost:5173")]), &Environment::default()).unwrap_err();
    assert!(faults.to_string().starts_with("--origin: must be scheme://host"), "{faults}");
    let top_level = Written::new("origins = [\"https://a\"]\n").faults();
    assert_eq!(top_level, ["1: origins: unknown key here; it belongs under [auth]"]);
}

#[test]
fn faults_of_the_file_are_in_the_order_of_its_lines_and_not_more_than_twenty_are_printed() {
    let lines: String = (0..30).map(|n| format!("key{n} = 1\n")).collect();
    let file = Written::new(&format!("[limits]\nping_seconds = 0\n[auth]\nmode = 1\n[weather]\n{lines}"));
    assert!(file.faults().is_sorted_by_key(|fault| fault.split(':').next().unwrap().parse::<usize>().unwrap()));
    let many = Written::new(&lines);
    let faults = many.load().unwrap_err().to_string();
    assert_eq!(faults.lines().count(), 21, "{faults}");
    assert_eq!(faults.lines().last().unwrap(), "and 10 more, 30 faults in all");
    assert_eq!(many.faults().len(), 30);
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let faults = Written::new(&text).load().unwrap_err().to_string();
    assert!(faults.lines().count() <= 21, "{faults}");
}

#[test]
fn all_faults_of_all_layers_are_listed_at_once_with_their_location() {
    let file = Written::new("listen = \"0.0.0.0:80\"\nnope = 1\ndrain = \"20\"\n[limits]\nping_seconds = 0\n");
    let environment = environment(&[("FANFARE_ADMIN", "here"), ("FANFARE_LISTENN", "x"), ("FANFARE_URL", "ws://x")]);
    let given = flags(&[("config", file.0.to_str().unwrap()), ("shards", "many"), ("log", "xml")]);
    let faults = load(&given, &environment).unwrap_err();
    let expected = [
        ":1: listen: 0.0.0.0:80 is not loopback",
        ":2: nope: unknown key",
        ":3: drain: must be an integer, or a time such as \"20s\"",
        ":5: limits.ping_seconds: must be a whole number from 1 to 300, not \"0\"",
        "FANFARE_ADMIN: must be IP:PORT",
        "FANFARE_LISTENN: unknown variable",
        "--shards: must be a whole number from 1 to 256, not \"many\"",
        "--log: must be text or json, not \"xml\"",
    ];
    for part in expected {
        assert!(faults.lines().iter().any(|line| line.contains(part)), "{part} is not in\n{faults}");
    }
    assert_eq!(faults.lines().len(), expected.len(), "{faults}");
}

#[test]
fn a_public_listener_needs_open_wherever_that_is_said() {
    let listen = ("listen", "[::]:8080");
    let refused = load(&flags(&[listen]), &Environment::default()).unwrap_err();
    assert!(refused.to_string().starts_with("--listen: [::]:8080 is not loopback"), "{refused}");
    assert!(load(&flags(&[listen, ("open", "true")]), &Environment::default()).is_ok());
    assert!(load(&flags(&[listen]), &environment(&[("FANFARE_OPEN", "1")])).is_ok());
    assert!(load(&flags(&[listen, ("open", "false")]), &environment(&[("FANFARE_OPEN", "1")])).is_err());
}

#[test]
fn rooms_take_what_their_rule_says_and_the_built_in_default_for_the_rest() {
    let file = Written::new(
        "[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n\
         [[rooms]]\nmatch = \"chat:*\"\nhistory = { messages = 0x10 }\npresence = false\n\
         [[rooms]]\nmatch = \"log:*\"\nhistory.ttl = \"24h\"\n",
    );
    let classes = file.load().unwrap().classes;
    let built_in = Class::BUILT_IN.history.unwrap();
    assert_eq!(classes.of("typing:1"), Class { history: None, presence: true });
    let chat = classes.of("chat:1");
    assert_eq!((chat.history.unwrap().messages, chat.history.unwrap().ttl, chat.presence), (16, built_in.ttl, false));
    let log = classes.of("log:1").history.unwrap();
    assert_eq!((log.messages, log.ttl.as_secs()), (built_in.messages, 86_400));
    assert_eq!(classes.of("else"), Class::BUILT_IN);
}

#[test]
fn sections_refuse_unknown_keys_wrong_types_and_what_is_out_of_range() {
    let file = Written::new(
        "[auth]\nmode = \"token\"\norigins = [\"https://a.b/c\", 1]\ntrusted_proxies = [\"10.0.0.1/8\"]\nuser = 1\n\
         [[auth.jwt]]\nalgorithm = \"HS256\"\n\
         [[rooms]]\nhistory = \"on\"\n\
         [[rooms]]\nmatch = \"a b\"\nhistory = { ttl = \"1y\", size = 1 }\n\
         [[rooms]]\nmatch = \"*\"\n\
         [[rooms]]\nmatch = \"chat:*\"\n",
    );
    assert_eq!(
        file.faults(),
        [
            "2: auth.mode: token mode is not part of this version",
            "3: auth.origins[0]: must be scheme://host or scheme://host:port, not \"https://a.b/c\"",
            "3: auth.origins[1]: must be a string, not integer",
            "4: auth.trusted_proxies[0]: has bits set beyond the first 8: \"10.0.0.1/8\"",
            "5: auth.user: unknown key; known here: mode, origins, trusted_proxies",
            "6: auth.jwt: token mode is not part of this version",
            "8: rooms[0]: needs a match",
            "9: rooms[0].history: must be \"off\" or { messages = 100, ttl = \"5m\" }, not \"on\"",
            "11: rooms[1].match: must be 1 to 255 characters that room names can have: visible ASCII without { } \" \\",
            "12: rooms[1].history.ttl: must be a time from 1s to 30d, such as \"90s\", \"5m\" or \"24h\", not \"1y\"",
            "12: rooms[1].history.size: unknown key; known here: messages, ttl",
            "15: rooms[3]: is never used: the rule \"*\" above it matches first",
        ]
    );
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    let file = Written::new("[limits]\nmessage_bytes = 524288\noutbox_total_bytes = 5000\n");
    assert_eq!(
        file.faults(),
        [
            "2: limits.message_bytes: outbox_bytes must be at least message_bytes + 4096 = 528384",
            "3: limits.outbox_total_bytes: outbox_total_bytes must be 0 or at least outbox_bytes = 262144",
        ]
    );
}

#[test]
fn every_limit_of_the_table_reaches_its_own_field() {
    for limit in sections::LIMITS {
        let large = "outbox_bytes = 1073741\nmessage_bytes = 1\n";
        let number = if limit.name.ends_with("bytes") { 2_000_000.min(*limit.range.end()) } else { 7 };
        let others: String =
            large.lines().filter(|line| !line.starts_with(limit.name)).map(|l| format!("{l}\n")).collect();
        let others = if limit.name == "message_bytes" { "outbox_bytes = 9000000\n".to_owned() } else { others };
        let file = Written::new(&format!("[limits]\n{others}{} = {number}\n", limit.name));
        assert_eq!((limit.get)(&file.load().unwrap().limits), number, "{}", limit.name);
    }
}

#[test]
fn a_file_that_is_not_toml_or_not_there_is_said_without_its_content() {
    let file = Written::new("drain = 1\nredis = \"redis://:hunter2@h\nadmin = \n");
    let faults = file.faults();
    assert!(faults.iter().all(|line| line.contains(": not TOML: ") && !line.contains("hunter2")), "{faults:?}");
    let missing = flags(&[("config", "/nowhere/fanfare.toml"), ("listen", "x")]);
    let faults = load(&missing, &Environment::default()).unwrap_err();
    assert!(faults.lines()[0].starts_with("/nowhere/fanfare.toml: cannot be opened"), "{faults}");
    assert!(faults.lines()[1].starts_with("--listen: "), "{faults}");
}

#[test]
fn a_password_is_neither_printed_nor_repeated_in_a_fault() {
    let config = load(&flags(&[("redis", "redis://me:hunter2@h:1/0")]), &Environment::default()).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(config.redis[0].to_string(), "redis://***@h:1/0");
    for bad in ["hunter2@host", "redis://:hunter2@", "http://:hunter2@h", "redis+sentinel://:hunter2@h:1"] {
        let faults = load(&flags(&[("redis", bad)]), &Environment::default()).unwrap_err();
        assert!(!faults.to_string().contains("hunter2"), "{faults}");
    }
}

#[test]
fn redis_urls_of_every_kind_are_taken() {
    for (good, count) in [
        ("redis://h redis://[::1]:6379/3 rediss://u:p@h:1 redis+sentinel://:p@a:1,b:2/main", 4),
        ("redis://a,redis://b", 1),
        ("rediss+cluster://u:p@a:1,b:2", 1),
    ] {
        let config = load(&flags(&[("redis", good)]), &Environment::default()).unwrap();
        assert_eq!(config.redis.len(), count, "{good}");
    }
    for bad in ["unix:///tmp/s", "redis-sentinel://a/main", "redis://a redis://a:6379/1", "redis+cluster://a redis://b"]
    {
        let faults = load(&flags(&[("redis", bad)]), &Environment::default()).unwrap_err();
        assert!(faults.lines()[0].starts_with("--redis: "), "{faults}");
    }
}

#[test]
fn networks_contain_their_addresses_only() {
    let contains =
        |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
    assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1") && contains("0.0.0.0/0", "1.2.3.4"));
    assert!(!contains("0.0.0.0/0", "::1") && contains("::/0", "::1") && contains("fd00::/8", "fd12::1"));
    assert!(contains("127.0.0.1", "127.0.0.1") && !contains("127.0.0.1", "127.0.0.2"));
    assert!("10.0.0.0/33".parse::<Network>().is_err() && "fd00::1/8".parse::<Network>().is_err());
}

#[test]
fn origins_compare_as_browsers_write_them() {
    let origin = "HTTPS://App.example.com:443".parse::<Origin>().unwrap();
    assert!(origin.is("https://app.example.com") && !origin.is("http://app.example.com"));
    assert!("capacitor://localhost".parse::<Origin>().unwrap().is("capacitor://localhost"));
    for bad in ["*", "null", "https://", "https://a/", "app.example.com", "https://*.example.com", "https://u@h"] {
        assert!(bad.parse::<Origin>().is_err(), "{bad}");
    }
}

#[test]
fn the_table_says_the_defaults_that_hold_and_examples_that_work() {
    let is_value = |spec: &&Spec| !spec.default.contains([' ', '\'']) && spec.default != "none";
    assert_eq!(options().filter(is_value).count(), 9);
    let built_in = Config::built_in();
    for spec in options().filter(is_value) {
        let mut draft = Draft::new(built_in.clone());
        draft.take(spec, spec.default, Location::Flag(spec.flag()));
        assert_eq!((&draft.config, draft.open), (&built_in, false), "{}", spec.name);
        assert_eq!(draft.faults, Faults::default());
    }
    for spec in options() {
        let mut draft = Draft::new(built_in.clone());
        draft.take(spec, spec.example, Location::Flag(spec.flag()));
        assert_eq!(draft.faults, Faults::default(), "{}", spec.name);
    }
}

#[test]
fn a_node_has_a_valid_name_of_its_own() {
    let name = node_name();
    assert_eq!(value::node(&name), Ok(name.clone()));
    assert_ne!(name, node_name());
}

#[test]
fn the_reference_page_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    if std::env::var_os("FANFARE_BLESS").is_some() {
        fs::write(path, reference()).unwrap();
    }
    let written = fs::read_to_string(path).unwrap_or_default();
    assert!(written == reference(), "docs/configuration.md is stale: FANFARE_BLESS=1 cargo test -p fanfare config");
}

#[test]
fn the_example_of_the_reference_page_is_valid() {
    let page = reference();
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = Written::new(example).load().unwrap();
    assert_eq!((config.limits.publishes_per_second, config.origins.len()), (20, 1));
}
