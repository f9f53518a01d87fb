// The list of members: a long one comes in portions, and a client that stops polling is off the list at once.

import assert from "node:assert/strict";
import { test } from "node:test";
import { WebSocket, client, listen } from "./harness/client.mjs";
import { gateway } from "./harness/gateway.mjs";
import { patient, until } from "./harness/wait.mjs";

const CROWD = 300; // far more than fit into one frame

for (const transport of ["ws", "sse"]) test(`a long list of members comes whole over ${transport}`, { timeout: patient(60_000) }, async (t) => {
  const node = await gateway(t), lists = [];
  for (let n = 0; n < CROWD; n++) {
    const socket = new WebSocket(`${node.url.replace("http", "ws")}/ws?room=a`);
    t.after(() => socket.terminate());
    await new Promise((resolve) => socket.once("message", resolve));
  }
  const { room, joined } = listen(client(t, node.url, { transports: [transport] }), "a", { presence: true });
  room.on("members", (members) => lists.push(members.length));
  await until(() => room.members.length === CROWD + 1, "every member");
  assert.equal(joined.length, 1);
  assert.ok(Math.min(...lists) >= CROWD, `part of a list: ${lists}`);
  const { count, members } = await room.presence();
  assert.deepEqual([count, members.length], [CROWD + 1, CROWD + 1]);
});

test("a client that polls is off the list when it leaves the room or closes", { timeout: patient(60_000) }, async (t) => {
  const node = await gateway(t), watcher = listen(client(t, node.url), "a", { presence: true }), gone = [], came = [];
  watcher.room.on("member_left", ({ member }) => gone.push(member.user));
  watcher.room.on("member_joined", ({ member }) => came.push(member.user));
  await until(() => watcher.joined.length, "joined");
  const polls = async () => {
    const f = client(t, node.url, { transports: ["poll"] }), { room } = listen(f, "a"), before = came.length;
    await until(() => came.length > before, "a member that polls");
    return { f, room };
  };
  (await polls()).room.leave();
  await until(() => gone.length === 1, "the one that left");
  (await polls()).f.close();
  await until(() => gone.length === 2, "the one that closed");
});
