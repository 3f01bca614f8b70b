// Foreign text as DOM nodes: only ever text nodes inside elements that are made here. A small part of Markdown.
// While it is being written only the last block is touched: text nodes grow, finished blocks are never rendered again.

const STEERING = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;
const LONGEST_BLOCK = 20000; // characters; longer ones stay plain, so that no text can keep the browser busy
const INLINE = new RegExp([
  "(?<code>(?<ticks>`{1,3})(?!`)(?<inner>[^\\n]{1,1000}?)(?<!`)\\k<ticks>(?!`))",
  "\\*\\*(?=\\S)(?<bold>[^\\n]{1,1000}?)(?<=\\S)\\*\\*",
  "(?<![\\w*])\\*(?=[^\\s*])(?<italic>[^*\\n]{1,500})(?<=\\S)\\*(?![\\w*])",
  "\\[(?<words>[^\\]\\n]{1,300})\\]\\((?<target>https?://[^\\s()<>]{1,2000})\\)",
  "(?<url>https?://[^\\s<>\"'`()\\[\\]]{1,2000})",
].join("|"), "g");

/** Control characters written out, as `yeoul.foreign_text.visible` does; line breaks and tabs stay. */
function visible(text) {
  return text.replace(STEERING, (c) => {
    const code = c.charCodeAt(0);
    return code < 256 ? "\\x" + code.toString(16).padStart(2, "0") : "\\u" + code.toString(16).padStart(4, "0");
  });
}

/** An element with text and children: el("p", {class: "why"}, "text", child). */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + name);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

function inline(text, depth = 0) {
  const found = document.createDocumentFragment();
  let end = 0;
  for (const match of depth > 3 || text.length > LONGEST_BLOCK ? [] : text.matchAll(INLINE)) {
    found.append(text.slice(end, match.index));
    end = match.index + match[0].length;
    const { code, inner, bold, italic, words, target, url } = match.groups;
    if (code) found.append(el("code", {}, inner));
    else if (bold) found.append(el("strong", {}, inline(bold, depth + 1)));
    else if (italic) found.append(el("em", {}, inline(italic, depth + 1)));
    else if (target) found.append(link(target, words));
    else {
      const address = url.replace(/[.,:;!?]+$/, "");
      end -= url.length - address.length;
      found.append(link(address, address));
    }
  }
  found.append(text.slice(end));
  return found;
}

/** A link to elsewhere; its words are text, and its target is told. */
function link(target, words) {
  return el("a", { href: target, title: target, rel: "noopener noreferrer nofollow", target: "_blank" }, words);
}

const ITEM = /^( {0,12})([-*+•]|\d{1,9}[.)])[ \t]+(.*)$/;

