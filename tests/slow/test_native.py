"""`render=native` through lm_eval, on tiny models that carry several templates, against the float64 reference."""

import os
import shutil
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from resource import RLIMIT_AS, getrlimit

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

import hesnr_tasks as hesnr
from hesnr_tasks.actions import ToolCall, render_call
from hesnr_tasks.errors import DataError, SettingsError
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.metrics import EPSILON, names_of
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory
from hesnr_tasks.trajectory.chat_templates import run_template
from hesnr_tasks.trajectory.rendering import label_mask, render
from tests import tiny
from tests.lm_eval_run import evaluate, values, write
from tests.reference import metrics as reference
from tests.reference import pipeline

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# one of each family: the test of labels goes through all templates
NAMES = ("qwen3", "llama3_1", "gptoss", "glm4moe", "gemma4_v5", "deepseekv3", "phi3", "qwen3_6", "nemotron_3_ultra")
NAMES += ("lfm2_2_5", "muse_glimmer", "smolvlm", "diffusion_gemma", "deepseek_r1_distill")
PLAIN_NAMES = ("qwen2_5", "llama3_1", "gemma3", "phi3_5", "cohere2", "lfm2_2_5", "nemotron_3_nano", "qwen3", "smolvlm")
PLAIN_NAMES += ("glm4moe", "deepseekv3", "gemma", "gemma4", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.llama(str(tmp_path_factory.mktemp("checkpoint")), steps=40)


def run(name, command):
    """A run whose calls were stored as structures, with reasoning."""
    call = "\n\n" + render_call(ToolCall("bash", {"command": command, "timeout": 60}))
    messages = (
        Message("user", (Segment(Kind.CONTEXT, "Mend the parser."),)),
        Message(
            "assistant",
            (Segment(Kind.THOUGHT, "<think>\nWhere is it?\n</think>\n\nI look."), Segment(Kind.ACTION, call)),
        ),
        Message("tool", (Segment(Kind.OBSERVATION, "parser.py\nsetup.py"),)),
        Message("assistant", (Segment(Kind.THOUGHT, "Done."),)),
    )
    return Trajectory(name, messages, fidelity=Fidelity.RENDERED)


RUNS = [run("a", "grep -rn 'def parse' . | head -5"), run("b", "python - <<'E'\nx = \"1\"  # one\nprint(x)\nE")]


def carrying(template, checkpoint, folder):
    """A copy of the checkpoint whose tokenizer has the template."""
    shutil.copytree(checkpoint, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


def check_numbers(result, folder, tokenizer, texts):
    """Every metric, and the perplexity that `hesnr.score` gives, against the reference over the labelled texts."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    mask, tokens = int(label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))), []
    for rendered in texts:
        kept = [bool(mask >> int(code) & 1) for code in char_codes(rendered)]
        tokens += pipeline.tokens_of(model, tokenizer, rendered, kept, 32768)
    want, measured = reference.metrics(tokens, EPSILON), values(result, "hesnr_swe")
    for metric in names_of():
        assert measured[metric] == pytest.approx(want[metric], rel=1e-5, nan_ok=True), metric
    return model, want


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_reference(checkpoint, tmp_path, name):
    folder, tokenizer = carrying((TEMPLATES / f"{name}.jinja").read_text(), checkpoint, tmp_path / name)
    runs = write(tmp_path / "runs.jsonl", RUNS)
    result = evaluate(folder, ["hesnr_swe"], {"trajectories": str(runs), "render": "native", "resamples": 100})
    texts = [hesnr.label(trajectory, "native", tokenizer)._rendered for trajectory in RUNS]
    model, want = check_numbers(result, folder, tokenizer, texts)
    signature = result["configs"]["hesnr_swe"]["metadata"]["signature"]
    assert signature["render"] == "native"
    assert sum(signature["template"]["forms"].values()) == len(RUNS)
    assert signature["template"]["thoughts_total"] > signature["template"]["thoughts_dropped"]
    scores = hesnr.score(model, tokenizer, RUNS, render="native").evaluate(min_tokens=0)
    assert scores["ppl"].value == pytest.approx(want["ppl"], rel=1e-5)


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_numbers_with_apply_chat_template_are_those_of_the_reference(checkpoint, tmp_path, name):
    """The texts are those of the tokenizer's own method, and what counts in them is what counts in chatml."""
    folder, tokenizer = carrying((TEMPLATES / f"{name}.jinja").read_text(), checkpoint, tmp_path / name)
    plain = [without_reasoning(trajectory) for trajectory in RUNS]
    runs = write(tmp_path / "runs.jsonl", plain)
    metadata = {"trajectories": str(runs), "resamples": 100}
    result = evaluate(folder, ["hesnr_swe"], metadata, apply_chat_template=True)
    template = partial(tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=True)
    texts = [render(trajectory, "template", template) for trajectory in plain]
    assert [kept_text(text) for text in texts] == [kept_text(render(trajectory, "chatml")) for trajectory in plain]
    check_numbers(result, folder, tokenizer, texts)
    assert result["configs"]["hesnr_swe"]["metadata"]["signature"]["render"] == "template"


def without_reasoning(trajectory):
    """--apply_chat_template passes reasoning as text, which many templates drop."""

    def shorter(segment):
        return replace(segment, text=segment.text.rpartition("</think>\n\n")[2])

    messages = (replace(m, segments=tuple(map(shorter, m.segments))) for m in trajectory.messages)
    return replace(trajectory, messages=tuple(messages))


def kept_text(rendered):
    mask = int(label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS)))
    return "".join(c for c, code in zip(rendered.text, char_codes(rendered), strict=True) if mask >> int(code) & 1)


