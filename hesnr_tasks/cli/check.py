"""`hesnr check`: what a run would read and score, before any weights are loaded.

Everything that can be wrong without the model is wrong here first: paths, records, settings, the chat template, a
context that is too short. Memory and time are computed from the configuration, or measured with `--probe`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hesnr_tasks import __version__
from hesnr_tasks.cli.evaluate import refuse_paths
from hesnr_tasks.cli.setup import installed_version
from hesnr_tasks.errors import DataError, SettingsError, number_of
from hesnr_tasks.filters import FILTERS, char_codes
from hesnr_tasks.formats import ReadReport
from hesnr_tasks.tasks.corpus import Corpus
from hesnr_tasks.tasks.settings import TaskSettings, add_flags, native_template
from hesnr_tasks.trajectory import Kind, Trajectory
from hesnr_tasks.trajectory.alignment import Encoder, token_labels
from hesnr_tasks.trajectory.chat_messages import native_calls, stored_schemas
from hesnr_tasks.trajectory.chat_rendering import NativeTemplate
from hesnr_tasks.trajectory.rendering import Passed, Rendered, label_mask, render
from hesnr_tasks.viewer import load_pretrained

_SETTINGS = (
    "config", "split", "only_resolved", "limit", "sample", "sample_seed", "on_error", "render", "thoughts",
    "template_kwargs", "calls", "kinds", "filters", "epsilon", "k", "overflow",
)  # fmt: skip
_WIDTH = 100
_SHORT = (
    "A run would give numbers, but over less than half of the tokens that count: the context is too short for these "
    "trajectories (docs/reading.md)."
)
_EFFICIENCY = 0.4  # of peak arithmetic that a long prefill reaches
_PEAK = {"A100": 312e12, "H100": 989e12}  # bfloat16, dense
_PROBE_TOKENS = 2048
_LENGTHS = ("n_positions", "max_position_embeddings", "n_ctx")  # as lm-eval looks for the context


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hesnr check`."""
    parser.set_defaults(execute=run)
    add = parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="files, globs, folders or a hub id")
    add("--model", metavar="CKPT", help="checkpoint: its configuration and tokenizer are read, not its weights")
    add("--tokenizer", metavar="CKPT", help="another tokenizer than the model's")
    add("--max-length", type=int, metavar="N", help="context in tokens (default: the configuration's)")
    add("--probe", action="store_true", help="load the weights and time a short text on this machine")
    add("--json", action="store_true", help="for scripts")
    add_flags(parser, *_SETTINGS)


def run(args: argparse.Namespace) -> int:
    """Print what there is; status 1 where lm_eval could give no number."""
    chosen = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    for option in ("model", "tokenizer"):
        name = "pretrained" if option == "model" else option  # only a model must have a configuration
        refuse_paths({name: getattr(args, option)}, f"--{option} {{1}}")
    settings = TaskSettings.read({**chosen, "trajectories": args.sources})
    if args.max_length is not None and args.max_length < 2:
        raise SettingsError(f"--max-length is {args.max_length}; it must be a number of tokens, at least 2")
    if args.probe and not args.model:
        raise SettingsError("--probe needs --model CKPT, whose weights it loads")
    answer = _checked(settings, args)
    if args.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False, default=str))
    else:
        for line in _lines(answer):
            print("\n".join(_wrapped(line, "  ")) if len(line) > _width() else line)
    return bool(answer["problems"])


def _checked(settings: TaskSettings, args: argparse.Namespace) -> dict[str, Any]:
    report = ReadReport()
    # settings first, then what is fast to read: a wrong path must not wait for a tokenizer
    trajectories = Corpus.load(
        settings.trajectories, config=settings.config, split=settings.split, only_resolved=settings.only_resolved,
        limit=settings.limit, sample=settings.sample, sample_seed=settings.sample_seed, on_error=settings.on_error,
        report=report,
    )  # fmt: skip
    config = load_pretrained("configuration", args.model) if args.model else None
    named = args.tokenizer or args.model
    encoder = Encoder(load_pretrained("tokenizer", named)) if named else None
    native = _native(settings, encoder)
    max_length = args.max_length or _context(config, encoder)
    problems: list[str] = []
    passed: list[Passed] = []
    texts = _texts(settings, trajectories, native if settings.render == "native" else None, problems, passed)
    text, lengths, read = _counts(settings, texts, encoder, max_length)
    if not text["kept_characters"]:
        problems.append("no character counts: kinds and filters leave nothing")
    elif text.get("kept_tokens") == 0:
        problems.append("no token that counts lies within the context")
    model = _model(args.model, config, read, max(lengths, default=0), max_length) if config is not None else None
    if model is not None and args.probe:
        model |= _probed(args.model, settings, trajectories, encoder, native, sum(read))
    return {
        "sources": list(args.sources),
        "trajectories": _reading(trajectories, report),
        "settings": {
            n: _plain(getattr(settings, n)) for n in ("render", "kinds", "filters", "epsilon", "k", "overflow")
        },
        "text": text,
        "template": _template(native, trajectories, passed, settings) if native else None,
        "model": model,
        "versions": {"hesnr-tasks": __version__}
        | {name: installed_version(name) for name in ("lm_eval", "transformers", "torch")},
        "problems": problems,
    }


