"""`hesnr analyze --tool-entropy`: where agents hesitate, from score files alone.

Tool entropy per step, its distribution, by class of action, by turn, by outcome; the steps that are forks, with what
the model weighed up there; and the thresholds at which a gate would fire at given shares of steps. The numbers of the
first table are those of the lm-eval task `hesnr_tool_entropy`, to the last bit, whatever the settings that both have.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

from hesnr_tasks.analysis.frame import Frame
from hesnr_tasks.analysis.options import check_epsilons, folders, selections
from hesnr_tasks.analysis.output import Table
from hesnr_tasks.errors import SettingsError, nearest
from hesnr_tasks.search.entropy import COMBINE
from hesnr_tasks.search.profile_figure import draw
from hesnr_tasks.search.profile_forks import forks
from hesnr_tasks.search.profile_run import COLUMNS, Profile, profile_of, step_entropies
from hesnr_tasks.search.profile_steps import ARGUMENTS
from hesnr_tasks.search.profile_tables import GROUPS, breakdown, distribution, gates, totals

__all__ = ["COLUMNS", "Profile", "check", "profile_of", "step_entropies", "tables"]

_FORKS = 10


def check(args: argparse.Namespace) -> None:
    """Raise `SettingsError` for values that the options of `--tool-entropy` cannot have; None is the default."""
    if args.decision_arguments is not None and args.decision_arguments < 0:
        raise SettingsError(f"--decision-arguments must be at least 0, not {args.decision_arguments}")
    if args.combine is not None and args.combine not in COMBINE:
        hint = nearest(args.combine, COMBINE)
        raise SettingsError(f"--combine {args.combine!r} must be one of {', '.join(COMBINE)}.{hint}")
    if args.forks is not None and args.forks < 1:
        raise SettingsError(f"--forks must be at least 1, not {args.forks}")
    for share in args.quantile or ():
        if not 0 <= share <= 1:
            raise SettingsError(f"--quantile {share:g} must lie in [0, 1]: it is the share of steps that do not branch")


def tables(frame: Frame, args: argparse.Namespace) -> Iterable[Table]:
    """The tables of one run, for every combination of filters, k and ε; draws the figure where `args.output` is set.

    `args`: as `hesnr analyze` parses them. Raises `SettingsError` where filtered actions were not all scored, or for a
    setting that cannot be.
    """
    check(args)
    ks = args.k or [10]
    chosen = selections(frame.filters, ["action"], args.filters)
    settings = itertools.product(chosen, ks, check_epsilons(args.epsilon, ks))
    arguments = ARGUMENTS if args.decision_arguments is None else args.decision_arguments
    how = args.combine or COMBINE[0]
    made = [profile_of(frame, *setting, arguments=arguments, how=how) for setting in settings]
    yield _joined([totals(one, args.resamples, args.seed) for one in made])
    for name in GROUPS:
        yield _joined([breakdown(one, name, args.resamples, args.seed) for one in made])
    yield _joined([gates(one, args.quantile or ()) for one in made])
    yield _joined([forks(one, args.forks or _FORKS) for one in made])
    if args.format != "text":  # people look at the figure
        yield _joined([distribution(one) for one in made])
    if args.output:
        draw(made[0].values(), made[0].k, Path(args.output) / _stem(frame, args.scores), frame.name)


def _joined(found: Sequence[Table]) -> Table:
    """One table with the rows of all settings."""
    return found[0]._replace(rows=[row for one in found for row in one.rows])


def _stem(frame: Frame, scores: Sequence[str]) -> str:
    """One figure a run."""
    return "tool_entropy" if len(folders(scores)) < 2 else f"tool_entropy-{frame.name.replace('/', '-')}"
