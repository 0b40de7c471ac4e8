// The stage on which every explorer plays; loaded before each of them. It keeps the explorer's state
// in the address, asks its bet, opens what it shows as a figure with its data, and leads on to the
// exercise.
//
// A script calls explorer("name", (root, data) => { ... }). `root` is a box on the page, `data` what
// the page published under the same name. What the function returns is optional:
//
//   bet    {ask, options: [texts] or number: [least, most], check(guess) → {right, why}}: the reader
//          commits to a guess, tries, and `check`, given the option's place or the number, sets what
//          the guess was about, reads the answer off the live state and explains it
//   table  () → {column: [values]}, or a list of such: the numbers of what is drawn as SVG
"use strict";

const escaped = (text) =>
  String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

function made(tag, text = "", properties = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  return element;
}

// Fill a list with bars: rows of {name, share, value}; `share` is the bar's length, from 0 to 1.
function drawBars(list, rows) {
  list.replaceChildren(
    ...rows.map(({ name, share, value }) => {
      const line = made("li");
      const bar = made("span", "", { className: "bar" });
      bar.style.width = `${100 * share}%`;
      line.append(made("span", name, { className: "name" }), bar, made("span", value, { className: "value" }));
      return line;
    }),
  );
}

const superscript = (power) =>
  [...String(power)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");

// A drawing's width in its own units: about the pixels that it gets, so that its words stay readable.
const unitsAcross = (root) => Math.min(520, Math.max(280, root.clientWidth));

// Draw anew when the box gets wider or narrower.
function onWidth(root, draw) {
  let wide = root.clientWidth;
  new ResizeObserver(() => {
    if (root.clientWidth === wide) return;
    wide = root.clientWidth;
    draw();
  }).observe(root);
}

const quietMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---------------------------------------------------------------------- the state, in the address

const CONTROLS = "input:not([type=file]), select, textarea";

// The name of a control in the address: its own, or its label's first words.
function nameOf(control) {
  const label = control.closest("label");
  const words = [...(label?.childNodes ?? [])].find((n) => n.nodeType === 3 && n.data.trim());
  const text = control.dataset.key ?? words?.data ?? control.className ?? "";
  return text.trim().toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "value";
}

// Everything that can be set in `play`: {name: control}; the same name twice becomes name-2.
function controlsOf(play) {
  const found = {};
  for (const control of play.querySelectorAll(CONTROLS)) {
    if (control.closest("[data-unshared]")) continue;
    const name = nameOf(control);
    let unique = name;
    for (let k = 2; unique in found; k++) unique = `${name}-${k}`;
    found[unique] = control;
  }
  return found;
}

const valueOf = (control) =>
  control.type === "checkbox" ? String(Number(control.checked)) : control.value;

function setControl(control, value) {
  if (control.type === "checkbox") control.checked = value !== "0" && value !== false;
  else control.value = value;
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, { bubbles: true }));
}

const pressedIn = (play) =>
  [...play.querySelectorAll("[aria-pressed]")].findIndex((b) => b.getAttribute("aria-pressed") === "true");

function currentState(play) {
  const state = Object.fromEntries(
    Object.entries(controlsOf(play)).map(([name, control]) => [name, valueOf(control)]),
  );
  const pressed = pressedIn(play);
  return pressed < 0 ? state : { ...state, pick: String(pressed) };
}

function shareState(play, name) {
  const start = currentState(play);
  let waiting = 0;
  const write = () => {
    const address = new URL(location.href);
    for (const key of [...address.searchParams.keys()]) {
      if (key.startsWith(`${name}.`)) address.searchParams.delete(key);
    }
    for (const [key, value] of Object.entries(currentState(play))) {
      if (value !== (start[key] ?? null)) address.searchParams.set(`${name}.${key}`, value);
    }
    try {
      history.replaceState(null, "", address);
    } catch {} // a page opened from a folder has no address to share
  };
  const restore = () => {
    const wanted = new URLSearchParams(location.search);
    for (const key of Object.keys(controlsOf(play))) {
      const value = wanted.get(`${name}.${key}`);
      const control = controlsOf(play)[key]; // an earlier one may have made it anew
      if (value !== null && control && valueOf(control) !== value) setControl(control, value);
    }
    const pick = wanted.get(`${name}.pick`);
    if (pick !== null) play.querySelectorAll("[aria-pressed]")[Number(pick)]?.click();
  };
  restore();
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(write, 150);
  };
  for (const kind of ["input", "change", "click"]) play.addEventListener(kind, soon);
  play.addEventListener("ready", restore); // what came later, such as a loaded model's controls
  play.addEventListener("moved", soon); // by a bet
}

