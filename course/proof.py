"""What is claimed of the site, checked in a browser: `survey` looks at every page and explorer.

`rnn2gpt proof` builds the site, keeps each explorer's opening figure for readers without scripts
in `book/explorers/figures/`, surveys, and writes `book/_data/proof.json`, which `book/proof.md`
shows. The tests call the same functions on the same pages and hold the stored result against them.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from course.browser import Site, go, open_browser, served, view, wait
from course.build import build_site
from course.site.explorers import kept_figure
from course.weight import page_weight
from rnn2gpt.data import fetch_packages

MODES = ((1280, "light"), (1280, "dark"), (360, "dark"), (360, "light"))
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
STORED = Path("book", "_data", "proof.json")
MOST_SHIFT = 0.1  # of a page while it loads: less is what the browsers' makers call good
PARITY_TEXT = "To be, or not to be: that is the"

# --------------------------------------------------------------------------- accessibility

# Contrast takes axe nine tenths of its time, for it looks at every word, and most words of a page
# are colored alike. So it gets one element of each kind: every combination of text color, size,
# weight, and the backgrounds and opacities of all that it stands in.
FIND = """
const [tags, done] = [arguments[0], arguments[arguments.length - 1]];
const paints = new WeakMap();
function paint(element) {
  if (!element) return "";
  if (!paints.has(element)) {
    const s = getComputedStyle(element);
    const own = [s.backgroundColor, s.backgroundImage, s.opacity, s.mixBlendMode,
      s.position === "static" ? "" : s.position, s.filter].join(" ");
    const plain = "rgba(0, 0, 0, 0) none 1 normal  none";
    paints.set(element, paint(element.parentElement) + (own === plain ? "" : "|" + own));
  }
  return paints.get(element);
}
const kinds = new Map();
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement;
  if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
  const s = getComputedStyle(element);
  const kind = [s.color, s.fill, s.fontSize, s.fontWeight, s.textShadow, paint(element)].join();
  if (!kinds.has(kind)) kinds.set(kind, element);
}
const fields = [...document.querySelectorAll("input, select, textarea")];
const one = [...new Set([...kinds.values(), ...fields.filter((e) => e.checkVisibility())])];
const say = ({violations}) => violations.flatMap(
  ({id, nodes}) => nodes.map((node) => `${id}: ${node.target.join(" ")}`));
const usual = {resultTypes: ["violations"], preload: false};  // it would fetch style sheets anew
(async () => {
  const most = await axe.run(document, {...usual, runOnly: {type: "tag", values: tags},
    rules: {"color-contrast": {enabled: false}}});
  if (!one.length) return say(most);
  const contrast = await axe.run({include: one}, {...usual, runOnly: ["color-contrast"]});
  return [...say(most), ...say(contrast)];
})().then(done, (error) => done([String(error)]));
"""


def load_axe(root: Path) -> str:
    """axe-core's script, from the pinned package that carries it."""
    package = fetch_packages(root / "tests" / "axe-requirements.txt", keep="axe.min.js")
    return (package / "axe_playwright_python" / "axe.min.js").read_text("utf-8")


def violations(browser: Any, axe: str) -> list[str]:
    """What axe-core's rules find on the page as it stands: `rule: element`."""
    browser.execute_script(f"if (!window.axe) {{{axe}}}")
    found: list[str] = browser.execute_async_script(FIND, TAGS)
    return found


# ------------------------------------------------------------------------------- one page

TIMES = """
const done = arguments[arguments.length - 1];
const read = (type) => new Promise((found) => {
  const entries = [];
  try {
    new PerformanceObserver((list) => entries.push(...list.getEntries()))
      .observe({type, buffered: true});
  } catch { return found([]); }
  setTimeout(() => found(entries), 60);
});
Promise.all([read("largest-contentful-paint"), read("layout-shift")]).then(([paints, shifts]) =>
  done({lcp: paints.length ? paints.at(-1).startTime : null,
    cls: shifts.filter((s) => !s.hadRecentInput).reduce((sum, s) => sum + s.value, 0)}));
"""


