// Memory over time: who held how much, below the line nobody may cross.

import { get } from './api.js';
import { announce, byId, el, fill, recall, remember, settle, svg } from './dom.js';
import { machine } from './machine.js';
import { bytes, number, onLanguage, percent, say, seconds } from './words.js';

const SPANS = [2, 10, 60];
const HEIGHT = 190;
const EDGE = { top: 18, right: 8, bottom: 20, left: 8 };
/** Without a figure for so long, nothing is drawn in between: nobody knows. */
const GAP_MS = 6_000;
const SAMPLES_MAX = 7_200;
const POINTS_MAX = 400;
const BANDS_MAX = 6;
const COLOURS = 6;
/** Above this many times what is in use, the budget is told at the edge and the chart shows what is in use. */
const FAR = 3;

let samples = [];
let budget = 0;
let span = 10;
let scale = 'auto';
let width = 320;
let pointed = null;
const colours = new Map();

/** Connects the chart and the figures. */
export function startMemory() {
  span = SPANS.find((minutes) => String(minutes) === recall('memory.span')) || 10;
  machine.addEventListener('change', () => {
    take();
    show();
  });
  const spans = byId('memory-span');
  spans.addEventListener('change', () => {
    span = Number(spans.value);
    remember('memory.span', spans.value);
    loadHistory().catch(() => {});
  });
  byId('memory-scale').addEventListener('click', () => {
    scale = fits() ? 'budget' : 'fit';
    show();
  });
  onLanguage(() => {
    fill(spans, ...SPANS.map((minutes) => el('option', { value: minutes, text: say('memory.minutes', { count: minutes }), selected: minutes === span })));
    show();
  });
  const chart = byId('memory-chart');
  new ResizeObserver(([entry]) => {
    width = Math.max(200, Math.floor(entry.contentRect.width));
    show();
  }).observe(chart);
  chart.addEventListener('pointermove', (event) => point(timeAt(event.clientX - chart.getBoundingClientRect().left)));
  chart.addEventListener('pointerleave', () => point(null));
  chart.addEventListener('blur', () => point(null));
  chart.addEventListener('keydown', (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !samples.length) return;
    event.preventDefault();
    const step = (span * 60e3) / 60;
    point(Math.min(samples[samples.length - 1].at_ms, Math.max(samples[0].at_ms, (pointed ?? samples[samples.length - 1].at_ms) + by * step)));
    announceSoon();
  });
}

/** Asks for what was before the page was opened. */
export async function loadHistory() {
  const answer = await get(`gpu/history?minutes=${span}`);
  samples = (answer.samples || []).slice(-SAMPLES_MAX);
  budget = answer.budget || budget;
  show();
}

function take() {
  const { memory } = machine;
  if (!memory) return;
  budget = memory.budget || budget;
  samples.push({ at_ms: Date.now(), allocated: memory.allocated, reserved: memory.reserved, holders: memory.holders });
  const oldest = Date.now() - Math.max(...SPANS) * 60e3;
  while (samples.length > SAMPLES_MAX || (samples.length && samples[0].at_ms < oldest)) samples.shift();
}

function colourOf(holder) {
  if (holder === 'other') return 'other';
  // Jobs come and go: they share a colour, so that models keep theirs.
  if (holder === 'job' || holder === 'cache') return holder;
  if (!colours.has(holder)) colours.set(holder, colours.size % COLOURS);
  return colours.get(holder);
}

/** Bands of a sample by name: each model, all jobs, the cache, and what nobody named. */
function bandsOf(sample) {
  const bands = new Map();
  let named = 0;
  for (const holder of sample.holders || []) {
    const name = holder.kind === 'model' ? `model ${holder.name}` : holder.kind === 'cache' ? 'cache' : 'job';
    bands.set(name, (bands.get(name) || 0) + holder.bytes);
    named += holder.bytes;
  }
  const rest = Math.max(0, (sample.allocated || 0) - named);
  if (rest > 0) bands.set('other', rest);
  return bands;
}

function labelOf(band) {
  if (band.startsWith('model ')) return band.slice(6);
  return { cache: say('memory.cache'), job: say('memory.jobs'), other: say('memory.other') }[band];
}

/** The samples in sight, thinned to what the eye can tell apart; of each group the fullest is kept. */
function inSight(now) {
  const seen = samples.filter((sample) => sample.at_ms >= now - span * 60e3 && sample.at_ms <= now);
  const every = Math.ceil(seen.length / POINTS_MAX);
  if (every <= 1) return seen;
  const kept = [];
  for (let at = 0; at < seen.length; at += every) kept.push(seen.slice(at, at + every).reduce((a, b) => (b.allocated > a.allocated ? b : a)));
  return kept;
}

