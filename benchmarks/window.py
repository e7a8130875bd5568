"""What a short-context pass costs beside a whole-context one: `python -m benchmarks.window`, on this machine's CPU.

Seconds and tokens fed (checks included) of scoring three of the demo's trajectories with a small random Llama.
"""

from __future__ import annotations

import time

import numpy as np
import torch

import hesnr_tasks as hesnr
from hesnr_tasks import demo
from hesnr_tasks.testing import byte_tokenizer, tiny_model

WINDOWS = (None, 1024, 4096)


def main() -> None:
    torch.set_num_threads(1)
    tokenizer = byte_tokenizer()
    model = tiny_model(len(tokenizer), context=16384)
    runs = hesnr.load(demo.trajectories_path(), limit=3)
    fed: dict[int | None, int] = {}
    count = [0]
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: count.append(inputs[0].numel()))
    seconds: dict[int | None, list[float]] = {window: [] for window in WINDOWS}
    for _ in range(3):
        for window in WINDOWS:
            count.clear()
            start = time.perf_counter()
            hesnr.score(model, tokenizer, runs, window=window)
            seconds[window].append(time.perf_counter() - start)
            fed[window] = sum(count)
    medians = {window: float(np.median(values)) for window, values in seconds.items()}
    for window in WINDOWS:
        name = "all context" if window is None else f"window {window}"
        more, longer = fed[window] / fed[None], medians[window] / medians[None]
        print(f"{name}: {fed[window]:,} tokens fed ({more:.2f} times), {medians[window]:.2f} s ({longer:.2f} times)")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
