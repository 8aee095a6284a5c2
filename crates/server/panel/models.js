// Models: where they are, what they hold, when they leave, and the hands that move them.

import { get, post } from './api.js';
import { button, byId, keep, el, fill, toast } from './dom.js';
import { showDownloads } from './downloads.js';
import { machine } from './machine.js';
import { bytes, onLanguage, reason, say } from './words.js';

const MOVE_TIMEOUT_MS = 45_000;
const PLACES = new Set(['unloaded', 'host', 'device']);

let listed = [];
const moving = new Set();

/** Connects the list. */
export function startModels() {
  machine.addEventListener('change', show);
  byId('models-refresh').addEventListener('click', async () => {
    try {
      await loadModels();
      await machine.look();
      toast(say('models.refreshed'));
    } catch (error) {
      toast(reason(error), true);
    }
  });
  byId('models-offload').addEventListener('click', () => move(null, 'offload'));
  byId('models-release').addEventListener('click', () => move(null, 'release'));
  onLanguage(() => {
    fill(byId('models-list'));
    show();
  });
}

/** Asks which models there are. */
export async function loadModels() {
  const list = await get('v1/models');
  showDownloads(list.downloads);
  listed = list.data.map((model) => ({ ...model.lowtide, name: model.id }));
  show();
}

async function move(name, order) {
  const all = name === null;
  if (moving.has(name)) return;
  moving.add(name);
  show();
  try {
    const answer = await post(all ? `v1/models/${order}` : `v1/models/${encodeURIComponent(name)}/${order}`, {}, { timeout_ms: MOVE_TIMEOUT_MS });
    // Not yet answered by every worker: `null`.
    const done = answer && answer.ok;
    if (done === undefined || done === null) toast(say('models.under_way'));
    else if (done) toast(say(`models.done_${order}`, { model: all ? say('models.all') : name }));
    else toast(answer.message, true);
  } catch (error) {
    toast(reason(error), true);
  } finally {
    moving.delete(name);
  }
  await machine.look();
  await loadModels().catch(() => {});
}

/** The list as asked for, brought up to date by what the workers said last. */
function show() {
  const fresh = machine.models;
  const names = new Set(listed.map((model) => model.name));
  const own = [...fresh.values()].filter((model) => !names.has(model.name));
  const list = [...listed, ...own].map((model) => ({ ...model, ...fresh.get(model.name) }));
  byId('models-empty').hidden = list.length > 0;
  for (const id of ['models-offload', 'models-release']) byId(id).disabled = moving.has(null) || machine.workers.length === 0;
  keep(byId('models-list'), list, (model) => model.name, card);
}

function facts(model) {
  const loads = (model.hits || 0) + (model.misses || 0);
  return [
    model.in_flight > 0 && say('models.in_use', { count: model.in_flight }),
    !model.in_flight && model.idle_s !== undefined && model.idle_s !== null && say('models.idle', { seconds: Math.floor(model.idle_s) }),
    leaving(model),
    model.last_load_s !== undefined && model.last_load_s !== null && say('models.last_load', { seconds: model.last_load_s }),
    loads > 0 && say('models.hits', { hits: model.hits, all: loads }),
  ].filter(Boolean);
}

function leaving(model) {
  if (model.leaves_in_s !== undefined && model.leaves_in_s !== null) return say('models.leaves', { seconds: Math.ceil(model.leaves_in_s) });
  if (model.keep_alive === 'forever' && model.residency === 'device') return say('models.stays', { how: say('make.keep_forever').toLowerCase() });
  return '';
}

function card(first) {
  const { name } = first;
  const mark = el('span', { class: 'mark', 'aria-hidden': 'true' });
  const where = el('span', { class: 'where' });
  const amount = el('span', { class: 'amount' });
  const meter = el('meter', { min: 0, 'aria-hidden': 'true' });
  const words = el('p', { class: 'facts' });
  const acts = Object.fromEntries([['load', 'load'], ['offload', 'offload'], ['release', 'release']].map(([order, icon]) => [order, button({ word: say(`models.${order}`), icon, kind: 'quiet', act: () => move(name, order), data: { act: order } })]));
  const node = el('li', { class: 'model' }, el('div', { class: 'head' }, mark, el('h3', { text: name, title: name }), amount), el('p', { class: 'state' }, where), meter, words, el('div', { class: 'row acts' }, ...Object.values(acts)));
  node.update = (model) => {
    const residency = PLACES.has(model.residency) ? model.residency : 'unloaded';
    node.dataset.residency = residency;
    where.textContent = model.moving_to ? say(`models.moving_${model.moving_to}`) : say(`models.${residency}`);
    const held = (model.device_bytes || 0) + (model.shared_bytes || 0);
    amount.textContent = held ? say('models.bytes', { held, all: model.bytes }) : bytes(model.bytes || 0);
    meter.max = Math.max(1, model.bytes || 1);
    meter.value = held;
    meter.hidden = held === 0;
    fill(words, ...facts(model).map((text) => el('span', { text })));
    words.hidden = !words.childElementCount;
    const busy = moving.has(name) || moving.has(null) || machine.workers.length === 0;
    acts.load.disabled = busy || (residency === 'device' && !model.moving_to);
    acts.offload.disabled = busy || residency !== 'device';
    acts.release.disabled = busy || residency === 'unloaded';
  };
  return node;
}
