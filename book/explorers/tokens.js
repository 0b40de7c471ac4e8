// Type a text and see it cut into tokens; move through the merges and watch them act.
//
// data: {merges: [[left id, right id], ...] in order, text: what stands in the box at first}. Ids
// below 256 are bytes, and merge k makes the id 256 + k.
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

  const tokens = Array.from({ length: 256 }, (_, byte) => [byte]);
  const rank = new Map(); // "left right" → which merge it is
  data.merges.forEach(([left, right], k) => {
    tokens.push([...tokens[left], ...tokens[right]]);
    rank.set(`${left} ${right}`, k);
  });
  const pattern = /'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

  // The ids of one chunk with the first `limit` merges, and which of those merges acted.
  function encode(chunk, limit) {
    let ids = [...new TextEncoder().encode(chunk)];
    const acted = [];
    for (;;) {
      let best = limit;
      for (let i = 0; i + 1 < ids.length; i++) {
        best = Math.min(best, rank.get(`${ids[i]} ${ids[i + 1]}`) ?? limit);
      }
      if (best === limit) return { ids, acted };
      acted.push(best);
      const [left, right] = data.merges[best];
      const merged = [];
      for (let i = 0; i < ids.length; i++) {
        const found = ids[i] === left && ids[i + 1] === right;
        merged.push(found ? 256 + best : ids[i]);
        if (found) i++;
      }
      ids = merged;
    }
  }

  // A token as it reads: spaces made visible, bytes that are no text in hexadecimal.
  const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  function name(id) {
    try {
      const read = strict.decode(new Uint8Array(tokens[id]));
      return read.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥");
    } catch {
      return tokens[id].map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ");
    }
  }

  let acting = []; // the ranks of all merges that act on this text, in order
  function draw() {
    const limit = Number(slider.value);
    const chunks = text.value.match(pattern) ?? [];
    const ranks = chunks.flatMap((chunk) => encode(chunk, last).acted);
    acting = [...new Set(ranks)].sort((a, b) => a - b);
    const ids = chunks.flatMap((chunk) => encode(chunk, limit).ids);
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
});
