// The five transports, each with the browser's own API and nothing else. transports.js calls each of them again when it ends,
// until `signal` says stop. `meter` counts, and keeps the cursor after which the next attempt goes on.

const ws = location.origin.replace("http", "ws");

export const webSocket = (room, meter, signal) => new Promise((ended) => {
  const path = `/ws?room=${room}&since=${meter.cursor}`;
  const socket = new WebSocket(ws + path);
  meter.request(path);
  socket.onopen = meter.opened;
  socket.onmessage = ({ data: text }) => {
    meter.frame(text);
    const frame = JSON.parse(text);
    if (frame.type === "message") meter.message(frame);
    else if (frame.cursor) meter.cursor = frame.cursor;
  };
  socket.onclose = ended;
  signal.onabort = () => socket.close();
});

export const serverSentEvents = (room, meter, signal) => new Promise((ended) => {
  const path = `/v1/rooms/${room}/sse?since=${meter.cursor}`;
  const source = new EventSource(path);
  source.onopen = () => {
    meter.request(path);
    meter.opened();
  };
  source.onmessage = (event) => {
    meter.event(event);
    meter.message(JSON.parse(event.data));
  };
  for (const name of ["welcome", "joined", "gap"]) source.addEventListener(name, meter.event);
  source.onerror = () => {
    if (!meter.open) meter.request(path); // this one has failed
    meter.ended();
    // Otherwise the browser repeats the request by itself after a while, and sends the last id that it has seen.
    if (source.readyState === EventSource.CLOSED) ended();
  };
  signal.onabort = () => ended(source.close());
});

export const httpStream = async (room, meter, signal) => {
  const answer = await meter.fetch(`/v1/rooms/${room}/stream?since=${meter.cursor}`, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      meter.line(line);
      const frame = JSON.parse(line);
      if (frame.type === "message") meter.message(frame);
      else if (frame.cursor) meter.cursor = frame.cursor;
    }
  }
};

export const longPolling = async (room, meter, signal) => {
  while (!signal.aborted) {
    const answer = await meter.fetch(`/v1/rooms/${room}/poll?since=${meter.cursor}&wait=25`, { signal });
    const page = JSON.parse(await meter.body(answer));
    page.messages.forEach(meter.message);
    meter.cursor = page.cursor;
  }
};

export const shortPolling = async (room, meter, signal) => {
  let pause = 1000, etag = "";
  while (!signal.aborted) {
    const headers = etag ? { "If-None-Match": etag } : {};
    const answer = await meter.fetch(`/v1/rooms/${room}/poll?since=${meter.cursor}&wait=0`, { signal, headers });
    const text = await meter.body(answer);
    if (answer.status !== 304) { // 304: nothing new, and no body
      const page = JSON.parse(text);
      page.messages.forEach(meter.message);
      meter.cursor = page.cursor;
      etag = answer.headers.get("ETag");
      pause = page.next_ms; // the gateway adapts it to how much goes on in the room
    }
    await new Promise((next) => setTimeout(next, pause));
  }
};
