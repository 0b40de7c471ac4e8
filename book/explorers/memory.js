// The memory lab: the gradient of one loss by lag, and gates and state at each character, of the
// trained RNN and LSTM; clipping on and off. Chapters 2 and 3 open it with bets of their own.
//
// data: of book/memory.py: {text, bytes: of both files, networks: [{name, units, nats, lags: gradient at the input k
//   characters back, norm: of the gradient of all weights, unit, rows: [[name, value a character]]}]}
// Until the networks are loaded the page's own reading is shown.
"use strict";

const MEMORY_COLORS = ["var(--figure-vermillion)", "var(--figure-blue)"];
const CLIP = 1;
const LEAST = -12; // power of ten at which the scale ends: no weight moves by less

const powerOf = (value) => {
  if (value === 0) return "0";
  if (value >= 0.01 && value < 1000) return String(Number(value.toPrecision(2)));
  const exponent = Math.floor(Math.log10(value));
  return `${(value / 10 ** exponent).toFixed(1)}\u00a0·\u00a010${superscript(exponent)}`;
};
// "1/2,900" or "81 times"
const partOf = (share) => {
  const round = (value) => Number(value.toPrecision(2)).toLocaleString("en-US");
  if (share > 1e9 || share < 1e-9) return `${powerOf(share)} times`;
  return share < 1 ? `1/${round(1 / share)} of` : `${round(share)} times`;
};
const mean = (values) => values.reduce((all, value) => all + value, 0) / values.length;
const visible = (character) => ({ " ": "␣", "\n": "⏎" })[character] ?? character;

