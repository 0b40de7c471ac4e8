// The ladder: every measured model on one line of bits per character; look at one to see what it
// cost and what it writes.
//
// data: {rungs: [{name, bits, interval: [low, high] or null, kind: "counts" or "network", parameters,
//   flops or null, tokens, seconds, sample, chapter: {href, title} or null}, …], text}
"use strict";

explorer("ladder", (root, data) => {
  const { rungs } = data;
  root.innerHTML = `
    <p class="label">Bits per character on held-out text: fewer is better
      <span class="key">counts</span> <span class="key before">networks</span></p>
    <div class="rungs" role="group" aria-label="Models"></div>
    <p class="reading" aria-live="polite"></p>
    <p class="label writes"></p>
    <p class="shaded written"></p>
    <p class="controls"><label>Order <select data-key="order">
      <option value="book">as the book meets them</option>
      <option value="bits">by bits per character</option>
      <option value="seconds">by seconds of training</option></select></label></p>`;
  const $ = (selector) => root.querySelector(selector);
  const ends = rungs.flatMap(({ bits, interval }) => [bits, ...(interval ?? [])]);
  const [low, high] = [Math.floor(10 * Math.min(...ends) - 0.5) / 10, Math.max(...ends) + 0.05];
  const place = (bits) => (100 * (bits - low)) / (high - low);
  let at = rungs.reduce((best, rung, i) => (rung.bits < rungs[best].bits ? i : best), 0);
  const number = (value) => value.toLocaleString("en-US");

  function large(value) {
    const power = Math.floor(Math.log10(value));
    return `${(value / 10 ** power).toFixed(1)} · 10${superscript(power)}`;
  }

  function look(i) {
    at = i;
    const rung = rungs[i];
    const best = Math.min(...rungs.map(({ bits }) => bits));
    [...$(".rungs").children].forEach((button) =>
      button.setAttribute("aria-pressed", Number(button.dataset.rung) === i));
    const behind = rung.bits - best;
    $(".reading").textContent =
      `${rung.name}: ${rung.bits.toFixed(3)} bits per character` +
      (rung.interval ? `, between ${rung.interval[0].toFixed(3)} and ${rung.interval[1].toFixed(3)} over its seeds` : "") +
      `, ${behind < 0.0005 ? "the fewest of all" : `${behind.toFixed(3)} behind the best`}. ` +
      `${number(rung.parameters)} ${rung.kind === "counts" ? "counts" : "parameters"}, ` +
      (rung.flops ? `${large(rung.flops)} FLOPs of training, ` : "") +
      `${rung.seconds.toFixed(rung.seconds < 10 ? 1 : 0)} s of processor time.`;
    const chapter = rung.chapter ? made("a", rung.chapter.title, { href: rung.chapter.href }) : "";
    $(".writes").replaceChildren(
      ...(chapter ? ["Built in ", chapter, ". "] : []), rung.sample ? "It writes:" : "No text of it is kept.");
    $(".written").textContent = rung.sample ?? "";
  }

  function draw() {
    const order = rungs.map((_, i) => i);
    const key = $("select").value;
    if (key !== "book") order.sort((i, j) => rungs[i][key] - rungs[j][key]);
    $(".rungs").replaceChildren(
      ...order.map((i) => {
        const { name, bits, interval, kind } = rungs[i];
        const button = made("button", "", { type: "button", className: kind });
        button.dataset.rung = i;
        const line = made("span", "", { className: "line" });
        if (interval) {
          const range = line.appendChild(made("span", "", { className: "range" }));
          range.style.left = `${place(interval[0])}%`;
          range.style.width = `${place(interval[1]) - place(interval[0])}%`;
        }
        line.appendChild(made("span", "", { className: "dot" })).style.left = `${place(bits)}%`;
        button.append(made("span", name, { className: "name" }), line, made("span", bits.toFixed(2), { className: "value" }));
        for (const event of ["click", "focus", "pointerenter"]) button.addEventListener(event, () => look(i));
        return button;
      }),
    );
    look(at);
  }

  $("select").addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "Which of the networks comes closest to the best of the counts, or passes it?",
      options: rungs.filter(({ kind }) => kind === "network").map(({ name }) => name),
      check(guess) {
        const networks = rungs.filter(({ kind }) => kind === "network");
        const counts = rungs.filter(({ kind }) => kind === "counts").reduce((a, b) => (a.bits < b.bits ? a : b));
        const best = networks.reduce((a, b) => (a.bits < b.bits ? a : b));
        look(rungs.indexOf(best));
        return {
          right: networks[guess] === best,
          why: `${best.name}: ${best.bits.toFixed(3)} against ${counts.bits.toFixed(3)} of the ${counts.name}. ` +
            `Yours: ${networks[guess].bits.toFixed(3)}.`,
        };
      },
    },
    table: () => ({
      model: rungs.map((rung) => rung.name),
      "bits per character": rungs.map((rung) => rung.bits),
      "of the seeds": rungs.map(({ interval }) => interval?.map((bits) => bits.toFixed(3)).join(" to ") ?? "–"),
      parameters: rungs.map((rung) => rung.parameters),
      "seconds of processor": rungs.map((rung) => rung.seconds),
    }),
  };
});
