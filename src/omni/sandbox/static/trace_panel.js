// The trace panel: asks the gateway for the document of one turn until the turn is over, and shows it in words, figures and a picture.

import { duration } from "./duration.js";
import { drawStream, EXAMPLE } from "./stream_picture.js";

const POLL_MS = 500;
const MOST_POLLS = 360; // three minutes; a turn that is still open then is left alone
const AFTER_RECEIPT_MS = 400;
const KEY_STORED_AS = "omni-sandbox-api-key";

const STAGES = [
  ["queue_ms", "In the queue"],
  ["agent_wait_ms", "Waiting for the first words"],
  ["stream_ms", "Agent writing"],
  ["delivery_tail_ms", "Delivering the rest"],
  ["unaccounted_ms", "Not accounted for"],
  ["turn_total_ms", "Whole turn"],
];
const ENDINGS = {
  completed: ["completed", "good"],
  error: ["agent error", "bad"],
  incomplete: ["broke off", "bad"],
  paused: ["needs consent", "warn"],
  cancelled: ["cancelled", "warn"],
  timeout: ["timed out", "bad"],
  send_failed: ["not delivered", "bad"],
  interrupted: ["interrupted", "bad"],
};

const byId = (id) => document.getElementById(id);

export class TracePanel {
  #config;
  #key;
  #traceId = null;
  #shown = null;
  #polls = 0;
  #timer;
  #turn = 0;

  constructor(config) {
    this.#config = config;
    this.#key = config.api_key ?? sessionStorage.getItem(KEY_STORED_AS);
    new ResizeObserver(() => this.#draw(this.#shown ?? (this.#traceId ? {} : EXAMPLE))).observe(byId("picture"));
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#key = byId("key").value;
      sessionStorage.setItem(KEY_STORED_AS, this.#key);
      byId("key-form").hidden = true;
      if (this.#traceId) this.#restart();
    });
  }

  show(traceId, { isLast }) {
    this.#traceId = traceId;
    this.#shown = null;
    delete byId("trace").dataset.empty;
    byId("figures").replaceChildren(...figures({}));
    fillStages(null);
    fillMessages([]);
    this.#draw({});
    byId("which").textContent = isLast ? "last" : "chosen";
    this.#say("The agent is thinking…", []);
    this.#setEnding("running", "live");
    this.complain(null);
    this.#restart();
  }

  // Something happened on the phone: receipts come after the turn is over, so the document is read once more.
  touch() {
    if (!this.#shown || this.#shown.timeline?.completed_ms == null) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#poll(this.#turn), AFTER_RECEIPT_MS);
  }

  complain(sentence) {
    byId("trouble").hidden = !sentence;
    byId("trouble").textContent = sentence ?? "";
  }

  #restart() {
    clearTimeout(this.#timer);
    this.#polls = 0;
    this.#turn += 1;
    this.#poll(this.#turn);
  }

  async #poll(turn) {
    const found = await this.#read();
    if (turn !== this.#turn) return; // another turn was opened meanwhile
    if (found) this.#render(found);
    this.#polls += 1;
    const isOver = found?.timeline?.completed_ms != null;
    if (!isOver && this.#polls < MOST_POLLS && byId("key-form").hidden) {
      this.#timer = setTimeout(() => this.#poll(turn), POLL_MS);
    }
  }

  async #read() {
    try {
      const answer = await fetch(`${this.#config.trace_base}/api/v1/traces/${encodeURIComponent(this.#traceId)}/streaming`, {
        headers: { "x-api-key": this.#key ?? "" },
      });
      if (answer.status === 401 || answer.status === 403) byId("key-form").hidden = false;
      if (answer.ok) return await answer.json();
      // A trace that was only just opened may not be stored yet.
      if (answer.status !== 404) this.complain(`The gateway answered ${answer.status} to the request for this trace.`);
    } catch {
      this.complain("The gateway cannot be reached from this page.");
    }
    return null;
  }

  #render(trace) {
    this.#shown = trace;
    const timeline = trace.timeline ?? {};
    const isOver = timeline.completed_ms != null;
    const [words, tone] = isOver ? (ENDINGS[trace.ending ?? timeline.ending] ?? [trace.status, "quiet"]) : ["running", "live"];
    this.#setEnding(words, tone);
    this.#say(headline(trace), facts(trace));
    this.complain(isOver && trace.error_message ? `${trace.error_stage ?? "error"}: ${trace.error_message}` : null);
    byId("figures").replaceChildren(...figures(trace));
    fillStages(timeline.stages);
    fillMessages(trace.delivery?.messages ?? []);
    this.#draw(trace);
  }

  #draw(trace) {
    drawStream(byId("picture"), byId("legend"), trace);
  }

  #say(sentence, details) {
    if (byId("headline").textContent !== sentence) byId("headline").textContent = sentence;
    byId("facts").textContent = details.join(" · ");
  }

  #setEnding(words, tone) {
    byId("ending").textContent = words;
    byId("ending").dataset.tone = tone;
  }
}

