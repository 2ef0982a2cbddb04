"""DreamFusion in two stages: a diffusion prior of solids, then scenes out of it.

    python -m experiments.dreamfusion.stages --workdir DIR [--prompts 14,4]

Each stage is a run of `big_vision_like.train`; the same command again resumes what is missing.
Prints for every scene how often its renders from unseen cameras are recognised as the prompt.
"""

import argparse
import json
import pathlib
import subprocess
import sys

PRIOR = "configs/dreamfusion.py:prior"
SCENE = "configs/dreamfusion.py:smoke,prior={prior},prompt={prompt}"


def train(config: str, workdir: pathlib.Path) -> None:
  """Trains, or goes on training, in a process of its own; stops where it fails."""
  command = [sys.executable, "-m", "big_vision_like.train"]
  subprocess.run([*command, "--config", config, "--workdir", str(workdir)], check=True)


def scores(workdir: pathlib.Path, key: str) -> list[float]:
  """Every value that `key` has had in that run."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line[key] for line in lines if key in line]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", type=pathlib.Path, required=True)
  parser.add_argument("--prompts", default="14", help="labels of the solids, e.g. 14,4")
  args = parser.parse_args()
  prior = args.workdir / "prior"
  train(PRIOR, prior)
  scenes = {prompt: args.workdir / f"scene_{prompt}" for prompt in args.prompts.split(",")}
  for prompt, workdir in scenes.items():
    train(SCENE.format(prior=prior, prompt=prompt), workdir)

  print(f"prior  samples recognised {scores(prior, 'eval/samples/recognised')[-1]:.3f}")
  for prompt, workdir in scenes.items():
    start, *_, end = scores(workdir, "eval/views/recognised")
    print(f"scene {prompt}  unseen views recognised {end:.3f}, untrained {start:.3f}")


if __name__ == "__main__":
  main()
