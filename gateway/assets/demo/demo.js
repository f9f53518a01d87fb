// What the demo pages share: elements, random tokens, the clipboard, the browser's stores. It holds no state.

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

/** Puts text on the clipboard, or into a prompt where the page may not write there (http on another host than localhost). */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    prompt("Copy this:", text);
    return false;
  }
}

/** Browsers may refuse access to their stores (private windows, blocked cookies): then the page asks again each time. */
export const remember = (store, key, value) => { try { window[store].setItem(key, value); } catch { /* refused */ } };
export const recall = (store, key) => { try { return window[store].getItem(key); } catch { return null; } };

/** Sets a key as the newest one of a map; removes the oldest one if the map then has more than `most`. */
export function keep(map, key, value, most) {
  map.delete(key);
  map.set(key, value);
  if (map.size > most) map.delete(map.keys().next().value);
}
