// The picture to begin from, and the mask drawn over it: chosen, dropped, pasted, or a result that goes on.

import { address, upload } from './api.js';
import { byId, el, fill, toast } from './dom.js';
import { showIn } from './key.js';
import { Mask } from './mask.js';
import { onLanguage, reason, say } from './words.js';

/** What the service takes. */
const TYPES = ['image/png', 'image/jpeg', 'image/webp'];

let changed = () => {};
let mask = null;
/** Names as requests have them; `null` where there is none. */
let given = { image: null, mask: null };
/** What is on its way to the service. */
let sending = Promise.resolve();
let turn = 0;

/** Connects it. `onChanged()` is called when a request would be another one. */
export function startBegin(onChanged) {
  changed = onChanged;
  mask = new Mask(byId('begin-mask'), sendMask);
  byId('begin-choose').addEventListener('click', () => byId('begin-file').click());
  byId('begin-file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) beginFrom(file);
    event.target.value = '';
  });
  byId('begin-remove').addEventListener('click', () => show(null, null));
  for (const [id, erase] of [['begin-draw', false], ['begin-erase', true]]) {
    byId(id).addEventListener('click', () => {
      mask.erase = erase;
      showTools();
    });
  }
  byId('begin-size').addEventListener('input', (event) => {
    mask.size = Number(event.target.value);
  });
  byId('begin-undo').addEventListener('click', () => mask.undo());
  byId('begin-clear').addEventListener('click', () => mask.clear());
  mask.onTool = showTools;
  document.addEventListener('paste', (event) => {
    const file = [...((event.clipboardData && event.clipboardData.files) || [])].find((one) => TYPES.includes(one.type));
    if (!file) return;
    event.preventDefault();
    beginFrom(file);
  });
  onLanguage(showTools);
  showTools();
}

function showTools() {
  byId('begin-draw').setAttribute('aria-pressed', String(!mask.erase));
  byId('begin-erase').setAttribute('aria-pressed', String(mask.erase));
  byId('begin-size').value = String(mask.size);
  byId('begin-undo').disabled = !mask.canUndo;
  byId('begin-clear').disabled = mask.empty;
  byId('begin-mask').setAttribute('aria-label', say('begin.mask_hint'));
}

/** The fields of a request, none where there is no picture. */
export function begun() {
  if (!given.image) return {};
  return given.mask ? { ...given } : { image: given.image };
}

/** Waits until what was drawn is with the service. */
export const settled = () => sending;

/** Begins from a file. */
export async function beginFrom(file) {
  if (!TYPES.includes(file.type)) {
    toast(say('begin.wrong', { name: file.name }), true);
    return;
  }
  turn += 1;
  const mine = turn;
  byId('make-begin').open = true;
  try {
    const answer = await upload('v1/inputs', file);
    if (mine === turn) show(answer.input, null);
  } catch (error) {
    toast(reason(error), true);
  }
}

/** Begins from a result, by its name at the service. */
export function beginFromResult(artifact) {
  turn += 1;
  byId('make-begin').open = true;
  show(`artifact:${artifact.id}`, null);
  byId('make-begin').scrollIntoView({ block: 'nearest' });
}

/** Shows what a request begins from. */
export function restoreBegin({ image = null, mask: drawn = null } = {}) {
  turn += 1;
  if (image) byId('make-begin').open = true;
  show(image, image ? drawn : null);
}

function place(name) {
  return address(name.startsWith('artifact:') ? `v1/artifacts/${name.slice('artifact:'.length)}` : `v1/inputs/${name}`).href;
}

function show(image, drawn) {
  given = { image, mask: drawn };
  byId('begin-none').hidden = Boolean(image);
  byId('begin-given').hidden = !image;
  const picture = byId('begin-image');
  if (image) {
    picture.onload = () => mask.open(picture.naturalWidth, picture.naturalHeight, drawn && place(drawn));
    picture.onerror = () => {
      toast(say('begin.gone'), true);
      show(null, null);
    };
    showIn(picture, place(image));
  } else {
    picture.onload = null;
    picture.onerror = null;
    picture.removeAttribute('src');
    mask.close();
  }
  fill(byId('begin-word'), image ? el('span', { class: 'quiet', text: ` · ${say('begin.there')}` }) : null);
  showTools();
  changed();
}

/** Sends the mask as it is now; an older one that comes later does not count. */
function sendMask() {
  showTools();
  turn += 1;
  const mine = turn;
  if (mask.empty) {
    given.mask = null;
    changed();
    return;
  }
  sending = (async () => {
    try {
      const answer = await upload('v1/inputs', await mask.file());
      if (mine !== turn) return;
      given.mask = answer.input;
      changed();
    } catch (error) {
      toast(reason(error), true);
    }
  })();
}
