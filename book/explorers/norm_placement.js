// Choose a depth: bars for every block of a fresh stack, pre-norm beside post-norm.
//
// data: {pre: [stack, …], post: [stack, …]}, one stack for each depth, in the same order:
// {depth, gradient: [norm of W_2's gradient, block by block], stream_rms: [size behind each block]}.
// `benchmarks/norm_placement.py` measures it.
"use strict";

explorer("norm_placement", (root, data) => {
  const depths = data.pre.map((stack) => stack.depth);
  const kinds = [
    { key: "gradient", name: "gradient of each block’s weights", log: true },
    { key: "stream_rms", name: "size of the stream behind each block", log: false },
  ];
  root.innerHTML = `
    <p class="controls">
      <label>Blocks <input type="range" min="0" max="${depths.length - 1}" value="${depths.length - 1}">
        <output></output></label>
      <label>Show <select></select></label>
    </p>
    <div class="panels chart"></div>
    <p class="reading" aria-live="polite"></p>`;
  const slider = root.querySelector("input");
  const select = root.querySelector("select");
  const panels = root.querySelector(".panels");
  const reading = root.querySelector(".reading");
  kinds.forEach((kind, i) => select.add(new Option(kind.name, i)));
  const colors = { pre: "var(--figure-blue)", post: "var(--figure-vermillion)" };

  function bars(name, values, kind, low, high) {
    const width = unitsAcross(root);
    const height = 90;
    const step = width / values.length;
    const share = (v) =>
      kind.log ? (Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low)) : v / high;
    const rects = values
      .map((v, i) => {
        const h = Math.max(1.5, share(v) * height);
        return `<rect x="${(i * step + 1).toFixed(1)}" y="${(height - h).toFixed(1)}"
          width="${(step - 2).toFixed(1)}" height="${h.toFixed(1)}" fill="${colors[name]}"></rect>`;
      })
      .join("");
    return `<p class="label">${name}-norm: ${values[0].toPrecision(2)} at the first block,
        ${values[values.length - 1].toPrecision(2)} at the last</p>
      <svg viewBox="0 0 ${width} ${height}" role="img"
        aria-label="${name}-norm, one bar for each of ${values.length} blocks">${rects}</svg>`;
  }

  function draw() {
    const at = Number(slider.value);
    const kind = kinds[Number(select.value)];
    const shown = { pre: data.pre[at][kind.key], post: data.post[at][kind.key] };
    const all = [...shown.pre, ...shown.post];
    const low = Math.min(...all) / 1.5;
    const high = Math.max(...all);
    slider.nextElementSibling.textContent = depths[at];
    panels.innerHTML = Object.keys(shown)
      .map((name) => `<div>${bars(name, shown[name], kind, low, high)}</div>`)
      .join("");
    const ratio = (values) => (values[values.length - 1] / values[0]).toPrecision(2);
    reading.textContent =
      `From the first block to the last: pre-norm × ${ratio(shown.pre)}, ` +
      `post-norm × ${ratio(shown.post)}${kind.log ? " (bars on a logarithmic scale)" : ""}.`;
  }

  slider.addEventListener("input", draw);
  select.addEventListener("change", draw);
  onWidth(root, draw);
  draw();

  return {
    bet: {
      ask: "In the deepest post-norm stack, by which factor does the gradient grow from the first block to the last?",
      options: ["it stays about the same", "2 to 10 times", "more than 10 times"],
      check(guess) {
        [slider.value, select.value] = [slider.max, 0];
        draw();
        const grown = (stack) => stack.gradient.at(-1) / stack.gradient[0];
        const [pre, post] = [grown(data.pre.at(-1)), grown(data.post.at(-1))];
        return {
          right: guess === (post < 2 ? 0 : post <= 10 ? 1 : 2),
          why: `By ${post.toPrecision(2)} in post-norm and by ${pre.toPrecision(2)} in pre-norm, with ${depths.at(-1)} blocks.`,
        };
      },
    },
    table: () => {
      const at = Number(slider.value);
      const { key, name } = kinds[Number(select.value)];
      return { block: data.pre[at][key].map((_, i) => i + 1), [`pre: ${name}`]: data.pre[at][key], [`post: ${name}`]: data.post[at][key] };
    },
  };
});
