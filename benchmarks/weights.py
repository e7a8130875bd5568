"""What `hesnr weights` costs beside the forward pass it cannot do without: `python -m benchmarks.weights`.

Documents of random words are read from a JSON Lines file by a Llama with random weights: `bare`, tokenised before, the
decoder and its head over every position, nothing kept; and `weights`, from the file to the Parquet part. They take
turns in one process after a first round of both that does not count; the ratio of the medians is printed.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hesnr_tasks import formats
from hesnr_tasks.backends import hf
from hesnr_tasks.backends.hf import LiveModel
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.integrations import weights as document_sums
from hesnr_tasks.tasks.settings import TaskSettings
from hesnr_tasks.testing import byte_tokenizer
from hesnr_tasks.trajectory.rendering import render


def build(width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8_192, hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, max_position_embeddings=8_192,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_documents(path: Path, count: int, characters: int) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 9))) for _ in range(2_000)]
    rows = [{"id": f"d{i}", "text": " ".join(rng.choice(words, characters // 6))} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("documents", 4), ("characters", 1_000), ("width", 512), ("layers", 6), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        corpus = folder / "docs.jsonl"
        write_documents(corpus, args.documents, args.characters)
        model, tokenizer = build(args.width, args.layers), byte_tokenizer()
        texts = [render(run).text for run in formats.load([str(corpus)])]
        batches = [torch.tensor([tokenizer(text)["input_ids"]]) for text in texts]
        scorer = document_sums._Scorer(hf.make(LiveModel(model, tokenizer)), TaskSettings())

        def bare() -> None:
            with torch.inference_mode():
                for ids in batches:
                    model(ids, use_cache=False)

        def weights() -> None:
            read = document_sums._documents([str(corpus)], TaskSettings(), ReadReport())
            for window in document_sums._windows(read):
                rows = scorer.rows(window, lambda tokens: None)
                pq.write_table(pa.Table.from_pylist(rows), io.BytesIO(), compression="zstd")

        seconds: dict[str, list[float]] = {"bare": [], "weights": []}
        for number in range(args.rounds + 1):
            for function in (bare, weights):
                start = time.perf_counter()
                function()
                if number:
                    seconds[function.__name__].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        tokens = sum(ids.shape[1] for ids in batches)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        print(f"{tokens:,} tokens, {millions:.0f} M parameters, {args.rounds} rounds")
        print("  ".join(f"{name} {value:.2f} s" for name, value in medians.items()), end="  ")
        print(f"ratio {medians['weights'] / medians['bare']:.3f}")


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
