//! The five transports and what they are called. Called everywhere in the harness; pure.

/// How a client receives messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// WebSocket, at `/ws`.
    WebSocket,
    /// Server-sent events, at `/sse`.
    Sse,
    /// HTTP streaming, at `/stream`.
    Stream,
    /// Long polling: `/poll`, each request waiting for a message.
    LongPoll,
    /// Short polling: `/poll` with `wait=0`, at an interval.
    ShortPoll,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::WebSocket, Self::Sse, Self::Stream, Self::LongPoll, Self::ShortPoll];
    /// Those whose clients send commands by POST to `welcome.post`.
    pub const ONE_WAY: [Self; 2] = [Self::Sse, Self::Stream];
    /// Those that have no session of their own.
    pub const POLLS: [Self; 2] = [Self::LongPoll, Self::ShortPoll];

    /// The name printed in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
            Self::Sse => "SSE",
            Self::Stream => "stream",
            Self::LongPoll => "long poll",
            Self::ShortPoll => "short poll",
        }
    }

    /// Whether it is one of the two kinds of polling.
    #[must_use]
    pub fn polls(self) -> bool {
        Self::POLLS.contains(&self)
    }

    /// A sequence of transports in which every ordered pair, also of equal ones, occurs exactly once as neighbours: a
    /// de Bruijn sequence of order two that ends with its first element.
    #[must_use]
    pub fn walk() -> Vec<Self> {
        let mut walk = Vec::new();
        for (index, one) in Self::ALL.into_iter().enumerate() {
            walk.push(one);
            for other in &Self::ALL[index + 1..] {
                walk.extend([one, *other]);
            }
        }
        walk.push(Self::ALL[0]);
        walk
    }

    /// The last segment of its path.
    pub(super) fn path_end(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Sse => "sse",
            Self::Stream => "stream",
            Self::LongPoll | Self::ShortPoll => "poll",
        }
    }

    /// The media type of its body.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Stream => "application/x-ndjson",
            Self::WebSocket | Self::LongPoll | Self::ShortPoll => "application/json",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Transport;
    use std::collections::BTreeSet;

    #[test]
    fn the_walk_takes_every_ordered_pair_once() {
        let walk = Transport::walk();
        let pairs: Vec<_> = walk.windows(2).map(|pair| (pair[0], pair[1])).collect();
        assert_eq!((pairs.len(), pairs.iter().collect::<BTreeSet<_>>().len()), (25, 25), "{walk:?}");
    }
}
