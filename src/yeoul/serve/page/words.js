// All that the page says, in English and Korean, and how numbers are read (the steps are those of yeoul/units.py).

const number = (value, digits = 0) => value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });

function size(bytes) {
  if (Math.abs(bytes) < 1023.5) return number(bytes) + " B";
  let value = bytes / 1024;
  for (const unit of ["KiB", "MiB", "GiB"]) {
    if (Math.abs(value) < 1023.95) return number(value, 1) + " " + unit;
    value /= 1024;
  }
  return number(value, 1) + " TiB";
}

function milliseconds(value) {
  if (value < 9.95) return value.toFixed(1) + " ms";
  if (value < 995) return value.toFixed(0) + " ms";
  return value < 9950 ? t("seconds", (value / 1000).toFixed(1)) : t("seconds", number(value / 1000));
}

function large(value) { // 10153344 -> 10.2M, 1015만
  if (language === "ko") {
    for (const [magnitude, letter] of [[1e12, "조"], [1e8, "억"], [1e4, "만"]]) {
      if (value >= magnitude) return number(value / magnitude, value / magnitude < 100 ? 1 : 0).replace(".0", "") + letter;
    }
    return number(value);
  }
  for (const [magnitude, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= magnitude) return number(value / magnitude, value / magnitude < 100 ? 1 : 0).replace(".0", "") + letter;
  }
  return number(value);
}

const rate = (value) => number(value, Math.abs(value) < 99.95 ? 1 : 0);
const tokens = (n) => t("tokens", number(n), n === 1);

