// The types of client.js, and the reference of what it does. The protocol is described in docs/protocol.md.

/** How messages travel: WebSocket, server-sent events over `fetch`, long polling. */
export type Transport = "ws" | "sse" | "poll";

/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/**
 * Opens a client. It connects at once, reconnects by itself whenever the connection is lost, and goes on until
 * {@link Client.close} or until the gateway refuses it for good (a `close` event with `reconnect: false`).
 *
 * @param url The gateway: `http(s)://` or `ws(s)://`, with the path if the gateway is served below one. Default: the page's
 * own origin; without a page the origin that this module was loaded from.
 * @throws An error with the code `no_transport` if this environment has none of the wanted transports.
 */
export function connect(url?: string | URL, options?: ConnectOptions): Client;

export interface ConnectOptions {
  /**
   * The token, or a function that returns one. The function is called when the first connection opens, again when four
   * fifths of the token's time are over (if it is a JWT with an `exp`), and once when the gateway refuses the token (4401,
   * HTTP 401). A new token is sent to the gateway without a reconnect. When the function fails the client emits an `error`
   * event and calls it again. This version of the gateway does not check tokens.
   */
  token?: string | (() => string | Promise<string>);
  /** The transports that may be used, the best first. Default: `["ws", "sse", "poll"]`. */
  transports?: Transport[];
  /** The WebSocket class. Default: the global one, which Node has from version 22; `null`: do not use WebSocket. */
  WebSocket?: WebSocketClass | null;
  /** How long a transport may take until its `welcome`, in milliseconds; then the next one is tried. Default: 8000. */
  open_ms?: number;
  /** How long it takes on average until a better transport is tried in the background, in milliseconds. Default: 60000. */
  climb_ms?: number;
}

/** A WebSocket class: the browser's, Node's, or the one of the `ws` package. */
export type WebSocketClass = new (url: string, protocols?: string[]) => any;

/** A session with a gateway, over the best transport that works, and its rooms. */
export interface Client {
  /** The public id of the session, as in {@link Message.from}; `undefined` while not connected, and while polling. */
  readonly session?: string;
  /** The name of the node that holds the session. */
  readonly node?: string;
  /** The transport in use; `undefined` while not connected. */
  readonly transport?: Transport;

  /**
   * Joins a room, now or as soon as there is a connection, and again after every reconnect: each time after the last message
   * that arrived. Joining a room that is already joined returns the same object, with the options changed.
   *
   * The joins of thousands of rooms are sent no faster than the gateway takes them. A room that cannot be joined emits an
   * `error`: `room_invalid` (a name is 1 to 255 bytes of visible ASCII without `{ } " \`, and does not begin with `$`),
   * `room_limit` (a session is in as many rooms as it may be), or the gateway's code.
   *
   * @throws TypeError if the options cannot be written as JSON.
   * @typeParam T The type of the messages' `data`. The client does not check it.
   */
  join<T = any>(room: string, options?: JoinOptions): Room<T>;

  /** Closes the client for good. Requests without an answer are rejected with `closed`. */
  close(): void;

  /** Calls `listener` for each event of a type, in a microtask. Returns a function that removes the listener. */
  on<T extends keyof ClientEvents>(type: T, listener: (event: ClientEvents[T]) => void): () => void;
}

export interface ClientEvents {
  /** The client is connected: for the first time, again, or over a better transport. */
  open: { session?: string; transport: Transport };
  /** The connection is lost. With `reconnect` the next attempt follows after `after_ms`. */
  close: { code?: number; reason?: string; reconnect: boolean; after_ms?: number };
  /** The transport in use has changed to this one. */
  transport: Transport;
  /** A refusal that concerns no single room, or a failed token function. The client tries again by itself where that helps. */
  error: FanfareError | Error;
}

export interface JoinOptions {
  /** Begin with this many of the last messages, at most 300. For the first join only: later joins resume. */
  history?: number;
  /** Begin after this cursor of an earlier message. */
  since?: string;
  /** Keep {@link Room.members} up to date, and emit an event when a user comes or goes. */
  presence?: boolean;
  /** Whether messages that this client publishes come back to it. Default: true. */
  echo?: boolean;
}

/** A room. Its messages come in the room's order, each once. A `gap` event stands for messages that cannot be had any more. */
export interface Room<T = any> {
  readonly name: string;
  /** The cursor of the last message. `undefined` before the room is joined, and in rooms without history. */
  readonly cursor?: string;
  /** Who is in the room, if it was joined with `presence`. */
  readonly members: readonly Member[];

