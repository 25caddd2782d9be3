// What depth 1 would look like, from the records of the steps that really ran.
//
// All times are milliseconds on the engine's clock. A step is {worker, id, decodes, prefill, scheduled, sent, received, prepared,
// dispatched, started, finished, collected, answered}.

/** The same step with nothing beside it: each stage takes as long as it took, and begins when the one before has ended.
 *
 * What a step waited for the device, since that was still busy, is no stage: at depth 1 the device is free. A device that began
 * while the worker was still dispatching does so here too.
 */
export function alone(step, from) {
  const sent = from + (step.sent - step.scheduled);
  const received = sent + Math.max(0, step.received - step.sent);
  const prepared = received + Math.max(0, step.prepared - step.received);
  const dispatched = prepared + Math.max(0, step.dispatched - step.prepared);
  const early = Math.min(dispatched - prepared, Math.max(0, step.dispatched - step.started));
  const started = dispatched - early;
  const finished = started + (step.finished - step.started);
  const collected = finished + Math.max(0, step.collected - step.finished);
  const answered = collected + Math.max(0, step.answered - step.collected);
  return { ...step, scheduled: from, sent, received, prepared, dispatched, started, finished, collected, answered };
}

/** Lays the steps of one worker out one after the other, as they come.
 *
 * Time in which nothing was to be done, between the answer to everything and the next step that could be planned, stays as long as it
 * was: depth changes nothing about it.
 */
export class OneAtATime {
  #end = null; // of the laid out steps
  #idleFrom = null; // when everything that came so far was answered, on the real clock

  /** The next step, in the order of their answers, as it would have been. */
  add(step) {
    const pause = this.#idleFrom === null ? 0 : Math.max(0, step.scheduled - this.#idleFrom);
    const laid = alone(step, this.#end === null ? step.scheduled : this.#end + pause);
    this.#end = laid.answered;
    this.#idleFrom = Math.max(this.#idleFrom ?? step.answered, step.answered);
    return laid;
  }
}

/** Milliseconds between `from` and `to` that intervals [begin, end], sorted by their beginning, cover. */
export function covered(intervals, from, to) {
  let sum = 0;
  let reached = from;
  for (const [begin, end] of intervals) {
    const until = Math.min(end, to);
    if (until <= reached) continue;
    sum += until - Math.max(begin, reached);
    reached = until;
    if (reached >= to) break;
  }
  return sum;
}

/** Share of the time between `from` and `to` in which one device had nothing to run, though steps of its worker were under way.
 *
 * A step is under way from its planning to its answer. Returns {idle, busy}: milliseconds.
 */
export function idleTime(steps, from, to) {
  const underWay = steps.map((step) => [step.scheduled, step.answered]).sort((a, b) => a[0] - b[0]);
  const running = steps.map((step) => [step.started, step.finished]).sort((a, b) => a[0] - b[0]);
  const busy = covered(running, from, to);
  return { idle: Math.max(0, covered(underWay, from, to) - busy), busy };
}

/** The idle share of several devices together: of [{idle, busy}]. null: nothing was under way. */
export function share(times) {
  const idle = times.reduce((sum, time) => sum + time.idle, 0);
  const whole = idle + times.reduce((sum, time) => sum + time.busy, 0);
  return whole > 0 ? idle / whole : null;
}

/** The two idle shares of the steps that were answered between `from` and `to`: [[step, the same laid out]] by worker. */
export function compare(workers, from, to) {
  const real = [];
  const single = [];
  for (const pairs of workers) {
    const recent = pairs.filter(([step]) => step.answered > from && step.scheduled < to);
    if (!recent.length) continue;
    const steps = recent.map(([step]) => step);
    const laid = recent.map(([, step]) => step);
    real.push(idleTime(steps, from, to));
    single.push(idleTime(laid, -Infinity, Infinity));
  }
  return { real: share(real), single: share(single) };
}
