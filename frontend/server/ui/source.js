// Reads the engine's events. Not with EventSource, which sends no Authorization header.

const FIRST_RETRY = 500; // milliseconds; doubles up to …
const LAST_RETRY = 15000;
const SILENCE = 8000; // after which a connection counts as dead: the engine says something every second

/** Splits a stream of bytes into server-sent events, cut anywhere: calls `onEvent(name, data)`. */
export class EventReader {
  #decoder = new TextDecoder();
  #rest = "";

  constructor(onEvent) {
    this.onEvent = onEvent;
  }

  feed(bytes) {
    const blocks = (this.#rest + this.#decoder.decode(bytes, { stream: true })).split("\n\n");
    this.#rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      }
      if (data.length) this.onEvent(name, data.join("\n"));
    }
  }
}

/** Headers that open this engine: of the key, where there is one. */
export function authorization(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

/** What an answer that is no success says, for people. */
export async function complaint(response) {
  try {
    const body = await response.json();
    return body.error?.message ?? body.message ?? `status ${response.status}`;
  } catch {
    return `status ${response.status}`;
  }
}

/** Watches while the page is seen, and comes back by itself when the engine was away.
 *
 * `on` has engine(about), tick(news), state(name, text): "connecting", "live", "away", "full", "key", "paused".
 */
export class Source {
  #on;
  #key;
  #current = null;
  #retry = FIRST_RETRY;
  #timer = 0;

  /** `key()`: the one to send, "" where none is wanted, null where one is and is not there. */
  constructor(on, key) {
    this.#on = on;
    this.#key = key;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.start()));
    window.addEventListener("online", () => this.start());
  }

  /** Connects, at once. */
  start() {
    this.stop();
    this.#retry = FIRST_RETRY;
    this.#connect();
  }

  /** Says nothing more to the engine. */
  stop() {
    clearTimeout(this.#timer);
    this.#current?.abort();
    this.#current = null;
  }

  /** Nobody looks. */
  pause() {
    this.stop();
    this.#on.state("paused", "paused");
  }

  async #connect() {
    const key = this.#key();
    if (key === null) {
      this.#on.state("key", "");
      return;
    }
    const mine = (this.#current = new AbortController());
    let alarm = 0;
    const heard = () => {
      clearTimeout(alarm);
      alarm = setTimeout(() => mine.abort(), SILENCE);
    };
    this.#on.state("connecting", "connecting");
    let why = "the engine is not to be reached";
    let name = "away";
    try {
      heard();
      const response = await fetch("ui/events", { headers: authorization(key), signal: mine.signal, cache: "no-store" });
      if (response.status === 401) {
        clearTimeout(alarm);
        if (this.#current === mine) this.#on.state("key", key ? "The engine does not know this key." : "");
        return;
      }
      if (!response.ok) {
        why = await complaint(response);
        name = response.status === 429 ? "full" : "away";
      } else {
        const events = new EventReader((kind, data) => this.#take(kind, JSON.parse(data)));
        const reader = response.body.getReader();
        this.#retry = FIRST_RETRY;
        for (;;) {
          const { done, value } = await reader.read();
          if (done) break;
          heard();
          events.feed(value);
        }
      }
    } catch (error) {
      if (error instanceof SyntaxError) console.error(error);
    }
    clearTimeout(alarm);
    mine.abort();
    if (this.#current !== mine) return; // another has begun, or nobody looks
    this.#on.state(name, why);
    this.#timer = setTimeout(() => this.#connect(), this.#retry * (0.75 + Math.random() / 2));
    this.#retry = Math.min(2 * this.#retry, LAST_RETRY);
  }

  #take(kind, data) {
    if (kind === "engine") this.#on.engine(data);
    else if (kind === "tick") this.#on.tick(data);
  }
}
