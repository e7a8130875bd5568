"""Costs at equal resolve rate, from trajectories as mini-swe-agent writes them."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hesnr_tasks.cli import main
from hesnr_tasks.egss import Calibration, Estimator, GateInput, calibrate, open_gate, uniform
from hesnr_tasks.egss.judges import Spent
from hesnr_tasks.egss.runs import TaskCost, at_equal_rate, curves, paired_ratio, read_run
from hesnr_tasks.errors import DataError, SettingsError
from tests.unit.egss.test_model import Server, agent_for, answered_by, model_for

TASKS = [f"task__{i}" for i in range(5)]


def write_run(folder, tasks=TASKS, step_limit=5, **own):
    """A run as mini-extra swebench leaves it."""
    for i, task in enumerate(tasks):
        server = Server()
        with answered_by(server, loopback=False):
            kwargs = {"extra_body": {"user": f"roman-0|{folder.name}{i}"}}
            judge = {"extra_body": {"user": f"roman-0|{folder.name}{i}|1"}}
            model = model_for(model_kwargs=kwargs, judge_kwargs=judge, **own)
            agent = agent_for(model, step_limit=step_limit)
            agent.run(f"Mend it, {task}.")
        agent.save(folder / task / f"{task}.traj.json", {"instance_id": task})
    return folder


def write_report(path, resolved, tasks=TASKS):
    stored = {"resolved_ids": resolved, "unresolved_ids": [task for task in tasks if task not in resolved]}
    path.write_text(json.dumps(stored))
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "plain", gate="never")
    write_run(folder / "votes", gate="threshold:0", judge="votes")
    write_run(folder / "edit", gate="edit", judge="votes")
    write_run(folder / "random", gate="random:0.5", judge="votes")
    for name, resolved in (("plain", TASKS[:2]), ("votes", TASKS[:3]), ("edit", TASKS[:2]), ("random", TASKS[:1])):
        write_report(folder / f"{name}.json", resolved)
    return folder


def report(runs, *names, options=()):
    reports = [str(runs / f"{name.split('+')[0]}.json") for name in names]
    folders = ["+".join(str(runs / part) for part in name.split("+")) for name in names]
    return main(["egss", "report", *folders, "--resolved", *reports, "--resamples", "200", *options])


class TestReport:
    def test_totals_are_those_of_the_trajectories(self, runs, capsys):
        assert report(runs, "plain", "votes", "edit", "random", options=["--format", "json"]) == 0
        tables = json.loads(capsys.readouterr().out)["tables"]
        for folder, row in zip(("plain", "votes", "edit", "random"), tables["curves"], strict=True):
            files = [json.loads(path.read_text()) for path in (runs / folder).glob("*/*.traj.json")]
            calls = [
                usage
                for file in files
                for m in file["messages"]
                for usage in m.get("extra", {}).get("egss", {}).get("usage", {}).values()
            ] or [
                {"prompt": u["prompt_tokens"], "output": u["completion_tokens"]}
                for file in files
                for m in file["messages"]
                if (u := m.get("extra", {}).get("response", {}).get("usage"))
            ]
            for kind in ("prompt", "output"):
                assert row[kind]["value"] == round(sum(call[kind] for call in calls) / len(files))
            costs = [file["info"]["model_stats"]["instance_cost"] for file in files]
            assert row["money"]["value"] == pytest.approx(np.mean(costs))
        assert tables["curves"][0]["method"] == "plain"
        assert {name for name in tables if name.startswith("savings")} >= {"savings_at_1_of_plain"}
        assert any("edit" in name for name in tables)
        assert any("random" in name for name in tables)

    def test_text_names_gates_and_rates(self, runs, capsys):
        assert report(runs, "plain", "votes") == 0
        text = capsys.readouterr().out
        assert "gate threshold:0, votes of 2" in text
        assert "Costs at equal resolve rate, over those of plain with 1 run(s) (rate 0.400)" in text

    def test_several_runs_cost_their_sum(self, runs, capsys, tmp_path):
        report(runs, "plain", options=["--format", "json"])
        single = json.loads(capsys.readouterr().out)["tables"]["curves"][0]
        report(runs, "plain+plain", options=["--format", "json"])
        double = json.loads(capsys.readouterr().out)["tables"]["curves"][0]
        assert (single["runs"], double["runs"]) == (1, 2)
        assert double["prompt"]["value"] == 2 * single["prompt"]["value"]

    def test_what_some_runs_lack_is_left_out_and_said(self, runs, capsys, tmp_path):
        write_run(tmp_path / "part", TASKS[:3], gate="always", judge="votes")
        (tmp_path / "part.json").write_text(json.dumps({"resolved_ids": TASKS[:1], "error_ids": TASKS[1:2],
                                                        "unresolved_ids": TASKS[2:3]}))  # fmt: skip
        arguments = [str(runs / "plain"), str(tmp_path / "part")]
        reports = [str(runs / "plain.json"), str(tmp_path / "part.json")]
        assert main(["egss", "report", *arguments, "--resolved", *reports, "--resamples", "100"]) == 0
        text = capsys.readouterr().out
        assert "1 task(s) without an outcome" in text
        assert "3 task(s) are not in every run with outcome and cost, and left out" in text

    def test_unstated_usage_is_no_saving(self, runs, capsys, tmp_path):
        folder = write_run(tmp_path / "mute", gate="never")
        for path in folder.glob("*/*.traj.json"):
            path.write_text(path.read_text().replace('"prompt_tokens"', '"prompt_tokens_unknown"'))
        report_ = write_report(tmp_path / "mute.json", TASKS[:1])
        assert main(["egss", "report", str(folder), "--resolved", report_]) == 2
        assert "no task in common" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda folder: None, "no trajectory of mini-swe-agent in it"),
            (lambda folder: (folder / "a.traj.json").write_text("{"), "is not valid JSON"),
            (lambda folder: (folder / "a.traj.json").write_text('{"history": []}'), "not a trajectory of mini"),
            (
                lambda folder: (folder / "a.traj.json").write_text(
                    json.dumps({"info": {}, "messages": [{"extra": {"response": {}, "egss": {"usage": {"probe": 3}}}}]})
                ),
                "its record of costs is damaged",
            ),
            (lambda folder: (folder / "a.traj.json").write_text("[" * 100_000), "is not valid JSON"),
            (lambda folder: (folder / "a.traj.json").write_text("[1]"), "not a trajectory of mini"),
            (
                lambda folder: (folder / "a.traj.json").write_text(
                    json.dumps({"info": {"config": [1], "model_stats": "x"}, "messages": []})
                ),
                "no task in common",
            ),
        ],
    )
    def test_other_folders_are_errors(self, make, words, tmp_path, capsys):
        make(tmp_path)
        assert main(["egss", "report", str(tmp_path), "--resolved", write_report(tmp_path / "r.json", [])]) == 2
        assert words in capsys.readouterr().err

    def test_one_report_cannot_serve_two_runs(self, runs, capsys):
        arguments = [str(runs / "plain"), str(runs / "votes"), "--resolved", str(runs / "plain.json")]
        assert main(["egss", "report", *arguments]) == 2
        assert "2 run(s) and 1 report(s)" in capsys.readouterr().err

    def test_unknown_reference(self, runs, capsys):
        assert report(runs, "plain", "votes", options=["--reference", "plan"]) == 2
        assert "Did you mean 'plain'" in capsys.readouterr().err


class TestCurves:
    @staticmethod
    def method(name, rates, prompts, tasks=4):
        return [
            TaskCost(f"t{t}", name, runs, rate, Spent(1, prompt, 0, prompt // 10, prompt / 1e6))
            for runs, (rate, prompt) in enumerate(zip(rates, prompts, strict=True), 1)
            for t in range(tasks)
        ]

    def test_between_points_costs_are_read_by_straight_lines(self):
        records = self.method("a", [0.2, 0.6], [100, 300]) + self.method("b", [0.4], [150])
        methods, _ = curves(records)
        ratio = at_equal_rate(methods["a"], methods["b"], methods["b"], 1, 50)[0]
        assert ratio.value == pytest.approx(200 / 150)  # a reaches 0.4 half-way

    def test_a_rate_that_is_not_reached_is_infinite(self):
        methods, _ = curves(self.method("a", [0.2], [100]) + self.method("b", [0.4], [150]))
        assert at_equal_rate(methods["a"], methods["b"], methods["b"], 1, 50)[0].value == math.inf

    def test_money_nobody_knows_is_not_zero(self):
        records = [
            TaskCost("t", "a", 1, 1.0, Spent(1, 5, 0, 5, 0.0)),
            TaskCost("t", "b", 1, 1.0, Spent(1, 5, 0, 5, 1.0)),
        ]
        methods, _ = curves(records)
        assert math.isnan(at_equal_rate(methods["a"], methods["b"], methods["b"], 1, 50)[3].value)

    @given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)), min_size=1, max_size=12))
    @settings(suppress_health_check=[HealthCheck.too_slow])
    def test_paired_ratio_against_its_definition(self, pairs):
        a, b = np.array(pairs, dtype=float).T
        number = paired_ratio(a, b, 60, 3)
        assert number.value == pytest.approx(b.sum() / a.sum(), rel=1e-12)
        if len(pairs) > 3:
            assert number.ci_low <= number.ci_high


class TestGates:
    VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, math.log(2), 3.0]), min_size=20, max_size=80)

    @given(VALUES, st.floats(0.01, 1.0))
    def test_quantile_gates_fire_at_their_share_whatever_the_ties(self, values, share):
        """The expected share of steps fired, over the very estimates that calibrated it, is the share asked for."""
        threshold, chance = Calibration({}, "m", tuple(values)).rule(share)
        fired = sum(1.0 if v > threshold else chance if v == threshold else 0.0 for v in values)
        assert fired / len(values) == pytest.approx(share, abs=1e-9)

    def test_another_estimator_is_refused(self, tmp_path):
        path = tmp_path / "gate.json"
        calibrate([0.1 * i for i in range(30)], Estimator("logprob", 2).identity, "m").write(path)
        assert open_gate("quantile:0.5", Estimator("logprob", 2), path).fires(GateInput(0.5, "", 9.0))
        for other in (Estimator("votes", 2), Estimator("logprob", 3)):
            with pytest.raises(SettingsError, match="calibrated by another estimator"):
                open_gate("quantile:0.5", other, path)

    @pytest.mark.parametrize(
        "text", ["{", "[]", "[" * 100_000, '{"format": "x"}', '{"format": "hesnr-egss-calibration-1"}']
    )
    def test_what_is_no_calibration_is_said(self, text, tmp_path):
        (tmp_path / "gate.json").write_text(text)
        with pytest.raises(DataError, match="not a calibration"):
            open_gate("quantile:0.5", Estimator(), tmp_path / "gate.json")

    def test_an_unknown_estimate_does_not_fire(self):
        assert not open_gate("threshold:0", Estimator()).fires(GateInput(0.0))

    def test_chance_depends_on_what_it_is_about(self):
        values = [uniform("gate", 1, "task", step) for step in range(2_000)]
        assert uniform("gate", 1, "task", 7) == values[7]
        assert abs(np.mean(values) - 0.5) < 0.03

    def test_from_a_measuring_run_to_a_quantile_gate(self, tmp_path, capsys):
        folder = write_run(tmp_path / "measured", gate="threshold:inf", estimator="logprob", step_limit=8)
        assert not any(instance.fired for instance in read_run(folder))
        path = tmp_path / "gate.json"
        assert main(["egss", "calibrate", str(folder), "-o", str(path)]) == 0
        assert "quantile:0.1  fires above" in capsys.readouterr().out
        run = write_run(tmp_path / "gated", gate="quantile:0.3", estimator="logprob", calibration=path, judge="votes")
        assert 0 < sum(instance.fired for instance in read_run(run)) < 25
        with pytest.raises(SettingsError, match="another estimator"):
            model_for(gate="quantile:0.3", estimator="votes", calibration=path)

    def test_too_few_steps_are_no_calibration(self, runs, tmp_path, capsys):
        assert main(["egss", "calibrate", str(runs / "plain"), "-o", str(tmp_path / "g.json")]) == 2
        assert "threshold:inf" in capsys.readouterr().err
        assert not (tmp_path / "g.json").exists()


def test_the_config_file_is_one_that_the_model_takes(capsys):
    import yaml

    assert main(["egss", "config"]) == 0
    own = yaml.safe_load(Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8"))["model"]
    del own["model_class"], own["model_kwargs"]
    assert model_for(**own).config.gate == "threshold:0"
