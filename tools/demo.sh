#!/usr/bin/env bash
# Sets up .venv, trains SigLIP on two-digit images with captions, evaluates it zero-shot, reports.
# bash tools/demo.sh [train flags]; WORKDIR (default runs/demo) picks the folder; again: resumes.
source "$(dirname "${BASH_SOURCE[0]}")/setup_venv.sh"
workdir="${WORKDIR:-runs/demo}"
python -m big_vision_like.train --config configs/siglip.py:smoke --workdir "$workdir" "$@"
python -m tools.evaluate --workdir "$workdir" --evals zeroshot_seen,zeroshot_new_pairs
python -m tools.report --workdir "$workdir"
