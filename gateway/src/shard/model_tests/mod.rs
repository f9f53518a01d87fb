//! A model test of joins and deliveries: a real shard with sessions on real sockets, and a broker whose replies come when a
//! random sequence says so. Whatever joins overtake each other, whatever reads come late, in another order or not at all,
//! each client gets a room's messages once and in order, or is told of a gap.
//!
//! `broker` is the backplane, `client` has the checks. Time is tokio's own and stands still: it goes on only while nothing
//! else can, so that waits cost no time and a sequence that has failed can be played again.

mod broker;
mod client;

use super::Shard;
use crate::{
    app,
    config::Config,
    node::{drain::Drain, inbox::Inbox, metrics::Metrics},
};
use broker::{Fate, Pick, ScriptedBroker};
use client::{Client, Heard, Wish};
use fanfare_broker::{BrokerError, Cursor, Epoch, Offset, Room, SubscriberId};
use proptest::{prelude::*, test_runner::RngAlgorithm};
use std::{
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    runtime::Builder,
    task::{LocalSet, spawn_local},
    time::sleep,
};

const ROOMS: usize = 2;
/// One of each transport that stays open.
const CLIENTS: usize = 3;
/// Members whose list is too long for one frame.
const CROWD: u8 = 160;
/// Messages that may wait for a client: few, so that clients that stop to read are soon closed.
const OUTBOX_MESSAGES: usize = 8;
/// Rounds after which everything must have been answered and delivered, each of [`ROUND`].
const ROUNDS: usize = 60;
const ROUND: Duration = Duration::from_millis(500);
/// The time of one turn of the shard: it goes by once the shard has nothing more to do.
const TURN: Duration = Duration::from_millis(1);

/// From where a join resumes.
#[derive(Debug, Clone, Copy)]
enum Since {
    Nothing,
    /// The client's own cursor.
    Own,
    /// A cursor this many messages before the head.
    Before(u64),
    /// One that the room does not have yet.
    Ahead,
    AnotherEpoch,
}

#[derive(Debug, Clone)]
enum Happening {
    Join {
        client: usize,
        room: usize,
        presence: bool,
        history: u64,
        since: Since,
    },
    Leave {
        client: usize,
        room: usize,
    },
    /// Asks who is in the room; over a WebSocket only, because the others post.
    Ask {
        client: usize,
        room: usize,
    },
    Publish {
        room: usize,
        count: usize,
        fate: Fate,
    },
    Deliver {
        count: usize,
    },
    Head {
        room: usize,
    },
    Forget {
        room: usize,
        keeps: u64,
    },
    NewEpoch {
        room: usize,
    },
    Crowd {
        room: usize,
        count: u8,
        is_present: bool,
    },
    LosePresence {
        keeps: usize,
    },
    Look(Pick),
    Reply(Pick),
    Fail(Pick, BrokerError),
    StopReading {
        client: usize,
    },
    ReadOn {
        client: usize,
    },
    Reconnect {
        client: usize,
    },
    Wait {
        ms: u64,
    },
}

fn happenings() -> impl Strategy<Value = Vec<(Happening, bool)>> {
    let since = prop_oneof![
        6 => Just(Since::Nothing),
        3 => Just(Since::Own),
        2 => (0u64..6).prop_map(Since::Before),
        1 => Just(Since::Ahead),
        1 => Just(Since::AnotherEpoch),
    ];
    let fate = prop_oneof![3 => Just(Fate::Arrives), 2 => Just(Fate::Waits), 1 => Just(Fate::IsLost)];
    let pick = || prop_oneof![Just(Pick::Oldest), Just(Pick::Newest), (0usize..8).prop_map(Pick::Any)];
    let why = prop_oneof![
        4 => Just(BrokerError::Unavailable),
        1 => Just(BrokerError::Overloaded),
        1 => Just(BrokerError::Protocol("malformed".to_owned())),
    ];
    let (client, room) = (|| 0..CLIENTS, || 0..ROOMS);
    let join = (client(), room(), any::<bool>(), prop_oneof![2 => Just(0u64), 1 => 1u64..6], since);
    let crowd = (room(), prop_oneof![8 => Just(1u8), 1 => Just(CROWD)], any::<bool>());
    let one = prop_oneof![
        12 => join.prop_map(|(client, room, presence, history, since)| {
            Happening::Join { client, room, presence, history, since }
        }),
        2 => (client(), room()).prop_map(|(client, room)| Happening::Leave { client, room }),
        3 => (client(), room()).prop_map(|(client, room)| Happening::Ask { client, room }),
        10 => (room(), 1usize..5, fate).prop_map(|(room, count, fate)| Happening::Publish { room, count, fate }),
        3 => (1usize..4).prop_map(|count| Happening::Deliver { count }),
        1 => room().prop_map(|room| Happening::Head { room }),
        1 => (room(), 0u64..3).prop_map(|(room, keeps)| Happening::Forget { room, keeps }),
        1 => room().prop_map(|room| Happening::NewEpoch { room }),
        2 => crowd.prop_map(|(room, count, is_present)| Happening::Crowd { room, count, is_present }),
        1 => (0usize..2).prop_map(|keeps| Happening::LosePresence { keeps }),
        4 => pick().prop_map(Happening::Look),
        12 => pick().prop_map(Happening::Reply),
        2 => (pick(), why).prop_map(|(pick, why)| Happening::Fail(pick, why)),
        2 => client().prop_map(|client| Happening::StopReading { client }),
        2 => client().prop_map(|client| Happening::ReadOn { client }),
        1 => client().prop_map(|client| Happening::Reconnect { client }),
        2 => prop_oneof![Just(25u64), Just(150)].prop_map(|ms| Happening::Wait { ms }),
    ];
    // Whether the shard gets a turn before the next thing happens.
    proptest::collection::vec((one, prop::bool::weighted(0.8)), 0..80)
}

