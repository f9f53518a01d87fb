// Draws the chat: messages, gaps, people, typing indicators, read receipts. Called by chat.js; never talks to the gateway.
//
// Names and messages may be in any script: each gets its own direction, and a name within an English sentence is isolated.

import { $, el } from "./demo.js";

const SHOWN_MAX = 500; // messages on the page; older ones are removed
export const LENGTH_MAX = 4000; // characters of a message
const clock = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const list = new Intl.ListFormat("en", { type: "conjunction" });

/** A character that can be seen: not a space, a control character, or one of those that are drawn as nothing. */
const VISIBLE = /(?!\p{Default_Ignorable_Code_Point}|\u2800)[\p{L}\p{N}\p{P}\p{S}]/u;

export const isVisible = (text) => VISIBLE.test(text);

/** "Ann, Bob and נועה", as nodes of an element. */
const listed = (names) => list.formatToParts(names).map(({ type, value }) => (type === "element" ? el("bdi", {}, value) : value));

/** A colour for a name, the same in every window. It is decoration: the name is written beside it. */
function hue(name) {
  let sum = 0;
  for (const letter of name) sum = (sum * 31 + letter.codePointAt(0)) % 65_521;
  return (sum * 137) % 360; // the golden angle keeps neighbours apart
}
function tint(element, name) {
  element.style.setProperty("--who", hue(name));
  return element;
}

// A new message scrolls the list only if its end is in sight: people who read further up stay where they are.
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
    el("header", {}, el("b", { dir: "auto" }, own ? "You" : name), el("time", { dateTime: new Date(at).toISOString() }, clock.format(at))),
    el("div", { className: "said", dir: "auto" }, text));
  return tint(item, name);
}

let before = {}; // the last message shown; the next one of the same author within two minutes gets no header
export function message(said) {
  const item = bubble(said);
  if (before.author === said.author && said.at - before.at < 120_000) item.classList.add("more");
  before = said;
  const pending = $("messages").querySelector(".pending"); // messages that are not yet sent stay below
  add(item, said.own);
  if (pending) $("messages").append(...$("messages").querySelectorAll(".pending"));
}

/** An own message that the gateway has not yet acknowledged. */
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

/** `missed` messages cannot be had any more; without a number nobody knows whether any are missing. */
export function gap(missed) {
  before = {};
  const what = missed ? `${missed} ${missed === 1 ? "message is" : "messages are"} missing here` : "Messages may be missing here";
  add(el("li", { className: missed ? "gap" : "gap unsure" }, what));
}

export function settled() {
  $("log").setAttribute("aria-busy", "false"); // from now on new messages are read out
  $("empty").hidden = $("messages").childElementCount > 0;
}

/** `people`: `{name, you}` each. */
export function people(people) {
  $("count").textContent = people.length ? `(${people.length})` : "";
  $("people").replaceChildren(...people.map(({ name, you }) => el("li", {},
    tint(el("span", { className: "face", "aria-hidden": "true" }, VISIBLE.exec(name)?.[0].toUpperCase() ?? "?"), name),
    el("span", {}, el("bdi", {}, name), you ? " (you)" : ""))));
}

export function typing(names) {
  const text = names.length > 3 ? ["Several people are typing"] : [...listed(names), names.length === 1 ? " is typing" : " are typing"];
  const shown = el("span", {}, ...(names.length ? text : []));
  if ($("typing").textContent !== shown.textContent) $("typing").replaceChildren(...shown.childNodes);
}

export function seen(names) {
  const follow = nearEnd();
  $("seen").replaceChildren(...(names.length ? ["Seen by ", ...(names.length > 4 ? [`${names.length} people`] : listed(names))] : []));
  if (follow) toEnd();
}

/** Tells when a message nears the limit, and when it is longer than that: then it cannot be sent. */
export function length(characters) {
  const over = characters - LENGTH_MAX;
  $("length").classList.toggle("over", over > 0);
  $("length").textContent = over > 0 ? `Too long by ${over.toLocaleString("en")} ${over === 1 ? "character" : "characters"}: a message has at most ${LENGTH_MAX.toLocaleString("en")}`
    : over > -200 ? `${-over} more characters` : "";
}

export function state(kind, text) {
  $("state").dataset.state = kind;
  $("state").textContent = text;
}
