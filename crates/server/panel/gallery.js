// Finished pictures with what they were made with: open them large, use their settings again, keep the file.

import { beginFromResult } from './begin.js';
import { enlargeResult } from './enlarge.js';
import { button, byId, el, fill, keep, sign } from './dom.js';
import { jobs, notesOf, peakOf } from './jobs.js';
import { leadTo, showIn } from './key.js';
import { afterwards, restore, sendOn } from './make.js';
import { stepsList } from './steps.js';
import { ago, bytes, moment, onLanguage, say, seconds } from './words.js';

let opened = null;
let watcher = null;

/** Connects the gallery. */
export function startGallery() {
  jobs.addEventListener('change', show);
  onLanguage(() => {
    fill(byId('gallery-list'));
    show();
    if (byId('picture').open) showOpened();
  });
  byId('gallery-more').addEventListener('click', () => jobs.more().catch(() => {}));
  byId('picture').addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft') turn(-1);
    else if (event.key === 'ArrowRight') turn(1);
  });
  byId('picture-previous').addEventListener('click', () => turn(-1));
  byId('picture-next').addEventListener('click', () => turn(1));
  // What was asked for is fetched when its picture comes into sight.
  watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      describe(target);
    }
  }, { rootMargin: '200px' });
}

/** Only jobs with a picture are shown. */
const pictured = () => jobs.done.filter((job) => (job.artifacts || []).some((artifact) => artifact.media_type.startsWith('image/')));

function show() {
  const list = pictured();
  byId('gallery-empty').hidden = list.length > 0 || !jobs.known;
  byId('gallery-more').hidden = !jobs.older;
  keep(byId('gallery-list'), list, (job) => job.id, card);
}

function card(job) {
  const [first] = job.artifacts;
  const image = el('img', { alt: '', loading: 'lazy', decoding: 'async' });
  showIn(image, first.url);
  const words = el('span', { class: 'words', text: job.model });
  const node = el('li', {}, el('button', { type: 'button', class: 'thumb', on: { click: () => openPicture(job, 0) } }, image, job.artifacts.length > 1 && el('span', { class: 'several', text: `×${job.artifacts.length}`, title: say('gallery.several', { count: job.artifacts.length }) }), words));
  image.addEventListener('error', () => {
    node.classList.add('gone');
    words.textContent = say('gallery.gone');
  });
  node.update = () => {};
  watcher.observe(node);
  return node;
}

function describe(node) {
  jobs.detail(node.dataset.key).then((job) => {
    const prompt = (job.request && job.request.prompt) || job.model;
    node.querySelector('.words').textContent = prompt;
    node.querySelector('img').alt = prompt;
    node.querySelector('button').title = prompt;
  }, () => {});
}

/** Opens a picture large, with what it was made with. */
export async function openPicture(job, index) {
  opened = { job, index };
  showOpened();
  if (!byId('picture').open) byId('picture').showModal();
  if (job.request) return;
  try {
    const whole = await jobs.detail(job.id);
    if (opened && opened.job.id === whole.id) {
      opened.job = whole;
      showOpened();
    }
  } catch {
    // What is known is shown.
  }
}

function turn(by) {
  const { job, index } = opened;
  if (index + by >= 0 && index + by < job.artifacts.length) {
    openPicture(job, index + by);
    return;
  }
  const list = pictured();
  const at = list.findIndex((other) => other.id === job.id) + by;
  if (at < 0 || at >= list.length) return;
  openPicture(list[at], by > 0 ? 0 : list[at].artifacts.length - 1);
}

function facts(job, index) {
  const { request = {} } = job;
  const peak = peakOf(job);
  const approximate = (job.report && job.report.approximate) || [];
  const seed = request.seed === undefined ? undefined : String(BigInt(request.seed) + BigInt(index));
  const took = job.finished_ms && job.started_ms ? seconds((job.finished_ms - job.started_ms) / 1e3) : undefined;
  return [
    ['make.model', job.model],
    ['make.size', request.width && `${request.width} × ${request.height}`],
    ['make.steps', request.steps],
    ['make.guidance', request.guidance],
    ['make.seed', seed],
    ['gallery.took', took],
    ['gallery.peak', peak !== null && bytes(peak)],
    ['gallery.approximate', approximate.join(', ')],
    ['gallery.notes', notesOf(job).join(' ')],
    ['gallery.when', job.finished_ms && `${moment(job.finished_ms)} · ${ago(job.finished_ms)}`],
  ].filter(([, value]) => value !== undefined && value !== null && value !== '' && value !== false);
}

function showOpened() {
  const { job, index } = opened;
  const artifact = job.artifacts[index];
  const { request = {} } = job;
  const image = byId('picture-image');
  showIn(image, artifact.url);
  image.alt = request.prompt || '';
  byId('picture-prompt').textContent = request.prompt || '';
  byId('picture-negative').textContent = request.negative || request.negative_prompt || '';
  byId('picture-negative-row').hidden = !(request.negative || request.negative_prompt);
  fill(byId('picture-facts'), ...facts(job, index).flatMap(([word, value]) => [el('dt', { text: say(word) }), el('dd', { text: String(value) })]));
  fill(byId('picture-steps'), stepsList(job));
  fill(
    byId('picture-acts'),
    button({ word: say('gallery.reuse'), icon: 'reuse', kind: 'primary', act: () => reuse(job) }),
    artifact.media_type.startsWith('image/') && button({ word: say('begin.use'), icon: 'picture', act: () => goOn(artifact), data: { act: 'begin' } }),
    ...(artifact.media_type.startsWith('image/') ? afterwards() : []).map((kind) => button({ word: say(`steps.do.${kind}`), icon: 'picture', act: () => sendFrom(kind, artifact), data: { act: kind } })),
    artifact.media_type.startsWith('image/') && !byId('enlarge-card').hidden && button({ word: say('enlarge.use'), icon: 'front', act: () => enlarge(artifact), data: { act: 'enlarge' } }),
    leadTo(el('a', { class: 'button', download: fileName(job, index) }, sign('download'), el('span', { text: say('gallery.download') })), artifact.url),
  );
}

function sendFrom(kind, artifact) {
  if (byId('picture').open) byId('picture').close();
  sendOn(kind, artifact);
}

/** A result becomes what the next picture begins from. */
export function goOn(artifact) {
  if (byId('picture').open) byId('picture').close();
  beginFromResult(artifact);
}

/** A result is made larger. */
function enlarge(artifact) {
  if (byId('picture').open) byId('picture').close();
  enlargeResult(artifact);
}

/** Puts a job's settings into the form. */
export async function reuse(job) {
  const whole = job.request ? job : await jobs.detail(job.id);
  if (byId('picture').open) byId('picture').close();
  restore({ ...whole.request, model: whole.model });
  byId('make-prompt').focus();
}

/** What a downloaded picture is called: its job and number, nothing a client wrote. */
export function fileName(job, index) {
  const types = { 'image/png': 'png', 'image/jpeg': 'jpg', 'image/webp': 'webp' };
  const artifact = job.artifacts[index];
  return `lowtide-${job.id.slice(0, 10)}-${index + 1}.${types[artifact.media_type] || 'bin'}`;
}
