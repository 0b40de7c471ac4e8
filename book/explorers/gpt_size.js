// Choose the sizes of a GPT; see what it holds, part by part, what training it costs, and what it
// takes to keep it.
//
// data: {models: [{name, n_layers, n_heads, d_model, block_size, vocab_size}, …], start: which}
"use strict";

explorer("gpt_size", (root, data) => {
  const steps = {
    n_layers: [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 36, 48, 64, 96, 128],
    d_model: [64, 96, 128, 192, 256, 384, 512, 768, 1024, 1280, 1600, 2048, 4096, 8192, 12288],
    n_heads: [1, 2, 3, 4, 6, 8, 12, 16, 20, 25, 32, 48, 64, 96, 128],
    block_size: [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072],
    vocab_size: [64, 256, 1024, 4096, 16384, 50257, 100000, 200000],
  };
  const names = {
    n_layers: "Layers L",
    d_model: "Width D",
    n_heads: "Heads H",
    block_size: "Context T",
    vocab_size: "Vocabulary V",
  };
  for (const key of Object.keys(steps)) {
    const all = [...steps[key], ...data.models.map((model) => model[key])];
    steps[key] = [...new Set(all)].sort((a, b) => a - b);
  }
  root.innerHTML = `
    <p class="controls"><label>Sizes of <select></select></label></p>
    <p class="controls sliders">${Object.keys(steps)
      .map(
        (key) => `<label>${names[key]} <input type="range" min="0" data-key="${key}"
          max="${steps[key].length - 1}"> <output></output></label>`,
      )
      .join("")}</p>
    <p class="label">Parameters</p>
    <ol class="bars wordy"></ol>
    <p class="reading" aria-live="polite"></p>`;
  const select = root.querySelector("select");
  const sliders = [...root.querySelectorAll("input")];
  const bars = root.querySelector(".bars");
  data.models.forEach((model, i) => select.add(new Option(model.name, i)));
  select.add(new Option("your own", "own"));

  // The parameters by part; the head is the token table.
  function parts({ n_layers: L, d_model: D, block_size: T, vocab_size: V }) {
    return {
      "token table": V * D,
      "position table": T * D,
      attention: L * (4 * D * D + 4 * D),
      "feed-forward": L * (8 * D * D + 5 * D),
      norms: (2 * L + 1) * 2 * D,
    };
  }

  function rounded(value) {
    const units = ["", " thousand", " million", " billion", " trillion"];
    let unit = 0;
    while (value >= 1000 && unit < units.length - 1) {
      value /= 1000;
      unit += 1;
    }
    return `${unit && value < 100 ? value.toPrecision(3) : Math.round(value)}${units[unit]}`;
  }

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
    const sizes = Object.fromEntries(
      sliders.map((slider) => [slider.dataset.key, steps[slider.dataset.key][slider.value]]),
    );
    for (const slider of sliders) {
      const output = slider.parentElement.querySelector("output");
      output.textContent = sizes[slider.dataset.key].toLocaleString("en-US");
    }
    const { n_layers: L, d_model: D, n_heads: H, block_size: T } = sizes;
    const counts = parts(sizes);
    const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
    drawBars(
      bars,
      Object.entries(counts).map(([name, count]) => ({
        name,
        share: count / total,
        value: `${rounded(count)}, ${((100 * count) / total).toFixed(1)} %`,
      })),
    );
    const attention = 12 * L * D * T;
    const flops = 6 * (total - T * D) + attention;
    const share = ((100 * attention) / flops).toFixed(1);
    root.querySelector(".reading").textContent =
      `${total.toLocaleString("en-US")} parameters. ` +
      `Training: ${rounded(flops)} FLOPs a token, ${share} % of them between positions. ` +
      `Memory: ${bytes(4 * total)} of weights in float32, ${bytes(2 * total)} in 16 bits; ` +
      `${bytes(16 * total)} to train with Adam, before activations; ` +
      `${bytes(4 * L * D * T)} of keys and values for one full text in 16 bits. ` +
      (D % H ? `${H} heads cannot share a width of ${D}: no such model.` : `Each head is ${D / H} wide.`);
  }

  function choose(model) {
    for (const slider of sliders) {
      slider.value = steps[slider.dataset.key].indexOf(model[slider.dataset.key]);
    }
    draw();
  }

  select.addEventListener("change", () => {
    if (select.value !== "own") choose(data.models[Number(select.value)]);
  });
  for (const slider of sliders) {
    slider.addEventListener("input", () => {
      select.value = "own";
      draw();
    });
  }
  select.value = data.start;
  choose(data.models[data.start]);

  return {
    bet: {
      ask: "Keep all sizes but the width, and take the largest width: which part then holds the largest share?",
      options: Object.keys(parts(data.models[0])),
      check(guess) {
        const width = root.querySelector("[data-key=d_model]");
        width.value = width.max;
        width.dispatchEvent(new Event("input", { bubbles: true }));
        const sizes = Object.fromEntries(
          sliders.map((slider) => [slider.dataset.key, steps[slider.dataset.key][slider.value]]),
        );
        const counts = Object.entries(parts(sizes));
        const total = counts.reduce((sum, [, count]) => sum + count, 0);
        const most = counts.reduce((best, part) => (part[1] > best[1] ? part : best));
        return {
          right: counts[guess][0] === most[0],
          why: `At width ${sizes.d_model.toLocaleString("en-US")} it is the ${most[0]}, with ` +
            `${((100 * most[1]) / total).toFixed(0)} %. Attention and feed-forward layers grow with the ` +
            "square of the width, tables and norms with the width.",
        };
      },
    },
  };
});