  /**
   * Publishes a message to the room, which does not have to be joined. Resolves when the gateway has acknowledged it. Until
   * then it is sent again after every reconnect, with the same key, so that it is published once.
   *
   * Rejects with a {@link FanfareError}: `queue_full` (500 requests wait for an answer), `message_too_large`, `closed`,
   * `unacknowledged` (it was sent, and no answer came for almost 5 minutes: it may or may not be published), `bad_request`
   * (`data` or an option is not JSON: a BigInt, a circular object, a function, a symbol), `room_invalid`, or the gateway's
   * refusal. A message that the gateway refuses for now (`rate_limited`, `backplane_unavailable`) is sent again.
   *
   * @param data Any JSON value; `undefined` is published as `null`. Inside of objects and arrays `JSON.stringify` decides: it
   * leaves functions out.
   */
  publish(data?: T, options?: PublishOptions): Promise<{ room: string; cursor?: string }>;

  /** Asks who is in the room. Rejects with a {@link FanfareError}; while polling also for the rooms `.` and `..`. */
  presence(): Promise<{ room: string; count: number; members: Member[] }>;

  /**
   * Reads the room's history: the messages after `since`, without it the last ones; `limit` of them (default 100, at most 300).
   * Rejects with a {@link FanfareError}; while polling also for the rooms `.` and `..`.
   */
  history(range?: { since?: string; limit?: number }): Promise<History<T>>;

  /** Leaves the room. This object can still publish and ask; another `join` makes a new one. */
  leave(): void;

  /** Calls `listener` for each event of a type, in a microtask. Returns a function that removes the listener. */
  on<E extends keyof RoomEvents<T>>(type: E, listener: (event: RoomEvents<T>[E]) => void): () => void;
}

export interface PublishOptions {
  /** A name for this kind of message, 1 to 64 bytes. */
  event?: string;
  /** The idempotency key, 1 to 64 bytes: within 5 minutes a room takes one message with this key. Default: a unique one. */
  key?: string;
}

/** A page of a room's history, in the room's order. The next page begins after `cursor`. */
export interface History<T = any> {
  room: string;
  messages: Message<T>[];
  cursor: string;
  gap?: { missed: number | null };
}

export interface RoomEvents<T = any> {
  message: Message<T>;
  /** The room is joined, for the first time or again: the messages that follow come after `cursor`. */
  joined: { type: "joined"; room: string; cursor?: string; resumed?: boolean; gap?: { missed: number | null }; members?: Member[]; more?: boolean };
  /**
   * Between `from` and `to` the room's messages cannot be had any more; it goes on after `to`. `missed` says how many they are.
   * It is `null` if nobody knows, as after a restart of Redis, which begins a new epoch: perhaps there were none.
   */
  gap: { type: "gap"; room: string; missed: number | null; from?: string; to?: string };
  /** {@link Room.members}, after each change. While polling the client asks for it every 10 seconds at most. */
  members: Member[];
  /** The first session of a user has joined, or the last one has left. Not while polling. */
  member_joined: { type: "member_joined"; room: string; member: Member };
  member_left: { type: "member_left"; room: string; member: Member };
  /** The gateway has ended the membership. The client does not join the room again by itself. */
  left: { type: "left"; room: string; reason?: "kicked" | "expired" | string };
  /** The room could not be joined. The client tries again if the error is `retryable`. */
  error: FanfareError;
}

/** A message; the same over every transport. */
export interface Message<T = any> {
  type: "message";
  room: string;
  /** The message's position in the room's order; absent in rooms without history. */
  cursor?: string;
  data: T;
  event?: string;
  /** The session that published; absent for messages of back ends. */
  from?: { session?: string; user?: string };
  /** Milliseconds since 1970, by the clock of the node that published. */
  ts: number;
}

export interface Member {
  user: string;
  sessions?: number;
  info?: Json;
}

/** A refusal, by the gateway or by the client itself. Programs look at `code`; `message` is for developers. */
export interface FanfareError extends Error {
  code: string;
  retryable?: boolean;
  retry_after_ms?: number;
  room?: string;
}

/**
 * A parser of `text/event-stream` (WHATWG HTML, section 9.2.6), for programs that read one without an `EventSource`. Returns a
 * function that takes the decoded text, in pieces of any size.
 */
export function eventStream(
  onEvent: (data: string, type: string, lastEventId: string) => void,
  onRetry: (ms: number) => void,
): (text: string) => void;
