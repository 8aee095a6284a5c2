// Makes elements. Text goes in as text and nothing else: what somebody typed never becomes markup.

const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes (`class`, `text`, `on: {click: f}`, `data: {…}`, properties by name) and children. */
export function el(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same for drawings. */
export function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === 'text') node.textContent = value;
    else if (name === 'on') for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (name === 'data') Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? '' : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** One of the signs in index.html. */
export function sign(name) {
  return svg('svg', { class: 'sign', 'aria-hidden': 'true' }, svg('use', { href: `#sign-${name}` }));
}

/** A button with a sign, and a word beside it or for those who cannot see the sign. */
export function button({ word, label, icon, act, kind = '', disabled = false, data }) {
  const node = el('button', { type: 'button', class: `button ${kind}${word ? '' : ' bare'}`, 'aria-label': word ? undefined : label, title: label, disabled, data, on: { click: act } });
  if (icon) node.append(sign(icon));
  if (word) node.append(el('span', { text: word }));
  return node;
}

/** The element of this id. */
export const byId = (id) => document.getElementById(id);

/** Changes the children only where they would differ, so that focus and selection stay. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter(Boolean));
}

/**
 * Keeps a list's elements in step with its items: one element a key, made once, brought up to date, put in order.
 * `make(item)` returns an element with a method `update(item)`.
 */
export function keep(list, items, keyOf, make) {
  const old = new Map(Array.from(list.children, (child) => [child.dataset.key, child]));
  let at = list.firstElementChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = old.get(key);
    old.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    node.update(item);
    if (node === at) at = at.nextElementSibling;
    else list.insertBefore(node, at);
  }
  for (const gone of old.values()) gone.remove();
}

const TOAST_MS = 6_000;

/** A short message that leaves by itself; `bad` ones stay twice as long. */
export function toast(text, bad = false) {
  const node = el('li', { class: bad ? 'toast bad' : 'toast', text });
  byId('toasts').append(node);
  while (byId('toasts').children.length > 4) byId('toasts').firstElementChild.remove();
  setTimeout(() => node.remove(), bad ? TOAST_MS * 2 : TOAST_MS);
}

let spoken = '';

/** Says it to those who listen instead of look. */
export function announce(text) {
  if (text === spoken) return;
  spoken = text;
  byId('announcer').textContent = text;
}

/** Runs `act` once in so many milliseconds at most, and once more when calls were left out. */
export function throttle(ms, act) {
  let timer = 0;
  let last = 0;
  return () => {
    if (timer) return;
    timer = setTimeout(() => {
      timer = 0;
      last = performance.now();
      act();
    }, Math.max(0, last + ms - performance.now()));
  };
}

/** Runs `act` when no call came for so many milliseconds. */
export function settle(ms, act) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, ms);
  };
}

/** Keeps something for the next visit; a browser that forbids it forgets. */
export function remember(key, value) {
  try {
    localStorage.setItem(`lowtide.${key}`, value);
  } catch {
    // Nothing depends on it.
  }
}

/** What was kept. */
export function recall(key) {
  try {
    return localStorage.getItem(`lowtide.${key}`);
  } catch {
    return null;
  }
}
