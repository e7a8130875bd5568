"""A pack makes report and verdict again as score files do, holds no text and no path, and is refused when altered."""

import csv
import hashlib
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hesnr_tasks.cli import main
from hesnr_tasks.ladder.pack import public, read_pack
from hesnr_tasks.metrics import EPSILON
from hesnr_tasks.scores import ScoreStore
from tests.unit.report import ladders

pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("blank_figures")
NAMES = ("step200-2k", "step800-2k", "step1600-2k", "step1604-8k", "step2000-8k", "step2000-8k-sft")
QUICK = ["--resamples", "100"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Made-up score files under absolute paths with a ladder file, results of lm-eval, and the pack of it all."""
    folder = tmp_path_factory.mktemp("secret-place")
    runs = folder / "runs"
    for index, (name, store) in enumerate(ladders.score_files(folder, NAMES).items()):
        signature = ScoreStore.open(store).signature
        same = {key: signature[key] for key in ("k", "render", "overflow", "run")}
        ladders.result(
            runs, name, snr=0.1 + index / 100, epsilon=EPSILON, max_length=signature["run"]["max_length"], **same
        )
        store.rename(runs / name / "scores")
    (folder / "ladder.yaml").write_text(
        "trajectories: [/home/somebody/runs.jsonl]\nmodel_args: {base_url: 'http://intranet:8000/v1'}\ncheckpoints:\n"
        + "".join(
            f"- {{name: {name}, family: m, stage: {'sft' if name.endswith('sft') else 'mid'}, "
            f"model: {folder}/ckpt/{name}, trained_on: [{folder}/corpus], "
            f"downstream: {{swe: {{value: {round(20 + 3 * i - 8 * (i == 2), 2)}, n: 500, "
            f"{'after: sft' if i < 5 else 'harness: own'}}}}}}}\n"
            for i, name in enumerate(NAMES)
        )
    )
    path = folder / "ladder.hesnr.zip"
    assert main(["ladder", "pack", str(runs), "--ladder", str(folder / "ladder.yaml"), "-o", str(path)]) == 0
    return folder


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path, changed, sums=True):
    """A pack with other members; `sums`: with checksums that fit them. None removes one."""
    parts = {
        name: data
        for name, data in {**members(path.parent / "ladder.hesnr.zip"), **changed}.items()
        if data is not None
    }
    if sums and "SHA256SUMS" not in changed:
        lines = (
            f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in parts.items() if name != "SHA256SUMS"
        )
        parts["SHA256SUMS"] = "".join(lines).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def alike(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            alike(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            alike(x, y)
    elif isinstance(a, float) and isinstance(b, float):
        assert math.isclose(a, b, rel_tol=1e-12)
    else:
        assert a == b


def verdict(capsys, *words):
    capsys.readouterr()
    assert main(["ladder", "verdict", *map(str, words), "--format", "json", *QUICK]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("words", [(), ("--kinds", "thought"), ("--filters", "none", "--proxies", "all")])
def test_the_verdict_is_that_of_the_score_files(packed, capsys, words):
    ladder = ["--ladder", packed / "ladder.yaml"]
    direct = verdict(capsys, packed / "runs", *ladder, *words)
    pack = verdict(capsys, packed / "ladder.hesnr.zip", *words)
    assert direct["claims"][0]["checkpoints"] == 5
    alike(public(direct), pack)
    alike(direct["tables"], verdict(capsys, packed / "ladder.hesnr.zip", *ladder, *words)["tables"])


def test_the_report_has_every_table(packed, tmp_path):
    ladders.report(packed / "runs", "--ladder", packed / "ladder.yaml", "-o", tmp_path / "direct", *QUICK)
    ladders.report(packed / "ladder.hesnr.zip", "-o", tmp_path / "pack", *QUICK)
    names = {path.relative_to(tmp_path / "direct") for path in (tmp_path / "direct").rglob("*.csv")}
    assert names == {path.relative_to(tmp_path / "pack") for path in (tmp_path / "pack").rglob("*.csv")} | {
        Path("tables/cases.csv")
    }
    assert len(names) > 5
    for name in names - {Path("tables/cases.csv")}:
        direct, pack = (
            [list(map(_number, row)) for row in csv.reader(io.StringIO((tmp_path / side / name).read_text()))]
            for side in ("direct", "pack")
        )
        alike(direct, pack)
    direct, pack = (json.loads((tmp_path / side / "verdict.json").read_text()) for side in ("direct", "pack"))
    alike(public(direct), pack)
    assert (tmp_path / "direct" / "leaderboard.md").read_text() == (tmp_path / "pack" / "leaderboard.md").read_text()


def _number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


def test_it_holds_no_text_no_id_and_no_path(packed):
    content = b"".join(members(packed / "ladder.hesnr.zip").values())
    for word in (
        str(packed),
        "secret-place",
        "somebody",
        "intranet",
        "run0",
        "task1",
        "look at it",
        "str_replace",
        "bash",
    ):
        assert word.encode() not in content, word
    ladder = json.loads(members(packed / "ladder.hesnr.zip")["ladder.json"])
    assert ladder["checkpoints"][0]["model"] == "step200-2k"
    assert ladder["checkpoints"][0]["trained_on"] == ["corpus"]


def test_packing_again_gives_the_same_bytes_and_does_not_overwrite(packed, tmp_path, capsys):
    words = ["ladder", "pack", str(packed / "runs"), "--ladder", str(packed / "ladder.yaml"), "-o"]
    again = tmp_path / "again.zip"
    assert main([*words, str(again)]) == 0
    assert hashlib.sha256(again.read_bytes()).hexdigest() in capsys.readouterr().out
    assert again.read_bytes() == (packed / "ladder.hesnr.zip").read_bytes()
    assert main([*words, str(again)]) == 2
    assert "overwrite it with --force" in capsys.readouterr().err
    assert main([*words, str(again), "--force"]) == 0


def test_another_stage_or_another_version_of_the_package_is_said(packed, tmp_path, capsys):
    whole = members(packed / "ladder.hesnr.zip")
    manifest = {**json.loads(whole["manifest.json"]), "hesnr_tasks": "0.0.1"}
    old = rewritten(packed / "old.zip", {"manifest.json": json.dumps(manifest).encode()})
    ladder = tmp_path / "rl.yaml"
    ladder.write_text((packed / "ladder.yaml").read_text().replace("stage: sft", "stage: rl"))
    notes = verdict(capsys, old, "--ladder", ladder)["notes"]
    ladder.write_text((packed / "ladder.yaml").read_text().replace("after: sft", "after: rl", 1))
    other = verdict(capsys, old, "--ladder", ladder)["notes"]
    assert f"swe of {NAMES[0]}: after sft in the pack, after rl in the ladder file, which counts" in other
    assert any("scores of different stages are compared, after rl (step200-2k) and after sft" in note for note in other)
    assert f"{NAMES[-1]}: sft in the pack, rl in the ladder file, which counts" in notes
    assert any(note.startswith("the pack is of hesnr-tasks 0.0.1 and this is ") for note in notes)
    assert not any(
        "in the pack" in note or "0.0.1" in note for note in verdict(capsys, packed / "ladder.hesnr.zip")["notes"]
    )
    assert main(["report", str(old), "-o", str(tmp_path / "page"), *QUICK]) == 0
    assert "hesnr-tasks 0.0.1" in (tmp_path / "page" / "report.html").read_text()


def test_downstream_scores_can_be_added_to_a_pack(packed, tmp_path, capsys):
    scores = tmp_path / "lcb.csv"
    scores.write_text("checkpoint,lcb,lcb_n\n" + "".join(f"{name},{10 + i},100\n" for i, name in enumerate(NAMES)))
    pack = verdict(capsys, packed / "ladder.hesnr.zip", "--downstream", scores)
    assert {claim["task"] for claim in pack["claims"]} == {"swe", "lcb"}


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("/home/a/b.jsonl", "b.jsonl"), ("org/model", "org/model"), ("~/x", "x"), ("../x/y", "y"), ("a/b/c@r", "c@r"),
        ("C:\\Users\\a\\m", "m"), ("http://host:8000/v1/", "v1"), ("bits/byte", "bits/byte"), ("\\\\host\\x", "x"),
        ('{"a": "/b/c", "d": 1}', '{"a": "c", "d": 1}'),
        ("hesnr_swe on /x/y.jsonl, sample 5", "hesnr_swe on y.jsonl, sample 5"),
    ],
)  # fmt: skip
def test_of_a_path_its_last_part_is_left(word, left):
    assert public({"k": [word], "name": word}, but=("name",)) == {"k": [left], "name": word}


def array(shape, dtype="<f8", rest=b""):
    """An array file that claims a shape which it need not have."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + rest


def manifest(path, **changed):
    return json.dumps({**json.loads(members(path)["manifest.json"]), **changed}).encode()


def replaced(path, name, old, new):
    data = members(path)[name]
    assert old in data
    return {name: data.replace(old, new)}


SUMS = "checkpoints/0000/sums.npy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: {"manifest.json": manifest(path, version=7, hesnr_tasks="9.1")},
            "is a pack of version 7 (by hesnr-tasks 9.1)",
        ),
        (lambda path: {"manifest.json": b'{"format": "x"}'}, "but no pack: its manifest.json is of something else"),
        (lambda path: {"manifest.json": None}, "but no pack: it has no manifest.json"),
        (lambda path: {"manifest.json": b"["}, "is no pack, or a damaged one"),
        (lambda path: {"../../evil.py": b"x"}, "has a member '../../evil.py', which no pack has"),
        (lambda path: {"/etc/evil": b"x"}, "has a member '/etc/evil'"),
        (lambda path: {"checkpoints/0000/x.pkl": b"x"}, "which no pack has"),
        (lambda path: {"SHA256SUMS": None}, "is no pack, or a damaged one"),
        (lambda path: {SUMS: None}, "KeyError"),
        (lambda path: {"named.json": b"{}"}, "a ladder file has a list `checkpoints:`"),
        (lambda path: {"results.json": b"{}"}, "results.json is no list"),
        (lambda path: {"results.json": b"[[]]"}, "results.json is no list"),
        (lambda path: {SUMS: b"\x93NUMPY"}, "is no pack, or a damaged one"),
        (lambda path: {SUMS: array((10**9, 10**9))}, "an array of <f8"),
        (lambda path: {SUMS: array((1,), "|O", b"cos\nsystem\n.")}, "an array of |O"),
        (lambda path: {SUMS: array((1, 1, 1), rest=bytes(8))}, "is no summary of a checkpoint"),
        (lambda path: {"manifest.json": manifest(path, order=["x"])}, "KeyError: 'x'"),
        (lambda path: {"manifest.json": manifest(path, names={"a": "b"})}, "its names are not those"),
        (lambda path: replaced(path, "ladder.json", b'"sft"', b'"rl"'), "ladder.json and named.json differ on"),
        (lambda path: replaced(path, "named.json", b'"stage": "mid"', b'"stage": "sft"'), "differ on 'step200-2k'"),
        (lambda path: replaced(path, "named.json", b'"value": 20', b'"value": 40'), "differ on 'step200-2k'"),
        (lambda path: {"manifest.json": manifest(path, order=[])}, "its names are not those"),
        (lambda path: {"manifest.json": manifest(path, order=[NAMES[0]] * 3)}, "its names are not those"),
        (
            lambda path: {"results.json": members(path)["results.json"].replace(f'"{NAMES[0]}"'.encode(), b'"<b>"')},
            "its names are not those",
        ),
    ],
)  # fmt: skip
def test_what_is_no_pack_of_ours_is_refused_in_two_lines(packed, capsys, change, message):
    path = rewritten(packed / "bad.zip", change(packed / "ladder.hesnr.zip"))
    capsys.readouterr()
    for words in (["report", str(path)], ["ladder", "verdict", str(path)]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) <= 2


