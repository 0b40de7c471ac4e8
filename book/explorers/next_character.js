// Type a beginning and see the counts bet on the next character; let them write.
//
// data: {tables: [for n = 1, 2, ...: {context: [characters, shares in thousandths]}]}, each row with
// its best bet first. The row of the empty context, at n = 1, is always there.
"use strict";

explorer("next_character", (root, data) => {
  root.innerHTML = `
    <p class="controls">
      <label>Text so far <input type="text" value="wherefore art tho" spellcheck="false"></label>
      <label>n <input type="range" min="1" max="${data.tables.length}" value="${data.tables.length}"> <output></output></label>
      <button type="button">Draw a character</button>
    </p>
    <p class="reading" aria-live="polite"></p>
    <ol class="bars"></ol>`;
  const [text, order] = root.querySelectorAll("input");
  const reading = root.querySelector(".reading");
  const bars = root.querySelector(".bars");
  const name = (character) => ({ " ": "space", "\n": "line end" })[character] ?? character;

  // The row for the last n − 1 characters, or for fewer where so many were never counted.
  function row() {
    for (let known = Number(order.value) - 1; known >= 0; known--) {
      const context = known ? text.value.slice(-known) : "";
      const found = data.tables[known][context];
      if (context.length === known && found) return { known, context, found };
    }
    throw new Error("the table without context is always there");
  }

  function draw() {
    const { known, context, found } = row();
    const [characters, shares] = found;
    root.querySelector("output").textContent = order.value;
    const asked = Number(order.value) - 1;
    const shown = `“${[...context].map(name).join("")}”`.replaceAll("space", "␣");
    reading.textContent =
      (known ? `After ${shown}` : "Whatever came before") +
      (known < asked ? ` (${asked} characters back: not counted here)` : "");
    drawBars(
      bars,
      [...characters].slice(0, 8).map((character, i) => ({
        name: name(character),
        share: shares[i] / 1000,
        value: `${(shares[i] / 10).toFixed(1)} %`,
      })),
    );
  }

  root.querySelector("button").addEventListener("click", () => {
    const [characters, shares] = row().found;
    let point = Math.random() * shares.reduce((sum, share) => sum + share, 0);
    const drawn = shares.findIndex((share) => (point -= share) < 0);
    text.value += [...characters][drawn].replace("\n", " ");
    text.scrollLeft = text.scrollWidth;
    draw();
  });
  text.addEventListener("input", draw);
  order.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "Take n down to 2: does the best bet get surer, less sure, or stay the same?",
      options: ["surer", "less sure", "the same"],
      check(guess) {
        const best = () => row().found[1][0] / 10;
        order.value = order.max;
        const long = best();
        order.value = 2;
        const short = best();
        draw();
        return {
          right: guess === (short > long ? 0 : short < long ? 1 : 2),
          why: `After this text the best bet has ${long.toFixed(1)} % with n = ${order.max} and ` +
            `${short.toFixed(1)} % with n = 2. Type another beginning and bet again.`,
        };
      },
    },
  };
});
