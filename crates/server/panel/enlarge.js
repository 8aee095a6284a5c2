// A picture made larger by a network: chosen, dropped here or a result, and looked at before and after.

import { address, freshKey, get, post, upload } from './api.js';
import { byId, el, fill, recall, remember, settle, toast } from './dom.js';
import { isOver, jobs } from './jobs.js';
import { leadTo, showIn } from './key.js';
import { bytes, onLanguage, reason, say, seconds } from './words.js';

const KIND = 'upscale';
const TYPES = ['image/png', 'image/jpeg', 'image/webp'];
const PLAN_AFTER_MS = 350;

let models = [];
/** The picture's name at the service; `null` where there is none. */
let given = null;
/** Width and height of the given picture, in pixels. */
let size = null;
/** The job that is on its way, and the one that is shown. */
let waiting = null;
let shown = null;
let planned = null;
let planTurn = null;
let turn = 0;

/** Connects the card. */
export function startEnlarge() {
  byId('enlarge-choose').addEventListener('click', () => byId('enlarge-file').click());
  byId('enlarge-file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) enlargeFrom(file);
    event.target.value = '';
  });
  byId('enlarge').addEventListener('submit', (event) => {
    event.preventDefault();
    send();
  });
  byId('enlarge').addEventListener('input', (event) => {
    if (event.target.id !== 'enlarge-at') changed();
  });
  byId('enlarge-model').addEventListener('change', showFactor);
  byId('enlarge-at').addEventListener('input', slide);
  jobs.addEventListener('over', (event) => look(event.detail.id));
  jobs.addEventListener('progress', (event) => {
    if (event.detail === waiting) showState();
  });
  onLanguage(() => {
    showModels();
    showPlan();
    showState();
  });
  slide();
}

/** Asks which networks there are. */
export async function loadEnlarge() {
  const [kinds, list] = await Promise.all([get('v1/kinds'), get('v1/models')]);
  const there = (kinds.kinds || []).some((one) => one.name === KIND);
  models = list.data.filter((model) => model.lowtide && model.lowtide.kinds && model.lowtide.kinds.includes(KIND));
  byId('enlarge-card').hidden = !there;
  showModels();
  // A job may have ended while nobody listened.
  if (waiting) await look(waiting);
}

function showModels() {
  const select = byId('enlarge-model');
  const wanted = select.value || recall('enlarge-model');
  fill(select, ...models.map((model) => el('option', { value: model.id, text: model.id })));
  if (models.some((model) => model.id === wanted)) select.value = wanted;
  byId('enlarge-none').hidden = models.length > 0;
  showFactor();
}

/** The network's own factor is written in the field, faintly. */
function showFactor() {
  const model = models.find((one) => one.id === byId('enlarge-model').value);
  const defaults = (model && model.lowtide.defaults) || {};
  byId('enlarge-scale').placeholder = defaults.scale ?? '';
  byId('enlarge-go').disabled = !given || models.length === 0;
  changed();
}

/** Takes a file. */
export async function enlargeFrom(file) {
  if (!TYPES.includes(file.type)) {
    toast(say('begin.wrong', { name: file.name }), true);
    return;
  }
  turn += 1;
  const mine = turn;
  try {
    const answer = await upload('v1/inputs', file);
    if (mine === turn) take(answer.input);
  } catch (error) {
    toast(reason(error), true);
  }
}

/** Takes a result. */
export function enlargeResult(artifact) {
  turn += 1;
  take(`artifact:${artifact.id}`);
  byId('enlarge-card').scrollIntoView({ block: 'nearest' });
}

function place(name) {
  return address(name.startsWith('artifact:') ? `v1/artifacts/${name.slice('artifact:'.length)}` : `v1/inputs/${name}`).href;
}

function take(name) {
  given = name;
  shown = null;
  size = null;
  const before = byId('enlarge-before');
  before.onload = () => {
    size = [before.naturalWidth, before.naturalHeight];
    showState();
  };
  before.onerror = () => {
    toast(say('begin.gone'), true);
    given = null;
    showView();
  };
  showIn(before, place(name));
  showView();
  showFactor();
}

