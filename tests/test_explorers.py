"""The explorers: each draws the numbers it was given, grades its bet, and works by keyboard."""

from __future__ import annotations

import importlib.util
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from bs4 import BeautifulSoup
from pages import served, wait

from course.site.explorers import named, scripts
from course.web import export_web
from rnn2gpt.checkpoint import load_model, save_model
from rnn2gpt.generation import filter_logits
from rnn2gpt.gpt import GPT, GPTConfig, count_parameters, flops_per_token
from rnn2gpt.quantization import quantize_model
from rnn2gpt.tokenizer import BPETokenizer, train_bpe
from rnn2gpt.translation import english_number
from rnn2gpt.translator import alignment, translate

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


def explore(browser: Any, root: Path, folder: Path, name: str, data: object) -> None:
    """Open a page that holds nothing but the explorer `name` and its data."""
    files = [root / "book/_static/course.js", *scripts(root / "book", name)]
    tags = "".join(f"<script>{file.read_text('utf-8')}</script>" for file in files)
    page = folder / f"{name}.html"
    page.write_text(
        f"<!doctype html><meta charset=utf-8><div data-explorer={name}>at rest</div>"
        f'<script type="application/json" id="data-{name}">{json.dumps(data)}</script>{tags}',
        "utf-8",
    )
    browser.get(page.as_uri())
    wait(browser, "document.readyState === 'complete'")


def found(browser: Any, selector: str) -> list[Any]:
    """What an explorer draws itself, without its bet and what stands beneath."""
    parts = [f".play {part}" for part in selector.split(", ")]
    return browser.find_elements("css selector", ", ".join(parts))


def texts(browser: Any, selector: str) -> list[str]:
    return [e.text for e in found(browser, selector)]


def bet(browser: Any, guess: str | int) -> str:
    """Bet by keyboard, on the option's text or a number, and return the verdict."""
    from selenium.webdriver.common.keys import Keys

    field = browser.find_element("css selector", ".bet label :is(select, input)")
    field.send_keys(guess) if isinstance(guess, str) else field.send_keys(Keys.DELETE, str(guess))
    browser.find_element("css selector", ".bet button").send_keys(Keys.ENTER)
    return browser.find_element("css selector", ".bet .verdict").text


