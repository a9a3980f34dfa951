"""``train_net.py`` with the toy model, as a program: what a signal, a kill or a full disk meets.

Arguments: folder of the data, output folder, number of processes, what happens at iteration 9, and
options of the config.
"""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from detectron2.utils import comm
from helpers.toy_training import ToyTrainer, toy_arguments

import train_net
from rs_d2 import engine


class EventfulTrainer(ToyTrainer):
    """Meets the event at iteration 9, and leaves its losses beside the output folder."""

    def run_step(self):
        event = os.environ["TOY_EVENT"]
        if self.iter == 9 and self.start_iter == 0 and comm.is_main_process():
            if event == "full":
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
            elif event == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif event == "term":  # as a batch system does: from outside, every process of the job
                parent = multiprocessing.parent_process()
                pids = [worker.pid for worker in multiprocessing.active_children()]
                pids.append(parent.pid if parent else os.getpid())
                subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
                time.sleep(0.5)
        super().run_step()

    def after_train(self):
        super().after_train()
        if comm.is_main_process():
            Path(f"{self.cfg.OUTPUT_DIR}-seen-{self.start_iter}.json").write_text(
                json.dumps(self.seen)
            )


engine.RSTrainer = EventfulTrainer  # in the processes that are started, too

if __name__ == "__main__":
    folder, output, processes, os.environ["TOY_EVENT"], *options = sys.argv[1:]
    config, fixed, data = toy_arguments(Path(folder), output, *options)
    arguments = ["--config-file", config, "--num-gpus", processes, "--train-json", data.train_json]
    arguments += ["--train-images", data.train_images]
    arguments += ["--resume"] * (os.environ["TOY_EVENT"] == "resume")
    sys.exit(train_net.main([*arguments, *fixed]))
