"""What a gate brings on scripted agents: `python -m benchmarks.egss` writes results/egss/ (README.md, curves.csv).

python -m benchmarks.egss [--output results/egss] [--variants 1] [--runs 8] [--processes 2]
python -m benchmarks.egss --quick           # two repositories, to see that it runs
python -m benchmarks.egss --execute         # make and test every possible patch again (outcomes.json)
python -m benchmarks.egss --serve 8765      # the scripted server alone, for mini-extra swebench
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

from benchmarks.egss import experiment, world
from benchmarks.egss.server import Server
from hesnr_tasks.analysis.tables import show
from hesnr_tasks.egss.runs import at_equal_rate, curve_table, curves, spans
from hesnr_tasks.testing import fake_server

ROOT = Path(__file__).resolve().parents[2]
BASE = "best-of-N (never)"
PAGE = """# What gates bring on scripted agents

`{command}`, at commit {commit}: {tasks} repositories, {variants} agent each, {runs} runs of it by every method.

The shipped `GatedModel` in mini-swe-agent's own agent, against a scripted server that shows what a server shows: drawn
replies, log-probabilities of their tokens, usage. Ten small Python packages with two planted bugs each; every possible
patch was made and tested. Agents walk 23 steps (40 where they loop): 12 plain, 6 harmless forks, 2 edits of which
one option is right, a test of their own, its run and the submission. Edits are spelled in three ways, and 41 % of
commands begin with a needless `cd`. Judges are scripted: d' = 2 (good), 1 (mediocre), 0 (blind). All methods have the
same limits, and the same way to choose among several runs (their tests, then three selectors of d' = 1; ties by lot).

**Costs at equal resolve rate, over those of best-of-{at} without a gate (resolves {rate:.2f})**, [95 % interval,
repositories resampled]. Below 1: cheaper. prompt: all prompt tokens; cached: cached ones at a tenth; money: at 3, 0.30
and 15 $ a million. Probes, draws, judge and selectors are in it. ∞: the rate is not reached with up to {runs} runs;
0: what it is compared with does not reach it; –: neither does.

| gate, judge | fires | prompt | cached | output | money |
| --- | ---: | --- | --- | --- | --- |
{savings}

**Over the edit-class gate with the same judge, at the rate of best-of-{at}**: what entropy adds to "is it an edit?"

| gate, judge | prompt | cached | output | money |
| --- | --- | --- | --- | --- |
{controls}

{verdict}

What it does not show: how undecided a language model is where it matters. Here forks and edits are undecided by
construction, token counts are scripted, and ten packages are few. [curves.csv](curves.csv) has every point.
"""


def page(records, fired, about):
    """The text of the page and the table of curves."""
    methods, _ = curves(records)
    base = methods[BASE]
    count = 4 if 4 in base.runs else base.runs[-1]

    def row(name, reference, *more):
        ratios = at_equal_rate(methods[name], methods[reference], base, count)
        return f"| {' | '.join([name, *more, *spans(ratios).values()])} |", ratios

    gated = [name for name in methods if name != BASE]
    share = {name: f"{tally['fired'] / tally['steps']:.2f}" for name, tally in fired.items()}
    savings = [row(name, BASE, share[name])[0] for name in gated]
    controls, better, worse = [], [], []
    for name in gated:
        gate, _, judge = name.rpartition(", ")
        control = f"edit class, {judge}"
        if name != control and control in methods:
            line, ratios = row(name, control)
            controls.append(line)
            if gate.startswith(("votes", "log")):
                better += [name] if ratios[3].ci_high < 1 else []
                worse += [name] if ratios[3].ci_low > 1 else []
    verdict = "Entropy " + (
        f"is cheaper than the edit-class control, in money and beyond its interval, for: {'; '.join(better)}."
        if better
        else "is nowhere cheaper than the edit-class control in money beyond its interval."
    )
    verdict += f" Dearer beyond its interval: {'; '.join(worse)}." if worse else ""
    filled = PAGE.format(at=count, rate=base.resolved[:, base.runs.index(count)].mean(), savings="\n".join(savings),
                         controls="\n".join(controls), verdict=verdict, tasks=len(base.tasks), **about)  # fmt: skip
    return filled, curve_table(methods)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.egss", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "egss")
    parser.add_argument("--variants", type=int, default=1)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--execute", action="store_true")
    parser.add_argument("--serve", type=int, metavar="PORT")
    args = parser.parse_args()
    if args.execute:
        executed = {name: world.execute(name) for name in world.names()}
        world.OUTCOMES.write_text(json.dumps(executed, separators=(",", ":")) + "\n", encoding="utf-8")
        return
    if args.serve is not None:
        with fake_server(answer=Server(prefix="").reply, port=args.serve) as server:
            print(f"the scripted server answers at {server.url}; ^C ends it", flush=True)
            while True:
                time.sleep(3600)
    if args.quick:
        args.variants, args.runs, args.processes = 1, 2, 1
    counts = [n for n in (1, 2, 4, 8) if n <= args.runs]
    began = time.perf_counter()
    repositories = world.names()[:2] if args.quick else world.names()
    records, fired, rate = experiment.experiment(repositories, args.variants, 1, counts, args.processes)
    words = [word for word in (f"--variants {args.variants}" * (args.variants != 1), "--quick" * args.quick) if word]
    git = ["git", "-C", str(ROOT)]
    about = {
        "command": " ".join(["python -m benchmarks.egss", *words]),
        "commit": subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "variants": args.variants,
        "runs": max(counts),
    }
    text, table = page(records, fired, about)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "README.md").write_text(text, encoding="utf-8")
    (args.output / "curves.csv").write_text(show([table], "csv", {}), encoding="utf-8")
    print(text)
    runs = sum(tally["runs"] for tally in fired.values())
    print(f"{runs} runs, {time.perf_counter() - began:.0f} s; two votes differ at {rate:.3f} of steps")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
