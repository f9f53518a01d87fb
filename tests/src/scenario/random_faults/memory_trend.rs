//! The trend of a node's memory: the slope of a line through the samples by least squares, without the first quarter of
//! them, during which a process warms up. Called by the run; pure.

use std::time::Duration;

/// Samples of a node's memory: seconds and bytes.
#[derive(Debug, Default)]
pub(super) struct MemoryTrend(Vec<(f64, f64)>);

impl MemoryTrend {
    pub(super) fn sample(&mut self, at: Duration, bytes: Option<u64>) {
        self.0.extend(bytes.map(|bytes| (at.as_secs_f64(), bytes as f64)));
    }

    /// The growth in an hour, in percent of the mean; zero for fewer than three samples.
    pub(super) fn percent_per_hour(&self) -> f64 {
        let samples = &self.0[self.0.len() / 4..];
        if samples.len() < 3 {
            return 0.0;
        }
        let count = samples.len() as f64;
        let time = samples.iter().map(|(time, _)| time).sum::<f64>() / count;
        let bytes = samples.iter().map(|(_, bytes)| bytes).sum::<f64>() / count;
        let covariance: f64 = samples.iter().map(|(t, b)| (t - time) * (b - bytes)).sum();
        let variance: f64 = samples.iter().map(|(t, _)| (t - time).powi(2)).sum();
        if variance == 0.0 { 0.0 } else { covariance / variance * 3_600.0 / bytes * 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryTrend;
    use std::time::Duration;

    #[test]
    fn a_line_has_its_slope_and_the_warm_up_does_not_count() {
        let mut trend = MemoryTrend::default();
        for minute in 0..60 {
            let bytes = if minute < 10 { 1 } else { 1_000_000 + minute * 1_000 };
            trend.sample(Duration::from_secs(minute * 60), Some(bytes));
        }
        // 60,000 bytes an hour over a mean of 1,037,000.
        assert!((trend.percent_per_hour() - 5.79).abs() < 0.01, "{}", trend.percent_per_hour());
        assert!(MemoryTrend::default().percent_per_hour().abs() < f64::EPSILON);
    }
}
