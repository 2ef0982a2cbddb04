"""Data of the suite `input`, made where it is measured; what is written is returned as a source."""

import contextlib
import io
import itertools
import pathlib
import tarfile
from collections.abc import Iterator

import numpy as np

PICTURES = 64
"""Pictures that differ; the files of a large folder are links to them."""


def jpeg(seed: int, width: int = 500, height: int = 375) -> bytes:
  """A picture of smooth blobs with some noise: compresses about as well as a photograph."""
  from PIL import Image

  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 256, (height // 25, width // 25, 3), np.uint8))
  smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
  noisy = np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
  out = io.BytesIO()
  Image.fromarray(noisy).save(out, "JPEG", quality=90)
  return out.getvalue()


def pictures(count: int) -> Iterator[bytes]:
  """So many JPEGs, `PICTURES` different ones over and over."""
  made = [jpeg(seed) for seed in range(min(count, PICTURES))]
  return itertools.islice(itertools.cycle(made), count)


def write_records(path: pathlib.Path, count: int) -> str:
  """An ArrayRecord file of `count` pictures' bytes; returns its source."""
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), "group_size:1")
  for record in pictures(count):
    writer.write(record)
  writer.close()
  return f"array_record(pattern='{path}')"


def write_pictures(folder: pathlib.Path, count: int) -> str:
  """A folder with one class of `count` pictures; returns its source."""
  (folder / "class").mkdir(parents=True)
  for number, data in enumerate(pictures(count)):
    file = folder / "class" / f"{number:05d}.jpg"
    if number < PICTURES:
      file.write_bytes(data)
    else:
      file.hardlink_to(folder / "class" / f"{number % PICTURES:05d}.jpg")
  return f"image_folder(path='{folder}')"


def write_shards(folder: pathlib.Path, count: int, shards: int) -> list[str]:
  """Tar shards of pictures and their captions; returns their paths."""
  out = [str(folder / f"{shard:03d}.tar") for shard in range(shards)]
  with contextlib.ExitStack() as stack:
    files = [stack.enter_context(tarfile.open(path, "w")) for path in out]
    for number, data in enumerate(pictures(count)):
      for kind, content in (("jpg", data), ("txt", b"picture %d" % number)):
        member = tarfile.TarInfo(f"{number:06d}.{kind}")
        member.size = len(content)
        files[number * shards // count].addfile(member, io.BytesIO(content))
  return out


def write_captions(folder: pathlib.Path, count: int, shards: int = 10) -> str:
  """Tar shards of `count` captions and nothing else, at the speed of the disk; their source."""
  member = tarfile.TarInfo("00000000.txt")
  member.size = 8
  first = np.frombuffer(member.tobuf(tarfile.USTAR_FORMAT), np.uint8)
  for shard in range(shards):
    number = np.arange(shard * count // shards, (shard + 1) * count // shards)
    digits = (number[:, None] // 10 ** np.arange(7, -1, -1) % 10 + ord("0")).astype(np.uint8)
    blocks = np.zeros((len(number), 2, 512), np.uint8)  # a header, and the content
    blocks[:, 0] = first
    blocks[:, 0, :8] = blocks[:, 1, :8] = digits
    blocks[:, 0, 148:156] = ord(" ")  # the checksum counts as spaces
    total = blocks[:, 0].sum(1, dtype=np.int64)
    octal = total[:, None] // 8 ** np.arange(5, -1, -1) % 8 + ord("0")
    blocks[:, 0, 148:154], blocks[:, 0, 154] = octal, 0
    with open(folder / f"{shard}.tar", "wb") as file:
      file.write(blocks.tobytes() + bytes(1024))
  return f"webdataset(pattern='{folder}/{{0..{shards - 1}}}.tar')"


def write_lines(folder: pathlib.Path, count: int) -> str:
  """A jsonl of `count` captions of one picture; its source."""
  (folder / "picture.jpg").write_bytes(jpeg(0))
  path = folder / "captions.jsonl"
  with open(path, "w") as file:
    file.writelines(f'{{"image": "picture.jpg", "text": "caption {i}"}}\n' for i in range(count))
  return f"jsonl(pattern='{path}')"