function memoryLab(root, data, { start, bet }) {
  root.innerHTML = `
    <p class="controls"><label>Network <select data-key="network"></select></label></p>
    <p class="load"><button type="button">Load both networks (${(data.bytes / 1e6).toFixed(1)} MB)</button>
      to write a text of your own and look at any character and unit.</p>
    <div class="live" hidden>
      <p><label>Text <textarea rows="2" maxlength="120" spellcheck="false" data-key="text"></textarea></label></p>
      <p class="controls">
        <label class="wide">Read up to <input type="range" min="0" data-key="place"> <output></output></label>
        <label>Unit <input type="number" min="0" data-key="unit"></label>
        <label class="wide">Recurrent weights × <input type="range" min="-2" max="2" step="0.25" value="0"
          data-key="stretch"> <output></output></label>
      </p>
    </div>
    <p class="controls">
      <label class="wide">Lag <input type="range" min="0" data-key="lag"> <output></output></label>
      <label><input type="checkbox" data-key="clipping"> clip the gradient at c = ${CLIP}</label>
    </p>
    <p class="shaded passage"></p>
    <p class="label">Gradient of the loss at the input, by lag; gates and state beneath</p>
    <div class="chart lag"></div>
    <p class="reading" aria-live="polite"></p>`;
  const $ = (selector) => root.querySelector(selector);
  const key = (name) => $(`[data-key="${name}"]`);
  const [select, text, place, unit, stretch, lag, clipping] =
    ["network", "text", "place", "unit", "stretch", "lag", "clipping"].map(key);
  let networks = null; // until they are loaded
  let seen = data.networks; // of each network, what `data` has of it
  let read = [...data.text]; // the characters; the one after the last of `lags` is predicted
  let refused = "";
  const edges = [50, 42]; // of the chart, left and right, in pixels

  data.networks.forEach(({ name }, n) => select.add(new Option(name, n)));
  select.value = start;
  text.value = data.text.trimEnd();
  [place.max, place.value] = [read.length - 2, read.length - 2];
  [lag.max, lag.value] = [read.length - 2, 20];
  unit.value = seen[start].unit;

  const chosen = () => Number(select.value);
  const last = () => seen[0].lags.length - 1;
  const factor = ({ norm }) => (clipping.checked ? Math.min(1, CLIP / norm) : 1);
  const drawn = (network) => network.lags.map((size) => size * factor(network));
  const row = (name) => seen[chosen()].rows.find(([row]) => row === name)?.[1];

  // --- the networks: both read the text up to the chosen character

  function rowsOf(network, steps, n) {
    const of = (part) => Array.from(steps, (step) => step[part][n]);
    if (network.gated) {
      return [["mean f", steps.map(({ f }) => mean(f))], ...["f", "i", "g", "o", "c", "h"].map((part) => [part, of(part)])];
    }
    const slopes = steps.map(({ h }) => h.map((value) => 1 - value ** 2));
    return [["mean 1 − h²", slopes.map(mean)], ["1 − h²", slopes.map((slope) => slope[n])], ["h", of("h")]];
  }

  function compute() {
    const written = [...text.value, "\n"]; // the line's end is predicted too
    try {
      networks[0].encode(written.join(""));
    } catch (error) {
      refused = `This text cannot be read: ${error.message}.`;
      return;
    }
    refused = written.length < 2 ? "Write a character at least." : "";
    if (refused) return;
    const atEnd = place.value === place.max;
    place.max = written.length - 2;
    if (atEnd) place.value = place.max;
    read = written.slice(0, Number(place.value) + 2);
    unit.max = networks[chosen()].size - 1;
    unit.value = Math.min(Math.max(0, Math.round(Number(unit.value))), Number(unit.max));
    const times = 2 ** Number(stretch.value);
    seen = networks.map((network, n) => {
      const ids = network.encode(read.join(""));
      const steps = network.read(ids.slice(0, -1), times);
      const at = n === chosen() ? Number(unit.value) : data.networks[n].unit;
      return {
        ...data.networks[n], ...network.back(steps, ids.slice(0, -1), ids.at(-1), times),
        unit: at, rows: rowsOf(network, steps, at),
      };
    });
    lag.max = last();
  }

  // The text, darker where the gradient is longer: from the longest down to a millionth of it.
  function drawPassage() {
    const sizes = seen[chosen()].lags;
    const most = Math.max(...sizes);
    $(".passage").replaceChildren(...read.map((character, s) => {
      const k = last() - s;
      const span = made("span", character);
      if (k < 0) span.className = "unread"; // what is to be predicted
      else {
        const strength = Math.min(1, Math.max(0, 1 + Math.log10(sizes[k] / most) / 6));
        span.style.background = `color-mix(in srgb, ${MEMORY_COLORS[chosen()]} ${(50 * strength).toFixed(0)}%, transparent)`;
        span.classList.toggle("now", k === Number(lag.value));
        span.addEventListener("click", () => lookAt(k));
      }
      return span;
    }));
  }

  function lookAt(k) {
    lag.value = k;
    draw();
  }

  // --- the picture: place in the text from left to right, so lags from right to left

  function drawChart() {
    const wide = Math.max(280, $(".chart").clientWidth || 640);
    const [[left, right], top, deep] = [edges, 14, 150];
    const step = (wide - left - right) / (last() + 1);
    const x = (k) => left + (last() - k + 0.5) * step; // of lag k
    const curves = seen.map((network) => drawn(network).map(Math.log10));
    const all = [...curves.flat(), ...seen.flatMap(({ lags }) => lags.map(Math.log10))].filter(Number.isFinite);
    const low = Math.max(LEAST, Math.floor(Math.min(...all)));
    const high = Math.max(low + 2, Math.ceil(Math.max(...all)));
    const y = (power) => top + (deep * (high - power)) / (high - low);
    const k = Number(lag.value);
    const parts = [];
    const write = (tx, ty, words, more = "") =>
      parts.push(`<text x="${tx.toFixed(1)}" y="${ty.toFixed(1)}" font-size="11" fill="currentColor" ${more}>${escaped(words)}</text>`);
    const every = Math.ceil((high - low) / 5);
    for (let power = high; power >= low; power -= every) {
      parts.push(`<line x1="${left}" x2="${wide - right}" y1="${y(power)}" y2="${y(power)}" stroke="var(--figure-grid)"/>`);
      write(left - 6, y(power) + 4, power === 0 ? "1" : `10${superscript(power)}`, 'text-anchor="end"');
    }
    const line = (powers, color, more) => {
      const path = powers.map((power, at) => [power, at]).filter(([power]) => power >= low)
        .map(([power, at], n) => `${n ? "L" : "M"}${x(at).toFixed(1)} ${y(power).toFixed(1)}`).join("");
      parts.push(`<path d="${path}" fill="none" stroke="${color}" ${more}/>`);
    };
    const others = seen.map((_, n) => n).sort((a, b) => (a === chosen()) - (b === chosen()));
    for (const n of others) {
      if (clipping.checked) line(seen[n].lags.map(Math.log10), MEMORY_COLORS[n], 'stroke-dasharray="2 4" stroke-width="1.5"');
      line(curves[n], MEMORY_COLORS[n], `stroke-width="${n === chosen() ? 2.4 : 1.4}"`);
    }
    parts.push(`<line x1="${x(k)}" x2="${x(k)}" y1="${top - 6}" y2="${top + deep + 6}" stroke="currentColor" stroke-dasharray="3 3"/>`);
    for (const n of others) {
      if (curves[n][k] >= low) parts.push(`<circle cx="${x(k)}" cy="${y(curves[n][k])}" r="4" fill="${MEMORY_COLORS[n]}"/>`);
      const end = curves[n].findLastIndex((power) => power >= low);
      const higher = curves[n][end] >= curves[1 - n][Math.min(end, last())];
      const short = x(end) - left > 50; // it leaves the scale: its name fits beside its end
      const [tx, ty] = short ? [x(end) - 6, y(curves[n][end]) + 2] : [left + 4, y(curves[n][end]) + (higher ? -10 : 20)];
      parts.push(`<text x="${tx.toFixed(1)}" y="${ty.toFixed(1)}" font-size="12" font-weight="600" fill="${MEMORY_COLORS[n]}"
        text-anchor="${short ? "end" : "start"}">${seen[n].name}</text>`);
    }
    let bottom = top + deep + 18;
    const between = [1, 2, 5, 10, 20, 40].find((b) => b * step >= 34) ?? 40;
    for (let at = 0; at <= last(); at += between) write(x(at), bottom, at === 0 ? "lag 0" : String(at), 'text-anchor="middle"');
    bottom = drawStrips(parts, write, { x, step, left, right: wide - right, k, top: bottom + 8 });
    const spoken = seen.map((network) => `${network.name} ${powerOf(drawn(network)[k])}`).join(", ");
    $(".chart").innerHTML = `<svg viewBox="0 0 ${wide} ${bottom}" role="img"
      aria-label="Gradient by lag on a logarithmic scale; at lag ${k}: ${spoken}. Beneath it gates and state.">${parts.join("")}</svg>`;
  }

  // The characters, and beneath them a strip for each row; the values at the lag stand at the right.
  function drawStrips(parts, write, { x, step, left, right, k, top }) {
    const [letters, size] = step >= 6 ? [seen[0].lags.map((_, at) => at), Math.min(11, 1.65 * step)] : [[k], 11];
    for (const at of letters) {
      const character = read[last() - at];
      write(x(at), top + 8, character === " " && at !== k ? "" : visible(character),
        `text-anchor="middle" font-family="monospace" style="font-family: var(--course-mono); font-size: ${size.toFixed(1)}px" ${at === k ? 'font-weight="700"' : 'opacity="0.75"'}`);
    }
    let y = top + 16;
    const { rows, units, unit: shownUnit } = seen[chosen()];
    rows.forEach(([name, values], r) => {
      if (r < 2) {
        write(left, y + 10, r ? `unit ${shownUnit}: blue above 0, red below` : `average of all ${units} units`, 'opacity="0.75"');
        y += 16;
      }
      const most = Math.max(1, ...values.map(Math.abs));
      write(left - 6, y + 11, name.replace("mean ", ""), 'text-anchor="end"');
      parts.push(`<rect x="${left}" y="${y}" width="${(right - left).toFixed(1)}" height="14" fill="var(--figure-grid)" fill-opacity="0.25"/>`);
      values.forEach((value, t) => {
        const color = value < 0 ? "var(--figure-vermillion)" : "var(--figure-blue)";
        parts.push(`<rect x="${(x(last() - t) - step / 2).toFixed(2)}" y="${y}" width="${(step * 1.02).toFixed(2)}" height="14"
          fill="${color}" fill-opacity="${(Math.abs(value) / most).toFixed(3)}"/>`);
      });
      const now = values[last() - k];
      write(right + 4, y + 11, (Math.abs(now) < 9.995 ? now.toFixed(2) : now.toFixed(1)).replace("-", "−"));
      y += 17;
    });
    parts.push(`<rect x="${(x(k) - step / 2 - 1).toFixed(1)}" y="${top + 16}" width="${(step + 2).toFixed(1)}" height="${y - top - 17}"
      fill="none" stroke="currentColor" stroke-width="1.2"/>`);
    return y;
  }

  // --- in words

  function tell() {
    const k = Number(lag.value);
    const network = seen[chosen()];
    const left = network.lags[k] / network.lags[0];
    const times = factor(network);
    const bits = (network.nats / Math.LN2).toFixed(1);
    $(".reading").textContent = refused ||
      `After “${visible(read.at(-2))}” the ${network.name} pays ${bits} bits for “${visible(read.at(-1))}”. ` +
      `Of that loss's gradient, “${visible(read[last() - k])}” ${k} back gets ${powerOf(drawn(network)[k])}, ` +
      `${partOf(left)} what the last character gets. All weights' gradients together are ` +
      `${powerOf(network.norm)} long` +
      (clipping.checked
        ? `: clipping multiplies every one by ${powerOf(times)}, and the line keeps its shape.`
        : ".");
    const [upTo, stretched] = root.querySelectorAll(".live output");
    upTo.textContent = `“${visible(read.at(-2))}”`;
    stretched.textContent = Number((2 ** Number(stretch.value)).toFixed(2));
    key("lag").nextElementSibling.textContent = `${k}: “${visible(read[last() - k])}”`;
  }

  function draw() {
    drawPassage();
    drawChart();
    tell();
  }

  function think() {
    if (networks) compute();
    draw();
  }

  const both = () => Promise.all(
    ["rnn", "lstm"].map((name) => loadModel(CharNetwork, asset(`models/${name}.safetensors`))));
  loadOnRequest(root, "The networks", both, (loaded) => {
    networks = loaded;
    root.dispatchEvent(new Event("ready")); // an address may bring a state of its own
    think();
    text.focus();
  });
  select.addEventListener("input", () => {
    unit.value = data.networks[chosen()].unit;
    think();
  });
  for (const control of [text, place, stretch]) control.addEventListener("input", think);
  unit.addEventListener("change", think);
  for (const control of [lag, clipping]) control.addEventListener("input", draw);
  for (const kind of ["pointerdown", "pointermove"]) {
    $(".chart").addEventListener(kind, ({ buttons, clientX }) => {
      if (!buttons) return;
      const { left, width } = $(".chart svg").getBoundingClientRect();
      const share = (clientX - left - edges[0]) / (width - edges[0] - edges[1]);
      if (share >= 0 && share < 1) lookAt(last() - Math.floor(share * (last() + 1)));
    });
  }
  draw();
  onWidth($(".chart"), drawChart);

  return {
    bet: bet({
      choose(values) {
        for (const [name, value] of Object.entries(values)) setControl(key(name), value);
      },
      row, last, lag: () => Number(lag.value), now: () => ({ ...seen[chosen()], factor: factor(seen[chosen()]), drawn: drawn(seen[chosen()]) }),
    }),
    table: () => ({
      lag: seen[0].lags.map((_, k) => k),
      character: seen[0].lags.map((_, k) => visible(read[last() - k])),
      ...Object.fromEntries(seen.map((network) => [
        `gradient, ${network.name}`, drawn(network).map(powerOf)])),
      ...Object.fromEntries(seen[chosen()].rows.map(([name, values]) => [
        name, values.map((value) => value.toPrecision(3)).reverse()])),
    }),
  };
}
