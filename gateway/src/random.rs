//! Jitter: random numbers that spread what would otherwise happen at one moment. No secret is made of them.

/// A random number below `limit`.
pub(crate) fn random_below(limit: u64) -> u64 {
    getrandom::u64().unwrap_or_default() % limit
}
