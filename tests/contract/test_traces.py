"""The way of a number, by hand and in lm-eval: how many types and frames of ours are on it (docs/design.md)."""

import dataclasses
import json
import traceback
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lm_eval.models.huggingface")

import hesnr_tasks as hesnr  # noqa: E402
from hesnr_tasks.backends import hf, tokenise  # noqa: E402
from hesnr_tasks.backends.base import TokenSequence  # noqa: E402
from hesnr_tasks.filters import FILTERS  # noqa: E402
from hesnr_tasks.formats import choose, read_record  # noqa: E402
from hesnr_tasks.formats.sources import records  # noqa: E402
from hesnr_tasks.metrics import METRICS, TokenColumns, TrajectorySums, evaluate  # noqa: E402
from hesnr_tasks.tasks.corpus import Corpus  # noqa: E402
from hesnr_tasks.testing import byte_tokenizer, save_checkpoint, tiny_model, trajectory  # noqa: E402
from hesnr_tasks.trajectory import Kind  # noqa: E402
from hesnr_tasks.trajectory.alignment import Encoder  # noqa: E402
from hesnr_tasks.trajectory.rendering import label_mask, render  # noqa: E402
from tests.lm_eval_run import evaluate as lm_eval  # noqa: E402

pytestmark = pytest.mark.numbers
K = 10
TYPES = (
    "Record", "Trajectory", "Rendered", "ScoringRequest", "Encoded", "TokenScores", "TokenSequence", "SequenceScores",
    "TokenColumns", "TrajectorySums", "float",
)  # fmt: skip
FRAMES = (
    "topk_loglikelihood",  # lm-eval calls it
    "_by_text",  # what iterate_scores returns
    "score",  # of the engine
    "_forward",  # in chunks that fit into memory
    "score_range",  # chunk by chunk
    "_replay_lm_head",  # logits at the wanted positions
    "forward",  # of the model's wrapper
)


@pytest.fixture
def runs(tmp_path):
    """A file of one trajectory."""
    run = trajectory("one", ("Look.", "ls -la && cat src/a.py", "x = 1"), ("Edit.", "sed -i s/1/2/ src/a.py", ""))
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(run.to_json()) + "\n")
    return str(path)


def test_the_types_from_a_record_to_a_number(runs):
    """Each value is made of those before it by one public function, and the last is what `hesnr.score` gives."""
    model, tokenizer = tiny_model(), byte_tokenizer()
    backend, mask = hf.make(hf.LiveModel(model, tokenizer)), label_mask([Kind.ACTION], FILTERS, tuple(FILTERS))
    record = next(records(runs))
    run = read_record(choose(record.value), record.value, record.where)
    corpus = Corpus()
    request = corpus.request(run.id, corpus.add(render(run)), mask=mask, k=K, overflow="error")
    text, encoded, tokens = tokenise(request, Encoder(tokenizer), backend.max_length)
    sequence = TokenSequence.of(request, encoded.ids, tokens.position, backend.max_length)
    ((_, scores),) = backend.score([sequence], K, lambda tokens: None)
    tokens = dataclasses.replace(tokens, scores=scores)
    columns = TokenColumns.of_scores(tokens, tokens.selected(mask), K, text.text)
    sums = TrajectorySums.of(columns, k=K)
    value = float(evaluate(METRICS["ppl"], *sums.parts("ppl"))[0])
    values = (record, run, text, request, encoded, tokens, sequence, scores, columns, sums, value)
    assert tuple(type(step).__name__ for step in values) == TYPES
    scored = hesnr.score(model, tokenizer, hesnr.load(runs), kinds="action")
    assert value == pytest.approx(scored.evaluate("ppl", min_tokens=0)["ppl"].value, rel=1e-6)


def test_the_frames_between_lm_eval_and_the_model(runs, tmp_path):
    """Of ours, when the model is called for scores; its own check of the engine aside."""
    stacks = []

    def look(module, arguments):
        if type(module).__name__.endswith("ForCausalLM"):
            frames = traceback.extract_stack()
            stacks.append(tuple(f.name for f in frames if "hesnr_tasks" in Path(f.filename).parts))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        lm_eval(save_checkpoint(tmp_path / "model"), ["hesnr_swe"], {"trajectories": runs, "resamples": 100})
    finally:
        handle.remove()
    scoring = {stack for stack in stacks if "choose_forward_mode" not in stack and "_check_length" not in stack}
    assert scoring == {FRAMES}
