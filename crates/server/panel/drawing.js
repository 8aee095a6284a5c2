// The fields about how a picture is drawn, made from the service's schema: what it does not know is not shown.

import { get } from './api.js';
import { button, byId, el, fill } from './dom.js';
import { bytes, canSay, onLanguage, say } from './words.js';

/** The groups of the form and their fields. */
const GROUPS = {
  sampling: ['sampler', 'schedule', 'eta', 'guidance_rescale', 'clip_skip', 'prompt_reading', 'noise', 'refiner', 'refiner_start'],
  begin: ['strength', 'resize', 'mask_blur', 'inpaint_area', 'inpaint_padding'],
  hires: ['hires_scale', 'hires_steps', 'hires_strength', 'hires_upscaler'],
};

/** What a field needs beside it to mean something; the service refuses it without. */
const NEEDS = {
  strength: 'image', resize: 'image', mask_blur: 'mask', inpaint_area: 'mask', inpaint_padding: 'masked',
  hires_steps: 'scale', hires_strength: 'scale', hires_upscaler: 'scale', refiner_start: 'refiner',
};

/** Words of textual inversion that are offered. */
const WORDS_MAX = 40;

/** Digits that 32 bits keep. */
const DIGITS = 6;

let schema = {};
let changed = () => {};
let there = { loras: [], embeddings: [] };

const field = (name) => byId(`make-${name}`);
const fieldValue = (name) => (field(name) ? field(name).value : '');
const names = () => Object.values(GROUPS).flat().filter((name) => name in schema && field(name));

/** Connects the fields. */
export function startDrawing(onChanged) {
  changed = onChanged;
  byId('lora-add').addEventListener('click', () => {
    addLora();
    byId('lora-list').lastElementChild.querySelector('input').focus();
  });
  onLanguage(() => {
    const kept = drawn();
    build();
    restoreDrawing(kept, false);
  });
}

/** Shows the fields of this schema. */
export function showDrawing(properties) {
  const same = JSON.stringify(properties) === JSON.stringify(schema);
  if (!same) {
    const kept = drawn();
    schema = properties;
    build();
    restoreDrawing(kept, false);
  }
  loadExtras();
}

async function loadExtras() {
  const lists = await Promise.allSettled([get('v1/loras'), get('v1/embeddings')]);
  const [loras, embeddings] = lists.map((list) => (list.status === 'fulfilled' && list.value.data) || []);
  there = { loras, embeddings };
  fill(byId('lora-names'), ...loras.map((one) => el('option', { value: one.name, label: bytes(one.bytes) })));
  showWords();
}

/** Words that a prompt can have; one click puts one there. */
function showWords() {
  const words = there.embeddings.slice(0, WORDS_MAX).map((one) => button({
    word: one.name,
    kind: 'quiet',
    act: () => {
      const prompt = byId('make-prompt');
      prompt.value = `${prompt.value}${prompt.value && !prompt.value.endsWith(' ') ? ' ' : ''}${one.name}`;
      prompt.dispatchEvent(new Event('input', { bubbles: true }));
    },
  }));
  fill(byId('embedding-list'), words.length ? el('span', { class: 'quiet', text: say('draw.embeddings') }) : null, ...words);
}

function build() {
  for (const [group, fields] of Object.entries(GROUPS)) {
    const known = fields.filter((name) => name in schema);
    fill(byId(`${group}-fields`), ...known.map(one));
  }
  byId('make-sampling').hidden = !GROUPS.sampling.some((name) => name in schema) && !('loras' in schema);
  byId('make-hires').hidden = !('hires_scale' in schema);
  byId('make-begin').hidden = !('image' in schema);
  byId('lora-part').hidden = !('loras' in schema);
  showWords();
}

function one(name) {
  const rule = schema[name];
  const label = el('span', { text: say(`draw.${name}`) });
  const words = (rule.enum || []).filter((value) => typeof value === 'string');
  if (words.length) {
    const otherwise = rule.default ? optionWord(name, rule.default) : say('draw.models_own');
    const options = words.filter((value) => value !== rule.default).map((value) => el('option', { value, text: optionWord(name, value) }));
    return el('label', { class: 'field' }, label, el('select', { id: `make-${name}` }, el('option', { value: '', text: otherwise }), ...options));
  }
  const types = [].concat(rule.type);
  if (types.includes('string')) {
    const input = el('input', { id: `make-${name}`, type: 'text', maxlength: rule.maxLength, list: name === 'refiner' ? 'model-names' : undefined, spellcheck: 'false' });
    return el('label', { class: 'field' }, label, input);
  }
  const whole = types.includes('integer');
  const input = el('input', {
    id: `make-${name}`, type: 'number', inputmode: whole ? 'numeric' : 'decimal', min: rule.minimum, max: rule.maximum,
    step: whole ? 1 : 0.05, placeholder: rule.default,
  });
  return el('label', { class: 'field' }, label, input);
}

function optionWord(name, value) {
  const key = `draw.${name}.${value}`;
  return canSay(key, {}) ? say(key) : value;
}

function addLora({ name = '', strength = '' } = {}) {
  const row = el('li', { class: 'joined' });
  row.append(
    el('input', { type: 'text', class: 'lora-name', list: 'lora-names', value: name, maxlength: 256, 'aria-label': say('draw.lora_name'), placeholder: say('draw.lora_name') }),
    el('input', { type: 'number', class: 'lora-strength', step: 0.05, min: -100, max: 100, value: strength, 'aria-label': say('draw.lora_strength'), placeholder: '1' }),
    button({ label: say('draw.lora_remove'), icon: 'cancel', act: () => {
      row.remove();
      changed();
    } }),
  );
  byId('lora-list').append(row);
}

function loras() {
  const rows = [...byId('lora-list').children].map((row) => [row.querySelector('.lora-name').value.trim(), row.querySelector('.lora-strength').value]);
  return rows.filter(([name]) => name).map(([name, strength]) => (strength === '' ? { name } : { name, strength: Number(strength) }));
}

/** The fields of a request that begins from `picture`, its image and mask: only what means something; without it, all. */
export function drawn(picture) {
  const made = {};
  const there = picture && {
    image: 'image' in picture, mask: 'mask' in picture, masked: 'mask' in picture && fieldValue('inpaint_area') === 'masked',
    scale: Number(fieldValue('hires_scale')) > 1, refiner: fieldValue('refiner').trim() !== '',
  };
  for (const name of names()) {
    if (there && name in NEEDS && !there[NEEDS[name]]) continue;
    const input = field(name);
    if (input.value !== '') made[name] = input.type === 'number' ? Number(input.value) : input.value;
  }
  const list = loras();
  if (list.length) made.loras = list;
  return made;
}

/** Fills the fields; what is left out becomes the model's default. */
export function restoreDrawing(settings, open = true) {
  for (const name of names()) {
    const input = field(name);
    const value = settings[name] ?? '';
    // The service counts in 32 bits: 0.9 comes back as 0.89999998.
    input.value = String(typeof value === 'number' ? Number(value.toPrecision(DIGITS)) : value);
    // What is the default stands in the first option.
    if (input.tagName === 'SELECT' && input.selectedIndex < 0) input.value = '';
  }
  fill(byId('lora-list'));
  for (const lora of settings.loras || []) addLora(lora);
  if (!open) return;
  const groups = { sampling: loras().length > 0 || ['sampler', 'schedule'].some((name) => settings[name]), hires: Boolean(settings.hires_scale) };
  for (const [group, said] of Object.entries(groups)) if (said) byId(`make-${group}`).open = true;
}
