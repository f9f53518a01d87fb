// A proxy between client and gateway that misbehaves as proxies do: it refuses WebSocket upgrades, opens them and carries
// nothing, holds streams back, loses answers, goes silent. It forwards everything else to whichever gateway it is told.

import { createServer, request } from "node:http";
import { connect } from "node:net";
import { next } from "./wait.mjs";

export async function proxy(t, gateway) {
  const sockets = new Set();
  const self = {
    /** Where requests go; changing it does not move connections that are open. */
    gateway,
    /** "pass", "refuse" (403, as corporate proxies do) or "mute" (opened, and nothing comes). */
    upgrades: "pass",
    /** "pass", "refuse" or "hold" (nothing comes until the stream ends). */
    streams: "pass",
    /** Nothing passes in either direction, and nobody is told. */
    frozen: false,
    /** What the gateway says does not arrive; what the client says does. */
    deaf: false,
    /** May answer a request in the gateway's place: (request, response) => true. */
    instead: () => false,
    /** The requests that came: method, path, time and headers. */
    seen: [],
    /** Breaks every connection. */
    cut() {
      for (const socket of sockets) socket.destroy();
    },
    /** Breaks every connection, and those that come, until `open`. */
    block() {
      self.blocked = true;
      self.cut();
    },
    open() { self.blocked = false; },
    /** Breaks what a client has until it has noticed. A cut alone may hit a poller between two polls. */
    async interrupt(client) {
      const closed = next(client, "close");
      self.block();
      await closed;
      self.open();
    },
  };

  const note = ({ method, url, headers }) => self.seen.push({ method, url, headers, at: Date.now() });
  const target = () => {
    const [host, port] = self.gateway.address.split(":");
    return { host, port: +port };
  };

  const server = createServer((asked, answer) => {
    note(asked);
    if (self.instead(asked, answer)) return;
    const isStream = /\/sse(\?|$)/.test(asked.url);
    if (isStream && self.streams === "refuse") return answer.writeHead(403).end("no streams here");
    const up = request({ ...target(), method: asked.method, path: asked.url, headers: asked.headers, agent: false }, (from) => {
      const held = isStream && self.streams === "hold";
      if (!held && !self.deaf) {
        answer.writeHead(from.statusCode, from.headers);
        answer.flushHeaders();
      }
      from.on("data", (bytes) => held || self.frozen || self.deaf || answer.write(bytes));
      from.on("end", () => self.frozen || self.deaf || answer.end());
      from.on("error", () => answer.destroy());
    });
    up.on("error", () => answer.destroy());
    answer.on("close", () => up.destroy());
    asked.on("data", (bytes) => self.frozen || up.write(bytes));
    asked.on("end", () => self.frozen || up.end());
  });

  server.on("upgrade", (asked, socket, rest) => {
    note(asked);
    if (self.upgrades === "refuse") return socket.end("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    const up = connect(target());
    let opened = false;
    const head = [`GET ${asked.url} HTTP/1.1`];
    for (let i = 0; i < asked.rawHeaders.length; i += 2) head.push(`${asked.rawHeaders[i]}: ${asked.rawHeaders[i + 1]}`);
    up.write(`${head.join("\r\n")}\r\n\r\n`);
    up.write(rest);
    up.on("data", (bytes) => {
      if (self.frozen || self.deaf) return;
      if (self.upgrades === "mute") {
        // The head of the answer and nothing after it.
        if (!opened) socket.write(bytes.subarray(0, bytes.indexOf("\r\n\r\n") + 4));
        opened = true;
        return;
      }
      socket.write(bytes);
    });
    socket.on("data", (bytes) => self.frozen || up.write(bytes));
    for (const [one, other] of [[socket, up], [up, socket]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => self.frozen || other.destroy());
    }
    sockets.add(up);
    up.on("close", () => sockets.delete(up));
  });

  server.on("connection", (socket) => {
    if (self.blocked) return socket.destroy();
    sockets.add(socket);
    socket.on("error", () => {});
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => {
    self.cut();
    server.close();
  });
  self.url = `http://127.0.0.1:${server.address().port}`;
  return self;
}
