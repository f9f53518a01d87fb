//! The transports by which `sub` can follow rooms, and their names on the command line.

/// A transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// WebSocket.
    Ws,
    /// Server-sent events.
    Sse,
    /// HTTP streaming: one JSON object per line.
    Stream,
    /// Long polling.
    Poll,
    /// Short polling: the server responds to every request at once.
    ShortPoll,
}

impl Transport {
    /// All of them, the default first.
    pub(crate) const ALL: [Self; 5] = [Self::Ws, Self::Sse, Self::Stream, Self::Poll, Self::ShortPoll];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ws => "ws",
            Self::Sse => "sse",
            Self::Stream => "stream",
            Self::Poll => "poll",
            Self::ShortPoll => "short-poll",
        }
    }

    /// The transport with this name; the default for an unknown one, which the command line has refused before.
    pub(crate) fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|transport| transport.name() == name).unwrap_or(Self::Ws)
    }
}