def requests(browser: Any) -> set[str]:
    """Every address that was asked for since the last call."""
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return {
        event["params"]["request"]["url"]
        for event in sent
        if event["method"] == "Network.requestWillBeSent"
    }


def elsewhere(urls: set[str], address: str) -> list[str]:
    """Those of `urls` that lead away from the server at `address`."""
    own = (address, "data:", "blob:", "chrome:")
    return sorted(url for url in urls if not url.startswith(own))


def errors(browser: Any) -> list[str]:
    """The errors in the browser's console since the last call."""
    return [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]


def look_at(
    browser: Any, site: Site, name: str, axe: str, modes: tuple[tuple[int, str], ...] = MODES
) -> dict[str, Any]:
    """Open one page once; in each of `modes`: accessibility, width; then console and hosts."""
    requests(browser)
    errors(browser)
    view(browser, *modes[0])
    go(browser, f"{site.address}/{name}")
    times = browser.execute_async_script(TIMES)
    found: dict[str, Any] = {"violations": {}, "too_wide": {}}
    for width, scheme in modes:
        view(browser, width, scheme)
        wait(browser, f"document.documentElement.dataset.theme === '{scheme}'")
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        mode = f"{width} {scheme}"
        found["violations"][mode] = violations(browser, axe)
        found["too_wide"][mode] = max(0, wide - width)
    names = browser.execute_script(
        "return [...document.querySelectorAll('[data-explorer]')].map((e) => e.dataset.explorer)"
    )
    asked = requests(browser)
    return found | {
        "explorers": names,
        "errors": errors(browser),
        "requests": len(asked),
        "elsewhere": elsewhere(asked, site.address),
        "bytes": page_weight(site.html / name),
        "lcp_ms": times["lcp"] and round(times["lcp"]),
        "cls": round(times["cls"], 4),
    }


# --------------------------------------------------------------------------- one explorer

# A control by its place, for what it shows may be drawn anew at every key.
PLACE = """
const root = arguments[0];
const place = (e) => e === root ? "" : place(e.parentElement) + "/" + e.tagName
  + [...e.parentElement.children].filter((other) => other.tagName === e.tagName).indexOf(e);
root.reached ??= new Set();
"""
# What the keyboard is on: its kind, and whether it has been there.
FOCUSED = """
const e = document.activeElement;
if (!root.contains(e) || e === root) return null;
const again = root.reached.has(place(e));
root.reached.add(place(e));
const kind = e.closest("dialog") ? "dialog" : e.matches(".as-figure") ? "figure"
  : e.matches(".load button") ? "load" : e.matches("summary") ? "summary" : e.tagName === "INPUT"
  ? e.type : e.tagName.toLowerCase();
return {kind, again, bet: Boolean(e.closest(".bet"))};
"""
LEFT_OUT = """
return [...root.querySelectorAll("input, select, textarea, button, summary, a[href]")]
  .filter((e) => e.checkVisibility() && !e.disabled && !root.reached.has(place(e)))
  .map((e) => e.outerHTML.slice(0, 80));
"""
INP = """
const done = arguments[arguments.length - 1];
let most = 0;
new PerformanceObserver((list) => list.getEntries().forEach((e) => {
  if (e.interactionId) most = Math.max(most, e.duration);
})).observe({type: "event", buffered: true, durationThreshold: 16});
setTimeout(() => done(most), 80);
"""


