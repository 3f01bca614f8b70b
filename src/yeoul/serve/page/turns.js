// The conversation as it is shown: questions, answers with their figures, and what can be done with each.

/** One model's answer in the page; grows while it is written. */
class AnswerView {
  constructor(answer, named) {
    this.answer = answer;
    const kind = kindOf(modelOf(answer.model)?.meta);
    this.text = el("div", { class: "prose", dir: "auto" });
    this.state = el("p", { class: "note" });
    this.figures = el("dl", { class: "figures" });
    this.root = el("div", { class: "answer " + kind, role: "group", "aria-label": visible(answer.model || t("model")) },
      named || answer.model ? el("h3", { class: "who" }, visible(answer.model)) : null, this.text, this.state, this.figures);
    this.prose = new Prose(this.text);
    this.length = 0; // of the answer's text, how much is shown
    this.grow();
    if (answer.finish) this.end();
    else this.wait();
  }

  grow() {
    this.prose.append(this.answer.content.slice(this.length));
    this.length = this.answer.content.length;
  }

  wait() {
    this.root.setAttribute("aria-busy", "true");
    this.state.replaceChildren(el("span", { class: "dots", "aria-hidden": "true" }, el("i"), el("i"), el("i")), el("span", { class: "sr" }, t("answering", visible(this.answer.model))));
  }

  end() {
    const { answer } = this;
    this.prose.finish();
    this.root.removeAttribute("aria-busy");
    this.state.replaceChildren();
    const words = { stopped: t("stopped"), length: t("cutShort") }[answer.finish];
    if (answer.error) this.state.append(el("span", { class: "failed" }, answer.error));
    else if (words) this.state.append(words);
    else if (!answer.content.trim()) this.state.append(t("nothing"));
    this.figures.replaceChildren(...figureItems(answer.figures));
  }
}

/** The figures of an answer as pairs of name and value. */
function figureItems(figures) {
  const { first, speed, state, constant, grows, cached, read, context, limit, queued } = figures;
  const found = [];
  const add = (key, value) => found.push(el("div", {}, el("dt", {}, t(key)), el("dd", {}, value)));
  if (speed) add("speed", t("speedValue", rate(speed)));
  if (first) add("first", milliseconds(first));
  if (queued >= 50) add("waited", milliseconds(queued));
  if (state) add("state", constant ? t("stateConstant", size(state)) : grows ? t("stateGrows", size(state), size(grows)) : size(state));
  if (read) add("reused", t("reusedValue", number(cached), number(read)));
  if (context) add("length", limit ? t("lengthLimit", number(context), number(limit)) : tokens(context));
  return found;
}

function copyButton(key, text) {
  const button = el("button", { type: "button", class: "bare" }, icon("copy"));
  label(button, key);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      say(t("copied"));
      button.classList.add("done");
      setTimeout(() => button.classList.remove("done"), 1200);
    } catch {
      notice(t("copyFailed"));
    }
  });
  return button;
}

function toolButton(name, key, act) {
  const button = el("button", { type: "button", class: "bare locks", onclick: act }, icon(name));
  label(button, key);
  return button;
}

/** ‹ 2/3 ›: the other messages that stand at this place. */
function branchSwitch(index) {
  const { parent } = current.nodes[index];
  const all = after(current, parent);
  if (all.length < 2) return null;
  const at = all.indexOf(index);
  const go = (step) => (event) => {
    const name = event.currentTarget.dataset.tLabel;
    current.chosen[parent] = all[at + step];
    dropFork();
    saveConversation(current);
    showTurns();
    // The button that was pressed is another one now: the keyboard stays where it was.
    const turn = $("turns").querySelector(`[data-node="${all[at + step]}"]`);
    (turn?.querySelector(`.branches [data-t-label="${name}"]:enabled`) || turn?.querySelector(".branches button:enabled"))?.focus();
    say(t("branches", at + step + 1, all.length));
  };
  const back = toolButton("back", "earlier", go(-1));
  const on = toolButton("on", "later", go(1));
  back.disabled = at === 0;
  on.disabled = at === all.length - 1;
  back.dataset.end = at === 0 ? "1" : "";
  on.dataset.end = at === all.length - 1 ? "1" : "";
  return el("span", { class: "branches", role: "group", "aria-label": t("branches", at + 1, all.length) }, back, el("span", { "aria-hidden": "true" }, `${at + 1}/${all.length}`), on);
}

function forkWords(cost) {
  if (!cost.tokens && !cost.bytes) return t("forkWithout");
  const read = Math.max(0, cost.tokens - cost.cached_tokens);
  return t("forkCost", tokens(cost.tokens), size(cost.bytes), milliseconds(cost.milliseconds), read ? tokens(read) : "");
}

function forkLines(costs) {
  return costs.map((cost) => el("span", { class: "cost" }, costs.length > 1 ? el("b", {}, visible(cost.model) + " ") : null, forkWords(cost)));
}

