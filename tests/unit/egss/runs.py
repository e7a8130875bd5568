"""Five small repositories with a planted bug each, and three finished runs over them, of three agents' formats.

Run `first` (mini-swe-agent) has the right patch of even instances, `second` (SWE-agent) of odd ones, `third`
(OpenHands) a patch that is wrong everywhere but differs in spelling only from the wrong one of the others in case 4.
"""

import difflib
import json

NAMES = ("clamp", "median", "slug", "chunk", "wrap")
TASKS = {
    "clamp": "clamp(5, 1, 3) returns 5; it must not exceed the upper bound.",
    "median": "median of an even number of values must be the mean of the two in the middle.",
    "slug": "slug must join words by one dash, however many blanks are between them.",
    "chunk": "chunk drops the last, shorter piece.",
    "wrap": "wrap(-1, 5) must be 4.",
}
BUGGY = {
    "clamp": "def clamp(x, low, high):\n    return max(x, low)\n",
    "median": "def median(xs):\n    return sorted(xs)[len(xs) // 2]\n",
    "slug": "def slug(text):\n    return text.lower().replace(' ', '-')\n",
    "chunk": "def chunk(xs, n):\n    return [xs[i:i + n] for i in range(0, len(xs) - n + 1, n)]\n",
    "wrap": "import math\n\n\ndef wrap(i, n):\n    return int(math.fmod(i, n))\n",
}
RIGHT = {
    "clamp": "def clamp(x, low, high):\n    return min(max(x, low), high)\n",
    "median": "def median(xs):\n    xs, n = sorted(xs), len(xs)\n    return (xs[(n - 1) // 2] + xs[n // 2]) / 2\n",
    "slug": "def slug(text):\n    return '-'.join(text.lower().split())\n",
    "chunk": "def chunk(xs, n):\n    return [xs[i:i + n] for i in range(0, len(xs), n)]\n",
    "wrap": "import math\n\n\ndef wrap(i, n):\n    return i % n\n",
}
WRONG = {
    "clamp": "def clamp(x, low, high):\n    return min(x, high)\n",
    "median": "def median(xs):\n    return sum(xs) / len(xs)\n",
    "slug": "def slug(text):\n    return text.lower().replace('  ', ' ').replace(' ', '-')\n",
    "chunk": "def chunk(xs, n):\n    return [xs[i:i + n] for i in range(0, len(xs) + 1, n)]\n",
    "wrap": "import math\n\n\ndef wrap(i, n):\n    return abs(int(math.fmod(i, n)))\n",
}
ASSERTIONS = {
    "clamp": {"high": "clamp(5, 1, 3) == 3", "low": "clamp(0, 1, 3) == 1"},
    "median": {"even": "median([1, 2, 3, 10]) == 2.5", "odd": "median([3, 1, 2]) == 2"},
    "slug": {"many": "slug('A   b') == 'a-b'", "single": "slug('A b') == 'a-b'"},
    "chunk": {"rest": "chunk([1, 2, 3], 2) == [[1, 2], [3]]", "even": "chunk([1, 2], 2) == [[1, 2]]"},
    "wrap": {"minus": "wrap(-1, 5) == 4", "over": "wrap(7, 5) == 2"},
}
TESTS = {  # what an agent wrote: the right patch passes, the wrong one fails one of them
    name: f"from {name} import {name}\n"
    + "".join(f"\n\ndef test_{test}():\n    assert {it}\n" for test, it in each.items())
    for name, each in ASSERTIONS.items()
}


def diff(path, before, after):
    """A git diff of one file; an empty `before`: a new file."""
    old, new = before.splitlines(True), after.splitlines(True)
    head = f"diff --git a/{path} b/{path}\n" + ("" if before else "new file mode 100644\n")
    return head + "".join(difflib.unified_diff(old, new, f"a/{path}" if before else "/dev/null", f"b/{path}"))


def patch(name, solution):
    """From the planted bug to a solution."""
    return diff(f"{name}.py", BUGGY[name], solution[name])


