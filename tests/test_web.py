"""The GPT that runs in the browser: the same numbers as the package's, from the same file."""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from pages import served, wait

from course.cli import main
from course.site.explorers import scripts
from course.web import export_web
from rnn2gpt.checkpoint import load_model, save_model
from rnn2gpt.data import CharTokenizer
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.lstm import CharLSTM, CharLSTMConfig
from rnn2gpt.quantization import quantize_model
from rnn2gpt.seq2seq import shift_right, source_mask
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.translation import BOS, EOS, chinese_number, english_number, load_pairs, pad
from rnn2gpt.translator import translate

pytestmark = pytest.mark.xdist_group("browser")
TEXT = "the quick thing thinks that these thirty-three thieves, 33 of them, thrive é"


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small GPT whose weights are far from zero."""
    tokenizer = BPETokenizer(train_bpe(TEXT * 3, 270))
    config = GPTConfig(
        vocab_size=270, block_size=24, n_layers=2, n_heads=3, d_model=12, bias=request.param
    )
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, "gpt", config, model.state_dict(), tokenizer, validation_nats=1.5)
    return folder


def in_browser(
    browser: Any, root: Path, folder: Path, names: tuple[str, ...], script: str, *files: Path
) -> Any:
    """What `script` returns on a page with these scripts, given the bytes of `files`."""
    sources = [(root / "book/explorers" / f"{name}.js").read_text("utf-8") for name in names]
    page = folder / "page.html"
    tags = "".join(f"<script>{source}</script>" for source in sources)
    page.write_text(f"<!doctype html><meta charset=utf-8>{tags}", "utf-8")
    browser.get(page.as_uri())
    encoded = [base64.b64encode(file.read_bytes()).decode() for file in files]
    bytes_of = "(text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer"
    return browser.execute_script(
        f"const files = [...arguments].map({bytes_of});{script}", *encoded
    )


@pytest.mark.slow
def test_the_browser_computes_what_the_package_computes(
    stored: Path, root: Path, tmp_path: Path, browser: Any
) -> None:
    file = tmp_path / "model.safetensors"
    export_web(stored, file)
    loaded = load_model(stored)
    model = quantize_model(loaded.model)
    text = "these 33 thieves é"
    ids = loaded.tokenizer.encode(text)
    found = in_browser(
        browser,
        root,
        tmp_path,
        ("weights", "bpe", "gpt"),
        f"""
        const gpt = new GPT(files[0]);
        const ids = gpt.tokenizer.encode({json.dumps(text)});
        const rows = (all) => all.map((row) => [...row]);
        const trace = [], cache = gpt.emptyCache();
        const whole = gpt.forward(ids, {{trace}});
        const pieces = [...gpt.forward(ids.slice(0, 3), {{cache}}), ...ids.slice(3).flatMap(
          (id) => gpt.forward([id], {{cache}}))];
        const ablated = gpt.forward(ids, {{ablated: new Set(["1 2"])}});
        let refused = "";
        try {{ gpt.forward(Array(25).fill(1)); }} catch (error) {{ refused = error.message; }}
        return {{ids, text: gpt.tokenizer.decode(ids), whole: rows(whole), pieces: rows(pieces),
          ablated: rows(ablated), weights: trace.map((t) => t.weights.map(rows)), refused,
          nats: gpt.info.validation_nats}};
        """,
        file,
    )
    assert found["ids"] == ids and found["text"] == text and found["nats"] == 1.5
    assert "25 tokens are longer than block_size=24" in found["refused"]
    seen: list[tuple[Any, Any]] = []
    for block in model.blocks:
        block.attention.register_forward_pre_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0]
        attention = [layer.forward(*inputs[:4])[1][0] for layer, inputs in seen]
    assert torch.allclose(torch.tensor(found["whole"]), logits, atol=1e-3)
    assert torch.allclose(torch.tensor(found["pieces"]), logits, atol=1e-3)
    with torch.no_grad():
        model.blocks[1].attention.W_o.weight.q[:, 8:12] = 0  # head 2 of 3, four channels wide
        ablated = model(torch.tensor([ids]))[0][0]
    assert torch.allclose(torch.tensor(found["ablated"]), ablated, atol=1e-3)
    assert not torch.allclose(ablated, logits, atol=1e-3)
    for shares, right in zip(found["weights"], attention, strict=True):
        assert torch.allclose(torch.tensor(shares), right, atol=1e-3)


def test_export_says_what_it_cannot_export(tmp_path: Path) -> None:
    config = CharLSTMConfig(vocab_size=3, d_model=4, n_layers=2)
    weights = CharLSTM(3, 4, 2).state_dict()
    save_model(tmp_path / "lstm", "lstm", config, weights, CharTokenizer("abc"))
    result = CliRunner().invoke(main, ["export", "--web", str(tmp_path / "lstm")])
    assert result.exit_code == 1 and "holds the model 'lstm'" in result.output
    result = CliRunner().invoke(main, ["export", "--web", str(tmp_path / "none")])
    assert result.exit_code == 1 and "holds no model" in result.output


def test_export_writes_beside_the_checkpoint(stored: Path) -> None:
    result = CliRunner().invoke(main, ["export", "--web", str(stored)])
    assert result.exit_code == 0, result.output
    assert stored.with_name(f"{stored.name}.safetensors").is_file()


@pytest.fixture()
def microscope(stored: Path, root: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a page that holds the explorer and the model of `stored`."""
    static = tmp_path / "_static"
    static.mkdir()
    files = [root / "book/_static/course.js", *scripts(root / "book", "microscope")]
    for file in files:
        shutil.copy(file, static)
    size = export_web(stored, static / "models" / "small-gpt.safetensors")
    data = {"tokens": ["to", "be"], "weights": [[1, 0], [0.25, 0.75]]}
    data |= {"layer": 1, "head": 2, "text": "these 33", "bytes": size}
    tags = "".join(f'<script src="_static/{file.name}"></script>' for file in files)
    (tmp_path / "page.html").write_text(
        "<!doctype html><meta charset=utf-8><div data-explorer=microscope>at rest</div>"
        f'<script type="application/json" id="data-microscope">{json.dumps(data)}</script>{tags}',
        "utf-8",
    )
    with served(tmp_path) as address:
        yield f"{address}/page.html"


