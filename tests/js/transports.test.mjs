// Which transport the client uses: it falls to the next one where the network blocks the best, and climbs back when it no
// longer does. And what the gateway asks of its clients: when to come back, how fast to publish, which token to send.

import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { client, listen, upTo, WebSocket } from "./harness/client.mjs";
import { gateway, redis } from "./harness/gateway.mjs";
import { proxy } from "./harness/proxy.mjs";
import { next, until } from "./harness/wait.mjs";

/** The transports that a client uses, in order. */
function transports(f) {
  const used = [];
  f.on("transport", (name) => used.push(name));
  return used;
}

describe("falling", { concurrency: true }, () => {
  test("a refused WebSocket gives way to server-sent events", async (t) => {
    const node = await gateway(t), front = await proxy(t, node);
    front.upgrades = "refuse";
    const f = client(t, front.url), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    assert.deepEqual([f.transport, f.failed], ["sse", 0], "what fails next has not failed before: it does not wait long");
  });

  test("refused WebSockets and refused streams give way to polling", async (t) => {
    const node = await gateway(t), front = await proxy(t, node);
    Object.assign(front, { upgrades: "refuse", streams: "refuse" });
    const f = client(t, front.url), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    await node.publish("a", 1);
    await until(() => room.data.length, "a message has come");
    assert.equal(f.transport, "poll");
  });

  test("without a WebSocket class the client begins with server-sent events", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url, { WebSocket: null });
    listen(f, "a");
    await until(() => f.transport, "open");
    assert.equal(f.transport, "sse");
    assert.equal(front.seen.some(({ url }) => url.startsWith("/ws")), false);
  });

  test("a WebSocket that has worked does not give way when the gateway restarts", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url), used = transports(f);
    await next(f, "open");
    front.block(1); // one attempt to come back fails, the next one does not
    await next(f, "open");
    assert.deepEqual([used, front.blocked], [["ws"], 0]);
  });

  test("without a room there is no stream, and requests are still answered", async (t) => {
    const node = await gateway(t), f = client(t, node.url, { transports: ["sse"] });
    const room = f.join("a");
    await until(() => f.session, "streaming");
    room.leave();
    const { cursor } = await room.publish("last words");
    assert.match(cursor, /\.1$/);
    const idle = client(t, node.url, { transports: ["sse"] });
    await next(idle, "open");
    const heard = listen(idle, "a", { history: 1 });
    await until(() => heard.data.length, "the first room opens the stream");
    assert.deepEqual([heard.data, typeof idle.session], [["last words"], "string"]);
  });

  test("a room without history is refused while polling, and joined over a stream", async (t) => {
    const node = await gateway(t, { config: '[[rooms]]\nmatch = "typing:*"\nhistory = "off"\n' }), front = await proxy(t, node);
    front.streams = "refuse";
    // What is published while a client climbs is lost in such a room: it climbs once, to the best of its transports.
    const f = client(t, front.url, { transports: ["sse", "poll"], climb_ms: 1 }), room = listen(f, "a"), typing = listen(f, "typing:a");
    await until(() => room.joined.length && typing.errors.length, "joined and refused");
    assert.deepEqual([typing.errors[0].code, typing.errors[0].retryable, f.transport], ["history_off", true, "poll"]);
    front.streams = "pass";
    await until(() => (f.tick(), typing.joined.length), "joined where it can be");
    await node.publish("typing:a", "…");
    await until(() => typing.data.length, "its message has come");
    assert.deepEqual([typing.joined[0].cursor, room.data], [undefined, []]);
  });
});

