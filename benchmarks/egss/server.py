"""A scripted chat server: draws of a scripted agent with log-probabilities of their tokens, answers of a judge, votes.

It speaks OpenAI's chat completions, over loopback (`fake_server(answer=Server().reply)` of hesnr_tasks.testing) or
called as `complete` in place of litellm.completion: the same requests and replies as JSON either way. Whoever asks sees
what any server shows: choices, log-probabilities of the chosen tokens, usage with cached tokens. Which agent,
repetition and quality of judge is in the field `user`: NAME-VARIANT|SEED, or NAME-VARIANT|SEED|D-PRIME of a judge;
without it, the first agent of the repository whose task the messages hold, and a judge of d' = 1.
"""

import functools
import json
import math
import re
import threading
import time
from collections import Counter

from benchmarks.egss.world import build, load, names, seeded
from hesnr_tasks.egss.judges import GATE, PATCH_DIMENSIONS, STEP_DIMENSIONS
from hesnr_tasks.testing import Reply

__all__ = ["Server"]

SPREAD = 1 / 8  # standard deviation of a judge's scores, of 1
RUBRIC = 700  # tokens
PREFIX = 0.41  # of commands begin with a change to the directory they start in anyway
TOKEN = re.compile(r" ?\w{1,5}|\\n|\s|[^\w\s]")