// ------------------------------------------------------------------------------------- the bet

function askBet(root, name, { ask, options, number, check }) {
  const form = made("form", "", { className: "bet" });
  const label = made("label");
  const guess = options ? made("select") : made("input", "", { type: "number", required: true });
  if (options) {
    guess.add(new Option("choose …", ""));
    guess.required = true;
    options.forEach((text, i) => guess.add(new Option(text, i)));
  } else {
    [guess.min, guess.max] = number;
    guess.step = "any";
  }
  label.append(made("span", ask), " ", guess);
  const verdict = made("output", "", { className: "verdict" });
  form.append(
    made("p", "Your bet", { className: "label" }),
    label, " ",
    made("button", "Check", { type: "submit" }),
    verdict,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const { right, why } = check(Number(guess.value));
    form.classList.toggle("right", right);
    verdict.textContent = `${right ? "Right." : "Not so."} ${why}`;
    root.querySelector(".play").dispatchEvent(new Event("moved"));
    if (typeof keep === "function") keep(`bet ${name}`, right ? "right" : "tried");
  });
  root.append(form);
}

// ------------------------------------------------------------------ what it shows, as a figure

const WIDE = 420; // of the figure, in its own units
const LINE = 16;

// Colors of the page's palette by their computed value, so that a figure follows light and dark.
function paletteOf(root) {
  const probe = root.appendChild(made("span"));
  const names = ["blue", "vermillion", "green", "purple", "orange", "sky", "grid"].map((c) => `--figure-${c}`);
  const palette = new Map();
  for (const name of [...names, "--course-quiet", "--course-accent", "--course-rule"]) {
    probe.style.color = `var(${name})`;
    palette.set(getComputedStyle(probe).color, `var(${name})`);
  }
  probe.style.color = "";
  palette.set(getComputedStyle(probe).color, "currentColor");
  probe.remove();
  return palette;
}

// A drawing of the page as it stands: its computed colors written into it.
function standalone(svg, palette) {
  const copy = svg.cloneNode(true);
  const [old, now] = [svg, copy].map((s) => [s, ...s.querySelectorAll("*")]);
  old.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const property of ["fill", "stroke"]) {
      const color = style[property];
      if (now[i].tagName !== "svg" && color) now[i].setAttribute(property, palette.get(color) ?? color);
    }
    for (const property of ["stroke-width", "fill-opacity", "opacity", "font-size", "text-anchor"]) {
      const value = style.getPropertyValue(property);
      const usual = { "stroke-width": "1px", "fill-opacity": "1", opacity: "1", "text-anchor": "start" };
      if (value && value !== usual[property] && (property !== "font-size" || element.tagName === "text")) {
        now[i].setAttribute(property, value.replace(/px$/, ""));
      }
    }
    for (const attribute of ["class", "style", "tabindex"]) now[i].removeAttribute(attribute);
  });
  return copy;
}

const shown = (element) => element.getClientRects().length > 0;
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const text = (x, y, content, more = "") =>
  `<text x="${x}" y="${y}" font-size="11" fill="currentColor"${more}>${escaped(content)}</text>`;

const alphaOf = (element) => {
  const found = getComputedStyle(element).backgroundColor.match(/\/ ([\d.]+)\)|rgba\(.*, ([\d.]+)\)/);
  return found ? Number(found[1] ?? found[2]) : 0;
};

