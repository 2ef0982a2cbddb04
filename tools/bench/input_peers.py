"""The runs of the suite `input` that need a process of their own, ours and those of peers.

`processes.Process` starts this file. It waits for a line on its standard input before every run, so
that it can take turns with the others. It imports nothing of ours where a peer runs.
"""

import itertools
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# -------------------------------------------------------------------------------------------- ours


def ours(cfg: dict[str, Any], batch: int, batches: int) -> Callable[[], None]:
  """The pipeline, from a fresh iterator on."""
  from big_vision_like.input import pipeline

  def run():
    stream = pipeline.train_batches(cfg, batch_size=batch, seed=0, start_step=0)
    for _ in range(batches):
      next(stream)
    stream.close()

  return run


def direct(source: str, pp: str, batch: int, batches: int) -> Callable[[], None]:
  """Our source and ops in a plain loop: what the pipeline adds is the rest."""
  from big_vision_like.input import ops, sources

  data, op = sources.open_source(source), ops.build(pp)

  def run():
    for start in range(0, batches * batch, batch):
      rows = range(start, start + batch)
      np.stack([op(data[i], np.random.default_rng(i))["image"] for i in rows])

  return run


def start(cfg: dict[str, Any], batch: int) -> Callable[[], dict[str, float]]:
  """Seconds to the first batch: of imports, and of opening, ordering and reading."""

  def run():
    began = time.perf_counter()
    import grain  # noqa: F401, or the pipeline would, and it would count there

    from big_vision_like.input import pipeline

    imported = time.perf_counter()
    stream = pipeline.train_batches(cfg, batch_size=batch, seed=0, start_step=0)
    next(stream)
    first = time.perf_counter() - imported
    stream.close()
    return {"imports": imported - began, "first": first}

  return run


def memory(cfg: dict[str, Any], batch: int, batches: int) -> Callable[[], dict[str, int]]:
  """Resident bytes of this process after the first tenth of an epoch, and at its end."""
  from big_vision_like.input import pipeline

  def resident() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

  def run():
    stream = pipeline.train_batches(cfg, batch_size=batch, seed=0, start_step=0)
    seen = []
    for _ in range(batches):
      next(stream)
      seen.append(resident())
    stream.close()
    tenth = max(1, len(seen) // 10)  # means: the allocator moves by a batch or two at any time
    return {
      "early": statistics.fmean(seen[tenth : 2 * tenth]),
      "end": statistics.fmean(seen[-tenth:]),
    }

  return run


# ------------------------------------------------------------------------------------------- peers


def files_of(folder: str) -> list[pathlib.Path]:
  """The pictures in class folders."""
  return sorted(pathlib.Path(folder).glob("*/*.jpg"))


def augmented(image: Any, size: int, rng: np.random.Generator) -> np.ndarray:
  """PIL image -> random resized crop, flip, float32 [3, size, size] in -1..1."""
  from PIL import Image

  width, height = image.size
  area = rng.uniform(0.08, 1.0) * width * height
  aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
  w, h = min(width, round((area * aspect) ** 0.5)), min(height, round((area / aspect) ** 0.5))
  left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
  box = (int(left), int(top), int(left + w), int(top + h))
  image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
  pixels = np.asarray(image)[:, :: -1 if rng.random() < 0.5 else 1]
  return np.moveaxis(pixels.astype(np.float32) / 127.5 - 1, -1, 0)


class Pictures:
  """A map-style data set for torch's DataLoader."""

  def __init__(self, folder: str, size: int):
    self.files, self.size = files_of(folder), size

  def __len__(self) -> int:
    return len(self.files)

  def __getitem__(self, index: int) -> np.ndarray:
    from PIL import Image

    image = Image.open(self.files[index]).convert("RGB")
    return augmented(image, self.size, np.random.default_rng(index))


def torch(folder: str, size: int, batch: int, workers: int) -> Callable[[], None]:
  """A DataLoader over the least work; without workers it loads in the loop, nothing travels."""
  return _loader(Pictures(folder, size), batch, workers)


def torchvision(folder: str, size: int, batch: int, workers: int) -> Callable[[], None]:
  """A DataLoader over torchvision's own folder, PIL transforms and tensors."""
  from torchvision import datasets, transforms

  steps = [
    transforms.RandomResizedCrop(size),
    transforms.RandomHorizontalFlip(),
    transforms.ToTensor(),
    transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  ]
  return _loader(datasets.ImageFolder(folder, transforms.Compose(steps)), batch, workers)


def _loader(data: Any, batch: int, workers: int) -> Callable[[], None]:
  from torch.utils.data import DataLoader

  loader = DataLoader(
    data,
    batch,
    shuffle=True,
    num_workers=workers,
    persistent_workers=workers > 0,
    multiprocessing_context="fork" if workers else None,
  )

  def run():
    for _ in loader:
      pass

  return run


def webdataset(shards: list[str], size: int, batch: int) -> Callable[[], None]:
  """Shards in random order, a buffer that shuffles, decoded by PIL."""
  import webdataset as library

  numbers = itertools.count()
  one = lambda x: augmented(x["jpg"], size, np.random.default_rng(next(numbers)))
  data = library.WebDataset(shards, shardshuffle=len(shards)).shuffle(100).decode("pil").map(one)
  data = data.batched(batch, collation_fn=np.stack)

  def run():
    for _ in data:
      pass

  return run


def tfdata(folder: str, size: int, batch: int) -> Callable[[], None]:
  """tf.data with the crop fused into the decoder, antialiased like PIL."""
  import tensorflow as tf

  def one(file: Any) -> Any:
    data = tf.io.read_file(file)
    begin, shape, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(data),
      tf.zeros((1, 0, 4)),
      area_range=(0.08, 1.0),
      aspect_ratio_range=(3 / 4, 4 / 3),
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], shape[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, (size, size), antialias=True)
    return tf.image.random_flip_left_right(image) / 127.5 - 1

  files = [str(f) for f in files_of(folder)]
  data = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files))
  data = data.map(one, num_parallel_calls=tf.data.AUTOTUNE).batch(batch)
  data = data.prefetch(tf.data.AUTOTUNE)

  def run():
    for _ in data.as_numpy_iterator():
      pass

  return run


# ------------------------------------------------------------------------------------------ server


def cpu_seconds() -> float:
  """Of this process and its workers, so far."""
  ticks = 0
  for child in multiprocessing.active_children():
    after_name = pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2]
    ticks += sum(map(int, after_name.split()[11:13]))
  return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def serve(kind: str, cores: str, args: str) -> Iterator[Any]:
  """None when the run is built, then what each run returns and its seconds of CPU."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(cores) :])
  run = globals()[kind](**json.loads(args))
  yield None
  for _ in sys.stdin:
    began = cpu_seconds()
    yield run(), cpu_seconds() - began


def main() -> None:
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print is no answer
  for answer in serve(*sys.argv[1:]):
    print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
  main()
