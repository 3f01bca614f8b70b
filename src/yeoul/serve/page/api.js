// The server, by paths relative to the page: OpenAI's endpoints, and states. A refusal is a `Refusal`, whose `sentence` is what the reader sees.

const STATUS = { authentication_error: 401, not_found_error: 404, rate_limit_error: 429, server_error: 500 }; // in mid-stream

class Refusal extends Error {
  constructor(status, said = "", code = null) {
    super(said || String(status));
    this.status = status;
    this.code = code;
    this.said = visible(String(said)).slice(0, 1000);
  }

  get sentence() {
    if (this.status === "broken") return t("errorBroken");
    if (this.status === 0) return t("errorReach");
    if (this.status === 401) return t("errorKey");
    if (this.code === "context_length_exceeded") return t("errorLong");
    if (this.status === 404) return t("errorModel");
    if (this.status === 413) return t("errorLarge");
    if (this.status === 429) return t("errorBusy");
    if (this.status === 503) return t("errorEnding");
    return this.status >= 500 ? t("errorServer", this.status, this.said) : t("errorRefused", this.said || this.status);
  }
}

let asking = null; // the one question for a key, however many requests wait for it
let apiKey = null;
try {
  apiKey = sessionStorage.getItem("yeoul-key");
} catch { /* it is asked for again after a reload */ }

function askKey(refused) {
  if (apiKey && apiKey !== refused) return Promise.resolve(apiKey); // another request has got it meanwhile
  asking ??= ask({ title: t("keyTitle"), text: t(refused ? "keyWrong" : "keyText"), yes: t("keyOk"), type: "password", value: "" })
    .then((key) => {
      if (key) {
        apiKey = key;
        try {
          sessionStorage.setItem("yeoul-key", key);
        } catch { /* see above */ }
      }
      return key;
    })
    .finally(() => (asking = null));
  return asking;
}

async function request(method, path, body, signal) {
  for (;;) {
    const key = apiKey;
    const headers = { ...(body ? { "Content-Type": "application/json" } : {}), ...(key ? { Authorization: "Bearer " + key } : {}) };
    let response;
    try {
      response = await fetch(path, { method, headers, signal, body: body ? JSON.stringify(body) : undefined, cache: "no-store", credentials: "omit" });
    } catch (error) {
      throw signal?.aborted ? error : new Refusal(0);
    }
    if (response.ok) return response;
    if (response.status === 401 && (await askKey(key)) && !signal?.aborted) continue;
    const said = await response.json().catch(() => null);
    throw new Refusal(response.status, said?.error?.message ?? said?.detail ?? "", said?.error?.code);
  }
}

async function* lines(response, signal) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      rest += decoder.decode(value, { stream: !done });
      const found = rest.split(/\r\n|\n|\r(?!$)/);
      rest = done ? "" : found.pop();
      yield* found;
      if (done) return;
      if (rest.length > 10 * LIMITS.characters) throw new Refusal("broken");
    }
  } catch (error) {
    throw signal.aborted || error instanceof Refusal ? error : new Refusal("broken");
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The values of a stream of server-sent events up to "[DONE]"; comments are pings. */
async function* events(response, signal) {
  for await (const line of lines(response, signal)) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    let value;
    try {
      value = JSON.parse(data);
    } catch {
      throw new Refusal("broken");
    }
    if (value?.error) throw new Refusal(STATUS[value.error.type] || Number(value.error.code) || 400, value.error.message ?? "", value.error.code);
    yield value;
  }
  throw new Refusal("broken"); // the end was not said
}

const FINISHES = { stop: "stop", length: "length", content_filter: "error" };

/** Streams one answer: `onText` gets each piece. Fills answer.finish and answer.figures. */
async function complete(model, messages, settings, answer, signal, onText) {
  const begun = performance.now();
  const body = { model, messages, ...settings, stream: true, stream_options: { include_usage: true } };
  const response = await request("POST", "v1/chat/completions", body, signal);
  let finish = "stop";
  for await (const chunk of events(response, signal)) {
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content;
    if (typeof text === "string" && text) {
      answer.figures.first ??= performance.now() - begun;
      onText(text);
    }
    if (choice?.delta?.refusal) answer.error = t("errorScreen", visible(String(choice.delta.refusal)).slice(0, 1000));
    if (choice?.finish_reason) finish = FINISHES[choice.finish_reason] || "stop";
    takeFigures(answer.figures, chunk, modelOf(model)?.meta);
  }
  answer.finish = finish;
}

function takeFigures(figures, { usage, timings }, meta) {
  if (usage) {
    figures.context = count(usage.total_tokens);
    figures.read = count(usage.prompt_tokens);
    figures.cached = count(usage.prompt_tokens_details?.cached_tokens) ?? 0;
  }
  if (!timings) return;
  figures.speed = count(timings.predicted_per_second);
  figures.queued = count(timings.queue_ms);
  figures.state = count(timings.state_bytes);
  figures.constant = meta?.linear === true;
  if (!meta?.linear) figures.grows = count(meta?.bytes_per_token);
  figures.limit = count(meta?.context);
}
