// What the types of the client allow and what they refuse. package.test.mjs compiles this file; it is never run.

import { connect, eventStream, type Client, type FanfareError, type Message, type Room } from "../../gateway/assets/client/client.js";

const f: Client = connect("https://rt.example.com", { token: async () => "jwt", transports: ["sse", "poll"], WebSocket: null });
connect();
connect(undefined, { token: "jwt", WebSocket, open_ms: 1000, climb_ms: 1000 });
// @ts-expect-error there is no such transport
connect(undefined, { transports: ["carrier pigeon"] });

f.on("open", ({ session, transport }) => [session?.length, transport === "ws"]);
f.on("close", ({ reconnect, after_ms }) => reconnect && after_ms?.toFixed());
const off: () => void = f.on("transport", (name) => name === "poll");
off();
// @ts-expect-error there is no such event
f.on("opened", () => {});
// @ts-expect-error it is not to be written
f.session = "x";

type Chat = { name: string; text: string };
const room = f.join<Chat>("chat:1", { history: 50, presence: true, echo: false, since: "Xk2p9QaB.4" });
room.on("message", ({ data, cursor, from, ts }: Message<Chat>) => [data.text, cursor?.length, from?.user, ts.toFixed()]);
room.on("message", ({ data }) => data.text.length);
// @ts-expect-error a Chat has no age
room.on("message", ({ data }) => data.age);
const same: Room<Chat> = room, untyped: Room = f.join("chat:2");
untyped.on("message", ({ data }) => data.whatever);
// @ts-expect-error a Room<Chat> is not a Room<number>
const other: Room<number> = f.join<Chat>("chat:1");
room.on("gap", ({ missed, from, to }) => [missed?.toFixed(), from, to]);
room.on("members", (members) => members.map(({ user, sessions, info }) => [user, sessions, info]));
room.on("member_left", ({ member }) => member.user);
room.on("left", ({ reason }) => reason === "kicked");
room.on("error", ({ code, retryable }: FanfareError) => [code, retryable]);
room.publish({ name: "n", text: "t" }, { event: "said", key: "k" }).then(({ cursor }) => cursor);
// @ts-expect-error a Chat has a text
room.publish({ name: "n" });
room.presence().then(({ count, members }) => [count, members]);
room.history({ limit: 10 }).then(({ messages, cursor, gap }) => [messages[0]?.data.text, cursor, gap?.missed]);
room.leave();
f.close();
eventStream((data, type, id) => [data, type, id], (ms) => ms)("data:x\n\n");
