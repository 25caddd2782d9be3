// The steps of the last seconds, by worker, each beside what it would be at depth 1.

import { OneAtATime } from "./depth.js";

export const WINDOW = 2000; // milliseconds that are shown
const KEPT = 3 * WINDOW; // longer than what is shown, since the picture lags a little
const MOST = 40000; // steps of one worker

export class Records {
  #columns = [];
  #workers = new Map(); // index -> {pairs: [[step, laid out]], layout}

  /** `columns`: of the rows that `add` takes. The engine may be another one: everything begins anew. */
  begin(columns) {
    this.#columns = columns;
    this.#workers.clear();
  }

  /** New steps. `now`: the engine's clock, microseconds. */
  add(rows, now) {
    for (const row of rows) {
      const step = this.#step(row, now);
      let worker = this.#workers.get(step.worker);
      if (!worker) this.#workers.set(step.worker, (worker = { pairs: [], layout: new OneAtATime() }));
      worker.pairs.push([step, worker.layout.add(step)]);
    }
    for (const { pairs } of this.#workers.values()) {
      let old = 0;
      while (old < pairs.length && (pairs[old][0].answered < now / 1000 - KEPT || pairs.length - old > MOST)) old += 1;
      if (old > pairs.length / 4) pairs.splice(0, old);
    }
  }

  /** Who ran steps, in order. */
  get workers() {
    return [...this.#workers.keys()].sort((a, b) => a - b);
  }

  /** [[step, the same at depth 1]] of one worker, in the order of their answers. */
  of(worker) {
    return this.#workers.get(worker)?.pairs ?? [];
  }

  #step(row, now) {
    const step = {};
    let base = 0;
    this.#columns.forEach((name, index) => {
      const value = row[index];
      if (index < 4) step[["worker", "id", "decodes", "prefill"][index]] = value;
      else if (index === 4) step[name] = base = (now + value) / 1000;
      else step[name] = base + value / 1000;
    });
    return step;
  }
}

/** Where the picture of depth 1 ends when the real one ends at `time`: the step being answered then is as far on in both. */
export function timeAtDepthOne(pairs, time) {
  let low = 0;
  let high = pairs.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (pairs[middle][0].answered <= time) low = middle + 1;
    else high = middle;
  }
  if (low === 0) return pairs.length ? pairs[0][1].scheduled + Math.min(0, time - pairs[0][0].scheduled) : time;
  const [before, beforeLaid] = pairs[low - 1];
  if (low === pairs.length) return beforeLaid.answered + (time - before.answered);
  const [after, afterLaid] = pairs[low];
  const part = (time - before.answered) / Math.max(1e-9, after.answered - before.answered);
  return beforeLaid.answered + part * (afterLaid.answered - beforeLaid.answered);
}