function request() {
  const asked = { image: given };
  const scale = byId('enlarge-scale').value;
  if (scale) asked.scale = Number(scale);
  return asked;
}

const plan = settle(PLAN_AFTER_MS, async () => {
  const mine = {};
  planTurn = mine;
  if (!given || models.length === 0) {
    planned = null;
    showPlan();
    return;
  }
  try {
    const answer = await post('v1/plan', { kind: KIND, model: byId('enlarge-model').value, request: request() });
    if (planTurn === mine) planned = { answer };
  } catch (error) {
    if (planTurn === mine) planned = { error };
  }
  if (planTurn === mine) showPlan();
});

function changed() {
  plan();
}

function showPlan() {
  const box = byId('enlarge-plan');
  box.hidden = !planned;
  if (!planned) return;
  box.classList.toggle('refused', Boolean(planned.error));
  if (planned.error) {
    fill(box, el('p', { text: reason(planned.error) }));
    return;
  }
  const { answer } = planned;
  const [phase] = (answer.plan && answer.plan.phases) || [];
  const told = say('enlarge.plan', { seconds: seconds(answer.seconds ?? 0), peak: bytes(answer.peak_bytes ?? 0) });
  fill(box, el('p', { text: told }), phase && el('p', { class: 'quiet small', text: phase.mode }));
}

async function send() {
  if (!given) return;
  const button = byId('enlarge-go');
  button.disabled = true;
  try {
    remember('enlarge-model', byId('enlarge-model').value);
    const body = { kind: KIND, model: byId('enlarge-model').value, request: request() };
    const answer = await post('v1/jobs', body, { headers: { 'Idempotency-Key': freshKey() } });
    waiting = answer.id;
    shown = null;
    showView();
    showState();
    jobs.refreshSoon();
  } catch (error) {
    toast(reason(error), true);
  }
  button.disabled = !given;
}

/** Looks at a job that may be over. */
async function look(id) {
  if (id !== waiting) return;
  try {
    const job = await get(`v1/jobs/${encodeURIComponent(id)}`);
    if (job.id === waiting && isOver(job)) over(job);
  } catch {
    // It is asked for again with everything else.
  }
}

function over(job) {
  waiting = null;
  const [artifact] = job.artifacts || [];
  if (job.state === 'done' && artifact) {
    shown = { job, artifact };
    const after = byId('enlarge-after');
    after.onload = showState;
    showIn(after, address(artifact.url).href);
    leadTo(byId('enlarge-keep'), artifact.url);
    byId('enlarge-keep').download = `${job.id}.${artifact.media_type.split('/').pop()}`;
  } else {
    toast(job.error || say('enlarge.stopped'), job.state === 'failed');
  }
  showView();
  showState();
}

function showView() {
  byId('enlarge-view').hidden = !given;
  byId('enlarge-hint').hidden = Boolean(given);
  const done = Boolean(shown);
  for (const id of ['enlarge-after', 'enlarge-at', 'enlarge-keep', 'enlarge-line']) byId(id).hidden = !done;
  byId('enlarge-view').classList.toggle('done', done);
  byId('enlarge-view').classList.toggle('waiting', Boolean(waiting));
}

/** In a line: sizes, and how far it is. */
function showState() {
  const line = byId('enlarge-state');
  const live = waiting && jobs.live.get(waiting);
  const progress = live && live.progress;
  if (waiting && progress && progress.steps) {
    line.textContent = say('enlarge.doing', { share: Math.floor((100 * progress.step) / progress.steps) });
  } else if (waiting) {
    line.textContent = say('enlarge.waiting');
  } else if (shown) {
    const after = byId('enlarge-after');
    const told = (pair) => `${pair[0]} × ${pair[1]}`;
    line.textContent = `${size ? told(size) : ''} → ${told([after.naturalWidth, after.naturalHeight])}`;
  } else {
    line.textContent = size ? `${size[0]} × ${size[1]}` : '';
  }
}

/** Where the line between before and after is. */
function slide() {
  const at = byId('enlarge-at').value;
  byId('enlarge-view').style.setProperty('--at', `${at}%`);
  byId('enlarge-at').setAttribute('aria-valuetext', say('enlarge.at', { share: at }));
}
