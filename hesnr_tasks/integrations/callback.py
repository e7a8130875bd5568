"""`HESNRCallback`: HE-SNR of the model in training, every so many steps, in the training's own log.

For transformers' Trainer and what builds on it (TRL). The engine is the one `lm_eval --model hf` uses, so a number
logged here is the number of the checkpoint saved at that step, and training goes on as if nothing had been read.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hesnr_tasks.errors import HesnrError, SettingsError, number_of
from hesnr_tasks.integrations.evaluation import (
    Evaluation,
    Evaluator,
    UnfinishedPassError,
    he_snr_change,
    in_training,
    metrics_of,
)
from hesnr_tasks.tasks.settings import TaskSettings, describe, refuse_unknown

_log = logging.getLogger("hesnr_tasks")
_PREFIX = "hesnr/"


class HESNRCallback(TrainerCallback):
    """Scores a small fixed set of trajectories on the model in training.

    `trajectories`: files, globs, folders or a hub id (none: the demo's). `every`: optimizer steps between evaluations;
    `at_start`, `at_end`: also before the first step and after the last. `limit`: the first so many trajectories
    (`sample` draws a seeded sample instead). `max_length`: the most tokens of each that are read (default: what the
    model's configuration says). `tokenizer`: default: the Trainer's `processing_class`. `on_error`: what an evaluation
    that fails does: "warn" goes on training, "stop" raises. `trainer`: the Trainer, through which the numbers reach its
    reporters (W&B, TensorBoard, the progress bar); without it they are in `state.log_history` only. A Trainer takes its
    callbacks before it exists, so either `trainer.add_callback(HESNRCallback(..., trainer=trainer))`, or the attribute
    `trainer` is set later, before training. `settings`: as in `--metadata`: kinds, filters, epsilon, k,
    render, only_resolved, sample, overflow, resamples …

    Logged, under `hesnr/`: every registered metric that is defined (docs/metrics.md; `_stderr`: cluster bootstrap over
    trajectories), scored (the share of the tokens that would count that fits into the context),
    he_snr_change since the last evaluation (`_stderr`, `_low`, `_high`: paired, 95 %), seconds (all of it) and
    tokens_per_second (reading). `evaluations` keeps the sums of each trajectory, `signature` every choice behind them.

    With several processes that each hold the whole model (DistributedDataParallel, DeepSpeed stages 1 and 2) the
    trajectories are split over all of them. Of a model that FSDP2, DeepSpeed's ZeRO stage 3 or tensor parallelism over
    all processes (transformers' `tp_plan`) has spread over them, all processes run all forward passes together; a
    process that fails inside one (out of memory, say) ends the run whatever `on_error` is: the others wait for it.
    Raises `HesnrError` at construction or before the first step for settings, data or models that cannot be scored,
    among them FSDP 1, tensor parallelism combined with data parallelism or FSDP2, and context and sequence parallelism.
    """

    def __init__(
        self,
        trajectories: str | Sequence[str] = (),
        *,
        every: int = 500,
        limit: int | None = 8,
        at_start: bool = True,
        at_end: bool = True,
        max_length: int | None = None,
        tokenizer: Any = None,
        on_error: str = "warn",
        trainer: Trainer | None = None,
        **settings: Any,
    ) -> None:
        for name, value in (("every", every), ("max_length", 1 if max_length is None else max_length)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SettingsError(f"{name} must be a whole number of at least 1, not {value!r}")
        if on_error not in ("warn", "stop"):
            raise SettingsError(f"on_error is {on_error!r}; it must be 'warn' or 'stop'")
        if "scores" in settings:
            raise SettingsError(
                "HESNRCallback writes no score files; its `evaluations` hold the sums. Leave out scores"
            )
        names = [field.name for field in fields(TaskSettings) if field.name not in ("scores", "on_error", "window")]
        refuse_unknown(settings, names)
        self._every, self._at_start, self._at_end, self._max_length = every, at_start, at_end, max_length
        self._tokenizer, self._on_error, self.trainer = tokenizer, on_error, trainer
        data = {"trajectories": trajectories, "limit": None if settings.get("sample") else limit}
        self.settings = TaskSettings.read({**data, **settings})
        self.evaluations: list[Evaluation] = []
        self.signature: dict[str, Any] = {}
        self._evaluator: Evaluator | None = None
        self._last_step = -1

    # --- events of the Trainer ----------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Tokenise, let the engine check itself, say what an evaluation costs, and make the first."""
        self._check_trainer(args, state)
        tokenizer = self._tokenizer or kwargs.get("processing_class")
        live = in_training(kwargs["model"], tokenizer, args, self._max_length)
        self._evaluator = Evaluator(live, self.settings)
        self.evaluations, self._last_step = [], -1
        self.signature = self._evaluator.signature()
        if state.is_world_process_zero:
            self._announce(self._evaluator)
        return self._evaluate(state, control, args) if self._at_start else control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Evaluate if it is time to."""
        return self._evaluate(state, control, args) if state.global_step % self._every == 0 else control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Evaluate after the last step; by `on_train_end` some reporters have closed their books."""
        return self._evaluate(state, control, args) if self._at_end and control.should_training_stop else control

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Evaluate where the end came as a surprise, unless the model by now is that of an earlier step."""
        last = self._at_end and not args.load_best_model_at_end
        return self._evaluate(state, control, args) if last else control

    # --- evaluating ---------------------------------------------------------------------------------------------------

    def _evaluate(self, state: TrainerState, control: TrainerControl, args: TrainingArguments) -> TrainerControl:
        if self._evaluator is None or state.global_step == self._last_step:
            return control
        self._last_step = state.global_step
        try:
            evaluation = self._evaluator.run(state.global_step)
        except HesnrError as error:
            if self._on_error == "stop" or isinstance(error, UnfinishedPassError):
                raise
            _log.warning("no HE-SNR at step %d, training goes on: %s", state.global_step, error)
            return control
        start, texts = time.perf_counter(), self._evaluator.texts
        values = metrics_of(evaluation, self.settings)
        values["tokens_per_second"] = texts.n_tokens / max(evaluation.seconds, 1e-9)
        if self.evaluations:
            values |= he_snr_change(self.evaluations[-1], evaluation, self.settings)
        values["scored"] = texts.share_scored
        values["seconds"] = evaluation.seconds + time.perf_counter() - start
        if "he_snr" not in values:
            _log.warning(
                "step %d: %d tokens are in the high-entropy set, fewer than min_tokens=%d: he_snr and he_ppl are not "
                "logged", state.global_step, values["he_tokens"], max(1, self.settings.min_tokens),
            )  # fmt: skip
        self.evaluations.append(evaluation)
        return self._record({_PREFIX + name: value for name, value in values.items()}, args, state, control)

    def _record(
        self, values: dict[str, float], args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> TrainerControl:
        """Into the history and to every reporter, as `Trainer.log` does.

        Not through `Trainer.log` itself: TRL's trainers put what they have gathered since the last log into whatever
        is logged next, so their own log would lose it. That a log is due is remembered: `on_log` declares it done.
        """
        logs = values if state.epoch is None else {**values, "epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        if self.trainer is None:
            return control
        due = control.should_log
        control = self.trainer.callback_handler.on_log(args, state, control, logs)
        control.should_log = due
        return control

    def _check_trainer(self, args: TrainingArguments, state: TrainerState) -> None:
        """Callbacks are given neither the Trainer nor its reporters, so that who trains can only be told."""
        if self.trainer is not None and self not in self.trainer.callback_handler.callbacks:
            raise SettingsError(
                "HESNRCallback was given another Trainer than the one that trains; set its `trainer` to that one"
            )
        if self.trainer is None and state.is_world_process_zero:
            _log.warning(
                "HESNRCallback has no trainer: its numbers are in trainer.state.log_history, but do not reach %s. "
                "Before training: trainer.add_callback(HESNRCallback(…, trainer=trainer)), or set its `trainer`",
                ", ".join(args.report_to or ["the progress bar"]),
            )  # fmt: skip

    def _announce(self, evaluator: Evaluator) -> None:
        """On stderr, not in the log: what a run will cost must be seen by everyone, log levels or not."""
        texts, processes = evaluator.texts, evaluator.processes
        mode = "by all of" if evaluator.sharded else "split over"
        split = f", {mode} {processes} processes" if processes > 1 else ""
        print(
            f"hesnr-tasks: HE-SNR every {self._every} steps: {number_of(len(texts.items), 'trajectory')}, "
            f"{texts.n_tokens:,} "
            f"tokens read each time{split}, {texts.n_scored:,} of them scored, {texts.share_scored:.1%} of the tokens "
            f"that count (at most {evaluator.live.max_length:,} of a text; logged as {_PREFIX}seconds)\n"
            f"hesnr-tasks: {describe(self.signature)}",
            file=sys.stderr,
        )
