// The client under test in Node, with the WebSocket of the `ws` package, and a record of the events of a room.

import { WebSocket } from "ws";
import { connect } from "../../../gateway/assets/client/client.js";

export { WebSocket };

/** A client, which is closed when the test ends. */
export function client(t, url, options) {
  const f = connect(url, { WebSocket, ...options });
  t.after(() => f.close());
  return f;
}

/** Joins a room and records its events; of messages also the data alone. */
export function listen(f, name, options) {
  const room = f.join(name, options);
  const heard = { room, data: [], messages: [], joined: [], gaps: [], errors: [], left: [] };
  room.on("message", (message) => {
    heard.messages.push(message);
    heard.data.push(message.data);
  });
  room.on("joined", (frame) => heard.joined.push(frame));
  room.on("gap", (frame) => heard.gaps.push(frame));
  room.on("error", (error) => heard.errors.push(error));
  room.on("left", (frame) => heard.left.push(frame));
  return heard;
}

/** 1, 2, … n */
export const upTo = (n) => Array.from({ length: n }, (_, i) => i + 1);
