// Draws one turn as SVG: a time axis from the turn's start, a tick per chunk, marks for the first moments, a bar per message.

import { duration } from "./duration.js";

const SVG = "http://www.w3.org/2000/svg";
const LANE = 62; // height of the chunk lane
const ROW = 24; // height of one message row
const TOP = 40; // two rows of labels above the chunk lane
const AXIS = 30;
const LONG_MS = 100000;
const MOST_TURNS = 3; // a receipt is drawn when the turn keeps at least a third of the width beside it

const LEGEND = [
  ["chunk", "chunk (height: size)"],
  ["queued", "queued to accepted"],
  ["accepted", "accepted to delivered"],
  ["read", "read"],
];

// Shown before the first turn, and marked as an example there.
export const EXAMPLE = {
  timeline: { request_ms: 40, first_byte_ms: 120, first_token_ms: 520, last_chunk_ms: 2900, stream_end_ms: 2960, completed_ms: 3150 },
  streaming_chunks: Array.from({ length: 48 }, (_, n) => ({ chunk_index: n, size: 3 + ((n * 7) % 11), offset_ms: 520 + n * 50.5 })),
  delivery: {
    messages: [
      { status: "read", queued_ms: 1280, accepted_ms: 1360, delivered_ms: 1800, read_ms: 2500 },
      { status: "read", queued_ms: 2150, accepted_ms: 2230, delivered_ms: 2600, read_ms: 3400 },
      { status: "read", queued_ms: 2970, accepted_ms: 3050, delivered_ms: 3480, read_ms: 4100 },
    ],
  },
};

export function drawStream(place, legend, trace) {
  const width = place.clientWidth;
  if (!width) return;
  const timeline = trace.timeline ?? {};
  const chunks = trace.streaming_chunks ?? [];
  const messages = trace.delivery?.messages ?? [];
  const left = width < 480 ? 58 : 84;
  const right = 14;
  const endMs = lastMoment(timeline, chunks, messages);
  const x = (ms) => left + (ms / endMs) * (width - left - right);
  const height = TOP + LANE + 10 + messages.length * ROW + AXIS;

  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": describe(timeline, chunks, messages) });
  svg.append(axis(x, endMs, height, width - right, left));
  svg.append(waiting(x, timeline));
  svg.append(label(left - 12, TOP + LANE / 2 + 4, "agent", "lane"));
  svg.append(chunkTicks(x, chunks, timeline));
  svg.append(...marks(x, timeline, width - right, height));
  messages.forEach((message, index) => svg.append(messageRow(x, endMs, message, index, left)));
  place.replaceChildren(svg);
  if (!legend.childElementCount) legend.append(...LEGEND.map(swatch));
}

function lastMoment(timeline, chunks, messages) {
  const moments = [
    timeline.completed_ms, timeline.stream_end_ms, timeline.last_chunk_ms, timeline.first_token_ms, timeline.first_byte_ms,
    ...chunks.map((chunk) => chunk.offset_ms),
    ...messages.flatMap((message) => [message.queued_ms, message.accepted_ms]),
  ];
  const turn = Math.max(400, ...moments.filter((ms) => ms != null));
  const receipts = messages.flatMap((message) => [message.delivered_ms, message.read_ms]);
  return Math.max(turn, ...receipts.filter((ms) => ms != null && ms <= MOST_TURNS * turn)) * 1.04;
}

function axis(x, endMs, height, right, left) {
  const group = make("g", { class: "axis" });
  const step = niceStep(endMs, (right - left) / 70);
  for (let ms = 0; ms <= endMs; ms += step) {
    group.append(make("line", { x1: x(ms), x2: x(ms), y1: TOP - 4, y2: height - AXIS + 6 }));
    const words = step < 1000 && endMs < 2000 ? `${ms} ms` : `${+(ms / 1000).toFixed(2)} s`;
    group.append(label(x(ms), height - 8, ms === 0 ? "0" : words, "time"));
  }
  return group;
}

