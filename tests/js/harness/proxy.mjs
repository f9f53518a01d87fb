// A proxy between client and gateway that misbehaves as proxies do: it refuses WebSocket upgrades, opens them and carries
// nothing, holds streams back, loses answers, goes silent. Everything else it forwards to the gateway in `self.gateway`.

import { createServer, request } from "node:http";
import { connect } from "node:net";
import { next } from "./wait.mjs";

export async function proxy(t, gateway) {
  const sockets = new Set();
  const self = {
    /** Where requests go; changing it does not move connections that are open. */
    gateway,
    /** "pass", "refuse" (403, as corporate proxies do) or "mute" (it opens, and nothing comes). */
    upgrades: "pass",
    /** "pass", "refuse" or "hold" (nothing comes until the stream ends). */
    streams: "pass",
    /** Nothing passes in either direction, and both sides' connections stay open. */
    frozen: false,
    /** What the gateway sends does not arrive; what the client sends does. */
    deaf: false,
    /** May answer a request in the gateway's stead: (request, response) => true. */
    instead: () => false,
    /** The requests that came: method, path, headers and time, and the head of the answer once it is there. */
    seen: [],
    /** How many of the next connections are broken as soon as they come. */
    blocked: 0,
    /** Breaks every connection. */
    cut() {
      for (const socket of sockets) socket.destroy();
    },
    /** Breaks every connection, and the next `connections` that come: all of them until `open`. */
    block(connections = Infinity) {
      self.blocked = connections;
      self.cut();
    },
    open() { self.blocked = 0; },
    /** Breaks a client's connections until the client has noticed. A cut alone may hit a poller between two polls. */
    async interrupt(client) {
      const closed = next(client, "close");
      self.block();
      await closed;
      self.open();
    },
  };

  const note = ({ method, url, headers }) => {
    const entry = { method, url, headers, at: Date.now() };
    self.seen.push(entry);
    return (status, headers) => (entry.answer = { status, headers, at: Date.now() });
  };
  const target = () => {
    const [host, port] = self.gateway.address.split(":");
    return { host, port: +port };
  };

  const server = createServer((asked, answer) => {
    const answered = note(asked);
    if (self.instead(asked, answer)) return;
    const isStream = /\/sse(\?|$)/.test(asked.url);
    if (isStream && self.streams === "refuse") return answer.writeHead(403).end("no streams here");
    const up = request({ ...target(), method: asked.method, path: asked.url, headers: asked.headers, agent: false }, (from) => {
      const held = isStream && self.streams === "hold";
      answered(from.statusCode, from.headers);
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
    const answered = note(asked);
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
        if (!opened) answered(101, {});
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
    if (self.blocked > 0) {
      self.blocked -= 1;
      socket.destroy();
      return;
    }
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