// {svg, tables, caption} of what `play` shows now.
function pictureOf(play, title, extra) {
  const palette = paletteOf(play);
  const parts = [];
  const tables = [];
  let y = 6;
  let heading = "";

  function bars(list) {
    const rows = [...list.children].map((line) => {
      const [name, value] = [".name", ".value"].map((s) => line.querySelector(s)?.textContent.trim() ?? "");
      const lengths = [...line.querySelectorAll(".bar")].map((bar) => ({
        width: parseFloat(bar.style.width) || 0,
        color: palette.get(getComputedStyle(bar).backgroundColor) ?? "var(--figure-blue)",
      }));
      return { name, value, lengths };
    });
    for (const { name, value, lengths } of rows) {
      parts.push(text(112, y + 11, cut(name, 18), ' text-anchor="end"'));
      lengths.forEach(({ width, color }, k) => {
        const height = 10 / lengths.length;
        parts.push(
          `<rect x="118" y="${(y + 3 + k * height).toFixed(1)}" width="${Math.max(0.5, 2.3 * width).toFixed(1)}" ` +
            `height="${height.toFixed(1)}" fill="${color}"/>`,
        );
      });
      parts.push(text(WIDE, y + 11, value, ' text-anchor="end"'));
      y += LINE;
    }
    tables.push({ caption: heading, head: ["name", "value"], rows: rows.map((r) => [r.name, r.value]) });
  }

  // What the colors of the next drawing mean.
  function legend(keys) {
    let x = 0;
    for (const key of keys) {
      const color = getComputedStyle(key, "::before").backgroundColor;
      const name = key.textContent.trim();
      parts.push(`<rect x="${x}" y="${y + 4}" width="12" height="8" rx="2" fill="${palette.get(color) ?? color}"/>`);
      parts.push(text(x + 16, y + 12, name));
      x += 30 + 6.2 * name.length;
    }
    y += LINE + 2;
  }

  // Places on a line: each row a name, a dot, a value.
  function dots(box) {
    const rows = [...box.children].map((row) => {
      const [name, value] = [".name", ".value"].map((part) => row.querySelector(part).textContent.trim());
      const dot = row.querySelector(".dot");
      const color = palette.get(getComputedStyle(dot).backgroundColor) ?? "var(--figure-blue)";
      return { name, value, color, left: parseFloat(dot.style.left) };
    });
    for (const { name, value, color, left } of rows) {
      parts.push(text(0, y + 11, cut(name, 22)), text(WIDE, y + 11, value, ' text-anchor="end"'));
      parts.push(`<line x1="140" x2="380" y1="${y + 8}" y2="${y + 8}" stroke="var(--figure-grid)"/>`);
      parts.push(`<circle cx="${(140 + 2.4 * left).toFixed(1)}" cy="${y + 8}" r="4.5" fill="${color}"/>`);
      y += LINE;
    }
    y += 4;
  }

  // A written text, line by line.
  function prose(box) {
    const lines = box.textContent.split("\n").flatMap((line) => line.match(/.{1,60}(\s|$)|.{60}/g) ?? [""]);
    for (const line of lines) {
      parts.push(text(8, y + 11, line.trimEnd(), ' font-family="monospace" xml:space="preserve"'));
      y += LINE - 1;
    }
    y += 4;
    tables.push({ caption: heading, head: ["text"], rows: [[box.textContent]] });
  }

  // Words, tokens or characters in a row, shaded or in boxes, broken at the figure's edge.
  function flow(box) {
    const items = [...box.children].filter((item) => shown(item) || item.textContent.trim() === "");
    const boxed = box.matches(".tokens, .choice, .answer");
    const single = items.every((item) => [...item.textContent].length === 1);
    let x = 0;
    for (const item of items) {
      const written = item.textContent.replaceAll("\n", "⏎");
      const width = 6.7 * [...written].length + (boxed ? 8 : single ? 0 : 5);
      if (x > 0 && x + width > WIDE) [x, y] = [0, y + LINE + (boxed ? 6 : 2)];
      const marked = item.matches(".now, [aria-pressed=true]");
      const edge = boxed ? ` stroke="var(--figure-${marked ? "vermillion" : "blue"})"` : "";
      const shade = boxed ? 0 : alphaOf(item);
      if (boxed || shade > 0.004) {
        parts.push(
          `<rect x="${x.toFixed(1)}" y="${y}" width="${(width - (boxed ? 4 : 0)).toFixed(1)}" height="15" rx="2" ` +
            `fill="var(--figure-blue)" fill-opacity="${shade.toFixed(2)}"${edge}/>`,
        );
      }
      parts.push(text((x + (boxed ? 2 : 0)).toFixed(1), y + 11.5, written, ' font-family="monospace" xml:space="preserve"'));
      x += width;
    }
    y += LINE + 6;
    tables.push({
      caption: heading,
      head: ["place", "text", ...(boxed ? [] : ["shade"])],
      rows: items.map((item, i) => [
        i + 1, item.textContent, ...(boxed ? [] : [item.title || alphaOf(item).toFixed(2)]),
      ]),
    });
  }

  function drawing(svg) {
    const { width, height } = svg.getBoundingClientRect();
    const wide = Math.min(WIDE, width);
    const tall = (height * wide) / width;
    const copy = standalone(svg, palette);
    for (const [name, value] of Object.entries({ x: 0, y: y + 2, width: wide, height: tall })) {
      copy.setAttribute(name, Number(value).toFixed(1));
    }
    copy.removeAttribute("role");
    parts.push(copy.outerHTML);
    y += tall + 6;
  }

  for (const element of play.querySelectorAll(".label, .bars, .rungs, .shaded, .tokens, .answer, svg, table")) {
    if (!shown(element) || element.closest("[data-unshared]")) continue;
    if (element.matches(".label")) {
      const keys = [...element.querySelectorAll(".key")];
      heading = keys.reduce((words, key) => words.replace(key.textContent, ""), element.textContent);
      heading = heading.replace(/\s+/g, " ").trim();
      parts.push(text(0, y + 12, cut(heading, 70), ' font-weight="600"'));
      y += LINE + 2;
      if (keys.length) legend(keys);
    } else if (element.matches(".bars")) bars(element);
    else if (element.matches(".rungs")) dots(element);
    else if (element.matches(".shaded") && !element.children.length) prose(element);
    else if (element.matches("svg")) drawing(element);
    else if (element.matches("table")) {
      const lines = [...element.rows].map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
      tables.push({ caption: heading, head: lines[0] ?? [], rows: lines.slice(1) });
    } else flow(element);
  }
  for (const table of [extra ?? []].flat()) {
    const columns = Object.values(table);
    tables.push({ caption: "", head: Object.keys(table), rows: columns[0].map((_, i) => columns.map((c) => c[i])) });
  }
  const readings = [...play.querySelectorAll(".reading")].filter(shown).map((p) => p.textContent.trim());
  const caption = readings.filter(Boolean).join(" ");
  const settings = Object.entries(controlsOf(play))
    .filter(([, control]) => shown(control))
    .map(([name, control]) => {
      const value = control.tagName === "SELECT" ? control.selectedOptions[0]?.textContent : valueOf(control);
      const said = control.closest("label")?.querySelector("output")?.textContent || value;
      return `${name}: ${cut(String(said ?? ""), 60)}`;
    });
  const aloud = escaped(caption || title);
  const svg =
    `<svg class="course-svg" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDE} ${Math.ceil(y + 6)}" ` +
    `font-family="sans-serif" role="img" aria-label="${aloud}">${parts.join("")}</svg>`;
  return { svg, tables: tables.filter((t) => t.rows.length), caption: [caption, settings.join(" · ")].filter(Boolean).join(" — ") };
}

