// Choose a sentence and a token of the answer; the source words are shaded by their weight.
//
// data: [{task, source: [tokens], target: [tokens], weights: [for each target token: one number for
// each source token]}]. All tokens stay visible and every one of the answer's is a button, so a
// keyboard and a finger reach what a mouse reaches.
"use strict";

explorer("alignment", (root, data) => {
  const spaced = (item) => item.task === "numbers";
  root.innerHTML = `
    <p class="controls"><label>Source <select></select></label></p>
    <p class="label">The source, shaded by weight</p>
    <p class="shaded source"></p>
    <p class="label">The answer: choose a token</p>
    <p class="controls answer" role="group" aria-label="Tokens of the answer"></p>
    <p class="reading" aria-live="polite"></p>`;
  const select = root.querySelector("select");
  const source = root.querySelector(".source");
  const answer = root.querySelector(".answer");
  const reading = root.querySelector(".reading");
  select.style.maxWidth = "100%";
  select.parentElement.style.maxWidth = "100%";
  answer.style.gap = "0.3rem";
  select.append(
    ...data.map((item, i) => {
      const text = item.source.join(spaced(item) ? " " : "");
      return new Option(text, i);
    }),
  );
  let item;

  function look(t) {
    const weights = item.weights[t];
    [...source.querySelectorAll("span")].forEach((span, s) => {
      const strength = Math.sqrt(weights[s]); // small weights stay visible
      span.style.background = `color-mix(in srgb, var(--figure-blue) ${(50 * strength).toFixed(0)}%, transparent)`;
      span.title = `${(100 * weights[s]).toFixed(0)} %`;
    });
    [...answer.children].forEach((button, i) => button.setAttribute("aria-pressed", i === t));
    [...answer.children].forEach((button, i) => {
      button.style.background = i === t ? "color-mix(in srgb, var(--figure-vermillion) 25%, transparent)" : "";
    });
    const order = weights.map((_, s) => s).sort((a, b) => weights[b] - weights[a]);
    const seen = order.slice(0, 3).filter((s, rank) => rank === 0 || weights[s] >= 0.1);
    const places = seen.map((s) => {
      const name = item.source[s] === " " ? "a space" : `“${item.source[s]}”`;
      return `${name} at place ${s + 1} (${(100 * weights[s]).toFixed(0)} %)`;
    });
    const token = item.target[t] === "<eos>" ? "to end" : `to write “${item.target[t]}”`;
    reading.textContent = `Step ${t + 1}: ${token} it looks at ${places.join(", ")}.`;
  }

  function choose() {
    item = data[Number(select.value)];
    source.replaceChildren(
      ...item.source.flatMap((token, s) => {
        const span = document.createElement("span");
        span.textContent = token;
        return s > 0 && spaced(item) ? [" ", span] : [span];
      }),
    );
    answer.replaceChildren(
      ...item.target.map((token, t) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = token === "<eos>" ? "end" : token;
        for (const event of ["click", "focus", "pointerenter"]) {
          button.addEventListener(event, () => look(t));
        }
        return button;
      }),
    );
    const jump = item.target.findIndex((token) => token === "万" || token === "-");
    look(Math.max(0, jump));
  }

  select.addEventListener("input", choose);
  choose();

  // Steps that look most at a token before the one that the step before looked at.
  function jumps() {
    const most = item.weights.map((row) => row.indexOf(Math.max(...row)));
    return most.flatMap((place, t) => (t > 0 && place < most[t - 1] ? [t] : []));
  }

  return {
    bet: {
      ask: "How many steps of this answer look mainly at a place before the one that the step before looked at?",
      number: [0, 60],
      check(guess) {
        const back = jumps();
        if (back.length) look(back[0]);
        const where = back.map((t) => t + 1).join(", ");
        return {
          right: guess === back.length,
          why: back.length
            ? `${back.length} of ${item.weights.length} go back: step ${where}. The first of them is shown.`
            : `None of the ${item.weights.length} goes back: this answer is read from left to right.`,
        };
      },
    },
    table: () => ({
      "source token": item.source,
      ...Object.fromEntries(item.target.map((token, t) => [`${t + 1}: ${token}`, item.weights[t]])),
    }),
  };
});
