"""Helpers for tests of backends, formats and tasks, here and in other projects: small real things instead of mocks.

A byte-level tokenizer, a tiny random model, trajectories in one line, and an OpenAI-style server on loopback that can
be told to misbehave. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory

__all__ = ["FakeServer", "byte_tokenizer", "fake_server", "save_checkpoint", "tiny_model", "trajectory"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token for each byte, and an end-of-text token (id 256)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def tiny_model(vocabulary: int = 257, seed: int = 0, context: int = 32768) -> LlamaForCausalLM:
    """A random Llama in float32 whose distributions are peaked like a trained model's: flat ones would hide errors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2, bos_token_id=None,
            eos_token_id=vocabulary - 1,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def save_checkpoint(folder: str | Path, seed: int = 0) -> str:
    """Save `tiny_model` with `byte_tokenizer` in a folder; returns its path, for `pretrained=` of lm-eval."""
    tokenizer = byte_tokenizer()
    tiny_model(len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trajectory(name: str, *turns: tuple[str, str, str], task: str = "Fix it.") -> Trajectory:
    """A trajectory of a task and turns (thought, action, observation).

    >>> trajectory("t", ("Look.", "ls", "a.py")).messages[1].role
    'assistant'
    """
    messages = [Message("user", (Segment(Kind.CONTEXT, task),))]
    for thought, action, observation in turns:
        messages.append(Message("assistant", (Segment(Kind.THOUGHT, thought), Segment(Kind.ACTION, action))))
        messages.append(Message("tool", (Segment(Kind.OBSERVATION, observation),)))
    return Trajectory(name, tuple(messages))


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-style server on loopback. Its capabilities and failures are attributes; set them at any time.

    Completions return log-probabilities of the prompt from a real model, in vLLM's form (`prompt_logprobs`) and
    OpenAI's (`echo` with `logprobs`). With `answer`, chat and text completions return what that function says.

    Args:
        model: scores prompts; None for servers that only `answer`.
        tokenizer: of the model.
        answer: from the decoded request to the generated text, or to (status, headers) for a failure.
    """

    daemon_threads = True

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        answer: Callable[[dict[str, Any]], str | tuple[int, Mapping[str, str]]] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokenizer, self.answer = model, tokenizer, answer
        self.name, self.context, self.key = "tiny", 32768, None
        self.lists_models = True
        self.card: dict[str, Any] = {}  # further fields of /v1/models
        self.forms = ("prompt_logprobs", "echo")
        self.names_ids = True  # understands return_tokens_as_token_ids
        self.fields: set[str] | None = None  # fields it knows, if it refuses others
        self.most_logprobs = 20
        self.cuts_logprobs = False  # returns fewer than requested instead of refusing
        self.delay = 0.0  # seconds before each answer
        self.fail: list[int] = []  # statuses of the next answers
        self.says = "try later"  # with them
        self.pause: Any = None  # Retry-After of failures
        self.spoil: Callable[[dict[str, Any]], object] | None = None  # called with the answer's choice
        self.spoils = 0  # only answers to prompts of so many tokens (0: to all)
        self.body: str | None = None  # sent as it is instead of any answer
        self.requests: list[dict[str, Any]] = []  # path, headers and fields of each POST
        self.headers: list[dict[str, str]] = []  # of all requests
        self.prompts: list[list[int]] = []
        self.busy = self.busiest = 0  # requests in flight: now, most
        self.passes: dict[
            tuple[int, ...], torch.Tensor
        ] = {}  # log-probabilities of short prompts; clear on new weights
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """http://HOST:PORT/v1."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def address(self) -> str:
        """Of completions."""
        return f"{self.url}/completions"

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Of every position, shape (n, V), nats; one forward pass a prompt, so that answers about it agree."""
        key = tuple(ids)
        with self.lock:
            logprobs = self.passes.get(key)
        if logprobs is None:
            logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
            if len(ids) <= 512:
                with self.lock:
                    logprobs = self.passes.setdefault(key, logprobs)
        return logprobs

    def respond(
        self, path: str, headers: Mapping[str, str], request: dict[str, Any]
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON content and headers of the answer to a POST."""
        self.requests.append({"path": path, "headers": dict(headers), **request})
        if self.fail:
            return self.fail.pop(0), _error(self.says), {}
        sent = {name.lower(): value for name, value in headers.items()}
        if self.key and sent.get("authorization") != f"Bearer {self.key}":
            return 401, {"error": "Unauthorized"}, {}
        if self.answer is not None:
            return self._answered(path, self.answer(request))
        if path != "/v1/completions":
            return 404, {"detail": "Not Found"}, {}
        return *self._scored(request), {}

    def _answered(self, path: str, reply: str | tuple[int, Mapping[str, str]]) -> tuple[int, Any, dict[str, str]]:
        if not isinstance(reply, str):
            return reply[0], _error("no"), dict(reply[1])
        chat = path.endswith("chat/completions")
        content = {"message": {"role": "assistant", "content": reply}} if chat else {"text": reply}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        choices = [{"index": 0, "finish_reason": "stop", **content}]
        kind = "chat.completion" if chat else "text_completion"
        return 200, {"id": "x", "object": kind, "created": 0, "model": "fake", "choices": choices, "usage": usage}, {}

    def _scored(self, request: dict[str, Any]) -> tuple[int, Any]:
        ids, k = request["prompt"], request.get("prompt_logprobs", request.get("logprobs", 0))
        if request["model"] != self.name:
            return 404, _error(f"The model `{request['model']}` does not exist.")
        if self.fields is not None and set(request) - self.fields:
            return 422, {"detail": f"extra fields not permitted: {sorted(set(request) - self.fields)}"}
        if len(ids) >= self.context:
            return 400, _error(f"This model's maximum context length is {self.context} tokens.")
        if k > self.most_logprobs and not self.cuts_logprobs:
            return 400, _error(f"logprobs must be at most {self.most_logprobs}")
        self.prompts.append(ids)
        choice = self._choice(request, ids, min(k, self.most_logprobs))
        if self.spoil and self.spoils in (0, len(ids)):
            self.spoil(choice)
        return 200, {"object": "text_completion", "model": self.name, "choices": [choice]}

    def _choice(self, request: dict[str, Any], ids: list[int], k: int) -> dict[str, Any]:
        logprobs = self.logprobs(ids)
        new = int(logprobs[-1].argmax())
        text = self.tokenizer.decode([new])
        choice: dict[str, Any] = {"index": 0, "text": text, "logprobs": None, "finish_reason": "length"}
        if "prompt_logprobs" in request and "prompt_logprobs" in self.forms:
            entries = (_vllm_entry(logprobs[i], ids[i + 1], k) for i in range(len(ids) - 1))
            choice["prompt_logprobs"] = [None, *entries]
            if request.get("return_token_ids"):
                choice["prompt_token_ids"] = ids
        if request.get("logprobs"):
            by_id = request.get("return_tokens_as_token_ids") and self.names_ids
            echo = request.get("echo") and "echo" in self.forms
            choice["logprobs"] = self._openai_columns([*ids, new] if echo else [new], logprobs, k, by_id)
        return choice

    def _openai_columns(self, tokens: list[int], logprobs: torch.Tensor, k: int, by_id: Any) -> dict[str, Any]:
        def name(token: int) -> str:
            return f"token_id:{token}" if by_id else str(self.tokenizer.decode([token]))

        own: list[Any] = []
        top: list[Any] = []
        for position, token in enumerate(tokens):
            if position == 0 and len(tokens) > 1:
                own.append(None)
                top.append(None)
                continue
            row = logprobs[position - 1]
            best = row.topk(k)
            own.append(float(row[token]))
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            top.append({name(token): own[-1]} | {name(i): value for i, value in pairs})
        names = [name(token) for token in tokens]
        return {"tokens": names, "token_logprobs": own, "top_logprobs": top, "text_offset": [0] * len(names)}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "test"}}


