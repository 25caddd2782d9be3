// A conversation with the engine's own /v1/chat/completions, or a text that /v1/completions goes on with.

import { authorization, complaint, EventReader } from "./source.js";

/** The box at the foot of the conversation. What the model says becomes text, never markup. */
export class Chat {
  #key;
  #parts;
  #model = null;
  #chats = true;
  #messages = [];
  #running = null;

  /** `key()`: what opens the engine. `parts`: log, form, input, send, stop, clear: elements. */
  constructor(parts, key) {
    this.#parts = parts;
    this.#key = key;
    parts.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    parts.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        this.#send();
      } else if (event.key === "Escape") this.#running?.abort();
    });
    parts.input.addEventListener("input", () => this.#grow());
    parts.stop.addEventListener("click", () => {
      this.#running?.abort();
      parts.input.focus();
    });
    parts.clear.addEventListener("click", () => {
      this.#running?.abort();
      this.#messages = [];
      parts.log.replaceChildren(parts.empty);
      parts.clear.hidden = true;
      parts.input.focus();
    });
  }

  /** The engine, as it says of itself. */
  begin(about) {
    this.#model = about.model;
    this.#chats = about.chats;
    const what = about.chats ? "Ask the model something" : "Begin a text: this model has no chat template";
    this.#parts.input.placeholder = what;
    this.#parts.input.disabled = this.#parts.send.disabled = false;
    this.#parts.empty.textContent = about.chats
      ? "Say something, and watch its steps go by."
      : "Begin a text, and the model goes on with it.";
  }

  #grow() {
    const { input } = this.#parts;
    input.style.height = "auto";
    input.style.height = `${Math.min(input.scrollHeight, 160)}px`;
  }

  async #send() {
    const { input, log, empty, clear } = this.#parts;
    const text = this.#chats ? input.value.trim() : input.value;
    if (!text || this.#running || this.#model === null) return;
    input.value = "";
    this.#grow();
    empty.remove();
    clear.hidden = false;
    this.#bubble("you", "You").append(text);
    const answer = new Answer(this.#bubble("model", this.#model), () => this.#follow());
    const messages = this.#messages; // of this conversation, even if another begins meanwhile
    messages.push({ role: "user", content: text });
    this.#follow(true);
    this.#running = new AbortController();
    this.#busy(true);
    try {
      await this.#ask(text, answer, this.#running.signal);
    } catch (error) {
      if (error.name === "AbortError") answer.note("stopped");
      else answer.fail(error instanceof TypeError ? "the engine is not to be reached" : error.message);
    }
    if (answer.text) messages.push({ role: "assistant", content: answer.text });
    else messages.pop(); // what was not answered is not part of the conversation
    this.#running = null;
    log.setAttribute("aria-busy", "false");
    this.#busy(false);
    this.#follow();
  }

  async #ask(text, answer, signal) {
    const own = { model: this.#model, stream: true, stream_options: { include_usage: true } };
    const response = await fetch(this.#chats ? "v1/chat/completions" : "v1/completions", {
      method: "POST",
      headers: { "content-type": "application/json", ...authorization(this.#key()) },
      body: JSON.stringify({ ...own, ...(this.#chats ? { messages: this.#messages } : { prompt: text }) }),
      signal,
    });
    if (!response.ok) throw new Error(await complaint(response));
    let ended = false;
    let fault = null;
    const events = new EventReader((_, data) => {
      if (data === "[DONE]") {
        ended = true;
        return;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) fault = chunk.error.message;
      else answer.take(chunk);
    });
    const reader = response.body.getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      events.feed(value);
      if (fault) throw new Error(fault);
    }
    if (!ended) throw new Error("the answer broke off");
    answer.end();
  }

  #busy(busy) {
    const { stop, send, log } = this.#parts;
    stop.hidden = !busy;
    send.hidden = busy;
    log.setAttribute("aria-busy", String(busy));
  }

  #bubble(kind, who) {
    const bubble = document.createElement("article");
    bubble.className = `bubble ${kind}`;
    const name = document.createElement("h3");
    name.textContent = who;
    const body = document.createElement("div");
    body.className = "said";
    bubble.append(name, body);
    this.#parts.log.append(bubble);
    return body;
  }

  /** Keeps the end in sight, unless its reader has scrolled away from it. */
  #follow(always = false) {
    const { log } = this.#parts;
    if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 80) log.scrollTop = log.scrollHeight;
  }
}

/** One answer as it comes. */
class Answer {
  #body;
  #grown;
  #node = document.createTextNode("");
  #thought = null;
  #began = performance.now();
  #first = null;
  #reason = null;
  #tokens = null;

  constructor(body, grown) {
    this.#body = body;
    this.#grown = grown;
    body.classList.add("open");
    body.append(this.#node);
  }

  get text() {
    return this.#node.data;
  }

  take(chunk) {
    if (chunk.usage) this.#tokens = chunk.usage.completion_tokens;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const thought = choice.delta?.reasoning_content ?? choice.delta?.reasoning;
    const text = choice.delta?.content ?? choice.text;
    if ((thought || text) && this.#first === null) this.#first = performance.now();
    if (thought) this.#think(thought);
    if (text) this.#node.appendData(text);
    if (choice.finish_reason) this.#reason = choice.finish_reason;
    this.#grown();
  }

  /** It is complete. */
  end() {
    const parts = [];
    if (this.#tokens !== null) parts.push(`${this.#tokens} tokens`);
    if (this.#first !== null) {
      parts.push(`the first after ${((this.#first - this.#began) / 1000).toFixed(2)} s`);
      const seconds = (performance.now() - this.#first) / 1000;
      if (this.#tokens > 1 && seconds > 0) parts.push(`then ${Math.round((this.#tokens - 1) / seconds)} tokens/s`);
    }
    if (this.#reason === "length") parts.push("cut off at its limit");
    this.note(parts.join(", "));
  }

  note(text) {
    this.#say("note", text);
  }

  fail(text) {
    this.#say("fault", text);
  }

  #say(kind, text) {
    this.#body.classList.remove("open");
    const note = document.createElement("p");
    note.className = kind;
    note.textContent = text;
    if (kind === "fault") note.setAttribute("role", "alert");
    this.#body.after(note);
  }

  #think(text) {
    if (this.#thought === null) {
      const fold = document.createElement("details");
      const title = document.createElement("summary");
      title.textContent = "Thoughts";
      this.#thought = document.createTextNode("");
      const inside = document.createElement("div");
      inside.append(this.#thought);
      fold.append(title, inside);
      this.#body.before(fold);
    }
    this.#thought.appendData(text);
  }
}
