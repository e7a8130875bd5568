"""What scoring costs, beside what it must cost and what it costs today: `python -m benchmarks.scoring`.

One trajectory of 22,773 tokens, of which 5,303 in 37 assistant turns are scored, read by a small and a large-vocabulary
model with random weights, in five ways:

* `bare`: the decoder once, and its head on the wanted positions, nothing more: the physical limit.
* `ours`: the engine: log-probability, rank and top 10 of every wanted position.
* `lm-eval`: `loglikelihood`, one request per assistant turn.
* `full`: all logits, log-softmax, then select.
* `vllm`: our vLLM backend on vLLM's CPU build, where `make vllm` (or HESNR_VLLM_PYTHON) has made one.

Every run is a process of its own, so that memory is its own; ways take turns, and the median is told, beside the
largest share of the machine that other programs took. Then the time and memory of many texts that share a prefix, and
of long texts. All of it takes ten minutes, or `--minutes`: repetitions and the longest texts come only if time is left.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import busy, own_time, watched

TOKENS, WANTED, TURNS, K = 22_773, 5_303, 37, 10
MODELS = {
    "small": {"vocab_size": 8_192, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
    "large": {"vocab_size": 151_936, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
}
WAYS = ("bare", "ours", "lm-eval", "full", "vllm")
LONG = (8, 16, 32, 64, 128)
DISTURBED = 0.05  # share of the machine that other programs may take during a run
TRIES = 6
MINUTES, STARTED = 10.0, time.monotonic()
LIMIT_GB = 16  # no run may take more, so that the machine stays usable


# --- what is read ---------------------------------------------------------------------------------------------------


def build(name: str):
    """A Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        **MODELS[name], num_attention_heads=4, max_position_embeddings=1 << 18, tie_word_embeddings=True
    )
    return LlamaForCausalLM(config).eval()


def trajectory(vocabulary: int, tokens: int = TOKENS, wanted: int = WANTED, turns: int = TURNS, seed: int = 0):
    """Random ids, and the wanted positions: `turns` blocks of about equal length, at about equal distances."""
    ids = np.random.default_rng(seed).integers(3, vocabulary, tokens).astype(np.int32)
    ends = np.linspace(tokens / turns, tokens - 1, turns).astype(int)
    sizes = np.diff(np.linspace(0, wanted, turns + 1).astype(int))
    blocks = [np.arange(end - size + 1, end + 1) for end, size in zip(ends, sizes, strict=True)]
    return ids, np.concatenate(blocks).astype(np.int32)


# --- the ways -------------------------------------------------------------------------------------------------------


def bare(model, ids, targets):
    """Nobody can be faster with this model; logits are made in slices and thrown away."""
    import torch

    rows = max(16, (1 << 27) // (4 * model.config.vocab_size))
    text, source = (
        torch.from_numpy(ids[: targets[-1]]).long()[None].to(model.device),
        torch.from_numpy(targets).long() - 1,
    )

    def run():
        with torch.inference_mode():
            hidden = model.model(input_ids=text, use_cache=False).last_hidden_state[0, source]
            for part in hidden.split(rows):
                model.lm_head(part)

    return run


def ours(model, ids, targets):
    """The engine, its self-check and memory estimate behind it."""
    from hesnr_tasks.backends.base import TokenSequence

    engine = engine_for(model)
    passages = [TokenSequence("t", ids, targets)]
    return lambda: list(engine.score(passages, K))


def full(model, ids, targets):
    """All logits, as scripts of papers do it."""
    import torch

    text, position = torch.from_numpy(ids).long()[None], torch.from_numpy(targets).long()

    def run():
        with torch.inference_mode():
            logprobs = model(text, use_cache=False).logits[0].float().log_softmax(-1)[position - 1]
            return logprobs.gather(1, text[0, position][:, None]), logprobs.topk(K)

    return run


def lm_eval(model, ids, targets):
    """`loglikelihood` as lm-eval calls it, tokenised: for each turn, all before it and the turn."""
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, tokenizer=tokenizer(), max_length=1 << 18)
    starts = targets[np.flatnonzero(np.diff(targets, prepend=-2) != 1)]
    ends = targets[np.flatnonzero(np.diff(targets, append=1 << 30) != 1)] + 1
    text = ids.tolist()
    requests = [((str(a), str(b)), text[:a], text[a:b]) for a, b in zip(starts.tolist(), ends.tolist(), strict=True)]
    return lambda: lm._loglikelihood_tokens(requests, disable_tqdm=True)