def test_a_pack_gives_no_commands_to_a_terminal(packed, capsys):
    original = packed / "ladder.hesnr.zip"
    changed = {"manifest.json": manifest(original, notes=["\x1b]0;x\x07"], note_on_context="\x1b[2J")}
    path = rewritten(packed / "escape.zip", changed)
    capsys.readouterr()
    assert main(["ladder", "verdict", str(path), *QUICK]) == 0
    shown = capsys.readouterr()
    assert "[2J" in shown.out + shown.err
    assert "\x1b" not in shown.out + shown.err


def test_altered_numbers_are_refused(packed, capsys):
    sums = bytearray(members(packed / "ladder.hesnr.zip")[SUMS])
    sums[-3] ^= 1
    path = rewritten(packed / "altered.zip", {SUMS: bytes(sums)}, sums=False)
    capsys.readouterr()
    assert main(["ladder", "verdict", str(path)]) == 2
    assert f"{SUMS} is not what SHA256SUMS says: the pack was altered" in capsys.readouterr().err


def test_a_bomb_is_not_unfolded(packed, capsys, monkeypatch):
    monkeypatch.setenv("HESNR_MAX_RECORD_MB", "1")
    path = rewritten(packed / "bomb.zip", {"checkpoints/0009/sums.npy": bytes(30 << 20)})
    capsys.readouterr()
    assert main(["ladder", "verdict", str(path)]) == 2
    assert "is larger than 1 MiB" in capsys.readouterr().err


