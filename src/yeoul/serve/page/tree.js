// A conversation is a tree of messages. `nodes` only grows: each says the index of the one before it (-1: none), and
// `chosen` says which of several next messages is shown. A question is {parent, role: "user", content, fork}; an answer
// {parent, role: "assistant", answers: [{model, content, finish, error, figures}]}, one or two models' to one question.

const LIMITS = { conversations: 300, nodes: 5000, characters: 1000000, file: 20 * 1024 * 1024 };

function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", system: "", created: now, updated: now, nodes: [], chosen: {} };
}

function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(9)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const after = (conversation, parent) => conversation.nodes.flatMap((node, i) => (node.parent === parent ? [i] : []));

/** Indices of the messages that are shown, from the first on; `until` is the last one of them, if given. */
function path(conversation, until = null) {
  const next = new Map();
  conversation.nodes.forEach((node, i) => next.set(node.parent, i)); // the newest, where nothing is chosen
  const found = [];
  for (let at = -1; at !== until || at === -1; ) {
    const chosen = conversation.chosen[at];
    const node = conversation.nodes[chosen]?.parent === at ? chosen : next.get(at);
    if (node === undefined) break;
    found.push(node);
    at = node;
  }
  return found;
}

/** Indices from the first message to this one, whatever is chosen. */
function lineage(conversation, node) {
  const found = [];
  for (let at = node; at >= 0; at = conversation.nodes[at].parent) found.unshift(at);
  return found;
}

function addNode(conversation, node) {
  const index = conversation.nodes.push(node) - 1;
  conversation.chosen[node.parent] = index;
  conversation.updated = Date.now();
  return index;
}

/** The answer that a model goes on from: its own, else the one in its column, else the only one. */
function answerFor(node, model, column) {
  return node.answers.find((answer) => answer.model === model) || node.answers[column] || node.answers[0];
}

/** Messages up to and with a node as the server wants them, for the model in a column. */
function messagesFor(conversation, node, model, column = 0) {
  const said = lineage(conversation, node).map((i) => {
    const it = conversation.nodes[i];
    return { role: it.role, content: it.role === "user" ? it.content : answerFor(it, model, column).content };
  });
  return conversation.system.trim() ? [{ role: "system", content: conversation.system }, ...said] : said;
}

function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.nodes.find((node) => node.role === "user");
  const line = first ? first.content.trim().split("\n")[0] : "";
  return (line.length > 60 ? line.slice(0, 60) + "…" : line) || t("untitled");
}

// Conversations from files and from the browser's storage are checked before anything is made of them.

const isText = (value, longest = LIMITS.characters) => typeof value === "string" && value.length <= longest;
const count = (value) => (Number.isFinite(value) && value >= 0 && value < 1e15 ? value : undefined);

function checkedFigures(value) {
  const found = {};
  for (const key of FIGURES) if (count(value?.[key]) !== undefined) found[key] = value[key];
  if (value?.constant === true) found.constant = true;
  return found;
}

const FIGURES = ["first", "speed", "state", "grows", "cached", "read", "context", "limit", "queued"];

function checkedAnswer(value) {
  if (!value || !isText(value.content)) return null;
  return {
    model: isText(value.model, 500) ? value.model : "",
    content: value.content,
    finish: ["stop", "length", "stopped", "error"].includes(value.finish) ? value.finish : "stopped",
    ...(isText(value.error, 5000) && value.error ? { error: value.error } : {}),
    figures: checkedFigures(value.figures),
  };
}

function checkedNode(value, index) {
  if (!value || !Number.isInteger(value.parent) || value.parent < -1 || value.parent >= index) return null;
  if (value.role === "user") {
    if (!isText(value.content)) return null;
    const fork = (Array.isArray(value.fork) ? value.fork.slice(0, 2) : []).filter((it) => it && isText(it.model, 500)).map((it) => ({
      model: it.model, tokens: count(it.tokens) ?? 0, bytes: count(it.bytes) ?? 0, milliseconds: count(it.milliseconds) ?? 0,
      cached_tokens: count(it.cached_tokens) ?? 0, ...(isText(it.id, 200) ? { id: it.id } : {}),
    }));
    return { parent: value.parent, role: "user", content: value.content, ...(fork.length ? { fork } : {}) };
  }
  if (value.role !== "assistant" || !Array.isArray(value.answers) || value.answers.length < 1 || value.answers.length > 2) return null;
  const answers = value.answers.map(checkedAnswer);
  return answers.every(Boolean) ? { parent: value.parent, role: "assistant", answers } : null;
}

/** A conversation of this page, or of `{"messages": [...]}` as `yeoul chat` and OpenAI's clients save it; null if it is neither. */
function checkedConversation(value) {
  if (!value || typeof value !== "object") return null;
  const tree = value.conversation || value;
  const made = newConversation();
  if (Array.isArray(tree.nodes)) {
    if (tree.nodes.length > LIMITS.nodes) return null;
    for (const node of tree.nodes) {
      const checked = checkedNode(node, made.nodes.length);
      // A question follows an answer or begins; an answer follows a question.
      const before = checked && made.nodes[checked.parent];
      if (!checked || (before ? before.role === checked.role : checked.role !== "user")) return null;
      made.nodes.push(checked);
    }
    for (const [parent, child] of Object.entries(tree.chosen || {}).slice(0, LIMITS.nodes)) {
      if (made.nodes[child]?.parent === Number(parent)) made.chosen[parent] = child;
    }
    if (isText(tree.system, 100000)) made.system = tree.system;
    if (isText(tree.title, 200)) made.title = tree.title;
    if (count(tree.created)) made.created = tree.created;
    if (count(tree.updated)) made.updated = tree.updated;
  } else if (!Array.isArray(value.messages) || value.messages.length > LIMITS.nodes || !addMessages(made, value.messages)) return null;
  return made.nodes.length ? made : null;
}

function addMessages(conversation, messages) {
  for (const [i, message] of messages.entries()) {
    if (!message || !isText(message.content)) return false;
    const last = conversation.nodes.at(-1)?.role;
    const parent = conversation.nodes.length - 1;
    if (message.role === "system" && i === 0) conversation.system = message.content.slice(0, 100000);
    else if (message.role === "user" && last !== "user") addNode(conversation, { parent, role: "user", content: message.content });
    else if (message.role === "assistant" && last === "user") {
      addNode(conversation, { parent, role: "assistant", answers: [{ model: "", content: message.content, finish: "stop", figures: {} }] });
    } else return false;
  }
  return true;
}

/** One line of JSON: `messages` as other programs read them (what is shown), and the whole tree. */
function exported(conversation) {
  const shown = path(conversation);
  const { id, ...tree } = conversation;
  const messages = shown.length ? messagesFor(conversation, shown.at(-1), "", 0) : [];
  return JSON.stringify({ messages, conversation: tree });
}
