// What the workers say of themselves, asked for once a second while somebody looks.

import { get } from './api.js';

const EVERY_MS = 1_000;
const EVERY_SLOW_MS = 5_000;

/** Figures of all workers together. Events: `change` after each answer, `lost` when there was none. */
class Machine extends EventTarget {
  workers = [];
  memory = null;
  /** Whether an answer ever came. */
  known = false;
  #timer = 0;
  #turn = 0;

  /** Begins to ask, until the page is closed. */
  start() {
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.look();
    });
    return this.look();
  }

  /** Asks now. */
  async look() {
    clearTimeout(this.#timer);
    this.#turn += 1;
    const turn = this.#turn;
    let wait = EVERY_MS;
    try {
      const stats = await get('gpu/stats?detail=1', { timeout_ms: 10_000 });
      if (turn !== this.#turn) return;
      this.#take(stats);
      this.dispatchEvent(new Event('change'));
    } catch {
      wait = EVERY_SLOW_MS;
      this.dispatchEvent(new Event('lost'));
    }
    if (turn === this.#turn && !document.hidden) this.#timer = setTimeout(() => this.look(), wait);
  }

  #take(stats) {
    this.known = true;
    const all = (stats.detail && stats.detail.workers) || [];
    this.workers = all.filter((worker) => worker.alive !== false && worker.status);
    this.memory = this.workers.length ? sum(this.workers.map((worker) => worker.status.memory)) : null;
  }

  /** What the first worker that does anything does. */
  get state() {
    const states = this.workers.map((worker) => worker.status.state);
    return ['busy', 'loading', 'starting', 'draining', 'paused', 'idle'].find((state) => states.includes(state)) || 'gone';
  }

  /** What is computed on. */
  get devices() {
    const cards = this.workers.map((worker) => worker.device || (worker.cards && worker.cards.device)).filter(Boolean);
    return [...new Set(cards.map((card) => card.description || card.name))].join(' · ');
  }

  /** Models by name with their status on the worker that holds most of them. */
  get models() {
    const found = new Map();
    for (const model of this.workers.flatMap((worker) => worker.status.models || [])) {
      const other = found.get(model.name);
      if (!other || model.device_bytes > other.device_bytes) found.set(model.name, model);
    }
    return found;
  }

  /** Watts of all devices that tell. */
  get watts() {
    const told = this.workers.map((worker) => worker.status.power_w).filter((watts) => watts !== undefined && watts !== null);
    return told.length ? told.reduce((a, b) => a + b, 0) : null;
  }

  /** The busiest device's figures. */
  get utilisation() {
    const all = this.workers.map((worker) => worker.status.utilisation).filter(Boolean);
    return all.reduce((most, one) => (one.now > most.now ? one : most), all[0] || null);
  }
}

function sum(memories) {
  const total = { holders: [] };
  for (const memory of memories) {
    for (const [name, value] of Object.entries(memory)) if (typeof value === 'number') total[name] = (total[name] || 0) + value;
    total.holders.push(...(memory.holders || []));
  }
  return total;
}

/** The machine of this page. */
export const machine = new Machine();