def with_vllm(model, ids, targets):
    """The same model in vLLM, through lm-eval's class and our backend. Runs in vLLM's own Python."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from lm_eval.models.vllm_causallms import VLLM

    from hesnr_tasks.backends import backend_for
    from hesnr_tasks.backends.base import TokenSequence

    if not hasattr(with_vllm, "backend"):  # one engine for the warm-up and the run
        folder = tempfile.mkdtemp()
        model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        lm = VLLM(pretrained=folder, dtype="float32", max_length=1 << 15, max_num_batched_tokens=2048, seed=0)
        with_vllm.backend = backend_for(lm)
        shutil.rmtree(folder)
    passages = [TokenSequence("t", ids, targets)]
    return lambda: list(with_vllm.backend.score(passages, K, int))


def engine_for(model):
    """The engine on a model, checked and measured."""

    from hesnr_tasks.backends.hf.engine import Engine
    from hesnr_tasks.backends.hf.model import CausalLM

    sample = np.random.default_rng(9).integers(3, model.config.vocab_size, 200).tolist()
    return Engine(CausalLM(model, model.device), sample)


def tokenizer():
    """lm-eval wants one; it is not used."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words), unk_token="<unk>", eos_token="</s>")


# --- one run, in a process of its own -------------------------------------------------------------------------------


def measured(run):
    """Seconds of `run()` and the most memory (MB) beyond what the loaded process had."""
    before = memory("VmRSS")
    for process in family():
        Path(f"/proc/{process}/clear_refs").write_text("5")  # forget the peak
    start, processor = time.perf_counter(), time.process_time()
    run()
    took = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
    return {**took, "megabytes": memory("VmHWM") - before}


def memory(name: str) -> float:
    """A line of /proc/PID/status, in MB, summed over this process and those it has started (vLLM's engine)."""
    lines = [line for process in family() for line in Path(f"/proc/{process}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def family(process: int | str = "self") -> list[int]:
    """This process and all below it."""
    own = os.getpid() if process == "self" else int(process)
    threads = Path(f"/proc/{own}/task").iterdir()
    children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    return [own, *(below for child in children for below in family(child))]


def child(variant: str, model_name: str, tokens: int):
    """Run one way once and print what it took."""
    if variant != "vllm":  # whose engine reserves more than it uses
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_GB << 30, LIMIT_GB << 30))
    logging.disable(logging.WARNING)
    model = build(model_name)
    vocabulary = model.config.vocab_size
    if variant.startswith("prefix"):
        run = prefixes(model, shared=variant == "prefix-shared")
    else:
        make = {"bare": bare, "ours": ours, "lm-eval": lm_eval, "full": full, "vllm": with_vllm}[variant]
        make(model, *trajectory(vocabulary, 600, 140, 4))()  # the first call of everything is slower
        run = make(model, *trajectory(vocabulary, tokens, WANTED * tokens // TOKENS, TURNS))
    try:
        print(json.dumps(measured(run)))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):
            raise
        print(json.dumps({"failed": f"needs more than {LIMIT_GB} GB"}))


def prefixes(model, *, shared: bool):
    """100 texts of 400 to 600 tokens after the same 2,048."""
    from hesnr_tasks.backends.base import TokenSequence

    engine = engine_for(model)
    engine.mode = replace(engine.mode, share_prefixes=shared)
    start = trajectory(model.config.vocab_size, 2048)[0]
    texts = []
    for i in range(100):
        rest, wanted = trajectory(model.config.vocab_size, 400 + 2 * i, 150, 3, seed=i + 1)
        texts.append(TokenSequence(str(i), np.concatenate([start, rest]), wanted + len(start)))
    list(engine.score(texts[:1], K))
    return lambda: list(engine.score(texts, K))


# --- the tables -----------------------------------------------------------------------------------------------------


def time_left() -> float:
    """Seconds until the time that `--minutes` allows is over."""
    return STARTED + 60 * MINUTES - time.monotonic()


def spawn(*arguments) -> dict:
    """One run, with the share of the machine that others took; one they disturbed is done again, if time is left."""
    result: dict = {}
    for _ in range(TRIES):
        wait_for_quiet()
        before, own = busy(), own_time()
        start = time.perf_counter()
        run = once(*arguments)
        others = (busy() - before) - (own_time() - own)
        run["others"] = max(0.0, others) / (time.perf_counter() - start) / os.cpu_count()
        if not result or "failed" in result or run["others"] < result["others"]:
            result = run
        if "failed" in run or run["others"] < DISTURBED or time_left() < 3 * (time.perf_counter() - start):
            return result
        print("disturbed,", end=" ", file=sys.stderr, flush=True)
    return result


def wait_for_quiet() -> None:
    """Until other programs have taken less than 5 % of the machine for two seconds; a tenth of the time at most."""
    for _ in range(int(min(3 * MINUTES, time_left() / 2) / 2)):
        before, own = busy(), own_time()
        time.sleep(2)
        if (busy() - before) - (own_time() - own) < DISTURBED * 2 * os.cpu_count():
            return


def once(*arguments) -> dict:
    """One run in a process of its own."""
    python = vllm_python() if arguments[0] == "vllm" else sys.executable
    if python is None:
        return {"failed": "no environment with vLLM (make vllm)"}
    command = [python, "-m", "benchmarks.scoring", "--child", *map(str, arguments)]
    # large tensors go back to the system when freed, in every way alike: else the peak tells the allocator's mood
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 24)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    reported = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not reported:
        return {"failed": f"killed ({done.returncode}): {done.stderr.strip()[-100:]!r}"}
    return json.loads(reported[-1])  # vLLM's engine may still fall when it is shut down


