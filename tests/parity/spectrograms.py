"""Spectrograms of the references for one sound, and which of their values are stored."""

import numpy as np

from tests.parity import weights

CASES = {  # name of the stored file -> class of transformers, its arguments, our op
  "whisper_mel": ("WhisperFeatureExtractor", {}, "whisper_mel()"),
  "whisper_mel_128": ("WhisperFeatureExtractor", {"feature_size": 128}, "whisper_mel(bins=128)"),
  "kaldi_mel": ("ASTFeatureExtractor", {}, "kaldi_mel()"),
}
STORED = [*range(0, 201, 12), 196, 197, 198, 199, 201, 202, 900]  # frames; the sound has 200


def sound() -> np.ndarray:
  """2 s at 16 kHz: a chirp from 100 Hz to 6.1 kHz and a little noise, float32."""
  t = np.arange(32000) / 16000
  noise = weights.tensor("input/audio", (32000,))
  return (0.5 * np.sin(2 * np.pi * (100 * t + 1500 * t * t)) + 0.01 * noise).astype(np.float32)


def reference(name: str) -> dict[str, np.ndarray]:
  """Stored frames [n, bins] of the case, from transformers (extra `parity`)."""
  import transformers

  cls, kwargs, _ = CASES[name]
  extractor = getattr(transformers, cls)(**kwargs)
  out = next(iter(extractor(sound(), sampling_rate=16000, return_tensors="np").values()))[0]
  out = out.T if cls.startswith("Whisper") else out
  return {"spectrogram": out[STORED], "mean": out.mean(), "std": out.std()}