function fits() {
  const most = samples.reduce((max, sample) => Math.max(max, sample.allocated || 0), 0);
  return scale === 'fit' || (scale === 'auto' && budget > most * FAR);
}

/** A round number of bytes at or above `value`: 1, 2, 3, 4, 6 or 8 times a power of two. */
function roundUp(value) {
  let unit = 1024 * 1024;
  while (unit * 8 < value) unit *= 8;
  return [1, 2, 3, 4, 6, 8].map((times) => unit * times).find((size) => size >= value);
}

let frame = null;

function timeAt(x) {
  if (!frame) return null;
  return frame.now - span * 60e3 * (1 - (x - EDGE.left) / (width - EDGE.left - EDGE.right));
}

function show() {
  if (document.hidden) return;
  const now = samples.length ? Math.max(samples[samples.length - 1].at_ms, Date.now() - GAP_MS) : Date.now();
  const seen = inSight(now);
  const most = seen.reduce((max, sample) => Math.max(max, sample.allocated || 0, fits() ? 0 : sample.reserved || 0), 0);
  const top = fits() ? roundUp(Math.max(most * 1.15, 1)) : Math.max(budget * 1.08, most * 1.05, 1);
  const x = (at) => EDGE.left + (1 - (now - at) / (span * 60e3)) * (width - EDGE.left - EDGE.right);
  const y = (value) => EDGE.top + (1 - Math.min(value, top) / top) * (HEIGHT - EDGE.top - EDGE.bottom);
  frame = { now, top, x, y, seen };
  drawChart(frame, most);
  showFigures();
  showPointed();
}

function drawChart({ now, top, x, y, seen }, most) {
  const runs = [];
  for (const sample of seen) {
    const run = runs[runs.length - 1];
    const gap = Math.max(GAP_MS, (span * 60e3) / POINTS_MAX * 3);
    if (run && sample.at_ms - run[run.length - 1].at_ms < gap) run.push(sample);
    else runs.push([sample]);
  }
  const order = bandOrder(seen);
  const picture = svg('svg', { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, 'aria-hidden': 'true' }, grid(top, y), times(x, now));
  for (const run of runs) {
    const base = new Array(run.length).fill(0);
    for (const band of order) {
      const upper = run.map((sample, at) => base[at] + (bandsOf(sample).get(band) || 0));
      if (upper.some((value, at) => value > base[at])) picture.append(svg('path', { class: `band band-${colourOf(band)}`, d: area(run, base, upper, x, y) }));
      upper.forEach((value, at) => { base[at] = value; });
    }
    picture.append(svg('path', { class: 'reserved', d: line(run, (sample) => sample.reserved || 0, x, y) }));
  }
  const half = (fits() ? top : Math.max(budget, 1)) / 2;
  picture.append(svg('text', { class: 'half', x: EDGE.left + 3, y: y(half) - 4, text: bytes(half) }));
  if (budget) picture.append(budgetLine(top, y));
  picture.append(svg('g', { id: 'memory-cursor' }));
  fill(byId('memory-chart'), picture);
  const last = samples[samples.length - 1];
  byId('memory-chart').setAttribute('aria-label', say('memory.chart', { span: say('memory.minutes', { count: span }), now: last ? last.allocated : 0, most, budget }));
}

/** Models at the bottom, since they stay longest; then the caches, the jobs, the rest. */
function bandOrder(seen) {
  const names = new Set();
  for (const sample of seen) for (const name of bandsOf(sample).keys()) names.add(name);
  const models = [...names].filter((name) => name.startsWith('model ')).sort().slice(0, BANDS_MAX);
  return [...models, ...['cache', 'job', 'other'].filter((name) => names.has(name))];
}

function line(run, value, x, y) {
  return run.map((sample, at) => `${at ? 'L' : 'M'}${x(sample.at_ms).toFixed(1)} ${y(value(sample)).toFixed(1)}`).join('');
}

function area(run, lower, upper, x, y) {
  const there = run.map((sample, at) => `${x(sample.at_ms).toFixed(1)} ${y(upper[at]).toFixed(1)}`);
  const back = run.map((sample, at) => `${x(sample.at_ms).toFixed(1)} ${y(lower[at]).toFixed(1)}`).reverse();
  return `M${[...there, ...back].join('L')}Z`;
}

function grid(top, y) {
  const group = svg('g', { class: 'grid' });
  const full = fits() ? top : Math.max(budget, 1);
  for (const share of [0, 0.25, 0.5, 0.75]) {
    const at = y(full * share);
    group.append(svg('line', { x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }));
  }
  return group;
}

