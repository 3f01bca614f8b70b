// What the browser keeps: a conversation under a key of its own, so that two tabs do not overwrite each other's list,
// and the settings. Everything works without a storage too; then it is gone with the page.

const CONVERSATION = "yeoul-chat-";

const storage = (() => {
  try {
    localStorage.setItem("yeoul-test", "");
    localStorage.removeItem("yeoul-test");
    return localStorage;
  } catch {
    return null;
  }
})();

function remembered(key, otherwise) {
  try {
    return JSON.parse(storage?.getItem(key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function remember(key, value) {
  try {
    storage?.setItem(key, JSON.stringify(value));
  } catch { /* settings are small: where they do not fit, conversations say so */ }
}

function readConversation(key) {
  const found = checkedConversation(remembered(key, null));
  if (found) found.id = key.slice(CONVERSATION.length);
  return found;
}

/** Conversations by id, the newest first; what is damaged is left where it is and not shown. */
function readConversations() {
  const found = [];
  for (let i = 0; i < (storage?.length ?? 0); i++) {
    const key = storage.key(i);
    const conversation = key.startsWith(CONVERSATION) ? readConversation(key) : null;
    if (conversation) found.push(conversation);
  }
  found.sort((a, b) => b.updated - a.updated);
  return new Map(found.map((conversation) => [conversation.id, conversation]));
}

/** Whether it is kept; says so once where it is not. */
function saveConversation(conversation) {
  if (!conversation.nodes.length || !conversations.has(conversation.id)) return true;
  const key = CONVERSATION + conversation.id;
  if (!storage) return notice(t("errorStorage"));
  if (storage.getItem(key) === null && conversations.size > LIMITS.conversations) return notice(t("errorMany", LIMITS.conversations));
  try {
    storage.setItem(key, JSON.stringify(conversation));
    return true;
  } catch {
    return notice(t("errorFull"));
  }
}

function forgetConversation(conversation) {
  conversations.delete(conversation.id);
  storage?.removeItem(CONVERSATION + conversation.id);
}

function download(name, text) {
  const address = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/** The conversations of a file: one JSON value, a list of them, or one a line. Returns [read, how many are unreadable]. */
function readFileText(text) {
  let values;
  try {
    const whole = JSON.parse(text);
    values = Array.isArray(whole) ? whole : [whole];
  } catch {
    values = text.split("\n").filter((line) => line.trim()).map((line) => {
      try {
        return JSON.parse(line);
      } catch {
        return null;
      }
    });
  }
  const read = values.slice(0, LIMITS.conversations).map(checkedConversation).filter(Boolean);
  // States are let go with their conversation: a file does not say which of this server's those are.
  for (const cost of read.flatMap((it) => it.nodes).flatMap((node) => node.fork || [])) delete cost.id;
  return [read, values.length - read.length];
}
