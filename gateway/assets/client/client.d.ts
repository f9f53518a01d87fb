// The types of client.js, and the reference of what it does. The wire is described in docs/protocol.md.

/** How messages travel: WebSocket, server-sent events over `fetch`, long polling. */
export type Transport = "ws" | "sse" | "poll";

/** Any JSON value. */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/**
 * Opens a client. It connects at once, comes back by itself whenever the connection is lost, and goes on until
 * {@link Client.close} or until the gateway forbids it (a `close` event with `reconnect: false`).
 *
 * @param url The gateway: `http(s)://` or `ws(s)://`, with a path if it stands below one. Default: the page's own origin;
 * without a page the origin that this module was loaded from.
 * @throws An error with the code `no_transport` if none of the wanted transports exists here.
 */
export function connect(url?: string | URL, options?: ConnectOptions): Client;

export interface ConnectOptions {
  /**
   * The token, or a function that gives one. The function is asked when the first connection opens, again when four
   * fifths of the token's time (`exp`) are over, and once when the gateway says that the token is not good (4401, HTTP 401).
   * A new token goes to the gateway without a reconnect. A function that fails is an `error` event and is asked again.
   */
  token?: string | (() => string | Promise<string>);
  /** What may be used, the best first. Default: `["ws", "sse", "poll"]`. */
  transports?: Transport[];
  /** The WebSocket class. Default: the global one, which Node has from version 22; with `null` there is none. */
  WebSocket?: WebSocketClass | null;
  /** How long a transport may take to be welcomed before the next one is tried, in milliseconds. Default: 8000. */
  open_ms?: number;
  /** How long it takes on average until a better transport is tried in the background, in milliseconds. Default: 60000. */
  climb_ms?: number;
}

/** What is needed of a WebSocket class; the browser's, Node's and that of the `ws` package have it. */
export type WebSocketClass = new (url: string, protocols?: string[]) => any;

/** One session with a gateway, over whichever transport works, and its rooms. */
export interface Client {
  /** The open session's public id, as it stands in {@link Message.from}; there is none while not connected or polling. */
  readonly session?: string;
  /** The name of the node that has the session. */
  readonly node?: string;
  /** The transport in use; `undefined` while not connected. */
  readonly transport?: Transport;

  /**
   * Joins a room, now or as soon as there is a connection, and again after every reconnect: each time from the last message
   * that came. Joining a room that is joined already gives the same object, with the options changed.
   */
  join<T = any>(room: string, options?: JoinOptions): Room<T>;

  /** Ends it for good: requests without an answer are rejected with `closed`. */
  close(): void;

  /** Calls `listener` for each event of a type, in a microtask; gives a function that ends that. */
  on<T extends keyof ClientEvents>(type: T, listener: (event: ClientEvents[T]) => void): () => void;
}

export interface ClientEvents {
  /** Connected, for the first time or again, or over a better transport. */
  open: { session?: string; transport: Transport };
  /** Not connected. With `reconnect` the next attempt comes after `after_ms`. */
  close: { code?: number; reason?: string; reconnect: boolean; after_ms?: number };
  /** It is another transport than before. */
  transport: Transport;
  /** A refusal that belongs to no room, or a token that could not be had. Nothing has to be done about it here. */
  error: FanfareError | Error;
}

export interface JoinOptions {
  /** Begin with the last so many messages (at most 300). For the first join only: later ones go on where the room was. */
  history?: number;
  /** Begin after this cursor, which an earlier message had. */
  since?: string;
  /** Keep {@link Room.members} and tell who comes and goes. */
  presence?: boolean;
  /** Whether own messages come back. Default: true. */
  echo?: boolean;
}

/** A room. Its messages come in the room's order, each once; where some are lost for good, `gap` says so. */
export interface Room<T = any> {
  readonly name: string;
  /** Where it stands: the cursor of the last message. None before it is joined, or if the room keeps no history. */
  readonly cursor?: string;
  /** Who is here, if it was joined with `presence`. */
  readonly members: readonly Member[];

  /**
   * Publishes to it, joined or not. Resolves when the message has its place in the room. Until then it is sent again after
   * every reconnect, with the same key: it is published once.
   *
   * Rejects with a {@link FanfareError}: `queue_full` (500 requests wait for an answer), `message_too_large`, `closed`,
   * `unacknowledged` (it was sent and for almost 5 minutes no answer came: it may or may not have been published), or the
   * gateway's refusal. What the gateway refuses for now (`rate_limited`, `backplane_unavailable`) is sent again.
   *
   * @param data Any JSON value; `undefined` is published as `null`.
   */
  publish(data?: T, options?: PublishOptions): Promise<{ room: string; cursor?: string }>;

  /** Asks who is here. */
  presence(): Promise<{ room: string; count: number; members: Member[] }>;

  /** Reads back: what comes after `since`, or without it the last `limit` (default 100, at most 300). */
  history(range?: { since?: string; limit?: number }): Promise<{ room: string; messages: Message<T>[]; cursor: string; gap?: { missed: number | null } }>;

  /** Leaves it; the object can still publish and ask. Another `join` makes a new one. */
  leave(): void;

  /** Calls `listener` for each event of a type, in a microtask; gives a function that ends that. */
  on<E extends keyof RoomEvents<T>>(type: E, listener: (event: RoomEvents<T>[E]) => void): () => void;
}

export interface PublishOptions {
  /** The publisher's name for it, 1 to 64 bytes. */
  event?: string;
  /** The idempotency key, 1 to 64 bytes, for this room and 5 minutes. Default: one that nobody else has. */
  key?: string;
}

export interface RoomEvents<T = any> {
  message: Message<T>;
  /** Joined, for the first time or again: what follows comes after `cursor`. */
  joined: { type: "joined"; room: string; cursor?: string; resumed?: boolean; gap?: { missed: number | null }; members?: Member[] };
  /** Messages are lost for this member: `missed` of them, if anybody knows. It goes on after `to`. */
  gap: { type: "gap"; room: string; missed?: number | null; from?: string; to?: string };
  /** {@link Room.members} has changed. While polling it is looked at every 10 seconds at most. */
  members: Member[];
  /** The first session of a user has come, or the last one has gone. Not told while polling. */
  member_joined: { type: "member_joined"; room: string; member: Member };
  member_left: { type: "member_left"; room: string; member: Member };
  /** The gateway has ended the membership: it is not joined again by itself. */
  left: { type: "left"; room: string; reason?: "kicked" | "expired" | string };
  /** The room could not be joined. It is tried again if the error is `retryable`. */
  error: FanfareError;
}

/** A message, as it is on every transport. */
export interface Message<T = any> {
  type: "message";
  room: string;
  /** Its place; absent in rooms without history. */
  cursor?: string;
  data: T;
  event?: string;
  /** Who published; absent for back ends. */
  from?: { session?: string; user?: string };
  /** Milliseconds since 1970, by the clock of the node that published. */
  ts: number;
}

export interface Member {
  user: string;
  sessions?: number;
  info?: Json;
}

/** A refusal, by the gateway or by the client itself. Programs use `code`; `message` is for developers. */
export interface FanfareError extends Error {
  code: string;
  retryable?: boolean;
  retry_after_ms?: number;
  room?: string;
}

/**
 * A parser of `text/event-stream` (WHATWG HTML, section 9.2.6), for who reads one without an `EventSource`. The function
 * that it gives takes decoded text, however that is cut into pieces.
 */
export function eventStream(
  onEvent: (data: string, type: string, lastEventId: string) => void,
  onRetry: (ms: number) => void,
): (text: string) => void;
