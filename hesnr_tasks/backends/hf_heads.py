"""Ways to get logits at some positions only, always through the model's own head.

By hand, `head(hidden)` forgets what the wrapper does around it: soft-capping (Gemma 2), scaling (Cohere, Granite),
extra layers. So the wrapper itself is run on the hidden states that are wanted, a slice at a time:

* `stub`: the body runs once; then the wrapper runs again and again with a body that only hands out the next slice.
* `keep`: the argument `logits_to_keep`. * `hook`: the input of the head is cut. * `plain`: all logits, then select.

Only `stub` bounds the number of logits in one pass; for the others the engine reads smaller chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hesnr_tasks.backends.hf_net import Feed, Net, replaced_forward

__all__ = ["HEADS", "Sink", "usable_heads"]

Sink = Callable[[torch.Tensor], None]  # takes the logits (rows, vocabulary) of the next wanted positions, in order
Head = Callable[[Net, Feed, torch.Tensor, int, Sink], Any]


def _stub(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    slices = _Slices(net, wanted, rows)
    with replaced_forward(slices.body, slices.read):
        logits, cache = net.call(feed)
    if not slices.read_once:
        raise RuntimeError(f"{type(slices.body).__name__} is not what the model runs")
    if len(wanted):
        sink(logits[0])
    with replaced_forward(slices.body, slices.next):
        while slices.left:
            del logits
            dummy = feed.ids.new_zeros((1, min(rows, slices.left)))
            logits, _ = net.call(Feed(dummy))
            sink(logits[0])
    return cache


class _Slices:
    """The body's output, cut to the wanted positions (indices into rows × n), given to the wrapper `rows` at a time."""

    def __init__(self, net: Net, wanted: torch.Tensor, rows: int) -> None:
        assert net.body is not None
        self.body, self._forward = net.body, net.body.forward
        self._wanted, self._rows = wanted, rows
        self._given = 0
        self.read_once = False
        self._hidden: torch.Tensor
        self._output: Any

    @property
    def left(self) -> int:
        return len(self._wanted) - self._given

    def read(self, *args: Any, **kwargs: Any) -> Any:
        self.read_once = True
        self._output = self._forward(*args, **kwargs)
        hidden = self._output[0]
        flat = hidden.reshape(-1, hidden.shape[-1])
        self._hidden = flat[self._wanted.to(flat.device)] if len(self._wanted) else flat[:1].clone()
        return self.next()

    def next(self, *_args: Any, **_kwargs: Any) -> Any:
        part = self._hidden[None, self._given : self._given + self._rows]
        self._given = min(self._given + self._rows, len(self._wanted))
        if isinstance(self._output, tuple):
            self._output = (part, *self._output[1:])
        else:
            self._output[next(iter(self._output))] = part
        return self._output


def _keep(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)  # nothing wanted must not become "all"
    logits, cache = net.call(feed, logits_to_keep=some)
    return _pour(logits[0], wanted, rows, sink, cache)


def _hook(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    some = wanted if len(wanted) else wanted.new_zeros(1)

    def cut(_module: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, some.to(args[0].device)], *args[1:])

    assert net.head is not None
    handle = net.head.register_forward_pre_hook(cut)
    try:
        logits, cache = net.call(feed)
    finally:
        handle.remove()
    return _pour(logits[0], wanted, rows, sink, cache)


def _plain(net: Net, feed: Feed, wanted: torch.Tensor, rows: int, sink: Sink) -> Any:
    logits, cache = net.call(feed)
    return _pour(logits[0][wanted.to(logits.device)], wanted, rows, sink, cache)


def _pour(logits: torch.Tensor, wanted: torch.Tensor, rows: int, sink: Sink, cache: Any) -> Any:
    for at in range(0, len(wanted), rows):
        sink(logits[at : at + rows])
    return cache


HEADS: dict[str, Head] = {"stub": _stub, "keep": _keep, "hook": _hook, "plain": _plain}
"""Each reads a feed, pours the logits of the wanted positions into the sink, and returns the cache."""


def usable_heads(net: Net) -> list[str]:
    """The ways this model offers, best first.

    `stub` runs the wrapper without its body; hooks that gather the parameters of a sharded model do not allow that.
    """
    offered = {
        "stub": bool(net.bodies) and not net.sharded,
        "keep": "logits_to_keep" in net.takes,
        "hook": net.head is not None,
    }
    return [name for name in HEADS if offered.get(name, True)]