describe("climbing", { concurrency: true }, () => {
  for (const [from, streams] of [["sse", "pass"], ["poll", "refuse"]]) {
    test(`from ${from} to WebSocket nothing is lost or comes twice`, async (t) => {
      const node = await gateway(t), front = await proxy(t, node);
      Object.assign(front, { upgrades: "refuse", streams });
      const f = client(t, front.url, { climb_ms: 1 }), used = transports(f), a = listen(f, "a"), b = listen(f, "b", { echo: false });
      await until(() => a.joined.length && b.joined.length, "joined");
      Object.assign(front, { upgrades: "pass", streams: "pass" });
      const own = [];
      let n = 0;
      const publish = async () => {
        n += 1;
        if (n % 20 === 1) own.push(b.room.publish("own"));
        await Promise.all([node.publish("a", n), node.publish("b", n)]);
        // A room keeps 100 messages: a publisher that gets further ahead makes a gap, and the machine decides how far it gets.
        await until(() => Math.min(a.data.length, b.data.length) > n - 50, "the client keeps up");
      };
      const climbed = next(f, "transport", (name) => name === "ws");
      let isOver = false;
      climbed.catch(() => {}).finally(() => (isOver = true));
      while (n < 20) await publish();
      for (; !isOver; f.tick()) await publish();
      await climbed;
      for (const end = n + 20; n < end;) await publish();
      await Promise.all(own);
      await node.publish("b", "end");
      await until(() => a.data.length === n && b.data.at(-1) === "end", "all has come");
      assert.deepEqual(a.data, upTo(n));
      assert.deepEqual(b.data, [...upTo(n), "end"]);
      assert.deepEqual([used[0], used.at(-1), a.gaps.length], [from, "ws", 0]);
    });
  }

  test("requests that wait are sent over the new transport, once and in order", async (t) => {
    const node = await gateway(t), front = await proxy(t, node);
    front.upgrades = "refuse";
    const f = client(t, front.url, { climb_ms: 1 }), room = listen(f, "a"), faults = [];
    await until(() => room.joined.length, "joined");
    const record = (fault) => faults.push(fault);
    process.on("unhandledRejection", record);
    t.after(() => process.off("unhandledRejection", record));
    front.instead = ({ url }) => url.startsWith("/v1/sessions/");
    const sent = upTo(5).map((n) => room.room.publish(n));
    front.upgrades = "pass";
    await until(() => (f.tick(), f.transport === "ws"), "it has climbed");
    await Promise.all(sent);
    await until(() => room.data.length === 5, "all has come");
    assert.deepEqual([room.data, faults], [upTo(5), []]);
  });

  test("an attempt to climb that fails leaves the transport in use alone", async (t) => {
    const node = await gateway(t), front = await proxy(t, node);
    front.upgrades = "refuse";
    const f = client(t, front.url, { climb_ms: 1 }), closes = [], room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    f.on("close", (why) => closes.push(why));
    const before = front.seen.filter(({ url }) => url.startsWith("/ws")).length;
    f.tick();
    await until(() => front.seen.filter(({ url }) => url.startsWith("/ws")).length > before, "the client tries WebSocket again");
    await until(() => !f.next, "the attempt has failed");
    await node.publish("a", 1);
    await until(() => room.data.length, "the stream goes on");
    assert.deepEqual([closes, f.transport], [[], "sse"]);
  });
});

