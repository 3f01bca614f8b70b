// The list of conversations, files of them, and dialogs.

const $ = (id) => document.getElementById(id);

/** One sentence above the question; returns false, for whoever reports a failure with it. */
function notice(words) {
  $("notice").firstElementChild.textContent = words;
  $("notice").hidden = !words;
  return false;
}

/** Something for screen readers only. */
function say(words) {
  $("said").textContent = words;
}

/** A dialog: resolves to the text that was typed, "" where there is nothing to type, null if it was cancelled. */
function ask({ title, text = "", yes, type = null, value = "", danger = false }) {
  const box = $("ask"), input = $("ask-input");
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-text").hidden = !text;
  $("ask-yes").textContent = yes;
  $("ask-yes").className = danger ? "danger" : "strong";
  input.hidden = !type;
  input.type = type || "text";
  input.value = value;
  input.setAttribute("aria-label", title);
  return new Promise((resolve) => {
    const finish = (result) => {
      box.onclose = null;
      box.close();
      input.value = "";
      resolve(result);
    };
    box.onclose = () => finish(null);
    $("ask-no").onclick = () => finish(null);
    $("ask-yes").onclick = () => finish(type ? input.value : "");
    input.onkeydown = (event) => {
      if (event.key === "Enter" && !composing(event)) $("ask-yes").click();
    };
    box.showModal();
    if (type) input.select();
    else $("ask-no").focus();
  });
}

function showList() {
  const own = [...conversations.values()].sort((a, b) => b.updated - a.updated);
  $("list").replaceChildren(...own.map(listItem));
  const title = current.nodes.length ? visible(titleOf(current)) : "";
  $("title").textContent = title || t("newChat");
  document.title = (title ? title + " · " : "") + "Yeoul 여울";
}

function listItem(conversation) {
  const here = conversation === current;
  const title = visible(titleOf(conversation));
  const open = el("button", { type: "button", class: "open", "aria-current": here ? "true" : null, title, onclick: () => openConversation(conversation) }, title);
  const tool = (key, act) => el("button", { type: "button", class: "quiet", onclick: () => act(conversation) }, t(key));
  const tools = here ? el("div", { class: "item-tools" }, tool("rename", rename), tool("exportOne", exportOne), tool("remove", remove)) : null;
  return el("li", {}, open, tools);
}

function openConversation(conversation) {
  dropFork();
  current = conversation;
  following = true;
  $("system").value = current.system;
  notice("");
  showList();
  showTurns();
  closePanels();
  if (!narrow.matches) $("question").focus();
}

async function rename(conversation) {
  const title = await ask({ title: t("renameTitle"), yes: t("save"), type: "text", value: titleOf(conversation) });
  if (!title?.trim()) return;
  conversation.title = title.trim().slice(0, 200);
  saveConversation(conversation);
  showList();
}

async function remove(conversation) {
  const sure = await ask({ title: t("removeTitle"), text: t("removeText", visible(titleOf(conversation))), yes: t("remove"), danger: true });
  if (sure === null) return;
  for (const job of jobs.values()) if (job.conversation === conversation) job.controller.abort();
  conversation.nodes.flatMap((node) => node.fork || []).forEach(releaseState);
  forgetConversation(conversation);
  openConversation(newConversation());
}

const fileName = (title) => title.replace(/[^\p{L}\p{N} _-]+/gu, "").trim().replace(/\s+/g, "-").slice(0, 60) || "yeoul";

function exportOne(conversation) {
  download(fileName(titleOf(conversation)) + ".json", exported(conversation) + "\n");
}

function exportAll() {
  const own = [...conversations.values()].sort((a, b) => a.created - b.created);
  if (!own.length) return notice(t("nothingToExport"));
  return download("yeoul-conversations.jsonl", own.map((it) => exported(it) + "\n").join(""));
}

async function importFiles(files) {
  let last = null, good = 0, bad = 0;
  for (const file of files) {
    if (file.size > LIMITS.file) return notice(t("errorImportLarge", visible(file.name)));
    const [read, unreadable] = readFileText(await file.text());
    if (!read.length) return notice(t("errorImport", visible(file.name)));
    bad += unreadable;
    for (const conversation of read) {
      conversations.set(conversation.id, conversation);
      if (!saveConversation(conversation)) {
        conversations.delete(conversation.id);
        return showList();
      }
      good += 1;
      last = conversation;
    }
  }
  if (!last) return undefined;
  openConversation(last);
  return notice(bad ? t("importedSome", good, bad) : t("imported", good));
}

function wireList() {
  $("new").addEventListener("click", () => openConversation(newConversation()));
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    const files = [...$("file").files];
    await importFiles(files);
    $("file").value = "";
  });
  $("notice").lastElementChild.addEventListener("click", () => {
    notice("");
    $("question").focus();
  });
  // Another tab has written, or removed, a conversation.
  addEventListener("storage", (event) => {
    if (!event.key?.startsWith(CONVERSATION)) return;
    const id = event.key.slice(CONVERSATION.length);
    if ([...jobs.values()].some((job) => job.conversation.id === id)) return;
    const found = event.newValue === null ? null : readConversation(event.key);
    if (found) conversations.set(id, found);
    else if (id !== current.id) conversations.delete(id); // what is open here stays, and is kept with the next message
    if (found && id === current.id) {
      current = found;
      if (!document.querySelector(".editor")) showTurns();
    }
    showList();
  });
}