function niceStep(spanMs, most) {
  const rough = spanMs / Math.max(2, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((factor) => factor * power).find((step) => step >= rough);
}

function waiting(x, timeline) {
  const group = make("g", { class: "waiting" });
  if (timeline.request_ms == null) return group;
  const until = timeline.first_token_ms ?? timeline.stream_end_ms ?? timeline.request_ms;
  const middle = TOP + LANE / 2;
  group.append(make("line", { x1: x(timeline.request_ms), x2: x(until), y1: middle, y2: middle }));
  group.append(titled(make("circle", { cx: x(timeline.request_ms), cy: middle, r: 3.5 }), `request sent after ${Math.round(timeline.request_ms)} ms`));
  return group;
}

function chunkTicks(x, chunks, timeline) {
  const group = make("g", { class: "chunks" });
  const largest = Math.max(1, ...chunks.map((chunk) => chunk.size));
  const thickness = Math.min(2, Math.max(0.8, (0.5 * (x(chunks.at(-1)?.offset_ms ?? 0) - x(chunks[0]?.offset_ms ?? 0))) / (chunks.length || 1)));
  group.setAttribute("stroke-width", thickness);
  if (timeline.first_token_ms != null) {
    const end = timeline.last_chunk_ms ?? chunks.at(-1)?.offset_ms ?? timeline.first_token_ms;
    group.append(make("rect", { class: "stream", x: x(timeline.first_token_ms), y: TOP, width: Math.max(1, x(end) - x(timeline.first_token_ms)), height: LANE }));
  }
  for (const chunk of chunks) {
    if (chunk.offset_ms == null) continue;
    // The root keeps small chunks visible beside one that is a hundred times larger.
    const tall = 7 + (LANE - 11) * Math.sqrt(chunk.size / largest);
    const tick = make("line", { x1: x(chunk.offset_ms), x2: x(chunk.offset_ms), y1: TOP + LANE - 2, y2: TOP + LANE - 2 - tall });
    group.append(titled(tick, `chunk ${chunk.chunk_index}: ${chunk.size} characters after ${Math.round(chunk.offset_ms)} ms`));
  }
  return group;
}

function marks(x, timeline, right, height) {
  const wanted = [
    ["first-byte", timeline.first_byte_ms, "first byte", 12],
    ["first-token", timeline.first_token_ms, "first token", 28],
    ["stream-end", timeline.stream_end_ms, "end", 12],
  ];
  return wanted
    .filter(([, ms]) => ms != null)
    .map(([kind, ms, words, y]) => {
      const group = make("g", { class: `mark ${kind}` });
      group.append(make("line", { x1: x(ms), x2: x(ms), y1: y + 4, y2: kind === "first-byte" ? TOP + LANE : height - AXIS + 6 }));
      const text = label(x(ms), y, words, "");
      const isNearEnd = x(ms) > right - 60;
      text.setAttribute("text-anchor", kind === "first-byte" && timeline.first_token_ms != null ? "end" : isNearEnd ? "end" : "start");
      text.setAttribute("dx", text.getAttribute("text-anchor") === "end" ? -4 : 4);
      group.append(text);
      return titled(group, `${words}: ${Math.round(ms)} ms`);
    });
}

function messageRow(x, endMs, message, index, left) {
  const y = TOP + LANE + 10 + index * ROW + 5;
  const group = make("g", { class: `message ${message.status}` });
  group.append(label(left - 12, y + 11, left < 80 ? `msg ${index + 1}` : `message ${index + 1}`, "lane"));
  const { queued_ms: queued, accepted_ms: accepted, delivered_ms: delivered, read_ms: read } = message;
  if (queued != null) group.append(bar("queued", x(queued), x(accepted ?? queued), y));
  const edge = x(endMs);
  if (accepted != null && delivered != null) group.append(bar("accepted", x(accepted), Math.min(x(delivered), edge), y)); // unknown is not drawn
  if (read != null) {
    const from = Math.min(x(delivered ?? accepted ?? queued), edge);
    group.append(make("line", { class: "until-read", x1: from, x2: Math.min(x(read), edge), y1: y + 7, y2: y + 7 }));
    if (read <= endMs) group.append(make("circle", { class: "read", cx: x(read), cy: y + 7, r: 4 }));
  }
  if (Math.max(delivered ?? 0, read ?? 0) > endMs) {
    group.append(make("path", { class: read != null ? "later" : "later unread", d: `M${edge - 1} ${y + 3}l5 4l-5 4` }));
  }
  const said = [["queued", queued], ["accepted", accepted], ["delivered", delivered], ["read", read]];
  return titled(group, `message ${index + 1}: ` + said.filter(([, ms]) => ms != null).map(([word, ms]) => `${word} ${spoken(ms)}`).join(", "));
}

function spoken(ms) {
  return ms < LONG_MS ? `${Math.round(ms)} ms` : duration(ms);
}

function bar(kind, from, to, y) {
  return make("rect", { class: kind, x: from, y, width: Math.max(3, to - from), height: 14, rx: 3 });
}

function describe(timeline, chunks, messages) {
  const first = timeline.first_token_ms == null ? "no text yet" : `first text ${Math.round(timeline.first_token_ms)} ms after the message came in`;
  return `Time line of the turn: ${first}, ${chunks.length} chunks, ${messages.length} messages. The tables below hold the figures.`;
}

function swatch([kind, words]) {
  const item = document.createElement("span");
  item.className = `swatch ${kind}`;
  item.textContent = words;
  return item;
}

function label(x, y, words, kind) {
  const text = make("text", { x, y, class: kind });
  text.textContent = words;
  return text;
}

function titled(node, words) {
  const title = make("title", {});
  title.textContent = words;
  node.prepend(title);
  return node;
}

function make(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
