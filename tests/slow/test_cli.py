"""The `hesnr` command, as a user types it."""

import contextlib
import json
import os
import subprocess
import sys
import threading

import pytest

from hesnr_tasks import cli
from hesnr_tasks.tasks import tasks_path
from tests import tiny
from tests.lm_eval_run import CommandResult, in_process
from tests.unit.analysis import made


@pytest.fixture
def hesnr(capfd):
    def run(*words):
        status = cli.main(list(map(str, words)))
        return CommandResult(*capfd.readouterr(), status)

    return run


def test_help_needs_neither_torch_nor_lm_eval():
    code = (
        "import sys, hesnr_tasks.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({m for m in ('torch', 'lm_eval', 'transformers', 'datasets', 'pyarrow') if m in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_tasks_prints_the_folder_for_include_path():
    typed = [sys.executable, "-m", "hesnr_tasks.cli", "tasks"]
    assert subprocess.run(typed, capture_output=True, text=True, check=True).stdout.strip() == str(tasks_path())


def test_an_error_is_one_paragraph_and_status_2(hesnr, tmp_path):
    done = hesnr("report", str(tmp_path))
    assert done.status == 2
    assert done.stderr.startswith("hesnr: no results of ours")
    assert "Traceback" not in done.stderr


def test_score_files_are_analyzed_and_compared_and_a_run_can_be_named(hesnr, tmp_path):
    """No option of a sub-command may take the place of what routes to it."""
    for seed, name in enumerate("ab"):
        made.run_of(tmp_path / name, 6, 60, seed=seed)
    for run in ([], ["--run", "latest"], ["--run", "all"]):
        for command in ("analyze", "compare"):
            done = hesnr(command, str(tmp_path / "a"), str(tmp_path / "b"), *run, "--resamples", "100")
            assert (done.status, done.stderr) == (0, ""), (command, run)
            assert "HE-SNR" in done.stdout


def test_convert_then_eval_then_report(hesnr, tmp_path, monkeypatch):
    """The three commands a newcomer types, on a file of chat rows."""
    turns = [
        {"role": "user", "content": "Fix the bug."},
        {
            "role": "assistant",
            "content": "Look.\n\n<function=bash>\n<parameter=command>ls src</parameter>\n</function>",
        },
        {"role": "user", "content": "OBSERVATION:\na.py"},
        {
            "role": "assistant",
            "content": "Read.\n\n<function=bash>\n<parameter=command>cat src/a.py</parameter>\n</function>",
        },
    ]
    rows = [{"messages": turns, "instance_id": f"a__b-{i}"} for i in range(3)]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hesnr"])  # put back: `hesnr eval` calls lm_eval by it
    checkpoint = tiny.llama(str(tmp_path / "checkpoint"), steps=5)
    converted = hesnr("convert", "runs.jsonl", "-o", "clean.jsonl")
    assert converted.status == 0, converted.stderr
    with in_process():
        evaluated = hesnr(
        "eval", "--model", "hf", "--model_args", f"pretrained={checkpoint},dtype=float32", "--tasks", "hesnr_swe",
        "--metadata", '{"trajectories": "clean.jsonl"}', "--output_path", "out",
    )  # fmt: skip
    assert evaluated.status == 0, evaluated.stderr[-2000:]
    assert "he_snr" in evaluated.stdout
    reported = hesnr("report", "out", "-o", "report")
    assert "| checkpoint |" in reported.stdout
    assert "3 trajectories" in reported.stdout
    assert (tmp_path / "report" / "leaderboard.csv").read_text().startswith("checkpoint,task,he_snr,he_snr_stderr")


def test_an_error_in_a_run_of_lm_eval_is_one_paragraph_too(hesnr, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hesnr"])
    with in_process():
        refused = hesnr("eval", "--model", "dummy", "--tasks", "hesnr_swe", "--metadata", '{"epsilom": 1}')
    assert refused.status == 2
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("hesnr: unknown setting 'epsilom' in --metadata. Did you mean 'epsilon'?")


@pytest.mark.parametrize(
    ("words", "why", "instead"),
    [
        (
            ["hf", "--model_args", "pretrained=/nope"],
            "pretrained=/nope in --model_args: there is no such",
            "a checkpoint",
        ),
        (["hf", "--model_args", "pretrained=here/chekpoint,dtype=auto"], "Did you mean 'checkpoint'?", "a checkpoint"),
        (["hf", "--model_args", "pretrained=~/x"], "~ is not expanded", "a checkpoint"),
        (["hf", "--model_args", "pretrained=here"], "no config.json. Below it are checkpoint.", "docs/engines.md#"),
        (["hf", "--model_args", "pretrained=nobody/nothing"], "the model cannot be loaded", "that exists"),
        (["gguf"], "llama.cpp's server returns no", "Use hf "),
        (["openai-chat-completions"], "of what they write", "Use local-completions"),
        (["anthropic-completions"], "no log-probabilities", "Use local-completions"),
        (["trtllm"], "one of the values is lost", "Use vllm"),
        (["megatron_lm", "--model_args", "load=/x"], "not in Hugging Face format", "docs/engines.md#checkpoints-of"),
    ],
)
def test_a_model_that_cannot_be_scored_is_two_lines_before_anything_loads(
    hesnr, monkeypatch, tmp_path, words, why, instead
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "checkpoint").mkdir(parents=True)
    (tmp_path / "here" / "checkpoint" / "config.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["hesnr"])
    with in_process():
        refused = hesnr("eval", "--model", *words, "--tasks", "hesnr_swe")
    assert refused.status == 2
    lines = refused.stderr[refused.stderr.rindex("hesnr: ") :].splitlines()
    assert len(lines) == 2
    assert why in lines[0]
    assert instead in lines[1]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["hesnr_swe", "--metadata", "trajectories=nope.jsonl"], "nope.jsonl"),
        (["hesnr_swe", "--metadata", "trajectories=half.jsonl"], "half.jsonl:2"),
        (["hesnr_swe", "--metadata", "epsilon=9"], "must lie in [0, ln k)"),
        (["hesnr_swe_thought", "--metadata", "kinds=action"], "kinds cannot be set for this task"),
        (["hesnr_swe", "--output_path", "half.jsonl/out"], "half.jsonl is a file"),
        (["hesnr_sew"], "there is no task 'hesnr_sew'. Did you mean 'hesnr_swe'?"),
    ],
)
def test_what_needs_no_weights_is_refused_before_they_load(hesnr, monkeypatch, tmp_path, words, why):
    """The checkpoint has no weights at all: whoever tries to load them gets another message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text('{"model_type": "llama"}')
    turns = [{"role": "user", "content": "Fix it."}, {"role": "assistant", "content": "ls"}]
    (tmp_path / "half.jsonl").write_text(json.dumps({"messages": turns}) + '\n{"messages": 7}\n')
    monkeypatch.setattr(sys, "argv", ["hesnr"])
    with in_process():
        refused = hesnr("eval", "--model", "hf", "--model_args", "pretrained=checkpoint", "--tasks", *words)
    assert refused.status == 2
    assert why in refused.stderr[refused.stderr.rindex("hesnr: ") :]


def test_arguments_without_sense_are_two_lines_not_a_traceback(hesnr, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["hesnr"])
    (tmp_path / "no.yaml").write_text("{{")
    (tmp_path / "wrong.yaml").write_text(
        "tasks: [hesnr_swe]\nmetadata: {trajectories: nope/}\nmodel_args: pretrained=c"
    )
    for words, why in (
        (["--tasks", "hesnr_swe"], "--model_args names none"),
        (["--config", "no.yaml"], "no.yaml is no YAML"),
        (["--config", "wrong.yaml"], "'nope/'"),  # before the checkpoint, which does not exist
        (["--tasks", "hesnr_swe", "--model_args", "pretrained=c", "--metadata", '{"k":'], "--metadata"),
    ):
        refused = None
        with in_process(), contextlib.suppress(SystemExit):  # of argparse, in lm-eval 0.5, which prints its usage
            refused = hesnr("eval", *words)
        if refused is None:
            assert words[-2] == "--metadata"
            continue
        assert refused.status == 2, words
        message = refused.stderr[refused.stderr.rindex("hesnr: ") :]
        assert why in message
        assert len(message.splitlines()) <= 2


def test_metadata_in_words_becomes_the_json_that_every_lm_eval_reads():
    from hesnr_tasks.cli.evaluate import _metadata_as_json

    words = ["--metadata", "trajectories=a=b/", "limit=3", "epsilon=ln3", "only_resolved=true", "--tasks", "hesnr_swe"]
    values = {"trajectories": "a=b/", "limit": 3, "epsilon": "ln3", "only_resolved": True}
    assert _metadata_as_json(words) == ["--metadata", json.dumps(values), "--tasks", "hesnr_swe"]
    for unchanged in (["--metadata", '{"k": "a=b"}'], ["--tasks", "x"], ["--metadata"]):
        assert _metadata_as_json(unchanged) == unchanged


def test_lm_evals_own_tasks_are_indexed_only_where_one_is_named(monkeypatch):
    from hesnr_tasks import demo
    from hesnr_tasks.cli.evaluate import _checked

    ours = ["--include_path", str(tasks_path())]
    for tasks, words, complete in (
        ("hesnr_swe,hesnr_proxies", ours, True),
        ("hesnr_swe_ablation", ours, True),
        ("hesnr_swe,gsm8k", ours, False),
        ("hesnr_swe", ["--include_path", "elsewhere"], False),  # whose tasks may be built on lm-eval's
        ("hesnr_passk_gsm8k", ours, False),  # is built on lm-eval's
    ):
        model = ["--model", "hf", "--model_args", f"pretrained={demo.ladder_paths()[0][1]}"]
        monkeypatch.setattr(sys, "argv", ["lm_eval", *model, "--tasks", tasks, *words])
        assert _checked()[1] is complete, tasks


def test_tasks_of_ones_own_stand_beside_ours(tmp_path):
    """lm_eval has one --include_path, and its reader of tasks takes several."""
    import lm_eval.tasks

    from hesnr_tasks.lm_eval_compat import our_tasks_included

    (tmp_path / "mine.yaml").write_text("task: mine\ndataset_path: json\noutput_type: multiple_choice\n")
    with our_tasks_included(str(tasks_path()), alone=True):
        for theirs in (str(tmp_path), [tmp_path], None, str(tasks_path())):
            names = lm_eval.tasks.TaskManager(include_path=theirs).all_tasks
            assert "hesnr_swe" in names
            assert ("mine" in names) is (theirs in (str(tmp_path), [tmp_path]))
            assert "gsm8k" not in names
    assert isinstance(lm_eval.tasks.TaskManager, type)


def test_a_chat_model_may_do_other_tasks(monkeypatch):
    from hesnr_tasks.cli.evaluate import _checked

    monkeypatch.setattr(sys, "argv", ["lm_eval", "--model", "local-chat-completions", "--tasks", "hesnr_passk_gsm8k"])
    assert _checked()[0] == {}


def on_terminal(*words, columns=100):
    """What a command writes to a terminal of so many columns, which stands where this process writes."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    written = []

    def read():
        with contextlib.suppress(OSError):  # Linux ends a terminal so
            while part := os.read(ours, 1 << 16):
                written.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", buffering=1) as terminal, pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        for name in ("stdout", "stderr", "__stdout__"):  # shutil asks the last for its width
            patch.setattr(sys, name, terminal)
        status = cli.main(list(map(str, words)))
    reader.join()
    os.close(ours)
    shown = b"".join(written).decode().replace("\r\n", "\n")
    assert status == 0, shown
    return shown


