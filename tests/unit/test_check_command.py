"""`hesnr check`: its counts against those of the labels, and everything that it refuses before a model is loaded."""

import json
import shutil
from pathlib import Path

import pytest
import trl

import hesnr_tasks as hesnr
from hesnr_tasks import demo
from hesnr_tasks.cli import main
from hesnr_tasks.testing import byte_tokenizer
from hesnr_tasks.trajectory.alignment import Encoder

RUNS = str(demo.trajectories_path())
MODEL = demo.ladder_paths()[-1][1]
TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def answer(capsys, *words):
    status = main(["check", *map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out)


def with_template(folder, source):
    byte = byte_tokenizer()
    byte.bos_token, byte.chat_template = "<s>", source
    byte.save_pretrained(folder)
    shutil.copy(MODEL / "config.json", folder)
    return folder


def test_counts_are_those_of_the_labels(capsys):
    status, answered = answer(capsys, RUNS, "--model", MODEL, "--max-length", 2700)
    texts = [hesnr.label(run) for run in hesnr.load(RUNS)]
    assert status == 0
    assert answered["text"]["kept_characters"] == sum(len(text.kept()) for text in texts)
    spans = [span for text in texts for span in text.spans]
    characters = {kind: sum(s.end - s.start for s in spans if s.kind.value == kind) for kind in ("thought", "action")}
    assert {kind: answered["text"]["characters"][kind] for kind in characters} == characters
    encoder = Encoder(hesnr_tokenizer())
    lengths = [len(encoder.encode(text._rendered).ids) for text in texts]
    assert answered["text"]["longest"] == max(lengths)
    assert answered["text"]["longer_than_context"] == sum(n > 2700 for n in lengths) > 0
    assert answered["text"]["kept_tokens"] < answered["text"]["kept_tokens_total"]
    assert answered["trajectories"]["count"] == len(texts) == answered["trajectories"]["records"]


def hesnr_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODEL)


def test_the_model_is_counted_from_its_configuration(capsys, tmp_path):
    from transformers import AutoModelForCausalLM

    shutil.copytree(MODEL, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    _, answered = answer(capsys, RUNS, "--model", tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert answered["model"]["parameters"] == sum(p.numel() for p in model.parameters()) == model.num_parameters()
    c = model.config
    per_token = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2
    assert answered["model"]["kv_cache_bytes"] == per_token * c.max_position_embeddings


def test_experts_that_do_not_work_on_a_token_are_left_out(capsys, tmp_path):
    from transformers import Qwen3MoeConfig

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 4,
    }
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    Qwen3MoeConfig(vocab_size=300, **sizes, **experts, architectures=["Qwen3MoeForCausalLM"]).save_pretrained(tmp_path)
    _, answered = answer(capsys, RUNS, "--model", tmp_path, "--tokenizer", MODEL)
    idle = 6 * 3 * 8 * 16  # experts of three matrices
    assert answered["model"]["parameters"] - answered["model"]["active_parameters"] == idle


def test_what_a_template_does(capsys, tmp_path):
    qwen = with_template(tmp_path / "qwen", (TEMPLATES / "qwen3.jinja").read_text())
    status, answered = answer(capsys, RUNS, "--model", qwen, "--render", "native")
    assert status == 0
    assert set(answered["template"]["behaviour"].values()) == {"kept", "kept apart", "not printed"}
    assert answered["template"]["rendered"] == 12
    gemma = with_template(tmp_path / "gemma", (TEMPLATES / "gemma.jinja").read_text())
    behaviour = answer(capsys, RUNS, "--model", gemma)[1]["template"]["behaviour"]
    assert behaviour["system prompt"].startswith("refused: ")
    assert behaviour["two user messages"].startswith("refused: ")
    assert behaviour["tool calls"].startswith(("refused", "drop"))
    llama = with_template(tmp_path / "llama", (TEMPLATES / "llama3_1.jinja").read_text())
    assert answer(capsys, RUNS, "--model", llama)[1]["template"]["reasoning"] == "inline"


def test_a_template_that_refuses_trajectories_is_a_problem(capsys, tmp_path):
    upper = with_template(tmp_path / "t", "{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    status, answered = answer(capsys, RUNS, "--model", upper, "--render", "native")
    assert status == 1
    assert len(answered["problems"]) == 13  # and nothing is left to count
    assert "rewrites message" in answered["problems"][0]
    status, answered = answer(capsys, RUNS, "--model", upper)
    assert (status, len(answered["template"]["refused"])) == (0, 12)


def test_text_fits_a_terminal(capsys, tmp_path):
    folder = with_template(tmp_path / "t", (TEMPLATES / "gemma.jinja").read_text())
    assert main(["check", RUNS, "--model", str(folder), "--max-length", "600"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert any("LESS THAN HALF" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["/nowhere"], "no file or folder '/nowhere'"),
        ([RUNS, "--epsilon", "9"], "epsilon=9 must lie in"),
        ([RUNS, "--render", "native"], "render=native needs --model"),
        ([RUNS, "--model", "/nowhere"], "--model /nowhere: there is no such file or folder"),
        ([RUNS, "--max-length", "1"], "--max-length is 1"),
        ([RUNS, "--probe"], "--probe needs --model"),
    ],
)
def test_what_cannot_be_used_is_named(capsys, words, reason):
    assert main(["check", *words]) == 2
    assert reason in capsys.readouterr().err


def test_eval_checks_settings_and_paths_first(capsys):
    run = ["eval", "--model", "hf", "--model_args", "pretrained=/nowhere", "--tasks", "hesnr_swe", "--metadata"]
    assert main([*run, "epsilon=9"]) == 2
    assert "epsilon=9 must lie in" in capsys.readouterr().err
    assert main([*run, '{"trajectories": "/nowhere"}']) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_less_than_half_is_the_last_word(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["check", RUNS, "--model", str(MODEL), "--max-length", "600"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "LESS THAN HALF" in "\n".join(lines)
    assert "less than half of the tokens that count" in "\n".join(lines[-2:])
    assert max(map(len, lines)) <= 80
    assert main(["check", RUNS, "--model", str(MODEL), "--max-length", "100000"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing stands in the way of a run."


@pytest.mark.parametrize(
    ("words", "reason"), [(["--model", "{}/step"], "Below it are hf."), (["--tokenizer", "{}/no/x"], "no such file")]
)
def test_a_checkpoint_that_is_not_there_is_named_as_by_eval(capsys, tmp_path, words, reason):
    shutil.copytree(MODEL, tmp_path / "step" / "hf")
    assert main(["check", RUNS, *(word.format(tmp_path) for word in words)]) == 2
    assert reason in capsys.readouterr().err
