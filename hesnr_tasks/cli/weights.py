"""`hesnr weights`: sampling weights for training data, by what checkpoints make of each document."""

from __future__ import annotations

import argparse
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from hesnr_tasks.analysis.weights import BY, Sampling, Tables, write_weights
from hesnr_tasks.errors import HesnrError, SettingsError
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.tasks.settings import TaskSettings, add_flags

_SETTINGS = (
    "render", "thoughts", "template_kwargs", "calls", "kinds", "filters", "epsilon", "k", "overflow", "min_tokens",
    "config", "split", "limit", "on_error",
)  # fmt: skip
_log = logging.getLogger("hesnr_tasks")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `hesnr weights`."""
    add = parser.add_argument
    corpus = "documents with `text` or trajectories, of any size; without --model: one or two tables written before"
    add("corpus", nargs="+", metavar="CORPUS", help=corpus)
    add("-o", "--output", type=Path, required=True, metavar="OUT.parquet", help="a row a document, with its weight")
    add("--model", metavar="CKPT", help="checkpoint that reads the corpus, as pretrained= of lm_eval --model hf")
    add("--compare", metavar="CKPT", help="a second one: what changed from --model to it")
    add("--model_args", default="", metavar="ARGS", help="for both, as in lm_eval: dtype=bfloat16,max_length=8192 …")
    add("--device", metavar="DEVICE", help="default: cuda where there is a GPU, else cpu")
    add("--by", default=Sampling.by, metavar="VALUE", help=f"{', '.join(BY)} (default: {Sampling.by})")
    add("--prefer", choices=("high", "low"), default="high", help="which values weigh more (default: high)")
    power = "weights grow with value^(1/T), of a change with exp(change / (sd · T)) (default: 1)"
    add("--temperature", type=float, default=1.0, metavar="T", help=power)
    add("--floor", type=float, default=0.0, metavar="SHARE", help="share of samples drawn uniformly (default: 0)")
    add("--quota", action="append", default=[], metavar="SOURCE=SHARE", help="share of a source; may be repeated")
    add_flags(parser, *_SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Score what has not been scored, write the table, and print its sources; the same command goes on after a stop."""
    settings = TaskSettings.read({name: value for name in _SETTINGS if (value := getattr(args, name)) is not None})
    quotas = dict(map(_quota, args.quota))
    sampling = Sampling(args.by, args.prefer, args.temperature, args.floor, quotas, settings.min_tokens)
    if not args.model:
        if args.compare:
            raise SettingsError("--compare is the second checkpoint; name the first with --model")
        if len(args.corpus) > 2:
            raise SettingsError(f"{len(args.corpus)} tables were given; give one, or two to compare, or --model CKPT")
        tables = [Tables.open([Path(name)]) for name in args.corpus]
        summary = write_weights(args.output, tables[0], tables[1] if len(tables) > 1 else None, sampling)
    else:
        if args.by.endswith("_change") and not args.compare:
            raise SettingsError(f"--by {args.by} needs a second checkpoint: add --compare CKPT")
        parts = args.output.with_name(f"{args.output.name}.parts")
        tables = [
            _scored(args, settings, checkpoint, parts / name)
            for name, checkpoint in (("model", args.model), ("compare", args.compare))
            if checkpoint
        ]
        summary = write_weights(args.output, tables[0], tables[1] if len(tables) > 1 else None, sampling)
        shutil.rmtree(parts)
    print("\n".join(summary.lines(sampling.by)))
    print(args.output)
    return 0


def _quota(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not name or not 0 <= value <= 1:
        raise SettingsError(f"--quota {text!r} must be SOURCE=SHARE, such as web=0.3")
    return name, value


def _scored(args: argparse.Namespace, settings: TaskSettings, checkpoint: str, folder: Path) -> Tables:
    from hesnr_tasks.integrations.document_sums import score_corpus

    report, documents = ReadReport(), 0
    seconds = 0.5 if sys.stderr.isatty() else 30.0
    with tqdm(unit="tok", unit_scale=True, desc=f"scoring with {Path(checkpoint).name}", mininterval=seconds) as bar:

        def progress(new_documents: int, tokens: int) -> None:
            nonlocal documents
            documents += new_documents
            bar.set_postfix_str(f"{documents:,} documents", refresh=False)
            bar.update(tokens)

        def model() -> Any:
            return _loaded(checkpoint, args.model_args, args.device)

        tables = score_corpus(args.corpus, settings, model, folder, report, progress)
    for line in report.lines():
        _log.warning("%s", line)
    return tables


def _loaded(checkpoint: str, model_args: str, device: str | None) -> Any:
    """lm-eval's model."""
    from hesnr_tasks.tasks import check_lm_eval

    check_lm_eval()
    import torch
    from lm_eval.api.registry import get_model

    try:
        words = ",".join(filter(None, [f"pretrained={checkpoint}", model_args]))
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return get_model("hf").create_from_arg_string(words, {"batch_size": 1, "device": device})
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise HesnrError(
            f"the checkpoint {checkpoint!r} cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            "Name a folder in Hugging Face format, or a model of a hub that this machine can reach."
        ) from None
