"""One process of several: trains by each of the settings in its first argument, and writes losses and weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from grl.experiment import join, train
from grl.experiment.config import Config

if __name__ == "__main__":
    configs, out = [Config(**settings) for settings in json.loads(sys.argv[1])], Path(sys.argv[2])
    with join(configs[0]) as processes:
        for number, config in enumerate(configs):
            result = train(config, processes=processes)
            losses = [[record["label_loss"], record["domain_loss"]] for record in result.metrics["history"]]
            name = f"{number}-{processes.index}"
            np.savez(out / f"{name}.npz", losses=np.array(losses, np.float64), **result.weights)
            (out / f"{name}.json").write_text(json.dumps({**result.metrics, "count": processes.count}))
