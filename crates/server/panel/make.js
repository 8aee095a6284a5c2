// The form: what to make, what it will cost, and off it goes.

import { freshKey, get, post } from './api.js';
import { begun, restoreBegin, settled, startBegin } from './begin.js';
import { byId, el, fill, recall, remember, settle, toast } from './dom.js';
import { drawn, restoreDrawing, showDrawing, startDrawing } from './drawing.js';
import { parameters, PNG_BYTES_MAX } from './png.js';
import { onLanguage, reason, say } from './words.js';

const KIND = 'text-to-image';

/** Kinds of jobs that go on with a finished picture and need to be told nothing else. */
const GOES_ON = ['upscale', 'detail'];
let goesOn = [];
const PLAN_AFTER_MS = 350;
const SEEDS = 2 ** 32;
const CHOICES = ['quality', 'output_format'];
const BESIDE = ['cfg_normalization', 'cfg_truncation'];
const NUMBERS = ['width', 'height', 'steps', 'guidance', 'count'];
const KEPT = ['model', 'prompt', 'negative', 'seed', ...NUMBERS];

let schema = {};
let models = [];
let asked = false;
let chosen = false;
let submitted = () => {};
let key = null;
let planTurn = null;
let planned = null;
/** What a job was made with that has no field in the form: it is made with it again. */
let beside = {};

const field = (name) => byId(`make-${name}`);

/** Connects the form. `onSubmitted(answer)` is called with what the service answers to an accepted job. */
export function startMake(onSubmitted) {
  submitted = onSubmitted;
  const form = byId('make');
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    go();
  });
  form.addEventListener('input', changed);
  field('model').addEventListener('change', showDefaults);
  field('preset').addEventListener('change', () => {
    // What the preset says counts where the form says nothing.
    field('steps').value = '';
    changed();
  });
  byId('make-dice').addEventListener('click', drawSeed);
  byId('make-swap').addEventListener('click', () => {
    const [width, height] = [field('width').value || field('width').placeholder, field('height').value || field('height').placeholder];
    field('width').value = height;
    field('height').value = width;
    changed();
  });
  byId('make-reset').addEventListener('click', () => {
    restore({ prompt: '' });
    field('prompt').focus();
  });
  byId('make-read').addEventListener('click', () => byId('make-file').click());
  byId('make-file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) restoreFrom(file);
    event.target.value = '';
  });
  startDrawing(changed);
  startBegin(changed);
  onLanguage(() => {
    showPresets();
    showPlan();
    showModels();
  });
  recallForm();
}

/** Asks what kinds and models there are. */
export async function loadKinds() {
  const [kinds, list] = await Promise.all([get('v1/kinds'), get('v1/models')]);
  const kind = (kinds.kinds || []).find((one) => one.name === KIND);
  goesOn = GOES_ON.filter((name) => (kinds.kinds || []).some((one) => one.name === name));
  schema = (kind && kind.schema && kind.schema.properties) || {};
  models = list.data.filter((model) => !model.lowtide || !model.lowtide.kinds || model.lowtide.kinds.includes(KIND));
  asked = true;
  const wanted = field('model').value || recall('make.model') || (kind && kind.model_default);
  showModels(wanted);
  for (const name of NUMBERS) bound(field(name), schema[name]);
  showDrawing(schema);
  if (!chosen) CHOICES.forEach(showChoice);
  chosen = true;
  showPresets();
  changed();
}

function bound(input, rule = {}) {
  if (rule.minimum !== undefined) input.min = rule.minimum;
  if (rule.maximum !== undefined) input.max = rule.maximum;
  if (rule.multipleOf !== undefined) input.step = rule.multipleOf;
}

function showModels(wanted = field('model').value) {
  fill(field('model'), ...models.map((model) => el('option', { value: model.id, text: model.id })));
  fill(byId('model-names'), ...models.map((model) => el('option', { value: model.id })));
  if (models.some((model) => model.id === wanted)) field('model').value = wanted;
  byId('make-no-models').hidden = models.length > 0 || !asked;
  showDefaults();
}

