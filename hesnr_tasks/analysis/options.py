"""What can be asked of scores: runs, tokens, candidates, thresholds. Shared by `analyze` and `compare`."""

from __future__ import annotations

import argparse
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.analysis.frame import Selection, selection
from hesnr_tasks.errors import DataError, SettingsError, nearest
from hesnr_tasks.metrics import EPSILON, MIN_TOKENS
from hesnr_tasks.stats import MOST_RESAMPLES, RESAMPLES, SEED
from hesnr_tasks.trajectory import Kind

__all__ = [
    "add_common",
    "add_context",
    "add_explorations",
    "add_run_option",
    "check_epsilons",
    "check_explorations",
    "check_resamples",
    "context",
    "epsilon",
    "explored_columns",
    "folders",
    "natural",
    "selections",
    "unique_names",
]

_KINDS = tuple(kind.value for kind in Kind if kind is not Kind.SCAFFOLD)
EVERY = "every"
_OF_TOOLS = ("decision_arguments", "combine", "forks", "quantile")


def add_common(parser: argparse.ArgumentParser, *, several: bool) -> None:
    """Arguments that say which tokens and numbers are meant; `several`: more than one value each."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    options: dict[str, tuple[Any, str]] = {
        "kinds": (str, "tokens that count, such as thought+action (default: action)"),
        "filters": (
            str,
            f"taken out of actions, such as xml+format; none; {EVERY}: all subsets (default: all)",
        ),
        "epsilon": (str, "entropy threshold in nats, or ln3 (default: (ln 3 + ln 4) / 2)"),
        "k": (int, "candidates a token (default: 10)"),
    }
    for name, (kind, text) in options.items():
        parser.add_argument(f"--{name}", type=kind, metavar=name.upper(), help=text, **many)
    add_context(parser)
    parser.add_argument(
        "--min-tokens", type=int, default=MIN_TOKENS, metavar="N",
        help=f"a metric over fewer tokens is N/A (default: {MIN_TOKENS})",
    )  # fmt: skip
    add_run_option(parser)
    parser.add_argument("--resamples", type=int, default=RESAMPLES, help=f"of the bootstrap (default: {RESAMPLES})")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the bootstrap (default: {SEED})")


def add_context(parser: argparse.ArgumentParser) -> None:
    """`--context`, for every command that reads score files of several runs."""
    parser.add_argument(
        "--context", type=context, metavar="N",
        help="count only the first N tokens of a text; common: those all runs could see; own: each run as it is "
        "(default: common, where a context cut a run)",
    )  # fmt: skip


def add_run_option(parser: argparse.ArgumentParser) -> None:
    """Arguments that say which run of a folder is read: `args.run`, as `store.choose_runs` takes it."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--run", default="latest", metavar="N|DATA",
        help="the run of each folder to read, by number or by the hash of its data (default: the latest)",
    )  # fmt: skip
    group.add_argument(
        "--all", dest="run", action="store_const", const="all", help="everything that was ever scored into each folder"
    )


def add_explorations(parser: argparse.ArgumentParser) -> None:
    """Arguments of `analyze` for what packages beside this one work out, and where their figures go."""
    add = parser.add_argument
    add(
        "--exploration", action="store_true", help="entropy at pivotal words, reflective and rare sentences of thoughts"
    )
    add("--embed", metavar="MODULE:FUNCTION", help="texts to vectors, for rare sentences (default: TF-IDF)")
    add("--tool-entropy", action="store_true", help="entropy where actions are chosen")
    add("--decision-arguments", type=int, metavar="N", help="of --tool-entropy: words after the verb that decide too")
    add("--combine", metavar="HOW", help="of --tool-entropy: entropies of a step's words to one, max|mean|first|sum")
    add("--forks", type=int, metavar="N", help="of --tool-entropy: steps of greatest entropy to list (default: 10)")
    add("--quantile", type=float, nargs="+", metavar="Q", help="of --tool-entropy: more gate thresholds, at quantiles")
    add("-o", "--output", type=Path, metavar="FOLDER", help="where figures go (default: no figures)")