def vllm_python() -> str | None:
    """The interpreter that has vLLM."""
    results = Path(os.environ.get("HESNR_VLLM_PYTHON", ".venv-vllm/bin/python"))
    return str(results) if results.exists() else None


def medians(runs: list[dict]) -> dict:
    """Of the runs of one way."""
    if any("failed" in run for run in runs):
        return runs[0]
    return {key: (max if key == "others" else statistics.median)(run[key] for run in runs) for key in runs[0]}


def interleaved(cases: list[tuple], repeats: int) -> dict[tuple, dict]:
    """Every case `repeats` times, taking turns; a case that failed is not run again, lm-eval and vLLM are run once."""
    runs: dict[tuple, list[dict]] = {case: [] for case in cases}
    for turn in range(repeats):
        for case, done in runs.items():
            slow = case[0] in ("lm-eval", "vllm") or any("failed" in run for run in done)
            if turn == 0 or not (slow or time_left() < 0):
                done.append(spawn(*case))
                print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {case: medians(done) for case, done in runs.items()}


def row(*cells) -> str:
    """Of a Markdown table."""
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table_of_ways(names, repeats):
    """The ways on the same trajectory."""
    yield row("model", "way", "seconds", "of bare", "of its processor time", "peak memory over the model, MB", "others")
    yield row("---", "---", "---:", "---:", "---:", "---:", "---:")
    for name in names:
        results = interleaved([(variant, name, TOKENS) for variant in WAYS], repeats)
        limit = results["bare", name, TOKENS]
        for (variant, _, _), run in results.items():
            if "failed" in run:
                yield row(name, variant, "–", "–", "–", run["failed"], "")
            else:
                ratio, processor = (f"{run[key] / limit[key]:.2f}" for key in ("seconds", "processor_seconds"))
                processor = "–" if variant == "vllm" else processor  # its engine is another process
                others = f"{run['others']:.0%}"
                yield row(name, variant, f"{run['seconds']:.2f}", ratio, processor, f"{run['megabytes']:.0f}", others)


def table_of_lengths(name, repeats):
    """Ours on texts of up to 128 K tokens; the cache of 4 layers is 8 KB a token."""
    yield row("tokens", "seconds", "bare, seconds", "peak memory over the model, MB", "bare, MB")
    yield row("---:", "---:", "---:", "---:", "---:")
    took = 0.0
    for thousand in LONG:
        if time_left() < 5 * took:  # attention is quadratic
            yield row(f"{thousand} K", *[f"not run within {MINUTES:g} minutes"] * 4)
            continue
        start = time.perf_counter()
        some = repeats if thousand < 32 else 1
        results = interleaved([(variant, name, thousand * 1024) for variant in ("ours", "bare")], some)
        run, limit = results.values()
        took = time.perf_counter() - start
        yield row(
            f"{thousand} K", f"{run['seconds']:.1f}", f"{limit['seconds']:.1f}", f"{run['megabytes']:.0f}",
            f"{limit['megabytes']:.0f}",
        )  # fmt: skip


def table_of_prefixes(name, repeats):
    """100 texts with 2 K tokens in common."""
    results = interleaved([(variant, name, 0) for variant in ("prefix-alone", "prefix-shared")], repeats)
    alone, shared = (run["seconds"] for run in results.values())
    yield row("100 texts of 2.4 to 2.6 K tokens, the first 2 K in common", "seconds")
    yield row("---", "---:")
    yield row("each read whole", f"{alone:.1f}")
    yield row("the prefix read once", f"{shared:.1f}")
    yield row("ratio", f"{alone / shared:.2f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, metavar=("WAY", "MODEL", "TOKENS"), help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=["ways", "lengths", "prefixes"])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--minutes", type=float, default=10, help="repeat and wait no longer; leave out longer texts")
    settings = parser.parse_args()
    if settings.child:
        child(settings.child[0], settings.child[1], int(settings.child[2]))
        return
    global MINUTES
    MINUTES = settings.minutes
    tables = {
        "ways": lambda: table_of_ways(settings.models, settings.repeats),
        "prefixes": lambda: table_of_prefixes("small", settings.repeats),
        "lengths": lambda: table_of_lengths("small", settings.repeats),
    }
    for name, table in tables.items():
        if settings.only in (None, name):
            for line in table():
                print(line, flush=True)
            print()


if __name__ == "__main__":
    with watched():
        main()
