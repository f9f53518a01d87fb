// Free ports for servers that cannot be told "port 0": Redis and nginx. Called by gateway.mjs and cluster.mjs.

import { createServer } from "node:net";

// Linux takes the ports of outgoing connections from 32768 upward, so none of these is taken by a client meanwhile.
const FIRST = 20_000;
const COUNT = 12_000;

let taken = 0;

/** A port on 127.0.0.1 on which no server listens now, and which this process has not handed out before. */
export async function freePort() {
  while (taken < COUNT) {
    // Test processes that run side by side begin at different ports.
    const port = FIRST + ((process.pid * 97 + taken++) % COUNT), server = createServer();
    const free = await new Promise((resolve) => server.once("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true)));
    if (!free) continue;
    await new Promise((resolve) => server.close(resolve));
    return port;
  }
  throw new Error(`no free port between ${FIRST} and ${FIRST + COUNT}`);
}
