// The job in the light: its unfinished picture while it is made, the finished one after.

import { remove } from './api.js';
import { announce, button, byId, el, fill, sign, toast } from './dom.js';
import { howFar, state } from './downloads.js';
import { fileName, goOn, openPicture, reuse } from './gallery.js';
import { isOver, jobs, notesOf, peakOf } from './jobs.js';
import { leadTo, showIn } from './key.js';
import { stepOf } from './steps.js';
import { onLanguage, reason, say } from './words.js';

/** Progress is told aloud in steps of this share. */
const SPOKEN_SHARE = 0.25;

let shown = null;
let mine = new Set();
let told = -1;
let asked = 0;

/** Connects the stage. */
export function startStage() {
  jobs.addEventListener('change', follow);
  jobs.addEventListener('over', (event) => {
    if (shown && event.detail.id === shown.id) showResult(shown.id);
  });
  for (const kind of ['progress', 'preview']) {
    jobs.addEventListener(kind, (event) => {
      if (shown && event.detail === shown.id) showRunning();
    });
  }
  onLanguage(show);
  show();
}

/** Puts a job that was just submitted here in the light, unless another one is being made. */
export function stageSubmitted(answer, job) {
  mine.add(answer.id);
  if (mine.size > 500) mine = new Set([answer.id]);
  if (shown && !isOver(shown) && shown.state === 'running') return;
  light({ id: answer.id, state: answer.state || 'queued', position: answer.position, eta_s: answer.eta_s, model: job.model, request: job.request });
}

/** Cancels the job in the light, if it is not over. */
export async function cancelShown() {
  if (!shown || isOver(shown)) return;
  try {
    await remove(`v1/jobs/${shown.id}`);
  } catch (error) {
    toast(reason(error), true);
  }
  jobs.refreshSoon();
}

function light(job) {
  shown = job;
  told = -1;
  show();
  if (isOver(job)) showResult(job.id);
}

/** After the lists came: the job shown may have moved on, or another one may run now. */
function follow() {
  const running = jobs.active.find((job) => job.state === 'running');
  if (shown && !isOver(shown)) {
    const fresh = jobs.active.find((job) => job.id === shown.id);
    if (fresh) {
      shown = { ...shown, ...fresh };
      show();
    } else {
      showResult(shown.id);
    }
    return;
  }
  if (running && (!shown || !mine.has(shown.id) || mine.has(running.id))) light(running);
  else if (!shown && jobs.done.length) light(jobs.done[0]);
}

async function showResult(id) {
  asked += 1;
  const turn = asked;
  try {
    const job = await jobs.detail(id);
    if (turn !== asked || !shown || shown.id !== id) return;
    const before = shown.state;
    shown = { ...shown, ...job };
    if (job.state === 'done' && before !== 'done' && mine.has(id)) announce(say('stage.done'));
    show();
    if (!isOver(job)) jobs.refreshSoon();
  } catch (error) {
    if (error.status === 404 && shown && shown.id === id) {
      shown = null;
      show();
    }
  }
}

function show() {
  const stage = byId('stage');
  stage.dataset.state = shown ? shown.state : 'empty';
  if (!shown) {
    fill(byId('stage-view'), el('div', { class: 'empty' }, el('p', { class: 'strong', text: say('stage.empty') }), el('p', { class: 'quiet', text: say('stage.empty_hint') })));
    fill(byId('stage-bar'));
    return;
  }
  if (isOver(shown)) document.title = 'Lowtide';
  if (shown.state === 'done') showPictures();
  else if (isOver(shown)) showFailure();
  else showRunning();
}

function caption(...facts) {
  const prompt = (shown.request && shown.request.prompt) || '';
  const notes = notesOf(shown);
  return el('div', { class: 'caption' }, prompt && el('p', { class: 'prompt', text: prompt, title: prompt }), el('p', { class: 'facts' }, ...facts.filter(Boolean).map((text) => el('span', { text }))), notes.length > 0 && el('p', { class: 'warn', lang: 'en', text: notes.join(' ') }));
}

function showPictures() {
  const pictures = shown.artifacts || [];
  const several = pictures.length > 1;
  const view = el('div', { class: several ? 'pictures several' : 'pictures' });
  pictures.forEach((picture, index) => {
    const image = showIn(el('img', { alt: (shown.request && shown.request.prompt) || say('stage.title') }), picture.url);
    view.append(el('button', { type: 'button', class: 'picture', 'aria-label': say('gallery.open'), on: { click: () => openPicture(shown, index) } }, image));
  });
  fill(byId('stage-view'), view);
  const took = shown.finished_ms && shown.started_ms ? (shown.finished_ms - shown.started_ms) / 1e3 : undefined;
  const peak = peakOf(shown);
  const [first] = pictures;
  fill(
    byId('stage-bar'),
    caption(shown.model, took !== undefined && say('stage.took', { seconds: took }), peak !== null && say('stage.peak', { bytes: peak }), shown.request && shown.request.seed !== undefined && say('stage.seed', { seed: String(shown.request.seed) })),
    el('div', { class: 'row' }, button({ label: say('gallery.reuse'), icon: 'reuse', act: () => reuse(shown) }), first && button({ label: say('begin.use'), icon: 'picture', act: () => goOn(first), data: { act: 'begin' } }), first && leadTo(el('a', { class: 'button bare', download: fileName(shown, 0), title: say('gallery.download'), 'aria-label': say('gallery.download') }, sign('download')), first.url)),
  );
}

