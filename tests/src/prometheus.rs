//! Reads the Prometheus text format, and refuses what Prometheus would refuse. Called by the tests of `/metrics`; it
//! computes nothing from the samples. The tests of the alerts run Prometheus' own tool.

use std::collections::BTreeMap;

use crate::process::Launch;

/// The samples of one scrape: `name{labels}` and its value, in the text's own spelling.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    samples: BTreeMap<String, f64>,
    /// The type of each metric family that has a `# TYPE` line.
    pub types: BTreeMap<String, String>,
}

/// Prometheus' tool for checking configurations and testing rules; `tests/run` installs it.
#[must_use]
pub fn promtool() -> Launch {
    Launch::new("promtool", "promtool")
}

/// Parses a scrape.
///
/// # Errors
/// The first malformed line.
pub fn parse(text: &str) -> Result<Scrape, String> {
    let mut scrape = Scrape::default();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| line.to_owned())?;
            if scrape.types.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(format!("a second TYPE: {line}"));
            }
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').ok_or_else(|| line.to_owned())?;
            let name = series.split('{').next().unwrap_or_default();
            let valid = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':');
            let value = match value {
                "+Inf" => f64::INFINITY,
                other => other.parse().map_err(|_| line.to_owned())?,
            };
            let labels_close = !series.contains('{') || series.ends_with('}');
            if name.is_empty() || !valid || !labels_close || scrape.samples.insert(series.to_owned(), value).is_some() {
                return Err(line.to_owned());
            }
        }
    }
    Ok(scrape)
}

impl Scrape {
    /// The sum over all series of a name.
    #[must_use]
    pub fn sum(&self, name: &str) -> f64 {
        self.series(name).map(|(_, value)| value).sum()
    }

    /// Whether the scrape has the family: its `# TYPE` line, or a sample of it.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.types.contains_key(name) || self.series(name).next().is_some()
    }

    /// The series of a name.
    pub fn series<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.samples
            .iter()
            .filter(move |(series, _)| series.split('{').next() == Some(name))
            .map(|(series, value)| (series.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn series_of_one_family_add_up() {
        let text = "# HELP a help\n# TYPE a counter\na{x=\"1\"} 2\na{x=\"2\"} 3\nb 1e3\nc_bucket{le=\"+Inf\"} +Inf\n";
        let scrape = parse(text).unwrap();
        assert!((scrape.sum("a") - 5.0).abs() < 1e-9);
        assert!(scrape.has("b") && !scrape.has("c"));
        assert_eq!(scrape.types["a"], "counter");
    }

    #[test]
    fn what_a_scraper_refuses_is_refused() {
        for text in ["a", "a b", "a{x=\"1\" 2", "a 1\na 1", "{x=\"1\"} 1", "# TYPE a counter\n# TYPE a gauge"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
