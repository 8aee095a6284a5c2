// Models on their way here: how far each is, and the form that gets one by its name.

import { get, post, remove } from './api.js';
import { announce, button, byId, el, fill, keep, recall, remember, toast } from './dom.js';
import { onLanguage, reason, say } from './words.js';

/** Asking the hub takes longer than asking the service. */
const LOOK_TIMEOUT_MS = 60_000;
const OVER = new Set(['done', 'failed', 'stopped']);

/** By model, as the service told last. */
const known = new Map();
let allowed = { allowed: false, reason: '' };
let offer = null;
let busy = false;
let arrived = () => {};

const path = (model) => `v1/models/${encodeURIComponent(model)}/pull`;

/** Connects the part. `onArrived()` is called when a model came. */
export function startDownloads(onArrived) {
  arrived = onArrived;
  byId('get-name').value = recall('got') ?? '';
  byId('get-name').addEventListener('input', () => {
    remember('got', byId('get-name').value);
    offer = null;
    showOffer();
  });
  byId('get').addEventListener('submit', (event) => {
    event.preventDefault();
    if (offer) begin(offer.model);
    else look();
  });
  onLanguage(() => {
    fill(byId('downloads-list'));
    show();
    showOffer();
  });
}

/** Takes in what the list of models says beside the models. */
export function showDownloads(told) {
  allowed = told || allowed;
  known.clear();
  for (const one of allowed.data || []) known.set(one.model, one);
  show();
  showOffer();
}

/** Takes in an event of the stream. */
export function onDownload(data) {
  const before = known.get(data.model);
  known.set(data.model, data);
  show();
  if (!OVER.has(data.state) || (before && before.state === data.state)) return;
  if (data.state === 'done') {
    toast(say('get.came', { model: data.model }));
    announce(say('get.came', { model: data.model }));
    arrived();
  } else if (data.state === 'failed') toast(data.error, true);
}

async function look() {
  const name = byId('get-name').value.trim();
  if (!name || busy) return;
  busy = true;
  showOffer();
  try {
    offer = await get(path(name), { timeout_ms: LOOK_TIMEOUT_MS });
  } catch (error) {
    toast(reason(error), true);
  } finally {
    busy = false;
    showOffer();
  }
}

async function begin(model) {
  try {
    onDownload(await post(path(model)));
    offer = null;
    byId('get-name').value = '';
    remember('got', '');
  } catch (error) {
    toast(reason(error), true);
  }
  showOffer();
}

async function stop(model) {
  try {
    onDownload(await remove(path(model)));
  } catch (error) {
    toast(reason(error), true);
  }
}

function showOffer() {
  byId('get').hidden = !allowed.allowed;
  byId('get-none').hidden = allowed.allowed;
  byId('get-none').textContent = allowed.allowed ? '' : say('get.forbidden');
  const go = byId('get-go');
  go.disabled = busy;
  byId('get-go-word').textContent = say(busy ? 'get.looking' : offer ? 'get.fetch' : 'get.look');
  const lines = offer ? [
    say('get.size', { bytes: offer.bytes, count: offer.files }),
    offer.missing_bytes < offer.bytes && say('get.missing', { bytes: offer.missing_bytes }),
    offer.free_bytes !== null && say('get.free', { bytes: offer.free_bytes }),
  ].filter(Boolean) : [];
  fill(byId('get-offer'), ...lines.map((text) => el('span', { text })), offer && !offer.has_room && el('span', { class: 'bad', text: say('get.no_room') }));
}

function show() {
  const list = [...known.values()].filter((one) => one.state !== 'done');
  byId('downloads-list').hidden = list.length === 0;
  keep(byId('downloads-list'), list, (one) => one.model, card);
}

/** How far a download is, in words: bytes, speed, time. */
export function howFar(one) {
  return [
    one.bytes ? say('models.bytes', { held: one.there, all: one.bytes }) : '',
    one.bytes_per_s ? say('get.speed', { bytes: one.bytes_per_s }) : '',
    one.remaining_s !== null && one.remaining_s !== undefined ? say('stage.left', { seconds: one.remaining_s }) : '',
  ].filter(Boolean);
}

/** What a download does, in words. */
export const state = (one) => say(`get.${one.state}`);

function card({ model }) {
  const where = el('p', { class: 'state' });
  const bar = el('progress', { 'aria-label': model, max: 1 });
  const words = el('p', { class: 'facts' });
  const end = button({ word: say('get.stop'), icon: 'cancel', kind: 'quiet', act: () => stop(model), data: { act: 'stop' } });
  const again = button({ word: say('get.again'), icon: 'refresh', kind: 'quiet', act: () => begin(model), data: { act: 'again' } });
  const node = el('li', { class: 'model download' }, el('div', { class: 'head' }, el('h3', { text: model, title: model })), where, bar, words, el('div', { class: 'row acts' }, end, again));
  node.update = (one) => {
    node.dataset.state = one.state;
    const over = OVER.has(one.state);
    where.textContent = state(one);
    bar.hidden = over;
    if (one.bytes) bar.value = Math.min(1, one.there / one.bytes);
    else bar.removeAttribute('value');
    fill(words, ...(one.error ? [one.error] : howFar(one)).map((text) => el('span', { text })));
    words.classList.toggle('bad', Boolean(one.error));
    end.hidden = over;
    again.hidden = !over || !allowed.allowed;
  };
  return node;
}
