// The generation lab: temper and cut the model's prediction, choose what is written, look at the
// prediction layer by layer, time the cache, and set another model beside.
//
// data: {tokens: [V texts], prompts: [{text, logits: [V whole hundredths below the largest]}],
//   bytes: of the model's file, second: {file, label, bytes} or null}
// Until the model is loaded the page's own predictions are shown.
// needs: weights bpe gpt
// model: small-gpt
// model-if-stored: small-instruct
"use strict";

explorer("generation", (root, data) => {
  const size = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
  root.innerHTML = `
    <p class="controls beginning"><label>After <select data-key="prompt"></select></label></p>
    <p class="load"><button type="button">Load the model (${size(data.bytes)})</button>
      to write a text of your own, token by token.</p>
    <div class="live" hidden>
      <label>Text <textarea rows="4" spellcheck="false" data-key="text"></textarea></label>
      <p class="controls">
        <button type="button" class="one">Draw a token</button>
        <button type="button" class="many">Draw 20</button>
        <button type="button" class="undo">Take one back</button>
      </p>
    </div>
    <p class="controls sliders">
      <label>temperature <input type="range" min="-2" max="1" step="0.1" value="-0.6"> <output></output></label>
      <label>top-k <input type="range" min="0" max="10" step="0.5" value="10"> <output></output></label>
      <label>top-p <input type="range" min="0.05" max="1" step="0.05" value="1"> <output></output></label>
    </p>
    <p class="label">The next token: <span class="key before">the model’s share</span>
      <span class="key after">after your cuts</span></p>
    <ol class="bars pairs"></ol>
    <p class="reading" aria-live="polite"></p>
    <p class="ten"><button type="button">Draw ten</button> <span class="drawn"></span></p>
    <div class="live" hidden>
      <details open><summary>Layer by layer: what the stream would predict if it were read there</summary>
        <div class="table-scroll"><table class="steps lens"></table></div></details>
      <details><summary>With the cache and without</summary>
        <p class="controls"><label><input type="checkbox" checked> keep keys and values</label>
          <span class="cost"></span></p>
        <p><button type="button" class="time">Time 24 tokens both ways</button></p>
        <div class="table-scroll"><table class="steps times"></table></div></details>
      <details><summary>Another model beside it</summary>
        <p class="controls">
          <button type="button" class="second"></button>
          <label>Your own: a file of <code>rnn2gpt export --web</code>
            <input type="file" accept=".safetensors"></label>
        </p>
        <p class="reading told" aria-live="polite"></p>
        <div class="beside" hidden>
          <div><p class="label ours">ours</p><ol class="bars"></ol></div>
          <div><p class="label theirs"></p><ol class="bars"></ol></div>
        </div></details>
    </div>`;
  const $ = (selector) => root.querySelector(selector);
  const [select, text, bars, reading] = ["select", "textarea", ".pairs", ".reading"].map($);
  const [temperature, topK, topP] = root.querySelectorAll("input[type=range]");
  const outputs = root.querySelectorAll("output");
  const keepBox = $("input[type=checkbox]");
  let gpt = null; // until it is loaded
  let second = null; // {gpt, label}
  let ids = []; // of the text, as drawn or encoded
  let live = null; // {logits, lens, milliseconds, read} of the loaded model after `ids`
  let cache = null, cached = []; // keys and values, and the ids that they belong to

  data.prompts.forEach((prompt, i) => select.add(new Option(`“${name(prompt.text)}”`, i)));
  function name(token) {
    return token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  }
  const nameOfToken = (id) => (gpt ? gpt.tokenizer.name(id) : name(data.tokens[id]));
  const percent = (share) => `${(100 * share).toFixed(1)} %`;

  // --- the prediction, tempered and cut

  // The logits of the next token: the page's for its prompts, the model's once it is here.
  const logitsNow = () =>
    gpt ? [...live.logits] : data.prompts[Number(select.value)].logits.map((hundredths) => hundredths / 100);

  function tempered(logits, divisor) {
    return softmax(logits.map((logit) => logit / divisor));
  }

  // How many of these falling shares reach p together: one at least.
  function reach(falling, p) {
    let all = 0;
    const last = falling.findIndex((share) => (all += share) >= p - 1e-9);
    return last < 0 ? falling.length : last + 1;
  }

  // The tokens that stay, likeliest first, with their shares before and after.
  function state() {
    const logits = logitsNow();
    const V = logits.length;
    const order = logits.map((_, i) => i).sort((i, j) => logits[j] - logits[i]);
    const falling = order.map((i) => logits[i]);
    const k = topK.value === topK.max ? V : Math.min(V, Math.round(2 ** Number(topK.value)));
    const few = falling.slice(0, k);
    const divisor = 2 ** Number(temperature.value);
    const cuts = topP.value !== topP.max;
    const kept = cuts ? reach(tempered(few, divisor), Number(topP.value)) : few.length;
    return { order, before: softmax(falling), after: tempered(few.slice(0, kept), divisor), k, V };
  }

  function show() {
    const { order, before, after, k, V } = state();
    const bits = -after.reduce((sum, p) => sum + (p > 0 ? p * Math.log2(p) : 0), 0);
    const share = before.slice(0, after.length).reduce((sum, p) => sum + p, 0);
    outputs[0].textContent = (2 ** Number(temperature.value)).toFixed(2);
    outputs[1].textContent = k === V ? "off" : k;
    outputs[2].textContent = topP.value === topP.max ? "off" : Number(topP.value).toFixed(2);
    reading.textContent =
      `${after.length} of ${V} tokens may be drawn; the model gave them ` +
      `${(100 * share).toFixed(1)} % together. The choice now holds ${bits.toFixed(2)} bits: as open ` +
      `as one among ${(2 ** bits).toFixed(1)} tokens of equal chance.`;
    bars.replaceChildren(
      ...order.slice(0, 10).map((id, rank) => {
        const p = after[rank];
        const line = made("li");
        const label = made(gpt ? "button" : "span", nameOfToken(id), { className: "name" });
        if (gpt) {
          Object.assign(label, { type: "button", title: "write this token" });
          label.addEventListener("click", () => {
            write([id]);
            bars.children[rank]?.querySelector("button")?.focus();
          });
        }
        const both = made("span", "", { className: "both" });
        for (const [kind, length] of [["before", before[rank]], ["after", p ?? 0]]) {
          const bar = both.appendChild(made("span", "", { className: `bar ${kind}` }));
          bar.style.width = `${100 * length}%`;
        }
        const value = made("span", p === undefined ? "cut" : percent(p), { className: "value" });
        line.append(label, both, value);
        return line;
      }),
    );
    $(".drawn").textContent = "";
  }

  // The rank that chance picks among the tokens that stay.
  function drawRank(after) {
    let point = Math.random();
    const rank = after.findIndex((p) => (point -= p) < 0);
    return rank < 0 ? 0 : rank;
  }

  // --- the model: one step, what it cost, what its layers say

  // Read `ids`, the last window of them, from the cache as far as it goes.
  function think() {
    const shownIds = ids.slice(-gpt.config.block_size);
    let same = 0;
    while (same < shownIds.length - 1 && cached[same] === shownIds[same]) same++;
    if (!keepBox.checked || !cache) same = 0;
    cache = same ? cache : gpt.emptyCache();
    for (const layer of cache) layer.keys.length = layer.values.length = same;
    cached = shownIds;
    const trace = [];
    const start = performance.now();
    const rows = gpt.forward(shownIds.slice(same), { cache, trace });
    const milliseconds = performance.now() - start;
    const read = shownIds.length - same;
    const lens = gpt.lens(trace, read - 1);
    live = { logits: rows.at(-1), lens: [...lens, rows.at(-1)], milliseconds, read };
  }

  function drawLens() {
    const best = likeliest(live.lens.at(-1));
    const head = made("tr");
    for (const title of ["read", "likeliest", "share", `of “${nameOfToken(best)}”`]) {
      head.append(made("th", title, { scope: "col" }));
    }
    const rows = live.lens.map((logits, layer) => {
      const row = made("tr");
      const [first] = likeliestOf(logits, 1);
      const last = layer === live.lens.length - 1;
      const place = layer === 0 ? "embedding" : `block ${layer}${last ? ", the answer" : ""}`;
      row.append(
        made("th", place, { scope: "row" }), made("td", nameOfToken(first.id)),
        made("td", percent(first.share)), made("td", percent(softmax([...logits])[best])),
      );
      return row;
    });
    $(".lens").replaceChildren(head, ...rows);
  }

  function drawCost() {
    const bytes = keepBox.checked ? gpt.cacheBytes(cache) : 0;
    $(".cost").textContent =
      `The last step read ${live.read} token${live.read === 1 ? "" : "s"} in ` +
      `${live.milliseconds.toFixed(1)} ms; the cache holds ${bytes.toLocaleString("en")} bytes.`;
  }

  async function timeBoth() {
    const button = $(".time");
    button.disabled = true;
    const count = 24;
    const start = ids.slice(-(gpt.config.block_size - count));
    const ways = [];
    for (const kept of [true, false]) {
      let [own, written, spent, read] = [gpt.emptyCache(), [...start], 0, 0];
      for (let step = 0; step < count; step++) {
        const fresh = kept && step ? written.slice(-1) : written;
        const from = performance.now();
        const rows = gpt.forward(fresh, kept ? { cache: own } : {});
        spent += performance.now() - from;
        read += fresh.length;
        written.push(likeliest(rows.at(-1)));
        await new Promise((done) => setTimeout(done)); // the page stays alive meanwhile
      }
      ways.push({ kept, spent, read, bytes: kept ? gpt.cacheBytes(own) : 0, text: written.join(" ") });
    }
    const head = made("tr");
    for (const title of ["", "ms a token", "tokens read", "bytes kept"]) head.append(made("th", title, { scope: "col" }));
    const rows = ways.map(({ kept, spent, read, bytes }) => {
      const row = made("tr");
      row.append(
        made("th", kept ? "with the cache" : "without", { scope: "row" }), made("td", (spent / count).toFixed(1)),
        made("td", read), made("td", bytes.toLocaleString("en")),
      );
      return row;
    });
    const caption = made("caption", `${(ways[1].spent / ways[0].spent).toFixed(1)} times as long without it, for ` +
      (ways[0].text === ways[1].text ? "the same tokens." : "other tokens."));
    $(".times").replaceChildren(caption, head, ...rows);
    button.disabled = false;
  }

  // --- another model

  function drawBeside() {
    if (!second) return;
    const [ours, theirs] = root.querySelectorAll(".beside .bars");
    const written = text.value || "\n";
    const lists = [[ours, gpt], [theirs, second.gpt]];
    for (const [list, model] of lists) {
      const own = model.tokenizer.encode(written).slice(-model.config.block_size);
      const logits = model === gpt ? live.logits : model.forward(own).at(-1);
      drawBars(list, likeliestOf(logits, 5).map(({ id, share }) => (
        { name: model.tokenizer.name(id), share, value: percent(share) })));
    }
    $(".theirs").textContent = second.label;
    const bits = lists.map(([, model]) =>
      model.tokenizer.encode(written).length > 1 ? model.bitsPerCharacter(written).toFixed(2) : "–");
    $(".told").textContent = `This text costs ours ${bits[0]} bits a character, ${second.label} ${bits[1]}.`;
    $(".beside").hidden = false;
  }

  async function beside(label, loading) {
    try {
      second = { label, gpt: await loading };
      drawBeside();
    } catch (error) {
      $(".told").textContent = `It did not load: ${error.message}.`;
    }
  }

  // --- what the reader does

  function draw() {
    if (gpt) {
      think();
      drawLens();
      drawCost();
      drawBeside();
    }
    show();
  }

  function write(more) {
    ids = [...ids, ...more];
    text.value = gpt.tokenizer.decode(ids);
    text.scrollTop = text.scrollHeight;
    text.dispatchEvent(new Event("change", { bubbles: true })); // the address follows
    draw();
  }

  function retell() {
    ids = gpt.tokenizer.encode(text.value || "\n");
    draw();
  }

  const fetched = () => loadModel(GPT, asset("models/small-gpt.safetensors"));
  loadOnRequest(root, "The model", fetched, (model) => {
    gpt = model;
    for (const gone of [".beginning", ".ten"]) $(gone).hidden = true;
    text.value = data.prompts[Number(select.value)].text;
    root.dispatchEvent(new Event("ready")); // an address may bring a text of its own
    retell();
    text.focus();
  });
  $(".second").hidden = !data.second;
  if (data.second) {
    $(".second").textContent = `${data.second.label} (${size(data.second.bytes)})`;
    $(".second").addEventListener("click", () =>
      beside(data.second.label, loadModel(GPT, asset(`models/${data.second.file}.safetensors`))));
  }
  $("input[type=file]").addEventListener("change", ({ target }) => {
    const [file] = target.files;
    if (file) beside(file.name, file.arrayBuffer().then((buffer) => new GPT(buffer)));
  });
  text.addEventListener("input", () => gpt && retell());
  select.addEventListener("input", show);
  for (const slider of [temperature, topK, topP]) slider.addEventListener("input", show);
  keepBox.addEventListener("input", draw);
  $(".one").addEventListener("click", () => {
    const { order, after } = state();
    write([order[drawRank(after)]]);
  });
  $(".many").addEventListener("click", async ({ target }) => {
    target.disabled = true;
    for (let step = 0; step < 20; step++) {
      const { order, after } = state();
      write([order[drawRank(after)]]);
      await new Promise((done) => setTimeout(done));
    }
    target.disabled = false;
  });
  $(".undo").addEventListener("click", () => {
    if (ids.length > 1) ids = ids.slice(0, -1);
    write([]);
  });
  $(".time").addEventListener("click", timeBoth);
  $(".ten button").addEventListener("click", () => {
    const { order, after } = state();
    const ten = Array.from({ length: 10 }, () => nameOfToken(order[drawRank(after)]));
    $(".drawn").textContent = ten.join(" · ");
  });
  show();

  return {
    bet: {
      ask: "After this text, how many of the likeliest tokens does it take to reach 0.9 together?",
      number: [1, data.tokens.length],
      check(guess) {
        [temperature.value, topK.value, topP.value] = [0, topK.max, 0.9];
        show();
        const { before, after, V } = state();
        const count = after.length;
        return {
          right: Math.abs(guess - count) <= Math.max(1, 0.2 * count),
          why: `It takes ${count} of ${V}: the likeliest has ${percent(before[0])} and the last one that ` +
            `is needed ${(100 * before[count - 1]).toFixed(2)} %. You said ${guess}.`,
        };
      },
    },
  };
});
