// The panel: starts its parts, and holds them together when the service comes and goes.

import { listen } from './api.js';
import { beginFrom } from './begin.js';
import { byId, el, fill, recall, remember, throttle, toast } from './dom.js';
import { onDownload, startDownloads } from './downloads.js';
import { enlargeFrom, loadEnlarge, startEnlarge } from './enlarge.js';
import { startExplain } from './explain.js';
import { startGallery } from './gallery.js';
import { jobs } from './jobs.js';
import { startKey } from './key.js';
import { machine } from './machine.js';
import { drawSeed, go, loadKinds, restoreFrom, startMake } from './make.js';
import { loadHistory, startMemory } from './memory.js';
import { loadModels, startModels } from './models.js';
import { startQueue } from './queue.js';
import { cancelShown, stageSubmitted, startStage } from './stage.js';
import { current, LANGUAGES, onLanguage, say, startWords, useLanguage } from './words.js';

let connected = false;
let everUp = false;
let stream = null;

/** Everything that may have changed while nobody listened. */
const lookAtAll = throttle(500, () => {
  Promise.allSettled([loadKinds(), loadEnlarge(), loadModels(), loadHistory(), jobs.refresh(), machine.look()]);
});

function showLink(up) {
  const was = connected;
  connected = up;
  byId('link').hidden = up;
  document.body.dataset.link = up ? 'up' : 'down';
  if (up && !was) {
    if (everUp) toast(say('link.back'));
    everUp = true;
    lookAtAll();
  }
  showMachine();
}

function showMachine() {
  const { state, memory, devices } = machine;
  const pill = byId('worker');
  pill.dataset.state = connected ? state : 'gone';
  byId('worker-word').textContent = say(`worker.${state}`);
  pill.title = devices;
  byId('worker-none').hidden = !connected || state !== 'gone' || !machine.known;
  const gauge = byId('tide');
  gauge.hidden = !memory;
  if (memory) {
    gauge.max = Math.max(1, memory.budget);
    gauge.value = memory.allocated;
  }
}

function startTheme() {
  const root = document.documentElement;
  const set = (theme) => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  set(recall('theme'));
  return () => {
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    set(dark ? 'light' : 'dark');
    remember('theme', root.dataset.theme);
  };
}

function startLanguages() {
  const select = byId('language');
  fill(select, ...Object.entries(LANGUAGES).map(([code, name]) => el('option', { value: code, text: name, lang: code })));
  select.addEventListener('change', () => useLanguage(select.value));
  onLanguage(() => {
    select.value = current();
    showMachine();
  });
}

function startKeys(turnTheme) {
  const help = byId('keys');
  byId('keys-open').addEventListener('click', () => help.showModal());
  for (const dialog of document.querySelectorAll('dialog')) {
    dialog.addEventListener('click', (event) => {
      if (event.target === dialog || event.target.closest('[data-close]')) dialog.close();
    });
  }
  const plain = {
    '/': () => byId('make-prompt').focus(),
    '?': () => help.showModal(),
    d: drawSeed,
    x: cancelShown,
    t: turnTheme,
  };
  document.addEventListener('keydown', (event) => {
    if (event.isComposing) return;
    const open = document.querySelector('dialog[open]');
    if ((event.ctrlKey || event.metaKey) && event.key === 'Enter') {
      event.preventDefault();
      if (!open) go();
      return;
    }
    const typing = event.target.closest && event.target.closest('input, textarea, select');
    if (typing || open || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = plain[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

/** A picture dropped anywhere gives its settings to the form; over the form's picture it is what to begin from. */
function startDrop() {
  let depth = 0;
  const has = (event) => event.dataTransfer && [...event.dataTransfer.types].includes('Files');
  const over = (shown) => {
    byId('drop').hidden = !shown;
  };
  addEventListener('dragenter', (event) => {
    if (!has(event)) return;
    depth += 1;
    over(true);
  });
  addEventListener('dragleave', (event) => {
    if (!has(event)) return;
    depth = Math.max(0, depth - 1);
    if (depth === 0) over(false);
  });
  addEventListener('dragover', (event) => {
    if (has(event)) event.preventDefault();
  });
  addEventListener('drop', (event) => {
    depth = 0;
    over(false);
    const [file] = (event.dataTransfer && event.dataTransfer.files) || [];
    if (!file) return;
    event.preventDefault();
    if (event.target.closest && event.target.closest('#make-begin')) beginFrom(file);
    else if (event.target.closest && event.target.closest('#enlarge-card')) enlargeFrom(file);
    else restoreFrom(file);
  });
}

function onEvent(name, data) {
  if (name === 'reset') lookAtAll();
  else if (name === 'download' && !data.job) onDownload(data);
  else jobs.on(name, data);
}

async function start() {
  const turnTheme = startTheme();
  byId('theme').addEventListener('click', turnTheme);
  startLanguages();
  await startWords();
  document.body.dataset.ready = 'yes';
  startMake(stageSubmitted);
  startGallery();
  startStage();
  startQueue();
  startMemory();
  startModels();
  startDownloads(() => Promise.allSettled([loadKinds(), loadModels()]));
  startEnlarge();
  startExplain();
  startKeys(turnTheme);
  startDrop();
  startKey(() => {
    stream.retry();
    lookAtAll();
  });
  machine.addEventListener('change', showMachine);
  stream = listen({ onEvent, onUp: () => showLink(true), onDown: () => showLink(false) });
  byId('link-retry').addEventListener('click', () => stream.retry());
  machine.start();
}

start();
