// What the demo pages share. No page of its own, no state.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`data-*` and `aria-*` as attributes) and children; `false` and "" children are left out. */
export function el(name, props = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (key.includes("-")) element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children.filter((child) => child !== false && child !== ""));
  return element;
}

/** An SVG element with attributes. */
export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Eight random letters and digits. (crypto.randomUUID is there only over https and on localhost.) */
export const token = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => (byte % 36).toString(36)).join("");

/** Puts text on the clipboard; where the page may not (plain http on another host), offers it in a prompt. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    prompt("Copy this:", text);
    return false;
  }
}

/** Stores that a browser may refuse to have (private windows, blocked cookies). */
export const remember = (store, key, value) => { try { window[store].setItem(key, value); } catch { /* then it is asked again */ } };
export const recall = (store, key) => { try { return window[store].getItem(key); } catch { return null; } };

/** Sets a key as the newest of a map that holds at most so many: the oldest goes. */
export function keep(map, key, value, most) {
  map.delete(key);
  map.set(key, value);
  if (map.size > most) map.delete(map.keys().next().value);
}
