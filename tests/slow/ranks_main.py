"""Run by torchrun: lm-eval over several processes. lm-eval's HFLM splits documents only with several GPUs, so a small
subclass reports the real ranks; everything else is the product's."""

import json
import sys
from pathlib import Path

import lm_eval
import torch
import torch.distributed as dist
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hesnr_tasks.tasks.registration import tasks_path


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


def main(checkpoint, metadata, out):
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False, metadata=json.loads(metadata))
    result = lm_eval.simple_evaluate(
        model=RankedHFLM(pretrained=checkpoint, dtype="float32", device="cpu"),
        tasks=["hesnr_swe", "hesnr_swe_thought"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    if dist.get_rank() == 0:
        with Path(out).open("w") as file:
            json.dump({"results": result["results"], "configs": result["configs"]}, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
