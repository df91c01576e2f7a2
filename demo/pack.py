"""This file owns the demo's trained parts: adapter and pooler of a run, halved, into demo/trained.

Run: python -m demo.pack build/train/smol-135m-stage1 build/train/smol-135m-stage2
The last run's weights are taken; logs and recipes of all are kept beside them.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

TRAINED = Path(__file__).parent / "trained"


def main() -> None:
    """Copy weights as float16, configs and logs as they are."""
    from safetensors.numpy import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args().runs
    checkpoint = runs[-1] / "checkpoint"
    (TRAINED / "adapter").mkdir(parents=True, exist_ok=True)
    for part in ("adapter/adapter_model.safetensors", "pooler.safetensors"):
        tensors = {k: v.astype(np.float16) for k, v in load_file(checkpoint / part).items()}
        save_file(tensors, TRAINED / part, {"format": "pt"})
    config = json.loads((checkpoint / "adapter" / "adapter_config.json").read_text("utf-8"))
    (TRAINED / "adapter" / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    described = json.loads((checkpoint / "checkpoint.json").read_text("utf-8"))
    sizes = {key: described[key] for key in ("name", "pooler_spec", "prompts")}
    (TRAINED / "model.json").write_text(json.dumps(sizes, indent=2) + "\n")
    for run in runs:
        for name in ("log.jsonl", "curves.png"):
            shutil.copyfile(run / name, TRAINED / f"{run.name}-{name}")


if __name__ == "__main__":
    main()
