"""The ray-caster against marching through the solids' own inequalities; examples by index alone."""

import numpy as np
import pytest

from big_vision_like.config import UserError
from big_vision_like.input import pipeline, sources
from big_vision_like.input.sources import solids

INSIDE = {
  "sphere": lambda x, y, z: x**2 + y**2 + z**2 <= 0.8**2,
  "cube": lambda x, y, z: np.maximum(np.maximum(abs(x), abs(y)), abs(z)) <= 0.62,
  "cylinder": lambda x, y, z: (np.hypot(x, y) <= 0.6) & (abs(z) <= 0.65),
  "cone": lambda x, y, z: (np.hypot(x, y) <= 0.8 * (0.75 - z) / 1.5) & (abs(z) <= 0.75),
}


def nearest(shape, eye, d):
  surfaces = list(solids._SOLIDS[shape](np.broadcast_to(eye, d.shape), d))
  t = np.stack([np.where(np.isnan(t), np.inf, t) for t, _ in surfaces])
  first = t.argmin(0)
  return t.min(0), np.stack([n for _, n in surfaces])[first, np.arange(len(d))]


@pytest.mark.parametrize("shape", solids.SHAPES)
@pytest.mark.parametrize("azimuth, elevation", [(0.3, 0.2), (4.0, 0.8), (2.0, -0.6)])
def test_first_hit_is_where_a_march_enters_the_solid(shape, azimuth, elevation):
  eye, d = solids._rays(azimuth, elevation, 16)
  t, normal = nearest(shape, eye, d)
  steps = np.arange(1.5, 5.0, 0.0005)
  points = eye + steps[None, :, None] * d[:, None, :]
  inside = INSIDE[shape](*np.moveaxis(points, -1, 0))
  marched = np.where(inside.any(1), steps[inside.argmax(1)], np.inf)
  both = np.isfinite(t) & np.isfinite(marched)
  assert both.sum() > 50
  # A ray that only grazes a corner may pass between two steps of the march.
  assert (np.isfinite(t) != np.isfinite(marched)).sum() <= 1
  np.testing.assert_allclose(t[both], marched[both], atol=0.0006)
  np.testing.assert_allclose(np.linalg.norm(normal[both], axis=1), 1, atol=1e-6)
  assert (np.sum(normal[both] * d[both], axis=1) < 1e-9).all()  # it faces the camera


def test_image_rows_go_down_and_the_lamp_is_above():
  image = solids._view("sphere", "red", 0.0, 0.0, 16).astype(int)
  assert (image[0, 0] == 255).all()
  assert image[5, 8, 0] > image[11, 8, 0] + 20
  assert image[8, 8].argmax() == 0
  cone = solids._view("cone", "blue", 1.0, 0.1, 16).min(-1) < 200
  assert cone[4].sum() < cone[11].sum()


def test_examples_are_drawn_by_split_and_index_alone():
  one, two = (sources.open_source("solids(split='train', size=12)") for _ in range(2))
  assert len(one) == 8192 and one[7]["image"].shape == (12, 12, 3)
  later = one[100]["image"]
  np.testing.assert_array_equal(later, two[100]["image"])
  assert one[100]["label"] == 100 % 16
  test = sources.open_source("solids(split='test', size=12)")
  assert not np.array_equal(test[100]["image"], later)
  labels = [solids.CLASSES[test[i]["label"]] for i in range(16)]
  assert labels == solids.CLASSES
  assert test[5]["text"] == "a green cube" and solids.CLASSES[5] == "green cube"
  with pytest.raises(IndexError):
    test[len(test)]


def test_one_class():
  source = sources.open_source("solids(split='test', shape='cone', colour='blue', examples=5)")
  assert [source[i]["text"] for i in range(5)] == ["a blue cone"] * 5
  assert {source[i]["label"] for i in range(5)} == {14}


@pytest.mark.parametrize(
  "spec, message",
  [
    ("solids(split='val')", "split 'val' is unknown; known: test, train"),
    ("solids(shape='cub')", "did you mean cube"),
    ("solids(colour='pink')", "colour 'pink' is unknown"),
    ("solids(size=0)", "size = 0; expected a positive whole number"),
    ("nothing(size=0)", "size = 0; expected a positive whole number"),
  ],
)
def test_mistakes(spec, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(spec)


def test_nothing_is_a_batch_of_indices():
  cfg = dict(source="nothing(size=10)", pp="", spec={})
  batches = pipeline.train_batches(cfg, batch_size=4, seed=0, start_step=3)
  batch = next(batches)
  assert set(batch) == {"index"} and batch["index"].tolist() == [12, 13, 14, 15]