def _plain(value: Any) -> Any:
    return [getattr(v, "value", v) for v in value] if isinstance(value, tuple) else value


# --- trajectories and texts -------------------------------------------------------------------------------------------


def _reading(trajectories: Iterable[Trajectory], report: ReadReport) -> dict[str, Any]:
    formats, outcomes, counts = Counter[str](), Counter[str](), Counter[str]()
    for trajectory in trajectories:
        formats[trajectory.source or "hesnr"] += 1
        outcomes[{True: "resolved", False: "not resolved", None: "unknown"}[trajectory.resolved]] += 1
        counts["turns"] += sum(message.generated for message in trajectory.messages)
        counts["with_stored_calls"] += any(native_calls(trajectory))
        counts["with_tool_schemas"] += bool(stored_schemas(trajectory.meta.get("tools")))
    return {
        "count": formats.total(),
        "records": report.read,
        "formats": dict(formats.most_common()),
        "outcomes": dict(outcomes),
        **{name: counts[name] for name in ("turns", "with_stored_calls", "with_tool_schemas")},
        "notes": report.lines(),
    }


def _native(settings: TaskSettings, encoder: Encoder | None) -> NativeTemplate | None:
    """The checkpoint's template, where there is one."""
    has_template = encoder is not None and bool(getattr(encoder.tokenizer, "chat_template", None))
    if settings.render == "native" and not has_template:
        lacking = (
            "needs --model CKPT or --tokenizer CKPT" if encoder is None else "needs a tokenizer with a chat template"
        )
        raise SettingsError(f"render=native {lacking}: the format is the checkpoint's own. Use transcript or chatml.")
    return native_template(encoder.tokenizer, settings) if encoder is not None and has_template else None


def _texts(
    settings: TaskSettings,
    trajectories: Iterable[Trajectory],
    native: NativeTemplate | None,
    problems: list[str],
    passed: list[Passed],
) -> Iterator[Rendered]:
    """The texts, one at a time; `problems` and `passed` fill as they come."""
    for trajectory in trajectories:
        try:
            rendered = render(trajectory, settings.render, native)
        except DataError as error:
            problems.append(str(error))
        else:
            passed += [rendered.passed] if rendered.passed else []
            yield rendered


def _counts(
    settings: TaskSettings, texts: Iterable[Rendered], encoder: Encoder | None, max_length: int | None
) -> tuple[dict[str, Any], list[int], list[int]]:
    """Characters and tokens by kind, and for each text its tokens and how many of them are read."""
    all_filters = tuple(FILTERS)
    masks = {kind.value: label_mask((kind,), (), all_filters) for kind in Kind}
    masks["kept"] = label_mask(settings.kinds, settings.filters, all_filters)
    characters, tokens, within = Counter[str](), Counter[str](), 0
    lengths, read = list[int](), list[int]()
    for rendered in texts:
        codes = char_codes(rendered)
        bits = np.uint64(1) << codes.astype(np.uint64)
        characters.update({name: int(((bits & mask) != 0).sum()) for name, mask in masks.items()})
        if encoder is None:
            continue
        labels = token_labels(encoder.encode(rendered), codes)
        tokens.update({name: int(((labels & mask) != 0).sum()) for name, mask in masks.items()})
        counted = np.flatnonzero((labels & masks["kept"]) != 0)
        counted = counted[(counted > 0) & (counted < (max_length or len(labels)))]
        within += len(counted)
        lengths.append(len(labels))
        read.append(int(counted[-1]) if len(counted) else 0)
    counts: dict[str, Any] = {
        "characters": {kind.value: characters[kind.value] for kind in Kind},
        "kept_characters": characters["kept"],
    }
    if encoder is not None:
        counts |= {
            "tokens": {kind.value: tokens[kind.value] for kind in Kind},
            "kept_tokens": within,
            "kept_tokens_total": tokens["kept"],
            "longest": max(lengths, default=0),
            "median": int(np.median(lengths)) if lengths else 0,
            "max_length": max_length,
            "longer_than_context": sum(n > max_length for n in lengths) if max_length else 0,
        }
    return counts, lengths, read


