// Draws the lanes: the last two seconds as they scroll by, and a closer look at a few steps.

import { timeAtDepthOne, WINDOW } from "./records.js";

const GAP = 6; // CSS pixels between lanes
const HEIGHTS = { scheduler: 22, pipe: 22, worker: 22, device: 40 };
const AXIS = 20;
const STRIPED = 4; // columns that a step has at least where steps are told apart by their shade
const MOST_DEVICES = 8; // lanes of other workers' devices

/** The stages of a step: lane, begin, end. */
export const STAGES = [
  ["scheduler", "scheduled", "sent"],
  ["pipe", "sent", "received"],
  ["worker", "received", "dispatched"],
  ["device", "started", "finished"],
  ["worker", "finished", "collected"],
  ["pipe", "collected", "answered"],
];

/** Colours as the style sheet has them, which knows whether it is light or dark: [red, green, blue] by name. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const colours = {};
  for (const name of ["scheduler", "pipe", "worker", "device", "device-odd", "idle", "track", "ink", "faint", "surface"]) {
    const text = style.getPropertyValue(`--${name}`).trim();
    colours[name] = [1, 3, 5].map((at) => parseInt(text.slice(at, at + 2), 16));
  }
  return colours;
}

const rgb = (colour, alpha = 1) => `rgb(${colour[0]} ${colour[1]} ${colour[2]} / ${alpha})`;

/** Fits a canvas to its box and the screen's pixels; returns its context and size in CSS pixels. */
export function fit(canvas, height) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = `12px ${getComputedStyle(canvas).fontFamily}`;
  return { context, width, ratio };
}

function layOut(worker, workers) {
  const name = (what) => (workers.length > 1 ? `${what} ${worker}` : what);
  const lanes = [
    { kind: "scheduler", label: "scheduler", workers },
    { kind: "pipe", label: name("pipe"), workers: [worker] },
    { kind: "worker", label: name("worker"), workers: [worker] },
    { kind: "device", label: name("device"), workers: [worker] },
  ];
  const others = workers.filter((other) => other !== worker).slice(0, MOST_DEVICES - 1);
  for (const other of others) lanes.push({ kind: "device", label: `device ${other}`, workers: [other], small: true });
  let y = 0;
  for (const lane of lanes) {
    lane.y = y;
    lane.height = lane.small ? HEIGHTS.worker : HEIGHTS[lane.kind];
    y += lane.height + GAP;
  }
  return { lanes, height: y + AXIS };
}

const gutter = (width) => (width < 520 ? 66 : 84);

function frame(context, lanes, left, width, colours) {
  context.textBaseline = "middle";
  context.textAlign = "left";
  for (const lane of lanes) {
    context.fillStyle = rgb(colours.ink);
    context.fillText(lane.label, 0, lane.y + lane.height / 2 + 0.5);
    context.fillStyle = rgb(colours.track);
    context.fillRect(left, lane.y, width - left, lane.height);
  }
}

/** Adds the part of each column that [begin, end] covers, in columns. */
function cover(sums, begin, end) {
  const from = Math.max(0, begin);
  const to = Math.min(sums.length, end);
  if (to <= from) return;
  const first = Math.floor(from);
  const last = Math.min(sums.length - 1, Math.floor(to));
  if (first === last) {
    sums[first] += to - from;
    return;
  }
  sums[first] += first + 1 - from;
  for (let column = first + 1; column < last; column += 1) sums[column] += 1;
  sums[last] += to - last;
}