def check_explorations(args: argparse.Namespace) -> None:
    """No option without what it is for."""
    if args.embed and not args.exploration:
        raise SettingsError("--embed is for the rare sentences of --exploration; add that")
    if args.output and not (args.exploration or args.tool_entropy):
        raise SettingsError("-o is where figures go, and only --exploration and --tool-entropy draw some here; add one")
    for name in _OF_TOOLS:
        if getattr(args, name) is not None and not args.tool_entropy:
            raise SettingsError(f"--{name.replace('_', '-')} is for the steps of --tool-entropy; add that")


def explored_columns(args: argparse.Namespace) -> tuple[str, ...]:
    """Columns of score files that `--exploration` needs."""
    return ("char_start", "char_end") if args.exploration else ()


def epsilon(word: str) -> float:
    """A threshold in nats, from a number or `ln3`, `ln(3.5)`."""
    match = re.fullmatch(r"ln\s*\(?\s*([0-9.]+)\s*\)?", word.strip())
    try:
        value = math.log(float(match[1])) if match else float(word)
    except ValueError:
        raise SettingsError(f"--epsilon {word!r} is neither a number nor of the form ln3") from None
    return value


def context(word: str) -> int | str:
    """The value of --context: a number of token ids, `common` or `own`."""
    if word in ("common", "own"):
        return word
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is neither a number of tokens nor common, own")
    return int(word)


def check_epsilons(words: Sequence[str] | None, ks: Sequence[int]) -> list[float]:
    """The thresholds, each within [0, ln k) for every k."""
    found = [epsilon(word) for word in words] if words else [EPSILON]
    for k, value in itertools.product(ks, found):
        if k < 2:
            raise SettingsError(f"--k {k}: the entropy of fewer than 2 candidates is always 0")
        if not 0 <= value < math.log(k):
            raise SettingsError(
                f"--epsilon {value:g} must lie in [0, ln k): with k = {k} no entropy exceeds {math.log(k):.4f} nats"
            )
    return found


def check_resamples(resamples: int, seed: int) -> None:
    """Enough resamples for an interval, and a seed that numpy takes."""
    if not 100 <= resamples <= MOST_RESAMPLES or seed < 0:
        raise SettingsError(f"--resamples must be at least 100 and at most {MOST_RESAMPLES:,}, and --seed at least 0")


def selections(known: Sequence[str], kinds: Sequence[str] | None, filters: Sequence[str] | None) -> list[Selection]:
    """Every combination of kinds and filters, each set of tokens once; `known`: the filters the labels know."""
    chosen = [_kinds(word) for word in kinds or ["action"]]
    dropped = [names for word in filters or ["+".join(known)] for names in _filters(word, known)]
    made = (selection(known, some, others) for some in chosen for others in dropped)
    return list({one.name: one for one in made}.values())


def _kinds(word: str) -> list[Kind]:
    names = re.split(r"[+,]", word)
    for name in names:
        if name not in _KINDS:
            raise SettingsError(f"--kinds {name!r} must be one of {', '.join(_KINDS)}.{nearest(name, _KINDS)}")
    return [Kind(name) for name in names]


def _filters(word: str, known: Sequence[str]) -> Iterable[list[str]]:
    if word == EVERY:
        return [[name for i, name in enumerate(known) if bits >> i & 1] for bits in range(1 << len(known))]
    if word in ("none", ""):
        return [[]]
    names = re.split(r"[+,]", word)
    for name in names:
        if name not in known:
            raise SettingsError(
                f"--filters {name!r} must be one of {', '.join(known)}, none, {EVERY}.{nearest(name, [*known, EVERY])}"
            )
    return [names]


def folders(words: Sequence[str]) -> list[Path]:
    """The folders of score files among (or right below) those named, in the order named."""
    found: list[Path] = []
    for word in words:
        path = Path(word)
        below = sorted((run.parent for run in path.glob("*/run.json")), key=lambda run: natural(run.name))
        if not path.exists():
            raise DataError(f"{path}: no such folder")
        found += [path] if (path / "run.json").exists() or not below else below
    return list(dict.fromkeys(found))


def unique_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    whole = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, whole), default=1) + 1):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts `step800` before `step1600`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]