/** Lines without a blank one among them: headings, rules, quotes, lists, tables, and what is none of these. */
function block(text, depth = 0) {
  const found = document.createDocumentFragment();
  const lines = text.split("\n");
  if (text.length > LONGEST_BLOCK || depth > 4) {
    found.append(el("p", {}, text));
    return found;
  }
  let plain = [];
  const flush = () => {
    if (plain.length) found.append(el("p", {}, inline(plain.join("\n"))));
    plain = [];
  };
  for (let i = 0; i < lines.length; i++) {
    const heading = /^ {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*$/.exec(lines[i]);
    if (heading) {
      flush();
      found.append(el("h" + Math.min(6, heading[1].length + 3), {}, inline(heading[2])));
    } else if (/^ {0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$/.test(lines[i])) {
      flush();
      found.append(el("hr"));
    } else if (/^ {0,3}>/.test(lines[i])) {
      flush();
      const from = i;
      while (i + 1 < lines.length && /^ {0,3}>/.test(lines[i + 1])) i++;
      const quoted = lines.slice(from, i + 1).map((line) => line.replace(/^ {0,3}> ?/, ""));
      found.append(el("blockquote", {}, block(quoted.join("\n"), depth + 1)));
    } else if (ITEM.test(lines[i])) {
      flush();
      const from = i;
      while (i + 1 < lines.length && (ITEM.test(lines[i + 1]) || /^\s+\S/.test(lines[i + 1]))) i++;
      found.append(list(lines.slice(from, i + 1), depth));
    } else if (lines[i].includes("|") && /^[ \t]*\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/.test(lines[i + 1] || "") && lines[i + 1].includes("|")) {
      flush();
      const from = i;
      while (i + 1 < lines.length && lines[i + 1].includes("|")) i++;
      found.append(table(lines.slice(from, i + 1)));
    } else plain.push(lines[i]);
  }
  flush();
  return found;
}

/** Items by their indent; a line that is none belongs to the item before it. */
function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  const ordered = /\d/.test(first[2]);
  const made = ordered ? el("ol", { start: parseInt(first[2], 10) }) : el("ul");
  for (let i = 0; i < lines.length; i++) {
    const item = ITEM.exec(lines[i]);
    const words = el("li", {}, inline(item ? item[3] : lines[i].trim()));
    const inner = [];
    while (i + 1 < lines.length) {
      const next = ITEM.exec(lines[i + 1]);
      if (next && next[1].length <= first[1].length + 1) break;
      inner.push(lines[++i]);
    }
    if (inner.length) {
      const cut = inner.findIndex((line) => ITEM.test(line));
      const more = cut < 0 ? inner : inner.slice(0, cut);
      if (more.length) words.append("\n", inline(more.map((line) => line.trim()).join("\n")));
      if (cut >= 0) words.append(depth > 3 ? inner.slice(cut).join("\n") : list(inner.slice(cut), depth + 1));
    }
    made.append(words);
  }
  return made;
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const row = (line, name) => el("tr", {}, ...cells(line).map((cell) => el(name, {}, inline(cell))));
  return el("div", { class: "wide", tabindex: 0 }, el("table", {}, row(lines[0], "th"), ...lines.slice(2).map((line) => row(line, "td"))));
}

const FENCE = /^ {0,3}(`{3,10}|~{3,10})[ \t]*([^`\s]{0,30})[^`]*$/;

/** A text that grows inside `root`. */
class Prose {
  constructor(root) {
    this.root = root;
    this.line = ""; // the last line, which has no end yet
    this.shown = 0; // how many of its characters stand in the page
    this.lines = []; // lines of the open block
    this.fence = null; // the marks that close the open code block
    this.live = null; // the element of the open block
    this.node = null; // the text node that grows in it
  }

  append(text) {
    const pieces = text.split("\n");
    pieces.forEach((piece, i) => {
      this.line += piece;
      if (i < pieces.length - 1) this.endLine();
      else if (!(this.fence && /^ {0,3}[`~]*[ \t]*$/.test(this.line))) this.grow(); // in code, marks may be its end
    });
  }

  /** Shows what is new of the last line. */
  grow(end = "") {
    const text = this.line.slice(this.shown) + end;
    this.shown = this.line.length;
    if (!text) return;
    if (!this.live) {
      this.node = document.createTextNode("");
      this.live = el("p", {}, this.node);
      this.root.append(this.live);
    }
    this.node.appendData(visible(text));
  }

  endLine() {
    const fence = FENCE.exec(this.line);
    if (this.fence) {
      if (fence && !fence[2] && fence[1].startsWith(this.fence)) this.close();
      else this.grow("\n");
    } else if (fence) {
      this.close();
      this.fence = fence[1];
      this.node = document.createTextNode("");
      this.live = el("code", {}, this.node);
      const head = el("div", { class: "code-head" }, el("span", {}, visible(fence[2])), copyButton("copyCode", (node => () => node.data)(this.node)));
      this.root.append(el("div", { class: "code" }, head, el("pre", { tabindex: 0 }, this.live)));
    } else if (this.line.trim()) {
      this.lines.push(this.line);
      this.grow("\n");
    } else this.close();
    this.line = "";
    this.shown = 0;
  }

  /** The open block is finished: Markdown takes the place of its raw text. */
  close() {
    if (!this.fence && this.live) this.live.replaceWith(block(visible(this.lines.join("\n"))));
    this.live = this.node = this.fence = null;
    this.lines = [];
  }

  finish() {
    if (this.line) this.endLine();
    this.close();
  }
}
