"""What the server of `processes` imports before it forks: no garbage collection looks through it, neither while it is
imported, which takes a third of the time, nor later in the processes.
"""

import gc

gc.disable()

import lm_eval.models.huggingface  # noqa: E402, F401

import hesnr_tasks.tasks.task  # noqa: E402, F401
import tests.lm_eval_run  # noqa: E402
import tests.slow.callback_main  # noqa: E402, F401

gc.enable()
gc.freeze()