function showFailure() {
  fill(byId('stage-view'), el('div', { class: 'empty' }, el('p', { class: 'strong', text: say(`state.${shown.state}`) }), shown.error && el('p', { class: 'quiet', text: shown.error })));
  fill(byId('stage-bar'), caption(shown.model), el('div', { class: 'row' }, button({ label: say('gallery.reuse'), icon: 'reuse', act: () => reuse(shown) })));
}

/** What the job does, in words. */
export function doing(job) {
  if (job.cancel_requested) return say('queue.cancelling');
  if (job.pause_requested) return say('queue.pausing');
  const download = jobs.downloadOf(job);
  if (download) return say('get.of_job', { state: state(download), model: job.model });
  if (job.state === 'queued') return job.position > 1 ? say('stage.waiting_place', { place: job.position }) : say('stage.waiting');
  const progress = jobs.progressOf(job);
  if (job.state !== 'running' || !progress) return say(`state.${job.state}`);
  const step = stepOf(progress.phase);
  const name = step ? step.phase : progress.phase;
  const phase = say(`phase.${name}`);
  const words = phase.startsWith('phase.') ? name : phase;
  return step ? say('steps.at', { step: step.step, steps: step.steps, phase: words }) : words;
}

/** When it will be over, in words. */
export function left(job) {
  const progress = jobs.progressOf(job);
  if (job.state === 'running' && progress && progress.eta_ms !== null && progress.eta_ms !== undefined) return say('stage.left', { seconds: progress.eta_ms / 1e3 });
  if (job.state === 'queued' && job.eta_s !== null && job.eta_s !== undefined) return say('stage.eta', { seconds: job.eta_s });
  return '';
}

/** Only what changes is touched: this runs at each step. */
function showRunning() {
  const view = byId('stage-view');
  let live = view.querySelector('.making');
  if (!live || live.dataset.id !== shown.id) {
    live = el('div', { class: 'making', data: { id: shown.id } }, el('img', { class: 'preview', alt: say('stage.preview'), hidden: true }), el('div', { class: 'water', 'aria-hidden': 'true' }));
    fill(view, live);
    const cancel = button({ word: say('queue.cancel'), icon: 'cancel', act: cancelShown, data: { act: 'cancel' } });
    fill(byId('stage-bar'), el('div', { class: 'caption' }, el('p', { class: 'prompt', text: (shown.request && shown.request.prompt) || shown.model || '' }), el('progress', { 'aria-label': say('stage.title') }), el('p', { class: 'facts' })), cancel);
    if (!shown.request) jobs.detail(shown.id).then((job) => {
      if (!shown || shown.id !== job.id) return;
      shown.request = job.request;
      const prompt = byId('stage-bar').querySelector('.prompt');
      if (prompt) prompt.textContent = job.request.prompt || job.model;
    }, () => {});
  }
  const { preview } = jobs.live.get(shown.id) || {};
  const image = live.querySelector('img');
  if (preview && image.src !== preview) {
    image.src = preview;
    image.hidden = false;
  }
  const share = jobs.shareOf(shown);
  const bar = byId('stage-bar').querySelector('progress');
  const download = jobs.downloadOf(shown);
  if (share === null || (shown.state !== 'running' && !download)) bar.removeAttribute('value');
  else bar.value = share;
  const progress = jobs.progressOf(shown);
  const steps = shown.state === 'running' && progress && progress.steps > 0 ? say('stage.step', { step: progress.step, steps: progress.steps }) : '';
  fill(byId('stage-bar').querySelector('.facts'), ...[doing(shown), steps, ...(download ? howFar(download) : [left(shown)])].filter(Boolean).map((text) => el('span', { text })));
  tell(share);
  document.title = share === null ? 'Lowtide' : `${Math.round(share * 100)} % · Lowtide`;
}

function tell(share) {
  if (share === null || !mine.has(shown.id)) return;
  const quarter = Math.floor(share / SPOKEN_SHARE);
  const mark = `${doing(shown)} ${quarter}`;
  if (mark === told) return;
  told = mark;
  announce(say('stage.said', { phase: doing(shown), share }));
}