/** The last two seconds. */
export class Overview {
  #canvas;
  #strip = document.createElement("canvas");

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** `worker`: the one that has all its lanes; `time`: where the picture ends, on the engine's clock; `single`: as at depth 1. */
  draw(records, worker, time, single, colours) {
    const workers = records.workers.length ? records.workers : [worker];
    const { lanes, height } = layOut(worker, workers);
    const { context, width, ratio } = fit(this.#canvas, height);
    const left = gutter(width);
    frame(context, lanes, left, width, colours);
    const columns = Math.max(1, Math.round((width - left) * ratio));
    if (this.#strip.width !== columns || this.#strip.height !== lanes.length) {
      this.#strip.width = columns;
      this.#strip.height = lanes.length;
    }
    const strip = this.#strip.getContext("2d");
    const image = strip.createImageData(columns, lanes.length);
    const shown = new Map(workers.map((index) => [index, this.#visible(records.of(index), time, single)]));
    lanes.forEach((lane, row) => this.#paint(lane, image.data.subarray(4 * row * columns, 4 * (row + 1) * columns), shown, colours));
    strip.putImageData(image, 0, 0);
    context.imageSmoothingEnabled = false;
    lanes.forEach((lane, row) => {
      context.drawImage(this.#strip, 0, row, columns, 1, left, lane.y, width - left, lane.height);
    });
    this.#axis(context, left, width, height, colours);
  }

  #visible(pairs, time, single) {
    const end = single ? timeAtDepthOne(pairs, time) : time;
    const steps = [];
    for (let index = pairs.length - 1; index >= 0; index -= 1) {
      const step = pairs[index][single ? 1 : 0];
      if (step.answered < end - WINDOW) break;
      if (step.scheduled < end) steps.push(step);
    }
    return { steps: steps.reverse(), begin: end - WINDOW };
  }

  #paint(lane, pixels, shown, colours) {
    const columns = pixels.length / 4;
    const scale = columns / WINDOW;
    const even = new Float32Array(columns);
    const odd = new Float32Array(columns);
    const underWay = new Float32Array(columns);
    const wide = lane.kind === "device" && columns > STRIPED * shown.get(lane.workers[0]).steps.length;
    for (const worker of lane.workers) {
      const { steps, begin } = shown.get(worker);
      let reached = -Infinity;
      for (const step of steps) {
        for (const [kind, from, to] of STAGES) {
          if (kind !== lane.kind) continue;
          cover(wide && step.id % 2 ? odd : even, (step[from] - begin) * scale, (step[to] - begin) * scale);
        }
        if (lane.kind === "device") {
          cover(underWay, (Math.max(step.scheduled, reached) - begin) * scale, (step.answered - begin) * scale);
          reached = Math.max(reached, step.answered);
        }
      }
    }
    const [one, two] = lane.kind === "device" ? [colours.device, colours["device-odd"]] : [colours[lane.kind], colours[lane.kind]];
    for (let column = 0; column < columns; column += 1) {
      const a = even[column];
      const b = odd[column];
      const idle = Math.max(0, Math.min(1, underWay[column]) - a - b);
      const sum = a + b + idle;
      if (sum <= 0) continue;
      for (let part = 0; part < 3; part += 1) {
        pixels[4 * column + part] = (a * one[part] + b * two[part] + idle * colours.idle[part]) / sum;
      }
      pixels[4 * column + 3] = 255 * Math.min(1, sum);
    }
  }

  #axis(context, left, width, height, colours) {
    context.fillStyle = rgb(colours.faint);
    context.textBaseline = "alphabetic";
    const marks = width < 520 ? [2, 1, 0] : [2, 1.5, 1, 0.5, 0];
    for (const seconds of marks) {
      const x = left + (1 - (1000 * seconds) / WINDOW) * (width - left);
      context.textAlign = seconds === 2 ? "left" : seconds === 0 ? "right" : "center";
      context.fillText(seconds ? `−${seconds} s` : "now", x, height - 4);
    }
  }
}

/** A closer look at a few steps, which holds still. */
export class CloseUp {
  #canvas;

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** How many steps there is room for. */
  get room() {
    return this.#canvas.clientWidth < 520 ? 5 : 10;
  }

  /** `steps`: of one worker, in the order of their answers. */
  draw(steps, worker, several, colours) {
    const { lanes, height } = layOut(worker, several ? [worker, NaN] : [worker]);
    lanes.length = 4;
    const tall = lanes[3].y + lanes[3].height + AXIS + GAP;
    const { context, width } = fit(this.#canvas, Math.min(height, tall));
    const left = gutter(width);
    lanes[0].workers = [worker];
    frame(context, lanes, left, width, colours);
    if (!steps.length) return;
    const begin = Math.min(...steps.map((step) => step.scheduled));
    const end = Math.max(...steps.map((step) => step.answered));
    const scale = (width - left) / Math.max(1e-6, end - begin);
    const at = (time) => left + (time - begin) * scale;
    const lane = Object.fromEntries(lanes.map((one) => [one.kind, one]));
    this.#waiting(context, steps, lane.device, at, colours);
    for (const step of steps) {
      for (const [kind, from, to] of STAGES) {
        const { y, height: tallness } = lane[kind];
        const x = at(step[from]);
        const wide = Math.max(1.5, at(step[to]) - x - (kind === "device" ? 0.5 : 0));
        context.fillStyle = rgb(kind === "device" && step.id % 2 ? colours["device-odd"] : colours[kind]);
        context.beginPath();
        context.roundRect(x, y, wide, tallness, Math.min(3, wide / 2));
        context.fill();
        if (kind === "device" && wide > 44) {
          context.fillStyle = rgb(colours.surface);
          context.textAlign = "center";
          context.textBaseline = "middle";
          context.fillText(`${step.id}`, x + wide / 2, y + tallness / 2 + 0.5);
        }
      }
    }
    context.fillStyle = rgb(colours.faint);
    context.textBaseline = "alphabetic";
    context.textAlign = "left";
    context.fillText("0", left, tall - 4);
    context.textAlign = "right";
    context.fillText(`${(end - begin).toPrecision(3)} ms`, width, tall - 4);
  }

  /** Where the device had nothing to run though a step was under way: hatched, so that it is told apart without its colour too. */
  #waiting(context, steps, lane, at, colours) {
    for (let index = 1; index < steps.length; index += 1) {
      const from = steps[index - 1].finished;
      const to = steps[index].started;
      const left = at(from);
      const right = at(to);
      if (right - left < 0.75) continue;
      context.save();
      context.beginPath();
      context.rect(left, lane.y, right - left, lane.height);
      context.clip();
      context.fillStyle = rgb(colours.idle, 0.35);
      context.fill();
      context.strokeStyle = rgb(colours.idle);
      context.lineWidth = 1.5;
      for (let x = left - lane.height; x < right; x += 6) {
        context.beginPath();
        context.moveTo(x, lane.y + lane.height);
        context.lineTo(x + lane.height, lane.y);
        context.stroke();
      }
      context.restore();
    }
  }
}
