// What is known of the jobs: asked for when the page opens and after each event that changes the order, kept up to date by
// the stream in between. Only as many as are shown are kept.

import { get } from './api.js';
import { throttle } from './dom.js';
import { asOne } from './steps.js';

const ACTIVE_MAX = 60;
const QUEUE_PAGE = 100;
const WALK_PAGE = 500;
const WALK_PAGES_MAX = 10;
const WALK_MS = 5_000;
const FAILED_MAX = 20;
const GALLERY_PAGE = 24;
const GALLERY_MAX = 480;
const REFRESH_MS = 700;
const REORDER_MS = 250;
const DETAILS_AT_ONCE = 4;
const DETAILS_MAX = 2_000;
const OVER = new Set(['done', 'failed', 'cancelled']);
/** Events after which the lists have to be asked for again; the others say everything themselves. */
const ORDER_CHANGES = new Set([
  'submitted', 'claimed', 'parked', 'unparked', 'paused', 'resumed', 'given_back', 'delayed', 'done', 'failed', 'cancelled',
  'cancel_requested', 'moved', 'requeued', 'queue_held', 'reset',
]);

/** Whether nothing more happens to a job by itself. */
export const isOver = (job) => OVER.has(job.state);

/** The most memory a finished job had, as its worker measured it; `null` where it did not say. */
export function peakOf(job) {
  const { measured_peak: measured } = (job.report && job.report.memory) || {};
  const peaks = Object.values(measured || {}).filter((peak) => typeof peak === 'number');
  return peaks.length ? Math.max(...peaks) : null;
}

/** What of a finished job's request had no effect, in sentences as the service wrote them. */
export const notesOf = (job) => (job.report && job.report.notes) || [];

/** Jobs that wait, the next one first; those without a place cannot be begun yet. */
const byTurn = (list) => list.sort((a, b) => (a.position ?? Infinity) - (b.position ?? Infinity) || a.seq - b.seq);

/** What runs, what was parked for it, what waits, what a hand paused. */
const inOrder = (list) => ['running', 'parked', 'queued', 'paused'].flatMap((state) => byTurn(list.filter((job) => job.state === state)));

/** The lists, and events: `change` (lists), `progress` and `preview` (one job; `detail` is its id), `over` (the job). */
class Jobs extends EventTarget {
  active = [];
  failed = [];
  done = [];
  counts = {};
  held = false;
  older = null;
  known = false;
  /** Latest progress and preview of what runs, by id. */
  live = new Map();
  #details = new Map();
  #asked = [];
  #asking = 0;
  #refreshing = null;
  #walked = { at: 0, jobs: [] };

