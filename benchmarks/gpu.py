"""What scoring costs on a CUDA device, one step at a time: run by `benchmarks/gpu.sh`, which says how.

* `hf-MODEL-ATTENTION`: a random-weight model in bfloat16 at 8 K, 32 K and 128 K tokens, vocabulary 152 K: tokens a
  second, share of the bare forward pass (`benchmarks.scoring`), model FLOP utilisation, peak memory beside weights + KV
  cache.
* `vllm`, `sglang`: the 1 B model at 32 K through those engines, where they are installed.
* `agreement`: the demo ladder in bfloat16 on the device beside float32 on the CPU.
* `out-of-memory`: memory runs out in the middle of a text; the numbers must be those of a run in which it does not.
* `accelerate`: `accelerate launch` with one process beside none.
* `paper`: a tenth of 500 texts of 25 K tokens on the 8 B model, times ten.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from benchmarks.scoring import TOKENS, TURNS, WANTED, K, bare, engine_for, measured, tokenizer, trajectory

SIZES = {  # hidden, intermediate, layers, heads, key-value heads, experts (0: dense)
    "llama-1b": (2048, 8192, 16, 32, 8, 0),
    "llama-8b": (4096, 14336, 32, 32, 8, 0),
    "qwen-moe-7b": (2048, 768, 24, 32, 4, 64),
}
SMOKE = {name: (32, 48, 2, 4, 2, 4 if experts else 0) for name, (*_, experts) in SIZES.items()}
ATTENTION = ("sdpa", "flash_attention_2")
LENGTHS, SMOKE_LENGTHS = (8, 32, 128), (0.125, 0.25, 0.5)  # K tokens
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bfloat16
GIB = 1 << 30
STEPS = [
    *(f"hf-{model}-{attention}" for model in SIZES for attention in ATTENTION),
    "vllm", "sglang", "agreement", "out-of-memory", "accelerate", "paper",
]  # fmt: skip


class NotMeasured(Exception):
    """Why a step has no figure here."""


class Bench:
    """The device and the sizes of a run."""

    def __init__(self, *, smoke: bool) -> None:
        self.smoke = smoke
        self.device = torch.device("cpu" if smoke else "cuda")
        self.sizes, self.lengths = (SMOKE, SMOKE_LENGTHS) if smoke else (SIZES, LENGTHS)
        self.vocabulary = 512 if smoke else 151_936
        self.repeats = 1 if smoke else 3

    def run(self, step: str) -> dict:
        """What a step measured."""
        if step.startswith("hf-"):
            _, *name, attention = step.split("-")
            return self.lengths_of("-".join(name), attention)
        return getattr(self, step.replace("-", "_"))()

    def build(self, name: str, attention: str = "sdpa"):
        """A model with random weights, made on the device."""
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

        hidden, inner, layers, heads, kv_heads, experts = self.sizes[name]
        settings = {
            "vocab_size": self.vocabulary, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "max_position_embeddings": 1 << 18,
            "tie_word_embeddings": name.endswith("1b"), "attn_implementation": attention,
        }  # fmt: skip
        if experts:
            settings |= {
                "num_experts": experts,
                "num_experts_per_tok": min(8, experts // 2),
                "head_dim": hidden // heads,
            }
            settings |= {"moe_intermediate_size": inner}
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(self.device):
                config = Qwen3MoeConfig(**settings) if experts else LlamaConfig(**settings)
                return (Qwen3MoeForCausalLM if experts else LlamaForCausalLM)(config).eval()
        finally:
            torch.set_default_dtype(before)

    def seconds(self, run) -> float:
        """The median over repeats, when the device has finished."""
        times = []
        for _ in range(self.repeats):
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def wait(self) -> None:
        """Until the device has done what was given to it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self, run) -> int:
        """The most bytes on the device during `run`; on a CPU, beyond what the process had."""
        if self.device.type != "cuda":
            return int(measured(run)["megabytes"] * 2**20)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        self.wait()
        return torch.cuda.max_memory_allocated()

    # --- the steps ----------------------------------------------------------------------------------------------------

    def lengths_of(self, name: str, attention: str) -> dict:
        """One model with one kind of attention, at every length."""
        if attention == "flash_attention_2" and (self.smoke or importlib.util.find_spec("flash_attn") is None):
            raise NotMeasured("flash-attn is not installed" if not self.smoke else "flash-attn needs a GPU")
        from hesnr_tasks.backends.base import TokenSequence

        model = self.build(name, attention)
        engine = engine_for(model)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        config, rows = model.config, []
        head = config.hidden_size // config.num_attention_heads
        for thousand in self.lengths:
            tokens = int(thousand * 1024)
            ids, targets = trajectory(self.vocabulary, tokens, max(TURNS, WANTED * tokens // TOKENS))
            text = [TokenSequence("t", ids, targets)]
            limit = bare(model, ids, targets)

            def ours(text=text):
                list(engine.score(text, K))

            limit(), ours()  # the first call of everything is slower
            seconds, least = self.seconds(ours), self.seconds(limit)
            cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2 * tokens
            used, allowed = self.peak(ours), weights + cache + GIB
            mfu = self.utilisation(model, tokens, len(targets), seconds)
            rows.append({
                "tokens": tokens, "wanted": len(targets), "seconds": seconds, "tokens_per_second": tokens / seconds,
                "bare_seconds": least, "of_bare": seconds / least, "mfu": mfu,
                "peak_bytes": used, "weights_kv_1gib": allowed, "within": used <= allowed,
            })  # fmt: skip
        return {"parameters": sum(p.numel() for p in model.parameters()), "weights": weights, "rows": rows}

    def utilisation(self, model, tokens: int, wanted: int, seconds: float) -> float | None:
        """FLOPs that the text needs, per second, as a share of the device's peak; None where that is not known."""
        name = torch.cuda.get_device_name() if self.device.type == "cuda" else ""
        peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
        if peak is None:
            return None
        config = model.config
        embedding = self.vocabulary * config.hidden_size
        decoder = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n and "lm_head" not in n)
        experts = getattr(config, "num_experts", 0)
        if experts:
            inner = sum(p.numel() for n, p in model.named_parameters() if ".experts" in n)
            decoder -= inner * (1 - config.num_experts_per_tok / experts)
        attention = 2 * config.num_hidden_layers * config.hidden_size * tokens  # causal: half of 4 · T · d a token
        return tokens * (2 * decoder + attention) / seconds / peak + wanted * 2 * embedding / seconds / peak

    def vllm(self) -> dict:
        """The 1 B model through vLLM."""
        if self.smoke or importlib.util.find_spec("vllm") is None:
            raise NotMeasured("vLLM is not installed" if not self.smoke else "a smoke run has no engine")
        from lm_eval.models.vllm_causallms import VLLM

        return self.through(lambda path: VLLM(pretrained=path, dtype="bfloat16", max_length=40_960, seed=0))

    def sglang(self) -> dict:
        """The 1 B model through SGLang."""
        if self.smoke or importlib.util.find_spec("sglang") is None:
            raise NotMeasured("SGLang is not installed" if not self.smoke else "a smoke run has no engine")
        from lm_eval.models.sglang_causallms import SGLangLM

        return self.through(
            lambda path: SGLangLM(path, dtype="bfloat16", context_length=40_960, chunked_prefill_size=8192)
        )

    def through(self, engine) -> dict:
        """One text of 32 K tokens through another engine; the model is gone from this process before it starts."""
        from hesnr_tasks.backends import backend_for
        from hesnr_tasks.backends.base import TokenSequence

        folder = tempfile.mkdtemp()
        try:
            model = self.build("llama-1b")
            model.save_pretrained(folder)
            tokenizer().save_pretrained(folder)
            del model
            torch.cuda.empty_cache()
            backend = backend_for(engine(folder))
        finally:
            shutil.rmtree(folder)
        tokens = 32 * 1024
        text = [TokenSequence("t", *trajectory(self.vocabulary, tokens, WANTED * tokens // TOKENS))]
        list(backend.score(text, K, lambda n: None))
        seconds = self.seconds(lambda: list(backend.score(text, K, lambda n: None)))
        return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}

    def agreement(self) -> dict:
        """he_snr, ppl and accuracy of each checkpoint of the demo: bfloat16 here, float32 on the CPU."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        import hesnr_tasks as hesnr
        from hesnr_tasks import demo

        runs = hesnr.load(demo.ladder_trajectories_path(), limit=5 if self.smoke else None)
        names, rows = ("he_snr", "ppl", "top1_acc"), {}
        for name, path in demo.ladder_paths()[: 1 if self.smoke else None]:
            both = []
            for dtype, device in ((torch.float32, "cpu"), (torch.bfloat16, self.device)):
                model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device)
                scores = hesnr.score(model, AutoTokenizer.from_pretrained(path), runs)
                both.append({key: value.value for key, value in scores.evaluate(*names, min_tokens=1).items()})
            rows[name] = {key: both[1][key] / both[0][key] - 1 for key in names}
        return {"relative_difference": rows}

    def out_of_memory(self) -> dict:
        """Memory runs out in a long text: the engine goes on with shorter chunks, and the numbers stay."""
        from hesnr_tasks.backends.base import TokenSequence

        model = self.build("llama-1b")
        tokens = 2048 if self.smoke else 64 * 1024
        text = [TokenSequence("t", *trajectory(self.vocabulary, tokens, WANTED * tokens // TOKENS))]
        expected = dict(engine_for(model).score(text, K))[0]
        engine = engine_for(model)
        engine.limits.batch_tokens()
        restore = self._short_of_memory(model)
        try:
            scores = dict(engine.score(text, K))[0]
        finally:
            restore()
        if engine.limits.longest >= tokens:
            raise RuntimeError("memory did not run out: nothing was tested")
        difference = float(np.abs(scores.logprob - expected.logprob).mean())
        return {"tokens": tokens, "chunk": engine.limits.longest, "mean_difference": difference}

    def _short_of_memory(self, model):
        """From now on long chunks do not fit; returns what ends that."""
        if self.device.type == "cuda":  # a limit that free memory, which the engine looks at, does not show
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 3 * GIB) / total)
            return lambda: torch.cuda.set_per_process_memory_fraction(1.0)

        def refuse(_module, args, kwargs):
            if (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).shape[1] > 600:
                raise torch.OutOfMemoryError("forced by this step")

        return model.register_forward_pre_hook(refuse, with_kwargs=True).remove

    def accelerate(self) -> dict:
        """lm-eval as a library in this process, and its command under `accelerate launch` with one process."""
        import lm_eval
        from lm_eval.tasks import TaskManager

        from hesnr_tasks import demo
        from hesnr_tasks.tasks import tasks_path

        arguments = f"pretrained={demo.ladder_paths()[-1][1]},dtype={'float32' if self.smoke else 'bfloat16'}"
        runs, tasks = str(demo.ladder_trajectories_path()), str(tasks_path())
        metadata = {"trajectories": runs, "resamples": 100, "limit": 20}
        with tempfile.TemporaryDirectory() as folder:
            scored = metadata | {"scores": f"{folder}/scores"}  # as the command does with --output_path
            alone = lm_eval.simple_evaluate(
                model="hf", model_args=arguments, tasks=["hesnr_swe"], device=str(self.device),
                task_manager=TaskManager(include_path=tasks, include_defaults=False, metadata=scored),
            )  # fmt: skip
            command = [
                sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1",
                *(["--cpu"] if self.smoke else []), "-m", "lm_eval", "run", "--model", "hf",
                "--model_args", arguments, "--tasks", "hesnr_swe", "--include_path", tasks,
                "--metadata", json.dumps(metadata), "--output_path", folder,
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            results = list(Path(folder).rglob("results*.json"))
            if done.returncode or not results:
                raise RuntimeError(f"accelerate launch: {done.stderr[-2000:]}")
            launched = json.loads(results[0].read_text())
        rows = {
            name: result["results"]["hesnr_swe"]["he_snr,none"]
            for name, result in (("alone", alone), ("accelerate", launched))
        }
        return {"he_snr": rows, "equal": rows["alone"] == rows["accelerate"]}

    def paper(self) -> dict:
        """The paper's 500 × 25 K tokens on 8 B, from a tenth of the texts."""
        from hesnr_tasks.backends.base import TokenSequence

        engine = engine_for(self.build("llama-8b"))
        count, tokens = (2, 256) if self.smoke else (50, 25_000)
        wanted = WANTED * tokens // TOKENS
        texts = [TokenSequence(str(i), *trajectory(self.vocabulary, tokens, wanted, seed=i)) for i in range(count)]
        list(engine.score(texts[:1], K))
        start = time.perf_counter()
        list(engine.score(texts, K))
        self.wait()
        seconds = time.perf_counter() - start
        return {"texts": count, "tokens": tokens, "seconds": seconds, "minutes_for_500": seconds * 500 / count / 60}


# --- what is written --------------------------------------------------------------------------------------------------


def about(bench: Bench) -> dict:
    """What a figure is of: commit, device, versions, date."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "smoke": bench.smoke,
        "commit": commit.stdout.strip() or "unknown",
        "device": platform.processor() or "CPU" if bench.smoke else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def table(folder: Path) -> str:
    """Markdown of what is in the folder; what is not there is `not measured`."""
    lines = [
        "| step | tokens | tokens/s | of bare | MFU | peak, GiB | weights + KV + 1 GiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    others = []
    for step in STEPS:
        path = folder / f"{step}.json"
        result = json.loads(path.read_text()) if path.exists() else {"not_measured": "not run"}
        if "not_measured" in result:
            others.append(f"- {step}: not measured ({result['not_measured']})")
        for row in result.get("rows", ()):
            mfu = "–" if row["mfu"] is None else f"{row['mfu']:.0%}"
            lines.append(
                f"| {step} | {row['tokens']} | {row['tokens_per_second']:,.0f} | {row['of_bare']:.2f} | {mfu} "
                f"| {row['peak_bytes'] / GIB:.1f} | {row['weights_kv_1gib'] / GIB:.1f} |"
            )
        if "rows" not in result and "not_measured" not in result:
            others.append(f"- {step}: {json.dumps({k: v for k, v in result.items() if k != 'about'})}")
    return "\n".join([*lines, "", *others])


def main(words: Sequence[str] | None = None) -> int:
    """Run the steps that are named, or all that have no result yet, then print the table; whether one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", nargs="*", metavar="STEP", choices=[*STEPS, []], help="; ".join(STEPS))
    parser.add_argument("--folder", type=Path, default=Path("gpu-results"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU")
    settings = parser.parse_args(words)
    if not settings.smoke and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --smoke runs every step on the CPU, for no figures")
    folder, failed = settings.folder.resolve(), 0
    folder.mkdir(parents=True, exist_ok=True)
    for step in settings.steps:
        measure(step, folder, smoke=settings.smoke)
    if settings.steps:
        return 0
    for step in STEPS:
        if (folder / f"{step}.json").exists():
            continue
        if settings.smoke:
            measure(step, folder, smoke=True)
        elif not finished(step, folder):
            print(f"failed: {folder / step}.log")
            failed = 1
    print(table(folder))
    return failed


def measure(step: str, folder: Path, *, smoke: bool) -> None:
    """Run a step here and write its result."""
    logging.getLogger("hesnr_tasks").setLevel(logging.ERROR)
    bench = Bench(smoke=smoke)
    try:
        result = bench.run(step)
    except NotMeasured as reason:
        result = {"not_measured": str(reason)}
    partial = folder / f"{step}.json.partial"
    partial.write_text(json.dumps(result | {"about": about(bench)}, indent=1) + "\n")
    partial.replace(folder / f"{step}.json")
    print(step, json.dumps(result), flush=True)


def finished(step: str, folder: Path) -> bool:
    """Whether a step ends well within ten minutes, in a process of its own, which leaves no memory on the device."""
    print(f"== {step} ({datetime.now(timezone.utc):%H:%M:%S})", flush=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--folder", str(folder), step]
    with (folder / f"{step}.log").open("w") as log, contextlib.suppress(subprocess.TimeoutExpired):
        return not subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=600, check=False).returncode
    return False


if __name__ == "__main__":
    raise SystemExit(main())
