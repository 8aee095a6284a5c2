// Jobs of several steps: what each does, and where its time went.

import { el } from './dom.js';
import { say, seconds } from './words.js';

const STEP = /^(\d+)\/(\d+) (.*)$/;

/** A phase of a step, `2/3 denoise`, in its parts; `null` where the job has one step. */
export function stepOf(phase) {
  const found = STEP.exec(phase || '');
  return found && { step: Number(found[1]), steps: Number(found[2]), phase: found[3] };
}

/** A job as its first step asked for it: the prompt, the size and the seed are those of the first picture. */
export function asOne(job) {
  const steps = job.request && job.request.steps;
  if (!Array.isArray(steps) || !steps.length) return job;
  return { ...job, request: steps[0].request || {}, steps };
}

const PARTS = ['work', 'waiting'];

/** How a job's steps went: kind, model, and a bar of work and of waiting for weights; nothing for a job of one step. */
export function stepsList(job) {
  const chain = job.report && job.report.chain;
  const steps = (chain && chain.steps) || job.steps || [];
  if (steps.length < 2) return null;
  const longest = Math.max(...steps.map((step) => (step.seconds ? step.seconds.total : 0)), 1e-9);
  return el('ol', { class: 'chain', 'aria-label': say('steps.title') }, ...steps.map((step) => line(step, longest)));
}

function line(step, longest) {
  const took = step.seconds;
  const kind = say(`kind.${step.kind}`);
  const name = kind.startsWith('kind.') ? step.kind : kind;
  const facts = took && say('steps.took', { work: took.work, loading: took.loading, waiting: took.waiting });
  const read = step.bytes_read + step.bytes_ahead;
  const bar = took && el('span', { class: 'bar', role: 'img', 'aria-label': facts }, ...PARTS.map((part) => {
    const segment = el('span', { class: part });
    segment.style.width = `${(100 * took[part]) / longest}%`;
    return segment;
  }));
  const title = [facts, read > 0 && say('steps.read', { bytes: read })].filter(Boolean).join(' · ');
  return el('li', { title }, el('span', { class: 'name', text: `${name} · ${step.model || ''}` }), bar, took && el('span', { class: 'quiet', text: seconds(took.total) }));
}
