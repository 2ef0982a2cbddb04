"""Videos and sounds made here. Frame i shows the bits of i as eight black or white stripes."""

import io
from typing import Any

import numpy as np


def striped(n: int, size=(64, 48)) -> np.ndarray:
  """uint8 [n, H, W, 3]."""
  bits = np.arange(n)[:, None] >> np.arange(8) & 1
  row = np.repeat(bits * 255, size[0] // 8, axis=1).astype(np.uint8)
  return np.broadcast_to(row[:, None, :, None], (n, size[1], size[0], 3)).copy()


def numbers(clip: np.ndarray) -> list[int]:
  """The numbers of decoded frames."""
  stripe = clip.shape[2] // 8
  middle = clip[:, :, stripe // 2 :: stripe].astype(float).mean((1, 3))
  assert (np.abs(middle - 127.5) > 60).all(), middle
  return ((middle > 127.5) << np.arange(8)).sum(1).tolist()


def video(
  frames: np.ndarray,
  container: str = "mp4",
  codec: str = "mpeg4",
  rate: int = 20,
  gop: int = 12,
  b_frames: int = 0,
  pixels: str = "yuv420p",
  options: dict[str, str] | None = None,
) -> bytes:
  """Frames [N, H, W, 3] as a file."""
  import av

  out = io.BytesIO()
  with av.open(out, "w", format=container, options=options or {}) as file:
    stream: Any = file.add_stream(codec, rate=rate)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt, stream.codec_context.gop_size = pixels, gop
    stream.codec_context.max_b_frames = b_frames
    for frame in frames:
      file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    file.mux(stream.encode())
  return out.getvalue()


def tone(hertz, seconds=1.0, rate=16000):
  """float32 [samples]."""
  t = np.arange(round(seconds * rate)) / rate
  return (0.5 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def sound(samples, rate=16000, format="WAV", subtype=None):
  """Encoded bytes."""
  import soundfile

  out = io.BytesIO()
  soundfile.write(out, samples, rate, format=format, subtype=subtype)
  return out.getvalue()