struct World {
    rooms: Vec<Room>,
    broker: Arc<ScriptedBroker>,
    shard: Rc<Shard>,
    clients: Vec<Client>,
}

impl World {
    fn new(metrics: &Arc<Metrics>) -> Self {
        let rooms: Vec<Room> = ["a", "b"].iter().map(|name| Room::parse(name).unwrap()).collect();
        let mut config = Config::built_in();
        config.limits.outbox_messages = OUTBOX_MESSAGES;
        let inbox = Arc::new(Inbox::new(Arc::clone(metrics)));
        let broker = Arc::new(ScriptedBroker::new(Arc::clone(&inbox), &rooms));
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let drain = Arc::new(Drain::new(Arc::clone(metrics)));
        let node = app::node(&config, Arc::clone(&broker) as _, listen, drain, vec![Arc::clone(&inbox)]);
        let shard = Shard::new(Arc::new(node), SubscriberId(0), inbox, Arc::default());
        spawn_local(Rc::clone(&shard).run());
        let clients = (0..CLIENTS).map(|number| Client::connect(number, &shard, &rooms)).collect();
        Self { rooms, broker, shard, clients }
    }

    fn happen(&mut self, happening: Happening) {
        let Self { rooms, broker, shard, clients } = self;
        match happening {
            Happening::Join { client, room, presence, history, since } => {
                let head = broker.head(&rooms[room]);
                let at = |offset| Some(Cursor::new(head.epoch, Offset(offset)));
                let since = match since {
                    Since::Nothing => None,
                    Since::Own => clients[client].at(room),
                    Since::Before(count) => at(head.offset.0.saturating_sub(count)),
                    Since::Ahead => at(head.offset.0 + 2),
                    Since::AnotherEpoch => Some(Cursor::new(Epoch::from_bytes(*b"another-").unwrap(), Offset(3))),
                };
                let is_past = since.is_some_and(|since| broker.has_reached(&rooms[room], since));
                clients[client].join(shard, room, &rooms[room], Wish { presence, history, since, is_past });
            }
            Happening::Leave { client, room } => clients[client].leave(shard, room, &rooms[room]),
            Happening::Ask { client, room } => clients[client].ask(shard, &rooms[room]),
            Happening::Publish { room, count, fate } => {
                (0..count).for_each(|_| broker.publish_elsewhere(&rooms[room], fate));
            }
            Happening::Deliver { count } => broker.deliver(count),
            Happening::Head { room } => broker.tell_head(&rooms[room]),
            Happening::Forget { room, keeps } => broker.forget(&rooms[room], keeps),
            Happening::NewEpoch { room } => broker.begin_epoch(&rooms[room]),
            Happening::Crowd { room, count, is_present } => broker.crowd(&rooms[room], count, is_present),
            Happening::LosePresence { keeps } => broker.lose_presence(keeps),
            Happening::Look(pick) => broker.look(pick),
            Happening::Reply(pick) => drop(broker.reply(pick, None)),
            Happening::Fail(pick, why) => drop(broker.reply(pick, Some(why))),
            Happening::StopReading { client } => clients[client].reads = false,
            Happening::ReadOn { client } => clients[client].reads = true,
            Happening::Reconnect { client } => clients[client].reconnect(shard, rooms),
            Happening::Wait { .. } => {}
        }
    }

    /// Lets the shard do all that it can, and the clients read it, until nothing more comes.
    async fn settle(&mut self, time: Duration) {
        sleep(time).await;
        let Self { rooms, broker, shard, clients } = self;
        loop {
            let mut is_quiet = true;
            for client in clients.iter_mut().filter(|client| client.reads) {
                match client.read(broker, rooms) {
                    Heard::Nothing => continue,
                    Heard::Something => {}
                    Heard::End => client.reconnect(shard, rooms),
                }
                is_quiet = false;
            }
            if is_quiet {
                return;
            }
            sleep(TURN).await;
        }
    }