function tableHtml({ caption, head, rows }) {
  const heads = head.map((h) => `<th scope="col">${escaped(h)}</th>`).join("");
  const body = rows.map((row) => `<tr>${row.map((c) => `<td>${escaped(c)}</td>`).join("")}</tr>`).join("");
  const name = caption ? `<caption>${escaped(caption)}</caption>` : "";
  return `<table>${name}<thead><tr>${heads}</tr></thead><tbody>${body}</tbody></table>`;
}

// The figure as HTML, as it also stands on the page for readers without scripts.
function figureHtml(play, title, extra) {
  const { svg, tables, caption } = pictureOf(play, title, extra);
  return (
    `<figure class="course-figure"><div class="figure-title">${escaped(title)}</div>${svg}` +
    `<figcaption>${escaped(caption)}</figcaption>` +
    `<details class="figure-data"><summary>Data</summary><div>${tables.map(tableHtml).join("")}</div></details></figure>`
  );
}

function save(name, kind, content) {
  const link = made("a", "", { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function openFigure(opener, play, name, title, extra) {
  const dialog = made("dialog", "", { className: "figure-dialog", "aria-label": `${title}, as a figure` });
  dialog.innerHTML = figureHtml(play, title, extra);
  dialog.querySelector("details").open = true;
  dialog.querySelector("details > div").tabIndex = 0;
  const resolved = () => {
    const style = getComputedStyle(play);
    const svg = dialog.querySelector("svg").outerHTML;
    return svg
      .replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable).trim() || "gray")
      .replaceAll("currentColor", style.color);
  };
  const csv = () => {
    const quote = (cell) => `"${cell.textContent.replaceAll('"', '""')}"`;
    return [...dialog.querySelectorAll("tr")].map((row) => [...row.cells].map(quote).join(",")).join("\n");
  };
  const buttons = made("p", "", { className: "controls" });
  for (const [label, act] of [
    ["Save the picture (SVG)", () => save(`${name}.svg`, "image/svg+xml", resolved())],
    ["Save the data (CSV)", () => save(`${name}.csv`, "text/csv", csv())],
    ["Close", () => dialog.close()],
  ]) {
    const button = buttons.appendChild(made("button", label, { type: "button" }));
    button.addEventListener("click", act);
  }
  dialog.append(buttons);
  dialog.addEventListener("keydown", ({ key }) => key === "Escape" && dialog.close());
  dialog.addEventListener("close", () => {
    dialog.remove();
    opener.focus();
  });
  play.after(dialog);
  dialog.showModal();
}

// --------------------------------------------------------------------------------- the beginning

function foot(root, play, name, title, played) {
  const row = made("p", "", { className: "explorer-foot" });
  const figure = row.appendChild(made("button", "Open as figure", { type: "button", className: "as-figure" }));
  figure.addEventListener("click", () => openFigure(figure, play, name, title, played.table?.()));
  const link = row.appendChild(made("button", "Copy a link to this state", { type: "button", className: "copy-link" }));
  link.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      link.textContent = "Copied";
    } catch {
      link.textContent = "The link is the page's address";
    }
    setTimeout(() => (link.textContent = "Copy a link to this state"), 2000);
  });
  const { exercise, exercisePage } = root.dataset;
  if (exercisePage || document.getElementById("exercise-notebook")) {
    const href = `${exercisePage ? `${exercisePage}.html` : ""}#exercise-notebook`;
    const lead = row.appendChild(made("a", exercise ? "You write " : "Write it: the exercise", { href }));
    if (exercise) lead.append(made("code", exercise), " in the exercise");
  }
  root.append(row);
}

function explorer(name, draw) {
  document.addEventListener("DOMContentLoaded", () => {
    const published = document.getElementById(`data-${name}`);
    const data = published ? JSON.parse(published.textContent) : null;
    for (const root of document.querySelectorAll(`[data-explorer="${name}"]`)) {
      const play = made("div", "", { className: "play" });
      root.replaceChildren(play);
      const played = draw(play, data) ?? {};
      shareState(play, name);
      if (played.bet) askBet(root, name, played.bet);
      const title = root.getAttribute("aria-label") ?? name;
      root.asFigure = () => figureHtml(play, title, played.table?.()); // for those who keep it
      foot(root, play, name, title, played);
    }
  });
}
