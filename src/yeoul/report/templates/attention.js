// Maps of attention weights: all heads, one head in detail, all figures. Steps of a head are in attention_steps.js.

var D = JSON.parse(document.getElementById("data").textContent);
var T = D.tokens.length, PAIRS = T * (T + 1) / 2;
var PARTS = ["none", "softmax", "window", "sinks", "exact", "state"];
var NAMES = {
  none: ["out of sight", "보이지 않음"], softmax: ["softmax", "소프트맥스"], window: ["window", "윈도우"],
  sinks: ["sinks", "싱크"], exact: ["exact pairs", "정확한 쌍"], state: ["state", "상태"], negative: ["negative", "음수"]
};
var STATISTICS = [
  ["distance", ["mean distance, tokens", "평균 거리(토큰)"], number], ["entropy", ["entropy, bits", "엔트로피(비트)"], number],
  ["itself", ["on itself", "자기 자신"], percent], ["first", ["on the first token", "첫 토큰"], percent],
  ["window", ["in the window", "윈도우"], percent], ["sinks", ["on the sinks", "싱크"], percent],
  ["exact", ["on exact pairs", "정확한 쌍"], percent], ["state", ["through the state", "상태"], percent],
  ["near", ["where the other has its window", "상대 모델의 윈도우 안"], percent],
  ["beyond", ["beyond the other's window and sinks", "상대 모델의 윈도우와 싱크 밖"], percent],
  ["negative", ["negative weights", "음의 가중치"], percent], ["total", ["sum of the weights", "가중치의 합"], number],
  ["overlap", ["overlap with the other model", "상대 모델과 겹치는 정도"], percent]
];
var now = { layer: 0, head: 0, t: T - 1, s: Math.max(0, T - 2) };
var views = [], relabel = [];

// -- elements; a text is [English, Korean], of which the page shows one

function el(tag, name, inside) {
  var e = document.createElement(tag);
  if (name) e.className = name;
  put(e, inside);
  return e;
}
function put(e, inside) {
  if (inside === undefined || inside === null) return;
  if (inside instanceof Node) { e.appendChild(inside); return; }
  if (Array.isArray(inside)) {
    if (inside.length === 2 && typeof inside[0] === "string" && typeof inside[1] === "string") { e.appendChild(both(inside)); return; }
    inside.forEach(function (part) { put(e, part); });
    return;
  }
  e.appendChild(document.createTextNode(String(inside)));
}
function both(words) {
  var pair = document.createDocumentFragment();
  if (words[0] === words[1]) { pair.appendChild(document.createTextNode(words[0])); return pair; }
  ["en", "ko"].forEach(function (language, i) {
    var span = document.createElement("span");
    span.className = "in"; span.lang = language; span.textContent = words[i];
    pair.appendChild(span);
  });
  return pair;
}
function said(words) { return words[document.documentElement.lang === "ko" ? 1 : 0]; }
function labelled(e, words) { function set() { e.setAttribute("aria-label", said(words)); } relabel.push(set); set(); return e; }
function clear(e) { while (e.firstChild) e.removeChild(e.firstChild); return e; }
function number(x) { return Math.abs(x) >= 100 ? x.toFixed(0) : Math.abs(x) >= 10 ? x.toFixed(1) : x.toFixed(2); }
function percent(x) { return (100 * x).toFixed(Math.abs(x) < 0.0995 ? 1 : 0) + " %"; }
function weightText(x) {
  var p = Math.abs(100 * x);
  return (x < 0 ? "−" : "") + (p === 0 ? "0" : p < 1e-4 ? "< 0.0001" : p >= 99.5 ? p.toFixed(0) : p.toPrecision(2)) + " %";
}
function signed(x, digits) { return (x < 0 ? "−" : "") + Math.abs(x).toFixed(digits === undefined ? 2 : digits); }
function fine(x) { return x === 0 || Math.abs(x) >= 0.0005 ? signed(x, 4) : x.toExponential(1).replace(/-/g, "−"); }
function tokenText(i) { var t = D.tokens[i]; return t.text + (t.piece ? " (" + t.piece + ")" : ""); }
function tokenName(i) { return "“" + tokenText(i) + "” #" + i; }