function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
}

export function headline(trace) {
  const { timeline = {}, delivery, streaming_complete: complete } = trace;
  const chunks = trace.streaming_chunks ?? [];
  const characters = timeline.total_content_length ?? chunks.reduce((sum, chunk) => sum + chunk.size, 0);
  const numChunks = timeline.total_chunks ?? chunks.length;
  const parts = [];
  if (timeline.total_streaming_time_ms != null) {
    const verb = complete ? "streamed in" : "ended after";
    parts.push(`${verb} ${duration(timeline.total_streaming_time_ms)}: ${count(characters, "character")} in ${count(numChunks, "chunk")}`);
  } else if (numChunks > 0) {
    parts.push(`streaming: ${count(characters, "character")} in ${count(numChunks, "chunk")} so far`);
  } else {
    return (timeline.completed_ms != null && trace.headline) || "The agent is thinking…";
  }
  if (timeline.first_token_latency_ms != null) parts.push(`first token after ${duration(timeline.first_token_latency_ms)}`);
  if (delivery && delivery.sent > 0) parts.push(delivered(delivery));
  return parts.join(", ");
}

function delivered(delivery) {
  let words = `${count(delivery.accepted, "message")} accepted`;
  if (delivery.delivered === delivery.sent) words = `${count(delivery.delivered, "message")} delivered`;
  else if (delivery.delivered > 0) words = `${delivery.delivered} of ${count(delivery.sent, "message")} delivered`;
  if (delivery.failed) words += `, ${delivery.failed} failed`;
  const reads = delivery.messages.map((message) => message.read_ms).filter((ms) => ms != null);
  if (!reads.length) return words;
  const all = delivery.read === delivery.delivered ? "read" : `${delivery.read} read`;
  return `${words}, ${all} after ${duration(Math.max(...reads))}`;
}

function facts(trace) {
  const { timeline = {} } = trace;
  const said = [];
  if (timeline.num_tools) said.push(count(timeline.num_tools, "tool call"));
  if (trace.received_at) said.push(new Date(trace.received_at).toLocaleTimeString());
  said.push(trace.trace_id);
  return said;
}

function figures({ timeline = {}, delivery }) {
  const shown = [
    ["First token", timeline.first_token_latency_ms, "after the request"],
    ["First message", timeline.first_message_ms, "after the user wrote"],
    ["Stream", timeline.total_streaming_time_ms, count(timeline.total_chunks ?? 0, "chunk")],
    ["Delivered", delivery?.sent ? `${delivery.delivered} of ${delivery.sent}` : null, delivery?.unknown ? `${delivery.unknown} unknown` : "by receipts"],
    ["Tail lag", delivery?.tail_lag_ms, "after the last chunk"],
  ];
  const unknown = timeline.completed_ms == null ? "…" : "unknown";
  return shown.map(([name, value, note]) => {
    const box = document.createElement("div");
    const words = value == null ? unknown : typeof value === "number" ? duration(value) : value;
    box.append(cell("dt", name), cell("dd", words), cell("dd", note));
    box.children[1].classList.toggle("unknown", value == null);
    box.children[2].className = "note";
    return box;
  });
}

function fillStages(stages) {
  const total = stages?.turn_total_ms;
  const rows = STAGES.map(([field, name]) => {
    const row = document.createElement("tr");
    row.dataset.stage = field;
    const head = cell("th", name);
    head.scope = "row";
    const share = document.createElement("td");
    const value = stages?.[field];
    if (total && value != null) {
      const bar = document.createElement("span");
      bar.className = "share";
      bar.style.width = `${Math.min(100, (100 * value) / total)}%`;
      share.append(bar);
    }
    row.append(head, cell("td", value == null ? "–" : duration(value)), share);
    return row;
  });
  document.querySelector("#stages tbody").replaceChildren(...rows);
}

function fillMessages(messages) {
  const rows = messages.map((message) => {
    const row = document.createElement("tr");
    const chunks = message.first_chunk == null ? "–" : `${message.first_chunk}–${message.last_chunk}`;
    const times = ["queued_ms", "accepted_ms", "delivered_ms", "read_ms"].map((field) => cell("td", message[field] == null ? "–" : duration(message[field])));
    const status = cell("td", message.status + (message.attempts > 1 ? ` (${message.attempts} attempts)` : ""));
    status.dataset.status = message.status;
    if (message.error) status.title = message.error;
    const head = cell("th", message.index + 1);
    head.scope = "row";
    row.append(head, cell("td", chunks), ...times, status);
    row.title = message.text ?? "";
    return row;
  });
  document.querySelector("#messages tbody").replaceChildren(...rows);
  byId("messages").hidden = rows.length === 0;
}

function cell(name, content) {
  const made = document.createElement(name);
  made.textContent = content;
  return made;
}
