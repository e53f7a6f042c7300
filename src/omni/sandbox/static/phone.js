// The chat: shows the phone's events as they come, posts what the person writes, and opens the trace of each turn.

import { TracePanel } from "./trace_panel.js";
import { renderText } from "./whatsapp_text.js";

const TICKS = { sending: 0, sent: 1, delivered: 2, read: 3, failed: 4 };
const TICK_NAMES = {
  user: { sending: "on its way", sent: "sent", delivered: "taken by the gateway", read: "read by the gateway", failed: "not taken by the gateway" },
  agent: { sending: "on its way", sent: "accepted", delivered: "delivered", read: "read", failed: "failed" },
};
const RECONNECT_MS = 1500;
const WRITING_SHOWN_MS = 26000; // a real phone drops a typing sign that is not renewed

const byId = (id) => document.getElementById(id);
const bubbles = new Map();
let panel;
let lastDay = "";
let typingTimer;

async function start() {
  const config = await (await fetch("config")).json();
  panel = new TracePanel(config);
  byId("agent-name").textContent = config.instance_name === "sandbox" ? "Sandbox agent" : config.instance_name;
  for (const { command, title } of config.commands) byId("chips").append(chip(command, title));
  listen();
}

function chip(command, title) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "chip";
  const code = document.createElement("code");
  code.textContent = command;
  button.append(code);
  button.title = title;
  button.addEventListener("click", () => write(isPortuguese() ? `${command} em português` : command));
  return button;
}

function isPortuguese() {
  return document.querySelector("input[name=language]:checked").value === "pt";
}

function listen() {
  const source = new EventSource("events");
  source.onmessage = (message) => receive(JSON.parse(message.data));
  source.onerror = () => {
    setPresence("connecting…");
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, RECONNECT_MS);
  };
}

function receive(event) {
  switch (event.type) {
    case "hello":
      return startOver();
    case "user_wrote":
      return addBubble(event, "user");
    case "agent_wrote":
      showTyping(false);
      addBubble(event, "agent");
      return panel.touch();
    case "ticked":
      setTick(event.key_id, event.state);
      return panel.touch();
    case "turn_opened":
      return offerTrace(event.key_id, event.trace_id);
    case "typing":
      return showTyping(event.is_on);
  }
}

function startOver() {
  bubbles.clear();
  byId("bubbles").replaceChildren();
  lastDay = "";
  showTyping(false);
}

function addBubble({ key_id: keyId, text, at_ms: atMs }, side) {
  byId("welcome").hidden = true;
  const at = new Date(atMs);
  const day = at.toLocaleDateString(undefined, { weekday: "long", day: "numeric", month: "long" });
  const isAtEnd = isScrolledDown();
  if (day !== lastDay) byId("bubbles").append(dayMark((lastDay = day)));
  const item = document.createElement("li");
  item.className = `bubble ${side}`;
  item.dataset.side = side;
  const body = document.createElement("div");
  body.className = "body";
  body.append(renderText(text));
  const meta = document.createElement("div");
  meta.className = "meta";
  const time = document.createElement("time");
  time.dateTime = at.toISOString();
  time.textContent = at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const tick = document.createElement("span");
  tick.className = "tick";
  meta.append(time, tick);
  item.append(body, meta);
  byId("bubbles").append(item);
  bubbles.set(keyId, { item, meta, tick, side, rank: -1 });
  setTick(keyId, side === "user" ? "sending" : "sent");
  if (isAtEnd || side === "user") scrollDown();
}

function dayMark(day) {
  const mark = document.createElement("li");
  mark.className = "day";
  mark.textContent = day;
  return mark;
}

function setTick(keyId, state) {
  const bubble = bubbles.get(keyId);
  // Receipts may come out of order; what is known never becomes less.
  if (!bubble || TICKS[state] <= bubble.rank) return;
  bubble.rank = TICKS[state];
  const name = TICK_NAMES[bubble.side][state];
  bubble.tick.dataset.state = state;
  bubble.tick.title = name;
  bubble.tick.replaceChildren(tickPicture(state), hidden(name));
}

function tickPicture(state) {
  const paths = {
    sending: "M8 3.5a4.5 4.5 0 1 0 0 9 4.5 4.5 0 0 0 0-9M8 5.5V8l1.6 1.2",
    sent: "m4.5 8.5 2.5 2.5 5-6",
    delivered: "m1.5 8.5 2.5 2.5 5-6M7.5 10.5l.8.5 5-6",
    read: "m1.5 8.5 2.5 2.5 5-6M7.5 10.5l.8.5 5-6",
    failed: "M8 4v5M8 11.5v.1",
  };
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 15 15");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", paths[state]);
  svg.append(path);
  return svg;
}

function hidden(text) {
  const span = document.createElement("span");
  span.className = "unseen";
  span.textContent = text;
  return span;
}

function offerTrace(keyId, traceId) {
  const bubble = bubbles.get(keyId);
  if (!bubble) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "open-trace";
  button.textContent = "trace";
  button.addEventListener("click", () => openTrace(button, traceId));
  bubble.meta.prepend(button);
  openTrace(button, traceId);
}

function openTrace(button, traceId) {
  for (const other of document.querySelectorAll(".open-trace")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", "true");
  const all = [...document.querySelectorAll(".open-trace")];
  panel.show(traceId, { isLast: all.at(-1) === button });
}

function showTyping(isOn) {
  clearTimeout(typingTimer);
  const isAtEnd = isScrolledDown();
  byId("typing").hidden = !isOn;
  setPresence(isOn ? "writing…" : "online");
  if (isOn) typingTimer = setTimeout(() => showTyping(false), WRITING_SHOWN_MS);
  if (isOn && isAtEnd) scrollDown();
}

function setPresence(words) {
  byId("presence").textContent = words;
  byId("presence").dataset.writing = String(words === "writing…");
}

function isScrolledDown() {
  const chat = byId("chat");
  return chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
}

function scrollDown() {
  byId("chat").scrollTop = byId("chat").scrollHeight;
}

async function write(text) {
  const answer = await fetch("messages", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ text }),
  });
  if (!answer.ok) panel.complain(`The phone refused the message: ${(await answer.json()).detail}`);
}

function grow() {
  const field = byId("text");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight, 132)}px`;
}

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value;
  if (!text.trim()) return;
  byId("text").value = "";
  grow();
  write(text);
});
byId("text").addEventListener("input", grow);
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("composer").requestSubmit();
  }
});

start();