function questionTurn(index) {
  const node = current.nodes[index];
  const text = el("div", { class: "bubble", dir: "auto" }, visible(node.content));
  const open = after(current, index).length ? null : el("button", { type: "button", class: "quiet locks", onclick: () => answerQuestion(index, chosenModels()) }, t("answer"));
  const tools = el("div", { class: "tools" }, open, branchSwitch(index), toolButton("edit", "edit", () => editQuestion(index, turn)), copyButton("copy", () => node.content));
  const fork = node.fork ? el("p", { class: "forked" }, icon("fork"), el("span", {}, t("forkedEarlier")), ...forkLines(node.fork)) : null;
  const turn = el("li", { class: "turn question", "data-node": index }, fork, el("h2", { class: "sr" }, t("you")), text, tools);
  return turn;
}

function answerTurn(index) {
  const node = current.nodes[index];
  const several = node.answers.length > 1;
  const views = node.answers.map((answer) => {
    const view = new AnswerView(answer, several);
    const job = jobs.get(answer);
    if (job) job.view = view;
    return view;
  });
  const text = () => node.answers.map((it) => (several ? `[${it.model}]\n${it.content}` : it.content)).join("\n\n");
  const failed = node.answers.some((answer) => answer.finish === "error");
  const again = failed
    ? el("button", { type: "button", class: "quiet locks", onclick: () => answerAgain(index) }, icon("again"), t("retry"))
    : toolButton("again", "again", () => answerAgain(index));
  return el("li", { class: "turn" + (several ? " several" : ""), "data-node": index },
    el("div", { class: "columns" }, ...views.map((view) => view.root)),
    el("div", { class: "tools" }, branchSwitch(index), again, toolButton("fork", "fork", () => fork(index)), copyButton("copy", text)));
}

/** The place where the next question begins a new branch, and what keeping it has cost. */
function pendingTurn() {
  const { costs } = pending;
  return el("li", { class: "turn pending" },
    el("p", { role: "status" }, icon("fork"), el("span", {}, t(costs ? "forked" : "forking")), ...(costs ? forkLines(costs) : [])),
    el("button", { type: "button", class: "quiet", onclick: leaveFork }, t("forkBack")));
}

const drawn = new WeakMap(); // message -> [what it was drawn from, its element]

/** A message's element; the one that is there, where nothing that it shows has changed. */
function turnOf(index) {
  const node = current.nodes[index];
  const from = [language, models.length, after(current, node.parent), after(current, index).length > 0, node.answers?.map((it) => it.finish)].join("|");
  const [before, there] = drawn.get(node) || [];
  if (before === from) return there;
  const made = node.role === "user" ? questionTurn(index) : answerTurn(index);
  if (!node.answers?.some((answer) => jobs.has(answer))) drawn.set(node, [from, made]);
  return made;
}

function showTurns() {
  const wanted = path(current, pending ? pending.node : null).map(turnOf);
  if (pending) wanted.push(pendingTurn());
  const box = $("turns");
  let same = 0;
  while (same < wanted.length && box.children[same] === wanted[same]) same++;
  while (box.children.length > same) box.lastChild.remove();
  box.append(...wanted.slice(same));
  showEmpty();
  showBusy();
  follow();
}

/** A question becomes a field; what is sent from it begins a branch, and the old one stays. */
function editQuestion(index, turn) {
  const node = current.nodes[index];
  const field = el("textarea", { rows: 1, "aria-label": t("edit"), maxlength: 500000 });
  field.value = node.content;
  const back = () => {
    showTurns();
    $("turns").querySelector(`[data-node="${index}"] [data-t-label="edit"]`)?.focus();
  };
  const done = () => {
    if (!field.value.trim() || busy()) return;
    dropFork();
    askQuestion(field.value.trim(), node.parent);
    $("question").focus();
  };
  const editor = el("div", { class: "editor" }, field, el("div", { class: "row" },
    el("button", { type: "button", class: "quiet", onclick: back }, t("cancel")),
    el("button", { type: "button", class: "strong locks", onclick: done }, t("editSend"))));
  drawn.delete(node);
  turn.querySelector(".bubble").replaceWith(editor);
  turn.querySelector(".tools").hidden = true;
  typing(field, done, back);
  field.focus();
  field.setSelectionRange(field.value.length, field.value.length);
}

// The page scrolls with the answer only while its reader is at the end of it.

let following = true;

function wireScrolling() {
  const box = $("scroll");
  box.addEventListener("scroll", () => {
    following = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    $("to-end").hidden = following;
  }, { passive: true });
  new ResizeObserver(follow).observe($("turns"));
  new ResizeObserver(follow).observe(box);
  $("to-end").addEventListener("click", () => {
    following = true;
    follow();
    $("question").focus();
  });
}

function follow() {
  const box = $("scroll");
  if (following) box.scrollTop = box.scrollHeight;
  $("to-end").hidden = following || box.scrollHeight <= box.clientHeight;
}
