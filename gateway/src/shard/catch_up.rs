//! Holes in a room's deliveries: read from history until the feed is in sequence again, or told as gaps.

use super::{
    Shard, State,
    fanout::{append, append_gap},
    retry::Retry,
    rooms::RoomKey,
};
use crate::protocol::command::HISTORY_LIMIT_MAX;
use fanfare_broker::{Cursor, HistoryQuery, Page};
use std::rc::Rc;

impl Shard {
    pub(super) fn start_catch_up(self: &Rc<Self>, state: &mut State, key: u32, since: Cursor) {
        let Some(entry) = state.rooms.get(key) else { return };
        tokio::task::spawn_local(Rc::clone(self).catch_up((key, entry.generation), since));
    }

    /// Reads a hole from history until the feed is live again.
    async fn catch_up(self: Rc<Self>, key: RoomKey, mut since: Cursor) {
        let mut retry = Retry::new();
        loop {
            let query = HistoryQuery { since: Some(since), limit: HISTORY_LIMIT_MAX };
            match self.read_history(key, query).await {
                None => return,
                Some(Ok(page)) => {
                    retry.reset();
                    let Some(again) = self.fill(key, page) else { return };
                    since = again;
                }
                Some(Err(why)) => {
                    tracing::debug!(%why, "cannot catch up yet");
                    retry.wait().await;
                }
            }
        }
    }

    fn fill(&self, key: RoomKey, page: Page) -> Option<Cursor> {
        let state = &mut *self.state.borrow_mut();
        let filled = state.rooms.same(key)?.feed.on_page(page);
        if let Some((from, to)) = filled.gap {
            self.node.metrics.gaps_told.inc();
            append_gap(state, key.0, from, to);
        } else {
            self.node.metrics.gaps_filled.inc();
        }
        for publication in filled.deliver {
            append(state, key.0, publication);
        }
        // Before anybody else can join: a batch is for those who are members now.
        self.fan_out(state);
        filled.again
    }
}
