//! Measures the data path without sockets: `cargo bench -p fanfare --bench data_path`. The table says what one element
//! is; `elem/s` is how many of them one core does in a second. Writes to sockets are not in here; `tests/bench`
//! measures them.
//!
//! | group | one element |
//! |---|---|
//! | `fan-out/delivery` | one message in one member's outbox: inbox, feed, batch, hand-out |
//! | `decode/command` | one client frame read |
//! | `encode/message` | one message laid out, text and WebSocket header; once per room, not per member |
//! | `encode/frame` | one WebSocket header put before a text, and the text copied |
//! | `outbox/frame` | one frame through an outbox whose socket takes everything at once, or in parts, or nothing |

use bytes::BytesMut;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use fanfare_broker::Room;
use fanfare_gateway::bench::{self, BenchOutbox};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Bytes of a message: the size of a chat message, which is also the load tool's default.
const DATA_BYTES: usize = 128;

fn data(bytes: usize) -> String {
    format!("\"{}\"", "x".repeat(bytes - 2))
}

fn fan_out(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fan-out/delivery");
    let data = data(DATA_BYTES);
    for (rooms, members, messages) in [(1, 1, 1), (1, 1_000, 1), (1, 10_000, 1), (500, 10, 1), (1, 1_000, 16)] {
        let deliveries = rooms * members * messages;
        group.throughput(Throughput::Elements(deliveries as u64));
        let name = format!("{rooms} rooms of {members}, {messages} messages a pass");
        let (shard, _runtime) = bench::fan_out(rooms, members as u32).expect("the loopback gives a socket");
        let mut offset = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|passes| {
                let mut spent = Duration::ZERO;
                for _ in 0..passes {
                    for _ in 0..messages {
                        offset += 1;
                        shard.publish(&bench::publication(&data, offset));
                    }
                    let began = Instant::now();
                    shard.pass();
                    spent += began.elapsed();
                    let bytes = shard.discard();
                    assert!(bytes > deliveries * DATA_BYTES, "{bytes} bytes for {deliveries} deliveries");
                }
                spent
            });
        });
    }
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode/command");
    group.throughput(Throughput::Elements(1));
    let publish = |bytes| format!(r#"{{"type":"publish","id":7,"room":"chat:1","data":{}}}"#, data(bytes));
    for (name, text) in [
        ("ping", r#"{"type":"ping"}"#.to_owned()),
        ("join", r#"{"type":"join","id":7,"room":"chat:1","since":"Xk2p9QaB.42","presence":true}"#.to_owned()),
        ("publish of 128 B", publish(DATA_BYTES)),
        ("publish of 4 KiB", publish(4096)),
    ] {
        assert!(bench::decode(&text), "{text}");
        group.bench_function(name, |bencher| bencher.iter(|| bench::decode(black_box(&text))));
    }
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode/message");
    group.throughput(Throughput::Elements(1));
    let room = Room::parse("chat:1").expect("the name is good");
    let mut out = BytesMut::with_capacity(8192);
    for (name, bytes) in [("128 B", DATA_BYTES), ("4 KiB", 4096)] {
        let publication = bench::publication(&data(bytes), 123_456);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                out.clear();
                bench::encode(black_box(&room), black_box(&publication), &mut out);
                black_box(&out);
            });
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("encode/frame");
    group.throughput(Throughput::Elements(1));
    for bytes in [2, DATA_BYTES, 4096] {
        let text = data(bytes);
        group.bench_function(BenchmarkId::from_parameter(format!("{bytes} B")), |bencher| {
            bencher.iter(|| {
                out.clear();
                bench::frame(black_box(text.as_bytes()), &mut out);
                black_box(&out);
            });
        });
    }
}

fn outbox(criterion: &mut Criterion) {
    const FRAMES: usize = 16;
    let mut group = criterion.benchmark_group("outbox/frame");
    /// Of a client that has taken nothing for a while, so that the outbox refuses more than it may hold.
    const LATE_MS: u32 = 3_000;
    let frame = [b'x'; DATA_BYTES];
    let room_enough = FRAMES * DATA_BYTES;
    let fill = |queue: &mut BenchOutbox, frames| (0..frames).filter(|_| queue.push(black_box(0))).count();
    group.throughput(Throughput::Elements(1));
    group.bench_function("1 frame, 1 write", |bencher| {
        let mut queue = BenchOutbox::new(room_enough, &frame);
        bencher.iter(|| {
            fill(&mut queue, 1);
            queue.write(DATA_BYTES);
        });
    });
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function("16 frames, 1 write", |bencher| {
        let mut queue = BenchOutbox::new(room_enough, &frame);
        bencher.iter(|| {
            fill(&mut queue, FRAMES);
            queue.write(room_enough);
        });
    });
    group.bench_function("16 frames, 32 writes of half a frame", |bencher| {
        let mut queue = BenchOutbox::new(room_enough, &frame);
        bencher.iter(|| {
            fill(&mut queue, FRAMES);
            (0..2 * FRAMES).for_each(|_| queue.write(DATA_BYTES / 2));
        });
    });
    group.bench_function("16 frames refused by a full one", |bencher| {
        let full = || {
            let mut queue = BenchOutbox::new(room_enough, &frame);
            assert_eq!(fill(&mut queue, FRAMES), FRAMES);
            queue
        };
        let refused = |queue: &mut BenchOutbox| (0..FRAMES).filter(|_| !queue.push(black_box(LATE_MS))).count();
        bencher.iter_batched_ref(full, refused, BatchSize::SmallInput);
    });
}

fn main() {
    // Short runs: they are to show a slow-down by half, not by a hundredth.
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    fan_out(&mut criterion);
    decode(&mut criterion);
    encode(&mut criterion);
    outbox(&mut criterion);
    criterion.final_summary();
}