const WORDS = {
  skip: ["Skip to the question", "질문 입력으로 건너뛰기"],
  conversations: ["Conversations", "대화 목록"],
  newChat: ["New chat", "새 대화"],
  close: ["Close", "닫기"],
  cancel: ["Cancel", "취소"],
  importFile: ["Import", "가져오기"],
  exportAll: ["Export all", "모두 내보내기"],
  exportOne: ["Export", "내보내기"],
  rename: ["Rename", "이름 바꾸기"],
  remove: ["Delete", "삭제"],
  save: ["Save", "저장"],
  theme: ["Colours", "화면 테마"],
  themeSystem: ["System", "시스템"],
  themeLight: ["Light", "밝게"],
  themeDark: ["Dark", "어둡게"],
  model: ["Model", "모델"],
  secondModel: ["Second model", "두 번째 모델"],
  compare: ["Side by side", "나란히 비교"],
  settings: ["Settings", "설정"],
  transcript: ["Conversation", "대화"],
  toEnd: ["Go to the newest answer", "맨 아래로"],
  question: ["Question", "질문"],
  questionHint: ["Write a message", "메시지를 입력하세요"],
  send: ["Send", "보내기"],
  stop: ["Stop", "중지"],
  keys: ["Enter sends · Shift+Enter new line · Esc stops", "Enter 보내기 · Shift+Enter 줄바꿈 · Esc 중지"],
  untitled: ["Untitled", "제목 없음"],
  noModels: ["No models", "모델 없음"],

  you: ["You", "나"],
  edit: ["Edit", "수정"],
  editSend: ["Send as a new branch", "새 갈래로 보내기"],
  answer: ["Answer", "답하기"],
  again: ["Answer again", "다시 생성"],
  fork: ["Branch from here", "여기서 갈래 만들기"],
  copy: ["Copy", "복사"],
  copied: ["Copied", "복사했습니다"],
  copyFailed: ["The browser does not let this page copy.", "브라우저가 복사를 허용하지 않습니다."],
  copyCode: ["Copy code", "코드 복사"],
  earlier: ["Previous branch", "이전 갈래"],
  later: ["Next branch", "다음 갈래"],
  branches: [(at, all) => `Branch ${at} of ${all}`, (at, all) => `갈래 ${all}개 중 ${at}번째`],
  retry: ["Try again", "다시 시도"],
  answering: [(model) => `${model} is answering`, (model) => `${model} 답하는 중`],
  answered: [(model, text) => `${model}: ${text}`, (model, text) => `${model}의 답: ${text}`],
  stopped: ["Stopped", "중지됨"],
  cutShort: ["Cut off at the token limit", "최대 토큰 수에서 끊김"],
  nothing: ["The model answered with nothing.", "모델이 빈 답을 냈습니다."],

  forking: ["Keeping the state behind this message …", "이 메시지까지의 상태를 저장하는 중 …"],
  forked: ["Your next message begins a new branch here.", "다음 메시지부터 새 갈래가 됩니다."],
  forkedEarlier: ["Branched here", "여기서 갈라짐"],
  forkBack: ["Back to the old branch", "원래 갈래로"],
  forkCost: [
    (n, bytes, time, read) => `State of ${n}, ${bytes}, kept in ${time}; ${read ? read + " read again" : "nothing read again"}`,
    (n, bytes, time, read) => `${n}의 상태 ${bytes}를 ${time} 만에 저장 · ${read ? read + " 다시 읽음" : "다시 읽은 토큰 없음"}`,
  ],
  forkWithout: ["The server keeps no state for it", "서버에 저장된 상태 없음"],

  speed: ["Speed", "속도"],
  speedValue: [(r) => `${r} tokens/s`, (r) => `초당 ${r}토큰`],
  first: ["First token", "첫 토큰"],
  state: ["State", "상태"],
  stateConstant: [(bytes) => `${bytes}, constant`, (bytes) => `${bytes}, 늘 일정`],
  stateGrows: [(bytes, each) => `${bytes}, +${each} a token`, (bytes, each) => `${bytes}, 토큰마다 +${each}`],
  reused: ["Reused", "재사용"],
  reusedValue: [(cached, all) => `${cached} of ${all} tokens`, (cached, all) => `${all}토큰 중 ${cached}토큰`],
  length: ["Context", "문맥"],
  lengthLimit: [(n, limit) => `${n} of ${limit} tokens`, (n, limit) => `${n} / ${limit}토큰`],
  waited: ["Queued", "대기"],
  tokens: [(n, one) => (one ? `${n} token` : `${n} tokens`), (n) => `${n}토큰`],
  seconds: [(n) => `${n} s`, (n) => `${n}초`],

  hello: ["What shall we talk about?", "무슨 이야기를 할까요?"],
  parameters: ["Parameters", "파라미터"],
  attention: ["Attention", "어텐션"],
  attentionSoftmax: ["softmax", "소프트맥스"],
  attentionSliding: ["sliding window", "슬라이딩 윈도우"],
  attentionLinear: ["linear", "선형"],
  attentionHybrid: ["hybrid (window and state)", "하이브리드(윈도우와 상태)"],
  contextNone: ["no limit", "제한 없음"],
  contextTrained: [(n) => `no limit, trained on ${n} tokens`, (n) => `제한 없음(${n}토큰으로 학습)`],
  memory: ["Memory of a conversation", "대화 하나의 메모리"],
  memoryConstant: [(bytes) => `${bytes}, however long it gets`, (bytes) => `${bytes}, 아무리 길어져도 그대로`],
  memoryGrows: [(each) => `grows by ${each} a token`, (each) => `토큰마다 ${each}씩 늘어남`],
  memoryGrowsTo: [(each, all, n) => `grows by ${each} a token, to ${all} at ${n}`, (each, all, n) => `토큰마다 ${each}씩 늘어 ${n}에서 ${all}`],
  noTemplate: ["This model was not trained on conversations: it continues text rather than answering.", "대화를 학습하지 않은 모델이라, 대답하기보다 글을 이어 쓰는 경우가 많습니다."],
  local: ["Conversations are kept in this browser only.", "대화는 이 브라우저에만 저장됩니다."],
  loading: ["The server is still loading its models …", "서버가 모델을 불러오는 중입니다 …"],

  system: ["System prompt", "시스템 프롬프트"],
  systemWhy: ["Placed before the conversation; applies from the next answer on.", "대화 맨 앞에 붙는 지시입니다. 다음 답부터 적용됩니다."],
  sampling: ["Sampling", "샘플링"],
  defaults: ["Model's defaults", "모델 기본값으로"],
  comparing: ["Side by side", "나란히 비교"],
  inTurns: ["One model after the other", "한 모델씩 차례로"],
  inTurnsWhy: ["Models that answer at once share the machine; in turns, each one's speed is its own.", "동시에 답하면 두 모델이 장비를 나눠 씁니다. 차례로 답하면 모델마다 제 속도가 나옵니다."],
  outside: [(low, high) => `A number from ${low} to ${high}, please.`, (low, high) => `${low}부터 ${high}까지의 수를 넣으세요.`],
  temperature: ["Temperature", "온도"],
  temperatureWhy: ["Divides the logits: higher is more varied, lower more predictable, 0 always takes the likeliest token.", "로짓을 나누는 값입니다. 높을수록 다양하고 낮을수록 뻔해지며, 0이면 늘 확률이 가장 높은 토큰을 고릅니다."],
  top_pWhy: ["Keeps the likeliest tokens until their probabilities add up to p: a lower p keeps fewer tokens, 1 keeps all.", "확률이 높은 토큰부터 합이 p에 이를 때까지만 남깁니다. p가 낮을수록 남는 토큰이 적고, 1이면 모두 남습니다."],
  top_kWhy: ["Draws among the k likeliest tokens only; 0 keeps all.", "확률이 높은 순서로 k개 토큰 가운데서만 뽑습니다. 0이면 모두 남습니다."],
  min_pWhy: ["Leaves out tokens less likely than this share of the likeliest one's probability: a higher value keeps fewer tokens.", "확률이 가장 높은 토큰에 견주어 이 비율에 못 미치는 토큰을 뺍니다. 높을수록 남는 토큰이 적습니다."],
  repetition_penalty: ["Repetition penalty", "반복 페널티"],
  repetition_penaltyWhy: ["Above 1 makes tokens of the conversation and of the answer so far less likely; 1 is off.", "1보다 크면 대화와 답에 이미 나온 토큰이 다시 나올 확률을 낮춥니다. 1이면 쓰지 않습니다."],
  presence_penalty: ["Presence penalty", "존재 페널티"],
  presence_penaltyWhy: ["Subtracted once from the logit of every token that has occurred in the answer; 0 is off.", "답에 이미 나온 토큰의 로짓에서 이 값을 한 번 뺍니다. 0이면 쓰지 않습니다."],
  frequency_penalty: ["Frequency penalty", "빈도 페널티"],
  frequency_penaltyWhy: ["Subtracted from a token's logit for each time it has occurred in the answer; 0 is off.", "답에 토큰이 나온 횟수만큼 그 로짓에서 이 값을 뺍니다. 0이면 쓰지 않습니다."],
  max_tokens: ["Longest answer, tokens", "답의 최대 토큰 수"],
  max_tokensWhy: ["The answer is cut after this many tokens.", "답이 이만큼의 토큰에 이르면 끊습니다."],
  seed: ["Seed", "시드"],
  seedWhy: ["The same seed gives the same answer to the same conversation; empty draws anew each time.", "시드가 같으면 같은 대화에 같은 답이 나옵니다. 비워 두면 매번 새로 뽑습니다."],
  seedHint: ["new each time", "매번 새로"],
  stopTexts: ["Stop strings", "중지 문자열"],
  stopWhy: ["The answer ends before the first of these strings; one a line, at most four.", "이 문자열이 나오면 그 앞에서 답을 끝냅니다. 한 줄에 하나씩, 네 개까지 쓸 수 있습니다."],

  keyTitle: ["This server asks for a key", "키가 필요한 서버입니다"],
  keyText: ["It is kept until this tab is closed.", "이 탭을 닫을 때까지만 기억합니다."],
  keyWrong: ["The server does not accept this key. It is kept until this tab is closed.", "서버가 받아들이지 않는 키입니다. 키는 이 탭을 닫을 때까지만 기억합니다."],
  keyOk: ["Use the key", "키 쓰기"],
  renameTitle: ["Rename the conversation", "대화 이름 바꾸기"],
  removeTitle: ["Delete the conversation?", "대화를 삭제할까요?"],
  removeText: [(title) => `“${title}” cannot be restored.`, (title) => `삭제하면 되돌릴 수 없습니다: ${title}`],

  errorKey: ["The server requires a key.", "키가 있어야 답을 받을 수 있습니다."],
  errorReach: ["The server cannot be reached; is `yeoul serve` still running?", "서버에 연결할 수 없습니다. `yeoul serve`가 실행 중인지 확인하세요."],
  errorBusy: ["The server has no room at the moment; try again a little later.", "지금은 서버에 자리가 없습니다. 잠시 뒤에 다시 시도하세요."],
  errorLong: ["The conversation is longer than the model's context; shorten it or begin a new one.", "대화가 모델의 문맥 길이를 넘었습니다. 줄이거나 새로 시작하세요."],
  errorLarge: ["The conversation is too large for this server; shorten it or begin a new one.", "대화가 이 서버의 한도를 넘었습니다. 줄이거나 새로 시작하세요."],
  errorEnding: ["The server is starting or shutting down; try again a little later.", "서버가 시작하거나 종료하는 중입니다. 잠시 뒤에 다시 시도하세요."],
  errorModel: ["The server does not have this model any more; choose another.", "서버에 이 모델이 더는 없습니다. 다른 모델을 고르세요."],
  errorBroken: ["The connection broke before the answer was complete.", "답이 끝나기 전에 연결이 끊어졌습니다."],
  errorServer: [(status, said) => `The server failed (${status})${said ? ": " + said : "."}`, (status, said) => `서버에서 오류가 났습니다(${status})${said ? ": " + said : "."}`],
  errorScreen: [(said) => `The screen of this server held it back: ${said}`, (said) => `서버의 안전 필터가 막았습니다: ${said}`],
  errorRefused: [(said) => `The server refused: ${said}`, (said) => `서버가 거절했습니다: ${said}`],
  errorFull: ["The browser's storage is full: this conversation is not saved; export or delete some.", "브라우저 저장 공간이 가득 차서 이 대화를 저장하지 못했습니다. 대화를 내보내거나 지우세요."],
  errorMany: [(n) => `There are ${n} conversations already: this one is not saved; export or delete some.`, (n) => `대화가 이미 ${n}개라서 이 대화를 저장하지 못했습니다. 대화를 내보내거나 지우세요.`],
  errorStorage: ["The browser keeps nothing for this page: conversations are gone when it is closed.", "브라우저가 저장을 허용하지 않아, 페이지를 닫으면 대화가 사라집니다."],
  errorImport: [(name) => `${name} holds no conversation that this page can read.`, (name) => `${name}에는 이 페이지가 읽을 수 있는 대화가 없습니다.`],
  errorImportLarge: [(name) => `${name} is larger than 20 MiB.`, (name) => `${name}의 크기가 20 MiB를 넘습니다.`],
  imported: [(n) => (n === 1 ? "1 conversation imported." : `${n} conversations imported.`), (n) => `대화 ${n}개를 가져왔습니다.`],
  importedSome: [(n, bad) => `${n} of ${n + bad} conversations imported; the others cannot be read.`, (n, bad) => `대화 ${n + bad}개 중 ${n}개를 가져왔습니다. 나머지는 읽을 수 없습니다.`],
  nothingToExport: ["There is no conversation yet.", "아직 대화가 없습니다."],
};

let language = "en";

/** What the page says under a key, in the language that is shown. */
function t(key, ...values) {
  const words = WORDS[key][language === "ko" ? 1 : 0];
  return typeof words === "function" ? words(...values) : words;
}

/** Everything in `root` that says which words it shows: data-t (text), data-t-label (name, tooltip), data-t-placeholder. */
function translate(root) {
  for (const it of root.querySelectorAll("[data-t]")) it.textContent = t(it.dataset.t);
  for (const it of root.querySelectorAll("[data-t-placeholder]")) it.placeholder = t(it.dataset.tPlaceholder);
  for (const it of root.querySelectorAll("[data-t-label]")) label(it, it.dataset.tLabel);
}

/** The name of something for a screen reader, and for a button without words also its tooltip. */
function label(it, key) {
  it.dataset.tLabel = key;
  it.setAttribute("aria-label", t(key));
  if (it.tagName === "BUTTON") it.title = t(key);
}
