"""Made-up ladders: score files of a few checkpoints, and result files as lm-eval saves them."""

import argparse
import json
from dataclasses import replace

import numpy as np

from hesnr_tasks.cli import report as command
from hesnr_tasks.ladder.names import read_ladder
from hesnr_tasks.ladder.schema import DownstreamScore
from hesnr_tasks.report.data import build_report_data
from tests.unit.analysis import made

NAMES = ("step200-2k", "step800-2k", "step1600-2k", "step1604-8k", "step2000-8k", "step2000-8k-sft")
RESAMPLES = 400


def report(*words):
    """Run `hesnr report` with its own arguments."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def score_files(folder, names=NAMES, trajectories=8, tokens=300):
    """Stores of the checkpoints, each a little better than the one before it."""
    folders = {}
    for index, name in enumerate(names):
        place = folder / f"scores{index}"
        made.run_of(
            place,
            trajectories,
            tokens,
            seed=index,
            shift=index / len(names),
            quality=0.6 * index / len(names),
            model=f"made/{name}",
        )
        folders[name] = place
    return folders


def report_data(folders, downstream=True, results=(), names=None):
    named = read_ladder(names or folders)
    if downstream:
        checkpoints = tuple(
            replace(c, downstream={"swe": DownstreamScore(round(0.1 + 0.02 * i - 0.05 * (i == 2), 3), 200)})
            for i, c in enumerate(named.checkpoints)
        )
        named = named._replace(checkpoints=checkpoints, ladder=replace(named.ladder, checkpoints=checkpoints))
    return build_report_data(results, named, folders, resamples=RESAMPLES)


def result(folder, name, snr=0.2, date=1.0, model_args=None, others=None, **signature):
    """A result file with hesnr_swe and HellaSwag; `signature` overrides what hesnr_swe was made with."""
    signed = {
        "hesnr_tasks": "0.1.0", "k": 10, "epsilon": 1.2424533, "kinds": ["action"], "filters": ["xml"],
        "render": "transcript", "overflow": "right", "max_length": 2048, "tokens_cut": 0, "trajectories": 8,
        "data": "abcdef0123456", "run": {"model": name, "tokenizer": "t", "dtype": "torch.float32"},
    } | signature  # fmt: skip
    ours = {
        "alias": "hesnr_swe",
        "he_snr,none": snr,
        "he_snr_stderr,none": 0.01,
        "ppl,none": 3.0,
        "ppl_stderr,none": "N/A",
    }
    others = (
        {"hellaswag": {"alias": "hellaswag", "acc,none": 0.3, "acc_stderr,none": 0.004}} if others is None else others
    )
    saved = {
        "results": {"hesnr_swe": ours, **others},
        "configs": {"hesnr_swe": {"metadata": {"signature": signed}}, **{task: {} for task in others}},
        "config": {"model_args": model_args or {"pretrained": f"/ckpt/{name}"}},
        "higher_is_better": {"hesnr_swe": {"he_snr": True}, "hellaswag": {"acc": True}},
        "versions": {"hellaswag": 1},
        "n-shot": {"hellaswag": 0},
        "n-samples": {"hellaswag": {"effective": 100}},
        "date": date,
    }
    path = folder / name / f"results_{date}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(saved))
    return saved


def raw_tokens(folder, mask):
    """(ln p, rank, candidates' ln p) of the tokens that count, for each trajectory, straight from the score files."""
    from hesnr_tasks.scores import ScoreStore

    store = ScoreStore.open(folder)
    for key in store:
        stored = store.read(key)
        rows = np.flatnonzero((stored.label & mask) != 0)
        scores = stored.scores
        yield [(float(scores.logprob[i]), int(scores.rank[i]), scores.topk_logprobs[i].astype(float)) for i in rows]
