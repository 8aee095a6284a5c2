// Talks to the service: requests, errors with their numbers, and the stream of events.
//
// A seed has up to 64 bits, more than a JavaScript number holds. It is a text of digits everywhere in the panel, and only
// here becomes a number on its way out and a text on its way in.

import { credentials } from './key.js';

const BASE = new URL('../', import.meta.url);
const TIMEOUT_MS = 20_000;
const UPLOAD_MS = 120_000;
const RECONNECT_MS_FIRST = 500;
const RECONNECT_MS_MAX = 10_000;
const SILENCE_MS_MAX = 45_000;
const SEED_MARK = /"seed":"(\d{1,20})"/g;

/** The address of something the service offers. */
export function address(path) {
  return new URL(String(path).replace(/^\//, ''), BASE);
}

/** What the service answered instead of a result. `code` is `unreachable` where there was no answer. */
export class Refusal extends Error {
  constructor(status, error) {
    super(error.message || `HTTP ${status}`);
    this.status = status;
    this.code = error.code || 'internal';
    this.field = error.field;
    this.numbers = error;
  }
}

function write(body) {
  return JSON.stringify(body).replace(SEED_MARK, '"seed":$1');
}

function read(text) {
  return JSON.parse(text, (key, value, context) => {
    if (key !== 'seed' || typeof value !== 'number') return value;
    return (context && context.source) || String(value);
  });
}

/** Asks the service; the answer is JSON. Rejects with a [`Refusal`]. */
export async function ask(method, path, body, { signal, timeout_ms = TIMEOUT_MS, headers = {} } = {}) {
  const limit = AbortSignal.timeout(timeout_ms);
  const init = { method, headers: { ...credentials(), ...headers }, signal: signal ? AbortSignal.any([signal, limit]) : limit };
  if (body instanceof Blob) {
    init.headers['Content-Type'] = body.type;
    init.body = body;
  } else if (body !== undefined) {
    init.headers['Content-Type'] = 'application/json';
    init.body = write(body);
  }
  let response;
  let text;
  try {
    response = await fetch(address(path), init);
    text = await response.text();
  } catch (error) {
    if (signal && signal.aborted) throw error;
    throw new Refusal(0, { code: 'unreachable', message: String(error.message || error) });
  }
  let answer = null;
  try {
    answer = text ? read(text) : null;
  } catch {
    if (response.ok) throw new Refusal(response.status, { code: 'internal', message: 'the answer is not JSON' });
  }
  if (response.status === 401) dispatchEvent(new Event('lowtide-key'));
  if (!response.ok) throw new Refusal(response.status, (answer && answer.error) || {});
  return answer;
}

export const get = (path, options) => ask('GET', path, undefined, options);
export const post = (path, body = {}, options) => ask('POST', path, body, options);
export const remove = (path, options) => ask('DELETE', path, undefined, options);

/** Sends a file; pictures take longer than words. */
export const upload = (path, file) => ask('POST', path, file, { timeout_ms: UPLOAD_MS });

/** A key under which a lost answer can be asked for again without a second job. */
export function freshKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

const HAPPENINGS = [
  'submitted', 'claimed', 'progress', 'parked', 'unparked', 'paused', 'resumed', 'given_back', 'delayed', 'done', 'failed',
  'cancel_requested', 'cancelled', 'moved', 'requeued', 'queue_held', 'preview', 'position', 'download', 'reset',
];

/**
 * The stream of everything that happens, for as long as the page is looked at. `onEvent(name, data)`; `onUp()` after each
 * connection, since what happened before it has to be asked for; `onDown()` when it breaks.
 */
export function listen({ onEvent, onUp, onDown }) {
  let source = null;
  let wait = RECONNECT_MS_FIRST;
  let timer = 0;

  const close = () => {
    clearTimeout(timer);
    if (source) source.abort();
    source = null;
  };
  const again = () => {
    close();
    onDown();
    timer = setTimeout(open, wait);
    wait = Math.min(wait * 2, RECONNECT_MS_MAX);
  };
  const tell = (text) => {
    const field = (name) => text.split('\n').filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join('\n');
    const name = field('event');
    if (!HAPPENINGS.includes(name)) return;
    let data;
    try {
      data = read(field('data') || '{}');
    } catch {
      return;
    }
    onEvent(name, data);
  };
  // Not the browser's own EventSource: that cannot say who asks.
  const open = async () => {
    close();
    const mine = new AbortController();
    source = mine;
    let heard = setTimeout(() => mine.abort(), SILENCE_MS_MAX);
    try {
      const response = await fetch(address('v1/events?previews=1'), { headers: { ...credentials(), Accept: 'text/event-stream' }, cache: 'no-store', signal: mine.signal });
      if (response.status === 401) dispatchEvent(new Event('lowtide-key'));
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      wait = RECONNECT_MS_FIRST;
      onUp();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        // The service says something every few seconds, if only that it is still there.
        clearTimeout(heard);
        heard = setTimeout(() => mine.abort(), SILENCE_MS_MAX);
        const parts = (rest + value).split('\n\n');
        rest = parts.pop();
        parts.forEach(tell);
      }
    } catch {
      // What broke it does not matter: it is opened again.
    } finally {
      clearTimeout(heard);
    }
    if (source === mine) again();
  };
  // A browser opens few connections to one address: a page that nobody has looked at for a while lets its own go.
  let away = 0;
  document.addEventListener('visibilitychange', () => {
    clearTimeout(away);
    if (document.hidden) away = setTimeout(close, SILENCE_MS_MAX);
    else if (!source) open();
  });
  open();
  return { retry: open };
}
