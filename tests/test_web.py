"""The GPT that runs in the browser: the same numbers as the package's, from the same file."""

from __future__ import annotations

import base64
import json
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
from rnn2gpt.tokenizer import BPETokenizer, train_bpe

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


def in_browser(browser: Any, root: Path, folder: Path, file: Path, script: str) -> Any:
    """What `script` returns, given the GPT of `file` as `gpt`."""
    sources = [(root / "book/explorers" / name).read_text("utf-8") for name in ("bpe.js", "gpt.js")]
    page = folder / "gpt.html"
    tags = "".join(f"<script>{source}</script>" for source in sources)
    page.write_text(f"<!doctype html><meta charset=utf-8>{tags}", "utf-8")
    browser.get(page.as_uri())
    encoded = base64.b64encode(file.read_bytes()).decode()
    start = (
        "const gpt = new GPT(Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0)).buffer);"
    )
    return browser.execute_script(f"{start}\n{script}", encoded)


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
        file,
        f"""
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
    config = CharLSTMConfig(vocab_size=3, d_model=4)
    weights = CharLSTM(3, 4).state_dict()
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
