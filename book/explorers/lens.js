// Choose a token of a line: what the model bets on next after each of its blocks.
//
// data: {lines: [{tokens: [...], bets: [for each token, for each layer from the embeddings on, four
// bets [token, share in thousandths]]}], start: [line, token]}.
"use strict";

explorer("lens", (root, data) => {
  const name = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  root.innerHTML = `
    <p class="controls">
      <label>Line <select></select></label>
      <label>Read up to token <input type="range" min="0"> <output></output></label>
    </p>
    <p class="tokens"></p>
    <div class="layers"></div>
    <p class="reading" aria-live="polite"></p>`;
  const [choice, slider] = root.querySelectorAll("select, input");
  const boxes = root.querySelector(".tokens");
  const layers = root.querySelector(".layers");
  const reading = root.querySelector(".reading");
  data.lines.forEach((line, i) => choice.add(new Option(line.tokens.join("").trim(), i)));

  function bars(bets, next) {
    const list = made("ol", "", { className: "bars" });
    drawBars(
      list,
      bets.map(([token, share]) => ({
        name: name(token) + (token === next ? " ✓" : ""),
        share: share / 1000,
        value: `${(share / 10).toFixed(1)} %`,
      })),
    );
    return list;
  }

  // The layer from which on the last layer's best bet is the best.
  function settled(bets) {
    const best = bets.map((four) => four[0][0]);
    return best.findLastIndex((token) => token !== best.at(-1)) + 1;
  }

  function draw() {
    const line = data.lines[choice.value];
    slider.max = line.tokens.length - 1;
    const at = Number(slider.value);
    const next = line.tokens[at + 1];
    boxes.replaceChildren(
      ...line.tokens.map((token, i) => {
        const box = document.createElement("span");
        box.textContent = name(token);
        box.classList.toggle("now", i === at);
        box.addEventListener("click", () => {
          slider.value = i;
          draw();
        });
        return box;
      }),
    );
    root.querySelector("output").textContent = at + 1;
    layers.replaceChildren(
      ...line.bets[at].flatMap((bets, layer) => {
        const label = document.createElement("p");
        label.className = "label";
        label.textContent = layer === 0 ? "No block yet" : `After block ${layer}`;
        return [label, bars(bets, next)];
      }),
    );
    const last = line.bets[at].at(-1)[0][0];
    const since = settled(line.bets[at]);
    reading.textContent =
      `After “${name(line.tokens[at])}” the model’s bet is “${name(last)}”, ` +
      (since === 0 ? "from the embeddings on" : `its best since block ${since}`) +
      (next === undefined ? "." : `; the text goes on with “${name(next)}”.`);
  }

  [choice.value, slider.max] = [data.start[0], data.lines[data.start[0]].tokens.length - 1];
  slider.value = data.start[1];
  choice.addEventListener("input", () => {
    slider.value = 0;
    draw();
  });
  slider.addEventListener("input", draw);
  draw();

  const depths = data.lines[0].bets[0].map((_, layer) => (layer === 0 ? "no block yet" : `block ${layer}`));
  return {
    bet: {
      ask: "Over this line, how many of the model’s final bets are already the best one before block 1?",
      number: [0, 1000],
      check(guess) {
        const line = data.lines[choice.value];
        const counts = depths.map((_, layer) => line.bets.filter((bets) => settled(bets) === layer).length);
        return {
          right: Math.abs(guess - counts[0]) <= 1,
          why: `${counts[0]} of ${line.bets.length}. The final bet leads from then on since: ` +
            depths.map((depth, layer) => `${depth} ${counts[layer]}`).join(", ") + ".",
        };
      },
    },
  };
});