@pytest.mark.slow
def test_the_microscope_shows_the_packages_numbers(
    stored: Path, microscope: str, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def text_of(selector: str) -> str:
        return browser.find_element("css selector", selector).text

    browser.get(microscope)
    wait(browser, "document.querySelector('.heat rect')")
    assert "“be” at place 2 looks at “be” at place 2 (75 %), “to” at place 1 (25 %)" in text_of(
        ".reading"
    )
    browser.find_element("css selector", ".load button").send_keys(Keys.ENTER)
    wait(browser, "document.querySelector('.live:not([hidden]) .steps td')")

    loaded = load_model(stored)
    model = quantize_model(loaded.model)
    ids = loaded.tokenizer.encode("these 33")
    seen: list[tuple[Any, Any]] = []
    model.blocks[1].attention.register_forward_pre_hook(lambda *call: seen.append(call))
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0][0]
        (layer, inputs), *_ = seen
        shares = layer.forward(*inputs[:4])[1][0, 2, -1]  # of the last token in head 3
    rows = browser.find_elements("css selector", ".steps tr")[1:]
    shown = [float(row.text.split()[-2]) for row in rows]
    assert shown == pytest.approx([100 * share for share in shares.tolist()], abs=0.51)
    value = text_of(".beside .bars .value")
    best = 100 * logits[-1].softmax(0).max().item()
    assert float(value.split()[0]) == pytest.approx(best, abs=0.51)

    guess = browser.find_element("css selector", ".bet input")
    for place in range(1, len(ids) + 1):  # one of the bets is right, all others are corrected
        guess.send_keys(Keys.DELETE, str(place))
        browser.find_element("css selector", ".bet button").send_keys(Keys.ENTER)
        right = place == 1 + int(shares.argmax())
        assert text_of(".bet .verdict").startswith("Right." if right else "Not so.")
        guess.clear()

    trained, changed = browser.find_elements("css selector", ".beside .bars")
    assert trained.text == changed.text
    browser.find_element("css selector", "[data-part=positions]").send_keys(Keys.SPACE)
    trained, changed = browser.find_elements("css selector", ".beside .bars")
    assert trained.text != changed.text
    browser.find_element("css selector", "[data-part=positions]").send_keys(Keys.SPACE)
    first = browser.find_element("css selector", ".choice button")
    first.send_keys(Keys.SPACE)
    assert "at place 1 looks at" in text_of(".reading")

    own = str(stored.with_name("own.safetensors"))  # the same weights, as a reader's own file
    export_web(stored, Path(own))
    browser.find_element("css selector", "input[type=file]").send_keys(own)
    told = wait(browser, "document.querySelector('.told').textContent")
    assert told.startswith("All above now shows own.safetensors.")
    ours, theirs = told.split("costs ours ")[1].split(" bits a character, own.safetensors ")
    assert ours == theirs.rstrip(".")
    browser.find_element("css selector", "[data-key=ours]").send_keys(Keys.SPACE)
    assert text_of(".told").startswith("All above now shows our model.")