def repositories(folder):
    """The data set: folder/repos/INSTANCE and folder/data/test.jsonl."""
    (folder / "data").mkdir(parents=True)
    rows = []
    for name in NAMES:
        repo = folder / "repos" / f"demo__{name}-1"
        repo.mkdir(parents=True)
        (repo / f"{name}.py").write_text(BUGGY[name])
        rows.append({"instance_id": f"demo__{name}-1", "problem_statement": TASKS[name]})
    (folder / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def mini(folder, instance_id, task, submission, commands=()):
    """A run of mini-swe-agent on one instance, as `mini-extra swebench` leaves it."""
    messages = [{"role": "system", "content": "You can run commands."}, {"role": "user", "content": task}]
    for command in commands:
        messages.append({"role": "assistant", "content": f"Next.\n\n```mswea_bash_command\n{command}\n```"})
        messages.append({"role": "user", "content": "<returncode>0</returncode>"})
    record = {
        "info": {
            "mini_version": "2.4.6",
            "exit_status": "Submitted",
            "submission": submission,
            "config": {"agent": {}},
        },
        "messages": messages,
        "instance_id": instance_id,
        "trajectory_format": "mini-swe-agent-1.1",
    }
    path = folder / instance_id / f"{instance_id}.traj.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
    predictions = folder / "preds.json"
    rows = json.loads(predictions.read_text()) if predictions.exists() else {}
    rows[instance_id] = {"model_name_or_path": "m", "instance_id": instance_id, "model_patch": submission}
    predictions.write_text(json.dumps(rows))


def sweagent(folder, instance_id, task, submission):
    """A run of SWE-agent on one instance."""
    history = [
        {"role": "system", "content": "You can run commands.", "agent": "main", "message_type": "system_prompt"},
        {"role": "user", "content": task, "agent": "main", "message_type": "observation"},
        {
            "role": "assistant",
            "content": "Look.\n```\nls\n```",
            "action": "ls",
            "agent": "main",
            "message_type": "action",
        },
        {"role": "user", "content": "a.py", "agent": "main", "message_type": "observation"},
    ]
    record = {"environment": instance_id, "trajectory": [], "history": history}
    record["info"] = {"submission": submission, "exit_status": "submitted"}
    path = folder / instance_id / f"{instance_id}.traj"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))


def openhands(folder, rows):
    """A run of OpenHands: one file of rows (instance_id, task, submission)."""
    folder.mkdir(parents=True)
    lines = []
    for instance_id, task, submission in rows:
        history = [
            {"id": 0, "source": "user", "action": "message", "args": {"content": task}},
            {"id": 1, "source": "agent", "action": "run", "args": {"command": "ls", "thought": "Look."}},
            {"id": 2, "source": "agent", "observation": "run", "content": "a.py", "extras": {}},
        ]
        row = {"instance_id": instance_id, "test_result": {"git_patch": submission}, "history": history}
        lines.append(json.dumps({**row, "instance": {"instance_id": instance_id, "problem_statement": task}}) + "\n")
    (folder / "output.jsonl").write_text("".join(lines))


def three_runs(folder, names=NAMES):
    """The three runs over the five instances; returns their folders."""
    first, second, third = (folder / "runs" / name for name in ("first", "second", "third"))
    rows = []
    for name in names:
        instance_id, even = f"demo__{name}-1", NAMES.index(name) % 2 == 0
        tests = f"cat > test_{name}.py <<'EOF'\n{TESTS[name]}EOF"
        mini(first, instance_id, TASKS[name], patch(name, RIGHT if even else WRONG), [tests, "python -m pytest -q"])
        added = diff(f"tests/test_{name}_more.py", "", TESTS[name].replace("def test_", "def test_more_"))
        sweagent(second, instance_id, TASKS[name], patch(name, WRONG if even else RIGHT) + added)
        rows.append((instance_id, TASKS[name], patch(name, WRONG)))
    openhands(third, rows)
    return [str(first), str(second), str(third)]
