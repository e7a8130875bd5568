"""`GatedModel` in mini-swe-agent's own agent, against a scripted server that shows what any server shows."""

import itertools
import json
import math
import socket
from collections import Counter

import litellm
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minisweagent.agents.default import DefaultAgent
from minisweagent.exceptions import FormatError
from minisweagent.models import get_model
from minisweagent.models.litellm_model import LitellmModel

from benchmarks.egss.experiment import JUDGES, MODEL, Method, ScriptedEnvironment, answered_by, simulate
from benchmarks.egss.server import Server
from benchmarks.egss.world import build
from hesnr_tasks.actions.classes import action_class, canonical_command
from hesnr_tasks.egss import GatedModel, GatedTextbasedModel, command_logprob, vote_entropy
from hesnr_tasks.egss.judges import Spent, spent_of
from hesnr_tasks.errors import SearchError, SettingsError
from hesnr_tasks.testing import Reply, fake_server

USER = "roman-0|7"


def agent_for(model, **more):
    settings = {"system_template": "You mend.", "instance_template": "{{task}}", "step_limit": 40, "cost_limit": 0}
    return DefaultAgent(model, ScriptedEnvironment(), **settings | more)


def model_for(reach=None, quality=1.0, kind=GatedModel, **settings):
    kwargs = {"extra_body": {"user": USER}, **(reach or {}), **settings.pop("model_kwargs", {})}
    if kind is GatedModel:
        settings.setdefault("judge_kwargs", {"extra_body": {"user": f"{USER}|{quality}"}})
    return kind(model_name=MODEL, model_kwargs=kwargs, **settings)


def without_times(trajectory):
    """Everything but clocks."""
    return json.loads(json.dumps(trajectory), object_hook=lambda o: {k: v for k, v in o.items() if k != "timestamp"})


@pytest.fixture
def server():
    server = Server()
    with answered_by(server, loopback=False):
        yield server


def steps_of(agent):
    return [m["extra"]["egss"] for m in agent.messages if "egss" in m.get("extra", {})]


class TestNever:
    def test_is_stock_mini_byte_for_byte(self):
        """Same requests on the wire, same trajectory but for clocks and ports."""
        logs, trajectories = [], []
        for kind, more in ((LitellmModel, {}), (GatedModel, {"gate": "never", "draws": 7})):
            server = Server()
            with fake_server(answer=server.reply) as http:
                agent = agent_for(model_for({"api_base": http.url, "api_key": "k"}, kind=kind, **more), step_limit=8)
                agent.run("Mend it.")
            logs.append(server.log)
            text = json.dumps(without_times(agent.serialize()), sort_keys=True)
            trajectories.append(text.replace(http.url, "ADDRESS"))
        assert logs[0] == logs[1]
        assert trajectories[0] == trajectories[1]

    def test_templates_see_the_same_variables(self):
        kinds = (model_for(kind=LitellmModel), model_for(gate="never"), model_for(gate="always"))
        assert len({json.dumps(model.get_template_vars(), default=str) for model in kinds}) == 1


