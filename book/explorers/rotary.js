// Turn a query and a key by their positions and watch their score.
//
// data: {query: [d numbers], key: [d numbers], base}. Pair i is channels 2i and 2i + 1; at position p
// it turns by p · base^(−2i/d). The second score adds sinusoids of the same angles instead.
"use strict";

explorer("rotary", (root, data) => {
  const far = 60;
  const pairs = data.query.length / 2;
  const speed = (i) => data.base ** ((-2 * i) / data.query.length);
  root.innerHTML = `
    <p class="controls sliders">
      <label>Query at <input type="range" min="0" max="${far}" value="12"> <output></output></label>
      <label>Key at <input type="range" min="0" max="${far}" value="9"> <output></output></label>
      <label><input type="checkbox"> move both together</label>
    </p>
    <div class="clocks"></div>
    <p class="reading" aria-live="polite"></p>
    <p class="note">Solid: the query. Dashed: the key. Beneath a circle: what its pair adds to the score.</p>`;
  const [queryAt, keyAt] = root.querySelectorAll("input[type=range]");
  const together = root.querySelector("input[type=checkbox]");
  const outputs = root.querySelectorAll("output");
  const clocks = root.querySelector(".clocks");
  clocks.innerHTML = Array.from(
    { length: pairs },
    (_, i) => `
      <figure>
        <svg viewBox="-50 -50 100 100" width="100%" role="img">
          <circle r="46" fill="none" stroke="var(--figure-grid)"></circle>
          <line x1="0" y1="0" stroke="var(--figure-blue)" stroke-width="4"></line>
          <line x1="0" y1="0" stroke="var(--figure-vermillion)" stroke-width="4"
            stroke-dasharray="7 4"></line>
        </svg>
        <figcaption>pair ${i}: <span></span></figcaption>
      </figure>`,
  ).join("");

  const pair = (vector, i) => [vector[2 * i], vector[2 * i + 1]];
  const dot = (u, v) => u[0] * v[0] + u[1] * v[1];
  const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(2);

  function turned([a, b], angle) {
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    return [a * cos - b * sin, a * sin + b * cos];
  }

  // The longest arrow of all touches the circle.
  const lengths = [data.query, data.key].flatMap((vector) =>
    Array.from({ length: pairs }, (_, i) => Math.hypot(...pair(vector, i))),
  );
  const scale = 46 / Math.max(...lengths);

  function draw() {
    const [m, n] = [Number(queryAt.value), Number(keyAt.value)];
    let [rotary, added] = [0, 0];
    for (let i = 0; i < pairs; i++) {
      const [q, k] = [pair(data.query, i), pair(data.key, i)];
      const [atM, atN] = [m * speed(i), n * speed(i)];
      const [one, other] = [turned(q, atM), turned(k, atN)];
      rotary += dot(one, other);
      added += dot(
        [q[0] + Math.sin(atM), q[1] + Math.cos(atM)],
        [k[0] + Math.sin(atN), k[1] + Math.cos(atN)],
      );
      const figure = clocks.children[i];
      [one, other].forEach(([x, y], which) => {
        const line = figure.querySelectorAll("line")[which];
        line.setAttribute("x2", (scale * x).toFixed(2));
        line.setAttribute("y2", (-scale * y).toFixed(2));
      });
      figure.querySelector("span").textContent = signed(dot(one, other));
      figure
        .querySelector("svg")
        .setAttribute("aria-label", `Pair ${i}: query and key add ${signed(dot(one, other))}.`);
    }
    outputs[0].textContent = m;
    outputs[1].textContent = n;
    root.querySelector(".reading").textContent =
      `Distance ${m - n}: turned, the score is ${signed(rotary)}. ` +
      `With waves added instead it would be ${signed(added)}.`;
  }

  // Two sliders, one distance: the other follows, and neither passes the end.
  let before = [Number(queryAt.value), Number(keyAt.value)];
  function follow(moved, other, which) {
    if (together.checked) {
      const wanted = before[1 - which] + Number(moved.value) - before[which];
      other.value = wanted; // the browser keeps it within the slider
      moved.value = before[which] + Number(other.value) - before[1 - which];
    }
    before = [Number(queryAt.value), Number(keyAt.value)];
    draw();
  }
  queryAt.addEventListener("input", () => follow(queryAt, keyAt, 0));
  keyAt.addEventListener("input", () => follow(keyAt, queryAt, 1));
  draw();

  return {
    bet: {
      ask: "Move both tokens on by ten places. What does the turned score do?",
      options: ["it stays", "it shrinks", "it changes its sign"],
      check(guess) {
        const score = () => root.querySelector(".reading").textContent.match(/score is (\S+)\. With .* (\S+)\./);
        const old = score();
        const step = Math.max(Number(queryAt.value), Number(keyAt.value)) + 10 > far ? -10 : 10;
        for (const slider of [queryAt, keyAt]) slider.value = Number(slider.value) + step;
        before = [Number(queryAt.value), Number(keyAt.value)];
        draw();
        const now = score();
        return {
          right: guess === 0,
          why: `Turned, it was ${old[1]} and is ${now[1]}: only the distance counts. With waves added it went ` +
            `from ${old[2]} to ${now[2]}.`,
        };
      },
    },
    table: () => {
      const turn = (vector, i, at) => turned(pair(vector, i), at * speed(i)).map((x) => x.toFixed(3)).join(", ");
      const all = Array.from({ length: pairs }, (_, i) => i);
      return {
        pair: all,
        query: all.map((i) => turn(data.query, i, Number(queryAt.value))),
        key: all.map((i) => turn(data.key, i, Number(keyAt.value))),
        adds: all.map((i) => clocks.children[i].querySelector("span").textContent),
      };
    },
  };
});