/** What the model does where a field is left empty is written in the field, faintly. */
function showDefaults() {
  const model = models.find((one) => one.id === field('model').value);
  const defaults = (model && model.lowtide && model.lowtide.defaults) || {};
  for (const name of NUMBERS) {
    const value = defaults[name] ?? (schema[name] && schema[name].default);
    field(name).placeholder = value ?? (name === 'count' ? 1 : '');
  }
}

/** The presets the service offers, and none of them. */
function showPresets() {
  const names = ((schema.preset && schema.preset.enum) || []).filter((name) => typeof name === 'string');
  const chosen = preset();
  const known = { standard: say('make.preset_standard'), fast: say('make.preset_fast') };
  const order = [...Object.keys(known).filter((name) => names.includes(name)), ...names.filter((name) => !(name in known))];
  const segment = (value, text) => el('label', {}, el('input', { type: 'radio', name: 'preset', value, checked: value === chosen }), el('span', { text }));
  fill(byId('make-presets'), segment('', say('make.preset_own')), ...order.map((name) => segment(name, known[name] || name)));
  field('preset').hidden = order.length === 0;
}

function preset() {
  const chosen = field('preset').querySelector('input:checked');
  return chosen ? chosen.value : '';
}

/** The words of a field that has a fixed choice. */
function showChoice(name) {
  const rule = schema[name] || {};
  const there = (rule.enum || []).filter((value) => typeof value === 'string');
  for (const option of field(name).options) option.hidden = there.length > 0 && !there.includes(option.value);
  if (rule.default) field(name).value = rule.default;
}

/** Draws a seed and shows it. */
export function drawSeed() {
  field('seed').value = String(crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS);
  changed();
}

function request() {
  const made = { ...beside, prompt: field('prompt').value };
  if (preset()) made.preset = preset();
  const negative = field('negative').value.trim();
  if (negative) made['negative' in schema || !('negative_prompt' in schema) ? 'negative' : 'negative_prompt'] = negative;
  for (const name of NUMBERS) if (field(name).value !== '') made[name] = Number(field(name).value);
  if (/^\d{1,20}$/.test(field('seed').value)) made.seed = field('seed').value;
  for (const name of CHOICES) if (name in schema && field(name).value) made[name] = field(name).value;
  const picture = begun();
  return { ...made, ...drawn(picture), ...picture };
}

function body() {
  const made = { kind: KIND, request: request() };
  if (field('model').value) made.model = field('model').value;
  return made;
}

function changed() {
  key = null;
  mark(null);
  for (const name of KEPT) remember(`make.${name}`, field(name).value);
  planSoon();
}

function recallForm() {
  for (const name of KEPT) if (name !== 'model') field(name).value = recall(`make.${name}`) ?? '';
}

const planSoon = settle(PLAN_AFTER_MS, plan);

async function plan() {
  if (planTurn) planTurn.abort();
  if (!field('prompt').value.trim() || !models.length) {
    planned = null;
    showPlan();
    return;
  }
  const turn = new AbortController();
  planTurn = turn;
  try {
    planned = { answer: await post('v1/plan', body(), { signal: turn.signal }) };
  } catch (error) {
    if (turn.signal.aborted) return;
    planned = error.code === 'unreachable' ? null : { error };
  }
  showPlan();
}

/** The plan's line and, under it, its sentences as the planner wrote them. */
function showPlan() {
  const box = byId('plan');
  box.classList.toggle('refused', Boolean(planned && planned.error));
  if (!planned) {
    fill(box, el('p', { class: 'quiet', text: say('plan.empty') }));
    return;
  }
  if (planned.error) {
    mark(planned.error.field);
    fill(box, el('p', { class: 'strong', text: say('plan.refused') }), el('p', { text: reason(planned.error) }));
    return;
  }
  // What was left out is filled in by the model and the preset: that stands in the fields, faintly.
  const { request: filled = {} } = planned.answer;
  for (const name of NUMBERS) if (filled[name] !== undefined && filled[name] !== null) field(name).placeholder = filled[name];
  const { seconds: time, peak_bytes: peak, budget_bytes: budget, reasons = [], approximate = [] } = planned.answer;
  const line = say(budget ? 'plan.line' : 'plan.line_short', { seconds: time, peak, budget });
  const why = el('details', { open: box.querySelector('details[open]') ? true : undefined }, el('summary', { text: say('plan.why') }), el('ul', { lang: 'en' }, ...reasons.map((text) => el('li', { text }))));
  const meter = budget ? el('meter', { min: 0, max: budget, value: peak, 'aria-hidden': 'true' }) : null;
  fill(box, el('p', { class: 'strong', text: line }), meter, approximate.length ? el('p', { class: 'warn', text: say('plan.approximate', { what: approximate.join(', ') }) }) : null, reasons.length ? why : null);
}