# --- the chat template ------------------------------------------------------------------------------------------------


def _template(
    native: NativeTemplate, trajectories: Iterable[Trajectory], passed: list[Passed], settings: TaskSettings
) -> dict[str, Any]:
    """What the template does with messages in general, and with these trajectories."""
    refused: list[str] = []
    try:
        behaviour = _behaviour(native)
        for trajectory in trajectories if settings.render != "native" else ():  # what it would do
            try:
                rendered = native.render(trajectory)
            except DataError as error:
                refused.append(str(error))
            else:
                passed += [rendered.passed] if rendered.passed else []
    except SettingsError as error:  # it loops, or fills the memory
        if settings.render == "native":
            raise
        return {"unusable": str(error)}
    return {"behaviour": behaviour, **native.describe(passed), "rendered": len(passed), "refused": refused}


_CALL = {"id": "call00001", "type": "function", "function": {"name": "run_it", "arguments": {"command": "ls"}}}
_TOOLS = [{"type": "function", "function": {"name": "run_it", "description": "does it", "parameters": {}}}]


def _behaviour(native: NativeTemplate) -> dict[str, str]:
    """What the template does with the parts of a conversation, each tried in a short one."""
    user: dict[str, Any] = {"role": "user", "content": "the task"}
    answer: dict[str, Any] = {"role": "assistant", "content": "the answer"}

    def tried(messages: list[dict[str, Any]], *texts: str, tools: list[dict[str, Any]] | None = None) -> str:
        try:
            text = native.text(messages, tools)
        except DataError as error:
            return f"refused: {str(error).removeprefix('it raises ')}"
        missing = [part for part in texts if part not in text]
        return ("dropped" if len(missing) == len(texts) else f"drops {', '.join(missing)}") if missing else "kept"

    def between(messages: list[dict[str, Any]]) -> str:
        verdict = tried(messages, "the task", "more")
        if verdict != "kept":
            return verdict
        text = native.text(messages)
        gap = text[text.index("the task") + len("the task") : text.index("more")]
        return "kept apart" if gap.strip() else "merged"

    calling = [user, {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
    result = {"role": "tool", "content": "the result", "name": "run_it", "tool_call_id": "call00001"}
    dated = "strftime_now" in str(getattr(native.tokenizer, "chat_template", ""))
    return {
        "system prompt": tried([{"role": "system", "content": "the system"}, user, answer], "the system"),
        "two user messages": between([user, {"role": "user", "content": "more"}, answer]),
        "tool calls": tried(calling, "run_it", "ls", tools=_TOOLS),
        "calls without schemas": tried(calling, "run_it", "ls"),
        "tool results": tried([*calling, result, answer], "the result", tools=_TOOLS),
        "schemas of tools": tried([user, answer], "does it", tools=_TOOLS),
        "today's date": "printed; render=native fixes it to 2025-01-01" if dated else "not printed",
    }


# --- the model --------------------------------------------------------------------------------------------------------


def _context(config: Any, encoder: Encoder | None) -> int | None:
    config = getattr(config, "text_config", None) or config
    lengths = [getattr(config, name, None) for name in _LENGTHS]
    lengths += [getattr(encoder.tokenizer, "model_max_length", None)] if encoder else []
    return next((int(n) for n in lengths if n is not None and n < 1 << 40), None)


def _model(name: str, config: Any, read: Sequence[int], longest: int, max_length: int | None) -> dict[str, Any]:
    """Parameters, memory and arithmetic, from the configuration alone."""
    text = getattr(config, "text_config", None) or config
    parameters, active = _parameters(config)
    dtype = str(getattr(text, "dtype", None) or getattr(text, "torch_dtype", None) or "float32").removeprefix("torch.")
    size = {"float64": 8, "float32": 4, "float8_e4m3fn": 1, "int8": 1}.get(dtype, 2)
    layers, hidden = int(getattr(text, "num_hidden_layers", 0)), int(getattr(text, "hidden_size", 0))
    heads = int(getattr(text, "num_attention_heads", 0) or 1)
    head = int(getattr(text, "head_dim", None) or hidden // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads) * head
    most = min(longest, max_length or longest)
    # 2 operations a parameter and token; in attention 4 a layer, channel and pair of tokens, half of which are causal
    arithmetic = 2.0 * active * sum(read) + sum(2.0 * layers * heads * head * n * n for n in read)
    result = {
        "model": name,
        "architecture": (getattr(config, "architectures", None) or [type(config).__name__])[0],
        "parameters": parameters,
        "active_parameters": active,
        "dtype": dtype,
        "weights_bytes": parameters * size,
        "kv_cache_bytes": 2 * layers * keys * size * most,
        "tokens_read": sum(read),
        "operations": arithmetic,
    }
    if parameters:
        result["seconds_computed"] = {name: arithmetic / (peak * _EFFICIENCY) for name, peak in _PEAK.items()}
    return result


def _parameters(config: Any) -> tuple[int, int]:
    """All parameters, and those that work on a token (of mixtures of experts): of the model, built without memory."""
    try:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # no torch, an architecture of a newer version: nothing is computed
        return 0, 0
    text = getattr(config, "text_config", None) or config
    experts = next(
        (n for k in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(text, k, 0))), 0
    )
    used = getattr(text, "num_experts_per_tok", 0) or experts
    total = sum(p.numel() for p in model.parameters())
    routed = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n or n.endswith(".experts"))
    return total, total - round(routed * (1 - used / experts)) if experts else total


def _probed(
    name: str,
    settings: TaskSettings,
    trajectories: Iterable[Trajectory],
    encoder: Encoder | None,
    native: NativeTemplate | None,
    tokens: int,
) -> dict[str, Any]:
    """The speed of this machine on the first tokens of the shortest trajectory."""
    import torch
    from transformers import AutoModelForCausalLM

    from hesnr_tasks import api

    if encoder is None:
        raise SettingsError("--probe needs the model's tokenizer")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", trust_remote_code=False).to(device)
    except Exception as error:
        raise SettingsError(f"--probe: the weights of {name!r} cannot be loaded ({str(error)[:200]})") from error
    shortest = min(trajectories, key=lambda t: sum(len(m.text) for m in t.messages))
    rendered = render(shortest, settings.render, native if settings.render == "native" else None)
    length = min(_PROBE_TOKENS, len(encoder.encode(rendered).ids))
    options: dict[str, Any] = {"render": settings.render, "max_length": _PROBE_TOKENS, "k": settings.k}
    if settings.render == "native":
        options |= {name: getattr(settings, name) for name in ("thoughts", "template_kwargs", "calls")}
    for _ in range(2):  # the first pass also checks the engine
        start = time.perf_counter()
        api.score(model, encoder.tokenizer, [shortest], **options)
        seconds = time.perf_counter() - start
    return {
        "probe": {"device": device, "tokens": length, "seconds": seconds},
        "seconds_probed": tokens / (length / seconds),
    }


# --- for people -------------------------------------------------------------------------------------------------------


def _lines(answer: Mapping[str, Any]) -> Iterator[str]:
    yield from _reading_lines(answer["trajectories"])
    yield from _text_lines(answer["text"], answer["settings"])
    if answer["template"]:
        yield from _template_lines(answer["template"], answer["settings"]["render"])
    if answer["model"]:
        yield from _model_lines(answer["model"])
    yield "\nVersions"
    yield f"  {', '.join(f'{name} {version or chr(8212)}' for name, version in answer['versions'].items())}"
    for problem in answer["problems"]:
        yield from ["", *_wrapped(f"PROBLEM: {problem}", "  ")]
    if answer["problems"]:
        yield f"\n{number_of(len(answer['problems']), 'problem')}"
    elif _share(answer["text"]) < 0.5:
        yield from ["", *_wrapped(_SHORT, "")]
    else:
        yield "\nNothing stands in the way of a run."


def _width() -> int:
    return max(60, min(_WIDTH, shutil.get_terminal_size((_WIDTH, 24)).columns))


def _share(text: Mapping[str, Any]) -> float:
    """Of the tokens that count, those within the context; 1 where no context is known."""
    return text["kept_tokens"] / max(1, text["kept_tokens_total"]) if text.get("max_length") else 1.0


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text.strip(), _width(), initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False
    )