  #reorderSoon = throttle(REORDER_MS, () => {
    this.active = inOrder(this.active);
    this.dispatchEvent(new Event('change'));
  });

  refreshSoon = throttle(REFRESH_MS, () => this.refresh().catch(() => {}));

  /** Asks for everything anew. Calls that come while one is under way share the next one. */
  refresh() {
    if (this.#refreshing) {
      this.#refreshing.again = true;
      return this.#refreshing.promise;
    }
    const turn = { again: false };
    this.#refreshing = turn;
    turn.promise = this.#load().finally(() => {
      this.#refreshing = null;
      if (turn.again) this.refreshSoon();
    });
    return turn.promise;
  }

  async #load() {
    const list = (state, limit) => get(`v1/jobs?state=${state}&limit=${limit}`);
    const [queue, begun, queued, failed, done] = await Promise.all([
      get('v1/queue'),
      list('running,parked,paused', ACTIVE_MAX),
      list('queued', QUEUE_PAGE).then((page) => this.#next(page)),
      list('failed', FAILED_MAX),
      list('done', GALLERY_PAGE),
    ]);
    this.held = Boolean(queue.held);
    this.counts = queue.states || queue.counts || {};
    const known = new Set(begun.jobs.map((job) => job.id));
    this.active = inOrder([...begun.jobs, ...queued.filter((job) => !known.has(job.id))]).slice(0, ACTIVE_MAX);
    this.failed = failed.jobs;
    this.#mergeDone(done);
    for (const id of this.live.keys()) if (!this.active.some((job) => job.id === id)) this.live.delete(id);
    this.known = true;
    this.dispatchEvent(new Event('change'));
  }

  /**
   * Jobs that wait, those that are begun first at the top. The service lists the newest first, so a long queue has to be
   * walked through to find its head: that is done now and then, and in between what was found is shown.
   */
  async #next(page) {
    if (!page.next) {
      this.#walked = { at: 0, jobs: [] };
      return byTurn(page.jobs);
    }
    if (this.#walked.at && performance.now() - this.#walked.at < WALK_MS) return this.#walked.jobs;
    const all = [...page.jobs];
    let next = page.next;
    for (let count = 1; next && count < WALK_PAGES_MAX; count += 1) {
      const more = await get(`v1/jobs?state=queued&limit=${WALK_PAGE}&before=${encodeURIComponent(next)}`);
      all.push(...more.jobs);
      next = more.next;
    }
    this.#walked = { at: performance.now(), jobs: byTurn(all).slice(0, ACTIVE_MAX) };
    return this.#walked.jobs;
  }

  #mergeDone(page) {
    const fresh = new Set(page.jobs.map((job) => job.id));
    const oldest = page.jobs.length ? page.jobs[page.jobs.length - 1].seq : Infinity;
    const kept = page.next ? this.done.filter((job) => !fresh.has(job.id) && job.seq < oldest) : [];
    this.done = [...page.jobs, ...kept].slice(0, GALLERY_MAX);
    if (!kept.length) this.older = page.next ?? null;
  }

  /** A page of older pictures. */
  async more() {
    if (!this.older || this.done.length >= GALLERY_MAX) return;
    const page = await get(`v1/jobs?state=done&limit=${GALLERY_PAGE}&before=${encodeURIComponent(this.older)}`);
    const there = new Set(this.done.map((job) => job.id));
    this.done.push(...page.jobs.filter((job) => !there.has(job.id)));
    this.older = this.done.length < GALLERY_MAX ? page.next ?? null : null;
    this.dispatchEvent(new Event('change'));
  }

  /** Takes in an event of the stream. */
  on(name, data) {
    const id = data.job || data.id;
    if (name === 'progress') {
      this.#alive(id, { progress: { phase: data.phase, step: data.step, steps: data.steps, eta_ms: data.eta_ms }, at: Date.now() });
      this.dispatchEvent(new CustomEvent('progress', { detail: id }));
    } else if (name === 'preview') {
      const url = data.url || data.preview || '';
      // Only pictures that are in the event itself: nothing else is ever loaded because of a stream.
      if (!/^data:image\/(png|jpeg|webp);base64,/.test(url)) return;
      this.#alive(id, { preview: url });
      this.dispatchEvent(new CustomEvent('preview', { detail: id }));
    } else if (name === 'download') {
      this.#alive(id, { download: data });
      this.dispatchEvent(new CustomEvent('progress', { detail: id }));
    } else if (name === 'position') {
      const job = this.active.find((other) => other.id === id);
      if (!job) return;
      Object.assign(job, { position: data.position, eta_s: data.eta_s });
      this.#reorderSoon();
    } else if (ORDER_CHANGES.has(name)) {
      if (name !== 'submitted') this.#details.delete(id);
      if (name === 'moved' || name === 'cancelled') this.#walked.at = 0;
      if (OVER.has(name)) this.dispatchEvent(new CustomEvent('over', { detail: { id, state: name, reason: data.reason } }));
      this.refreshSoon();
    }
  }

  #alive(id, news) {
    this.live.set(id, { ...this.live.get(id), ...news });
  }

  /** Progress of a job, from the stream or from the list. */
  progressOf(job) {
    return (this.live.get(job.id) || {}).progress || job.progress || null;
  }

  /** How far the model of a job that waits for it is on its way here; `null` where it waits for none. */
  downloadOf(job) {
    if (job.state !== 'queued') return null;
    return (this.live.get(job.id) || {}).download || job.download || null;
  }

  /** How far a job is, 0 to 1; `null` where nobody knows. */
  shareOf(job) {
    const download = this.downloadOf(job);
    if (download) return download.bytes ? Math.min(1, download.there / download.bytes) : null;
    const progress = this.progressOf(job);
    return progress && progress.steps > 0 ? Math.min(1, progress.step / progress.steps) : null;
  }

  /** A job with its request, from memory or from the service; a few at a time. */
  detail(id) {
    const kept = this.#details.get(id);
    if (kept) return kept;
    const promise = new Promise((resolve, reject) => this.#asked.push({ id, resolve, reject }));
    promise.catch(() => this.#details.delete(id));
    this.#details.set(id, promise);
    if (this.#details.size > DETAILS_MAX) this.#details.delete(this.#details.keys().next().value);
    this.#askNext();
    return promise;
  }

  #askNext() {
    while (this.#asking < DETAILS_AT_ONCE && this.#asked.length) {
      const { id, resolve, reject } = this.#asked.shift();
      this.#asking += 1;
      get(`v1/jobs/${encodeURIComponent(id)}`).then(asOne).then(resolve, reject).finally(() => {
        this.#asking -= 1;
        this.#askNext();
      });
    }
  }
}

/** The jobs of this page. */
export const jobs = new Jobs();
