// The alignment lab: write a number or a date, see which source tokens each token of the answer looks
// at, what the network without attention makes of it, and how often each is right at this length.
//
// data: {bytes: of the four files, items: [{task, source: [tokens], target: [tokens], weights: [for each
//   target token: one number for each source token], plain: the other network's answer, truth}],
//   lengths: {task: {unit, trained: longest in training or null, bins: [[from, to, tested, right with
//   attention, right without, in %]]}}}
// Until the networks are loaded only the page's own numbers and dates can be chosen.
// needs: weights recurrent numerals
// model: numbers-seq2seq numbers-seq2seq-plain dates-seq2seq dates-seq2seq-plain
"use strict";

explorer("alignment", (root, data) => {
  root.innerHTML = `
    <p class="controls"><label>Example <select data-key="example"></select></label></p>
    <p class="load"><button type="button">Load the networks (${(data.bytes / 1e6).toFixed(1)} MB)</button>
      to write any number or date.</p>
    <div class="live" hidden>
      <p><label>Your number, in digits or in words, or your date
        <textarea rows="2" maxlength="200" spellcheck="false" data-key="text"></textarea></label></p>
    </div>
    <p class="label">The source, shaded by weight</p>
    <p class="shaded source"></p>
    <p class="label">The answer: choose a token</p>
    <p class="controls answer" role="group" aria-label="Tokens of the answer"></p>
    <p class="reading" aria-live="polite"></p>
    <p class="label">Where each token of the answer (down) looks in the source (across)</p>
    <div class="chart matrix"></div>
    <p class="label">Right answers by length: <span class="key">with attention</span>
      <span class="key before">through one vector</span></p>
    <div class="chart lengths"></div>
    <p class="reading study"></p>
    <details><summary>What the network without attention writes here</summary>
      <p class="shaded plain"></p>
      <p class="reading compared" aria-live="polite"></p></details>`;
  const $ = (selector) => root.querySelector(selector);
  const [select, text, source, answer] = ["select", "textarea", ".source", ".answer"].map($);
  const spaced = (task) => task === "numbers";
  const written = (item) => item.source.join(spaced(item.task) ? " " : "");
  let networks = null; // until they are loaded: {task: [with attention, without]}
  let item = data.items[0];
  let at = 0; // the chosen token

  select.append(...data.items.map((one, i) => new Option(cut(written(one), 60), i)));
  select.add(new Option("your own", "own"));
  select.options[data.items.length].hidden = true;
  text.value = written(item);

  // --- the networks

  // What stands there as an item: a number where digits or number words stand, else a date.
  function translated(words) {
    const digits = words.replace(/[,_\s]/g, "");
    if (/^\d{1,12}$/.test(digits)) words = englishNumber(Number(digits));
    const [numbers] = networks.numbers;
    const tokens = numbers.split(words);
    const known = (token) => numbers.tokenizer.source.tokens.includes(token);
    const task = tokens.length && tokens.every(known) ? "numbers" : "dates";
    const clean = words.replaceAll("\u200f", "").split(/\s+/).join(" ").trim();
    const [looking, plain] = networks[task].map((network) => network.translate(clean));
    const n = task === "numbers" ? numberOf(words) : null;
    const same = data.items.find((one) => one.task === task && written(one) === clean);
    return {
      task, ...looking,
      plain: plain.target.filter((token) => token !== "<eos>").join(""),
      truth: n === null ? same?.truth ?? null : chineseNumber(n),
    };
  }

  // --- what is drawn

  const percent = (share) => `${(100 * share).toFixed(0)}\u00a0%`;
  const shade = (color, share) => `color-mix(in srgb, ${color} ${(50 * share).toFixed(0)}%, transparent)`;

  function look(t) {
    at = t;
    const weights = item.weights[t];
    [...source.querySelectorAll("span")].forEach((span, s) => {
      span.style.background = shade("var(--figure-blue)", Math.sqrt(weights[s])); // small ones stay visible
      span.title = percent(weights[s]);
    });
    [...answer.children].forEach((button, i) => {
      button.setAttribute("aria-pressed", i === t);
      button.style.background = i === t ? shade("var(--figure-vermillion)", 0.5) : "";
    });
    const order = weights.map((_, s) => s).sort((a, b) => weights[b] - weights[a]);
    const most = order.slice(0, 3).filter((s, rank) => rank === 0 || weights[s] >= 0.1);
    const places = most.map((s) => {
      const name = item.source[s] === " " ? "a space" : `“${item.source[s]}”`;
      return `${name} at place ${s + 1} (${percent(weights[s])})`;
    });
    const token = item.target[t] === "<eos>" ? "to end" : `to write “${item.target[t]}”`;
    $(".reading").textContent = `Step ${t + 1}: ${token} it looks at ${places.join(", ")}.`;
    drawMatrix();
  }

  const given = () => item.target.filter((token) => token !== "<eos>").join("");

  function drawAnswers() {
    source.replaceChildren(
      ...item.source.flatMap((token, s) => [...(s > 0 && spaced(item.task) ? [" "] : []), made("span", token)]),
    );
    answer.replaceChildren(
      ...item.target.map((token, t) => {
        const button = made("button", token === "<eos>" ? "end" : token, { type: "button" });
        for (const event of ["click", "focus", "pointerenter"]) button.addEventListener(event, () => look(t));
        return button;
      }),
    );
    const right = item.truth ?? given(); // what to compare with, where nobody knows the truth
    $(".plain").replaceChildren(
      ...[...item.plain].map((token, t) => {
        const span = made("span", token);
        if (token !== right[t]) span.style.background = shade("var(--figure-vermillion)", 0.8);
        return span;
      }),
    );
    $(".compared").textContent = verdict();
    $(".study").textContent = study();
  }

  function verdict() {
    if (item.truth === null) {
      return item.plain === given() ? "Both networks write the same." : "The two networks do not agree.";
    }
    const [looking, plain] = [given(), item.plain].map((answered) => (answered === item.truth ? "right" : "wrong"));
    const truth = looking === "right" ? "" : ` Right is ${item.truth}.`;
    return `With attention the answer is ${looking}, without it ${plain}.${truth}`;
  }

  const binOf = ({ task, source: { length: n } }) => data.lengths[task].bins.find(([from, to]) => from <= n && n <= to);

  function study() {
    const { unit } = data.lengths[item.task];
    const length = `${item.source.length} ${unit}`;
    const bin = binOf(item);
    if (!bin) return `No test had ${length}.`;
    const [from, to, tested, looking, plain] = bin;
    return `It has ${length}. Of ${tested} tested with ${from === to ? from : `${from} to ${to}`}, ` +
      `${percent(looking / 100)} were right with attention and ${percent(plain / 100)} without.`;
  }

  const svgText = (x, y, words, more = "") =>
    `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" font-size="11" fill="currentColor" ${more}>${escaped(words)}</text>`;
  const widthOf = (box) => Math.max(240, box.clientWidth || 640);

  function drawMatrix() {
    const wide = widthOf($(".matrix"));
    const words = spaced(item.task);
    const [left, right] = [32, words ? 34 : 4];
    const [columns, rows] = [item.source.length, item.target.length];
    const column = Math.min(34, (wide - left - right) / columns);
    const row = Math.min(22, Math.max(14, column));
    const steep = column < 15; // no room for slanted words
    const longest = Math.max(...item.source.map((token) => token.length));
    const top = words ? (steep ? 6.2 : 5.4) * longest + 12 : 18;
    const names = item.source.map((token, s) => {
      const [x, y] = [left + (s + 0.5) * column, top - 5];
      const size = `style="font-size: ${Math.min(11, 1.5 * column).toFixed(1)}px"`;
      return words
        ? svgText(x + (steep ? 3.5 : 2), y, token, `${size} transform="rotate(${steep ? -90 : -58} ${(x + (steep ? 3.5 : 2)).toFixed(1)} ${y})"`)
        : svgText(x, y, token, `${size} text-anchor="middle"`);
    });
    const cells = item.weights.flatMap((weights, t) => [
      svgText(left - 6, top + (t + 0.5) * row + 4, item.target[t].replace("<eos>", "end"), 'text-anchor="end"'),
      ...weights.map((weight, s) =>
        `<rect data-row="${t}" x="${(left + s * column).toFixed(1)}" y="${(top + t * row).toFixed(1)}" width="${(column - 1).toFixed(1)}"
          height="${(row - 1).toFixed(1)}" fill="var(--figure-blue)" fill-opacity="${(0.05 + 0.95 * weight).toFixed(3)}"/>`),
    ]);
    const tall = top + rows * row + 3;
    $(".matrix").innerHTML = `<svg viewBox="0 0 ${wide} ${tall.toFixed(0)}" role="img"
      aria-label="Weights of ${rows} tokens of the answer on ${columns} of the source; row ${at + 1} is chosen.">
      ${names.join("")}${cells.join("")}
      <rect x="${left - 2}" y="${(top + at * row - 1.5).toFixed(1)}" width="${(columns * column + 3).toFixed(1)}"
        height="${(row + 2).toFixed(1)}" fill="none" stroke="var(--figure-vermillion)" stroke-width="1.6"/></svg>`;
  }

  function drawLengths() {
    const { unit, trained, bins } = data.lengths[item.task];
    const wide = widthOf($(".lengths"));
    const [left, right, top, deep, tall] = [40, 16, 10, 120, 166];
    const most = Math.max(bins.at(-1)[1], item.source.length);
    const x = (length) => left + 8 + ((wide - left - right - 8) * (length - bins[0][0])) / (most - bins[0][0]);
    const y = (share) => top + (deep * (100 - share)) / 100;
    const middle = ([from, to]) => (from + to) / 2;
    const grid = [0, 50, 100].map((share) =>
      `<line x1="${left}" x2="${wide - right}" y1="${y(share)}" y2="${y(share)}" stroke="var(--figure-grid)"/>` +
      svgText(left - 6, y(share) + 4, `${share} %`, 'text-anchor="end"'));
    const every = [1, 2, 3].find((k) => (wide - left) / bins.length >= 30 / k) ?? 4;
    const ticks = bins.filter((_, b) => b % every === 0).map((bin) =>
      svgText(x(middle(bin)), top + deep + 16, bin[0] === bin[1] ? bin[0] : `${bin[0]}–${bin[1]}`, 'text-anchor="middle"'));
    const bin = binOf(item);
    const curve = (column, color) => {
      const points = bins.map((one) => `${x(middle(one)).toFixed(1)} ${y(one[column]).toFixed(1)}`);
      return `<path d="M${points.join("L")}" fill="none" stroke="${color}" stroke-width="2.2"/>` +
        (bin ? `<circle cx="${x(middle(bin)).toFixed(1)}" cy="${y(bin[column])}" r="5" fill="${color}"/>` : "");
    };
    const here = x(bin ? middle(bin) : item.source.length);
    const limit = trained === null ? "" :
      `<line x1="${x(trained + 0.5)}" x2="${x(trained + 0.5)}" y1="${top}" y2="${top + deep}" stroke="currentColor" stroke-dasharray="1 4"/>` +
      svgText(x(trained + 0.5) + 5, top + 16, wide < 400 ? "untrained" : "longer than any in training");
    $(".lengths").innerHTML = `<svg viewBox="0 0 ${wide} ${tall}" role="img"
      aria-label="Share of right answers by length. ${escaped(study())}">${grid.join("")}${ticks.join("")}
      ${svgText(wide - right, tall - 6, `${unit} of the source`, 'text-anchor="end"')}${limit}
      <line x1="${here}" x2="${here}" y1="${top}" y2="${top + deep}" stroke="currentColor" stroke-dasharray="3 3"/>
      ${curve(4, "var(--figure-orange)")}${curve(3, "var(--figure-blue)")}</svg>`;
  }

  function draw() {
    drawAnswers();
    const jump = item.target.findIndex((token) => token === "万" || token === "-");
    look(Math.max(0, jump));
    drawLengths();
  }

  // --- what the reader does

  function choose() {
    if (select.value === "own") return;
    item = data.items[Number(select.value)];
    text.value = written(item);
    draw();
  }

  function rewrite() {
    if (!networks) return;
    try {
      item = translated(text.value);
    } catch (error) {
      $(".reading").textContent = `The networks cannot read this: ${error.message}.`;
      return;
    }
    const same = data.items.findIndex((one) => written(one) === text.value);
    select.value = same < 0 ? "own" : same;
    draw();
  }

  const both = async (task) => [task, await Promise.all(["", "-plain"].map((tail) =>
    loadModel(Translator, asset(`models/${task}-seq2seq${tail}.safetensors`))))];
  loadOnRequest(root, "The networks", () => Promise.all(["numbers", "dates"].map(both)), (loaded) => {
    networks = Object.fromEntries(loaded);
    select.options[data.items.length].hidden = false;
    root.dispatchEvent(new Event("ready")); // an address may bring a text of its own
    rewrite();
    text.focus();
  });
  select.addEventListener("input", choose);
  text.addEventListener("input", rewrite);
  $(".matrix").addEventListener("click", ({ target }) => target.dataset.row && look(Number(target.dataset.row)));
  draw();
  onWidth($(".matrix"), () => {
    drawMatrix();
    drawLengths();
  });

  return {
    bet: {
      ask: "Choose or write a source, and look at the last chart. Does the network without attention write " +
        "the same answer to it?",
      options: ["yes", "no"],
      check(guess) {
        $("details").open = true;
        const same = given() === item.plain;
        const parted = [...item.plain].findIndex((token, t) => token !== given()[t]);
        return {
          right: guess === (same ? 0 : 1),
          why: same ? `Both write ${given()}.`
            : `With attention ${given()}, without ${item.plain}: they part at token ` +
              `${parted < 0 ? item.plain.length + 1 : parted + 1}.`,
        };
      },
    },
    table: () => [
      {
        "source token": item.source,
        ...Object.fromEntries(item.target.map((token, t) => [`${t + 1}: ${token}`,
          item.weights[t].map((weight) => Number(weight.toFixed(3)))])),
      },
      Object.fromEntries([`${data.lengths[item.task].unit}, from`, "to", "tested", "right with attention, %", "without, %"]
        .map((head, c) => [head, data.lengths[item.task].bins.map((bin) => bin[c])])),
    ],
  };
});
