// Choose a model, a method and a rank; see what is trained, and what training holds in memory.
//
// data: {models: [{name, n_layers, d_model, block_size, vocab_size}, …], start: which}
"use strict";

explorer("adaptation", (root, data) => {
  const ranks = [1, 2, 4, 8, 16, 32, 64, 128];
  const methods = { head: "head only", last: "last block", lora: "LoRA on W_q and W_v", all: "all weights" };
  root.innerHTML = `
    <p class="controls">
      <label>Model <select data-key="model"></select></label>
      <label>Method <select data-key="method"></select></label>
      <label>Rank <input type="range" min="0" max="${ranks.length - 1}" value="3"> <output></output></label>
    </p>
    <p class="label">Bytes that training holds, activations left out</p>
    <ol class="bars"></ol>
    <p class="reading" aria-live="polite"></p>`;
  const model = root.querySelector("[data-key=model]");
  const method = root.querySelector("[data-key=method]");
  const slider = root.querySelector("input");
  data.models.forEach((one, i) => model.add(new Option(one.name, i)));
  for (const [key, name] of Object.entries(methods)) method.add(new Option(name, key));
  let parts = {};
  let most = 0;
  model.value = data.start;
  method.value = "lora";

  function bytes(value) {
    const units = ["bytes", "kB", "MB", "GB", "TB"];
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
      value /= 1000;
      unit += 1;
    }
    return `${value < 100 ? value.toPrecision(2) : Math.round(value)} ${units[unit]}`;
  }

  function draw() {
    const { n_layers: L, d_model: D, block_size: T, vocab_size: V } = data.models[model.value];
    const rank = ranks[slider.value];
    root.querySelector("output").textContent = rank;
    slider.disabled = method.value !== "lora";
    const block = 12 * D * D + 13 * D;
    const total = (V + T) * D + L * block + 2 * D;
    const head = 2 * D + 2;
    const trained =
      head + { head: 0, last: block + 2 * D, lora: 4 * L * rank * D, all: total }[method.value];
    const weights = total + head + (method.value === "lora" ? trained - head : 0);
    parts = {
      weights: 4 * weights,
      gradients: 4 * trained,
      "Adam’s moments": 8 * trained,
    };
    most = 16 * (total + head);
    drawBars(
      root.querySelector(".bars"),
      Object.entries(parts).map(([name, size]) => ({ name, share: (2 * size) / most, value: bytes(size) })),
    );
    const share = (100 * trained) / weights;
    const sum = parts.weights + parts.gradients + parts["Adam’s moments"];
    root.querySelector(".reading").textContent =
      `${trained.toLocaleString("en-US")} of ${weights.toLocaleString("en-US")} parameters are trained, ` +
      `${share < 0.1 ? share.toPrecision(1) : share.toFixed(1)} %. ` +
      `In float32 training holds ${bytes(sum)} before activations, ` +
      `${Math.round((100 * sum) / most)} % of what training all weights holds. ` +
      `What is stored for each task: ${bytes(4 * trained)}.`;
  }

  for (const control of [model, method]) control.addEventListener("change", draw);
  slider.addEventListener("input", draw);
  draw();
  return {
    bet: {
      ask: "LoRA trains less than 1 % of GPT-2. How much memory does it hold, beside training all weights?",
      options: ["about 1 %", "about a quarter", "about three quarters"],
      check(guess) {
        model.value = data.models.findIndex((one) => one.name === "GPT-2");
        method.value = "lora";
        slider.value = ranks.indexOf(8);
        draw();
        const held = Object.values(parts).reduce((sum, size) => sum + size, 0) / most;
        const nearest = [0.01, 0.25, 0.75].map((share) => Math.abs(share - held));
        return {
          right: nearest[guess] === Math.min(...nearest),
          why:
            `It holds ${Math.round(100 * held)} %: the frozen weights must be there, too. ` +
            "What it saves are gradients and moments, three quarters of the whole.",
        };
      },
    },
  };
});
