// Small plots of the last minutes: a line, its area, and the latest value in words beside it.

import { fit } from "./lanes.js";

const KEPT = 120; // points, one a second

const rgb = (colour, alpha = 1) => `rgb(${colour[0]} ${colour[1]} ${colour[2]} / ${alpha})`;

/** What happened between two looks at the counters. null where it cannot be told. */
export function rates(before, after) {
  const seconds = (after.at - before.at) / 1e6;
  if (seconds <= 0 || after.generated < before.generated) return null; // the scheduler began anew
  const firsts = after.first_tokens - before.first_tokens;
  return {
    generated: (after.generated - before.generated) / seconds,
    prefilled: (after.prefilled - before.prefilled) / seconds,
    firstToken: firsts > 0 ? (after.first_token_seconds - before.first_token_seconds) / firsts : null,
  };
}

/** What holds and what is held, of all workers that live. */
export function totals(counts) {
  const sum = (what) => counts.workers.reduce((all, worker) => all + what(worker), 0);
  return {
    running: sum((worker) => worker.running),
    waiting: counts.waiting,
    blocks: sum((worker) => worker.blocks),
    held: sum((worker) => worker.blocks - worker.blocks_free),
  };
}

/** One plot. `colours`: the names of its lines' colours. Values that are null are gaps. */
export class Plot {
  #canvas;
  #names;
  #points = [];

  constructor(canvas, ...names) {
    this.#canvas = canvas;
    this.#names = names;
  }

  /** One value for each line. `most`: what the plot reaches up to, at least. */
  add(...values) {
    this.#points.push(values);
    if (this.#points.length > KEPT) this.#points.shift();
  }

  draw(colours, most = 0) {
    const { context, width } = fit(this.#canvas, 56);
    const all = this.#points.flat().filter((value) => value !== null);
    const top = Math.max(most, ...all, 1e-9) * 1.08;
    const step = width / (KEPT - 1);
    const at = (index) => width - (this.#points.length - 1 - index) * step;
    const level = (value) => 54 - (value / top) * 50;
    context.fillStyle = rgb(colours.track);
    context.fillRect(0, 54, width, 1);
    this.#names.forEach((name, line) => {
      const colour = colours[name];
      let run = [];
      const flush = () => {
        if (!run.length) return;
        context.beginPath();
        run.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
        context.strokeStyle = rgb(colour);
        context.lineWidth = 1.75;
        context.lineJoin = "round";
        context.stroke();
        context.lineTo(run.at(-1)[0], 54);
        context.lineTo(run[0][0], 54);
        context.fillStyle = rgb(colour, 0.12);
        context.fill();
        if (run.length === 1) {
          context.fillStyle = rgb(colour);
          context.fillRect(run[0][0] - 1.5, run[0][1] - 1.5, 3, 3);
        }
        run = [];
      };
      this.#points.forEach((values, index) => {
        if (values[line] === null) flush();
        else run.push([at(index), level(values[line])]);
      });
      flush();
    });
  }
}