def _reading_lines(reading: Mapping[str, Any]) -> Iterator[str]:
    yield f"Trajectories: {reading['count']} of {number_of(reading['records'], 'record')}"
    for name in ("formats", "outcomes"):
        yield f"  {name:22} {', '.join(f'{key} {count}' for key, count in reading[name].items())}"
    yield f"  {'turns':22} {reading['turns']:,}"
    yield f"  {'stored tool calls':22} in {number_of(reading['with_stored_calls'], 'trajectory')}"
    yield f"  {'stored tool schemas':22} in {number_of(reading['with_tool_schemas'], 'trajectory')}"
    for note in reading["notes"]:
        yield from _wrapped(note, "  ")


def _text_lines(text: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    counts = f"{'+'.join(settings['kinds'])} without {'+'.join(settings['filters']) or 'filters'}"
    yield f"\nText (render={settings['render']})"
    tokens = text.get("tokens")
    total, total_tokens = sum(text["characters"].values()), sum((tokens or {}).values())
    yield f"  {'':22} {'characters':>12} {'share':>7}" + (f" {'tokens':>12} {'share':>7}" if tokens else "")
    rows = [(kind, text["characters"][kind], tokens and tokens[kind]) for kind in text["characters"]]
    rows.append(("that count", text["kept_characters"], text.get("kept_tokens_total")))
    for name, characters, count in rows:
        line = f"  {name:22} {characters:12,} {characters / max(1, total):7.1%}"
        yield line + (f" {count:12,} {count / max(1, total_tokens):7.1%}" if tokens else "")
    yield from _wrapped(f"that count: {counts}, ε = {settings['epsilon']:.4f}, k = {settings['k']}", "  ")
    if not tokens:
        yield "  --model CKPT or --tokenizer CKPT counts tokens, too"
        return
    yield f"  {'tokens of a text':22} median {text['median']:,}, longest {text['longest']:,}"
    if text["max_length"]:
        share = _share(text)
        half = "LESS THAN HALF: " if share < 0.5 else ""
        longer = number_of(text["longer_than_context"], "trajectory")
        yield f"  {'context':22} {text['max_length']:,} tokens; longer: {longer}"
        yield (
            f"  {'scored':22} {half}{share:.1%} of the tokens that count "
            f"({text['kept_tokens']:,} of {text['kept_tokens_total']:,}; overflow={settings['overflow']})"
        )


def _template_lines(template: Mapping[str, Any], render: str) -> Iterator[str]:
    yield "\nChat template"
    if "unusable" in template:
        yield from _wrapped(f"not for render=native: {template['unusable']}", "  ")
        return
    tense = "renders" if render == "native" else "would render (render=native)"
    for name, verdict in template["behaviour"].items():
        yield from _wrapped(f"{name:22} {verdict}", "  ")
    field = template["reasoning"]
    yield f"  {'reasoning':22} {'text of the content' if field == 'inline' else f'field {field}'}"
    switches = ", ".join(f"{name}={value}" for name, value in template["switches"].items())
    yield f"  {'switches set':22} {switches or 'none'}"
    total = max(1, template["thoughts_total"])
    yield (
        f"  {'thoughts dropped':22} {template['thoughts_dropped'] / total:.1%} of their characters "
        f"({template['thoughts_dropped']:,} of {template['thoughts_total']:,})"
    )
    for form, count in template["forms"].items():
        yield from _wrapped(f"{tense} {count} with {form}", "  ")
    for refusal in template["refused"][:3]:
        yield from _wrapped(f"would refuse: {refusal}", "  ")
    if len(template["refused"]) > 3:
        yield f"  … and {len(template['refused']) - 3} more"


def _model_lines(model: Mapping[str, Any]) -> Iterator[str]:
    yield f"\nModel ({model['architecture']}, {model['dtype']}; computed from its configuration)"
    if not model["parameters"]:
        yield "  its parameters cannot be counted here (torch, or a newer transformers, is missing)"
        return
    active = model["active_parameters"]
    experts = f", of which {active:,} work on a token" if active < model["parameters"] else ""
    yield f"  {'parameters':22} {model['parameters']:,}{experts}"
    yield f"  {'memory, weights':22} {_short(model['weights_bytes'])}B"
    yield f"  {'memory, KV cache':22} {_short(model['kv_cache_bytes'])}B for the longest text, if it is read in chunks"
    yield f"  {'tokens read':22} {model['tokens_read']:,}"
    yield f"  {'arithmetic':22} {model['operations']:.2e} operations"
    seconds = ", ".join(f"{name} {_duration(s)}" for name, s in model["seconds_computed"].items())
    yield f"  {'time, computed':22} {seconds} (bfloat16 at {_EFFICIENCY:.0%} of the peak), loading aside"
    if "probe" in model:
        probe = model["probe"]
        yield (
            f"  {'time, probed':22} {_duration(model['seconds_probed'])} on this {probe['device']} "
            f"({probe['tokens']:,} tokens took {probe['seconds']:.2f} s)"
        )


def _short(number: int) -> str:
    power, unit = next((p, u) for p, u in ((1e9, " G"), (1e6, " M"), (1e3, " K"), (1, " ")) if number >= p or p == 1)
    return f"{number / power:.3g}{unit}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
