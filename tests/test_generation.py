"""Chapter 11 beyond its functions: a GPT generates, beams share a cache, a model goes to int8."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rnn2gpt.generation import arrange_for_writing, beam_search, generate, next_scores
from rnn2gpt.gpt import GPT, GPTConfig
from rnn2gpt.kv_cache import KVCache
from rnn2gpt.quantization import Int8Linear, dequantize, quantize_model, size_in_bytes

TINY = GPTConfig(vocab_size=13, block_size=11, n_layers=3, n_heads=2, d_model=12)


@pytest.fixture
def model() -> GPT:
    """Weights large enough that the likeliest token depends on the text."""
    torch.manual_seed(4)
    made = GPT(TINY).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("prompt", [1, 4, 11, 17])
@pytest.mark.parametrize(
    "how", [{"temperature": 0}, {"temperature": 0.8, "top_k": 7}, {"top_p": 0.7}]
)
def test_the_cache_changes_no_token_even_beyond_the_window(
    model: GPT, prompt: int, how: dict[str, Any]
) -> None:
    ids = torch.randint(13, (3, prompt))
    texts, heard = [], []
    for use_cache in (True, False):
        chance = torch.Generator().manual_seed(1)
        texts.append(
            generate(
                model, ids, 25, generator=chance, use_cache=use_cache, on_token=heard.append, **how
            )
        )
    assert torch.equal(*texts)
    assert torch.equal(texts[0][:, :prompt], ids)
    assert torch.equal(torch.cat(heard[:25], dim=1), texts[0][:, prompt:])


def test_each_token_is_read_once_until_the_window_is_full(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, **more: read.append(ids[0].tolist()) or forward(ids, **more)
    )
    text = generate(model, torch.tensor([[1, 2, 3]]), 12, temperature=0)[0].tolist()
    assert read[0] == [1, 2, 3]
    assert read[1:9] == [[token] for token in text[3:11]]
    assert read[9] == text[7:12]  # 12 tokens do not fit into 11: the last 5 are read again
    assert read[10:] == [[token] for token in text[12:14]]


def test_generate_refuses_an_empty_prompt_and_writes_nothing_for_nothing(model: GPT) -> None:
    ids = torch.randint(13, (2, 3))
    assert torch.equal(generate(model, ids, 0), ids)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(model, ids[:, :0], 3)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_beams_on_one_cache_find_what_reading_again_finds(model: GPT, size: int) -> None:
    prompt = torch.randint(13, (4,))

    def read_again(sequences: list[list[int]]) -> torch.Tensor:
        whole = torch.tensor([[*prompt[:-1].tolist(), *ids] for ids in sequences])
        return model(whole)[0][:, -1].log_softmax(-1).detach()

    for eos in (-1, 5):
        how = prompt[-1].item(), eos, size, 6, 0.7
        ids, score = beam_search(next_scores(model, prompt), *how)
        expected, expected_score = beam_search(read_again, *how)
        assert ids == expected and score == pytest.approx(expected_score)
    alone = beam_search(next_scores(model, prompt[:1]), prompt[0].item(), -1, size, 3)
    assert len(alone[0]) == 3


def test_the_cache_counts_its_bytes_as_the_formula_does(model: GPT) -> None:
    cache = KVCache.for_model(model, 5)
    assert cache.nbytes == 2 * 3 * 12 * 11 * 5 * 8  # 2 · layers · D · T · B · bytes of a float64
    assert cache.keys.dtype is torch.float64


def test_a_model_in_int8_is_its_own_rounded_weights(model: GPT) -> None:
    small: Any = quantize_model(model)
    assert small.head.weight is small.token_embedding.weight
    rounded = GPT(TINY).double().eval()
    rounded.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, weight in rounded.named_parameters():
            if weight.ndim == 2:
                layer = small.get_submodule(name.removesuffix(".weight"))
                weight.copy_(dequantize(layer.weight.q, layer.weight.scale))
        ids = torch.randint(13, (2, 11))
        assert torch.allclose(small(ids)[0], rounded(ids)[0])
        assert not torch.equal(rounded(ids)[0], model(ids)[0])
    assert isinstance(model.head, torch.nn.Linear)  # the model itself is as it was
    assert not any(isinstance(part, torch.nn.Linear) for part in small.modules())
    assert sum(isinstance(part, Int8Linear) for part in small.modules()) == 3 * 6 + 1
    assert torch.equal(generate(small, ids, 8, 0), generate(small, ids, 8, 0, use_cache=False))


def test_sizes_count_shared_weights_once(model: GPT) -> None:
    count = sum(p.numel() for p in model.parameters())
    assert size_in_bytes(model) == 8 * count
    matrices = [p for p in model.parameters() if p.ndim == 2]
    in_int8 = sum(p.numel() + 8 * len(p) for p in matrices)
    rest = sum(8 * p.numel() for p in model.parameters() if p.ndim < 2)
    assert size_in_bytes(quantize_model(model)) == in_int8 + rest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_arranged_for_writing_is_the_same_model(dtype: torch.dtype) -> None:
    model = GPT(TINY).to(dtype).eval()
    arranged = copy.deepcopy(model)
    arrange_for_writing(arranged)
    tall, wide = (arranged.get_parameter(f"blocks.0.feed_forward.W_{i}.weight") for i in (1, 2))
    columns = dtype == torch.float32
    assert tall.t().is_contiguous() == columns
    assert wide.is_contiguous()
    assert arranged.head.weight is arranged.token_embedding.weight  # still tied
    assert all(
        torch.equal(a, b) for a, b in zip(arranged.parameters(), model.parameters(), strict=True)
    )
    ids = torch.randint(13, (2, 11))
    with torch.no_grad():
        assert torch.allclose(arranged(ids)[0], model(ids)[0], atol=1e-6 if columns else 0)


def benchmark(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("benchmark", root / "benchmarks/generation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_compares_equal_tokens(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    study = benchmark(root)
    tiny = GPTConfig(vocab_size=1024, block_size=128, n_layers=1, n_heads=2, d_model=8)
    monkeypatch.setattr(study, "CONFIGS", {"small": tiny, "10 M": tiny})
    result = study.study_generate(1, "cpu")
    assert result["small"]["ways"]["cached"]["ratio"] == 1
    assert result["small"]["ways"]["uncached"]["seconds"] > 0
    rows = study.study_int8(1, "cpu")
    assert rows["models"]["small"]["int8"]["bytes"] < rows["models"]["small"]["float32"]["bytes"]


def test_the_stored_benchmark_holds_what_the_page_reads(root: Path) -> None:
    stored = json.loads((root / "book/_data/generation_benchmark.json").read_text("utf-8"))
    for row in stored["generate"].values():
        assert set(row["ways"]) == {"cached", "by_rows", "transformers", "uncached"}
        assert row["ways"]["transformers"]["ratio_least"] <= row["ways"]["transformers"]["ratio"]
    cached, again = stored["length"]["seconds"].values()
    assert again[-1] > cached[-1]  # at a thousand tokens there is no doubt
