// Type a text and see it cut into tokens; move through the merges and watch them act.
//
// data: {merges: [[left id, right id], ...] in order, text: what stands in the box at first}. Ids
// below 256 are bytes, and merge k makes the id 256 + k.
// needs: bpe
"use strict";

explorer("tokens", (root, data) => {
  const last = data.merges.length;
  root.innerHTML = `
    <p><label>Text <textarea rows="2" spellcheck="false"></textarea></label></p>
    <p class="controls">
      <label>Merges
        <input type="range" min="0" max="${last}" value="${last}"> <output></output>
      </label>
      <span><button type="button">◂ Undo one</button> <button type="button">Next one ▸</button></span>
    </p>
    <p class="tokens"></p>
    <p class="reading" aria-live="polite"></p>`;
  const text = root.querySelector("textarea");
  const slider = root.querySelector("input");
  const [back, forth] = root.querySelectorAll("button");
  const boxes = root.querySelector(".tokens");
  const reading = root.querySelector(".reading");
  text.value = data.text;

  const tokenizer = new BPETokenizer(data);
  const name = (id) => tokenizer.name(id);

  let acting = []; // the ranks of all merges that act on this text, in order
  function draw() {
    const limit = Number(slider.value);
    const chunks = tokenizer.chunks(text.value);
    const ranks = chunks.flatMap((chunk) => tokenizer.encodeChunk(chunk, last).acted);
    acting = [...new Set(ranks)].sort((a, b) => a - b);
    const ids = chunks.flatMap((chunk) => tokenizer.encodeChunk(chunk, limit).ids);
    const characters = [...text.value].length;
    const bytes = new TextEncoder().encode(text.value).length;
    boxes.replaceChildren(
      ...ids.map((id) => {
        const box = document.createElement("span");
        box.textContent = name(id);
        box.title = `id ${id}`;
        box.classList.toggle("byte", id < 256);
        box.classList.toggle("now", id === 256 + acting.filter((k) => k < limit).at(-1));
        return box;
      }),
    );
    const done = acting.filter((k) => k < limit);
    const next = acting.find((k) => k >= limit);
    const merge = (k) => {
      const [left, right] = data.merges[k];
      return `number ${k + 1}, “${name(left)}” + “${name(right)}”`;
    };
    root.querySelector("output").textContent = limit;
    back.disabled = done.length === 0;
    forth.disabled = next === undefined;
    reading.textContent =
      `${characters} characters, ${bytes} bytes, ${ids.length} tokens` +
      (characters ? `, ${(ids.length / characters).toFixed(2)} a character. ` : ". ") +
      (done.length ? `The last merge to act: ${merge(done.at(-1))}. ` : "No merge has acted. ") +
      (next === undefined ? "No other acts on this text." : `The next: ${merge(next)}.`);
  }

  back.addEventListener("click", () => {
    slider.value = acting.filter((k) => k < Number(slider.value)).at(-1) ?? 0;
    draw();
  });
  forth.addEventListener("click", () => {
    slider.value = (acting.find((k) => k >= Number(slider.value)) ?? last - 1) + 1;
    draw();
  });
  text.addEventListener("input", draw);
  slider.addEventListener("input", draw);
  draw();

  return {
    bet: {
      ask: "Write a text of your own, with all merges switched off. How many tokens will all merges make of it?",
      number: [0, 10000],
      check(guess) {
        slider.value = last;
        draw();
        const count = boxes.children.length;
        return {
          right: Math.abs(guess - count) <= Math.max(1, 0.1 * count),
          why: `${count} tokens, from ${new TextEncoder().encode(text.value).length} bytes. You said ${guess}.`,
        };
      },
    },
  };
});
