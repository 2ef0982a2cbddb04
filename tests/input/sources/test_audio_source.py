"""Folders of audio: made here, and spoken digits where they lie."""

import pathlib
import zipfile

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import pipeline
from big_vision_like.input.sources import open_source
from tests.input.clips import sound, tone

DIGITS = pathlib.Path(__file__).parents[4] / "shared" / "data" / "fsdd" / "fsdd_4speakers.zip"


def test_class_folders(tmp_path):
  for name, format in (("dog/a.wav", "WAV"), ("dog/deep/b.flac", "FLAC"), ("cat/c.ogg", "OGG")):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(sound(tone(440, 0.3), format=format))
  source = open_source(f"audio('{tmp_path}')")
  assert [(s["text"], s["label"]) for s in map(source.__getitem__, range(3))] == [
    ("cat", 0),
    ("dog", 1),
    ("dog", 1),
  ]
  cfg = dict(source=f"audio('{tmp_path}')", pp="decode_audio(length=0.2)|whisper_mel(frames=20)")
  batch = next(pipeline.train_batches(cfg, batch_size=3, seed=0, start_step=0))
  assert batch["spectrogram"].shape == (3, 20, 80) and batch["spectrogram"].dtype == np.float32
  assert batch["audio_length"].tolist() == [3200] * 3


def test_labels_in_names(tmp_path):
  for name in ("7_ann_0.wav", "3_ann_1.wav", "7_bob_5.wav"):
    (tmp_path / name).write_bytes(sound(tone(440, 0.1)))
  assert open_source(f"audio('{tmp_path}')")[0].keys() == {"audio"}
  source = open_source(f"audio('{tmp_path}', label=r'^(\\d)_')")
  examples = [source[i] for i in range(3)]
  assert [(e["label"], e["text"]) for e in examples] == [(3, "3"), (7, "7"), (7, "7")]
  speakers = open_source(f"audio('{tmp_path}', label='ann|bob', files='7_*')")
  assert [(speakers[i]["label"], speakers[i]["text"]) for i in range(2)] == [(0, "ann"), (1, "bob")]


def test_bad_files_are_replaced(tmp_path):
  for i in range(200):
    (tmp_path / f"{i}_.wav").write_bytes(sound(tone(440, 0.1)))
  (tmp_path / "7_.wav").write_bytes(b"")
  cfg = dict(source=f"audio('{tmp_path}', label='[0-9]+')", pp="decode_audio|crop_audio(100)")
  stream = pipeline.train_batches(cfg, batch_size=200, seed=0, start_step=0)
  labels = next(stream)["label"].tolist()
  assert 7 not in labels and stream.counts() == {"input/bad/empty_file": 1}
  stream.close()


def test_mistakes(tmp_path):
  (tmp_path / "a.wav").write_bytes(b"")
  for spec, message in (
    ("audio('/absent')", "/absent is not a folder"),
    (f"audio('{tmp_path}', label='[0-9]')", "does not match a.wav"),
    (f"audio('{tmp_path}', label=3)", "label = 3 is no regular expression"),
    (f"audio('{tmp_path}', files='*.flac')", "that match files = '"),
  ):
    with pytest.raises(UserError, match=message):
      open_source(spec)


@pytest.mark.skipif(not DIGITS.exists(), reason="shared/data/fsdd is not there")
def test_spoken_digits(tmp_path):
  with zipfile.ZipFile(DIGITS) as file:
    chosen = [n for n in file.namelist() if n.endswith("_0.wav")]
    file.extractall(tmp_path, chosen)
  source = open_source(f"audio('{tmp_path}', label=r'^(\\d)_')")
  assert len(source) == len(chosen) and source.classes == list("0123456789")
  cfg = dict(source=f"audio('{tmp_path}', label=r'^(\\d)_')", pp="decode_audio(length=1)|log_mel")
  batch = next(pipeline.train_batches(cfg, batch_size=8, seed=0, start_step=0))
  assert batch["spectrogram"].shape == (8, 101, 80) and (batch["audio_length"] > 2000).all()
