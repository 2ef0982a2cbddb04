"""Ops from `audio` float32 [samples] to `spectrogram` float32 [frames, bins], and on it."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input import mel
from big_vision_like.input.bad import BadExample

Example = dict[str, Any]


def _op(fn: Callable[[np.ndarray, int], np.ndarray], key: str, rate: int | None, name: str):
  """Lifts (audio, sample rate) -> spectrogram; `audio` is left out of the example."""

  def run(example, rng):
    audio, found = np.asarray(example[key]), int(example.get("sample_rate", rate or 16000))
    if audio.ndim != 1:
      raise UserError(f"op {name}: {key} is {audio.shape}; expected mono, from decode_audio")
    if rate not in (None, found):
      raise UserError(f"op {name}: sample_rate = {found}; expected {rate}: decode_audio({rate})")
    if not len(audio):
      raise BadExample("empty audio", "0 samples")
    out = {k: v for k, v in example.items() if k != key}
    return {**out, "spectrogram": fn(audio, found).astype(np.float32)}

  return run


def log_mel(
  bins: int = 80,
  window: int = 400,
  hop: int = 160,
  fft: int | None = None,
  fmin: float = 0.0,
  fmax: float | None = None,
  scale: str = "slaney",
  floor: float = 1e-10,
  key: str = "audio",
):
  """Natural logarithm of mel-band energies: `audio` [samples] -> `spectrogram` [frames, bins].

  Frames of a periodic Hann window, 1 + samples // hop of them, frame i around sample i * hop, the
  ends mirrored; |FFT|^2; triangular bands of equal area; ln(max(energy, floor)). The definition of
  librosa's `melspectrogram` (pad_mode="reflect"). `audio` is left out.

  Args:
    bins: bands.
    window, hop: samples of a frame, and between frames: 25 ms and 10 ms at 16 kHz.
    fft: its size, at least `window`; None is `window`.
    fmin, fmax: hertz; None is half the sample rate.
    scale: "slaney" or "htk".
    floor: least energy.

  Raises:
    UserError: a number out of its range, an unknown scale.
  """
  for name, value in (("bins", bins), ("window", window), ("hop", hop)):
    whole_number(value, f"op log_mel: {name}")
  fft = window if fft is None else whole_number(fft, "op log_mel: fft", window)
  if scale not in mel.SCALES:
    raise unknown("op log_mel: scale", scale, mel.SCALES)
  _check_above("log_mel", "floor", floor, 0)
  if not isinstance(fmin, (int, float)) or fmin < 0:
    raise UserError(f"op log_mel: fmin = {fmin!r}; expected hertz, at least 0")
  if fmax is not None:
    _check_above("log_mel", "fmax", fmax, fmin)

  def run(audio, rate):
    top = rate / 2 if fmax is None else fmax
    if not fmin < top <= rate / 2:
      raise UserError(f"op log_mel: fmin = {fmin}, fmax = {top}; sample_rate is {rate}")
    # Centred in the middle of the FFT, as librosa's.
    taper = np.pad(mel.hann(window), ((fft - window) // 2, math.ceil((fft - window) / 2)))
    power = mel.power(mel.frames(mel.centred(audio, fft), fft, hop), taper, fft)
    bands = power @ mel.filters(bins, fft, rate, fmin, top, scale, equal_area=True)
    return np.log(np.maximum(bands, floor))

  return _op(run, key, None, "log_mel")


def whisper_mel(bins: int = 80, frames: int = 3000, key: str = "audio"):
  """Whisper's log-mel (arXiv:2212.04356): `audio` at 16 kHz -> `spectrogram` [frames, bins].

  Audio is cut or ends in zeros to frames * 160 samples (30 s). Windows of 400 (Hann), every 160,
  ends mirrored; bands of Slaney's scale to 8 kHz, of equal area; x = log10(max(energy, 1e-10)),
  x = max(x, max(x) - 8), (x + 4) / 4. Equal to `WhisperFeatureExtractor` of transformers, which has
  the bins first. `audio` is left out.

  Args:
    bins: 80; large-v3 has 128.
    frames: 10 ms each.

  Raises:
    UserError: a number that is not positive; audio of another sample rate.
  """
  whole_number(bins, "op whisper_mel: bins")
  whole_number(frames, "op whisper_mel: frames")

  def run(audio, rate):
    samples = frames * 160
    audio = np.pad(audio[:samples], (0, max(0, samples - len(audio))))
    framed = mel.frames(mel.centred(audio, 400), 400, 160)[:frames]
    bands = mel.power(framed, mel.hann(400), 400) @ mel.filters(
      bins, 400, 16000, 0, 8000, "slaney", equal_area=True
    )
    x = np.log10(np.maximum(bands, 1e-10))
    return (np.maximum(x, x.max() - 8) + 4) / 4

  return _op(run, key, 16000, "whisper_mel")


def kaldi_mel(
  bins: int = 128,
  frames: int | None = 1024,
  mean: float = -4.2677393,
  std: float = 4.5689974,
  key: str = "audio",
):
  """Kaldi's filter bank as AST (arXiv:2104.01778): `audio` -> `spectrogram` [frames, bins].

  Audio at 16 kHz in -1 to 1. Windows of 25 ms (symmetric Hann) every 10 ms, whole ones only: each
  less its mean, pre-emphasis 0.97, |FFT of 512|^2; bands equally wide in mel (HTK's) from 20 Hz to
  8 kHz, straight in mel; ln(max(energy, 2^-23)). Cut or padded with 0 to `frames`, then
  (x - mean) / (2 std). Equal to `ASTFeatureExtractor` of transformers. `audio` is left out.

  Args:
    bins: bands.
    frames: 10 ms each; None leaves their number.
    mean, std: of the data; AudioSet's by default.

  Raises:
    UserError: a number that is not positive; audio of another sample rate.
  """
  whole_number(bins, "op kaldi_mel: bins")
  if frames is not None:
    whole_number(frames, "op kaldi_mel: frames")
  _check_above("kaldi_mel", "mean", mean, -math.inf)
  _check_above("kaldi_mel", "std", std, 0)

  def run(audio, rate):
    x = mel.frames(audio.astype(np.float64), 400, 160)[:frames]
    x = x - x.mean(1, keepdims=True)
    x = x - 0.97 * np.concatenate([x[:, :1], x[:, :-1]], 1)
    bands = mel.power(x, mel.hann(400, periodic=False), 512) @ mel.filters(
      bins, 512, 16000, 20, 8000, "htk", in_mel=True
    )
    out = np.log(np.maximum(bands, 2.0**-23))
    out = np.pad(out, ((0, max(0, (frames or 0) - len(out))), (0, 0)))
    return (out - mean) / (2 * std)

  return _op(run, key, 16000, "kaldi_mel")


def _check_above(op: str, name: str, value: Any, low: float) -> None:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value < math.inf:
    raise UserError(f"op {op}: {name} = {value!r}; expected a number above {low}")


def spec_augment(
  freq: int = 27,
  time: int = 100,
  count: int = 2,
  fraction: float = 1.0,
  value: float | str = 0.0,
  key: str = "spectrogram",
):
  """SpecAugment's masks (Park et al. 2019, arXiv:1904.08779) on `spectrogram` [frames, bins].

  `count` bands of f bins, f uniform in 0 to `freq`, and `count` spans of t frames, t uniform in 0
  to min(time, fraction * frames), each at a uniform place, become `value`. The defaults are the
  paper's policy LD of LibriSpeech; its time warping, which it found to help least, is left out.

  Args:
    freq, time: widest band and longest span, in bins and frames.
    count: how many of each.
    fraction: a span's largest part of all frames, the paper's p.
    value: a number, or "mean" of the spectrogram; 0 is the mean of what is normalised.

  Raises:
    UserError: a number out of its range.
  """
  for name, number in (("freq", freq), ("time", time), ("count", count)):
    whole_number(number, f"op spec_augment: {name}", 0)
  _check_above("spec_augment", "fraction", fraction, 0)
  if value != "mean":
    _check_above("spec_augment", "value", value, -math.inf)

  def run(example, rng):
    out = example[key].copy()
    n, bins = out.shape
    fill = out.mean() if value == "mean" else value
    widest = min(freq, bins), min(time, int(fraction * n), n)
    for axis, most in ((out.T, widest[0]), (out, widest[1])):  # views
      for _ in range(count if most else 0):
        width = int(rng.integers(most + 1))
        first = int(rng.integers(len(axis) - width + 1))
        axis[first : first + width] = fill
    return {**example, key: out}

  return run
