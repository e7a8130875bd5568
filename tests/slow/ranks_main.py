"""Runs in processes of its own: lm-eval over several ranks. lm-eval's HFLM splits documents only with several GPUs, so
a small subclass reports the real ranks; everything else is the product's."""

import json

import lm_eval
import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hesnr_tasks.errors import SettingsError
from hesnr_tasks.tasks import tasks_path

TASKS = ["hesnr_swe", "hesnr_swe_thought"]


class RankedHFLM(HFLM):
    """HFLM whose documents are split over the processes of the group."""

    @property
    def rank(self):
        return dist.get_rank()

    @property
    def world_size(self):
        return dist.get_world_size()

    def all_gather(self, tensor):
        parts = [torch.zeros_like(tensor) for _ in range(self.world_size)]
        dist.all_gather(parts, tensor)
        return torch.stack(parts)

    def barrier(self):
        dist.barrier()


def main(rank, processes, checkpoint, data, folder):
    """Evaluate as one of several processes; rank 0 writes the result, every rank its refusal, into `folder`."""
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=processes)
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata={"trajectories": data})
    model = RankedHFLM(pretrained=checkpoint, dtype="float32", device="cpu")
    try:
        result = lm_eval.simple_evaluate(model=model, tasks=TASKS, task_manager=manager, bootstrap_iters=0)
    except SettingsError as error:
        (folder / f"refused{rank}").write_text(str(error))
    else:
        if rank == 0:
            (folder / "result.json").write_text(json.dumps({key: result[key] for key in ("results", "configs")}))
    dist.destroy_process_group()
