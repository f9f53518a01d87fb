//! The trend of a node's memory: a line through the samples by least squares, without the first quarter, in which a
//! process warms up. Called by the random run; pure.

use std::time::Duration;

/// Samples of time and bytes.
#[derive(Debug, Default)]
pub(super) struct MemoryTrend(Vec<(f64, f64)>);

impl MemoryTrend {
    pub(super) fn sample(&mut self, at: Duration, bytes: Option<u64>) {
        self.0.extend(bytes.map(|bytes| (at.as_secs_f64(), bytes as f64)));
    }

    /// Growth per hour, in percent of the mean; nothing to see in fewer than three samples.
    pub(super) fn percent_per_hour(&self) -> f64 {
        let samples = &self.0[self.0.len() / 4..];
        if samples.len() < 3 {
            return 0.0;
        }
        let count = samples.len() as f64;
        let (time, bytes) = samples.iter().fold((0.0, 0.0), |(t, b), sample| (t + sample.0, b + sample.1));
        let (time, bytes) = (time / count, bytes / count);
        let (above, below) = samples.iter().fold((0.0, 0.0), |(above, below), sample| {
            let dt = sample.0 - time;
            (above + dt * (sample.1 - bytes), below + dt * dt)
        });
        if below == 0.0 { 0.0 } else { above / below * 3_600.0 / bytes * 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryTrend;
    use std::time::Duration;

    #[test]
    fn a_line_has_its_slope_and_the_warming_up_does_not_count() {
        let mut memory_trend = MemoryTrend::default();
        for minute in 0..60 {
            let bytes = if minute < 10 { 1 } else { 1_000_000 + minute * 1_000 };
            memory_trend.sample(Duration::from_secs(minute * 60), Some(bytes));
        }
        // 60,000 bytes an hour over a mean of 1,037,000.
        assert!((memory_trend.percent_per_hour() - 5.79).abs() < 0.01, "{}", memory_trend.percent_per_hour());
        assert!(MemoryTrend::default().percent_per_hour().abs() < f64::EPSILON);
    }
}
