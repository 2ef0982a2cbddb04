"""Power spectra of short frames, and the mel scale: one definition for all spectrogram ops."""

import functools

import numpy as np

SCALES = ("slaney", "htk")


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
  """Frequency -> mel.

  "htk" (also Kaldi's): 2595 log10(1 + f / 700). "slaney" (Auditory Toolbox, 1998): f / (200 / 3) up
  to 1 kHz, from there 27 steps for a factor of 6.4.
  """
  hertz = np.asarray(hertz, np.float64)
  if scale == "htk":
    return 2595 * np.log10(1 + hertz / 700)
  return np.where(
    hertz < 1000, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, 1) / 1000) * 27 / np.log(6.4)
  )


def to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
  """The inverse of `to_mel`."""
  mel = np.asarray(mel, np.float64)
  if scale == "htk":
    return 700 * (10 ** (mel / 2595) - 1)
  return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((np.maximum(mel, 15) - 15) / 27))


@functools.lru_cache(maxsize=64)
def filters(
  bins: int,
  fft: int,
  rate: int,
  fmin: float,
  fmax: float,
  scale: str,
  *,
  equal_area: bool = False,
  in_mel: bool = False,
) -> np.ndarray:
  """Triangles [fft // 2 + 1, bins] whose corners are equally far apart in mel.

  Their sides are straight in hertz or, as Kaldi's, in mel (`in_mel`). Each has height 1, or the
  area of 1 over hertz (`equal_area`, as librosa's default).
  """
  corners = np.linspace(*to_mel([fmin, fmax], scale), bins + 2)
  spectrum = np.arange(fft // 2 + 1) * (rate / fft)
  hertz = to_hertz(corners, scale)
  x, at = (to_mel(spectrum, scale), corners) if in_mel else (spectrum, hertz)
  low, mid, high = at[:-2], at[1:-1], at[2:]
  rising = (x[:, None] - low) / (mid - low)
  falling = (high - x[:, None]) / (high - mid)
  weights = np.maximum(0, np.minimum(rising, falling))
  return weights * (2 / (hertz[2:] - hertz[:-2])) if equal_area else weights


@functools.lru_cache(maxsize=64)
def hann(size: int, *, periodic: bool = True) -> np.ndarray:
  """Hann's window; periodic ones start with the 0 that symmetric ones have at both ends."""
  return np.hanning(size + 1)[:-1] if periodic else np.hanning(size)


def frames(audio: np.ndarray, size: int, hop: int) -> np.ndarray:
  """[samples] -> [1 + (samples - size) // hop, size], a view; shorter audio ends in zeros."""
  audio = np.pad(audio, (0, max(0, size - len(audio))))
  return np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]


def centred(audio: np.ndarray, fft: int) -> np.ndarray:
  """Mirrored by half a frame at both ends, so that frame i lies around sample i * hop."""
  return np.pad(audio, fft // 2, mode="reflect")


def power(framed: np.ndarray, window: np.ndarray, fft: int) -> np.ndarray:
  """|FFT|^2 of frames [n, window], which end in zeros up to `fft` -> [n, fft // 2 + 1]."""
  spectrum = np.fft.rfft(framed * window, fft)
  return spectrum.real**2 + spectrum.imag**2
