// What happens: questions are asked, answers come, conversations branch. The other files have what this one uses.

const conversations = readConversations();
const jobs = new Map(); // answer -> {conversation, controller, view}: what is being written
const narrow = matchMedia("(max-width: 47.99rem)");
let current = newConversation();
let pending = null; // {node, costs}: the next question follows this answer, in a new branch

let leaving = false; // the browser ends requests of a page that is left

const busy = () => [...jobs.values()].some((job) => job.conversation === current);

function showBusy() {
  const now = busy();
  $("send").hidden = now;
  $("stop").hidden = !now;
  document.body.classList.toggle("busy", now);
  for (const button of document.querySelectorAll(".locks")) button.disabled = now || button.dataset.end === "1";
}

/** A question after a message (-1: the first), and its answers. */
function askQuestion(content, parent, costs = null) {
  const models = chosenModels();
  if (!models.length) return loadModels();
  notice("");
  conversations.set(current.id, current);
  const question = addNode(current, { parent, role: "user", content, ...(costs?.length ? { fork: costs } : {}) });
  return answerQuestion(question, models);
}

async function answerQuestion(question, models) {
  const conversation = current;
  const answers = models.map((model) => ({ model, content: "", finish: null, figures: {} }));
  const node = addNode(conversation, { parent: question, role: "assistant", answers });
  for (const answer of answers) jobs.set(answer, { conversation, controller: new AbortController(), view: null });
  following = true;
  saveConversation(conversation);
  showList();
  showTurns();
  const fields = samplingFields();
  const write = (answer, column) => writeAnswer(answer, messagesFor(conversation, question, answer.model, column), fields);
  if (settings.inTurns) for (const [column, answer] of answers.entries()) await write(answer, column);
  else await Promise.all(answers.map(write));
  conversation.updated = Date.now();
  saveConversation(conversation);
  if (conversation !== current) return;
  if (answers.some((answer) => answer.finish === "error")) showTurns();
  else showBusy();
  say(answers.map((answer) => t("answered", visible(answer.model), visible(answer.error || answer.content))).join("\n"));
}

/** Writes one answer as it comes: into the conversation at once, into the page once a frame. */
async function writeAnswer(answer, messages, fields) {
  const job = jobs.get(answer);
  const { signal } = job.controller;
  let frame = 0, saved = performance.now();
  const flush = () => {
    frame = 0;
    job.view?.grow();
    follow();
    if (performance.now() - saved > 2000) {
      saved = performance.now();
      saveConversation(job.conversation);
    }
  };
  const onText = (text) => {
    if (answer.content.length + text.length > LIMITS.characters) return job.controller.abort();
    answer.content += text;
    if (!frame) frame = requestAnimationFrame(flush);
    return undefined;
  };
  try {
    signal.throwIfAborted();
    await complete(answer.model, messages, fields, answer, signal, onText);
  } catch (error) {
    answer.finish = signal.aborted || leaving ? "stopped" : "error";
    if (answer.finish === "error") {
      if (!(error instanceof Refusal)) console.error(error);
      answer.error = error instanceof Refusal ? error.sentence : t("errorBroken");
    }
  }
  cancelAnimationFrame(frame);
  flush();
  jobs.delete(answer);
  job.view?.end();
  follow();
}

function answerAgain(index) {
  if (busy() || !chosenModels().length) return;
  dropFork();
  answerQuestion(current.nodes[index].parent, chosenModels());
}

function stop() {
  for (const job of jobs.values()) if (job.conversation === current) job.controller.abort();
}

/** Keeps the state behind an answer, tells what that has cost, and lets the next question begin a branch there. */
async function fork(index) {
  const conversation = current;
  dropFork();
  const mine = (pending = { node: index, costs: null });
  following = true;
  showTurns();
  $("question").focus();
  const keep = async (model, column) => {
    try {
      const messages = messagesFor(conversation, index, model, column);
      const { id, tokens, bytes, milliseconds, cached_tokens } = await (await request("POST", "v1/states", { model, messages })).json();
      return { model, id, tokens, bytes, milliseconds, cached_tokens };
    } catch (error) {
      if (pending === mine && ![404, 501].includes(error.status)) notice(error.sentence || t("errorBroken"));
      return { model, tokens: 0, bytes: 0, milliseconds: 0, cached_tokens: 0 }; // the branch works all the same
    }
  };
  const costs = await Promise.all(chosenModels().map(keep));
  if (pending !== mine) return costs.forEach(releaseState); // meanwhile something else was chosen, or asked
  mine.costs = costs;
  return showTurns();
}

