// Cut and temper one prediction of a language model: what may still be drawn, and with what chance.
//
// data: {tokens: [V texts], prompts: [{text, logits: [V whole hundredths below the largest]}]}
"use strict";

explorer("decoding", (root, data) => {
  root.innerHTML = `
    <p class="controls">
      <label style="max-width:100%">After <select style="max-width:100%"></select></label>
    </p>
    <p class="controls">
      <label>Your guess: how many tokens reach 0.9 together?
        <input type="number" min="1" max="${data.tokens.length}" size="5"></label>
      <button type="button">Check</button>
    </p>
    <p class="reading" aria-live="polite"></p>
    <p class="controls">
      <label>temperature <input type="range" min="-2" max="1" step="0.1" value="0"> <output></output></label>
      <label>top-k <input type="range" min="0" max="10" step="0.5" value="10"> <output></output></label>
      <label>top-p <input type="range" min="0.05" max="1" step="0.05" value="1"> <output></output></label>
    </p>
    <p class="reading" aria-live="polite"></p>
    <ol class="bars"></ol>
    <p><button type="button">Draw ten</button> <span class="drawn"></span></p>`;
  const select = root.querySelector("select");
  const guess = root.querySelector("input[type=number]");
  const [temperature, topK, topP] = root.querySelectorAll("input[type=range]");
  const outputs = root.querySelectorAll("output");
  const [answer, reading] = root.querySelectorAll(".reading");
  const [check, draw] = root.querySelectorAll("button");
  const bars = root.querySelector(".bars");
  const drawn = root.querySelector(".drawn");
  const V = data.tokens.length;
  const name = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  data.prompts.forEach((prompt, i) => select.add(new Option(`“${name(prompt.text)}”`, i)));

  function softmax(logits, divisor) {
    const weights = logits.map((logit) => Math.exp(logit / divisor));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    return weights.map((weight) => weight / total);
  }

  // How many of these falling probabilities reach p together: one at least.
  function reach(falling, p) {
    let sum = 0;
    const last = falling.findIndex((share) => (sum += share) >= p - 1e-9);
    return last < 0 ? falling.length : last + 1;
  }

  // The tokens that stay, likeliest first, with their shares before and after.
  function state() {
    const { logits } = data.prompts[Number(select.value)];
    const order = logits.map((_, i) => i).sort((i, j) => logits[j] - logits[i]);
    const falling = order.map((i) => logits[i] / 100);
    const k = topK.value === topK.max ? V : Math.min(V, Math.round(2 ** Number(topK.value)));
    const few = falling.slice(0, k);
    const kept = reach(softmax(few, 2 ** Number(temperature.value)), Number(topP.value));
    const after = softmax(few.slice(0, kept), 2 ** Number(temperature.value));
    return { order, before: softmax(falling, 1), after, k };
  }

  function show() {
    const { order, before, after, k } = state();
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
      ...order.slice(0, 10).map((token, rank) => {
        const bar = document.createElement("li");
        bar.innerHTML = `<span class="name"></span><span class="bar"></span><span class="value"></span>`;
        const p = after[rank] ?? 0;
        bar.querySelector(".name").textContent = name(data.tokens[token]);
        bar.querySelector(".bar").style.width = `${100 * p}%`;
        bar.querySelector(".value").textContent = rank < after.length ? `${(100 * p).toFixed(1)} %` : "cut";
        return bar;
      }),
    );
    drawn.textContent = "";
  }

  function open() {
    answer.textContent = "Guess first; the sliders below then show what you counted.";
    guess.value = "";
    show();
  }

  check.addEventListener("click", () => {
    const { before } = state();
    const right = reach(before, 0.9);
    const said = Number(guess.value);
    temperature.value = 0;
    topK.value = topK.max;
    topP.value = 0.9;
    const verdict = !said ? "" : said === right ? "Exactly. " : said > right ? "Fewer. " : "More. ";
    answer.textContent =
      `${verdict}It takes ${right} of ${V}: the likeliest has ${(100 * before[0]).toFixed(1)} % and ` +
      `the last one that is needed ${(100 * before[right - 1]).toFixed(2)} %.`;
    show();
  });
  draw.addEventListener("click", () => {
    const { order, after } = state();
    const one = () => {
      let point = Math.random();
      const rank = after.findIndex((p) => (point -= p) < 0);
      return name(data.tokens[order[rank < 0 ? 0 : rank]]);
    };
    drawn.textContent = Array.from({ length: 10 }, one).join(" · ");
  });
  for (const slider of [temperature, topK, topP]) slider.addEventListener("input", show);
  select.addEventListener("change", open);
  open();
});