def play(browser: Any, name: str) -> dict[str, Any]:
    """Complete the explorer on the open page by the keyboard alone, as it comes, from Tab to Tab.

    Every control is reached and used; its bet is filled in and checked; its figure is opened and
    closed again. Says what could not be reached, and the verdict on the bet.
    """
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    act: dict[str, Callable[[], Any]] = {
        "range": lambda: press(Keys.ARROW_LEFT, Keys.ARROW_RIGHT),
        "number": lambda: press("3"),
        # Used and put back, but for a bet: else controls come and go behind the keyboard.
        "text": lambda: press("a", Keys.BACKSPACE),
        "textarea": lambda: press("a", Keys.BACKSPACE),
        "checkbox": lambda: press(Keys.SPACE, Keys.SPACE),
        "select": lambda: press(Keys.ARROW_DOWN, *() if on["bet"] else (Keys.ARROW_UP,)),
        "button": lambda: press(Keys.ENTER),
    }

    def press(*keys: str) -> None:
        ActionChains(browser).send_keys(*keys).perform()

    root = browser.find_element("css selector", f'[data-explorer="{name}"]')
    browser.execute_script(
        "const e = arguments[0]; e.tabIndex = -1; e.focus(); e.scrollIntoView()", root
    )
    figure = False
    used = 0
    moved = False  # the script itself has put the focus on what it loaded
    for _ in range(150):
        if not moved:
            press(Keys.TAB)
        moved = False
        on = browser.execute_script(PLACE + FOCUSED, root)
        if on is None:
            break
        used += not on["again"]
        if on["again"]:
            continue
        if on["kind"] == "load":
            press(Keys.ENTER)
            wait(
                browser,
                f"document.querySelector('[data-explorer=\"{name}\"] .live:not([hidden])')",
                60,
            )
            moved = True
        elif on["kind"] == "summary":
            opened = "return document.activeElement.parentElement.open"
            if not browser.execute_script(opened):
                press(Keys.ENTER)
        elif on["kind"] == "figure":
            press(Keys.ENTER)
            figure = browser.execute_script(
                "const d = document.querySelector('dialog[open]');"
                "return Boolean(d && d.querySelector('svg [d], svg rect, svg circle') &&"
                " d.querySelector('td'))"
            )
            press(Keys.ESCAPE)
        elif on["kind"] in act:
            act[on["kind"]]()
    verdict = browser.execute_script(
        "return arguments[0].querySelector('.bet .verdict')?.textContent ?? ''", root
    )
    return {
        "reached": used,
        "left_out": browser.execute_script(PLACE + LEFT_OUT, root),
        "verdict": verdict,
        "figure": figure,
        "exercise": browser.execute_script(
            "const a = arguments[0].querySelector('.explorer-foot a, .play a[href]');"
            "return a?.getAttribute('href') ?? null",
            root,
        ),
        "inp_ms": browser.execute_async_script(INP),
    }


def complete(played: dict[str, Any]) -> bool:
    """Whether the keyboard alone did all that an explorer asks for."""
    return bool(played["verdict"] and played["figure"] and not played["left_out"])


def opening_figure(browser: Any, name: str) -> str:
    """The explorer's opening state as a figure with its data, in HTML."""
    found: str = browser.execute_script(
        f"return document.querySelector('[data-explorer=\"{name}\"]').asFigure()"
    )
    return found


# ------------------------------------------------------------------- the numbers themselves


def parity(browser: Any, site: Site, root: Path) -> dict[str, float]:
    """How far the browser's numbers are from PyTorch's, for the site's model and one text.

    Both read the same eight-bit weights. The largest difference of any number: `logits` of all
    positions, with the `cache`, each head's `attention`, and the logit `lens` of the last position.
    """
    from rnn2gpt.checkpoint import load_model
    from rnn2gpt.quantization import quantize_model

    loaded = load_model(root / "book" / "_data" / "models" / "small-gpt")
    ids = loaded.tokenizer.encode(PARITY_TEXT)
    script = f"""
    const done = arguments[arguments.length - 1];
    loadModel(GPT, asset("models/small-gpt.safetensors")).then((gpt) => {{
      const ids = gpt.tokenizer.encode({json.dumps(PARITY_TEXT)});
      const rows = (all) => all.map((row) => [...row]);
      const [trace, cache] = [[], gpt.emptyCache()];
      const whole = gpt.forward(ids, {{trace}});
      const pieces = ids.flatMap((id) => gpt.forward([id], {{cache}}));
      const lens = gpt.lens(trace, ids.length - 1);
      done({{ids, logits: rows(whole), cache: rows(pieces), lens: rows(lens),
        attention: trace.map((t) => t.weights.map(rows))}});
    }}, (error) => done({{error: error.message}}));
    """
    go(browser, f"{site.address}/11_generation.html")
    found = browser.execute_async_script(script)
    if found.get("error") or found["ids"] != ids:
        raise AssertionError(f"the browser did not read the text as PyTorch does: {found}")
    model: Any = quantize_model(loaded.model)
    seen: list[tuple[Any, Any]] = []
    streams: list[Any] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: streams.append(inputs[0][0, -1]))
        block.attention.register_forward_pre_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0]  # (T, V)
        attention = [layer.forward(*inputs[:4])[1][0] for layer, inputs in seen]
        lens = [model.head(model.norm(x)) for x in streams[: len(model.blocks)]]

    def apart(ours: Any, theirs: Any) -> float:
        return float((torch.tensor(ours) - theirs).abs().max())

    return {
        "logits": apart(found["logits"], logits),
        "cache": apart(found["cache"], logits),
        "attention": apart(found["attention"], torch.stack(attention)),
        "lens": apart(found["lens"], torch.stack(lens)),
    }


