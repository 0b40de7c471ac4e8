// One head of the course's GPT, number by number: from x through queries, keys, scores, mask and
// softmax to the output. Before the model is loaded the page's own example is shown.
//
// data: {tokens, weights: (T, T) of one head, layer, head, text, bytes: of the model's file}
// needs: weights bpe gpt
// model: small-gpt
"use strict";

explorer("microscope", (root, data) => {
  root.innerHTML = `
    <p class="label">Whom does a token look at? Choose it.</p>
    <p class="tokens choice"></p>
    <div class="heat"></div>
    <p class="note">A row for each token that looks, a column for each that is looked at.</p>
    <p class="reading" aria-live="polite"></p>
    <p class="load"><button type="button">Load the model (${(data.bytes / 1e6).toFixed(1)} MB)</button>
      to write your own text, choose among all heads and switch parts off.</p>
    <div class="live" hidden>
      <p class="controls"><label class="wide">Text <input type="text" maxlength="48"></label></p>
      <p class="controls">
        <label>Layer <select class="layer"></select></label>
        <label>Head <select class="head"></select></label>
      </p>
      <p class="controls parts">
        <label><input type="checkbox" checked data-part="causal"> causal mask</label>
        <label><input type="checkbox" checked data-part="scaled"> division by √d_k</label>
        <label><input type="checkbox" checked data-part="positions"> positions</label>
        <label><input type="checkbox" checked data-part="head"> this head</label>
      </p>
      <div class="table-scroll" tabindex="0" role="region" aria-label="The steps for the chosen token">
        <table class="steps"></table>
      </div>
      <ol class="shapes"></ol>
      <p class="label">What the whole model expects after the chosen token</p>
      <div class="beside"><div><p class="label trained">as trained</p><ol class="bars"></ol></div>
        <div><p class="label">with your switches</p><ol class="bars"></ol></div></div>
      <p class="controls"><label>A model of your own: a file of <code>rnn2gpt export --web</code>
        <input type="file" accept=".safetensors"></label>
        <span class="ours" hidden><label><input type="checkbox" data-key="ours"> ours again, the same text</label></span></p>
      <p class="reading told" aria-live="polite"></p>
    </div>`;
  const $ = (selector) => root.querySelector(selector);
  const live = $(".live");
  const [text, layer, head] = ["input[type=text]", ".layer", ".head"].map($);
  const option = (select, label, value) => select.add(new Option(label, value));
  let gpt = null; // until it is loaded
  const loaded = {}; // ours and, once the reader has opened it, yours
  let query = data.tokens.length - 1;
  let seen = { tokens: data.tokens, weights: data.weights }; // what the picture shows

  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const number = (value) => (value === -Infinity ? "−∞" : value.toFixed(2).replace("-", "−"));

  const cell = (tag, content, className = "") => made(tag, content, { className });

  function drawTokens() {
    $(".choice").replaceChildren(
      ...seen.tokens.map((token, t) => {
        const button = cell("button", token);
        button.type = "button";
        button.setAttribute("aria-pressed", t === query);
        button.addEventListener("click", () => {
          query = t;
          draw();
          $(".choice").children[t].focus();
        });
        return button;
      }),
    );
  }

  // The picture of a head: a row for each query, a column for each key, darker is more.
  function drawHeat() {
    const size = seen.tokens.length;
    const squares = seen.weights.flatMap((row, t) =>
      [...row].map(
        (share, s) =>
          `<rect x="${s}" y="${t}" width="0.94" height="0.94" fill-opacity="${share.toFixed(3)}"/>`,
      ),
    );
    const label = `Weights of ${size} queries (rows) on ${size} keys (columns); row ${query + 1} is chosen.`;
    $(".heat").innerHTML =
      `<svg viewBox="-0.1 -0.1 ${size + 0.2} ${size + 0.2}" role="img" aria-label="${label}">` +
      `<rect x="-0.1" y="-0.1" width="${size + 0.2}" height="${size + 0.2}" fill-opacity="0.06"/>` +
      `${squares.join("")}<rect class="row" x="-0.05" y="${query - 0.05}" width="${size + 0.05}" height="1.05"/></svg>`;
  }

  function reading() {
    const row = [...seen.weights[query]];
    const order = row.map((_, s) => s).sort((a, b) => row[b] - row[a]);
    const most = order.slice(0, 3).filter((s) => row[s] > 0.005);
    const list = most.map((s) => `“${seen.tokens[s]}” at place ${s + 1} (${percent(row[s])})`);
    return `In layer ${1 + Number(layer.value || data.layer)}, head ${1 + Number(head.value || data.head)},
      “${seen.tokens[query]}” at place ${query + 1} looks at ${list.join(", ")}.`.replace(/\s+/g, " ");
  }

  // The chosen query's way through the head, key by key.
  function drawSteps(at) {
    const table = $(".steps");
    const names = ["key", "q · k", "÷ √d_k", "masked", "share"];
    const header = document.createElement("tr");
    header.append(...names.map((name) => Object.assign(cell("th", name), { scope: "col" })));
    const rows = seen.tokens.map((token, s) => {
      const line = document.createElement("tr");
      const { product, scaled } = at.products[s];
      line.append(
        Object.assign(cell("th", token), { scope: "row" }),
        cell("td", number(product)),
        cell("td", at.scaled ? number(scaled) : "off"),
        cell("td", number(at.scores[s])),
        cell("td", percent(at.shares[s])),
      );
      return line;
    });
    table.replaceChildren(header, ...rows);
  }

  function drawShapes(trace, from, d) {
    const t = seen.tokens.length;
    const { d_model, n_heads } = gpt.config;
    const few = (vector, start = 0) =>
      `${[...vector.subarray(start, start + 3)].map(number).join(", ")}, …`;
    const steps = [
      ["x = norm_1(stream)", `(${t}, ${d_model})`, few(trace.normed[query])],
      ["q = split_heads(W_q(x), n_heads)", `(${n_heads}, ${t}, ${d})`, few(trace.queries[query], from)],
      ["k = split_heads(W_k(x), n_heads)", `(${n_heads}, ${t}, ${d})`, few(trace.keys[query], from)],
      ["v = split_heads(W_v(x), n_heads)", `(${n_heads}, ${t}, ${d})`, few(trace.values[query], from)],
      ["scores = q @ k.mT / math.sqrt(d_k)", `(${n_heads}, ${t}, ${t})`, "the table’s third column"],
      ["scores.masked_fill(~mask, -inf).softmax(-1)", `(${n_heads}, ${t}, ${t})`, "the last column"],
      ["mixed = merge_heads(weights @ v)", `(${t}, ${d_model})`, few(trace.mixed[query], from)],
      ["output = W_o(mixed)", `(${t}, ${d_model})`, few(trace.output[query])],
    ];
    $(".shapes").replaceChildren(
      ...steps.map(([code, shape, numbers]) => {
        const item = document.createElement("li");
        item.append(cell("code", code), ` ${shape} `, cell("span", numbers, "numbers"));
        return item;
      }),
    );
  }

  function drawNext(list, logits) {
    const shares = softmax([...logits]);
    const best = shares.map((_, id) => id).sort((a, b) => shares[b] - shares[a]).slice(0, 5);
    drawBars(list, best.map((id) => (
      { name: gpt.tokenizer.name(id), share: shares[id], value: percent(shares[id]) })));
  }

  function compute() {
    const limit = Math.min(24, gpt.config.block_size);
    const ids = gpt.tokenizer.encode(text.value || "\n").slice(0, limit);
    const [l, h] = [Number(layer.value), Number(head.value)];
    const parts = Object.fromEntries(
      [...root.querySelectorAll("[data-part]")].map((box) => [box.dataset.part, box.checked]),
    );
    const ablated = new Set(parts.head ? [] : [`${l} ${h}`]);
    const trace = [];
    const logits = gpt.forward(ids, { ...parts, ablated, trace });
    const tokens = ids.map((id) => gpt.tokenizer.name(id));
    if (tokens.length !== seen.tokens.length) query = tokens.length - 1;
    seen = { tokens, weights: trace[l].weights[h] };
    const d = gpt.d_head;
    const products = trace[l].keys.map((key) => {
      let product = 0;
      for (let i = h * d; i < (h + 1) * d; i++) product += trace[l].queries[query][i] * key[i];
      return { product, scaled: product / Math.sqrt(d) };
    });
    drawSteps({
      products,
      scaled: parts.scaled,
      scores: trace[l].scores[h][query],
      shares: trace[l].weights[h][query],
    });
    drawShapes(trace[l], h * d, d);
    const [before, after] = root.querySelectorAll(".beside .bars");
    drawNext(before, gpt.forward(ids)[query]);
    drawNext(after, logits[query]);
  }

  function draw() {
    if (gpt) compute();
    drawTokens();
    drawHeat();
    $(".reading").textContent = reading();
  }

  const fetched = () => loadModel(GPT, asset("models/small-gpt.safetensors"));
  loadOnRequest(root, "The model", fetched, (model) => {
    gpt = loaded.ours = model;
    text.value = data.text;
    choices();
    [layer.value, head.value] = [data.layer, data.head];
    root.dispatchEvent(new Event("ready")); // an address may bring a state of its own
    draw();
    text.focus();
  });

  // Layers and heads of the model in use; what was chosen stays where it exists.
  function choices() {
    for (const [select, count] of [[layer, gpt.config.n_layers], [head, gpt.config.n_heads]]) {
      const chosen = Number(select.value) || 0;
      select.replaceChildren();
      for (let i = 0; i < count; i++) option(select, i + 1, i);
      select.value = Math.min(chosen, count - 1);
    }
  }

  // Look into the reader's own model; the bars “as trained” stand beside ours for the same text.
  function use(own, name) {
    Object.assign(loaded, { own, name });
    $(".ours").hidden = false;
    $("[data-key=ours]").checked = false;
    compare();
  }

  function compare() {
    gpt = $("[data-key=ours]").checked ? loaded.ours : loaded.own;
    choices();
    const written = text.value || "\n";
    const bits = (model) => (model.tokenizer.encode(written).length > 1 ? model.bitsPerCharacter(written).toFixed(2) : "–");
    $(".told").textContent =
      `All above now shows ${gpt === loaded.own ? loaded.name : "our model"}. This text costs ours ` +
      `${bits(loaded.ours)} bits a character, ${loaded.name} ${bits(loaded.own)}.`;
    draw();
  }

  $("[data-key=ours]").addEventListener("change", compare);
  live.addEventListener("input", ({ target }) => target.type !== "file" && draw());
  $("input[type=file]").addEventListener("change", async ({ target }) => {
    const [file] = target.files;
    if (!file) return;
    try {
      use(new GPT(await file.arrayBuffer()), file.name);
    } catch (error) {
      $(".told").textContent = `${file.name} did not load: ${error.message}.`;
    }
  });
  draw();

  return {
    bet: {
      ask: "In this head, the last token looks most at which place? (1 is the first token.)",
      number: [1, 128],
      check(guess) {
        query = seen.tokens.length - 1;
        draw();
        const row = [...seen.weights[query]];
        const most = row.indexOf(Math.max(...row));
        const yours = row[guess - 1] === undefined ? "" : `; place ${guess} has ${percent(row[guess - 1])}`;
        return {
          right: guess === most + 1,
          why: `“${seen.tokens[most]}” at place ${most + 1} has ${percent(row[most])} of its weight` +
            `${guess === most + 1 ? "" : yours}.`,
        };
      },
    },
    table: () => ({
      token: seen.tokens,
      ...Object.fromEntries(seen.tokens.map((token, s) => [`on ${s + 1}: ${token}`,
        seen.weights.map((row) => (row[s] === undefined ? "" : Number(row[s]).toFixed(3)))])),
    }),
  };
});