def test_explorer_of_counts_bets_and_writes(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    tables = [{"": ["e ", [600, 400]]}, {"o": ["u", [1000]], "u": ["o", [1000]]}]
    explore(browser, root, tmp_path, "next_character", {"tables": tables})
    assert texts(browser, ".bars .name") == ["u"]
    assert texts(browser, ".bars .value") == ["100.0 %"]
    text, order = found(browser, "input")
    found(browser, "button")[0].click()
    assert text.get_attribute("value").endswith("thou")
    assert texts(browser, ".bars .name") == ["o"]
    order.send_keys(Keys.ARROW_LEFT)  # n = 1: no context
    assert texts(browser, ".bars .name") == ["e", "space"]
    order.send_keys(Keys.ARROW_RIGHT)
    text.send_keys("z")  # never counted: falls back to no context and says so
    assert texts(browser, ".bars .name") == ["e", "space"]
    assert "not counted" in texts(browser, ".reading")[0]


def test_explorer_of_tokens_cuts_as_the_package_does(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    merges = train_bpe("low low lower lowest slow " * 3 + "we were here " * 2, 256 + 20)
    tokenizer = BPETokenizer(merges)
    data = {"merges": tokenizer.to_json()["merges"], "text": "low"}
    explore(browser, root, tmp_path, "tokens", data)
    text = found(browser, "textarea")[0]

    def shown(written: str) -> list[str]:
        text.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, written)
        return [e.get_attribute("title") for e in found(browser, ".tokens *")]

    for written in ("low", "lowest of the lower, we'll  slow 123!", "é中", "were\nlower"):
        assert shown(written) == [f"id {i}" for i in tokenizer.encode(written)], written
    assert shown("") == []
    shown("lowé")
    slider = found(browser, "input[type=range]")[0]
    slider.send_keys(Keys.HOME)  # no merge: bytes, those of é in hexadecimal
    assert texts(browser, ".tokens *") == ["l", "o", "w", "C3", "A9"]
    back, forth = found(browser, "button")
    assert back.get_attribute("disabled")
    forth.send_keys(Keys.ENTER)  # the first merge that acts on this text
    first = next(left + right for left, right in merges if left + right in (b"ow", b"lo"))
    assert first.decode() in texts(browser, ".tokens *")
    assert "4 characters, 5 bytes, 4 tokens" in texts(browser, ".reading")[0]
    back.send_keys(Keys.ENTER)
    assert len(texts(browser, ".tokens *")) == 5


def test_explorer_of_temperature_is_softmax(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"prompt": "x", "characters": ["a", "b"], "logits": [0.0, 1.0986123]}  # ln 3
    explore(browser, root, tmp_path, "temperature", data)
    assert texts(browser, ".bars .name") == ["b", "a"]
    assert texts(browser, ".bars .value") == ["75.0 %", "25.0 %"]
    assert "0.81 bits" in texts(browser, ".reading")[0]
    found(browser, "input")[0].send_keys(Keys.HOME)  # temperature 1/4
    assert texts(browser, ".bars .value") == ["98.8 %", "1.2 %"]  # 81 to 1


def lab(root: Path, folder: Path, name: str, data: object) -> Path:
    """A folder to serve: the explorer on `page.html`, and the course's networks that it loads."""
    static = folder / "_static"
    static.mkdir()
    files = [root / "book/_static/course.js", *scripts(root / "book", name)]
    for file in files:
        shutil.copy(file, static)
    for model in named(files[-1], "model"):
        export_web(root / "book/_data/models" / model, static / "models" / f"{model}.safetensors")
    tags = "".join(f'<script src="_static/{file.name}"></script>' for file in files)
    (folder / "page.html").write_text(
        f"<!doctype html><meta charset=utf-8><div data-explorer={name}></div>"
        f'<script type="application/json" id="data-{name}">{json.dumps(data)}</script>{tags}',
        "utf-8",
    )
    return folder


def load_networks(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{address}/page.html")
    found(browser, ".load button")[0].send_keys(Keys.ENTER)
    wait(browser, "document.querySelector('.live:not([hidden])')")


def write(browser: Any, text: str) -> None:
    """Put `text` where the explorer's text stands, by keyboard."""
    from selenium.webdriver.common.keys import Keys

    field = found(browser, "textarea")[0]
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE, text)


NUMBER = {
    "task": "numbers",
    "source": ["ten", "thousand"],
    "target": ["一", "万", "<eos>"],
    "weights": [[0.98, 0.02], [0.25, 0.75], [0.5, 0.5]],
    "plain": "一百",
    "truth": "一万",
}
DATE = {"task": "dates", "source": ["7", "."], "target": ["7", "<eos>"], "truth": "7"}
DATE |= {"weights": [[1.0, 0.0], [0.5, 0.5]], "plain": "7"}
LENGTHS = {
    "numbers": {"unit": "words", "trained": 16, "bins": [[2, 4, 80, 100, 90], [5, 9, 40, 99, 50]]},
    "dates": {"unit": "characters", "trained": None, "bins": [[8, 20, 30, 100, 12]]},
}
ALIGNED = {"items": [NUMBER, DATE], "lengths": LENGTHS, "bytes": 1}


def test_explorer_of_alignment_says_where_a_token_looks(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    explore(browser, root, tmp_path, "alignment", ALIGNED)
    reading = "“thousand” at place 2 (75 %), “ten” at place 1 (25 %)"
    assert reading in texts(browser, ".reading")[0]  # the jump is what one sees first
    pressed = "button[aria-pressed=true]"
    assert texts(browser, pressed) == ["万"]
    found(browser, ".answer button")[0].send_keys(Keys.SPACE)
    assert texts(browser, pressed) == ["一"]
    assert texts(browser, ".reading")[0].endswith("it looks at “ten” at place 1 (98 %).")
    opacities = [float(c.get_attribute("fill-opacity")) for c in found(browser, "[data-row='0']")]
    assert opacities == pytest.approx([0.05 + 0.95 * 0.98, 0.05 + 0.95 * 0.02], abs=1e-3)
    assert "Of 80 tested with 2 to 4, 100 % were right" in texts(browser, ".study")[0]
    assert bet(browser, "yes").startswith("Not so. With attention 一万, without 一百: they part at")
    assert texts(browser, ".compared") == ["With attention the answer is right, without it wrong."]
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".answer button") == ["7", "end"]
    assert "to write “7” it looks at “7”" in texts(browser, ".reading")[0]
    assert texts(browser, ".study") == ["No test had 2 characters."]


def test_alignment_reads_any_number_or_date(root: Path, tmp_path: Path, browser: Any) -> None:
    looking, plain = (
        load_model(root / "book/_data/models" / f"numbers-seq2seq{tail}") for tail in ("", "-plain")
    )
    with served(lab(root, tmp_path, "alignment", ALIGNED)) as address:
        load_networks(browser, address)
        for written, words in (("66,405,090", english_number(66_405_090)), ("Two-hundred", "")):
            write(browser, written)
            words = words or "two hundred"
            source, target, weights = alignment(looking.model, looking.tokenizer, words)
            assert texts(browser, ".source")[0] == " ".join(source)
            assert texts(browser, ".answer button") == [*target[:-1], "end"]
            cells = [float(c.get_attribute("fill-opacity")) for c in found(browser, "[data-row]")]
            shown = [(cell - 0.05) / 0.95 for cell in cells]
            assert shown == pytest.approx(weights.flatten().tolist(), abs=2e-3)
            other = translate(plain.model, plain.tokenizer, [words])[0]
            same = other == "".join(target[:-1])
            verdict = bet(browser, "yes" if same else "no")
            assert verdict.startswith("Right.") and other in verdict
        write(browser, "12. Juli 1969")
        assert texts(browser, ".answer button") == [*"1969-07-12", "end"]
        assert found(browser, "select")[0].get_attribute("value") == "own"
        write(browser, "the 4th ☃")
        assert "cannot read this: it knows no “☃”" in texts(browser, ".reading")[0]


SPOKEN_OF = "In care of thee,\nmy dear one.\n"


@pytest.fixture(scope="module")
def reading(root: Path) -> Any:
    """What the book's page hands to the memory lab, made by PyTorch."""
    spec = importlib.util.spec_from_file_location("memory", root / "book" / "memory.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODELS = root / "book" / "_data" / "models"
    return module.opening(SPOKEN_OF)


def test_memory_shows_the_same_before_and_after_its_networks_are_loaded(
    root: Path, tmp_path: Path, browser: Any, reading: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    with served(lab(root, tmp_path, "lstm_memory", reading)) as address:
        browser.get(f"{address}/page.html")
        table = "return document.querySelector('[data-explorer]').asFigure()"
        opening = browser.execute_script(table)
        assert "average of all 128 units" in opening
        load_networks(browser, address)
        loaded = browser.execute_script(table)
        numbers = [
            [cell.text for cell in BeautifulSoup(figure, "html.parser").find_all("td")]
            for figure in (opening, loaded)
        ]
        assert len(numbers[0]) > 100
        for ours, theirs in zip(*numbers, strict=True):  # text, shade, powers of ten, gates
            if ours != theirs:  # the third digit may have been rounded another way
                assert float(ours) == pytest.approx(float(theirs), rel=0.01)

        lag = found(browser, "[data-key=lag]")[0]
        lag.send_keys(Keys.HOME)
        f = dict(reading["networks"][1]["rows"])["f"]
        gates = 1.0
        for step, gate in enumerate(reversed(f[1:]), start=1):  # one lag after another
            lag.send_keys(Keys.ARROW_RIGHT)
            gates *= gate
            if step in (3, len(f) - 1):
                assert bet(browser, round(100 * gates)).startswith("Right.")
                browser.find_element("css selector", ".bet input").clear()
                wrong = (round(100 * gates) + 50) % 100
                assert bet(browser, wrong).startswith("Not so.")
                browser.find_element("css selector", ".bet input").clear()
        write(browser, "O é")
        assert texts(browser, ".reading") == ["This text cannot be read: it knows no é."]
        write(browser, "O ho")
        assert lag.get_attribute("max") == "3"
        found(browser, "[data-key=unit]")[0].send_keys(Keys.CONTROL, "a", Keys.NULL, "5", Keys.TAB)
        assert "unit 5:" in found(browser, ".chart")[0].text


def test_networks_that_do_not_load_leave_a_button_to_try_again(
    root: Path, tmp_path: Path, browser: Any, reading: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    folder = lab(root, tmp_path, "lstm_memory", reading)
    network = folder / "_static" / "models" / "lstm.safetensors"
    network.rename(network.with_suffix(".away"))
    with served(folder) as address:
        browser.get(f"{address}/page.html")
        button = found(browser, ".load button")[0]
        button.send_keys(Keys.ENTER)
        wait(browser, "document.querySelector('.reading').textContent.includes('did not load')")
        assert "python -m http.server" in texts(browser, ".reading")[0] and button.is_enabled()
        network.with_suffix(".away").rename(network)
        button.send_keys(Keys.ENTER)
        wait(browser, "document.querySelector('.live:not([hidden])')")


def test_memory_clips_all_lags_alike_and_shows_an_explosion(
    root: Path, tmp_path: Path, browser: Any, reading: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    with served(lab(root, tmp_path, "rnn_memory", reading)) as address:
        browser.get(f"{address}/page.html")
        norm = reading["networks"][0]["norm"]
        assert norm > 1
        assert bet(browser, "it stays").startswith("Right.")
        assert found(browser, "[data-key=clipping]")[0].is_selected()  # the bet has switched it on
        factor = float(texts(browser, ".reading")[0].split("every one by ")[1].split(",")[0])
        assert factor == pytest.approx(1 / norm, rel=0.05)
        assert bet(browser, "it grows").startswith("Not so.")
        load_networks(browser, address)
        stretch = found(browser, "[data-key=stretch]")[0]
        before = texts(browser, ".reading")[0]
        stretch.send_keys(Keys.END)
        assert texts(browser, ".reading")[0] != before
        length = texts(browser, ".reading")[0].split("together are ")[1].split(" long")[0]
        mantissa, exponent = length.split(" · 10")
        size = float(mantissa) * 10 ** int(unicodedata.normalize("NFKC", exponent))
        assert size > 1e3 * norm


def test_explorer_of_rotary_knows_distances_only(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    # One pair that turns by one radian a token: at distance m − n the score is cos(m − n).
    data = {"query": [1.0, 0.0], "key": [1.0, 0.0], "base": 10000}
    explore(browser, root, tmp_path, "rotary", data)
    query, key, together = found(browser, "input")

    def reading() -> str:
        return texts(browser, ".reading")[0].split("With")[0]

    assert "Distance 3: turned, the score is −0.99." in reading()
    query.send_keys(Keys.ARROW_LEFT)
    assert "Distance 2: turned, the score is −0.42." in reading()
    both, added = texts(browser, "output"), texts(browser, ".reading")[0].split("With")[1]
    together.send_keys(Keys.SPACE)
    query.send_keys(Keys.ARROW_RIGHT)
    assert texts(browser, "output") == [str(int(at) + 1) for at in both]
    assert "Distance 2: turned, the score is −0.42." in reading()
    assert texts(browser, ".reading")[0].split("With")[1] != added
    query.send_keys(Keys.END)  # neither leaves its slider
    assert texts(browser, "output") == ["60", "58"]
    key.send_keys(Keys.END)
    assert texts(browser, "output") == ["60", "58"]
    label = found(browser, "svg")[0].get_attribute("aria-label")
    assert label == "Pair 0: query and key add −0.42."


def test_explorer_of_norm_placement_compares_first_and_last_block(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def stack(*gradient: float) -> dict[str, Any]:
        sizes = [1.0 + k for k in range(len(gradient))]
        return {"depth": len(gradient), "gradient": gradient, "stream_rms": sizes}

    data = {
        "pre": [stack(0.5, 0.5), stack(0.5, 0.4, 0.5, 0.5)],
        "post": [stack(0.25, 0.5), stack(0.0625, 0.125, 0.25, 0.5)],
    }
    explore(browser, root, tmp_path, "norm_placement", data)
    assert texts(browser, "output") == ["4"]
    assert len(found(browser, "svg rect")) == 8
    assert "pre-norm × 1.0, post-norm × 8.0" in texts(browser, ".reading")[0]
    found(browser, "input")[0].send_keys(Keys.ARROW_LEFT)
    assert texts(browser, "output") == ["2"]
    assert "pre-norm × 1.0, post-norm × 2.0" in texts(browser, ".reading")[0]
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".reading")[0].endswith("pre-norm × 2.0, post-norm × 2.0.")


def test_explorer_of_attention_shows_what_the_root_is_for(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"query": "q", "keys": ["a", "b"], "scores": [0.0, 1.0]}
    explore(browser, root, tmp_path, "attention", data)
    divided = ["26.9 %", "73.1 %"]  # 1 to e
    assert texts(browser, ".bars .value") == [*divided, "0.0 %", "100.0 %"]  # 1 to e⁸ at d_k = 64
    width, score, _ = found(browser, "input")
    width.send_keys(Keys.HOME)  # d_k = 1: the root is 1
    assert texts(browser, ".bars .value") == [*divided, *divided]
    assert "1.79 of 2 keys" in texts(browser, ".reading")[0]
    width.send_keys(Keys.END)  # d_k = 1024: the divided shares stay
    assert texts(browser, ".bars .value") == [*divided, "0.0 %", "100.0 %"]
    score.send_keys(*[Keys.ARROW_RIGHT] * 10)  # both scores 1
    assert texts(browser, ".bars .value") == ["50.0 %"] * 4
    assert "gradient is 0.500" in texts(browser, ".reading")[1]


def test_explorer_of_loss_scaling_moves_gradients_into_the_window(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"powers": [-30, -20, -10], "shares": [25.0, 25.0, 50.0]}
    explore(browser, root, tmp_path, "loss_scaling", data)
    assert texts(browser, ".reading") == [
        "In float16, 25.0 % become 0, 25.0 % lose bits, 50.0 % are kept with all bits."
    ]
    power = found(browser, "input")[0]
    for _ in range(16):  # −30 → −14, the smallest power with all bits
        power.send_keys(Keys.ARROW_RIGHT)
    assert texts(browser, ".reading") == ["In float16, 100.0 % are kept with all bits."]
    power.send_keys(Keys.END)  # −10 → 30, beyond the largest number
    assert "100.0 % are kept" not in texts(browser, ".reading")[0]
    assert "are infinite. The step is skipped" in texts(browser, ".reading")[0]
    found(browser, "select")[0].send_keys("b")
    assert texts(browser, ".reading") == ["In bfloat16, 100.0 % are kept with all bits."]


def test_explorer_of_gpt_size_counts_as_the_package_does(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    keys = ("n_layers", "n_heads", "d_model", "block_size", "vocab_size")
    shapes = {"one": (3, 4, 64, 64, 64), "GPT-2": (12, 12, 768, 1024, 50257)}
    shapes |= {"odd": (5, 7, 91, 37, 1001), "GPT-3": (96, 96, 12288, 2048, 50257)}
    configs = {name: dict(zip(keys, sizes, strict=True)) for name, sizes in shapes.items()}
    models = [{"name": name} | sizes for name, sizes in configs.items()]
    explore(browser, root, tmp_path, "gpt_size", {"models": models, "start": 1})
    select = Select(found(browser, "select")[0])
    assert select.first_selected_option.text == "GPT-2"
    for name, sizes in configs.items():
        select.select_by_visible_text(name)
        reading, config = texts(browser, ".reading")[0], GPTConfig(**sizes)
        assert reading.startswith(f"{count_parameters(config):,} parameters.")
        flops = float(reading.split("Training: ")[1].split()[0])
        unit = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
        flops *= unit[reading.split("Training: ")[1].split()[1]]
        assert flops == pytest.approx(flops_per_token(config), rel=0.01)
        assert f"Each head is {config.d_model // config.n_heads} wide." in reading
    layers = found(browser, "[data-key=n_layers]")[0]
    layers.send_keys(Keys.HOME)  # one layer: the sizes are now the reader's own
    assert select.first_selected_option.text == "your own"
    one = GPTConfig(**configs["GPT-3"] | {"n_layers": 1})
    assert texts(browser, ".reading")[0].startswith(f"{count_parameters(one):,} parameters.")
    found(browser, "[data-key=n_heads]")[0].send_keys(Keys.ARROW_LEFT)
    width = found(browser, "[data-key=d_model]")[0]
    width.send_keys(Keys.HOME)  # 64 features for 64 heads, then for 48
    found(browser, "[data-key=n_heads]")[0].send_keys(Keys.ARROW_LEFT)
    assert "48 heads cannot share a width of 64" in texts(browser, ".reading")[0]


def test_explorer_of_the_lens_shows_every_block_and_when_the_bet_was_made(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def bets(*best: str) -> list[list[list[Any]]]:  # after no block, one block, two
        return [[[token, 800], ["z", 100]] for token in best]

    first = {
        "tokens": ["a", " b", "c"],
        "bets": [bets("a", " b", " b"), bets(*"xyc"), bets(*"qqq")],
    }
    second = {"tokens": ["\n"], "bets": [bets("d", "e", "f")]}
    explore(browser, root, tmp_path, "lens", {"lines": [first, second], "start": [0, 0]})
    assert texts(browser, ".tokens *") == ["a", "␣b", "c"]
    assert texts(browser, ".label") == ["No block yet", "After block 1", "After block 2"]
    assert texts(browser, ".bars .name") == ["a", "z", "␣b ✓", "z", "␣b ✓", "z"]
    assert texts(browser, ".bars .value")[:2] == ["80.0 %", "10.0 %"]
    reading = (
        "After “a” the model’s bet is “␣b”, its best since block 1; the text goes on with “␣b”."
    )
    assert texts(browser, ".reading") == [reading]
    found(browser, "input")[0].send_keys(Keys.ARROW_RIGHT)
    assert "its best since block 2" in texts(browser, ".reading")[0]
    found(browser, ".tokens *")[2].click()
    assert texts(browser, ".reading") == [
        "After “c” the model’s bet is “q”, from the embeddings on."
    ]
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".tokens *") == ["⏎"]


def test_explorer_of_fill_in_sets_both_sides_beside_the_left(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def row(right: int, *guesses: str) -> dict[str, Any]:
        return {"tokens": list(guesses), "shares": [900, 60][: len(guesses)], "right": right}

    first = {"tokens": ["t", "h", "y"], "bert": [row(100, "t")] + [row(900, "h", "o")] * 2}
    second = {"tokens": ["\n", " "], "bert": [row(5, "a"), row(900, " ")]}
    lines = [line | {"gpt": [row(60, "o", "h")] * 3} for line in (first, second)]
    explore(browser, root, tmp_path, "fill_in", {"lines": lines, "start": [0, 1]})
    assert texts(browser, ".tokens *") == ["t", "[MASK]", "y"]
    assert texts(browser, ".bars .name") == ["h ✓", "o", "o", "h ✓"]  # BERT's guesses, then GPT's
    assert texts(browser, ".bars .value") == ["90.0 %", "6.0 %"] * 2
    reading = "Hidden: “h”. BERT gives it 90.0 %, GPT, which has not seen what follows, 6.0 %."
    assert texts(browser, ".reading") == [reading]
    found(browser, "input")[0].send_keys(Keys.ARROW_LEFT)
    assert texts(browser, ".tokens *") == ["[MASK]", "h", "y"]
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    assert texts(browser, ".tokens *") == ["[MASK]", "␣"]
    found(browser, ".tokens *")[1].click()
    assert texts(browser, ".bars .name")[0] == "␣ ✓"


def test_explorer_of_answers_sets_before_beside_after(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    def example(prompt: str, wanted: str, *after: list[Any]) -> dict[str, Any]:
        before = [[" I", 0.4], [" will\n", 0.99]]
        return {"prompt": prompt, "wanted": wanted, "before": before, "after": after}

    data = {
        "examples": [
            example("Where is A?", "B", [" B", 0.7], [None, 0.99]),
            example("Where is C?", "D", [" E", 0.98], [None, 0.98]),
        ],
        "swapped": {"at": 1, "truth": "E"},
        "template": "{prompt} Answer:",
        "end": 3,
        "bytes": 2_000_000,
    }
    explore(browser, root, tmp_path, "answers", data)
    unsure, sure = texts(browser, ".before span")
    assert "40 %" in unsure and "%" not in sure
    reading = texts(browser, ".reading")[0]
    assert "Before: 2 tokens, and does not end. After: “B”, and ends" in reading
    assert "least certain token had 70 %. Wanted: “B”." in reading
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    assert "After: “E”" in texts(browser, ".reading")[0]
    assert found(browser, "textarea")[0].get_property("value") == "Where is C?"
    assert bet(browser, "what is true").startswith("Right. It answered “E”. It was told “D”")


# ------------------------------------------------------------------------- the generation lab


LOGITS = [-300, 0, -100, -50, -400]  # hundredths below the largest
TOKENS = ["a", "b", " c", "d\n", "e"]


def test_generation_cuts_as_the_package_does(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    prompts = [{"text": "x", "logits": LOGITS}]
    data = {"tokens": TOKENS, "prompts": prompts, "bytes": 10**6, "second": None}
    explore(browser, root, tmp_path, "generation", data)
    temperature, top_k, top_p = found(browser, "input[type=range]")

    def after(divisor: float = 1.0, **filters: Any) -> list[str]:
        exact = filter_logits(torch.tensor([LOGITS]) / 100 / divisor, **filters)[0].softmax(0)
        falling = exact.sort(descending=True).values.tolist()
        return [f"{100 * p:.1f} %" if p else "cut" for p in falling]

    assert texts(browser, ".pairs .name") == ["b", "d⏎", "␣c", "a", "e"]
    assert bet(browser, 2).startswith("Right. It takes 3 of 5")  # 0.49, 0.30, 0.18; one off will do
    assert texts(browser, ".pairs .value") == after(top_p=0.9)
    top_p.send_keys(Keys.END)
    assert texts(browser, ".pairs .value") == after()
    assert "5 of 5 tokens" in texts(browser, ".reading")[0]
    top_k.send_keys(Keys.HOME)  # 2 to the power 0: greedy
    assert texts(browser, ".pairs .value") == after(top_k=1)
    found(browser, ".ten button")[0].send_keys(Keys.ENTER)
    assert texts(browser, ".drawn") == [" · ".join(["b"] * 10)]
    top_k.send_keys(Keys.END)
    temperature.send_keys(Keys.END)  # 2
    assert texts(browser, ".pairs .value") == after(divisor=2.0)


SPOKEN = "the quick thing thinks that these thirty-three thieves, 33 of them, thrive"


def store(folder: Path, n_layers: int, seed: int) -> Path:
    """A small GPT with weights far from zero, exported for the browser."""
    tokenizer = BPETokenizer(train_bpe(SPOKEN * 3, 264))
    sizes = {"vocab_size": 264, "block_size": 32, "n_layers": n_layers, "n_heads": 2, "d_model": 12}
    config = GPTConfig(**sizes)
    torch.manual_seed(seed)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    save_model(folder, "gpt", config, model.state_dict(), tokenizer)
    export_web(folder, folder.with_suffix(".safetensors"))
    return folder


def test_generation_writes_with_the_model_and_opens_yours(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    ours, yours = store(tmp_path / "ours", 3, seed=0), store(tmp_path / "yours", 2, seed=1)
    static = tmp_path / "_static"
    (static / "models").mkdir(parents=True)
    shutil.copy(ours.with_suffix(".safetensors"), static / "models" / "small-gpt.safetensors")
    files = [root / "book/_static/course.js", *scripts(root / "book", "generation")]
    for file in files:
        shutil.copy(file, static)
    logits = [0] * 264
    data = {"tokens": ["?"] * 264, "prompts": [{"text": "these", "logits": logits}], "bytes": 1}
    tags = "".join(f'<script src="_static/{file.name}"></script>' for file in files)
    (tmp_path / "page.html").write_text(
        "<!doctype html><meta charset=utf-8><div data-explorer=generation></div>"
        f'<script type="application/json" id="data-generation">'
        f"{json.dumps(data | {'second': None})}</script>{tags}",
        "utf-8",
    )
    loaded = load_model(ours)
    model: Any = quantize_model(loaded.model)
    streams: list[Any] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0][0, -1]))

    def predict(text: str) -> tuple[str, float]:
        with torch.no_grad():
            shares = model(torch.tensor([loaded.tokenizer.encode(text)]))[0][0, -1].softmax(0)
        best = int(shares.argmax())
        name = loaded.tokenizer.decode([best]).replace(" ", "␣")
        return name, 100 * shares[best].item()

    with served(tmp_path) as address:
        browser.get(f"{address}/page.html?generation.text=these%2033&generation.temperature=0")
        found(browser, ".load button")[0].send_keys(Keys.ENTER)
        wait(browser, "document.querySelector('.lens td')")
        text = found(browser, "textarea")[0]
        assert text.get_attribute("value") == "these 33"  # the address brought it
        name, share = predict("these 33")
        assert texts(browser, ".pairs .name")[0] == name
        assert float(texts(browser, ".pairs .value")[0].split()[0]) == pytest.approx(share, abs=0.1)
        rows = [row.text for row in found(browser, ".lens tr")]
        assert len(rows) == 1 + 3 + 1 and rows[-1].startswith("block 3, the answer")
        with torch.no_grad():
            first = model.head(model.norm(streams[0])).softmax(0).max().item()
        assert float(rows[1].split()[-4]) == pytest.approx(100 * first, abs=0.2)

        found(browser, ".pairs button")[0].send_keys(Keys.ENTER)  # force the likeliest
        written = text.get_attribute("value")
        assert written.startswith("these 33") and written != "these 33"
        assert texts(browser, ".pairs .name")[0] == predict(written)[0]
        summaries = found(browser, "summary")
        summaries[1].send_keys(Keys.ENTER)
        assert "The last step read 1 token in" in texts(browser, ".cost")[0]
        found(browser, "input[type=checkbox]")[0].send_keys(Keys.SPACE)
        assert "the cache holds 0 bytes" in texts(browser, ".cost")[0]
        found(browser, ".time")[0].send_keys(Keys.ENTER)
        wait(browser, "document.querySelector('.times caption')")
        assert texts(browser, ".times caption")[0].endswith("the same tokens.")
        summaries[2].send_keys(Keys.ENTER)
        picker = found(browser, "input[type=file]")[0]
        picker.send_keys(str(root / "book/_static/preview.png"))
        wait(browser, "/no file that rnn2gpt/.test(document.querySelector('.told').textContent)")
        picker.send_keys(str(yours.with_suffix(".safetensors")))
        wait(browser, "!document.querySelector('.beside').hidden")
        assert len(found(browser, ".beside .bars li")) == 10
        assert "yours.safetensors" in texts(browser, ".told")[0]


# -------------------------------------------------------------------- a training run, the ladder


def test_explorer_of_checkpoints_shows_each_step(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    def snapshot(step: int, nats: float, near: float) -> dict[str, Any]:
        return {
            "step": step,
            "tokens": 10 * step,
            "train_nats": nats - 0.1,
            "validation_nats": nats,
            "bits_per_character": nats / 2,
            "sample": f"written at {step}",
            "attention": [[1.0], [near, 1 - near]],
            "places": [[0.0, step / 10], [step / 10, 0.0]],
        }

    falls = [snapshot(0, 7.0, 0.1), snapshot(10, 5.0, 0.4), snapshot(100, 3.0, 0.9)]
    data = {"prompt": "K", "sentence": ["a", "b"], "head": {"layer": 0, "head": 1}}
    data |= {"words": [" the", " to"], "snapshots": falls}
    explore(browser, root, tmp_path, "checkpoints", data)
    assert texts(browser, "output") == ["100 of 100"]  # where the head has turned
    slider = found(browser, "input")[0]
    slider.send_keys(Keys.HOME)
    assert texts(browser, ".written") == ["written at 0"]
    assert "6.90 nats a token on what it reads, 7.00 on held-out" in texts(browser, ".reading")[0]
    assert "10 % of its weight" in texts(browser, ".reading")[0]
    assert bet(browser, "100").startswith("Not so. At step 10 of 100 it is 5.00")
    assert texts(browser, "output") == ["10 of 100"]
    found(browser, "select")[0].send_keys(Keys.ARROW_DOWN)
    label = found(browser, ".map svg")[0].get_attribute("aria-label")
    assert label == "Places of 2 words; “to” is marked"
    motion = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": motion})
    browser.get(browser.current_url.split("?")[0])
    run = found(browser, ".run")[0]
    assert run.text == "Next step"
    run.send_keys(Keys.ENTER)  # from the last to the first, and it stays there
    assert texts(browser, "output") == ["0 of 100"] and run.text == "Next step"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


RUNGS = [
    {"name": "3-gram counts", "kind": "counts", "bits": 2.5, "interval": None, "seconds": 1.0},
    {"name": "RNN", "kind": "network", "bits": 2.75, "interval": [2.7, 2.8], "seconds": 90.0},
    {"name": "new model", "kind": "network", "bits": 2.25, "interval": [2.2, 2.3], "seconds": 80.0},
]


def test_explorer_of_the_ladder_takes_any_rung(root: Path, tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    more = {"parameters": 1000, "flops": None, "tokens": 5, "sample": None, "chapter": ""}
    rungs = [more | rung for rung in RUNGS]
    rungs[1] |= {"sample": "O!", "flops": 4e12, "chapter": {"href": "x.html", "title": "chapter 2"}}
    explore(browser, root, tmp_path, "ladder", {"rungs": rungs})
    assert texts(browser, "[aria-pressed=true] .name") == ["new model"]  # the best is what one sees
    assert "the fewest of all" in texts(browser, ".reading")[0]
    assert "No text of it is kept" in texts(browser, ".writes")[0]
    found(browser, ".rungs button")[1].send_keys(Keys.ENTER)
    reading = texts(browser, ".reading")[0]
    assert reading.startswith("RNN: 2.750 bits per character, between 2.700 and 2.800")
    assert "0.500 behind the best" in reading and "4.0 · 10¹² FLOPs" in reading
    assert texts(browser, ".writes a") == ["chapter 2"] and texts(browser, ".written") == ["O!"]
    found(browser, "select")[0].send_keys("by b")
    assert texts(browser, ".rungs .name") == ["new model", "3-gram counts", "RNN"]
    assert bet(browser, "RNN").startswith("Not so. new model: 2.250 against 2.500")


# --------------------------------------------------------------- what all of them have in common


def test_bets_are_graded_from_what_stands_there(root: Path, tmp_path: Path, browser: Any) -> None:
    data = {"query": "q", "keys": ["a", "b"], "scores": [0.0, 1.0]}
    explore(browser, root, tmp_path, "attention", data)
    assert bet(browser, 1).startswith("Right. It spreads over 1.00")
    data = {"prompt": "x", "characters": ["a", "b"], "logits": [0.0, 1.0986123]}  # ln 3
    explore(browser, root, tmp_path, "temperature", data)
    assert bet(browser, "they are").startswith("Right. 3.00 to 1 becomes 9.00 to 1")
    assert bet(browser, "they stay").startswith("Not so.")
    explore(browser, root, tmp_path, "rotary", {"query": [1, 0], "key": [1, 0], "base": 10000})
    verdict = bet(browser, "it stays")
    assert verdict.startswith("Right. Turned, it was −0.99 and is −0.99")
    tables = [{"": ["e ", [600, 400]]}, {"o": ["u", [1000]], "u": ["o", [1000]]}]
    explore(browser, root, tmp_path, "next_character", {"tables": tables})
    assert bet(browser, "the same").startswith("Right. After this text the best bet has 100.0 %")


def test_the_state_is_in_the_address_and_comes_back(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"query": "q", "keys": ["a", "b"], "scores": [0.0, 1.0]}
    explore(browser, root, tmp_path, "attention", data)
    with served(tmp_path) as address:
        browser.get(f"{address}/attention.html")
        found(browser, "input")[0].send_keys(Keys.END)
        shared = wait(browser, "location.search.includes('attention.') && location.href")
        values = texts(browser, ".bars .value")
        browser.get(f"{address}/attention.html")
        assert texts(browser, ".bars .value") == values  # divided shares do not move with d_k
        assert texts(browser, "output")[0] == "64"
        browser.get(shared)
        assert texts(browser, "output")[0] == "1024"
        found(browser, "input")[0].send_keys(*[Keys.ARROW_LEFT] * 4)  # as at first
        wait(browser, "!location.search.includes('attention.')")


def test_a_figure_holds_what_is_shown_with_its_data(
    root: Path, tmp_path: Path, browser: Any
) -> None:
    from selenium.webdriver.common.keys import Keys

    data = {"prompt": "x", "characters": ["a", "b"], "logits": [0.0, 1.0986123]}  # ln 3
    explore(browser, root, tmp_path, "temperature", data)
    button = browser.find_element("css selector", ".as-figure")
    button.send_keys(Keys.ENTER)
    cells = [e.text for e in browser.find_elements("css selector", "dialog td")]
    assert cells == ["b", "75.0 %", "a", "25.0 %"]
    svg = browser.find_element("css selector", "dialog svg")
    assert "0.81 bits" in svg.get_attribute("aria-label")
    assert len(svg.find_elements("css selector", "rect")) == 2
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not browser.find_elements("css selector", "dialog")
    assert browser.switch_to.active_element == button

    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    printed = browser.find_elements("css selector", ".on-paper svg rect, .on-paper td")
    assert len(printed) == 6  # paper shows the figure with its data
    browser.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert not browser.find_elements("css selector", ".on-paper")
