"""Ops on `audio`: bytes, then float32 [samples]."""

import io
import math
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import media

Example = dict[str, Any]

_AT = ("random", "start", "center")
_MAX_SAMPLES = 1 << 27  # decoded of one file: 46 minutes of 48 kHz mono, 512 MB
_RATES = (1000, 384_000)  # Hz; a resampling filter grows with them


def decode_audio(
  rate: int = 16000,
  length: float | None = None,
  at: str = "random",
  mono: bool = True,
  key: str = "audio",
):
  """wav, flac, ogg, mp3, ... -> float32 [samples] in -1 to 1, `sample_rate`, `audio_length`.

  By libsndfile. Channels are averaged; with mono=False audio is [samples, channels]. Resampled to
  `rate` by a polyphase filter (`scipy.signal.resample_poly`, its Kaiser window of 5.0). Arrays
  float32 are taken as decoded, of the example's `sample_rate` (or `rate`, without one).

  Args:
    rate: samples a second; None keeps the file's.
    length: seconds; longer audio is cut where `at` says, and only that part is decoded; shorter
      audio ends in zeros. None takes all of it.
    at: "random", "start" or "center".
    mono: whether channels are averaged.

  `audio_length` counts the samples before those zeros.

  Raises:
    UserError: a rate or length that is not positive, an unknown `at`, a `mono` that is no bool;
      soundfile is not installed.
  """
  if rate is not None and not _RATES[0] <= whole_number(rate, "op decode_audio: rate") <= _RATES[1]:
    raise UserError(f"op decode_audio: rate = {rate}; expected {_RATES[0]} to {_RATES[1]} Hz")
  if length is not None and (
    isinstance(length, bool) or not isinstance(length, (int, float)) or not 0 < length < math.inf
  ):
    raise UserError(f"op decode_audio: length = {length!r}; expected seconds above 0, or None")
  if at not in _AT:
    raise unknown("op decode_audio: at", at, _AT)
  if not isinstance(mono, bool):
    raise UserError(f"op decode_audio: mono = {mono!r}; expected True or False")

  def run(example, rng):
    data = example[key]
    if isinstance(data, (bytes, bytearray, memoryview)):
      audio, found = _read(bytes(data), length, at, rng, rate)
    else:
      audio, found = np.asarray(data, np.float32), int(example.get("sample_rate", rate or 16000))
      if not audio.size:
        raise BadExample("empty audio", "0 samples")
      audio = audio.reshape(len(audio), -1)
      first, count = _part(len(audio), found, length, at, rng)
      audio = audio[first : first + count]
    if not np.isfinite(audio).all():
      raise BadExample("NaN audio", f"{(~np.isfinite(audio)).sum()} samples are NaN or infinite")
    audio = _resampled(audio.mean(1) if mono else audio, found, rate or found)
    wanted = len(audio) if length is None else max(1, round(length * (rate or found)))
    out = _padded(audio[:wanted], wanted)
    return {
      **example,
      key: out,
      "sample_rate": rate or found,
      "audio_length": min(len(audio), wanted),
    }

  return run


def _part(n: int, rate: int, length: float | None, at: str, rng: Any) -> tuple[int, int]:
  """First sample and count of what is taken of n."""
  count = n if length is None else min(n, math.ceil(length * rate))
  return _first(n - count, at, rng), count


def _first(free: int, at: str, rng: Any) -> int:
  if at == "random" and free:
    return int(rng.integers(free + 1))
  return free // 2 if at == "center" else 0


class _Bytes(io.BytesIO):
  def seek(self, offset: int, whence: int = 0) -> int:
    """Libsndfile follows damaged heads to places before the first byte: it stays there."""
    try:
      return super().seek(offset, whence)
    except ValueError:
      return super().seek(0)


def _read(
  data: bytes, length: float | None, at: str, rng: Any, rate: int | None
) -> tuple[np.ndarray, int]:
  """float32 [samples, channels] of the part, and its rate."""
  soundfile = media.library("soundfile", "audio", "op decode_audio")
  if not data:
    raise BadExample("empty file", "0 bytes")
  if media.cut_short(data):
    raise BadExample("truncated audio", f"ends after {len(data)} bytes, its head names more")
  try:
    file = soundfile.SoundFile(_Bytes(data))
  except (soundfile.LibsndfileError, TypeError) as e:
    raise BadExample("not audio", str(e)) from None
  with file:
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
      raise BadExample("not audio", f"{file.samplerate} samples a second")
    if not file.frames:
      raise BadExample("empty audio", "0 samples")
    first, count = _part(file.frames, file.samplerate, length, at, rng)
    samples = count * file.channels * max(1, (rate or 0) / file.samplerate)
    if samples > _MAX_SAMPLES:
      raise BadExample("audio too large", f"{samples:.0f} samples, at most {_MAX_SAMPLES}")
    try:
      file.seek(first)
      audio = file.read(count, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as e:
      raise BadExample("truncated audio", str(e)) from None
    if len(audio) < count:
      raise BadExample("truncated audio", f"{len(audio)} of {count} samples from {first}")
    return audio, file.samplerate


def _resampled(audio: np.ndarray, old: int, new: int) -> np.ndarray:
  if old == new:
    return audio
  from scipy import signal

  shared = math.gcd(old, new)
  return signal.resample_poly(audio, new // shared, old // shared).astype(np.float32)


def _padded(audio: np.ndarray, samples: int) -> np.ndarray:
  missing = samples - len(audio)
  return np.pad(audio, [(0, missing)] + [(0, 0)] * (audio.ndim - 1)) if missing > 0 else audio


def pad_audio(samples: int, key: str = "audio"):
  """float32 [n] -> [samples], zeros at the end; `audio_length` is n where it was not set.

  Longer audio is an error: `crop_audio` comes before.
  """
  whole_number(samples, "op pad_audio: samples")

  def run(example, rng):
    audio = example[key]
    if len(audio) > samples:
      raise ValueError(f"{key} {audio.shape} is longer than {samples}")
    length = example.get("audio_length", len(audio))
    return {**example, key: _padded(audio, samples), "audio_length": length}

  return run


def crop_audio(samples: int, at: str = "random", key: str = "audio"):
  """At most `samples` of float32 [n], "random", "start" or "center"; shorter audio stays.

  `audio_length` counts what is left of the samples that it counted.
  """
  whole_number(samples, "op crop_audio: samples")
  if at not in _AT:
    raise unknown("op crop_audio: at", at, _AT)

  def run(example, rng):
    audio = example[key]
    first = _first(max(0, len(audio) - samples), at, rng)
    cut = audio[first : first + samples]
    length = min(len(cut), max(0, int(example.get("audio_length", len(audio))) - first))
    return {**example, key: cut, "audio_length": length}

  return run


def standardize_audio(key: str = "audio"):
  """float32 -> (x - mean) / sqrt(var + 1e-7) of its own samples, as for wav2vec 2.0.

  arXiv:2006.11477, with the constant of transformers. Zeros past `audio_length` stay zeros and do
  not count.
  """

  def run(example, rng):
    audio = np.asarray(example[key], np.float32)
    n = int(example.get("audio_length", len(audio)))
    own = audio[:n].astype(np.float64)
    out = np.zeros_like(audio)
    out[:n] = (own - own.mean(0)) / np.sqrt(own.var(0) + 1e-7) if n else 0
    return {**example, key: out}

  return run