/** The fork that was begun is not used: its states go. */
function dropFork() {
  pending?.costs?.forEach(releaseState);
  pending = null;
}

function leaveFork() {
  dropFork();
  showTurns();
  $("question").focus();
}

function releaseState({ id }) {
  if (id) request("DELETE", "v1/states/" + encodeURIComponent(id)).catch(() => {});
}

/** Enter of an input method ends a syllable and sends nothing; Safari tells that only by the code 229. */
const composing = (event) => event.isComposing || event.keyCode === 229;

/** Enter does it, Shift+Enter is a new line, Escape leaves; the field grows with its text. */
function typing(field, done, leave) {
  const fit = () => {
    field.style.height = "auto";
    field.style.height = Math.min(field.scrollHeight + 2, innerHeight * 0.4) + "px";
  };
  field.addEventListener("input", fit);
  field.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      done();
    } else if (event.key === "Escape" && leave) {
      event.stopPropagation();
      leave();
    }
  });
  requestAnimationFrame(fit);
  return fit;
}

function closePanels() {
  document.body.classList.remove("show-side");
  $("side-open").setAttribute("aria-expanded", "false");
  if (narrowSettings.matches) showSettings(false);
}

const narrowSettings = matchMedia("(max-width: 71.99rem)");

function showSettings(open) {
  $("settings").hidden = !open;
  document.body.classList.toggle("show-settings", open);
  $("settings-open").setAttribute("aria-expanded", String(open));
  if (!narrowSettings.matches) {
    settings.open = open;
    saveSettings();
  }
}

function wirePanels() {
  $("side-open").addEventListener("click", () => {
    document.body.classList.add("show-side");
    $("side-open").setAttribute("aria-expanded", "true");
    $("side-close").focus();
  });
  $("side-close").addEventListener("click", () => {
    closePanels();
    $("side-open").focus();
  });
  $("settings-open").addEventListener("click", () => {
    showSettings($("settings").hidden);
    if (!$("settings").hidden) $("settings-close").focus();
  });
  $("settings-close").addEventListener("click", () => {
    showSettings(false);
    $("settings-open").focus();
  });
  $("shade").addEventListener("click", closePanels);
  if (settings.open && !narrowSettings.matches) showSettings(true);
}

function wireQuestion() {
  const field = $("question");
  const send = () => {
    const content = field.value.trim();
    if (!content || busy()) return;
    let parent = pending ? pending.node : path(current).at(-1) ?? -1;
    if (current.nodes[parent]?.role === "user") parent = current.nodes[parent].parent; // instead of one without an answer
    const costs = pending?.costs;
    pending = null;
    field.value = "";
    fit();
    askQuestion(content, parent, costs);
  };
  const fit = typing(field, send, null);
  $("send").addEventListener("click", () => {
    send();
    field.focus();
  });
  $("stop").addEventListener("click", () => {
    stop();
    field.focus();
  });
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || composing(event) || $("ask").open) return;
    if (narrow.matches && document.body.classList.contains("show-side")) $("side-close").click();
    else if (narrowSettings.matches && !$("settings").hidden) $("settings-close").click();
    else stop();
  });
  // What has come so far is kept when the page is left.
  addEventListener("pageshow", () => (leaving = false));
  addEventListener("pagehide", () => {
    leaving = true;
    for (const job of jobs.values()) saveConversation(job.conversation);
  });
}

wireScrolling();
wireList();
wireModels();
wireSettings();
wirePanels();
wireQuestion();
showTheme();
showLanguage(firstLanguage());
if (!storage) notice(t("errorStorage"));
const [newest] = conversations.values();
if (newest) openConversation(newest);
$("question").focus();
loadModels();
