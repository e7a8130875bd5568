"""A completions server around a tiny real model, on loopback: both forms of answers, and misbehaviour."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

OPENAI_FIELDS = {"model", "prompt", "max_tokens", "temperature", "echo", "logprobs"}


class CompletionsServer(ThreadingHTTPServer):
    """What it can do and how it fails are attributes; set them before a request."""

    daemon_threads = True

    def __init__(self, model, tokenizer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model, self.tokenizer = model, tokenizer
        self.name, self.context, self.key = "tiny", 32768, None
        self.lists_models = True
        self.card = {}  # what /v1/models says besides
        self.forms = ("prompt_logprobs", "echo")
        self.names_ids = True  # understands return_tokens_as_token_ids
        self.fields = None  # fields it knows, if it refuses others
        self.most_logprobs = 20
        self.cuts_logprobs = False  # returns fewer than asked for instead of refusing
        self.delay = 0.0
        self.fail = []  # statuses of the next answers
        self.says = "try later"  # with them
        self.headers = []  # of all requests
        self.spoil = None  # called with the answer's choice
        self.spoils = 0  # only answers to prompts of so many tokens (0: to all)
        self.body = None  # sent as it is instead of any answer
        self.pause = None  # Retry-After of failures
        self.prompts = []
        self.busy = self.busiest = 0
        self.passes = {}
        self.lock = threading.Lock()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/v1/completions"

    @torch.no_grad()
    def logprobs(self, ids):
        """Of every position, shape (n, V); one forward pass a prompt, so that answers about it agree."""
        key = tuple(ids)
        with self.lock:
            logprobs = self.passes.get(key)
        if logprobs is None:
            logprobs = self.model(torch.tensor([ids])).logits[0].float().log_softmax(dim=-1)
            if len(ids) <= 512:
                with self.lock:
                    logprobs = self.passes.setdefault(key, logprobs)
        return logprobs

    @contextlib.contextmanager
    def counted(self):
        with self.lock:
            self.busy += 1
            self.busiest = max(self.busy, self.busiest)
        try:
            yield
        finally:
            with self.lock:
                self.busy -= 1


@contextlib.contextmanager
def serving(model, tokenizer):
    with CompletionsServer(model, tokenizer) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        if self.path != "/v1/models" or not self.server.lists_models:
            return self.answer(404, {"detail": "Not Found"})
        card = {"id": self.server.name, "owned_by": "test", "max_model_len": self.server.context, **self.server.card}
        return self.answer(200, {"object": "list", "data": [card]})

    def do_POST(self):
        self.server.headers.append(dict(self.headers))
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counted():
            time.sleep(self.server.delay)
            status, found = self.reply(asked)
        self.answer(status, found)

    def reply(self, asked):
        server = self.server
        if self.path != "/v1/completions":
            return 404, {"detail": "Not Found"}
        if server.fail:
            return server.fail.pop(0), {"error": {"message": server.says, "type": "test"}}
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return 401, {"error": "Unauthorized"}
        if asked["model"] != server.name:
            return 404, {"error": {"message": f"The model `{asked['model']}` does not exist."}}
        if server.fields is not None and set(asked) - server.fields:
            return 422, {"detail": f"extra fields not permitted: {sorted(set(asked) - server.fields)}"}
        if len(asked["prompt"]) >= server.context:
            return 400, {"error": {"message": f"This model's maximum context length is {server.context} tokens."}}
        k = asked.get("prompt_logprobs", asked.get("logprobs", 0))
        if k > server.most_logprobs and not server.cuts_logprobs:
            return 400, {"error": {"message": f"logprobs must be at most {server.most_logprobs}"}}
        server.prompts.append(asked["prompt"])
        choice = self.choice(asked, min(k, server.most_logprobs))
        if server.spoil and server.spoils in (0, len(asked["prompt"])):
            server.spoil(choice)
        return 200, {"object": "text_completion", "model": server.name, "choices": [choice]}

    def choice(self, asked, k):
        ids, logprobs = asked["prompt"], self.server.logprobs(asked["prompt"])
        new = int(logprobs[-1].argmax())
        choice = {"index": 0, "text": self.server.tokenizer.decode([new]), "logprobs": None, "finish_reason": "length"}
        if "prompt_logprobs" in asked and "prompt_logprobs" in self.server.forms:
            choice["prompt_logprobs"] = [None, *(self.entry(logprobs[i], ids[i + 1], k) for i in range(len(ids) - 1))]
            if asked.get("return_token_ids"):
                choice["prompt_token_ids"] = ids
        if asked.get("logprobs"):
            echo = asked.get("echo") and "echo" in self.server.forms
            by_id = asked.get("return_tokens_as_token_ids") and self.server.names_ids
            choice["logprobs"] = self.openai([*ids, new] if echo else [new], logprobs, k, by_id)
        return choice

    def entry(self, logprobs, token, k):
        """vLLM: token id to log-probability and rank; the prompt's token first, the top k after it."""
        top = logprobs.topk(k)
        entry = {token: {"logprob": float(logprobs[token]), "rank": int((logprobs >= logprobs[token]).sum())}}
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return entry | {i: {"logprob": value, "rank": n} for n, (i, value) in enumerate(pairs, start=1)}

    def openai(self, tokens, logprobs, k, by_id):
        own, top, names = [], [], []
        start = len(tokens) - 1 if len(tokens) == 1 else 0
        for at, token in enumerate(tokens):
            name = self.named(token, by_id)
            names.append(name)
            if at == 0 and start == 0 and len(tokens) > 1:
                own.append(None)
                top.append(None)
                continue
            row = logprobs[at - 1]
            best = row.topk(k)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            own.append(float(row[token]))
            top.append({name: own[-1]} | {self.named(i, by_id): value for i, value in pairs})
        return {"tokens": names, "token_logprobs": own, "top_logprobs": top, "text_offset": [0] * len(names)}

    def named(self, token, by_id):
        return f"token_id:{token}" if by_id else self.server.tokenizer.decode([token])

    def answer(self, status, found):
        body = (self.server.body or json.dumps(found)).encode()
        with contextlib.suppress(OSError):  # the client may have given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            if status >= 400 and self.server.pause is not None:
                self.send_header("Retry-After", str(self.server.pause))
            self.end_headers()
            self.wfile.write(body)
