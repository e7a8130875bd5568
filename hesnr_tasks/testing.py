"""Helpers for tests of backends, formats and tasks, here and in other projects: small real things instead of mocks.

A byte-level tokenizer, a tiny random model, trajectories in one line, and an OpenAI-style server on loopback that can
be told to misbehave. Nothing is downloaded.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hesnr_tasks.trajectory import Kind, Message, Segment, Trajectory

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["FakeServer", "Reply", "byte_tokenizer", "fake_server", "save_checkpoint", "tiny_model", "trajectory"]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer with one token for each byte, and an end-of-text token (id 256)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")


def tiny_model(vocabulary: int = 257, seed: int = 0, context: int = 32768) -> LlamaForCausalLM:
    """A random Llama in float32 whose distributions are peaked like a trained model's: flat ones would hide errors.

    Args:
        vocabulary: V, tokens; the last is the end of text.
        seed: of the weights; PyTorch's own generator is left as it was.
        context: most tokens of a text.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.2, bos_token_id=None,
            eos_token_id=vocabulary - 1,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


def save_checkpoint(folder: str | Path, seed: int = 0) -> str:
    """Save `tiny_model` with `byte_tokenizer`.

    Args:
        folder: where to; created if it is not there.
        seed: of the weights.

    Returns:
        The folder's path, for `pretrained=` of lm-eval.
    """
    tokenizer = byte_tokenizer()
    tiny_model(len(tokenizer), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def trajectory(name: str, *turns: tuple[str, str, str], task: str = "Fix it.") -> Trajectory:
    """A trajectory of a task and turns.

    Args:
        name: its id.
        turns: thought, action and observation of each.
        task: the first message, of the user.

    >>> trajectory("t", ("Look.", "ls", "a.py")).messages[1].role
    'assistant'
    """
    messages = [Message("user", (Segment(Kind.CONTEXT, task),))]
    for thought, action, observation in turns:
        messages.append(Message("assistant", (Segment(Kind.THOUGHT, thought), Segment(Kind.ACTION, action))))
        messages.append(Message("tool", (Segment(Kind.OBSERVATION, observation),)))
    return Trajectory(name, tuple(messages))


class Reply(NamedTuple):
    """What a server answers: an HTTP status, JSON content (bytes are sent as they are) and further headers."""

    status: int = 200
    content: Any = None
    headers: Mapping[str, Any] = {}


class FakeServer(ThreadingHTTPServer):
    """An OpenAI-style server on loopback. Its capabilities and failures are attributes; set them at any time.

    Completions return log-probabilities of the prompt from a real model, in vLLM's form (`prompt_logprobs`) and
    OpenAI's (`echo` with `logprobs`), at `/generate` in SGLang's; `generate` is its engine's. With `answer`, chat and
    text completions return what that function says; with `act`, every request is answered by that function alone, byte
    by byte. A further route is a method and its line in `routes`.

    Args:
        model: scores prompts; None for servers that only `answer`.
        tokenizer: of the model.
        answer: from the fields of a request to the generated text, or to a whole `Reply`.
        act: from the request's handler, which it answers with `handler.send` or `handler.wfile`.
        port: where to listen; 0: any that is free.
    """

    daemon_threads = True

    def __init__(
        self,
        model: Any = None,
        tokenizer: Any = None,
        *,
        answer: Callable[[dict[str, Any]], str | Reply] | None = None,
        act: Callable[[Any], object] | None = None,
        port: int = 0,
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model, self.tokenizer, self.answer, self.act = model, tokenizer, answer, act
        self.routes: dict[str, Callable[[dict[str, Any]], Reply]] = {
            "GET /v1/models": self.list_models,
            "POST /v1/completions": self.complete,
            "POST /v1/chat/completions": self.chat,
            "POST /generate": self.generate_one,
        }
        self.name, self.context, self.key = "tiny", 32768, None
        self.lists_models = True
        self.card: dict[str, Any] = {}  # further fields of /v1/models
        self.forms = ("prompt_logprobs", "echo", "flat")
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
        self.requests: list[dict[str, Any]] = []  # method, path, headers and fields
        self.prompts: list[list[int]] = []  # that were scored
        self.busy = self.busiest = 0  # requests in flight: now, most
        self.passes: dict[tuple[int, ...], torch.Tensor] = {}  # of short prompts; clear on new weights
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report what a handler raised; a client that left is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        """http://HOST:PORT/v1."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def address(self) -> str:
        """Of completions."""
        return f"{self.url}/completions"

    @property
    def generate_address(self) -> str:
        """Of SGLang's own endpoint."""
        return f"{self.url.removesuffix('/v1')}/generate"

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """Log-probabilities of what follows each of n ids, nats, (n, V); one forward pass a prompt, so all agree."""
        import torch

        key = tuple(ids)
        with self.lock:
            logprobs = self.passes.get(key)
        if logprobs is None:
            with torch.no_grad():
                logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
            if len(ids) <= 512:
                with self.lock:
                    logprobs = self.passes.setdefault(key, logprobs)
        return logprobs

    def respond(self, method: str, path: str, headers: Mapping[str, str], fields: dict[str, Any]) -> Reply:
        """The reply to a request by its route, or the failure that is set."""
        route = self.routes.get(f"{method} {path}")
        if method == "POST" and self.fail:
            return _error(self.fail.pop(0), self.says)
        given = next((value for name, value in headers.items() if name.lower() == "authorization"), None)
        if method == "POST" and self.key and given != f"Bearer {self.key}":
            return Reply(401, {"error": "Unauthorized"})
        return route(fields) if route else Reply(404, {"detail": "Not Found"})

    def generate_one(self, request: dict[str, Any]) -> Reply:
        """POST /generate."""
        ids = request["input_ids"]
        if len(ids) >= self.context:
            return _error(400, f"Input length ({len(ids)}) exceeds the maximum allowed length ({self.context - 1})")
        self.prompts.append(ids)
        flat = "flat" in self.forms and request.get("return_flat_raw_top_logprobs")
        packed = bool(request.get("return_flat_raw_top_logprobs_b64"))
        meta = self._sglang_meta(
            ids, request["logprob_start_len"], request["top_logprobs_num"], flat=flat, packed=packed
        )
        if self.spoil and self.spoils in (0, len(ids)):
            self.spoil(meta)
        return Reply(200, {"text": "x", "meta_info": meta})

    def generate(
        self,
        prompt: Any = None,
        sampling_params: Any = None,
        input_ids: Any = None,
        return_logprob: Any = False,
        logprob_start_len: Any = None,
        top_logprobs_num: Any = None,
    ) -> list[dict[str, Any]]:
        """Log-probabilities of several prompts, as the `generate` of SGLang's `Engine` returns them."""
        assert all(return_logprob), "SGLang takes one value for each prompt"
        columns = zip(input_ids, logprob_start_len, top_logprobs_num, strict=True)
        metas = [self._sglang_meta(ids, start, k, flat=False, packed=False) for ids, start, k in columns]
        if self.spoil:
            for meta in metas:
                self.spoil(meta)
        return [{"text": "x", "meta_info": meta} for meta in metas]

    def _sglang_meta(self, ids: list[int], start: int, k: int, *, flat: Any, packed: bool) -> dict[str, Any]:
        """SGLang 0.5's `meta_info`: values from `start` on, the first has none; the last id comes back as 0."""
        logprobs = self.logprobs(ids)
        rows, last = logprobs[start:-1], logprobs.shape[1] - 1
        own = [float(row[token]) for row, token in zip(rows, ids[start + 1 :], strict=True)]
        names = [token if token < last else 0 for token in ids[start:]]
        top = rows.topk(k)
        meta: dict[str, Any] = {
            "finish_reason": {"type": "length", "length": 1}, "prompt_tokens": len(ids),
            "input_token_logprobs": [(value, name, None) for value, name in zip([None, *own], names, strict=True)],
        }  # fmt: skip
        if not flat:
            pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
            listed = [[(v, i, None) for v, i in zip(values, indices, strict=True)] for values, indices in pairs]
            return meta | {"input_top_logprobs": [None, *listed]}
        meta |= {"input_top_logprobs_shape": list(top.values.shape), "input_top_logprobs_null_prefix": 1}
        for name, array in (("val", top.values.numpy()), ("idx", top.indices.numpy().astype("int32"))):
            key = f"input_top_logprobs_{name}_flat"
            if packed:
                meta |= {f"{key}_b64": base64.b64encode(array.tobytes()).decode(), f"{key}_b64_dtype": array.dtype.name}
            else:
                meta[key] = array.ravel().tolist()
        return meta

    def list_models(self, request: dict[str, Any]) -> Reply:
        """GET /v1/models."""
        if not self.lists_models:
            return Reply(404, {"detail": "Not Found"})
        card = {"id": self.name, "owned_by": "test", "max_model_len": self.context, **self.card}
        return Reply(200, {"object": "list", "data": [card]})

    def chat(self, request: dict[str, Any]) -> Reply:
        """POST /v1/chat/completions."""
        if self.answer is None:
            return Reply(404, {"detail": "Not Found"})
        return _generated(
            "chat.completion", self.answer(request), lambda text: {"message": {"role": "assistant", "content": text}}
        )

    def complete(self, request: dict[str, Any]) -> Reply:
        """POST /v1/completions."""
        if self.answer is not None:
            return _generated("text_completion", self.answer(request), lambda text: {"text": text})
        ids, k = request["prompt"], request.get("prompt_logprobs", request.get("logprobs", 0))
        if request["model"] != self.name:
            return _error(404, f"The model `{request['model']}` does not exist.")
        if self.fields is not None and set(request) - self.fields:
            return Reply(422, {"detail": f"extra fields not permitted: {sorted(set(request) - self.fields)}"})
        if len(ids) >= self.context:
            return _error(400, f"This model's maximum context length is {self.context} tokens.")
        if k > self.most_logprobs and not self.cuts_logprobs:
            return _error(400, f"logprobs must be at most {self.most_logprobs}")
        self.prompts.append(ids)
        choice = self._choice(request, ids, min(k, self.most_logprobs))
        if self.spoil and self.spoils in (0, len(ids)):
            self.spoil(choice)
        return Reply(200, {"object": "text_completion", "model": self.name, "choices": [choice]})

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


def _error(status: int, message: str) -> Reply:
    return Reply(status, {"error": {"message": message, "type": "test"}})


def _generated(kind: str, reply: str | Reply, choice: Callable[[str], dict[str, Any]]) -> Reply:
    if not isinstance(reply, str):
        return reply if reply.content is not None else reply._replace(content=_error(reply.status, "no").content)
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    choices = [{"index": 0, "finish_reason": "stop", **choice(reply)}]
    return Reply(200, {"id": "x", "object": kind, "created": 0, "model": "fake", "choices": choices, "usage": usage})


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
    arguments = {name: settings.pop(name) for name in ("answer", "act", "port") if name in settings}
    with FakeServer(model, tokenizer, **arguments) as server:
        for name, value in settings.items():
            setattr(server, name, value)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True
    server: FakeServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, headers, length = self.server, dict(self.headers), int(self.headers.get("Content-Length", 0))
        body = b""
        with contextlib.suppress(ConnectionError):
            body = self.rfile.read(length)
        if len(body) < length:  # the client was killed between headers and body: it asked for nothing
            self.close_connection = True
            return
        fields = json.loads(body) if body else {}
        server.requests.append({"method": self.command, "path": self.path, "headers": headers, **fields})
        if server.act is not None:
            self.close_connection = True  # whatever it sends ends with the connection
            with contextlib.suppress(OSError):  # the client may have given up
                server.act(self)
            return
        with server.lock:
            server.busy += 1
            server.busiest = max(server.busy, server.busiest)
        try:
            time.sleep(server.delay if self.command == "POST" else 0)
            reply = server.respond(self.command, self.path, headers, fields)
        finally:
            with server.lock:
                server.busy -= 1
        if reply.status >= 400 and server.pause is not None:
            reply = reply._replace(headers={"Retry-After": server.pause, **reply.headers})
        with contextlib.suppress(OSError):
            self.send(reply if server.body is None else reply._replace(content=server.body.encode()))

    do_POST = do_GET

    def send(self, reply: Reply) -> None:
        """Send one reply, with its length unless its headers say another."""
        body = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        self.send_response(reply.status)
        headers = {"Content-Type": "application/json", "Content-Length": len(body), **reply.headers}
        if self.close_connection:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