class Server:
    """Answers requests; `prefix`: what some commands begin with, `faults`: request number -> (status, message)."""

    def __init__(self, prefix="cd /testbed && "):
        self.prefix = prefix
        self.requests, self.faults, self.answers, self.delay = 0, {}, None, 0.0
        self.gives_logprobs = self.states_usage = True
        self.several = "all"  # or "refused", or "one": how it takes n > 1
        self.frozen, self.malformed, self.refused_formats = False, set(), set()  # other ways of servers
        self.log, self.usages = [], []
        self._draws, self._seen = Counter(), {}
        self._lock = threading.Lock()

    def reply(self, request):
        """The reply to the fields of one request."""
        time.sleep(self.delay)
        with self._lock:
            self.requests += 1
            self.log.append(request)
            if self.requests in self.faults:
                status, message = self.faults[self.requests]
                return _refusal(status, message)
            if self.several == "refused" and (request.get("n") or 1) > 1:
                return _refusal(400, "n > 1 is not supported")
            if (request.get("response_format") or {}).get("type") in self.refused_formats:
                return _refusal(400, "this response_format is not supported")
            body = {"id": f"r{self.requests}", "object": "chat.completion", "created": 1, "model": request["model"]}
            choices, usage = self._choices(request)
            self.usages.append(usage)
        return Reply(200, body | {"choices": choices} | ({"usage": usage} if self.states_usage else {}))

    def complete(self, **request):
        """In place of litellm.completion: the body as litellm would have parsed it."""
        import litellm

        wire = {
            key: value
            for key, value in request.items()
            if key not in ("api_base", "api_key", "drop_params", "extra_body")
        }
        wire |= request.get("extra_body") or {}
        status, body, _ = self.reply(json.loads(json.dumps(wire)))
        if status == 400:
            raise litellm.exceptions.BadRequestError(body["error"]["message"], request["model"], "openai")
        assert status == 200, body
        return litellm.ModelResponse(**body)

    def _choices(self, request):
        if "tools" in request:
            return self._act(request)
        text = request["messages"][1]["content"]
        return self._select(text) if "===== task =====" in text else self._judge(request)

    # --- an agent ---------------------------------------------------------------------------------------------------

    def _act(self, request):
        name, seed = _user(request)[:2]
        graph = build(*_split(name))
        calls = [call for message in request["messages"] for call in message.get("tool_calls") or ()]
        path = tuple(call["id"].partition("#")[0].replace("__", ":") for call in calls)
        key, count = (name, seed, path), request.get("n") or 1
        count = 1 if self.several == "one" else count
        # equal requests of one user draw on from where the last one ended: draws are shared by all methods
        choices = [self._draw(request, graph, path, seed, self._draws[key] + i, i) for i in range(count)]
        again = self._draws[key] > 0
        self._draws[key] += count
        prompt = graph.tokens(path)
        cached = prompt if again else graph.tokens(path[:-1]) if path else 0
        return [choice for choice, _ in choices], _usage(prompt, cached, sum(size for _, size in choices))

    def _draw(self, request, graph, path, seed, number, index):
        number = 0 if self.frozen else number
        chance = seeded("draw", seed, graph.name, path, number)
        options = _commands(graph, graph.stage(path), self.prefix)
        command, edge = chance.choices([(c, e) for c, e, _ in options], [p for _, _, p in options])[0]
        thought = f"{graph.stage(path)}: {' '.join(chance.choices(WORDS, k=8))}."
        arguments = '{"command": ' if number in self.malformed else json.dumps({"command": command})
        call = {"name": "bash", "arguments": arguments}
        message = {
            "role": "assistant",
            "content": thought,
            "tool_calls": [{"id": f"{edge.label.replace(':', '__')}#{number}", "type": "function", "function": call}],
        }
        choice = {"index": index, "message": message, "finish_reason": "tool_calls", "logprobs": None}
        if request.get("logprobs") and self.gives_logprobs:
            spoken = [(token, -chance.expovariate(1.5)) for token in TOKEN.findall(thought)]
            tokens = [*spoken, ("<tool_call>", -1e-4), *_spelled(graph, graph.stage(path), self.prefix, arguments)]
            choice["logprobs"] = {
                "content": [
                    {"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}
                    for token, value in tokens
                ]
            }
        return choice, edge.output

    # --- a judge ----------------------------------------------------------------------------------------------------

    def _judge(self, request):
        name, seed, quality = (*_user(request), "1")[:3]
        graph, text = build(*_split(name)), request["messages"][1]["content"]
        actions = re.findall(r"===== action (\w+) =====\n(.*?)\n===== end of action \1 =====", text, re.S)
        trace = text.partition("===== end of trace")[0]
        points, output_tokens = {}, 0
        for letter, action in actions:
            thought, _, command = action.partition("\n\n$ ")
            edge = _edge(graph, thought, command, self.prefix)
            noise = seeded("judge", seed, quality, len(trace), command).gauss(0, 1)
            score = 0.5 + SPREAD * (float(quality) * (0.5 if edge.good else -0.5) + noise)
            total = round(15 * min(1.0, max(0.0, score)))
            rows = [total // 5 + (i < total % 5) for i in range(5)]
            points[letter] = dict(zip(STEP_DIMENSIONS, rows, strict=True))
            output_tokens += edge.output
        content = json.dumps(points) if self.answers is None else self.answers(points)
        read = RUBRIC + round(len(trace) / 4)
        cached = min(read, self._seen.get(name, 0))
        self._seen[name] = read
        message = {"role": "assistant", "content": content}
        return [{"index": 0, "message": message, "finish_reason": "stop"}], _usage(
            read + output_tokens, cached, 10 + 45 * len(actions)
        )

    # --- models of `hesnr select` -----------------------------------------------------------------------------------

    def _select(self, text):
        """A voter who counts the lines that must be there, with some noise; a writer of tests who knows the task."""
        repository = next(load(name) for name in names() if load(name).task in text)
        patches = re.findall(r"===== patch (\w+) =====\n(.*?)\n===== end of patch \1 =====", text, re.S)
        content, points = f"```python\n{repository.tests['right'][1]}```", {}
        if not text.rstrip().endswith("====="):  # a question comes last
            wanted = [new for part in repository.edits.values() for _, new in part["right"][1]]
            for letter, patch in patches:
                added = "\n".join(line[1:] for line in patch.splitlines())
                right = sum(new in added for new in wanted) / len(wanted)
                score = 3 * right + seeded("vote", repository.name, patch).gauss(0, 0.5)
                points[letter] = dict.fromkeys(PATCH_DIMENSIONS, min(3, max(0, round(score)))) | {GATE: 3}
            content = json.dumps(points)
        message = {"role": "assistant", "content": content}
        usage = _usage(len(text) // 4, 0, len(content) // 4)
        return [{"index": 0, "message": message, "finish_reason": "stop"}], usage


def _refusal(status, message):
    return Reply(status, {"error": {"message": message, "type": "BadRequestError"}})


WORDS = ("so", "next", "this", "part", "fails", "because", "here", "then", "mend", "it", "and", "run", "again", "look")


def _user(request):
    if "user" in request:
        return request["user"].split("|")
    text = request["messages"][1]["content"]
    return [next(f"{name}-0" for name in names() if load(name).task in text), "0"]


def _split(name):
    repository, _, variant = name.rpartition("-")
    return repository, int(variant)


def _usage(prompt, cached, output):
    details = {"cached_tokens": cached}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": details,
    }


@functools.cache
def _commands(graph, stage, prefix):
    """Every text that the agent may send at a stage: (command, edge, probability)."""
    rows = [(c, edge, edge.probability * p) for edge in graph.stages[stage] for c, p in edge.commands]
    if not prefix or stage == "submit":
        return rows
    return [row for c, e, p in rows for row in ((prefix + c, e, p * PREFIX), (c, e, p * (1 - PREFIX)))]


@functools.cache
def _trie(graph, stage, prefix):
    """Probability of each beginning, in tokens, of what the agent may send."""
    mass = Counter()
    for command, _, p in _commands(graph, stage, prefix):
        tokens = tuple(TOKEN.findall(json.dumps({"command": command})))
        for end in range(len(tokens) + 1):
            mass[tokens[:end]] += p
    return mass


@functools.cache
def _spelled(graph, stage, prefix, arguments):
    """Tokens of the arguments with their log-probabilities: what the policy's own distribution makes them."""
    mass, tokens = _trie(graph, stage, prefix), tuple(TOKEN.findall(arguments))
    return [(t, min(0.0, math.log(mass[tokens[: i + 1]] / mass[tokens[:i]]))) for i, t in enumerate(tokens)]


def _edge(graph, thought, command, prefix):
    stage = re.match(r"(ran-own:\w+|[\w-]+)", thought)[1]
    return next(edge for text, edge, _ in _commands(graph, stage, prefix) if text == command)