def _vllm_entry(logprobs: torch.Tensor, token: int, k: int) -> dict[int, dict[str, Any]]:
    """Token id to log-probability and rank; the prompt's token first, the top k after it."""
    top = logprobs.topk(k)
    entry = {token: {"logprob": float(logprobs[token]), "rank": int((logprobs >= logprobs[token]).sum())}}
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return entry | {i: {"logprob": value, "rank": n} for n, (i, value) in enumerate(pairs, start=1)}


@contextlib.contextmanager
def fake_server(model: Any = None, tokenizer: Any = None, **settings: Any) -> Iterator[FakeServer]:
    """A running `FakeServer`; `settings` are its further arguments and attributes.

    >>> with fake_server(answer=lambda request: "4") as server:
    ...     server.url.startswith("http://127.0.0.1:")
    True
    """
    with FakeServer(model, tokenizer, settings.pop("answer", None)) as server:
        for name, value in settings.items():
            setattr(server, name, value)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        server.headers.append(dict(self.headers))
        if self.path != "/v1/models" or not server.lists_models:
            return self._send(404, {"detail": "Not Found"}, {})
        card = {"id": server.name, "owned_by": "test", "max_model_len": server.context, **server.card}
        return self._send(200, {"object": "list", "data": [card]}, {})

    def do_POST(self) -> None:
        server = self.server
        server.headers.append(dict(self.headers))
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busy, server.busiest)
        try:
            time.sleep(server.delay)
            answer = server.respond(self.path, dict(self.headers), request)
        finally:
            with server.lock:
                server.busy -= 1
        self._send(*answer)

    def _send(self, status: int, content: Any, headers: Mapping[str, Any]) -> None:
        body = (self.server.body or json.dumps(content)).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(body), **headers}
        if status >= 400 and self.server.pause is not None:
            headers["Retry-After"] = self.server.pause
        with contextlib.suppress(OSError):  # the client may have given up
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)
