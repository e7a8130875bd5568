"""`render=native` through lm_eval, on tiny models that carry several templates, against the float64 reference."""

import shutil
from pathlib import Path

import pytest
import torch
import trl
from transformers import AutoModelForCausalLM, AutoTokenizer

import hesnr_tasks as hesnr
from hesnr_tasks.actions import ToolCall, render_call
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.metrics import EPSILON, names_of
from hesnr_tasks.rendering import label_mask
from hesnr_tasks.trajectory import Fidelity, Kind, Message, Segment, Trajectory
from tests import tiny
from tests.lm_eval_run import evaluate, values, write
from tests.reference import metrics as reference
from tests.reference import pipeline

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
NAMES = ("qwen3", "llama3_1", "gptoss", "glm4moe", "gemma4_v5", "deepseekv3", "phi3")


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


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_reference(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    runs = write(tmp_path / "runs.jsonl", RUNS)
    result = evaluate(folder, ["hesnr_swe"], {"trajectories": str(runs), "render": "native", "resamples": 100})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    mask, tokens = int(label_mask((Kind.ACTION,), tuple(FILTERS), tuple(FILTERS))), []
    for trajectory in RUNS:
        rendered = hesnr.label(trajectory, "native", tokenizer)._rendered
        kept = [bool(mask >> int(code) & 1) for code in char_codes(rendered)]
        tokens += pipeline.tokens_of(model, tokenizer, rendered, kept, 32768)
    want, measured = reference.metrics(tokens, EPSILON), values(result, "hesnr_swe")
    for metric in names_of():
        assert measured[metric] == pytest.approx(want[metric], rel=1e-5, nan_ok=True), metric
    signature = result["configs"]["hesnr_swe"]["metadata"]["signature"]
    assert signature["render"] == "native"
    assert sum(signature["template"]["forms"].values()) == len(RUNS)
    assert signature["template"]["thoughts_total"] > signature["template"]["thoughts_dropped"]
    scores = hesnr.score(model, tokenizer, RUNS, render="native").evaluate(min_tokens=0)
    assert scores["ppl"].value == pytest.approx(want["ppl"], rel=1e-5)
