// -- one head of this text, step by step

function steps() {
  var S = D.steps, C = S.channels, box = document.getElementById("steps"), model = D.models[0], layer = layerOf(model, S.layer);
  var at = { q: 0, k: T * C, v: 2 * T * C, o: 3 * T * C, p: 4 * T * C, w: 4 * T * C + T * T, z: 4 * T * C + 2 * T * T };
  function row(name, i) { return Array.prototype.slice.call(S.all, at[name] + i * C, at[name] + (i + 1) * C); }
  function product(t, s) { return S.all[at.p + t * T + s]; }
  function exact(t, s) { return S.all[at.w + t * T + s]; }
  function scoreOf(t, s) { var x = product(t, s) * S.scale; return S.softcap ? S.softcap * Math.tanh(x / S.softcap) : x; }
  function list(numbers) { return "(" + numbers.map(function (x) { return signed(x); }).join(", ") + (S.size > C ? ", …" : "") + ")"; }
  function partName(t, s) { return PARTS[part(model, layer, S.head, t, s)]; }
  function bySoftmax(t, s) { return ["softmax", "window", "sinks", "exact"].indexOf(partName(t, s)) >= 0; }
  function step(n, title, inside) { return el("div", "step", [el("h3", "", [[n + ". " + title[0], n + ". " + title[1]]])].concat(inside)); }
  function p(words) { return el("p", "", [words]); }
  function show() {
    var t = now.t, s = now.s, total = S.all[at.z + t], order = [], i;
    for (i = 0; i <= t; i++) order.push(i);
    order.sort(function (a, b) { return Math.abs(exact(t, b)) - Math.abs(exact(t, a)); });
    var keys = order.slice(0, 6);
    [s, t].forEach(function (x) { if (keys.indexOf(x) < 0) keys.push(x); });
    keys.sort(function (a, b) { return a - b; });
    var soft = order.filter(function (x) { return bySoftmax(t, x); }), states = order.filter(function (x) { return partName(t, x) === "state"; });
    var largest = soft.reduce(function (m, x) { return Math.max(m, scoreOf(t, x)); }, -Infinity);
    var ask = tokenName(t), told = tokenName(s), x = row("q", t), y = row("k", s), root = Math.abs(S.scale * Math.sqrt(S.size) - 1) < 1e-3;
    clear(box);
    put(box, el("h2", "", [["Step by step: layer " + S.layer + ", head " + S.head, "한 단계씩: 층 " + S.layer + ", 헤드 " + S.head]]));
    put(box, p(["How " + ask + " gathers what it needs from the tokens before it, in one head of " + model.name + ". All numbers are those of this text; choose another pair of tokens on the map and they change.",
      model.name + "의 헤드 하나에서 " + ask + " 토큰이 앞의 토큰들에서 필요한 것을 모으는 과정을 차례로 따라갑니다. 수는 모두 이 텍스트에서 나온 실제 값이며, 지도에서 다른 토큰 쌍을 고르면 바뀝니다."]));

    put(box, step(1, ["Query, key and value", "쿼리, 키, 값"], [
      p(["Three projections of the layer's input give every token three lists of " + S.size + " numbers. Its query says what the token is looking for, its key what it can be found by, its value what it hands over when it is found.",
        "층의 입력에 프로젝션 세 개를 적용하면 토큰마다 수 " + S.size + "개짜리 목록이 셋 생깁니다. 쿼리는 이 토큰이 무엇을 찾는지, 키는 무엇으로 찾아질 수 있는지, 값은 찾아졌을 때 무엇을 건네는지를 나타냅니다."]),
      el("div", "numbers", "q " + ask + " = " + list(x) + "\nk " + told + " = " + list(y) + "\nv " + told + " = " + list(row("v", s)))]));

    var terms = x.slice(0, 3).map(function (a, i) { return signed(a) + "×" + (y[i] < 0 ? "(" + signed(y[i]) + ")" : signed(y[i])); }).join(" + ");
    var scaled = product(t, s) * S.scale;
    put(box, step(2, ["How well do query and key fit? q·k / √d", "쿼리와 키가 얼마나 맞는가: q·k / √d"], [
      p(["Multiply the two lists number by number and add up: the more they point the same way, the larger the result. Longer lists give larger sums, so it is divided by the square root of their length.",
        "두 목록을 같은 자리끼리 곱해서 모두 더합니다. 같은 방향을 가리킬수록 결과가 큽니다. 목록이 길수록 합도 커지므로 길이의 제곱근으로 나눕니다."]),
      el("div", "numbers", "q·k = " + terms + (S.size > 3 ? " + …" : "") + " = " + signed(product(t, s)) + "\n" +
        (root ? signed(product(t, s)) + " / √" + S.size + " = " : signed(product(t, s)) + " × " + S.scale.toPrecision(4) + " = ") + signed(scaled) +
        (S.softcap ? "\n" + S.softcap + " × tanh(" + signed(scaled) + " / " + S.softcap + ") = " + signed(scoreOf(t, s)) : "")),
      !root ? p(["This model has a factor of its own in place of 1/√d.", "이 모델은 1/√d 대신 고유한 배율을 씁니다."]) : null,
      S.softcap ? p(["A soft cap keeps scores within ±" + S.softcap + ".", "점수가 ±" + S.softcap + "를 넘지 않도록 부드럽게 제한합니다(soft cap)."]) : null]));

    var hidden = layer.kind === "sliding" && t >= layer.window;
    put(box, step(3, ["Nobody looks ahead: the mask", "앞일은 볼 수 없다: 마스크"], [
      p(t < T - 1
        ? ["The model is to predict what comes next, so a token must not see it. Scores with the " + (T - 1 - t) + " later tokens are set to −∞; e to the power of −∞ is 0, and so will be their weights. The nearest, " + tokenName(t + 1) + ", would have had " + signed(scoreOf(t, t + 1)) + ".",
           "모델은 다음에 올 것을 예측해야 하므로 미리 보면 안 됩니다. 뒤에 오는 토큰 " + (T - 1 - t) + "개와의 점수를 −∞로 바꾸면, e의 −∞ 제곱이 0이므로 가중치도 0이 됩니다. 바로 다음 토큰 " + tokenName(t + 1) + "의 점수는 원래 " + signed(scoreOf(t, t + 1)) + "였습니다."]
        : ["The model is to predict what comes next, so a token must not see it: scores with later tokens are set to −∞, and e to the power of −∞ is 0. This is the last token, so that nothing is hidden from it.",
           "모델은 다음에 올 것을 예측해야 하므로 미리 보면 안 됩니다. 뒤에 오는 토큰과의 점수는 −∞로 바꾸며, e의 −∞ 제곱은 0입니다. 이 토큰은 마지막이라 가려지는 것이 없습니다."]),
      hidden ? p(["This layer sees the last " + layer.window + " tokens only" + (layer.sinks ? " and the first " + layer.sinks : "") + ": the rest is masked likewise.",
        "이 층은 최근 " + layer.window + "토큰" + (layer.sinks ? "과 처음 " + layer.sinks + "토큰" : "") + "만 봅니다. 나머지도 같은 방법으로 가립니다."]) : null]));

    var inside = [];
    if (soft.length) inside.push(
      p(["Softmax turns scores into shares: e to the power of each (the largest, " + signed(largest) + ", is subtracted first, which changes no share but keeps the numbers small), divided by the sum of them all.",
        "소프트맥스는 점수를 비율로 바꿉니다. 점수마다 e의 거듭제곱을 구하고(먼저 가장 큰 점수 " + signed(largest) + "를 빼는데, 비율은 그대로이고 수만 작아집니다) 그 합으로 나눕니다."]));
    if (states.length) inside.push(
      p(["The state pays for " + states.length + " tokens that are no longer compared one by one: their values were added up in it, each under the features φ(k) of its key. Reading it with φ(q) gives each a coefficient of its own" +
          (layer.update === "delta" ? "; as the delta rule corrects what is there before it writes, some may be negative" : "") + (soft.length ? ". It goes into the same sum." : "."),
        "더는 하나씩 비교하지 않는 토큰 " + states.length + "개는 상태가 맡습니다. 이 토큰들의 값은 키의 특징 φ(k)와 함께 상태에 더해져 있고, φ(q)로 상태를 읽으면 값마다 계수가 정해집니다." +
          (layer.update === "delta" ? " 델타 규칙은 쓰기 전에 이미 있는 내용을 고치므로 음수가 될 수도 있습니다." : "") + (soft.length ? " 이 계수도 같은 합에 들어갑니다." : "")]));
    inside.push(el("div", "numbers", (bySoftmax(t, s)
      ? "e^(" + signed(scoreOf(t, s)) + " − " + (largest < 0 ? "(" + signed(largest) + ")" : signed(largest)) + ") = " + fine(exact(t, s) * total) : told + ": " + fine(exact(t, s) * total)) +
      "\n" + fine(exact(t, s) * total) + " / " + signed(total, 4) + " = " + fine(exact(t, s))));
    inside.push(el("div", "scroll", [table(t, keys, total)]));
    put(box, step(4, soft.length ? ["From scores to weights: softmax", "점수에서 가중치로: 소프트맥스"] : ["The weights that the state implies", "상태가 함의하는 가중치"], inside));

    var lines = order.slice(0, 3).map(function (i) { return fine(exact(t, i)) + " × v " + tokenName(i) + " " + list(row("v", i)); });
    put(box, step(5, ["The weighted sum of the values", "값의 가중합"], [
      p(["Every value is multiplied by its weight, and all are added up. That is what this head puts out for " + ask + "; the output projection then mixes it with what the other heads have found.",
        "값마다 가중치를 곱해 모두 더합니다. 이것이 " + ask + "에 대한 이 헤드의 출력이고, 출력 프로젝션이 다른 헤드들이 찾은 것과 섞습니다."]),
      el("div", "numbers", lines.join("\n+ ") + (order.length > 3 ? "\n+ … (" + (order.length - 3) + ")" : "") + "\n= " + list(row("o", t)))]));
  }
  function table(t, keys, total) {
    var head = el("tr", "", [["token", "토큰"], ["paid by", "맡는 곳"], "q·k", ["score", "점수"], ["before dividing", "나누기 전"], ["weight", "가중치"]].map(function (x, i) {
      return el("th", i < 2 ? "token-cell" : "", [x]);
    }));
    var rows = [head].concat(keys.map(function (s) {
      var by = bySoftmax(t, s);
      return el("tr", "", [el("td", "token-cell", tokenName(s)), el("td", "token-cell", [NAMES[partName(t, s)]]), el("td", "", by ? signed(product(t, s)) : "–"),
        el("td", "", by ? signed(scoreOf(t, s)) : "–"), el("td", "", fine(exact(t, s) * total)), el("td", "", fine(exact(t, s)))]);
    }));
    if (t < T - 1) rows.push(el("tr", "", [el("td", "token-cell", tokenName(t + 1)), el("td", "token-cell", [["masked", "마스크"]]), el("td", "", signed(product(t, t + 1))),
      el("td", "", "−∞"), el("td", "", "0"), el("td", "", "0")]));
    return el("table", "small", rows);
  }
  views.push({ choose: show, select: show, repaint: function () {} });
}
