// Draws the chat: messages, gaps, people, who types, who has seen. Called by chat.js; knows nothing of the gateway.

import { $, el } from "./demo.js";

const SHOWN_MAX = 500; // messages on the page; older ones go
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const list = new Intl.ListFormat("en", { type: "conjunction" });

/** A colour for a name, the same in every window. It only decorates: the name stands beside it. */
function hue(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 65_521;
  return (sum * 137) % 360; // the golden angle keeps neighbours apart
}
function tint(element, name) {
  element.style.setProperty("--who", hue(name));
  return element;
}

// Whoever reads further up is not torn away by what arrives.
const nearEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 80;
export function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("down").hidden = true;
}
function add(item, always) {
  const follow = always || nearEnd();
  $("messages").append(item);
  if ($("messages").childElementCount > SHOWN_MAX) $("messages").firstElementChild.remove();
  $("empty").hidden = true;
  if (follow) toEnd();
  else $("down").hidden = false;
}

function bubble({ name, text, at, own }) {
  const item = el("li", { className: own ? "message own" : "message" },
    el("header", {}, el("b", {}, own ? "You" : name), el("time", { dateTime: new Date(at).toISOString() }, clock.format(at))),
    el("div", { className: "said" }, text));
  return tint(item, name);
}

let before = {}; // the last message shown: the next one of the same author within two minutes needs no head
export function message(said) {
  const item = bubble(said);
  if (before.author === said.author && said.at - before.at < 120_000) item.classList.add("more");
  before = said;
  const pending = $("messages").querySelector(".pending"); // what is not yet sent stays below
  add(item, said.own);
  if (pending) $("messages").append(...$("messages").querySelectorAll(".pending"));
}

/** A message of one's own that the gateway has not yet confirmed. */
export function pending(said) {
  const item = bubble({ ...said, own: true });
  const state = el("footer", { role: "status" }, "sending…");
  item.classList.add("pending");
  item.append(state);
  add(item, true);
  return {
    gone: () => item.remove(),
    late: () => { if (state.textContent === "sending…") state.textContent = "not sent yet, still trying…"; },
    failed(why, again) {
      item.classList.add("failed");
      const retry = el("button", { type: "button", className: "plain" }, "Try again");
      const discard = el("button", { type: "button", className: "plain" }, "Discard");
      retry.onclick = () => { item.remove(); again(); };
      discard.onclick = () => item.remove();
      state.replaceChildren(`Not sent: ${why}`, retry, discard);
    },
  };
}

export function gap(missed) {
  before = {};
  const what = missed ? `${missed} ${missed === 1 ? "message is" : "messages are"} missing here` : "Messages are missing here";
  add(el("li", { className: "gap" }, what));
}

export function settled() {
  $("log").setAttribute("aria-busy", "false"); // from now on new messages are read out
  $("empty").hidden = $("messages").childElementCount > 0;
}

/** `people`: `{name, you}` each. */
export function people(people) {
  $("count").textContent = people.length ? `(${people.length})` : "";
  $("people").replaceChildren(...people.map(({ name, you }) => el("li", {},
    tint(el("span", { className: "face", "aria-hidden": "true" }, [...name][0]?.toUpperCase() ?? "?"), name),
    el("span", {}, name, you ? " (you)" : ""))));
}

export function typing(names) {
  const text = names.length === 0 ? "" : names.length > 3 ? "Several people are typing" : `${list.format(names)} ${names.length === 1 ? "is" : "are"} typing`;
  if ($("typing").textContent !== text) $("typing").textContent = text;
}

export function seen(names) {
  const follow = nearEnd();
  $("seen").textContent = names.length ? `Seen by ${names.length > 4 ? `${names.length} people` : list.format(names)}` : "";
  if (follow) toEnd();
}

export function state(kind, text) {
  $("state").dataset.state = kind;
  $("state").textContent = text;
}