describe("what the gateway asks", { concurrency: true }, () => {
  test("a draining node says when to come back, and its rooms go on at another one", async (t) => {
    const broker = await redis(t);
    const [one, two] = await Promise.all([gateway(t, { redis: broker }), gateway(t, { redis: broker })]);
    const front = await proxy(t, one), f = client(t, front.url), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    let hint;
    const { frame } = f.link;
    f.link.frame = function (it) {
      if (it.type === "reconnect") hint = it.after_ms; // a random number from 0 upward
      frame.call(this, it);
    };
    const closed = next(f, "close");
    one.terminate();
    front.gateway = two;
    const { code, after_ms, reconnect } = await closed;
    assert.ok(code === 1012 && reconnect && hint >= 0 && after_ms >= hint, `${code} ${after_ms} ${hint}`);
    await two.publish("a", 1);
    await until(() => room.data.length, "it goes on");
  });

  test("a stream that cannot be served now is requested again when the server says", async (t) => {
    const broker = await redis(t), node = await gateway(t, { redis: broker }), front = await proxy(t, node);
    broker.pause();
    await until(async () => (await fetch(`${node.admin}/readyz`).then((answer) => answer.text())).includes("down"), "the gateway has noticed", 20_000);
    const f = client(t, front.url, { transports: ["sse", "poll"] }), { ended } = f, waits = [];
    f.ended = function (link, why) {
      waits.push(why.after);
      ended.call(f, link, why);
    };
    listen(f, "a");
    await until(() => waits.length, "an attempt has ended");
    assert.ok(waits[0] >= 2000 && waits[0] < 15_000, `${waits[0]} ms`);
    assert.equal(f.level, 0, "the transport is not at fault");
    broker.go();
  });

  test("a poll that is answered 503 is repeated after Retry-After", async (t) => {
    const broker = await redis(t), node = await gateway(t, { redis: broker }), front = await proxy(t, node);
    const f = client(t, front.url, { transports: ["poll"] }), room = listen(f, "a");
    await until(() => room.joined.length, "joined");
    broker.pause();
    const { code, after_ms } = await next(f, "close", undefined, 20_000);
    broker.go();
    const asked = front.seen.findLastIndex(({ answer }) => answer?.status === 503), { answer } = front.seen[asked];
    const wait = 1000 * answer.headers["retry-after"];
    assert.ok(code === 503 && wait >= 1000 && after_ms >= wait, `${code} ${after_ms} ${wait}`);
    await until(() => front.seen.length > asked + 1, "it polls again");
    // From the answer to the next poll: 5 ms for two clocks that count whole milliseconds.
    const waited = front.seen[asked + 1].at - answer.at;
    assert.ok(waited >= wait - 5, `${waited} of ${wait} ms`);
    await until(() => node.publish("a", 1), "the backplane is back");
    await until(() => room.data.length, "the room goes on");
  });

  for (const transport of ["ws", "sse"]) {
    test(`over ${transport} a kicked user does not come back`, async (t) => {
      const node = await gateway(t), f = client(t, node.url, { transports: [transport] }), room = listen(f, "a");
      await until(() => room.joined.length, "joined");
      const closed = next(f, "close");
      await node.remove(`/v1/users/${f.session}`);
      const { code, reconnect } = await closed;
      assert.deepEqual([code, reconnect, f.transport], [4403, false, undefined]);
      await assert.rejects(room.room.publish(1), { code: "closed" });
    });

    test(`over ${transport} a member kicked from a room stays in the others`, async (t) => {
      const node = await gateway(t), f = client(t, node.url, { transports: [transport] }), a = listen(f, "a"), b = listen(f, "b");
      await until(() => a.joined.length && b.joined.length, "joined");
      await node.remove(`/v1/rooms/a/members/${f.session}`);
      await until(() => a.left.length, "it has left");
      await node.publish("a", 1);
      await node.publish("b", 1);
      await until(() => b.data.length, "the other goes on");
      assert.deepEqual([a.left[0].reason, a.data], ["kicked", []]);
    });
  }

  test("publishes beyond the rate are slowed down, and end no session", async (t) => {
    // Far below what any machine publishes, so that the limit is reached.
    const node = await gateway(t, { config: "[limits]\npublishes_per_second = 20\n" }), f = client(t, node.url), room = listen(f, "a"), closes = [];
    f.on("close", (why) => closes.push(why));
    await until(() => room.joined.length, "joined");
    await Promise.all(upTo(100).map((n) => room.room.publish(n)));
    await until(() => room.data.length === 100, "all have come");
    assert.deepEqual([room.data.sort((x, y) => x - y), closes, f.pace > 0], [upTo(100), [], true]);
  });

  test("a full queue, a too large message and a closed client reject with a code", async (t) => {
    const node = await gateway(t), front = await proxy(t, node);
    front.block();
    const f = client(t, front.url), room = listen(f, "a");
    const waiting = upTo(500).map((n) => room.room.publish(n).catch((error) => error.code));
    await assert.rejects(room.room.publish(501), { code: "queue_full" });
    f.close();
    assert.deepEqual(new Set(await Promise.all(waiting)), new Set(["closed"]));
    const other = client(t, node.url), large = listen(other, "a");
    await assert.rejects(large.room.publish("x".repeat(80_000)), { code: "message_too_large" });
    await assert.rejects(large.room.publish("x".repeat(65_600)), { code: "message_too_large" });
    await assert.rejects(large.room.publish(1, { event: "x".repeat(65) }), { code: "bad_request" });
    assert.ok((await large.room.publish("é".repeat(30_000))).cursor);
    await large.room.publish();
    await until(() => large.data.at(-1) === null, "nothing is published as null");
    assert.equal(other.transport, "ws");
  });

  test("later URLs carry the route of the welcome, and keep the path of the base URL", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), f = client(t, front.url.replace("http", "ws"));
    await next(f, "open");
    assert.match(f.route, /^[0-9a-f]{32}$/);
    front.cut();
    await next(f, "open");
    assert.equal(front.seen.at(-1).url, `/ws?n=${f.route}`);
    const nested = client(t, `${front.url}/live`, { transports: ["ws"] });
    await until(() => front.seen.at(-1).url.startsWith("/live/ws"), "the request is below the path");
    nested.close();
  });

  test("a room is joined with its options, later from its cursor without own messages", async (t) => {
    const node = await gateway(t), front = await proxy(t, node), sent = [];
    class Heard extends WebSocket {
      send(text) {
        sent.push(JSON.parse(text));
        super.send(text);
      }
    }
    const f = client(t, front.url, { WebSocket: Heard }), room = listen(f, "a", { history: 5, presence: true, echo: false });
    await until(() => room.joined.length === 1, "joined");
    const { session } = f;
    await node.publish("a", 1);
    await until(() => room.data.length, "a message has come");
    front.cut();
    await until(() => room.joined.length === 2, "joined again");
    const [first, again] = sent.filter(({ type }) => type === "join").map(({ id, ...join }) => join);
    const wishes = { type: "join", room: "a", presence: true, echo: false };
    assert.deepEqual([first, again], [
      { ...wishes, history: 5, exclude: [] },
      { ...wishes, since: room.messages[0].cursor, exclude: [session] },
    ]);
  });

  test("over ws a token is sent as a subprotocol, and a refused one is replaced once", async (t) => {
    const node = await gateway(t), asked = [], made = [];
    // Its first connection is refused, as by a gateway that finds the token expired.
    class Expired extends WebSocket {
      constructor(url, protocols) {
        super(url, protocols);
        made.push(protocols);
        if (made.length === 1) queueMicrotask(() => this.onclose({ code: 4401, reason: "token" }));
      }
    }
    const f = client(t, node.url, { WebSocket: Expired, token: async () => `t${asked.push(1)}` });
    await next(f, "open");
    assert.deepEqual(made, [["fanfare.v1", "token.t1"], ["fanfare.v1", "token.t2"]]);
    class Never extends Expired {
      constructor(url, protocols) {
        super(url, protocols);
        queueMicrotask(() => this.onclose({ code: 4401, reason: "token" }));
      }
    }
    const refused = client(t, node.url, { WebSocket: Never, token: async () => "bad" });
    assert.deepEqual(await next(refused, "close"), { code: 4401, reason: "token", reconnect: false });
  });

  for (const transport of ["sse", "poll"]) {
    test(`over ${transport} a token is sent in a header, and a refused one is replaced once`, async (t) => {
      const node = await gateway(t), front = await proxy(t, node);
      let good = "t2", asked = 0;
      front.instead = ({ headers }, answer) => headers.authorization !== `Bearer ${good}` && !!answer.writeHead(401).end("{}");
      const f = client(t, front.url, { transports: [transport], token: async () => `t${++asked}` }), room = listen(f, "a");
      await until(() => room.joined.length, "joined");
      assert.equal(asked, 2);
      good = "none";
      front.cut();
      const { code, reconnect } = await next(f, "close", ({ reconnect }) => !reconnect);
      assert.deepEqual([code, reconnect, asked], [401, false, 3]);
    });
  }

  test("a new token is fetched before the old one expires, and sent to the gateway", async (t) => {
    const node = await gateway(t), asked = [];
    const jwt = (exp) => `e30.${Buffer.from(JSON.stringify({ sub: "ü?>", exp: exp / 1000 })).toString("base64url")}.x`;
    let made;
    const token = async () => {
      made = Date.now();
      return jwt(made + asked.push(1) * 100_000);
    };
    // Four fifths of the time between now, which lies somewhere between the token's making and this check, and `exp`.
    const isPlanned = (seconds) => {
      const after = (now) => now + 0.8 * (made + seconds * 1000 - now);
      assert.ok(f.renewAt >= after(made) - 1 && f.renewAt <= after(Date.now()) + 1, `${f.renewAt - made} ms`);
    };
    const f = client(t, node.url, { token }), errors = [];
    f.on("error", (error) => errors.push(error));
    await next(f, "open");
    isPlanned(100);
    f.renewAt = Date.now() - 1;
    f.tick();
    // This version of the gateway takes no tokens and answers an error: it shows that `auth` was sent.
    await until(() => errors.some(({ code }) => code === "unauthorized"), "auth was sent");
    assert.equal(asked.length, 2);
    isPlanned(200);
  });

  test("a token with dots that is not a JWT is used as it is and not renewed", async (t) => {
    const node = await gateway(t), base64 = (text) => Buffer.from(text).toString("base64url");
    for (const token of ["abc.def.ghi", "v4.local.AAAA", "a..b", `x.${base64("null")}.y`, `x.${base64('{"exp":"soon"}')}.y`]) {
      const made = [], errors = [];
      class Recorded extends WebSocket {
        constructor(url, protocols) {
          super(url, protocols);
          made.push(protocols);
        }
      }
      const f = client(t, node.url, { WebSocket: Recorded, token: async () => token });
      f.on("error", (error) => errors.push(error));
      await next(f, "open");
      f.tick();
      assert.deepEqual([made, errors, f.transport], [[["fanfare.v1", `token.${token}`]], [], "ws"]);
      f.close();
    }
  });

  test("a token function that fails is an error, and is called again", async (t) => {
    const node = await gateway(t), errors = [];
    let asked = 0;
    const f = client(t, node.url, { token: async () => { if (++asked < 3) throw new Error("no token today"); return "t"; } });
    f.on("error", (error) => errors.push(error.message));
    await next(f, "open");
    assert.deepEqual([errors, f.transport], [["no token today", "no token today"], "ws"]);
  });
});
