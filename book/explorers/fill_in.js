// Hide one token of a line: what BERT, which reads both sides, and GPT, which reads the left, guess.
//
// data: {lines: [{tokens: [...], bert: [a row for each token], gpt: [...]}], start: [line, token]},
// a row being {tokens: five guesses, shares: theirs in thousandths, right: the true token's share}.
"use strict";

explorer("fill_in", (root, data) => {
  const name = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  root.innerHTML = `
    <p class="controls">
      <label>Line <select></select></label>
      <label>Hidden token <input type="range" min="0"> <output></output></label>
    </p>
    <p class="tokens"></p>
    <p class="label">BERT, from both sides</p>
    <ol class="bars"></ol>
    <p class="label">GPT, from the left</p>
    <ol class="bars"></ol>
    <p class="reading" aria-live="polite"></p>`;
  const [choice, slider] = root.querySelectorAll("select, input");
  const boxes = root.querySelector(".tokens");
  const [both, left] = root.querySelectorAll(".bars");
  const reading = root.querySelector(".reading");
  data.lines.forEach((line, i) => choice.add(new Option(line.tokens.join("").trim(), i)));

  function bars(list, row, right) {
    drawBars(
      list,
      row.tokens.map((token, i) => ({
        name: name(token) + (token === right ? " ✓" : ""),
        share: row.shares[i] / 1000,
        value: `${(row.shares[i] / 10).toFixed(1)} %`,
      })),
    );
  }

  function draw() {
    const line = data.lines[choice.value];
    slider.max = line.tokens.length - 1;
    const at = Number(slider.value);
    const right = line.tokens[at];
    boxes.replaceChildren(
      ...line.tokens.map((token, i) => {
        const box = document.createElement("span");
        box.textContent = i === at ? "[MASK]" : name(token);
        box.classList.toggle("now", i === at);
        box.addEventListener("click", () => {
          slider.value = i;
          draw();
        });
        return box;
      }),
    );
    root.querySelector("output").textContent = at + 1;
    bars(both, line.bert[at], right);
    bars(left, line.gpt[at], right);
    const share = (row) => `${(row[at].right / 10).toFixed(1)} %`;
    reading.textContent =
      `Hidden: “${name(right)}”. BERT gives it ${share(line.bert)}, ` +
      `GPT, which has not seen what follows, ${share(line.gpt)}.`;
  }

  [choice.value, slider.max] = [data.start[0], data.lines[data.start[0]].tokens.length - 1];
  slider.value = data.start[1];
  choice.addEventListener("input", () => {
    slider.value = 0;
    draw();
  });
  slider.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "Which of the two gives the hidden token the larger share?",
      options: ["BERT, from both sides", "GPT, from the left"],
      check(guess) {
        const line = data.lines[choice.value];
        const [bert, gpt] = [line.bert, line.gpt].map((row) => row[slider.value].right);
        const share = (part) => `${(part / 10).toFixed(1)} %`;
        return {
          right: bert === gpt || guess === Number(gpt > bert),
          why: `Here BERT gives it ${share(bert)}, GPT ${share(gpt)}. Move to another token and bet again.`,
        };
      },
    },
  };
});
