"""What the rendering alone moves: the miniature's last rungs, before and after fine-tuning, on the same runs.

    python -m benchmarks.renderings [--trajectories 40]

The fine-tuned models do not ship; they are made here by the ladder's recipe (about a minute and a half each). They were
fine-tuned on text in the form of `transcript`. `native` uses the chat template of Qwen 2.5 in TRL's package.
"""

import argparse

import torch
import trl.chat_template_utils as templates
from transformers import AutoModelForCausalLM

import hesnr_tasks as hesnr
from hesnr_tasks import demo
from scripts.miniature import train

FOLDER = demo.HERE / "miniature"
RENDERINGS = ("transcript", "chatml", "native")
METRICS = ("he_snr", "ppl", "bpb", "he_tokens", "tokens")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trajectories", type=int, default=40)
    parser.add_argument("--rungs", nargs="+", default=["code-1700-long", "prose-1700-long"])
    args = parser.parse_args()
    runs = hesnr.load(FOLDER / "trajectories.jsonl", limit=args.trajectories)
    print("| checkpoint | rendering | he_snr | ppl | bpb | 𝓗 tokens | tokens |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for rung in args.rungs:
        folder = FOLDER / "checkpoints" / rung
        tokenizer = train.load_tokenizer(folder)
        tokenizer.chat_template = templates.qwen2_5_chat_template
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name in (rung, f"{rung}, fine-tuned"):
            if name != rung:
                train.fine_tune(model, train.Recipe(), tokenizer, seed=0, say=lambda line: None)
            for rendering in RENDERINGS:
                scores = hesnr.score(model, tokenizer, runs, render=rendering).evaluate(*METRICS)
                cells = [f"{scores[m].value:.4g} ± {scores[m].stderr:.2g}" for m in METRICS[:3]]
                cells += [f"{scores[m].value:.0f}" for m in METRICS[3:]]
                print(f"| {name} | {rendering} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    from benchmarks.machine import watched

    with watched():
        main()
