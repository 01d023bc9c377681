"""One process of several: trains with each of the settings in its first argument and writes the results."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from grl.experiment import join, run, train
from grl.experiment.config import Config


def held(trainer: Any) -> dict[str, int]:
    """Return, by parameter, how many of its numbers are on one device of this process."""
    if trainer.__module__ == "grl.experiment.trainers.torch_trainer":
        local = import_module("grl.experiment.trainers.torch_processes").local
        return {name: local(parameter).numel() for name, parameter in trainer.model.named_parameters()}
    import jax

    torch_name = import_module("grl.experiment.trainers.jax_weights").torch_name
    leaves = jax.tree_util.tree_leaves_with_path(trainer.train_state.params)
    return {torch_name(path): leaf.addressable_shards[0].data.size for path, leaf in leaves}


if __name__ == "__main__":
    configs, out = [Config(**settings) for settings in json.loads(sys.argv[1])], Path(sys.argv[2])
    with join(configs[0]) as processes:
        module: Any = run  # its `build_trainer` is replaced by one that keeps the trainers
        build, built = module.build_trainer, []
        module.build_trainer = lambda *given: built.append(build(*given)) or built[-1]
        for number, config in enumerate(configs):
            shares: list[dict[str, int]] = []  # after steps: to predict, PyTorch leaves gathered what it has gathered
            result = train(config, processes=processes, progress=lambda _, to=shares: to.append(held(built[-1])))
            built.clear()  # what DistributedDataParallel keeps must not outlive the process group
            losses = [[record["label_loss"], record["domain_loss"]] for record in result.metrics["history"]]
            name = f"{number}-{processes.index}"
            np.savez(out / f"{name}.npz", losses=np.array(losses, np.float64), **result.weights)
            (out / f"{name}.json").write_text(json.dumps(result.metrics | {"held": shares[-1]}))
    if processes.count > 1:
        os._exit(0)  # as `grl train` ends: Python's own end aborts now and then in PyTorch 2.13
