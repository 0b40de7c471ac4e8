// Multiply a loss by a power of two and see which of its gradients a 16-bit format keeps.
//
// data: {powers: [e, …], shares: [% of all gradients with 2^e ≤ |g| < 2^(e + 1), …]}
"use strict";

explorer("loss_scaling", (root, data) => {
  // The largest power that is finite, the smallest with all bits, the smallest that is not 0.
  const formats = {
    float16: { top: 15, normal: -14, least: -25 },
    bfloat16: { top: 127, normal: -126, least: -134 },
  };
  const fates = {
    zero: { name: "become 0", color: "var(--figure-vermillion)" },
    short: { name: "lose bits", color: "var(--figure-orange)" },
    whole: { name: "are kept with all bits", color: "var(--figure-blue)" },
    infinite: { name: "are infinite", color: "var(--figure-purple)" },
  };
  root.innerHTML = `
    <p class="controls">
      <label>Loss multiplied by 2 to the power
        <input type="range" min="0" max="40" step="1" value="0"> <output></output></label>
      <label>Format <select><option>float16</option><option>bfloat16</option></select></label>
    </p>
    <p class="label">Gradients by size, in powers of two
      ${Object.values(fates).map(({ name, color }) => `<span class="key" style="--key: ${color}">${name}</span>`).join(" ")}</p>
    <div class="chart"><svg role="img"></svg></div>
    <p class="reading" aria-live="polite"></p>`;
  const slider = root.querySelector("input");
  const select = root.querySelector("select");
  const svg = root.querySelector("svg");
  const reading = root.querySelector(".reading");
  const low = -46;
  const high = 24;
  let wide = unitsAcross(root);
  const place = (power) => (wide * (power - low)) / (high - low);
  function fate(power, format) {
    if (power > format.top) return "infinite";
    if (power >= format.normal) return "whole";
    return power >= format.least ? "short" : "zero";
  }

  function draw() {
    wide = unitsAcross(root);
    svg.setAttribute("viewBox", `0 0 ${wide} 150`);
    const scale = Number(slider.value);
    const format = formats[select.value];
    const most = Math.max(...data.shares);
    const sums = { zero: 0, short: 0, whole: 0, infinite: 0 };
    const bars = data.powers.map((power, i) => {
      const kind = fate(power + scale, format);
      sums[kind] += data.shares[i];
      const height = (105 * data.shares[i]) / most;
      const x = place(power + scale);
      const width = place(1) - place(0) - 0.6;
      return `<rect x="${x.toFixed(1)}" y="${(120 - height).toFixed(1)}" width="${width.toFixed(1)}"
        height="${height.toFixed(1)}" fill="${fates[kind].color}"></rect>`;
    });
    const edges = [format.least, format.normal, format.top + 1]
      .filter((power) => power > low && power < high)
      .map(
        (power) => `<line x1="${place(power)}" x2="${place(power)}" y1="8" y2="124" stroke="currentColor"
          stroke-dasharray="3 3"></line><text x="${place(power)}" y="141" font-size="12" fill="currentColor"
          text-anchor="middle">2${superscript(power)}</text>`,
      );
    svg.innerHTML = `${edges.join("")}${bars.join("")}
      <line x1="0" x2="${wide}" y1="120" y2="120" stroke="currentColor"></line>`;
    slider.nextElementSibling.textContent = scale;
    const said = Object.keys(fates)
      .filter((kind) => sums[kind] >= 0.05)
      .map((kind) => `${sums[kind].toFixed(1)} % ${fates[kind].name}`);
    const advice =
      sums.infinite >= 0.05 ? " The step is skipped and the scale halved." : "";
    reading.textContent = `In ${select.value}, ${said.join(", ")}.${advice}`;
    svg.setAttribute("aria-label", `Gradients by size: ${said.join(", ")}`);
  }

  root.addEventListener("input", draw);
  onWidth(root, draw);
  draw();

  // The share of gradients that keep all bits in float16 at a scale of 2 to this power.
  const kept = (scale) =>
    data.powers.reduce((sum, power, i) => sum + (fate(power + scale, formats.float16) === "whole" ? data.shares[i] : 0), 0);

  return {
    bet: {
      ask: "In float16: by which power of two must the loss at least be multiplied so that 99 % keep all their bits?",
      number: [0, 40],
      check(guess) {
        const powers = Array.from({ length: 41 }, (_, power) => power);
        const most = powers.reduce((best, power) => (kept(power) > kept(best) ? power : best));
        const least = powers.find((power) => kept(power) >= 99) ?? most;
        [slider.value, select.value] = [least, "float16"];
        draw();
        return {
          right: Math.abs(guess - least) <= 1,
          why: `By 2 to the power ${least}: then ${kept(least).toFixed(1)} % are kept whole, without it ` +
            `${kept(0).toFixed(1)} %.`,
        };
      },
    },
    table: () => ({ "gradient at least (power of 2)": data.powers, "share of all (%)": data.shares }),
  };
});
