"""Package of big_vision_like; settings of ruff and pytest are in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

here = pathlib.Path(__file__).parent
version = re.search(
  r'__version__ = "(.+)"', (here / "big_vision_like" / "__init__.py").read_text()
).group(1)

setup(
  name="big_vision_like",
  version=version,
  description="Vision foundation models in JAX: one contract, one loop, a file per paper",
  long_description=(here / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["big_vision_like", "big_vision_like.*"]),
  package_data={
    "big_vision_like": ["evaluators/data/*.json", "evaluators/data/*.txt", "input/data/*.json"]
  },
  install_requires=[
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "tensorflow-datasets>=4.9.10",
    "array_record>=0.8.6",
    "ml_collections>=1.1",
    "sentencepiece>=0.2.1",
    "einops>=0.8",
    "clu>=0.0.12",
    "numpy>=2.0",
    "pillow",
    "simplejpeg",
    "absl-py",
    "tensorboard>=2.20",
    "scikit-learn",
    "rich",
    "jaxtyping",
    "safetensors",
    "matplotlib",
    "fonttools",
    "jinja2",
    "flatbuffers",
  ],
  extras_require={
    "data": ["fsspec", "pyarrow", "scikit-image"],
    "video": ["av>=15"],
    "audio": ["soundfile>=0.13"],
    "test": [
      *("pytest", "pytest-xdist", "hypothesis", "beartype", "chex", "ruff"),
      *("fsspec", "pyarrow", "scikit-image", "av>=15", "soundfile>=0.13"),
    ],
    "parity": ["torch==2.13.0", "transformers", "diffusers", "timm", "open_clip_torch"],
    "bench": ["webdataset", "torchvision", "tensorflow-cpu"],
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
  },
)
