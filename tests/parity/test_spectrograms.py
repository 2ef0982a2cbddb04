"""Our spectrograms are those of Whisper's and AST's feature extractors in transformers."""

import json
import pathlib

import numpy as np
import pytest

from big_vision_like.input import ops
from tests.parity import spectrograms

OUTPUTS = pathlib.Path(__file__).parent / "outputs"
TOLERANCE = 1e-4  # of the scale of the output


@pytest.mark.parametrize("name", spectrograms.CASES)
def test_equals_the_reference(name):
  stored = json.loads((OUTPUTS / f"{name}.json").read_text())
  expected = np.asarray(stored["spectrogram"])
  op = ops.build(spectrograms.CASES[name][2])
  got = op({"audio": spectrograms.sound(), "sample_rate": 16000}, None)["spectrogram"]
  scale = np.abs(expected).max()
  np.testing.assert_allclose(got[spectrograms.STORED], expected, atol=TOLERANCE * scale, rtol=0)
  np.testing.assert_allclose(got.mean(), stored["mean"], atol=TOLERANCE * scale)
  np.testing.assert_allclose(got.std(), stored["std"], atol=TOLERANCE * scale)
