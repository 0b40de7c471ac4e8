// Drag through a training run: loss, what the model writes, one attention head, and the places of
// sixty words, as they were at each kept step.
//
// data: training_snapshots.json of `python -m course.snapshots`
"use strict";

explorer("checkpoints", (root, data) => {
  const all = data.snapshots;
  const T = data.sentence.length;
  const name = (token) => token.replaceAll(" ", "␣").replaceAll("\n", "⏎");
  // The mean weight on the token just before, at each snapshot.
  const onPrevious = all.map(({ attention }) =>
    attention.slice(1).reduce((sum, row, i) => sum + row[i], 0) / (T - 1));
  root.innerHTML = `
    <p class="controls">
      <label class="wide">Step <input type="range" min="0" max="${all.length - 1}" data-key="step"> <output></output></label>
      <button type="button" class="run">Play</button>
    </p>
    <p class="reading" aria-live="polite"></p>
    <p class="label">Loss, in nats a token <span class="key">on what it reads</span>
      <span class="key before">on held-out plays</span></p>
    <div class="chart"></div>
    <p class="label">It goes on after “${name(data.prompt)}”</p>
    <p class="shaded written"></p>
    <div class="beside">
      <div><p class="label">Head ${data.head.head + 1} of layer ${data.head.layer + 1}: who looks at whom</p>
        <div class="heat"></div>
        <p class="note">A row for each token that looks, a column for each that is looked at.</p></div>
      <div><p class="label">Sixty words on the two main directions of the last embeddings</p>
        <div class="map"></div>
        <p class="controls"><label>Follow <select></select></label></p></div>
    </div>`;
  const $ = (selector) => root.querySelector(selector);
  const [slider, select, run] = ["input", "select", ".run"].map($);
  data.words.forEach((word, i) => select.add(new Option(word.trim(), i)));
  const steps = all.map(({ step }) => step.toLocaleString("en-US"));

  // --- the loss: steps on a logarithmic scale, step 0 at the left edge

  const [tall, left, foot] = [170, 26, 148];
  let wide = unitsAcross(root);
  const lastStep = Math.log(1 + all.at(-1).step);
  const x = (i) => left + ((wide - left - 10) * Math.log(1 + all[i].step)) / lastStep;
  const losses = all.flatMap((s) => [s.train_nats, s.validation_nats]);
  const [low, high] = [Math.floor(Math.min(...losses)), Math.ceil(Math.max(...losses))];
  const y = (nats) => 8 + ((foot - 8) * (high - nats)) / (high - low);
  const path = (key) => all.map((s, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(s[key]).toFixed(1)}`).join("");

  function drawChart(at) {
    wide = unitsAcross(root);
    const grid = Array.from({ length: high - low + 1 }, (_, k) => low + k)
      .map((nats) => `<line x1="${left}" x2="${wide - 4}" y1="${y(nats)}" y2="${y(nats)}" stroke="var(--figure-grid)"/>
        <text x="${left - 6}" y="${y(nats) + 4}" font-size="12" text-anchor="end" fill="currentColor">${nats}</text>`);
    const marks = all.flatMap((_, i) => ((i % 3 === 0 && i < all.length - 2) || i === all.length - 1) ? [
      `<text x="${x(i)}" y="${tall - 6}" font-size="12" text-anchor="middle" fill="currentColor">${steps[i]}</text>`] : []);
    const curve = (key, color) => `<path d="${path(key)}" fill="none" stroke="${color}" stroke-width="2"/>
      <circle cx="${x(at)}" cy="${y(all[at][key])}" r="4.5" fill="${color}"/>`;
    $(".chart").innerHTML = `<svg viewBox="0 0 ${wide} ${tall}" role="img"
      aria-label="Loss by step; at step ${steps[at]} ${all[at].train_nats.toFixed(2)} and ${all[at].validation_nats.toFixed(2)}">
      ${grid.join("")}${marks.join("")}
      <line x1="${x(at)}" x2="${x(at)}" y1="8" y2="${foot}" stroke="currentColor" stroke-dasharray="3 3"/>
      ${curve("train_nats", "var(--figure-blue)")}${curve("validation_nats", "var(--figure-orange)")}</svg>`;
  }

  // --- the head, and the map of words

  function drawHead(at) {
    const squares = all[at].attention.flatMap((row, t) => row.map((share, s) =>
      `<rect x="${s}" y="${t}" width="0.94" height="0.94" fill-opacity="${share}"/>`));
    $(".heat").innerHTML = `<svg viewBox="-0.1 -0.1 ${T + 0.2} ${T + 0.2}" role="img"
      aria-label="${(100 * onPrevious[at]).toFixed(0)} % of the weight lies just below the diagonal">
      <rect x="-0.1" y="-0.1" width="${T + 0.2}" height="${T + 0.2}" fill-opacity="0.06"/>${squares.join("")}</svg>`;
  }

  const places = all.flatMap((s) => s.places);
  const reach = Math.max(...places.flat().map(Math.abs)) * 1.1;
  const [mapX, mapY] = [(p) => 150 + (140 * p[0]) / reach, (p) => 150 - (140 * p[1]) / reach];

  function drawMap(at) {
    const followed = Number(select.value);
    const words = all[at].places.map((p, i) => (i === followed ? "" :
      `<circle cx="${mapX(p).toFixed(1)}" cy="${mapY(p).toFixed(1)}" r="2.2" fill="var(--figure-blue)"/>`));
    const spread = [...all[at].places.keys()].sort((i, j) =>
      Math.hypot(...all[at].places[j]) - Math.hypot(...all[at].places[i]));
    const taken = [all[at].places[followed]]; // no word is written over another
    const apart = (p, q) => Math.abs(mapY(p) - mapY(q)) > 10 || Math.abs(mapX(p) - mapX(q)) > 34;
    const labels = spread.slice(0, 16).filter((i) => i !== followed).map((i) => {
      const p = all[at].places[i];
      if (!taken.every((q) => apart(p, q))) return "";
      taken.push(p);
      return `<text x="${(mapX(p) + 4).toFixed(1)}" y="${(mapY(p) + 3).toFixed(1)}" font-size="10"
        fill="currentColor">${escaped(data.words[i].trim())}</text>`;
    });
    const way = all.slice(0, at + 1).map((s, i) =>
      `${i ? "L" : "M"}${mapX(s.places[followed]).toFixed(1)} ${mapY(s.places[followed]).toFixed(1)}`);
    const p = all[at].places[followed];
    $(".map").innerHTML = `<svg viewBox="0 0 300 300" role="img"
      aria-label="Places of ${data.words.length} words; “${data.words[followed].trim()}” is marked">
      <path d="M5 5H295V295H5ZM5 150H295M150 5V295" fill="none" stroke="var(--figure-grid)"/>
      ${words.join("")}${labels.join("")}
      <path d="${way.join("")}" fill="none" stroke="var(--figure-vermillion)" stroke-width="1.5"/>
      <circle cx="${mapX(p)}" cy="${mapY(p)}" r="4" fill="var(--figure-vermillion)"/>
      <text x="${mapX(p) + 6}" y="${mapY(p) + 4}" font-size="12" font-weight="600" fill="var(--figure-vermillion)">
        ${escaped(data.words[followed].trim())}</text></svg>`;
  }

  function draw() {
    const at = Number(slider.value);
    const s = all[at];
    $("output").textContent = `${steps[at]} of ${steps.at(-1)}`;
    $(".reading").textContent =
      `After ${s.tokens.toLocaleString("en-US")} tokens: ${s.train_nats.toFixed(2)} nats a token on what it reads, ` +
      `${s.validation_nats.toFixed(2)} on held-out plays (${s.bits_per_character.toFixed(2)} bits a character). ` +
      `The head gives ${(100 * onPrevious[at]).toFixed(0)} % of its weight to the token before.`;
    $(".written").textContent = s.sample;
    drawChart(at);
    drawHead(at);
    drawMap(at);
  }

  // Playing moves the page by itself: whoever asked for less motion steps instead.
  let playing = 0;
  function stop() {
    clearInterval(playing);
    playing = 0;
    run.textContent = quietMotion() ? "Next step" : "Play";
  }
  function forth() {
    slider.value = Number(slider.value) === all.length - 1 ? 0 : Number(slider.value) + 1;
    draw();
    if (Number(slider.value) === all.length - 1) stop();
  }
  run.addEventListener("click", () => {
    if (playing) return stop();
    forth();
    if (quietMotion() || Number(slider.value) === all.length - 1) return;
    playing = setInterval(forth, 900);
    run.textContent = "Stop";
  });
  slider.addEventListener("input", () => {
    stop();
    draw();
  });
  select.addEventListener("input", draw);
  onWidth(root, draw);
  const most = Math.max(...onPrevious);
  slider.value = all.findIndex((_, i) => onPrevious[i] > most / 2); // where the head is just there
  stop();
  draw();

  return {
    bet: {
      ask: "At which kept step has the loss on held-out plays come half of its whole way down?",
      options: steps,
      check(guess) {
        const [first, final] = [all[0].validation_nats, all.at(-1).validation_nats];
        const half = all.findIndex((s) => s.validation_nats <= (first + final) / 2);
        slider.value = half;
        stop();
        draw();
        return {
          right: guess === half,
          why: `At step ${steps[half]} of ${steps.at(-1)} it is ${all[half].validation_nats.toFixed(2)}, from ` +
            `${first.toFixed(2)} on the way to ${final.toFixed(2)}. Read what it writes there.`,
        };
      },
    },
    table: () => ({
      step: steps,
      "nats on what it reads": all.map((s) => s.train_nats),
      "nats held out": all.map((s) => s.validation_nats),
      "bits a character": all.map((s) => s.bits_per_character),
      "weight on the token before": onPrevious.map((share) => share.toFixed(3)),
    }),
  };
});
