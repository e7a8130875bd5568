"""lm-eval result files with a value of another type: read as before, or refused with the file's name; never a trace."""

import json
import random

import pytest

from hesnr_tasks import cli
from hesnr_tasks.errors import DataError
from hesnr_tasks.ladder.downstream import add_downstream
from hesnr_tasks.ladder.schema import Checkpoint, Ladder
from hesnr_tasks.metrics import names_of
from hesnr_tasks.report.results import read_results
from tests.slow import type_swaps

pytestmark = pytest.mark.slow

SIGNATURE = {
    "k": 10, "epsilon": 1.24, "kinds": ["action"], "filters": ["xml"], "render": "transcript", "overflow": "truncate",
    "max_length": None, "tokens_cut": 0, "trajectories": 3, "data": "abc", "run": {"weights": "x", "tokenizer": "t"},
}  # fmt: skip
OURS = {"alias": "hesnr_swe", **{f"{name},none": 0.5 for name in names_of()}, "he_snr_stderr,none": 0.1}
RESULTS = {
    "results": {"hesnr_swe": OURS, "arc": {"acc,none": 0.4, "acc_stderr,none": 0.01, "alias": " - arc"}},
    "configs": {"hesnr_swe": {"metadata": {"signature": SIGNATURE, "scores": None}}, "arc": {"metadata": {}}},
    "group_subtasks": {"all": ["arc"], "arc": []},
    "higher_is_better": {"arc": {"acc": True}, "hesnr_swe": {"he_snr": True}},
    "versions": {"arc": 1}, "n-shot": {"arc": 0}, "n-samples": {"arc": {"original": 5, "effective": 5}},
    "config": {"model_args": {"pretrained": "models/step100", "revision": "main"}},
    "model_name": "models/step100", "date": 1700000000.5, "chat_template": None, "system_instruction_sha": None,
}  # fmt: skip


def test_result_files_with_values_of_other_types(tmp_path, capsys):
    rng = random.Random(5)
    others = (*type_swaps.OTHERS, 10**400, float("nan"), {"arc": ["arc"]}, ["arc"], {"all": ["all"]})
    file = tmp_path / "results_x.json"
    refused = 0
    for steps in type_swaps.values([RESULTS]):
        for other in rng.sample(others, 5):
            (results,) = type_swaps.replaced([RESULTS], steps, lambda _, other=other: other) if steps[1:] else [other]
            file.write_text(json.dumps(results))
            try:
                rows = read_results([file])
            except DataError:
                refused += 1
                continue
            assert cli.main(["report", str(file)]) in (0, 2), steps
            capsys.readouterr()
            ours = [row for row in rows if row.signature]
            swapped_metric = "results" in steps and any(f"{name},none" in steps for name in names_of())
            if ours and not swapped_metric:
                assert ours[0].values["he_snr"].value == 0.5
    assert refused > 50


def test_hostile_files_as_results_ladders_and_downstream_scores(tmp_path):
    deep, huge = b"[" * 100_000, b'{"results": {}, "configs": {}, "date": ' + b"9" * 9000 + b"}"
    for i, data in enumerate((b"", b"\xff\xfe", deep, huge, b"{}", b"null", b'{"results": {}, "results": {}}')):
        file = tmp_path / f"results_{i}.json"
        file.write_bytes(data)
        with pytest.raises(DataError, match=file.name):
            read_results([file])
        with pytest.raises(DataError, match=file.name):
            add_downstream(Ladder((Checkpoint("a"),)), [file])
        for words in (["--ladder", str(file)], ["--downstream", str(file)], ["--downstream", str(tmp_path / "no.csv")]):
            good = tmp_path / "good.json"
            good.write_text(json.dumps(RESULTS))
            assert cli.main(["report", str(good), *words]) in (0, 2)