def test_a_file_cut_off_and_packs_beside_other_sources(packed, capsys, tmp_path):
    path = tmp_path / "cut.zip"
    path.write_bytes((packed / "ladder.hesnr.zip").read_bytes()[:5000])
    whole = str(packed / "ladder.hesnr.zip")
    for words, message in (
        (["report", str(path)], "is no pack, or a damaged one"),
        (["report", whole, str(packed / "runs")], "a pack is shown by itself"),
        (["ladder", "verdict", whole, whole], "a pack is shown by itself"),
        (["ladder", "verdict", whole, "--k", "5"], "holds the sums at k 10, not 5"),
        (["ladder", "verdict", whole, "--epsilon", "1"], "not 1.0"),
        (["ladder", "verdict", whole, "--kinds", "observation"], "not observation"),
        (["ladder", "verdict", whole, "--run", "1"], "a pack holds one run"),
        (["ladder", "pack", whole, "-o", str(tmp_path / "x.zip")], "is a pack already"),
        (["compare", whole, whole], "is a file, not a folder of score files"),
        (["ladder", "init", whole], "A pack of a ladder is read by hesnr report"),
        (["report", whole, "--context", "100"], "--context chooses among score files"),
        (["ladder", "pack", str(tmp_path), "-o", str(tmp_path / "x.zip")], "there are no score files in"),
    ):
        capsys.readouterr()
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) <= 2


def test_a_pack_read_back_has_what_was_packed(packed):
    pack = read_pack(packed / "ladder.hesnr.zip")
    assert [summary.name for summary in pack.summaries] == [*NAMES]
    assert pack.names == {name: name for name in NAMES}
    assert [checkpoint.name for checkpoint in pack.named.checkpoints] == [*NAMES]
    assert pack.ladder.trajectories == ()
    assert pack.ladder.model_args == {}