// -- the weights

function unpacked(text) {
  var raw = atob(text), bytes = new Uint8Array(raw.length);
  for (var i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}
function weight(model, layer, head, t, s) {
  if (s > t) return 0;
  var code = model.bytes[layer.at + head * PAIRS + t * (t + 1) / 2 + s], range = layer.ranges[head], x;
  if (code >= range[2]) { x = (code - range[2]) / (255 - range[2]); return x * x * range[0]; }
  x = (range[2] - code) / range[2];
  return -x * x * range[1];
}
function part(model, layer, head, t, s) {
  if (s > t) return 0;
  if (layer.kind === "softmax") return 1;
  if (layer.window && s < layer.sinks) return 3;
  if (layer.window && t - s < layer.window) return 2;
  if (layer.kind === "sliding") return 0;
  if (layer.hasExact) {
    var bit = head * PAIRS + t * (t + 1) / 2 + s;
    if (model.bytes[layer.at + layer.heads * PAIRS + (bit >> 3)] >> (bit & 7) & 1) return 4;
  }
  return 5;
}
function layerOf(model, number) { return model.layers.filter(function (l) { return l.layer === number; })[0]; }
function sides(number, head) {
  return D.models.map(function (model) { return { model: model, layer: layerOf(model, number) }; })
    .filter(function (side) { return side.layer && head < side.layer.heads; });
}
function colours() {
  var style = getComputedStyle(document.documentElement), found = {};
  PARTS.concat("negative").forEach(function (name) {
    var hex = style.getPropertyValue("--" + name).trim().slice(1);
    found[name] = [0, 2, 4].map(function (i) { return parseInt(hex.slice(i, i + 2), 16) || 0; });
  });
  return found;
}
function colourOf(value, number, palette) { return value < 0 ? palette.negative : palette[PARTS[number]]; }
function strength(value) { return Math.min(1, Math.sqrt(Math.abs(value))); }
function draw(canvas, model, layer, head, most) {
  var n = Math.min(T, most), image = new ImageData(n, n), palette = colours(), best = new Float32Array(n * n);
  canvas.width = canvas.height = n;
  for (var t = 0; t < T; t++) {
    var y = Math.floor(t * n / T);
    for (var s = 0; s <= t; s++) {
      var value = weight(model, layer, head, t, s), at = y * n + Math.floor(s * n / T), size = Math.abs(value);
      if (size <= best[at]) continue;
      best[at] = size;
      var colour = colourOf(value, part(model, layer, head, t, s), palette);
      image.data[4 * at] = colour[0]; image.data[4 * at + 1] = colour[1]; image.data[4 * at + 2] = colour[2];
      image.data[4 * at + 3] = Math.round(255 * strength(value));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function partsOf(layer) {
  return PARTS.slice(1).filter(function (name) { return layer.statistics.some(function (h) { return h.shares[name] > 0; }); });
}
function statistic(head, name) { return head[name] !== undefined && head[name] !== null ? head[name] : head.shares[name]; }
function kindOf(layer) {
  var w = layer.window, extra = layer.kind === "hybrid" || layer.kind === "sliding";
  var first = layer.sinks ? [" and the first " + layer.sinks, "과 처음 " + layer.sinks + "토큰"] : ["", ""];
  if (layer.kind === "softmax") return ["softmax over every token before", "앞의 모든 토큰에 대한 소프트맥스"];
  if (layer.kind === "sliding") return ["softmax over the last " + w + " tokens" + first[0], "최근 " + w + "토큰" + first[1] + "에 대한 소프트맥스"];
  var state = layer.update ? " (" + layer.update + ")" : "";
  if (!extra) return ["linear attention: a state" + state, "선형 어텐션: 상태" + state];
  var pairs = layer.exact ? [", " + layer.exact + " exact pairs", ", 정확한 쌍 " + layer.exact + "개"] : ["", ""];
  return ["softmax over the last " + w + " tokens" + first[0] + pairs[0] + ", a state for the rest" + state,
          "최근 " + w + "토큰" + first[1] + "에는 소프트맥스" + pairs[1] + ", 나머지는 상태" + state];
}

function known8(side, t, s) { // of the head that is explained the whole number, of others what its 8 bits say
  var S = D.steps, C = S ? S.channels : 0;
  if (S && side.model === D.models[0] && S.layer === now.layer && S.head === now.head) return S.all[4 * T * C + T * T + t * T + s];
  return weight(side.model, side.layer, now.head, t, s);
}

function strongest(t) { // what a query looks at most, in the first of the models
  var side = sides(now.layer, now.head)[0], best = t, most = -1;
  for (var s = 0; s <= t; s++) {
    var size = Math.abs(weight(side.model, side.layer, now.head, t, s));
    if (size > most) { most = size; best = s; }
  }
  return best;
}

// -- the overview

function legend() {
  var names = [], box = el("div", "legend");
  D.models.forEach(function (m) { m.layers.forEach(function (l) { names = names.concat(partsOf(l)); if (l.ranges.some(function (r) { return r[2] > 0; })) names.push("negative"); }); });
  PARTS.concat("negative").forEach(function (name) {
    if (names.indexOf(name) < 0) return;
    var mark = el("i"); mark.style.background = "var(--" + name + ")";
    box.appendChild(el("span", "", [mark, NAMES[name]]));
  });
  return box;
}
function known(name) {
  return D.models.some(function (m) { return m.layers.some(function (l) { return l.statistics.some(function (h) { return statistic(h, name) !== undefined; }); }); });
}
function overview() {
  var box = document.getElementById("overview"), select = el("select"), shown = STATISTICS.filter(function (s) { return known(s[0]); });
  shown.forEach(function (s) {
    var option = el("option"); option.value = s[0];
    function set() { option.textContent = said(s[1]); } relabel.push(set); set();
    select.appendChild(option);
  });
  put(box, el("h2", "", ["All heads", "모든 헤드"]));
  put(box, el("p", "what", D.models.length > 1
    ? ["A row for each layer, a column for each head; on the left " + D.models[0].name + ", on the right " + D.models[1].name + ". Choose a head to look closer.",
       "행은 층, 열은 헤드입니다. 왼쪽이 " + D.models[0].name + ", 오른쪽이 " + D.models[1].name + "입니다. 헤드를 고르면 자세히 볼 수 있습니다."]
    : ["A row for each layer, a column for each head. Choose a head to look closer.", "행은 층, 열은 헤드입니다. 헤드를 고르면 자세히 볼 수 있습니다."]));
  put(box, el("div", "row", [el("label", "", [["Figure under each head: ", "헤드 아래에 보일 수치: "], select]), legend()]));
  var scroll = el("div", "scroll"), grid = el("div", "grid"), cells = [];
  scroll.tabIndex = 0; scroll.setAttribute("role", "region"); labelled(scroll, ["All heads", "모든 헤드"]);
  var numbers = [];
  D.models.forEach(function (m) { m.layers.forEach(function (l) { if (numbers.indexOf(l.layer) < 0) numbers.push(l.layer); }); });
  numbers.sort(function (a, b) { return a - b; });
  var heads = Math.max.apply(null, D.models.map(function (m) { return Math.max.apply(null, m.layers.map(function (l) { return l.heads; })); }));
  grid.style.gridTemplateColumns = "max-content repeat(" + heads + ", max-content)";
  var waiting = new Map(), watcher = new IntersectionObserver(function (entries) {
    entries.forEach(function (entry) { if (entry.isIntersecting && waiting.has(entry.target)) { waiting.get(entry.target)(); } });
  }, { rootMargin: "200px" });
  numbers.forEach(function (layer) {
    var kinds = sides(layer, 0).map(function (side) { return side.layer.kind; });
    grid.appendChild(el("div", "name", [["layer " + layer, "층 " + layer], el("small", "", kinds.join(" · "))]));
    for (var head = 0; head < heads; head++) grid.appendChild(cell(layer, head));
  });
  function cell(layer, head) {
    var own = sides(layer, head);
    if (!own.length) return el("div");
    var button = el("button", "cell"), thumbs = el("div", "thumbs"), value = el("span", "value");
    button.type = "button"; labelled(button, ["layer " + layer + ", head " + head, "층 " + layer + ", 헤드 " + head]);
    own.forEach(function (side) {
      var canvas = el("canvas", "thumb"), bar = el("span", "bar"), shares = side.layer.statistics[head].shares;
      partsOf(side.layer).forEach(function (name) {
        var piece = el("i"); piece.style.flex = "0 0 " + 100 * (shares[name] || 0) + "%"; piece.style.background = "var(--" + name + ")";
        bar.appendChild(piece);
      });
      waiting.set(canvas, function () { draw(canvas, side.model, side.layer, head, 64); });
      watcher.observe(canvas);
      thumbs.appendChild(el("span", "", [canvas, bar]));
    });
    put(button, [thumbs, value]);
    button.addEventListener("click", function () { now.layer = layer; now.head = head; now.s = strongest(now.t); choose(true); });
    cells.push({ button: button, value: value, layer: layer, head: head, own: own });
    return button;
  }
  function figures() {
    var chosen = shown.filter(function (s) { return s[0] === select.value; })[0] || shown[0];
    cells.forEach(function (c) {
      c.value.textContent = c.own.map(function (side) {
        var x = statistic(side.layer.statistics[c.head], chosen[0]);
        return x === undefined ? "–" : chosen[2](x);
      }).join(" · ");
    });
  }
  select.addEventListener("change", figures);
  figures();
  scroll.appendChild(grid); box.appendChild(scroll);
  views.push({
    choose: function () { cells.forEach(function (c) { c.button.setAttribute("aria-pressed", c.layer === now.layer && c.head === now.head ? "true" : "false"); }); },
    select: function () {}, repaint: function () { waiting.forEach(function (paint, canvas) { if (canvas.width !== 300) paint(); }); }
  });
}

// -- one head

function detail() {
  var box = document.getElementById("detail"), readout = el("p", "readout"), planes = [], strips = [], axes = [];
  readout.setAttribute("aria-live", "polite");
  function choose() {
    clear(box); planes = []; strips = []; axes = [];
    put(box, el("h2", "", [["Layer " + now.layer + ", head " + now.head, "층 " + now.layer + ", 헤드 " + now.head]]));
    put(box, el("p", "what", ["Point at the map, tap it, or walk over it with the arrow keys: rows are tokens that ask, columns tokens that are looked at. Tap a token of the text to see where it looks.",
      "지도를 가리키거나 누르거나 화살표 키로 옮겨 다니십시오. 행은 묻는 토큰, 열은 바라보는 토큰입니다. 아래 텍스트에서 토큰을 누르면 그 토큰이 어디를 보는지 나타납니다."]));
    put(box, readout);
    var own = sides(now.layer, now.head), both = el("div", "sides");
    own.forEach(function (side) { both.appendChild(sideView(side)); });
    put(box, both);
    put(box, table(own));
    select();
    requestAnimationFrame(fitAxes);
  }
  function sideView(side) {
    var view = el("div", "side"), map = el("div", "map"), plane = el("div", "plane"), canvas = el("canvas");
    put(view, [el("h3", "", side.model.name), el("p", "", [kindOf(side.layer)])]);
    plane.tabIndex = 0; plane.setAttribute("role", "application");
    labelled(plane, ["map of weights, arrow keys move", "가중치 지도, 화살표 키로 이동"]);
    draw(canvas, side.model, side.layer, now.head, 1e9);
    var row = el("div", "line r"), column = el("div", "line c");
    put(plane, [canvas, row, column]);
    function at(event) {
      var area = canvas.getBoundingClientRect();
      var s = Math.floor((event.clientX - area.left) / area.width * T), t = Math.floor((event.clientY - area.top) / area.height * T);
      t = Math.max(0, Math.min(T - 1, t));
      return [t, Math.max(0, Math.min(t, s))];
    }
    plane.addEventListener("pointermove", function (event) { if (event.pointerType === "mouse") tell.apply(null, at(event)); });
    plane.addEventListener("pointerleave", function () { tell(now.t, now.s); });
    plane.addEventListener("click", function (event) { var to = at(event); now.t = to[0]; now.s = to[1]; choose2(); });
    plane.addEventListener("keydown", function (event) {
      var far = event.shiftKey ? 10 : 1;
      var step = { ArrowLeft: [0, -far], ArrowRight: [0, far], ArrowUp: [-far, 0], ArrowDown: [far, 0], Home: [0, -T], End: [0, T] }[event.key];
      if (!step) return;
      event.preventDefault();
      now.t = Math.max(0, Math.min(T - 1, now.t + step[0])); now.s = Math.max(0, Math.min(now.t, now.s + step[1]));
      choose2();
    });
    var left = el("div", "axis beside"), top = el("div", "axis below");
    put(map, [left, plane, top]);
    axes.push({ left: left, top: top, plane: plane });
    planes.push({ row: row, column: column });
    put(view, [map, strip(side)]);
    return view;
  }
  function choose2() { views.forEach(function (v) { v.select(); }); }
  function fitAxes() {
    axes.forEach(function (a) {
      clear(a.left); clear(a.top);
      if (a.plane.clientWidth / T < 11) return;
      for (var i = 0; i < T; i++) { a.left.appendChild(el("span", "", D.tokens[i].text)); a.top.appendChild(el("span", "", D.tokens[i].text)); }
      mark(a);
    });
  }
  function mark(a) {
    [[a.left, now.t], [a.top, now.s]].forEach(function (pair) {
      Array.prototype.forEach.call(pair[0].children, function (span, i) { span.className = i === pair[1] ? "here" : ""; });
    });
  }
  function strip(side) {
    var box = el("div", "strip"), buttons = D.tokens.map(function (token, i) {
      var button = el("button", "token" + (token.special ? " special" : "")), share = el("small");
      button.type = "button";
      put(button, [el("span", "", [token.text === "⏎" ? "⏎" : token.text, token.piece ? el("sup", "", token.piece) : null]), share]);
      button.addEventListener("click", function () { now.t = i; now.s = strongest(i); choose2(); });
      button.addEventListener("pointerenter", function (event) { if (event.pointerType === "mouse" && i <= now.t) tell(now.t, i); });
      button.addEventListener("pointerleave", function () { tell(now.t, now.s); });
      button.addEventListener("keydown", function (event) {
        var step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1, Home: -T, End: T }[event.key];
        if (!step) return;
        event.preventDefault();
        now.t = Math.max(0, Math.min(T - 1, i + step)); now.s = strongest(now.t);
        choose2(); buttons[now.t].focus();
      });
      box.appendChild(button);
      return { button: button, share: share, focus: function () { button.focus(); } };
    });
    strips.push({ side: side, buttons: buttons });
    return box;
  }
  function tell(t, s) {
    clear(readout);
    put(readout, [el("b", "", tokenName(t)), " → ", el("b", "", tokenName(s)), t - s === 0 ? [" (itself)", " (자기 자신)"] : [" (" + (t - s) + " back)", " (" + (t - s) + "토큰 앞)"]]);
    sides(now.layer, now.head).forEach(function (side) {
      var value = known8(side, t, s), name = PARTS[part(side.model, side.layer, now.head, t, s)];
      put(readout, [el("br"), side.model.name + ": ", el("b", "", weightText(value)), " · ", NAMES[name]]);
    });
  }
  function select() {
    tell(now.t, now.s);
    planes.forEach(function (p) {
      p.row.style.top = 100 * now.t / T + "%"; p.row.style.height = 100 / T + "%";
      p.column.style.left = 100 * now.s / T + "%"; p.column.style.width = 100 / T + "%";
    });
    axes.forEach(mark);
    var palette = colours();
    strips.forEach(function (strip) {
      strip.buttons.forEach(function (b, i) {
        var value = weight(strip.side.model, strip.side.layer, now.head, now.t, i);
        var colour = colourOf(value, part(strip.side.model, strip.side.layer, now.head, now.t, i), palette);
        b.button.style.background = i > now.t ? "" : "rgba(" + colour.join(",") + "," + (0.75 * strength(value)).toFixed(3) + ")";
        b.button.classList.toggle("later", i > now.t);
        b.share.textContent = i <= now.t && Math.abs(value) >= 0.01 ? (value < 0 ? "−" : "") + Math.round(100 * Math.abs(value)) + "%" : "";
        b.button.setAttribute("aria-pressed", i === now.t ? "true" : "false");
        b.button.tabIndex = i === now.t ? 0 : -1;
      });
    });
  }
  function table(own) {
    var rows = [el("tr", "", [el("th", "words", ["this head", "이 헤드"])].concat(own.map(function (side) { return el("th", "", side.model.name); })))];
    STATISTICS.forEach(function (s) {
      var values = own.map(function (side) { return statistic(side.layer.statistics[now.head], s[0]); });
      if (values.every(function (x) { return x === undefined; })) return;
      rows.push(el("tr", "", [el("td", "words", [s[1]])].concat(values.map(function (x) { return el("td", "", x === undefined ? "–" : s[2](x)); }))));
    });
    return el("div", "scroll", [el("table", "small", rows)]);
  }
  addEventListener("resize", fitAxes);
  views.push({ choose: choose, select: select, repaint: choose });
}

// -- every figure of every head

function all() {
  var box = el("details", "", [el("summary", "", ["Every head in numbers", "모든 헤드의 수치"])]), shown = STATISTICS.filter(function (s) { return known(s[0]); });
  var rows = [el("tr", "", [el("th", "", ["head", "헤드"])].concat(D.models.length > 1 ? [el("th", "words", ["model", "모델"])] : [], shown.map(function (s) { return el("th", "", [s[1]]); })))];
  D.models.forEach(function (model) {
    model.layers.forEach(function (layer) {
      layer.statistics.forEach(function (head, h) {
        rows.push(el("tr", "", [el("td", "", layer.layer + "." + h)].concat(D.models.length > 1 ? [el("td", "words", model.name)] : [],
          shown.map(function (s) { var x = statistic(head, s[0]); return el("td", "", x === undefined ? "–" : s[2](x)); }))));
      });
    });
  });
  put(box, el("p", "what", ["Means over all tokens but the first. Distance and shares are of absolute weights; 2 to the power of the entropy is over how many tokens a head spreads.",
    "첫 토큰을 뺀 모든 토큰의 평균입니다. 거리와 비율은 가중치의 절댓값으로 구합니다. 2의 엔트로피 제곱이 헤드가 고루 나누어 보는 토큰 수입니다."]));
  var scroll = el("div", "scroll", [el("table", "small", rows)]);
  scroll.tabIndex = 0;
  put(box, scroll);
  document.getElementById("all").appendChild(box);
}

function choose(scroll) {
  views.forEach(function (v) { v.choose(); });
  if (scroll) document.getElementById("detail").scrollIntoView({ behavior: "smooth", block: "start" });
}
Promise.all(D.models.map(function (model) {
  return unpacked(model.weights).then(function (buffer) { model.bytes = new Uint8Array(buffer); });
}).concat(D.steps ? [unpacked(D.steps.numbers).then(function (buffer) { D.steps.all = new Float32Array(buffer); })] : [])).then(function () {
  now.layer = D.steps ? D.steps.layer : D.models[0].layers[0].layer;
  now.head = D.steps ? D.steps.head : 0;
  now.s = strongest(now.t);
  overview(); detail();
  if (D.steps) steps();
  all();
  choose(false);
  new MutationObserver(function () { relabel.forEach(function (set) { set(); }); }).observe(document.documentElement, { attributeFilter: ["lang"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { views.forEach(function (v) { v.repaint(); }); });
  dispatchEvent(new Event("resize"));
}, function (error) {
  document.getElementById("failed").hidden = false;
  throw error;
});