class TestSteps:
    def test_votes_draw_two_and_more_only_where_they_differ(self, server):
        agent = agent_for(model_for())
        agent.run("Mend it.")
        steps = steps_of(agent)
        assert {step["draws"] for step in steps} == {2, 4}
        for step in steps:
            assert step["fired"] == (step["estimate"] > 0) == (step["draws"] == 4)
        assert any(step["fired"] for step in steps)

    def test_the_judge_finds_the_right_edit_more_often_when_it_is_good(self):
        states = {
            judge: Counter(
                simulate("roman", 0, Method("", {"gate": "edit"}, d), str(i)).state == "right/right" for i in range(8)
            )[True]
            for judge, d in JUDGES.items()
        }
        assert states["good"] > states["blind"]

    def test_costs_of_every_call_are_in_the_trajectory(self, server):
        agent = agent_for(model_for(gate="threshold:0"))
        agent.run("Mend it.")
        stats = agent.serialize()["info"]["model_stats"]
        total = Spent.sum(Spent.read(usage) for usage in stats["egss"]["usage"].values())
        assert total.calls == server.requests
        assert total.prompt == sum(usage["prompt_tokens"] for usage in server.usages)
        assert total.output == sum(usage["completion_tokens"] for usage in server.usages)
        assert total.cached == sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in server.usages)
        money = sum(
            3e-6 * (u["prompt_tokens"] - u["prompt_tokens_details"]["cached_tokens"])
            + 3e-7 * u["prompt_tokens_details"]["cached_tokens"]
            + 1.5e-5 * u["completion_tokens"]
            for u in server.usages
        )
        assert stats["instance_cost"] == pytest.approx(money, rel=1e-9)
        assert total.cost == pytest.approx(money, rel=1e-9)
        assert stats["egss"]["fired"] == sum(step["fired"] for step in steps_of(agent))

    def test_edit_gate_draws_once_elsewhere(self, server):
        agent = agent_for(model_for(gate="edit"))
        agent.run("Mend it.")
        for message in (m for m in agent.messages if "egss" in m.get("extra", {})):
            step = message["extra"]["egss"]
            assert step["draws"] == (4 if step["fired"] else 1)
            if not step["fired"]:
                assert action_class(message["extra"]["actions"][0]["command"]) != "edit"

    def test_random_gate_fires_at_its_rate_and_the_same_way_again(self):
        runs = [simulate("lru", 0, Method("", {"gate": "random:0.3", "judge": "votes"}), str(i)) for i in range(8)]
        fired, steps = (sum(getattr(run.instance, name) for run in runs) for name in ("fired", "steps"))
        assert abs(fired / steps - 0.3) < 4 * math.sqrt(0.21 / steps)
        again = simulate("lru", 0, Method("", {"gate": "random:0.3", "judge": "votes"}), "0")
        assert again == runs[0]

    def test_always_asks_for_all_draws_at_once(self, server):
        agent_for(model_for(gate="always", draws=3, judge="votes")).run("Mend it.")
        assert {request.get("n") for request in server.log} == {3}

    def test_over_loopback_everything_is_the_same(self):
        method = Method("", {"gate": "threshold:0.02", "estimator": "logprob"}, 1.0)
        assert simulate("pages", 1, method, "3", loopback=True) == simulate("pages", 1, method, "3")

    def test_log_probabilities_are_not_kept(self, server):
        agent = agent_for(model_for(gate="threshold:inf", estimator="logprob"), step_limit=2)
        agent.run("Mend it.")
        assert "logprobs" not in json.dumps(agent.serialize()["messages"])

    def test_mini_finds_the_class_by_its_name(self):
        settings = {"model_class": "hesnr_tasks.egss.GatedModel", "model_name": MODEL, "gate": "edit"}
        assert isinstance(get_model(config=settings), GatedModel)