    /// Everything arrives and is answered: all clients come to have what they should.
    async fn end(&mut self) {
        self.clients.iter_mut().for_each(|client| client.reads = true);
        let mut lacking = Vec::new();
        for _ in 0..ROUNDS {
            self.broker.deliver(usize::MAX);
            self.rooms.iter().for_each(|room| self.broker.tell_head(room));
            let mut is_quiet = true;
            while self.broker.reply(Pick::Oldest, None) {
                is_quiet = false;
            }
            self.settle(ROUND).await;
            lacking = self.clients.iter().filter_map(|client| client.is_lacking(&self.broker, &self.rooms)).collect();
            if lacking.is_empty() && is_quiet {
                return;
            }
        }
        panic!("after {ROUNDS} rounds the broker is still asked, or something is lacking: {}", lacking.join("\n"));
    }
}

/// The same for all sequences: to make them takes longer than most sequences do.
fn metrics() -> &'static Arc<Metrics> {
    static METRICS: OnceLock<Arc<Metrics>> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::new("model"))
}

/// Plays a sequence to its end. Each happening has with it whether the shard gets a turn before the next one.
fn play(happenings: Vec<(Happening, bool)>) {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let mut world = World::new(metrics());
        for (happening, takes_turn) in happenings {
            let time = if let Happening::Wait { ms } = happening { Duration::from_millis(ms) } else { TURN };
            world.happen(happening);
            if takes_turn {
                world.settle(time).await;
            }
        }
        world.end().await;
    });
}

proptest! {
    // The other generator takes half of the time, in a build that is not optimized.
    #![proptest_config(ProptestConfig { cases: 1000, rng_algorithm: RngAlgorithm::XorShift, ..ProptestConfig::default() })]
    #[test]
    fn clients_see_everything_once_in_order_or_are_told_however_joins_and_reads_overtake_each_other(
        happenings in happenings(),
    ) {
        play(happenings);
    }
}

/// A join of the first client into the first room.
fn join(presence: bool, history: u64) -> Happening {
    Happening::Join { client: 0, room: 0, presence, history, since: Since::Nothing }
}

/// Plays a sequence in which the shard gets a turn after each happening.
fn play_in_turns<const COUNT: usize>(happenings: [Happening; COUNT]) {
    play(happenings.map(|happening| (happening, true)).into());
}

#[test]
fn a_join_whose_listing_failed_after_another_join_had_overtaken_it_got_no_answer() {
    let subscribed = Happening::Reply(Pick::Oldest);
    let entered = Happening::Reply(Pick::Oldest);
    let listing_fails = Happening::Fail(Pick::Oldest, BrokerError::Unavailable);
    play_in_turns([join(true, 0), subscribed, entered, join(false, 0), listing_fails]);
}

#[test]
fn a_join_that_had_been_answered_was_answered_again_when_another_join_overtook_it() {
    let subscribed = Happening::Reply(Pick::Oldest);
    let published = Happening::Publish { room: 0, count: 2, fate: Fate::Waits };
    // The page is ahead of the live messages, so the first join is answered and waits for them.
    let page = Happening::Reply(Pick::Oldest);
    play_in_turns([join(false, 1), subscribed, published, page, join(false, 0), Happening::Wait { ms: 25 }]);
}

#[test]
fn a_presence_event_that_was_lost_between_a_list_and_the_next_event_went_unnoticed() {
    let replies = || Happening::Reply(Pick::Oldest);
    let listed = Happening::Look(Pick::Oldest);
    let another_enters = Happening::Crowd { room: 0, count: 1, is_present: true };
    let lost = Happening::LosePresence { keeps: 0 };
    play_in_turns([join(true, 0), replies(), replies(), listed, another_enters, lost]);
}

#[test]
fn a_member_list_that_was_ahead_of_the_events_hid_the_loss_of_one_from_the_other_members() {
    let replies = || Happening::Reply(Pick::Oldest);
    let joins = Happening::Join { client: 1, room: 0, presence: true, history: 0, since: Since::Nothing };
    let lost = Happening::LosePresence { keeps: 0 };
    play_in_turns([join(true, 0), replies(), replies(), replies(), joins, lost, replies(), replies()]);
}

#[test]
fn an_answer_with_members_that_was_older_than_a_join_s_list_came_after_it() {
    let ask = Happening::Ask { client: 0, room: 0 };
    let looked = Happening::Look(Pick::Oldest);
    // The join is subscribed, enters and lists the members before the answer comes.
    let replies = || Happening::Reply(Pick::Newest);
    play_in_turns([ask, looked, join(true, 0), replies(), replies(), replies(), Happening::Reply(Pick::Oldest)]);
}