function times(x, now) {
  const group = svg('g', { class: 'times' });
  for (const share of [1, 0.5, 0]) {
    const at = x(now - span * 60e3 * share);
    const text = share ? `−${seconds(span * 60 * share)}` : say('memory.now');
    group.append(svg('text', { x: at, y: HEIGHT - 4, 'text-anchor': { 1: 'start', 0.5: 'middle', 0: 'end' }[share], text }));
  }
  return group;
}

function budgetLine(top, y) {
  const far = budget > top;
  const at = far ? EDGE.top - 4 : y(budget);
  const text = `${far ? '↑ ' : ''}${say('memory.budget', { bytes: budget })}`;
  return svg('g', { class: far ? 'budget far' : 'budget' }, svg('line', { x1: EDGE.left, x2: width - EDGE.right, y1: at, y2: at }), svg('text', { x: width - EDGE.right - 2, y: at - 4, 'text-anchor': 'end', text }));
}

function swatch(band, value) {
  return el('li', {}, el('span', { class: `swatch band-${colourOf(band)}`, 'aria-hidden': 'true' }), el('span', { class: 'name', text: labelOf(band), title: labelOf(band) }), el('span', { class: 'amount', text: bytes(value) }));
}

function showFigures() {
  const { memory, utilisation, watts } = machine;
  byId('memory-empty').hidden = Boolean(memory) || samples.length > 0;
  byId('memory-figures').hidden = !memory;
  byId('memory-headline').hidden = !memory;
  byId('memory-scale').textContent = say(fits() ? 'memory.scale_budget' : 'memory.scale_fit');
  if (!memory) return;
  byId('memory-now').textContent = bytes(memory.allocated);
  byId('memory-now').dataset.bytes = memory.allocated;
  byId('memory-of').textContent = say('memory.of', { bytes: memory.budget });
  const pairs = [['memory.reserved', memory.reserved], ['memory.peak', memory.peak], ['memory.job_peak', memory.job_peak], ['memory.available', memory.available], ['memory.total', memory.total]];
  fill(byId('memory-facts'), ...pairs.filter(([, value]) => value > 0).flatMap(([word, value]) => [el('dt', { text: say(word) }), el('dd', { text: bytes(value) })]));
  const bands = [...bandsOf(memory)].filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  fill(byId('memory-holders'), ...(bands.length ? bands.map(([band, value]) => swatch(band, value)) : [el('li', { class: 'quiet', text: say('memory.nobody') })]));
  const uses = utilisation ? [['memory.use_now', utilisation.now], ['memory.use_average', utilisation.job_average], ['memory.use_peak', utilisation.job_peak]] : [];
  fill(byId('memory-use'), ...uses.map(([word, value]) => el('li', {}, el('strong', { text: percent(value || 0) }), el('span', { text: say(word) }))), watts !== null && el('li', {}, el('strong', { text: say('memory.power', { watts: number(watts) }) })));
}

function point(at) {
  pointed = at;
  showPointed();
}

function nearest(at) {
  return frame.seen.reduce((best, sample) => (!best || Math.abs(sample.at_ms - at) < Math.abs(best.at_ms - at) ? sample : best), null);
}

/** The moment under the pointer or reached by keys: a line, and who held what. */
function showPointed() {
  const cursor = byId('memory-cursor');
  const tip = byId('memory-tip');
  const sample = pointed !== null && frame ? nearest(pointed) : null;
  tip.hidden = !sample;
  if (!cursor) return;
  fill(cursor);
  if (!sample) return;
  const at = frame.x(sample.at_ms);
  cursor.append(svg('line', { class: 'cursor', x1: at, x2: at, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }), svg('circle', { class: 'cursor', cx: at, cy: frame.y(sample.allocated || 0), r: 3.5 }));
  const age = Math.max(0, (frame.now - sample.at_ms) / 1e3);
  fill(tip, el('p', {}, el('strong', { text: bytes(sample.allocated || 0) }), el('span', { class: 'quiet', text: age < 1 ? say('memory.now') : `−${seconds(Math.round(age))}` })), el('ul', { class: 'holders' }, ...[...bandsOf(sample)].map(([band, value]) => swatch(band, value))));
  tip.classList.toggle('left', at > width / 2);
}

const announceSoon = settle(300, () => {
  if (!byId('memory-tip').hidden) announce(Array.from(byId('memory-tip').querySelectorAll('strong, span.quiet, li'), (node) => node.textContent).join(', '));
});