class TestServersThatDoLess:
    @pytest.mark.parametrize(
        ("behaviour", "note"), [("refused", "server_refuses_n"), ("one", "fewer_choices_than_asked")]
    )
    def test_one_choice_a_request(self, server, behaviour, note):
        """The draws are the same in the end, and it is said once."""
        server.several = behaviour
        agent = agent_for(model_for())
        agent.run("Mend it.")
        assert {step["draws"] for step in steps_of(agent)} == {2, 4}
        assert sum(step["notes"].get(note, 0) for step in steps_of(agent)) == 1

    def test_seed_moves_on_with_every_request(self, server):
        server.several = "one"
        agent_for(model_for(gate="always", judge="votes", model_kwargs={"seed": 5}), step_limit=1).run("Mend it.")
        assert [request["seed"] for request in server.log] == [5, 6, 7, 8]

    def test_no_log_probabilities_says_which_setting(self, server):
        server.gives_logprobs = False
        with pytest.raises(SearchError, match=r"model\.estimator=votes"):
            agent_for(model_for(estimator="logprob")).run("Mend it.")

    def test_refused_log_probabilities_say_which_setting(self, server):
        server.faults[1] = (400, "logprobs are not supported with tools")
        with pytest.raises(SettingsError, match=r"model\.estimator=votes"):
            agent_for(model_for(estimator="logprob")).run("Mend it.")

    def test_no_server_is_said_at_once_but_not_of_one_that_answered_before(self, monkeypatch):
        waits = []
        monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
        with socket.socket() as unused:  # bound but not listening: connections are refused
            unused.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
            settings = {"model_name": "openai/m", "model_kwargs": {"api_base": address, "api_key": "x"}}
            model = GatedModel(**settings, gate="always", judge="votes")
            with pytest.raises(SearchError, match=rf"openai/m: no server answers at {address}"):
                agent_for(model).run("Mend it.")
            assert sum(waits) < 4  # only the short ones of the client
            model._answered.add("openai/m")
            with pytest.raises(openai.OpenAIError):
                agent_for(model).run("Mend it.")

    def test_equal_replies_are_noticed(self, server, caplog):
        server.frozen = True
        agent = agent_for(model_for())
        agent.run("Mend it.")
        assert sum(step["notes"].get("replies_repeat", 0) for step in steps_of(agent)) == 1
        assert "same reply" in caplog.text

    def test_usage_that_is_not_stated_is_not_zero(self, server):
        server.states_usage = False
        agent = agent_for(model_for(cost_tracking="ignore_errors"), step_limit=2)
        agent.run("Mend it.")
        assert sum(usage["unstated"] for step in steps_of(agent) for usage in step["usage"].values()) > 0

    def test_malformed_draws_do_not_spoil_the_others(self, server):
        server.malformed = {0, 2, 5}
        agent = agent_for(model_for(gate="always", judge="votes"))
        agent.run("Mend it.")
        assert agent.messages[-1]["extra"]["exit_status"] == "Submitted"
        assert sum(step["notes"].get("malformed_draws", 0) for step in steps_of(agent)) > 0

    def test_a_step_without_any_good_draw_is_minis_format_error_with_its_cost(self, server):
        server.malformed = set(range(10))
        model = model_for()
        with pytest.raises(FormatError) as caught:
            model.query([{"role": "user", "content": "Mend it."}])
        extra = caught.value.messages[0]["extra"]
        assert extra["cost"] > 0
        assert extra["egss"]["draws"] == 2
        assert extra["response"]["choices"]


