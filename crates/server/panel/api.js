// Talks to the service: requests, errors with their numbers, and the stream of events.
//
// A seed has up to 64 bits, more than a JavaScript number holds. It is a text of digits everywhere in the panel, and only
// here becomes a number on its way out and a text on its way in.

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
  const init = { method, headers: { ...headers }, signal: signal ? AbortSignal.any([signal, limit]) : limit };
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
    if (source) source.close();
    source = null;
  };
  const again = () => {
    close();
    onDown();
    timer = setTimeout(open, wait);
    wait = Math.min(wait * 2, RECONNECT_MS_MAX);
  };
  const open = () => {
    close();
    source = new EventSource(address('v1/events?previews=1'));
    // The browser tries again by itself only after some failures; this is the same after all of them.
    source.onerror = again;
    source.onopen = () => {
      wait = RECONNECT_MS_FIRST;
      onUp();
    };
    for (const name of HAPPENINGS) {
      source.addEventListener(name, (event) => {
        let data;
        try {
          data = read(event.data || '{}');
        } catch {
          return;
        }
        onEvent(name, data);
      });
    }
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
