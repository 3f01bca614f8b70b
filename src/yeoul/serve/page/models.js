// The models of the server, which of them are asked, and what is told of them before a conversation begins.

let models = [];

const modelOf = (name) => models.find((model) => model.id === name);

/** The names of the models that are asked: one, or two where they stand side by side. */
function chosenModels() {
  const first = modelOf(settings.models[0]) || models[0];
  if (!first) return [];
  const wanted = modelOf(settings.models[1]);
  const second = wanted && wanted !== first ? wanted : models.find((model) => model !== first);
  return settings.compare && second ? [first.id, second.id] : [first.id];
}

async function loadModels() {
  for (;;) {
    try {
      const listed = await (await request("GET", "v1/models")).json();
      models = listed.data.filter((it) => typeof it?.id === "string" && it.meta?.task !== "embed").map((it) => ({ ...it, meta: it.meta || {} }));
      showModels();
      showControls();
      return showTurns();
    } catch (error) {
      if (error.status !== 503) {
        const again = el("button", { type: "button", class: "quiet", onclick: loadModels }, t("retry"));
        $("empty").replaceChildren(el("p", { class: "failed", role: "alert" }, error.sentence || t("errorBroken")), again);
        $("empty").hidden = false;
        return;
      }
      $("empty").replaceChildren(el("p", { role: "status" }, t("loading")));
      await new Promise((done) => setTimeout(done, 2000));
    }
  }
}

function showModels() {
  const names = chosenModels();
  for (const column of [0, 1]) {
    const select = $("model-" + column);
    select.replaceChildren(...models.map((model) => el("option", { value: model.id }, visible(model.id))));
    if (!models.length) select.append(el("option", {}, t("noModels")));
    if (names[column]) select.value = names[column];
    select.disabled = models.length < 2;
  }
  $("against").hidden = names.length < 2;
  $("compare").hidden = models.length < 2;
  $("compare").setAttribute("aria-pressed", String(names.length === 2));
}

function wireModels() {
  for (const column of [0, 1]) {
    $("model-" + column).addEventListener("change", (event) => {
      const names = [...chosenModels()];
      const other = names.indexOf(event.target.value);
      if (other >= 0 && other !== column) names[other] = names[column]; // they change places
      names[column] = event.target.value;
      settings.models = names.length > 1 ? names : [names[0], settings.models[1]];
      saveSettings();
      showModels();
      showControls();
      showEmpty();
    });
  }
  $("compare").addEventListener("click", () => {
    settings.compare = !settings.compare;
    saveSettings();
    showModels();
    showEmpty();
  });
}

const kindOf = (meta) => (meta?.linear === true ? "linear" : meta?.linear === false ? "softmax" : "");

/** "softmax + hybrid": the kinds of the layers, each once. */
function attentionWords({ attention }) {
  const known = { softmax: "attentionSoftmax", sliding: "attentionSliding", dijiang: "attentionLinear", linear: "attentionLinear", hybrid: "attentionHybrid" };
  return String(attention).split(" + ").map((kind) => (kind in known ? t(known[kind]) : visible(kind))).join(" + ");
}

function memoryWords({ linear, state_bytes: bytes, bytes_per_token: each, context }) {
  if (linear && count(bytes)) return t("memoryConstant", size(bytes));
  if (!each) return count(bytes) ? size(bytes) : null;
  return count(bytes) && context ? t("memoryGrowsTo", size(each), size(bytes), tokens(context)) : t("memoryGrows", size(each));
}

function contextWords({ context, trained_context: trained }) {
  if (context) return tokens(context);
  return trained ? t("contextTrained", number(trained)) : t("contextNone");
}

function aboutModel(model) {
  const { meta } = model;
  const facts = [
    ["parameters", count(meta.parameters) ? large(meta.parameters) : null],
    ["attention", meta.attention ? attentionWords(meta) : null],
    ["length", meta.context === undefined ? null : contextWords(meta)],
    ["memory", memoryWords(meta)],
  ].filter(([, value]) => value);
  return el("section", { class: "about " + kindOf(meta) },
    el("h3", {}, visible(model.id)),
    el("dl", {}, ...facts.flatMap(([key, value]) => [el("dt", {}, t(key)), el("dd", {}, value)])),
    meta.chat_template === false ? el("p", { class: "why" }, t("noTemplate")) : null);
}

/** What stands where no conversation is yet. */
function showEmpty() {
  const names = chosenModels();
  $("empty").hidden = path(current).length > 0;
  if ($("empty").hidden || !names.length) return;
  $("empty").replaceChildren(
    el("h2", {}, t("hello")),
    el("div", { class: "abouts" }, ...names.map((name) => aboutModel(modelOf(name)))),
    el("p", { class: "why" }, t("local")));
}
