"""`hesnr eval`: the `lm_eval` command with our tasks on its path, which refuses what it can before any weights load."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hesnr_tasks.errors import HesnrError, SettingsError, nearest
from hesnr_tasks.tasks import check_lm_eval, tasks_path

__all__ = ["evaluate", "refuse_paths"]

_LOADING = ("hf", "hf-auto", "huggingface", "vllm", "sglang")  # engines that load a checkpoint into this process
_CHECKPOINT = ("config.json", "adapter_config.json", "params.json", "*.gguf")


def evaluate(words: Sequence[str]) -> int:
    """Run `lm_eval` with its own arguments.

    Plain `lm_eval` loads the model before it looks at a task. Here the tasks are made first, so that a wrong path, a
    record that cannot be read or a setting out of range costs seconds, not the loading of the weights.

    Raises:
        HesnrError: for whatever the user can mend.
    """
    check_lm_eval()
    from lm_eval.__main__ import cli_evaluate

    from hesnr_tasks.lm_eval_compat import only_included_tasks

    if words and not any(word.split("=")[0] == "--include_path" for word in words):
        words = [*words, "--include_path", str(tasks_path())]
    sys.argv = ["lm_eval", *_metadata_as_json(words)]  # `cli_evaluate` takes no arguments
    try:
        with contextlib.ExitStack() as stack:
            tasks, complete = _checked()  # alive until the end: lm_eval's tasks share what these have read
            if complete:
                stack.enter_context(only_included_tasks())
            cli_evaluate()
            del tasks
    except OSError as error:  # of transformers: the model is neither here nor on a hub that can be reached
        if error.errno is not None:
            raise
        raise HesnrError(
            f"the model cannot be loaded: {str(error).strip().splitlines()[0]}\n"
            "Name a folder that exists, or a model of a hub that this machine can reach, in --model_args."
        ) from None
    except SystemExit as exit:
        if isinstance(exit.__cause__, HesnrError):
            raise exit.__cause__ from None
        raise
    return 0


def _metadata_as_json(words: Sequence[str]) -> list[str]:
    """`--metadata key=value …` as the one JSON object that every version of lm-eval reads."""
    if "--metadata" not in words:
        return list(words)
    start = words.index("--metadata") + 1
    end = next((i for i in range(start, len(words)) if words[i].startswith("--")), len(words))
    pairs = [word.partition("=") for word in words[start:end]]
    if not pairs or any(key[:1] in ("", "{") or not equals for key, equals, _ in pairs):
        return list(words)
    return [*words[:start], json.dumps({key: _literal(value) for key, _, value in pairs}), *words[end:]]


def _literal(text: str) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(text)))
    except (ValueError, SyntaxError, TypeError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _checked() -> tuple[Mapping[str, Any], bool]:
    """Our tasks among those that `sys.argv` names, made as lm_eval will make them, and whether they are all of them.

    Raises:
        HesnrError: a model that cannot score texts, a path that is not, settings or trajectories that cannot be used.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.tasks import TaskManager

    from hesnr_tasks.backends import refuse_unscorable
    from hesnr_tasks.tasks.settings import TaskSettings

    if not sys.argv[1:]:
        return {}, False
    try:
        given = _with_file(vars(HarnessCLI().parse_args()))
    except ValueError as error:  # of lm_eval's reader of JSON
        raise SettingsError(
            f"lm_eval cannot read its arguments: {str(error).splitlines()[0] if str(error) else 'not JSON'}\n"
            "Write settings as --metadata trajectories=my_runs/ limit=50, or as one JSON object in single quotes."
        ) from None
    tasks, arguments = given.get("tasks") or "", given.get("model_args") or {}
    names = ",".join([tasks] if isinstance(tasks, str) else map(str, tasks)).replace(" ", ",").split(",")
    ours = [name for name in names if name.startswith("hesnr") and not name.startswith("hesnr_passk")]
    metadata = given.get("metadata") or {}
    if ours:
        refuse_unscorable(str(given.get("model")))
        if isinstance(metadata, dict):
            TaskSettings.read(metadata)
    engine = str(given.get("model") or "hf")
    if (
        ours
        and engine in _LOADING
        and (not arguments or (isinstance(arguments, dict) and not arguments.get("pretrained")))
    ):
        raise HesnrError(
            f"--model {engine} needs a checkpoint, and --model_args names none.\n"
            "Add --model_args pretrained=CHECKPOINT: a folder in Hugging Face format, or a model of the hub."
        )
    refuse_paths(arguments if isinstance(arguments, dict) else {}, "{}={} in --model_args")
    if given.get("output_path"):
        _refuse_output(Path(given["output_path"]))
    if not ours or not isinstance(metadata, dict):
        return {}, False
    manager = TaskManager(include_path=given.get("include_path"), include_defaults=False, metadata=metadata)
    if given.get("include_path") == str(tasks_path()):
        for name in ours:
            if name not in manager.all_tasks and not set("*?[/.") & set(name):
                raise SettingsError(f"there is no task {name!r}.{nearest(name, manager.all_tasks)}")
    present = [name for name in ours if name in manager.all_tasks]  # lm_eval names those that are not there
    return manager.load(present)["tasks"], present == names and given.get("include_path") == str(tasks_path())


def _with_file(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments over those of the file that `--config` names, as lm_eval joins them."""
    import yaml

    if not given.get("config"):
        return given
    try:
        content = yaml.safe_load(Path(given["config"]).read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise SettingsError(
            f"--config {given['config']} is no YAML: {' '.join(str(error).split())[:200]}\n"
            "Write lm_eval's arguments into it, such as: tasks: [hesnr_swe]"
        ) from None
    if not isinstance(content, dict):
        raise SettingsError(f"--config {given['config']} holds no arguments, such as: tasks: [hesnr_swe]")
    stated = {name: value for name, value in given.items() if value or value == 0}
    return {**content, **stated}


def refuse_paths(arguments: Mapping[str, Any], place: str) -> None:
    """Refuse folders that are not there, or hold no checkpoint.

    Args:
        arguments: of a model, as in --model_args.
        place: how a message calls an argument; its two fields are the name and the value.

    Raises:
        HesnrError: with the folders that may have been meant.
    """
    for name in ("pretrained", "peft", "tokenizer", "model_path"):
        value = arguments.get(name)
        if not isinstance(value, str) or not value:
            continue
        path = Path(value)
        is_path = value[0] in "/.~" or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())
        if is_path and not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            hint = " (~ is not expanded here)" if value[0] == "~" else nearest(path.name, siblings)
            raise HesnrError(
                f"{place.format(name, value)}: there is no such file or folder.{hint}\n"
                "Name the folder of a checkpoint in Hugging Face format, or a model of the hub."
            )
        if name != "pretrained" or not path.is_dir() or "subfolder" in arguments:
            continue
        if not any(True for pattern in _CHECKPOINT for _ in path.glob(pattern)):
            inner = sorted(file.parent.name for file in path.glob("*/config.json"))[:5]
            below = f" Below it are {', '.join(inner)}." if inner else ""
            raise HesnrError(
                f"{place.format(name, value)}: the folder has no config.json.{below}\nName the folder of a "
                "checkpoint in Hugging Face format (docs/engines.md#checkpoints-of-other-frameworks)."
            )


def _refuse_output(path: Path) -> None:
    """Refuse an output path that cannot be written: lm_eval would find that out when all is scored."""
    place = path.parent if path.suffix == ".json" else path
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "nothing can be written there" if existing.is_dir() else "is a file, not a folder"
        raise SettingsError(f"--output_path {path}: {existing} {why}.\nName a folder that can be written to.")
