"""Folders of videos and of frames, made here."""

import numpy as np
import pytest
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import pipeline
from big_vision_like.input.bad import BadExample
from big_vision_like.input.sources import open_source
from tests.input.clips import numbers, striped, video


@pytest.fixture(scope="module")
def data():
  return video(striped(20))


def test_class_folders(tmp_path, data):
  for name in ("walk/a.mp4", "walk/deep/b.MP4", "jump/c.mp4", "jump/notes.txt", "jump/.hidden.mp4"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(data)
  source = open_source(f"videos('{tmp_path}')")
  assert [(source[i]["text"], source[i]["label"]) for i in range(len(source))] == [
    ("jump", 0),
    ("walk", 1),
    ("walk", 1),
  ]
  assert source[0]["video"] == data and source.classes == ["jump", "walk"]
  cfg = dict(source=f"videos('{tmp_path}')", pp="decode_video(4, stride=2)|video_resize(8, 16)")
  batch = next(pipeline.train_batches(cfg, batch_size=2, seed=0, start_step=0))
  assert batch["video"].shape == (2, 4, 8, 16, 3) and batch["frame_times"].shape == (2, 4)
  assert batch["fps"].dtype == np.float32 and batch["fps"].tolist() == [10, 10]
  first = [numbers(v)[0] for v in batch["video"]]
  assert [numbers(v) for v in batch["video"]] == [[f, f + 2, f + 4, f + 6] for f in first]


def test_flat(tmp_path, data):
  for name in ("run_1.mp4", "sit_2.mp4"):
    (tmp_path / name).write_bytes(data)
  assert open_source(f"videos('{tmp_path}')")[1].keys() == {"video"}
  source = open_source(f"videos('{tmp_path}', label='^([a-z]+)_')")
  assert [source[i]["text"] for i in range(2)] == ["run", "sit"]
  assert len(open_source(f"videos('{tmp_path}', files='run*')")) == 1


def test_a_file_that_went_away(tmp_path, data):
  (tmp_path / "a.mp4").write_bytes(data)
  source = open_source(f"videos('{tmp_path}')")
  (tmp_path / "a.mp4").unlink()
  with pytest.raises(BadExample) as e:
    source[0]
  assert e.value.kind == "missing file"


def test_nothing_outside_the_folder(tmp_path, data):
  (tmp_path / "secret.mp4").write_bytes(data)
  (tmp_path / "in").mkdir()
  (tmp_path / "in/a.mp4").symlink_to(tmp_path / "secret.mp4")
  with pytest.raises(BadExample) as e:
    open_source(f"videos('{tmp_path}/in')")[0]
  assert e.value.kind == "unsafe path"


def test_frames(tmp_path):
  for clip, count in (("b/clip1", 3), ("a/clip2", 11)):
    (tmp_path / clip).mkdir(parents=True)
    for i, frame in enumerate(striped(count, (16, 8))):
      Image.fromarray(frame).save(tmp_path / clip / f"frame{i}.png")
  source = open_source(f"frames('{tmp_path}', fps=10)")
  assert len(source) == 2 and [source[i]["text"] for i in range(2)] == ["a", "b"]
  assert source[0]["fps"] == 10.0 and len(source[0]["video"]) == 11
  cfg = dict(source=f"frames('{tmp_path}', fps=10)", pp="decode_video(11)", shuffle=False)
  batch = next(pipeline.train_batches(cfg, batch_size=2, seed=0, start_step=0))
  # Numbers in names count as numbers: frame10 is the last, not the third.
  assert numbers(batch["video"][0]) == list(range(11))
  assert numbers(batch["video"][1]) == [0, 1, 2] + [2] * 8


def test_mistakes(tmp_path, data):
  for name in ("a/x.mp4", "y.mp4"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(data)
  (tmp_path / "empty").mkdir()
  for spec, message in (
    (f"videos('{tmp_path}/absent')", "absent is not a folder"),
    (f"videos('{tmp_path}/empty')", r"has no video \(.mp4"),
    (f"videos('{tmp_path}')", "y.mp4 lies beside class folders such as a"),
    (f"videos('{tmp_path}', files='z*')", "that match files = 'z"),
    (f"videos('{tmp_path}', label='(')", "is no regular expression"),
    (f"videos('{tmp_path}', label='[5-9]')", "does not match a/x.mp4"),
    (f"frames('{tmp_path}')", "has no image"),
    (f"frames('{tmp_path}', fps=0)", "fps = 0"),
  ):
    with pytest.raises(UserError, match=message):
      open_source(spec)
  (tmp_path / "loose.png").write_bytes(b"")
  with pytest.raises(UserError, match="expected a folder for each clip"):
    open_source(f"frames('{tmp_path}')")
