// Why things are as they are, and what more memory would change.

import { get } from './api.js';
import { byId, el, fill, throttle } from './dom.js';
import { jobs } from './jobs.js';
import { machine } from './machine.js';
import { bytes, canSay, current, onLanguage, say } from './words.js';

const EVERY_MS = 5_000;
const AFTER_EVENT_MS = 1_000;
const SHOWN_MAX = 8;
const COUNTED = ['waiting', 'sessions', 'times', 'passes'];

let answer = null;

/** Connects the explanation. */
export function startExplain() {
  const soon = throttle(AFTER_EVENT_MS, ask);
  jobs.addEventListener('change', soon);
  byId('explain-more').addEventListener('change', ask);
  onLanguage(() => {
    for (const option of byId('explain-more').options) if (option.value) option.textContent = say('explain.more', { bytes: Number(option.value) * 1024 ** 3 });
    show();
  });
  setInterval(() => {
    if (!document.hidden && machine.workers.length) ask();
  }, EVERY_MS);
  ask();
}

async function ask() {
  const more = byId('explain-more').value;
  try {
    answer = await get(`gpu/explain${more ? `?more=${more}GiB` : ''}`);
  } catch {
    return;
  }
  show();
}

/** A sentence by its code in this language; in English, and where a word or a value is missing, as it came. */
function sentence({ code, text, values = {} }) {
  if (current() === 'en') return text;
  const phase = values.phase ? say(`phase.${values.phase}`) : undefined;
  const count = COUNTED.map((name) => values[name]).find((value) => value !== undefined);
  const known = { ...values, phase, count };
  const key = [`explain.${code}`, `explain.${code}_short`].find((one) => canSay(one, known));
  return key ? say(key, known) : text;
}

function show() {
  const said = (answer && answer.explanations) || [];
  const [first] = said;
  const summary = first && answer.summary === first.text ? sentence(first) : (answer && answer.summary && current() === 'en' && answer.summary) || (first && sentence(first)) || (answer && answer.summary);
  byId('explain-summary').textContent = summary || say('explain.empty');
  const rest = said.map(sentence).filter((text) => text !== summary).slice(0, SHOWN_MAX);
  fill(byId('explain-list'), ...rest.map((text) => el('li', { text })));
  const ifs = (answer && answer.what_if) || [];
  byId('what-none').hidden = ifs.length > 0;
  fill(byId('what-list'), ...ifs.slice(0, SHOWN_MAX).map((one) => {
    const saves = one.saves_s > 0.05 ? say('explain.saves', { seconds: one.saves_s }) : say('explain.saves_nothing');
    return el('li', { title: one.text || '', class: one.saves_s > 0.05 ? 'gain' : '' }, el('span', { text: `+ ${bytes(one.more_bytes)}` }), el('span', { text: saves }));
  }));
}
