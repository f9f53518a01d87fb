//! A model test of `Session`: for every sequence of commands, rates and the error window hold, and the session's rooms are
//! those that it has joined and not left.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const PER_SECOND: u32 = 5;
const ROOMS_MAX: usize = 3;

#[derive(Debug, Clone)]
enum Happens {
    /// A join, which the shard admits unless the session is in too many rooms.
    Join(u32),
    /// The join that began `ago` joins ago is complete.
    Complete {
        ago: u32,
        room: u32,
    },
    Leave(u32),
    Publish,
    /// A malformed command.
    Wrong,
    Ping,
    Pass(u32),
    End,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        6 => (0u32..5).prop_map(Happens::Join),
        4 => (0u32..4, 0u32..5).prop_map(|(ago, room)| Happens::Complete { ago, room }),
        3 => (0u32..5).prop_map(Happens::Leave),
        8 => Just(Happens::Publish),
        2 => Just(Happens::Wrong),
        1 => Just(Happens::Ping),
        2 => (0u32..3000).prop_map(Happens::Pass),
        1 => Just(Happens::End),
    ]
}

fn command(request: Request<'static>) -> Command<'static> {
    Command { id: None, request }
}

fn join(room: u32) -> Request<'static> {
    Request::Join { room: format!("r{room}").into(), options: JoinOptions::default() }
}

fn publish(room: &'static str) -> Request<'static> {
    Request::Publish(PublishRequest { room: room.into(), data: "1", event: None, key: None })
}

/// The state that a session should have.
#[derive(Default)]
struct Model {
    now_ms: u32,
    /// Rooms by key: the number of the latest join, and the stage.
    rooms: BTreeMap<u32, (u32, Stage)>,
    joins: u32,
    published: Vec<u32>,
    errors: Vec<u32>,
}

impl Model {
    /// An error closes if it is one too many since the window that it falls into began.
    fn refused(&mut self, action: &Action<'_>) -> Result<(), TestCaseError> {
        let Action::Refuse { close, refusal, .. } = action else { return Err(TestCaseError::fail("not refused")) };
        let began = self.errors.first().copied().filter(|began| self.now_ms - began <= 10_000);
        if began.is_none() {
            self.errors.clear();
        }
        self.errors.push(self.now_ms);
        prop_assert_eq!(close.is_some(), self.errors.len() > 20);
        prop_assert_eq!(refusal.code == ErrorCode::RateLimited, refusal.retry_after_ms.is_some());
        Ok(())
    }

    fn agrees(&self, session: &Session) -> Result<(), TestCaseError> {
        for room in 0..5 {
            let is = session.membership(room).map(|m| (m.join, m.stage));
            prop_assert_eq!(is, self.rooms.get(&room).copied());
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn rates_hold_and_rooms_are_those_that_were_entered_and_not_left(
        events in proptest::collection::vec(happens(), 0..150),
        began_ms in prop_oneof![Just(0u32), Just(u32::MAX - 5_000)],
    ) {
        let limits = Limits { publishes_per_second: PER_SECOND, rooms_per_session: ROOMS_MAX, ..Limits::default() };
        let clock = |model: &Model| began_ms.wrapping_add(model.now_ms);
        let mut session = Session::new(SessionId::random(), None, &limits, began_ms);
        let mut model = Model::default();
        for event in events {
            let now = clock(&model);
            match event {
                Happens::Join(room) => {
                    let action = session.handle(command(join(room)), &limits, now);
                    prop_assert!(matches!(action, Action::Join(..)), "{:?}", action);
                    let fits = model.rooms.contains_key(&room) || model.rooms.len() < ROOMS_MAX;
                    let enters = model.rooms.contains_key(&room) || session.may_enter(&limits).is_ok();
                    prop_assert_eq!(enters, fits);
                    if enters {
                        model.joins += 1;
                        prop_assert_eq!(session.begin_join(room), model.joins);
                        let was = model.rooms.get(&room).map_or(Stage::Joining, |(_, stage)| *stage);
                        let stage = if was.is_member() { Stage::Rejoining } else { Stage::Joining };
                        model.rooms.insert(room, (model.joins, stage));
                    }
                }
                Happens::Complete { ago, room } => {
                    let number = model.joins.wrapping_sub(ago);
                    let wanted = model.rooms.get(&room).is_some_and(|(join, _)| *join == number);
                    let joining = wanted && model.rooms[&room].1 != Stage::Member;
                    prop_assert_eq!(session.is_joining(room, number), joining);
                    prop_assert_eq!(session.complete_join(room, number), wanted, "an older join's end is not taken for it");
                    if wanted { model.rooms.insert(room, (number, Stage::Member)); }
                }
                Happens::Leave(room) => {
                    let left = session.leave(room).map(|m| m.join);
                    prop_assert_eq!(left, model.rooms.remove(&room).map(|(join, _)| join));
                }
                Happens::Publish => match session.handle(command(publish("a")), &limits, now) {
                    Action::Publish(..) => model.published.push(model.now_ms),
                    refused => model.refused(&refused)?,
                },
                Happens::Wrong => {
                    let refused = session.handle(command(publish("no room")), &limits, now);
                    model.refused(&refused)?;
                }
                Happens::Ping => prop_assert!(matches!(session.handle(command(Request::Ping), &limits, now), Action::Pong)),
                Happens::Pass(ms) => model.now_ms += ms,
                Happens::End => {
                    prop_assert_eq!(session.take_memberships().len(), model.rooms.len());
                    model.rooms.clear();
                }
            }
            model.agrees(&session)?;
        }
        // In no stretch of time are there more publishes than its rate and one burst.
        for (i, from) in model.published.iter().enumerate() {
            for (j, to) in model.published.iter().enumerate().skip(i) {
                let most = 2 * PER_SECOND + (to - from) * PER_SECOND / 1000 + 1;
                prop_assert!(((j - i) as u32) < most, "{} publishes in {} ms", j - i + 1, to - from);
            }
        }
    }
}