@pytest.mark.parametrize("columns", [80, 100])
def test_tables_fit_the_terminal_and_have_no_pipes(tmp_path, columns):
    for seed, name in enumerate(("a-checkpoint-with-a-rather-long-name-step1000", "step2", "step3")):
        made.run_of(tmp_path / "scores" / name, 6, 60, seed=seed)
    for words in (
        ["compare", tmp_path / "scores"],
        ["analyze", tmp_path / "scores", "--by", "turn", "--sweep", "--cases", 1],
        ["ladder", "verdict", tmp_path / "scores"],
    ):
        lines = on_terminal(*words, *([] if words[0] == "ladder" else ["--resamples", 100]), columns=columns).split(
            "\n"
        )
        assert max(map(len, lines)) <= columns, words
        assert not [line for line in lines if line.startswith("|")]
        assert "--wide" in "\n".join(lines)
    widest = on_terminal("compare", tmp_path / "scores", "--resamples", 100, "--wide", columns=columns)
    assert "detectable" in widest


def test_the_leaderboard_is_text_on_a_terminal_and_markdown_where_it_is_piped(tmp_path):
    results = tmp_path / "results_x.json"
    results.write_text(json.dumps({
        "results": {"gsm8k": {"acc,none": 0.5, "acc_stderr,none": 0.01}}, "configs": {"gsm8k": {}},
        "config": {"model_args": {"pretrained": "step1"}},
    }))  # fmt: skip
    assert "|" not in on_terminal("report", results)
    typed = [sys.executable, "-m", "hesnr_tasks.cli", "report", str(results)]
    piped = subprocess.run(typed, capture_output=True, text=True, check=True).stdout
    assert "| checkpoint |" in piped
    assert "\x1b" not in piped
    assert "| checkpoint |" in on_terminal("report", results, "--format", "markdown")


def test_no_option_takes_the_place_of_the_command():
    """Every command runs whatever its options are called: `--run` is not what is to be run."""
    from hesnr_tasks.cli import command_parser
    from hesnr_tasks.cli.analyze import analyze

    args = command_parser().parse_args(["analyze", "scores", "--run", "2"])
    assert (args.run, args.execute) == ("2", analyze)
    assert command_parser().parse_args(["analyze", "scores"]).run == "latest"
    commands = next(action.choices for action in command_parser()._actions if isinstance(action.choices, dict))
    for name, command in commands.items():
        assert "execute" not in {action.dest for action in command._actions}, name
