// Give each key a score, widen the vectors, and see what the softmax makes of the products, with the
// division by √d_k and without.
//
// data: {query, keys: [names], scores: [q·k / √d_k of each key, up to a common constant]}
"use strict";

explorer("attention", (root, data) => {
  const limit = Math.max(4, ...data.scores.map((score) => Math.ceil(Math.abs(score))));
  const inputs = data.scores
    .map(
      (score, i) =>
        `<label><span></span> <input type="range" min="${-limit}" max="${limit}" step="0.1" value="${score}"
           data-key="${i}"> <output></output></label>`,
    )
    .join("");
  root.innerHTML = `
    <p class="controls">
      <label>Width d_k
        <input type="range" min="0" max="10" step="1" value="6" class="width"> <output></output>
      </label>
    </p>
    <p class="label">How well each key fits: q·k / √d_k</p>
    <p class="controls sliders">${inputs}</p>
    <div class="panels"></div>`;
  const width = root.querySelector(".width");
  const scores = [...root.querySelectorAll("[data-key]")];
  scores.forEach((input, i) => {
    input.parentElement.querySelector("span").textContent = data.keys[i];
  });
  const panels = [
    { label: "divided by √d_k", factor: () => 1 },
    { label: "not divided", factor: (d) => Math.sqrt(d) },
  ].map((kind) => {
    const panel = document.createElement("div");
    panel.innerHTML = `<p class="label"></p><ol class="bars"></ol>
      <p class="reading" aria-live="polite"></p>`;
    panel.querySelector(".label").textContent = kind.label;
    root.querySelector(".panels").append(panel);
    return { ...kind, panel };
  });

  function softmax(values) {
    const most = Math.max(...values);
    const raised = values.map((value) => Math.exp(value - most));
    const total = raised.reduce((sum, value) => sum + value, 0);
    return raised.map((value) => value / total);
  }

  // The Frobenius norm of diag(w) − w wᵀ: how much the shares answer to the scores.
  function slope(w) {
    let sum = 0;
    w.forEach((a, i) =>
      w.forEach((b, j) => {
        sum += ((i === j ? a : 0) - a * b) ** 2;
      }),
    );
    return Math.sqrt(sum);
  }

  function draw() {
    const d = 2 ** Number(width.value);
    width.parentElement.querySelector("output").textContent = d;
    const fit = scores.map((input) => Number(input.value));
    scores.forEach((input, i) => {
      input.parentElement.querySelector("output").textContent = fit[i].toFixed(1).replace("-", "−");
    });
    for (const { factor, panel } of panels) {
      const w = softmax(fit.map((score) => score * factor(d)));
      const bits = -w.reduce((sum, p) => sum + (p > 0 ? p * Math.log2(p) : 0), 0);
      const gradient = slope(w);
      drawBars(
        panel.querySelector(".bars"),
        w.map((share, i) => ({ name: data.keys[i], share, value: `${(100 * share).toFixed(1)} %` })),
      );
      panel.querySelector(".reading").textContent =
        `${data.query} spreads over ${(2 ** bits).toFixed(2)} of ${w.length} keys; ` +
        `the softmax’s gradient is ${gradient >= 0.001 ? gradient.toFixed(3) : gradient.toExponential(0)}.`;
    }
  }

  root.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "At d_k = 1024, with the scores as you set them: over how many keys does the undivided softmax spread?",
      number: [1, scores.length],
      check(guess) {
        width.value = width.max;
        draw();
        const said = root.querySelectorAll(".panels .reading")[1].textContent;
        const spread = Number(said.match(/over ([\d.]+) of/)[1]);
        return { right: Math.abs(guess - spread) < 0.5, why: `It spreads over ${spread.toFixed(2)}; you said ${guess}.` };
      },
    },
  };
});
