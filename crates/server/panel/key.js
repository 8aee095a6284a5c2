// The key to the service, where it needs one. It is kept for this tab and this session alone: neither in a cookie, which
// other services of this machine would be sent, nor in an address, which ends up in logs.

import { address } from './api.js';
import { byId } from './dom.js';
import { say } from './words.js';

const PLACE = 'lowtide.key';
const KEPT_MAX = 240;

let held = '';
try {
  held = sessionStorage.getItem(PLACE) || '';
} catch {
  // It is then asked for again.
}

/** What every request says of who asks. */
export const credentials = () => (held ? { Authorization: `Bearer ${held}` } : {});

function hold(key) {
  held = key;
  try {
    if (key) sessionStorage.setItem(PLACE, key);
    else sessionStorage.removeItem(PLACE);
  } catch {
    // It holds until the page is left.
  }
  byId('key-open').hidden = !key;
}

const fetched = new Map();

/** A file of the service, as an address that an element can have. */
async function local(url) {
  const place = address(url).href;
  const known = fetched.get(place);
  if (known) return known;
  const response = await fetch(place, { headers: credentials() });
  if (!response.ok) throw new Error(`HTTP ${response.status}`);
  const made = URL.createObjectURL(await response.blob());
  fetched.set(place, made);
  if (fetched.size > KEPT_MAX) {
    const [oldest, gone] = fetched.entries().next().value;
    fetched.delete(oldest);
    URL.revokeObjectURL(gone);
  }
  return made;
}

const wanted = new WeakMap();
const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    load(target, wanted.get(target));
  }
});

function load(image, url) {
  local(url).then((made) => {
    // Another picture may have been asked for meanwhile.
    if (wanted.get(image) === url) image.src = made;
  }, () => {
    if (wanted.get(image) === url) image.dispatchEvent(new Event('error'));
  });
}

/** Shows a file of the service in an image. */
export function showIn(image, url) {
  wanted.set(image, url);
  if (!held || /^(data|blob):/.test(url)) image.src = url;
  else if (image.loading === 'lazy') seen.observe(image);
  else load(image, url);
  return image;
}

/** Lets a link lead to a file of the service. */
export function leadTo(link, url) {
  link.href = address(url).href;
  link.onclick = (event) => {
    if (!held || link.href.startsWith('blob:')) return;
    event.preventDefault();
    local(url).then((made) => {
      link.href = made;
      link.click();
    }, () => {});
  };
  return link;
}

/** Asks for the key; `wrong`: one was given and opens nothing. */
function ask(wrong) {
  const dialog = byId('key-ask');
  byId('key-wrong').hidden = !wrong;
  byId('key-forget').hidden = !held;
  if (!dialog.open) dialog.showModal();
  byId('key-text').focus();
}

/** `changed()`: everything is to be asked for anew. */
export function startKey(changed) {
  hold(held);
  byId('key-open').addEventListener('click', () => ask(false));
  addEventListener('lowtide-key', () => ask(Boolean(held)));
  byId('key-form').addEventListener('submit', (event) => {
    event.preventDefault();
    const text = byId('key-text').value.trim();
    if (!text) return;
    byId('key-text').value = '';
    hold(text);
    byId('key-ask').close();
    changed();
  });
  byId('key-forget').addEventListener('click', () => {
    hold('');
    byId('key-ask').close();
    // What was seen with it goes as well.
    location.reload();
  });
  byId('key-text').setAttribute('aria-label', say('key.field'));
}
