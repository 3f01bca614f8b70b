// The settings: sampling (only what differs from the model's defaults is kept and sent), system prompt, theme, language.

const CONTROLS = [
  { key: "temperature", low: 0, high: 2, step: 0.05, otherwise: 0.8 },
  { key: "top_p", name: "top-p", low: 0.01, high: 1, step: 0.01, otherwise: 0.95 },
  { key: "top_k", name: "top-k", low: 0, high: 1000000, step: 1, otherwise: 0, whole: true },
  { key: "min_p", name: "min-p", low: 0, high: 1, step: 0.01, otherwise: 0 },
  { key: "repetition_penalty", low: 0.5, high: 2, step: 0.01, otherwise: 1 },
  { key: "presence_penalty", low: -2, high: 2, step: 0.1, otherwise: 0 },
  { key: "frequency_penalty", low: -2, high: 2, step: 0.1, otherwise: 0 },
  { key: "max_tokens", low: 1, high: 1000000, step: 1, otherwise: 512, whole: true },
  { key: "seed", low: 0, high: Number.MAX_SAFE_INTEGER, step: 1, otherwise: null, whole: true },
];

const settings = { models: [], compare: false, inTurns: false, theme: "system", sampling: {}, open: false, ...remembered("yeoul-settings", {}) };
const saveSettings = () => remember("yeoul-settings", settings);

const valid = ({ low, high, whole }, value) => Number.isFinite(value) && value >= low && value <= high && (!whole || Number.isInteger(value));
const defaultOf = ({ key, otherwise }, model = chosenModels()[0]) => modelOf(model)?.meta.defaults?.[key] ?? otherwise;

/** What is sent with a request beside model and messages. */
function samplingFields() {
  const found = {};
  for (const control of CONTROLS) {
    const value = settings.sampling[control.key];
    if (valid(control, value)) found[control.key] = value;
  }
  const stop = String(settings.sampling.stop ?? "").split("\n").filter(Boolean).slice(0, 4);
  return stop.length ? { ...found, stop } : found;
}

function setSampling(key, value) {
  if (value === null) delete settings.sampling[key];
  else settings.sampling[key] = value;
  saveSettings();
  $("defaults").disabled = !Object.keys(settings.sampling).length;
}

function numberControl(control) {
  const { key, low, high, step } = control;
  const usual = defaultOf(control);
  const value = settings.sampling[key] ?? usual;
  const wrong = el("p", { class: "wrong", id: `wrong-${key}`, role: "alert" });
  const box = el("input", {
    type: "number", id: `set-${key}`, min: low, max: high, step: "any", value, inputmode: control.whole ? "numeric" : "decimal",
    placeholder: usual ?? t("seedHint"), "aria-describedby": `why-${key} wrong-${key}`, autocomplete: "off",
  });
  // A slider is for the hand; the box beside it says the same to the keyboard and to a screen reader.
  const slider = control.whole ? null : el("input", { type: "range", min: low, max: high, step, value, tabindex: -1, "aria-hidden": "true" });
  const mark = () => made.classList.toggle("changed", key in settings.sampling);
  box.addEventListener("input", () => {
    const empty = box.value === "" && !box.validity.badInput;
    const typed = empty ? null : Number(box.value === "" ? NaN : box.value);
    const fine = empty || valid(control, typed);
    wrong.textContent = fine ? "" : t("outside", low, high.toLocaleString("en-US"));
    box.setAttribute("aria-invalid", String(!fine));
    if (!fine) return;
    setSampling(key, typed === usual ? null : typed);
    if (slider) slider.value = typed ?? usual;
    mark();
  });
  slider?.addEventListener("input", () => {
    box.value = slider.value;
    box.dispatchEvent(new Event("input"));
  });
  const made = el("div", { class: "control" },
    el("label", { for: `set-${key}` }, control.name || t(key)),
    el("div", { class: "inputs" }, slider, box),
    el("p", { class: "why", id: `why-${key}` }, t(key + "Why")), wrong);
  mark();
  return made;
}

function stopControl() {
  const box = el("textarea", { id: "set-stop", rows: 2, "aria-describedby": "why-stop", maxlength: 2000 });
  box.value = settings.sampling.stop ?? "";
  box.addEventListener("input", () => setSampling("stop", box.value || null));
  return el("div", { class: "control" }, el("label", { for: "set-stop" }, t("stopTexts")), box, el("p", { class: "why", id: "why-stop" }, t("stopWhy")));
}

function showControls() {
  $("controls").replaceChildren(...CONTROLS.map(numberControl), stopControl());
  $("defaults").disabled = !Object.keys(settings.sampling).length;
  $("in-turns").checked = settings.inTurns;
}

function showTheme() {
  const root = document.documentElement;
  if (settings.theme === "system") delete root.dataset.theme;
  else root.dataset.theme = settings.theme;
  for (const button of $("themes").children) button.setAttribute("aria-pressed", String(button.dataset.theme === settings.theme));
}

function firstLanguage() {
  let chosen = null;
  try {
    chosen = storage?.getItem("yeoul-language"); // the same as in reports
  } catch { /* then the browser's */ }
  const wanted = [chosen, ...(navigator.languages || [navigator.language])].filter(Boolean).map((it) => it.slice(0, 2));
  return wanted.find((it) => it === "en" || it === "ko") || "en";
}

function showLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  for (const button of $("languages").children) button.setAttribute("aria-pressed", String(button.lang === chosen));
  translate(document.body);
  showControls();
  showModels();
  showList();
  showTurns();
}

function wireSettings() {
  for (const button of $("themes").children) {
    button.addEventListener("click", () => {
      settings.theme = button.dataset.theme;
      saveSettings();
      showTheme();
    });
  }
  for (const button of $("languages").children) {
    button.addEventListener("click", () => {
      try {
        storage?.setItem("yeoul-language", button.lang);
      } catch { /* it holds for this page */ }
      showLanguage(button.lang);
    });
  }
  $("defaults").addEventListener("click", () => {
    settings.sampling = {};
    saveSettings();
    showControls();
    $("settings-close").focus();
  });
  $("in-turns").addEventListener("change", () => {
    settings.inTurns = $("in-turns").checked;
    saveSettings();
  });
  $("system").addEventListener("input", () => {
    current.system = $("system").value;
    saveConversation(current);
  });
}
