"""Scores of the demo trajectories by a small model, through the real engine, in a store."""

from lm_eval.models.huggingface import HFLM

from hesnr_tasks import demo
from hesnr_tasks.backends import iterate_scores
from hesnr_tasks.filters import FILTERS
from hesnr_tasks.formats import load
from hesnr_tasks.scores import ScoreStore, Source, Text, scoring_signature
from hesnr_tasks.tasks.corpus import Corpus
from hesnr_tasks.trajectory import Kind
from hesnr_tasks.trajectory.alignment import Encoder
from hesnr_tasks.trajectory.rendering import label_mask
from tests import tiny

MASK = label_mask([Kind.ACTION, Kind.THOUGHT], [], list(FILTERS))


def score_demo(folder, count=3, steps=25):
    """A store in `folder`/store with the first `count` demo trajectories."""
    model = HFLM(pretrained=tiny.llama(str(folder / "model"), steps=steps), dtype="float32", device="cpu")
    trajectories = load([str(demo.trajectories_path())], limit=count)
    corpus = Corpus(trajectories)
    keys = [corpus.text(i, "transcript") for i in range(len(corpus))]
    requests = [corpus.request(t.id, key, mask=MASK, k=10, overflow="right") for t, key in zip(trajectories, keys)]
    results = [scores for _, scores, _ in sorted(iterate_scores(model, requests), key=lambda item: item[0])]
    signature = scoring_signature(results[0].run, render="transcript", overflow="right", k=10, filters=list(FILTERS))
    store = ScoreStore.open(folder / "store", signature)
    encoder = Encoder(model.tokenizer)
    for trajectory, request, scores in zip(trajectories, requests, results, strict=True):
        store.write(
            scores,
            text=Text(request.read(), encoder.encode(request.read()).ids),
            mask=MASK,
            sources=[Source(trajectory.id, trajectory.instance_id, trajectory.resolved)],
        )
    return store