# ------------------------------------------------------------------------------ all of it


def survey(browser: Any, site: Site, root: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Every page in four modes, every explorer by keyboard, the model against PyTorch."""
    axe = load_axe(root)
    pages: dict[str, Any] = {}
    explorers: dict[str, Any] = {}
    for name in site.pages:
        tell(name)
        pages[name] = look_at(browser, site, name, axe)
        for explorer in pages[name]["explorers"]:
            explorers[explorer] = {"page": name} | play(browser, explorer)
    version = browser.capabilities["browserVersion"]
    rules = browser.execute_script(
        f"if (!window.axe) {{{axe}}}; return axe.getRules({TAGS}).length"
    )
    models = {
        path.name: path.stat().st_size
        for path in sorted((site.html / "_static" / "models").glob("*.safetensors"))
    }
    return {
        "command": "rnn2gpt proof",
        "date": datetime.date.today().isoformat(),
        "browser": f"Chromium {version}",
        "axe": {"version": browser.execute_script("return axe.version"), "rules": rules},
        "modes": [f"{width} {scheme}" for width, scheme in MODES],
        "pages": pages,
        "explorers": explorers,
        "parity": parity(browser, site, root),
        "models": models,
    }


def keep_figures(browser: Any, site: Site, root: Path) -> bool:
    """Keep the opening figure of every explorer; True when any of them is new or another."""
    changed = False
    for name in site.pages:
        html = (site.html / name).read_text("utf-8")
        if not (names := re.findall(r'data-explorer="(\w+)"', html)):
            continue
        view(browser, 1280)
        go(browser, f"{site.address}/{name}")
        for explorer in names:
            path = kept_figure(root / "book", explorer)
            figure = opening_figure(browser, explorer) + "\n"
            if not path.is_file() or path.read_text("utf-8") != figure:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(figure, "utf-8")
                changed = True
    return changed


def prove(root: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Build, look, store: `book/_data/proof.json` and the figures in `book/explorers/figures/`."""
    html = Path(build_site(root).path)
    with open_browser() as browser, served(html) as address:
        if keep_figures(browser, Site(html, address), root):
            build_site(root)
        if not (root / STORED).is_file():  # its page is among those that are looked at
            (root / STORED).write_text("{}", "utf-8")
        result = survey(browser, Site(html, address), root, tell)
    (root / STORED).write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    build_site(root)
    return result


def faults(result: dict[str, Any]) -> list[str]:
    """What a stored survey says is wrong, in words; empty when all holds."""
    found = []
    for name, page in result["pages"].items():
        for mode, broken in page["violations"].items():
            found += [f"{name} at {mode}: {line}" for line in broken]
        found += [
            f"{name} at {mode} is {px} px too wide" for mode, px in page["too_wide"].items() if px
        ]
        found += [f"{name}: {line}" for line in (*page["errors"], *page["elsewhere"])]
        if page["cls"] > MOST_SHIFT:
            found.append(f"{name} moves while it loads: {page['cls']}")
    for name, played in result["explorers"].items():
        if not complete(played):
            found.append(f"{name}: not completed by keyboard: {played}")
    found += [f"{what} is {d:.1e} from PyTorch" for what, d in result["parity"].items() if d > 1e-3]
    return found
