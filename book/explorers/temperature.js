// Divide the logits of one prediction by a temperature and see what softmax makes of them.
//
// data: {prompt, characters: [...], logits: [...]}, the whole vocabulary
"use strict";

explorer("temperature", (root, data) => {
  root.innerHTML = `
    <p class="controls">
      <label>Temperature
        <input type="range" min="-2" max="1" step="0.05" value="0"> <output></output>
      </label>
    </p>
    <p class="reading" aria-live="polite"></p>
    <ol class="bars"></ol>`;
  const slider = root.querySelector("input");
  const bars = root.querySelector(".bars");
  const order = data.logits.map((_, i) => i).sort((i, j) => data.logits[j] - data.logits[i]);
  const name = (character) => ({ " ": "space", "\n": "line end" })[character] ?? character;

  function draw() {
    const temperature = 2 ** Number(slider.value);
    const most = Math.max(...data.logits);
    const weights = data.logits.map((logit) => Math.exp((logit - most) / temperature));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const p = weights.map((weight) => weight / total);
    const bits = -p.reduce((sum, q) => sum + (q > 0 ? q * Math.log2(q) : 0), 0);
    root.querySelector("output").textContent = temperature.toFixed(2);
    root.querySelector(".reading").textContent =
      `After “${data.prompt}” the choice holds ${bits.toFixed(2)} bits: ` +
      `as open as one among ${(2 ** bits).toFixed(1)} characters of equal chance.`;
    drawBars(
      bars,
      order.slice(0, 8).map((i) => (
        { name: name(data.characters[i]), share: p[i], value: `${(100 * p[i]).toFixed(1)} %` })),
    );
  }

  slider.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "At temperature 0.5, what becomes of the odds of the best character against the second?",
      options: ["they stay", "they double", "they are squared"],
      check(guess) {
        const [a, b] = order.map((i) => data.logits[i]);
        slider.value = -1;
        draw();
        return {
          right: guess === 2,
          why: `${Math.exp(a - b).toFixed(2)} to 1 becomes ${Math.exp(2 * (a - b)).toFixed(2)} to 1: halving the ` +
            "temperature doubles the logits' differences, and the odds are their exponential.",
        };
      },
    },
  };
});