def test_a_date_is_refused_where_it_cannot_be_fixed(checkpoint, tmp_path):
    source = (
        "{{ date_string or strftime_now('%d %b %Y') }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    )
    folder, _ = carrying(source, checkpoint, tmp_path / "dated")
    metadata = {"trajectories": str(write(tmp_path / "runs.jsonl", RUNS[:1]))}
    with pytest.raises(
        SettingsError, match=r"(?s)prints today's date.*date_string in chat_template_args.*render=native"
    ):
        evaluate(folder, ["hesnr_swe"], metadata, apply_chat_template=True)
    assert values(evaluate(folder, ["hesnr_swe"], {**metadata, "render": "native"}), "hesnr_swe")["ppl"] > 0


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BAD = {
    "none": (None, "has no chat template"),
    "loops": (LOOP, "may loop for ever"),
    "powers": ("{{ 9 ** 9 ** 9 }}", "computes a power"),
    "raises": ("{{ raise_exception('never') }}", "'never'|TemplateError: never"),
    "repeats": ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "repeats"),
    "reorders": ("{% for m in messages|reverse %}{{ m.content }}{% endfor %}", "reorders|drops or repeats"),
    "rewrites": ("{% for m in messages %}{{ m.content|upper }}{% endfor %}", "rewrites|drops or repeats|drops message"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_template_that_cannot_be_used_is_named_with_what_to_use(checkpoint, tmp_path, monkeypatch, name):
    if name == "loops":  # the others end, though on a busy machine not in half a second
        monkeypatch.setattr("hesnr_tasks.trajectory.chat_templates.MAX_SECONDS", 0.5)
    source, match = BAD[name]
    folder, _ = carrying(source, checkpoint, tmp_path / name)
    if source is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    runs = str(write(tmp_path / "runs.jsonl", RUNS[:1]))
    for metadata, options in (({"render": "native"}, {}), ({}, {"apply_chat_template": True})):
        with pytest.raises((SettingsError, DataError), match=f"(?s)({match}).*[Uu]se .*render=chatml"):
            evaluate(folder, ["hesnr_swe"], {"trajectories": runs, **metadata}, **options)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_process_forked_while_a_template_runs_is_free():
    """It does not have the lock; and no limit of the operating system holds for threads or processes beside it."""
    before, statuses = getrlimit(RLIMIT_AS), []

    def fork():
        running.wait()
        if child := os.fork():
            statuses.append(os.waitpid(child, 0)[1])
        else:
            signal.alarm(300)
            os._exit(getrlimit(RLIMIT_AS) != before or run_template(lambda: "text") != "text")

    running, thread = threading.Event(), threading.Thread(target=fork)
    thread.start()

    def template():
        running.set()
        thread.join()
        return getrlimit(RLIMIT_AS)

    assert run_template(template) == before
    assert statuses == [0]