class TestJudgeAnswers:
    def judged(self, server, answers, **settings):
        server.answers = answers
        agent = agent_for(model_for(gate="always", **settings), step_limit=12)
        agent.run("Mend it.")
        notes = Counter()
        for step in steps_of(agent):
            notes.update(step["notes"])
        return steps_of(agent), notes

    def test_prose_falls_back_to_the_votes_and_is_counted(self, server):
        steps, notes = self.judged(server, lambda points: "I like action A best.")
        branched = [step for step in steps if "candidates" in step]
        assert notes["judge_gave_up"] == len(branched) > 0
        assert notes["judge_unusable"] == 2 * len(branched)
        for step in branched:
            votes = [row["votes"] for row in step["candidates"]]
            assert votes[step["chosen"]] == max(votes)
            assert "score" not in step["candidates"][0]

    def test_reasoning_and_fences_around_the_answer_do_not_matter(self, server):
        wrapped = lambda points: f"<think>{{ A or B? }}</think>\n```json\n{json.dumps(points)}\n```\nDone."  # noqa: E731
        steps, notes = self.judged(server, wrapped)
        assert not notes["judge_unusable"]
        assert any("score" in row for step in steps for row in step.get("candidates", []))

    def test_points_out_of_range_are_no_answer(self, server):
        def too_many(points):
            return json.dumps({letter: dict.fromkeys(row, 4) for letter, row in points.items()})

        _, notes = self.judged(server, too_many)
        assert notes["judge_unusable"] > 0

    def test_a_server_that_refuses_schemas_is_asked_otherwise(self, server):
        server.refused_formats = {"json_schema"}
        steps, notes = self.judged(server, None)
        assert notes["judge_refuses_json_schema"] == 1
        assert any("score" in row for step in steps for row in step.get("candidates", []))

    def test_the_whole_trace_is_in_view_unless_limited(self, server):
        self.judged(server, None)
        judged = [request for request in server.log if "tools" not in request]
        assert "find . -name" in judged[-1]["messages"][1]["content"]  # the first step's command
        _, notes = self.judged(server, None, judge_trace_limit=200)
        assert notes["judge_trace_shortened"] > 0

    def test_judge_kwargs_reach_the_judge_alone(self, server):
        kwargs = {"extra_body": {"user": f"{USER}|1"}, "reasoning_effort": "low", "temperature": 1}
        self.judged(server, None, judge_kwargs=kwargs, judge_model="openai/another", cost_tracking="ignore_errors")
        judged = [request for request in server.log if "tools" not in request]
        assert {(request["model"], request["reasoning_effort"]) for request in judged} == {("openai/another", "low")}
        assert not any("reasoning_effort" in request for request in server.log if "tools" in request)

    def test_keys_are_not_written_down(self, server):
        secret = {"api_key": "sk-secret", "extra_headers": {"X-Api-Key": "sk-secret", "Authorization": "sk-secret"}}
        kwargs = {"extra_body": {"user": f"{USER}|1"}, "max_tokens": 77}
        agent = agent_for(model_for(judge_kwargs=kwargs | secret, model_kwargs=secret), step_limit=2)
        server.complete = lambda **request: Server.complete(
            server, **{k: v for k, v in request.items() if k not in secret}
        )
        with answered_by(server, loopback=False):
            agent.run("Mend it.")
        written = json.dumps(agent.serialize())
        assert "sk-secret" not in written
        assert '"max_tokens": 77' in written


@pytest.mark.parametrize("name", ["openai/m", "anthropic/m", "hosted_vllm/m", "gemini/m"])
@pytest.mark.parametrize("who", ["agent", "judge"])
def test_no_key_of_agent_or_judge_follows_a_redirect(name, who):
    number = itertools.count()
    acts = lambda body: f"```mswea_bash_command\nls {next(number)}\n```"  # noqa: E731
    with fake_server(answer=lambda body: "{}") as other, fake_server(answer=acts) as answers:
        elsewhere = {"Location": other.url.replace("127.0.0.1", "localhost")}
        with fake_server(act=lambda handler: handler.send(Reply(307, headers=elsewhere))) as redirects:  # at any path
            reach = {"api_base": redirects.url, "api_key": "sk-mine", "num_retries": 0, "timeout": 30}
            settings = {"gate": "always", "draws": 2, "cost_tracking": "ignore_errors"}
            if who == "agent":
                model = GatedTextbasedModel(model_name=name, model_kwargs=reach, **settings)
            else:
                own = {"api_base": answers.url, "api_key": "sk-mine"}
                settings |= {"judge_model": name, "judge_kwargs": reach}
                model = GatedTextbasedModel(model_name="openai/m", model_kwargs=own, **settings)
            with pytest.raises(openai.OpenAIError):  # the base of all of litellm's
                model.query([{"role": "system", "content": "."}, {"role": "user", "content": "Mend it."}])
    assert redirects.requests
    assert not other.requests


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"gaet": "edit"}, "model.gaet is no setting. Did you mean 'gate'"),
            ({"gate": "entropy"}, "model.gate is 'entropy'"),
            ({"gate": "random"}, "random:NUMBER"),
            ({"gate": "edit:1"}, "write it edit"),
            ({"gate": "random:1.5"}, "from 0 to 1"),
            ({"gate": "threshold:nan"}, "must be a number"),
            ({"gate": "quantile:0.1"}, "model.calibration"),
            ({"estimator": "vote"}, "model.estimator is 'vote'"),
            ({"probes": 1}, "needs at least 2"),
            ({"draws": 1}, "model.draws is 1"),
            ({"judge": "human"}, "model.judge is 'human'"),
            ({"draws": "many"}, "model.draws"),
            ({"model_kwargs": {"temperature": 0}}, "temperature is 0"),
            ({"model_kwargs": {"n": 2}}, "model_kwargs.n is set by the gate"),
        ],
    )
    def test_what_cannot_be_is_said(self, settings, words):
        with pytest.raises(SettingsError) as caught:
            model_for(**settings)
        assert words in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 2