function mark(name) {
  const names = { negative_prompt: 'negative', size: 'width', image: 'begin', mask: 'begin', loras: 'sampling' };
  for (const input of byId('make').querySelectorAll('[aria-invalid]')) input.removeAttribute('aria-invalid');
  const input = name && field(names[name] || name);
  if (!input) return;
  input.setAttribute('aria-invalid', 'true');
  const folded = input.closest('details');
  if (folded) folded.open = true;
}

/** Sends the job. */
export async function go() {
  const send = byId('make-go');
  if (send.disabled) return;
  if (!field('prompt').value.trim()) {
    field('prompt').focus();
    mark('prompt');
    toast(say('make.no_prompt'), true);
    return;
  }
  // The same key until it is known to have arrived, so that a lost answer makes no second job.
  await settled();
  key = key || freshKey();
  const job = { ...body(), idempotency_key: key, priority: field('priority').value };
  for (const name of ['keep_alive', 'after_job']) if (field(name).value) job[name] = field(name).value;
  send.disabled = true;
  byId('make-go-word').textContent = say('make.sending');
  try {
    const answer = await post('v1/jobs', job);
    key = null;
    // The next one is in place 1.
    const count = (answer.position ?? 1) - 1;
    toast(count > 0 ? say('make.queued', { count }) : say('make.queued_next'));
    submitted(answer, job);
  } catch (error) {
    mark(error.field);
    toast(reason(error), true);
  } finally {
    send.disabled = false;
    byId('make-go-word').textContent = say('make.go');
  }
}

/** Those of them that the service does. */
export const afterwards = () => goesOn;

/** Goes on with a finished picture: a job of this kind for it. */
export async function sendOn(kind, artifact) {
  const job = { kind, request: { image: `artifact:${artifact.id}` } };
  try {
    submitted(await post('v1/jobs', job), job);
    toast(say('steps.sent'));
  } catch (error) {
    toast(reason(error), true);
  }
}

/** Fills the form with settings; what they leave out becomes the model's default. */
export function restore(settings) {
  for (const name of ['prompt', 'negative', 'seed', ...NUMBERS]) field(name).value = settings[name] ?? '';
  if (settings.negative_prompt) field('negative').value = settings.negative_prompt;
  for (const name of CHOICES) if (settings[name]) field(name).value = settings[name];
  restoreDrawing(settings);
  restoreBegin(settings);
  beside = Object.fromEntries(BESIDE.filter((name) => settings[name] !== undefined && settings[name] !== null).map((name) => [name, settings[name]]));
  for (const radio of field('preset').querySelectorAll('input')) radio.checked = radio.value === '';
  if (settings.model && models.some((model) => model.id === settings.model)) field('model').value = settings.model;
  else if (settings.model) toast(say('make.no_such_model', { model: settings.model, kept: field('model').value }), true);
  showDefaults();
  changed();
}

/** Fills the form with what a picture file says about itself. */
export async function restoreFrom(file) {
  const name = file.name;
  if (file.size > PNG_BYTES_MAX) {
    toast(say('png.large', { name, bytes: PNG_BYTES_MAX }), true);
    return;
  }
  try {
    const settings = await parameters(await file.arrayBuffer());
    if (!settings) {
      toast(say('png.none', { name }), true);
      return;
    }
    restore(settings);
    toast(say('make.restored', { name }));
    field('prompt').focus();
  } catch {
    toast(say('png.wrong', { name }), true);
  }
}
