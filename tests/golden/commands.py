"""Commands whose numbers must not change, on the score files of two small runs beside this file.

`python -m tests.golden.commands NAME …` writes answers again (without a name: all): only where a number shall change.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path

from tests import ROOT

HERE = Path(__file__).parent
A, B = (f"{HERE}/runs/{name}" for name in ("step1000-2k", "step1004-8k"))
SCORES_A, SCORES_B = (f"{path}/scores" for path in (A, B))
QUICK = ["--resamples", "500", "--format", "json"]
COMMANDS = {
    "analyze": ["analyze", SCORES_A, SCORES_B, *QUICK],
    "analyze_settings": [
        "analyze", SCORES_A, SCORES_B, "--kinds", "action", "thought", "thought+action", "--filters", "every",
        "--epsilon", "ln3", "1.2", *QUICK,
    ],
    "analyze_by": [
        "analyze", SCORES_A, "--kinds", "thought+action", "--filters", "none",
        "--by", "turn", "position", "tool", "language", "resolved", "trajectory", *QUICK,
    ],
    "analyze_context": ["analyze", SCORES_A, SCORES_B, "--context", "1024", *QUICK],
    "analyze_sweep": ["analyze", SCORES_A, "--sweep", *QUICK],
    "analyze_histogram": ["analyze", SCORES_A, "--histogram", "--bins", "20", *QUICK],
    "analyze_cases": ["analyze", SCORES_A, "--kinds", "thought+action", "--filters", "none", "--cases", "5", *QUICK],
    "analyze_tool_entropy": ["analyze", SCORES_A, "--tool-entropy", "--forks", "5", *QUICK],
    "analyze_exploration": ["analyze", SCORES_A, SCORES_B, "--exploration", *QUICK],
    "compare": ["compare", SCORES_A, SCORES_B, *QUICK],
    "compare_all": [
        "compare", SCORES_B, SCORES_A, "--metrics", "he_snr", "he_ppl", "ppl", "top1_acc",
        "--kinds", "thought+action", "--filters", "none", *QUICK,
    ],
    "behaviours": ["behaviours", str(ROOT / "hesnr_tasks" / "demo" / "trajectories.jsonl"), "--format", "json"],
}  # fmt: skip


def answer(words):
    """What the command prints as JSON, decoded."""
    from hesnr_tasks.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(words)
    assert code == 0, (words, code)
    return json.loads(out.getvalue())


def report(folder):
    """The numbers that `hesnr report` writes as CSV, by file."""
    from hesnr_tasks.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", A, B, "-o", str(folder)]) == 0
    return {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8").splitlines()
        for path in sorted(Path(folder).rglob("*.csv"))
    }


def write(names):
    for name in names or [*COMMANDS, "report"]:
        if name == "report":
            with tempfile.TemporaryDirectory() as folder:
                value = report(folder)
        else:
            value = answer(COMMANDS[name])
        text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True).replace(str(ROOT), ".") + "\n"
        (HERE / "answers" / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1:])