# --- the estimators --------------------------------------------------------------------------------------------------


def stated(tokens):
    return {"logprobs": {"content": [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in tokens]}}


class TestEstimators:
    def test_only_the_tokens_of_the_command_count(self):
        tokens = [("ls", -9.0), (" first", -9.0), ('{"command": "', -9.0), ("ls", -1.0), (" -a", -2.0), ('"}', -9.0)]
        assert command_logprob(stated(tokens), ["ls -a"]) == pytest.approx(-1.5)

    def test_escapes_line_ends_and_bytes(self):
        command = 'printf "é\n" > a'
        spelled = json.dumps({"command": command}, ensure_ascii=False)
        pieces = [spelled.encode()[i : i + 3] for i in range(0, len(spelled.encode()), 3)]
        content = [{"token": "?", "logprob": -0.5, "bytes": list(piece)} for piece in pieces]
        assert command_logprob({"logprobs": {"content": content}}, [command]) == pytest.approx(-0.5)

    def test_several_commands_of_one_reply(self):
        tokens = [('{"command": "', -9.0), ("ls", -1.0), ('"}{"command": "', -9.0), ("ls", -3.0), ('"}', -9.0)]
        assert command_logprob(stated(tokens), ["ls", "ls"]) == pytest.approx(-2.0)

    @pytest.mark.parametrize("choice", [{}, {"logprobs": None}, {"logprobs": {"content": []}}, stated([("x", -1.0)])])
    def test_nothing_stated_is_not_known(self, choice):
        assert math.isnan(command_logprob(choice, ["ls -a"]))

    @given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9))
    def test_vote_entropy_against_its_definition(self, keys):
        shares = [keys.count(key) / len(keys) for key in set(keys)]
        assert vote_entropy(keys) == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12)

    def test_a_change_to_the_repository_is_no_other_action(self):
        assert (
            canonical_command("cd /testbed && ls  -a # look") == canonical_command("ls -a") != canonical_command("ls")
        )

    def test_the_scripted_server_states_what_its_policy_has(self, server):
        """The log-probabilities of a reply's tokens add up to that of the command among all the agent may send."""
        graph = build("roman", 0)
        chances = {}
        for edge in graph.stages["look"]:
            for command, share in edge.commands:
                chances[command] = edge.probability * share
        for _ in range(50):
            request = {"model": "m", "tools": [], "messages": [], "user": USER, "logprobs": True}
            choice = server.reply(request)[1]["choices"][0]
            command = json.loads(choice["message"]["tool_calls"][0]["function"]["arguments"])["command"]
            tokens = choice["logprobs"]["content"]
            begin = next(i for i, token in enumerate(tokens) if token["token"] == "<tool_call>")
            total = math.exp(math.fsum(token["logprob"] for token in tokens[begin + 1 :]))
            plain = command.removeprefix("cd /testbed && ")
            assert total == pytest.approx(chances[plain] * (0.41 if command != plain else 0.59), rel=1e-9)


def test_usage_in_any_shape():
    assert spent_of(None) == Spent(calls=1, unstated=1)
    assert spent_of({"prompt_tokens": 0, "completion_tokens": 0}).unstated == 1
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": None}
    assert spent_of(usage, 0.5) == Spent(1, 9, 0, 2, 0.5)
    assert spent_of(litellm.Usage(**usage)) == Spent(1, 9, 0, 2)


def test_the_text_based_class_reads_fenced_commands():
    model = GatedTextbasedModel(model_name=MODEL, gate="threshold:0")
    assert model.config.action_regex
    assert model._gate.name == "threshold"