# ------------------------------------------------------------------- the recurrent networks
RECURRENT = ("rnn", "lstm")
PAIRS = [f"{task}-seq2seq{tail}" for task in ("numbers", "dates") for tail in ("", "-plain")]


@pytest.fixture(scope="module")
def exported(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The course's own recurrent networks as the site serves them."""
    folder = tmp_path_factory.mktemp("recurrent")
    files = {name: folder / f"{name}.safetensors" for name in (*RECURRENT, *PAIRS)}
    for name, file in files.items():
        export_web(root / "book/_data/models" / name, file)
    return files


def test_each_recurrent_network_is_a_small_file(exported: dict[str, Path]) -> None:
    assert {name: f.stat().st_size for name, f in exported.items() if f.stat().st_size > 3e5} == {}


def read_by_torch(loaded: Any, ids: list[int], stretch: float) -> dict[str, Any]:
    """Logits, states, gates, and the gradient of the last character's loss, in double precision."""
    model = loaded.model.double()
    core = model.lstm if loaded.info["model"] == "lstm" else model.rnn
    with torch.no_grad():
        core.weight_hh_l0 *= stretch
    kept: list[torch.Tensor] = []
    hook = model.embedding.register_forward_hook(lambda *call: kept.append(call[2]))
    logits = model(torch.tensor([ids[:-1]]))[0][0]
    hook.remove()
    kept[0].retain_grad()
    loss = torch.nn.functional.cross_entropy(logits[-1:], torch.tensor(ids[-1:]))
    loss.backward()
    assert kept[0].grad is not None
    lags = kept[0].grad[0].norm(dim=1).flip(0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    found = {"logits": logits[-1], "nats": loss, "lags": lags, "norm": norm}
    states = core(model.embedding(torch.tensor([ids[:-1]])))[0][0]  # (T, H)
    found["h"] = states[-1]
    if loaded.info["model"] == "lstm":
        W, U, b, d = core.parameters()
        x = model.embedding(torch.tensor([ids[:-1]]))[0]
        before = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        i, f, g, o = (x @ W.T + b + before @ U.T + d).chunk(4, dim=1)
        found |= {"i": i[-1].sigmoid(), "f": f[-1].sigmoid()}
        found |= {"g": g[-1].tanh(), "o": o[-1].sigmoid()}
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("stretch", [1.0, 2.0])
def test_gates_and_gradients_in_the_browser_are_pytorchs(
    name: str, stretch: float, root: Path, tmp_path: Path, browser: Any, exported: dict[str, Path]
) -> None:
    text = "In care of thee,\nmy dear one."
    loaded = load_model(root / "book/_data/models" / name)
    right = read_by_torch(loaded, loaded.tokenizer.encode(text).tolist(), stretch)
    found = in_browser(
        browser,
        root,
        tmp_path,
        ("weights", "recurrent"),
        f"""
        const network = new CharNetwork(files[0]);
        const ids = network.encode({json.dumps(text)});
        const steps = network.read(ids.slice(0, -1), {stretch});
        const back = network.back(steps, ids.slice(0, -1), ids.at(-1), {stretch});
        let refused = "";
        try {{ network.encode("é"); }} catch (error) {{ refused = error.message; }}
        const {{h, i, f, g, o}} = steps.at(-1);
        const plain = (part) => part && [...part];
        return {{logits: [...network.logits(steps.at(-1))], ...back, refused,
          h: plain(h), i: plain(i), f: plain(f), g: plain(g), o: plain(o)}};
        """,
        exported[name],
    )
    assert found["refused"] == "it knows no é"
    for part, value in right.items():
        ours = torch.tensor(found[part], dtype=torch.double)
        # Gradients have many sizes: each is held to a share of its own.
        rtol, atol = (1e-3, 0) if part in ("lags", "norm") else (0, 1e-3)
        assert torch.allclose(ours, value, rtol=rtol, atol=atol), part


@pytest.mark.slow
@pytest.mark.parametrize("task", ["numbers", "dates"])
def test_translations_and_alignments_in_the_browser_are_pytorchs(
    task: str, root: Path, tmp_path: Path, browser: Any, exported: dict[str, Path]
) -> None:
    texts = [text for text, _ in load_pairs(task)["test"][:12]]
    names = [name for name in PAIRS if name.startswith(task)]
    found = in_browser(
        browser,
        root,
        tmp_path,
        ("weights", "recurrent"),
        f"""
        return files.map((file) => {{
          const network = new Translator(file);
          return {json.dumps(texts)}.map((text) => {{
            const {{source, target, weights, logits}} = network.translate(text);
            return {{source, target, weights, logits: logits.map((row) => [...row])}};
          }});
        }});
        """,
        *(exported[name] for name in names),
    )
    for name, answers in zip(names, found, strict=True):
        loaded = load_model(root / "book/_data/models" / name)
        model, tokenizer = loaded.model, loaded.tokenizer
        for text, ours in zip(texts, answers, strict=True):
            source, lengths = pad([tokenizer.source.encode(text)])
            ids = [*tokenizer.target.encode(translate(model, tokenizer, [text])[0]), EOS]
            assert ours["source"] == tokenizer.source.split(text)
            assert ours["target"] == [tokenizer.target.tokens[i] for i in ids]
            with torch.no_grad():
                memory, state = model.encode(source, lengths)
                read = shift_right(torch.tensor([ids]), BOS)
                logits, _, weights = model.decode(read, state, memory, source_mask(source, lengths))
            assert torch.allclose(torch.tensor(ours["logits"]), logits[0], atol=1e-3)
            if weights is None:
                assert ours["weights"] is None
            else:
                assert torch.allclose(torch.tensor(ours["weights"]), weights[0], atol=1e-3)


@pytest.mark.slow
def test_numbers_in_words_are_the_packages(root: Path, tmp_path: Path, browser: Any) -> None:
    chance = random.Random(0)
    numbers = [*range(131), 10**4, 10**8, 10**12 - 1, 300_060_000_000, 1_001_001]
    numbers += [chance.randrange(10 ** chance.randint(3, 12)) for _ in range(400)]
    script = f"""
        const all = {numbers}.map((n) => [englishNumber(n), chineseNumber(n)]);
        return [...all.map(([words, numerals]) => [words, numerals, numberOf(words)]),
          ["", "", numberOf("two thousand million")]];
    """
    *found, refused = in_browser(browser, root, tmp_path, ("numerals",), script)
    assert found == [[english_number(n), chinese_number(n), n] for n in numbers]
    assert refused[2] is None
