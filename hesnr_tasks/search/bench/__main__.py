"""`python -m hesnr_tasks.search.bench`: the whole experiment, or `--fresh`: what it rests on, executed anew."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hesnr_tasks.analysis.output import Table, show
from hesnr_tasks.errors import HesnrError
from hesnr_tasks.report.style import save
from hesnr_tasks.search.bench.experiment import JUDGES, Plan, experiment, firing, methods
from hesnr_tasks.search.bench.outcomes import Outcomes, execute, save_outcomes
from hesnr_tasks.search.bench.repositories import names
from hesnr_tasks.search.bench.rules import selection_table
from hesnr_tasks.search.bench.simulate import Method
from hesnr_tasks.search.costs import Costs, Record, at_equal_rate, costs
from hesnr_tasks.search.report import curve_table, draw_curves, kinds_table, savings_table, spans
from hesnr_tasks.search.report_read import write_records

__all__ = ["add_arguments", "main", "run", "tables"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the bench."""
    add, usual = parser.add_argument, Plan()
    add("-o", "--output", type=Path, default=Path("results/search"), help="default: results/search")
    add("--fresh", action="store_true", help="execute all edits and tests anew first (minutes; needs namespaces)")
    add("--variants", type=int, default=usual.variants, help=f"agents a repository (default: {usual.variants})")
    add("--repetitions", type=int, default=usual.repetitions, help=f"of each agent (default: {usual.repetitions})")
    add("--repositories", nargs="+", default=[], metavar="NAME", help=f"of {', '.join(names())} (default: all)")


def run(args: argparse.Namespace) -> int:
    """Simulate, write records, tables and figures, print the tables."""
    if args.fresh:
        save_outcomes({name: _executed(name) for name in names()})
    plan = Plan(args.variants, args.repetitions, repositories=tuple(args.repositories))
    started, rate = time.monotonic(), firing(plan)
    every = methods(rate)
    records = list(experiment(plan, every))
    found = [*tables(records), *_choices(plan, every)]
    text = show(found, "text", {})
    args.output.mkdir(parents=True, exist_ok=True)
    write_records(records, args.output / "records.jsonl")
    size = f"{len(plan.names)} repositories × {plan.variants} agents × {plan.repetitions} repetitions"
    about = f"{size}; the entropy gate fires at {rate:.3f} of all steps, and so does the random one"
    (args.output / "tables.txt").write_text(f"{about}\n\n{text}\n", encoding="utf-8")
    (args.output / "savings.csv").write_text(
        show([one for one in found if one.name.startswith(("savings", "against", "sel"))], "csv", {}) + "\n",
        encoding="utf-8",
    )
    save(draw_curves(_drawn(costs(records))), args.output / "curves")
    print(f"{about}\n\n{text}\n\n{time.monotonic() - started:.0f} s; written to {args.output}")
    return 0


def _executed(name: str) -> Outcomes:
    print(f"executing {name}", flush=True)
    return execute(name)


def _choices(plan: Plan, every: Sequence[Method]) -> list[Table]:
    """Rules of choice among eight plain runs, and among four gated ones."""
    gated = next(one for one in every if one.name == "entropy (log-probabilities), mediocre judge")
    choices = [selection_table(plan, every[0], 8), selection_table(plan, gated, 4)]
    return [choices[0], choices[1]._replace(name="selection_gated")]


def tables(records: Sequence[Record]) -> list[Table]:
    """Curves; savings against best-of-4 and -8; entropy against random gate; kinds of calls."""
    found = costs(records)
    usual = found["best-of-N"]
    counts = [n for n in (4, 8) if n in usual.runs]
    return [
        curve_table(found),
        *(savings_table(found, "best-of-N", n) for n in counts),
        *(_against_random(found, usual, n) for n in counts),
        kinds_table([one for one in records if one.runs == 4]),
    ]


def _against_random(found: dict[str, Costs], usual: Costs, runs: int) -> Table:
    rows = []
    for judge in JUDGES:
        random = found[f"random, same rate, {judge} judge"]
        for gate in ("entropy (log-probabilities)", "entropy (2 votes)", "oracle gate"):
            ratios = at_equal_rate(found[f"{gate}, {judge} judge"], random, usual, runs)
            rows.append({"judge": judge, "gate": gate, **spans(ratios)})
    title = f"Tokens over those of the random gate of the same rate, at the resolve rate of best-of-{runs}"
    return Table(f"against_random_at_{runs}", title, rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m hesnr_tasks.search.bench", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except HesnrError as error:
        print(f"hesnr: {error}", file=sys.stderr)
        return 2


def _drawn(found: dict[str, Costs]) -> dict[str, Costs]:
    """The methods that the figure shows."""
    wanted = ["best-of-N", "random, same rate, mediocre judge"]
    wanted += [f"entropy (log-probabilities), {judge} judge" for judge in JUDGES]
    return {name: found[name] for name in wanted}


if __name__ == "__main__":
    sys.exit(main())
