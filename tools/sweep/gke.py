"""Runs on Kubernetes: a JobSet each (jobset.x-k8s.io/v1alpha2), and queued resources of TPUs."""

import json
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from big_vision_like.config import UserError
from big_vision_like.interop import files
from tools.sweep.plan import Run

SHAPE = re.compile(r"(v4|v5e|v5p|v6e):(\d+(?:x\d+)+)")
MACHINES = {  # GKE's accelerator, its queued resource's name, chips of a host
  "v4": ("tpu-v4-podslice", "v4", 4),
  "v5e": ("tpu-v5-lite-podslice", "v5litepod", 4),
  "v5p": ("tpu-v5p-slice", "v5p", 4),
  "v6e": ("tpu-v6e-slice", "v6e", 4),
}
RUNTIMES = {"v4": "tpu-ubuntu2204-base", "v5e": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5"}
RUNTIMES["v6e"] = "v2-alpha-tpuv6e"
CORES = {"v4": 2, "v5e": 1, "v5p": 2, "v6e": 1}  # a queued resource's name counts cores of v4, v5p


class Slice(NamedTuple):
  """A TPU slice such as v5e:4x4."""

  kind: str
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    """All of them."""
    out = 1
    for n in self.shape:
      out *= n
    return out

  @property
  def hosts(self) -> int:
    """Machines; a slice of fewer than a host's chips has one."""
    return max(1, self.chips // MACHINES[self.kind][2])

  def __str__(self) -> str:
    return "x".join(map(str, self.shape))


def parse(text: str) -> Slice:
  """`v5e:4x4`. Raises `UserError` where it is none."""
  if not (match := SHAPE.fullmatch(text)):
    raise UserError(f"--topology {text!r}; expected such as v5e:4x4, kinds {', '.join(MACHINES)}")
  return Slice(match[1], tuple(map(int, match[2].split("x"))))


def manifest(run: Run, where: Slice, image: str, name: str) -> dict[str, Any]:
  """The JobSet of one run: a pod on every host of one slice.

  It is started again when hosts are preempted (exit code 85 included): training resumes.
  """
  accelerator, _, per_host = MACHINES[where.kind]
  chips = str(min(where.chips, per_host))
  container = {
    "name": "train",
    "image": image,
    "command": ["bash", "-c", run.script()],
    "resources": {"limits": {"google.com/tpu": chips}},
  }
  pod = {
    "restartPolicy": "Never",
    "nodeSelector": {
      "cloud.google.com/gke-tpu-accelerator": accelerator,
      "cloud.google.com/gke-tpu-topology": str(where),
    },
    "terminationGracePeriodSeconds": 120,
    "containers": [container],
  }
  job = {
    "parallelism": where.hosts,
    "completions": where.hosts,
    "backoffLimit": 0,
    "template": {"spec": pod},
  }
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": {"name": f"{name}-{run.id}", "labels": {"sweep": name, "run": run.id}},
    "spec": {
      "failurePolicy": {"maxRestarts": 20},
      "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": job}}],
    },
  }


def queued(run: Run, where: Slice, name: str, zone: str) -> list[str]:
  """The commands that ask for a slice, and train on all its hosts once it is there."""
  _, kind, _ = MACHINES[where.kind]
  node = f"{name}-{run.id}"
  ask = (
    f"gcloud compute tpus queued-resources create {node} --node-id {node} --zone {zone} "
    f"--accelerator-type {kind}-{where.chips * CORES[where.kind]} "
    f"--runtime-version {RUNTIMES[where.kind]} --spot"
  )
  train = (
    f"gcloud compute tpus tpu-vm ssh {node} --zone {zone} --worker all "
    f"--command {shlex.quote(run.script())}"
  )
  return [ask, train]


def write(
  runs: Sequence[Run], out: pathlib.Path, *, where: Slice, image: str, name: str, zone: str
) -> list[pathlib.Path]:
  """`gke.json`, a List for `kubectl apply -f`, and `queued_resources.sh`."""
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,40}[a-z0-9])?", name):
    raise UserError(f"--name {name!r}: Kubernetes wants lower case, digits and -, at most 42")
  listed = {
    "apiVersion": "v1",
    "kind": "List",
    "items": [manifest(run, where, image, name) for run in runs],
  }
  lines = ["#!/usr/bin/env bash", "set -euo pipefail"]
  lines += [line for run in runs for line in queued(run, where, name, zone)]
  files.write(out / "gke.json", (json.dumps(listed, indent=1) + "\n").encode())
  files.write(out / "queued_resources.sh", ("\n".join(lines) + "\n").encode())
  return [out / "gke.json", out / "queued_resources.sh"]
