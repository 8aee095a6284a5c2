// The queue: what runs, what waits and in which order, what failed and why.

import { post, remove } from './api.js';
import { button, byId, el, fill, keep, toast } from './dom.js';
import { jobs } from './jobs.js';
import { doing, left } from './stage.js';
import { ago, moment, onLanguage, reason, say } from './words.js';

const PRIORITIES = ['urgent', 'normal', 'batch'];

/** Connects the queue. */
export function startQueue() {
  jobs.addEventListener('change', show);
  jobs.addEventListener('progress', (event) => {
    const row = byId('queue-list').querySelector(`[data-key="${CSS.escape(event.detail)}"]`);
    if (row) row.move();
  });
  byId('queue-hold').addEventListener('click', () => act(post(`v1/queue/${jobs.held ? 'release' : 'hold'}`)));
  onLanguage(() => {
    for (const id of ['queue-list', 'failed-list']) fill(byId(id));
    show();
  });
}

async function act(promise) {
  try {
    await promise;
  } catch (error) {
    toast(reason(error), true);
  }
  jobs.refreshSoon();
}

function total(state) {
  const counts = jobs.counts[state];
  if (typeof counts === 'number') return counts;
  return counts ? Object.values(counts).reduce((sum, n) => sum + n, 0) : 0;
}

function show() {
  const { active, failed, held } = jobs;
  const waiting = Math.max(total('queued'), active.filter((job) => job.state === 'queued').length);
  const running = active.filter((job) => job.state === 'running').length;
  byId('queue-count').textContent = [running && say('queue.running', { count: running }), waiting && say('queue.waiting', { count: waiting })].filter(Boolean).join(' · ');
  byId('queue-hold').setAttribute('aria-pressed', String(held));
  byId('queue-hold-word').textContent = say(held ? 'queue.release' : 'queue.hold');
  byId('queue-held').hidden = !held;
  byId('queue-empty').hidden = active.length > 0 || !jobs.known;
  keep(byId('queue-list'), active, (job) => job.id, row);
  const shown = active.filter((job) => job.state === 'queued').length;
  byId('queue-more').hidden = waiting <= shown;
  byId('queue-more').textContent = say('queue.more', { count: Math.max(0, waiting - shown) });
  byId('failed').hidden = failed.length === 0;
  byId('failed-count').textContent = say('queue.failed', { count: Math.max(total('failed'), failed.length) });
  keep(byId('failed-list'), failed, (job) => job.id, failedRow);
}

function title(job) {
  const node = el('p', { class: 'prompt', text: job.model });
  jobs.detail(job.id).then((whole) => {
    const prompt = whole.request && whole.request.prompt;
    node.textContent = prompt ? prompt.slice(0, 500) : `${whole.kind} · ${whole.model}`;
    node.title = prompt ? prompt.slice(0, 2_000) : '';
  }, () => {});
  return node;
}

/** A job that is not over. */
function row(first) {
  let job = first;
  const path = `v1/jobs/${encodeURIComponent(job.id)}`;
  const facts = el('p', { class: 'facts' });
  const bar = el('progress', { 'aria-label': say('state.running') });
  const priority = el('select', { class: 'small', 'aria-label': say('queue.priority'), title: say('queue.priority'), on: { change: () => act(post(`${path}/priority`, { priority: priority.value })) } }, ...PRIORITIES.map((value) => el('option', { value, text: say(`priority.${value}`) })));
  const front = button({ label: say('queue.front'), icon: 'front', act: () => act(post(`${path}/priority`, { front: true })), data: { act: 'front' } });
  const pause = button({ label: say('queue.pause'), icon: 'pause', act: () => act(post(`${path}/pause`)), data: { act: 'pause' } });
  const resume = button({ label: say('queue.resume'), icon: 'go', act: () => act(post(`${path}/resume`)), data: { act: 'resume' } });
  const cancel = button({ label: say('queue.cancel'), icon: 'cancel', act: () => act(remove(path)), data: { act: 'cancel' } });
  const node = el('li', { class: 'job' }, el('div', { class: 'grow' }, title(job), facts, bar), el('div', { class: 'row' }, priority, front, pause, resume, cancel));
  node.move = () => {
    const share = jobs.shareOf(job);
    bar.hidden = job.state !== 'running';
    if (share === null) bar.removeAttribute('value');
    else bar.value = share;
    fill(facts, ...[doing(job), left(job), job.model].filter(Boolean).map((text) => el('span', { text })));
  };
  node.update = (fresh) => {
    job = fresh;
    node.dataset.state = job.state;
    if (document.activeElement !== priority) priority.value = job.priority;
    front.hidden = job.state !== 'queued';
    priority.hidden = !['queued', 'paused'].includes(job.state);
    pause.hidden = job.state === 'paused' || job.pause_requested;
    resume.hidden = job.state !== 'paused' && !job.pause_requested;
    cancel.disabled = Boolean(job.cancel_requested);
    node.move();
  };
  return node;
}

function endOf(attempt) {
  const { end } = attempt;
  const name = end && (end.end || end);
  if (!name) return '';
  const word = say(`end.${name}`);
  return end.reason ? `${word}: ${end.reason}` : word;
}

/** A job that was given up, with its attempts. */
function failedRow(first) {
  let job = first;
  const error = el('p', { class: 'bad' });
  const when = el('p', { class: 'facts' });
  const history = el('ol', { class: 'history' });
  const again = button({ word: say('queue.requeue'), icon: 'again', act: () => act(post(`v1/jobs/${encodeURIComponent(job.id)}/requeue`)), data: { act: 'requeue' } });
  const node = el('li', { class: 'job' }, el('div', { class: 'grow' }, title(job), error, when, el('details', {}, el('summary', { text: say('queue.history') }), history)), again);
  node.update = (fresh) => {
    job = fresh;
    error.textContent = job.error || '';
    fill(when, el('span', { text: job.model }), job.finished_ms && el('span', { text: ago(job.finished_ms), title: moment(job.finished_ms) }));
    fill(history, ...(job.history || []).map((attempt) => el('li', { text: `${say('queue.attempt', { number: attempt.number })} · ${attempt.worker} · ${endOf(attempt)}` })));
  };
  return node;
}
