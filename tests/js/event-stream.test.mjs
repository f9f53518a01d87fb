// The parser of text/event-stream against the vectors of web-platform-tests, eventsource/format-*. Each stream is also parsed
// in pieces, cut after every byte: the events must be the same.

import assert from "node:assert/strict";
import { test } from "node:test";
import { eventStream } from "../../gateway/assets/client/client.js";

/** The events of a stream that arrives in these pieces of bytes, decoded as the client decodes them. */
async function parse(pieces) {
  const events = [], retries = [];
  const take = eventStream((data, type, lastEventId) => events.push({ type, data, lastEventId }), (ms) => retries.push(ms));
  const text = new ReadableStream({ start: (to) => (pieces.forEach((piece) => to.enqueue(piece)), to.close()) }).pipeThrough(new TextDecoderStream());
  for await (const piece of text) take(piece);
  return { events, retries };
}

const message = (data, lastEventId = "", type = "message") => ({ type, data, lastEventId });

const VECTORS = {
  "format-bom": ["\ufeffdata:1\n\n\ufeffdata:2\n\ndata:3\n\n", [message("1"), message("3")]],
  "format-bom-2": ["\ufeff\ufeffdata:1\n\ndata:2\n\ndata:3\n\n", [message("2"), message("3")]],
  "format-comments": [`data:1\r:\0\n:\r\ndata:2\n:${"x".repeat(2048)}\rdata:3\n:data:fail\r:${"x".repeat(2048)}\ndata:4\n\n`, [message("1\n2\n3\n4")]],
  "format-data-before-final-empty-line": ["retry:1000\ndata:test1\n\nid:test\ndata:test2", [message("test1")], [1000]],
  "format-field-data": ["data:\n\ndata\ndata\n\ndata:test\n\n", [message(""), message("\n"), message("test")]],
  "format-field-event": ["event:test\ndata:x\n\ndata:x\n\n", [message("x", "", "test"), message("x")]],
  "format-field-event-empty": ["event: \ndata:data\n\n", [message("data")]],
  "format-field-id": ["id:…\ndata:1\n\ndata:2\n\nid\ndata:3\n\n", [message("1", "…"), message("2", "…"), message("3")]],
  "format-field-id-null": ["data:hello\nid:\0\n\ndata:again\nid:a\0b\n\n", [message("hello"), message("again")]],
  "format-field-id-null keeps the earlier one": ["id:1\ndata:a\n\nid:2\0\ndata:b\n\n", [message("a", "1"), message("b", "1")]],
  "format-field-parsing": [
    "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
    [message("\0\n 2\n1\n3\n\n4")],
  ],
  "format-field-retry": ["retry:3000\ndata:x\n\n", [message("x")], [3000]],
  "format-field-retry-bogus": ["retry:3000\nretry:1000x\ndata:x\n\nretry:\nretry\nretry:-1\nretry:1.5\nretry:1 \n\n", [message("x")], [3000]],
  "format-field-retry-empty": ["retry\ndata:test\n\n", [message("test")]],
  "format-field-unknown": ["data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\n\n", [message("test\n")]],
  "format-leading-space": ["data:\ttest\rdata: \ndata:test\n\n", [message("\ttest\n\ntest")]],
  "format-newlines": ["data:test\r\ndata\ndata:test\r\n\r", [message("test\n\ntest")]],
  "format-null-character": ["data:\0\n\n\n\n", [message("\0")]],
  "format-utf-8": ["data:ok…😀\n\n", [message("ok…😀")]],
  "an id-only block dispatches nothing and is kept": ["id:7\n\ndata:x\n\n", [message("x", "7")]],
  "an event without data dispatches nothing, and its name is forgotten": ["event:a\n\ndata:x\n\n", [message("x")]],
  "lines may end in CR alone": ["data:a\r\rdata:b\r\r", [message("a"), message("b")]],
  "lines may end in CR LF": ["data:a\r\n\r\ndata:b\r\n\r\n", [message("a"), message("b")]],
};

for (const [name, [stream, events, retries = []]] of Object.entries(VECTORS)) {
  test(name, async () => {
    const bytes = new TextEncoder().encode(stream), whole = { events, retries };
    assert.deepEqual(await parse([bytes]), whole);
    assert.deepEqual(await parse([...bytes].map((byte) => Uint8Array.of(byte))), whole);
    for (let at = 0; at <= Math.min(bytes.length, 200); at++) {
      assert.deepEqual(await parse([bytes.subarray(0, at), bytes.subarray(at)]), whole, `cut at ${at}`);
    }
  });
}
