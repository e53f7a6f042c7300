// Turns WhatsApp's marks (*bold*, _italic_, ~struck~, `code`, ``` blocks, links) into DOM nodes. Never parses HTML.

const INLINE = /(```[\s\S]+?```)|(`[^`\n]+`)|(https?:\/\/[^\s<>"]+)|(?<![\p{L}\p{N}*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\p{L}\p{N}*])|(?<![\p{L}\p{N}_])_(?=\S)([^_\n]+?)(?<=\S)_(?![\p{L}\p{N}_])|(?<![\p{L}\p{N}~])~(?=\S)([^~\n]+?)(?<=\S)~(?![\p{L}\p{N}~])/gu;

export function renderText(text) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    fragment.append(text.slice(end, match.index));
    fragment.append(renderMark(match));
    end = match.index + match[0].length;
  }
  fragment.append(text.slice(end));
  return fragment;
}

function renderMark([whole, block, code, link, bold, italic, struck]) {
  if (block) return element("pre", block.slice(3, -3).replace(/^\n|\n$/g, ""));
  if (code) return element("code", code.slice(1, -1));
  if (link) return renderLink(link);
  if (bold) return element("strong", bold);
  if (italic) return element("em", italic);
  if (struck) return element("s", struck);
  return whole;
}

function renderLink(address) {
  const trimmed = address.replace(/[.,;:!?)]+$/, "");
  const link = element("a", trimmed);
  link.href = trimmed;
  link.rel = "noreferrer noopener";
  link.target = "_blank";
  const fragment = document.createDocumentFragment();
  fragment.append(link, address.slice(trimmed.length));
  return fragment;
}

function element(name, content) {
  const made = document.createElement(name);
  made.textContent = content;
  return made;
}
