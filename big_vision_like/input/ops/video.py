"""Ops on `video`: bytes or a list of frame images, then uint8 [T, H, W, 3]."""

import collections
import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from big_vision_like.config import UserError, unknown, whole_number
from big_vision_like.input.bad import BadExample
from big_vision_like.input.formats import media
from big_vision_like.input.ops import image

Example = dict[str, Any]

_AT = ("random", "center", "start", "uniform", "segments")
_MAX_PIXELS = 1 << 25  # of a frame: 8K is 7680 x 4320
# No playlists: those would open other files and addresses.
_FORMATS = "mov,matroska,webm,avi,gif,mpeg,mpegts,ogg,flv,asf,apng,ivf,h264,hevc,m4v"


def decode_video(
  frames: int,
  stride: int = 1,
  fps: float | None = None,
  at: str = "random",
  size: int | None = None,
  key: str = "video",
):
  """`frames` frames of a clip: uint8 [T, H, W, 3], `fps`, `frame_times` float32 [T].

  Encoded video (mp4, mkv, webm, avi, gif, ...) goes through PyAV: all packets are listed, and only
  those from the key frame before a wanted frame on are decoded, in one thread. A list of encoded
  images is decoded where chosen; of an array uint8 [N, H, W, 3] frames are chosen alike. Colours
  become RGB by FFmpeg's swscale, frames are not turned as their container may ask.

  `frame_times` are seconds from the video's first frame, `fps` is the rate of the chosen frames. A
  clip that is too short repeats its last frame. Lists and arrays have the rate of the example's
  `fps`, or 1.

  Args:
    frames: T.
    stride: every so-manieth frame.
    fps: frames are first taken at this rate (the latest that is shown at each time), whatever the
      video's own; None takes the video's frames as they are.
    at: where the T frames lie: "random", "center" or "start", one clip; "uniform", the middles of T
      equal parts of the whole video, and "segments", a random frame of each (the test and training
      sampling of TSN, arXiv:1608.00859); the last two take no stride and no fps.
    size: frames are scaled (bilinear) so that their smaller side is this; None leaves them.

  Raises:
    UserError: a number that is not positive, an unknown `at`, a stride or fps without effect; PyAV
      is not installed.
  """
  whole_number(frames, "op decode_video: frames")
  whole_number(stride, "op decode_video: stride")
  if size is not None:
    whole_number(size, "op decode_video: size")
  if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or fps <= 0):
    raise UserError(f"op decode_video: fps = {fps!r}; expected a number above 0, or None")
  if at not in _AT:
    raise unknown("op decode_video: at", at, _AT)
  if at in ("uniform", "segments") and (stride != 1 or fps is not None):
    raise UserError(f"op decode_video: at = {at!r} spreads frames evenly: no stride, no fps")

  def run(example, rng):
    def choose(times: np.ndarray) -> np.ndarray:
      return _chosen(times, frames, stride, fps, at, rng)

    data = example[key]
    if isinstance(data, (bytes, bytearray, memoryview)):
      clip, times, index, rate = _decoded(bytes(data), choose, size)
    else:
      if not len(data):
        raise BadExample("empty video", "no frames")
      rate = float(example.get("fps", 1.0))
      times = np.arange(len(data)) / rate
      index = choose(times)
      clip = _of_frames(data, index, size)
    if at in ("uniform", "segments"):
      rate *= frames / len(times)
    else:
      rate = (fps or rate) / stride
    out = {key: clip, "fps": float(rate), "frame_times": times[index].astype(np.float32)}
    return {**example, **out}

  return run


def _chosen(
  times: np.ndarray,
  frames: int,
  stride: int,
  fps: float | None,
  at: str,
  rng: np.random.Generator,
) -> np.ndarray:
  """Indices [frames] of frames shown at `times` [N], seconds."""
  n = len(times)
  if at in ("uniform", "segments"):
    within = rng.random(frames) if at == "segments" else 0.5
    return ((np.arange(frames) + within) * n / frames).astype(int)
  if fps is None:
    free = max(0, n - 1 - (frames - 1) * stride)
    first = {"start": 0, "center": free // 2}.get(at)
    if first is None:
      first = int(rng.integers(free + 1)) if free else 0
    return np.minimum(first + np.arange(frames) * stride, n - 1)
  step = stride / fps
  free = max(0.0, times[-1] - (frames - 1) * step)
  first = {"start": 0.0, "center": free / 2}.get(at)
  if first is None:
    first = rng.uniform(0, free) if free else 0.0
  shown = first + np.arange(frames) * step + 1e-6  # times are rounded to the container's ticks
  return np.clip(np.searchsorted(times, shown, "right") - 1, 0, n - 1)


_decode_image = image.decode()


def _of_frames(data: Any, index: np.ndarray, size: int | None) -> np.ndarray:
  """The chosen ones of encoded frames, or of arrays."""
  resize = image.resize_small(size) if size else lambda example, rng: example
  made = {}
  for i in np.unique(index).tolist():
    try:
      made[i] = resize(_decode_image({"image": data[i]}, None), None)["image"]
    except Exception as e:
      e.add_note(f"frame {i}")
      raise
  return _stacked([made[i] for i in index.tolist()])


def _stacked(clip: list[np.ndarray]) -> np.ndarray:
  for frame in clip:
    if frame.shape != clip[0].shape:
      raise BadExample("sizes differ", f"frames {clip[0].shape} and {frame.shape}")
  return np.stack(clip)


# ------------------------------------------------------------------------------------ containers


def _decoded(
  data: bytes, choose: Callable[[np.ndarray], np.ndarray], size: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
  """Chosen frames, the times of all, the indices of those chosen, the video's rate."""
  if not data:
    raise BadExample("empty file", "0 bytes")
  if media.cut_short(data):
    raise BadExample("truncated video", f"ends after {len(data)} bytes, its head names more")
  with _opened(data) as (packets, stream):
    stamps = np.sort([_stamp(p) for p in packets if not p.is_discard])
    if not len(stamps):
      raise BadExample("empty video", "no frames")
    times = (stamps - stamps[0]) * float(packets[0].time_base)
    index = choose(times)
    wanted = np.unique(index)
    made = _at(stream.codec_context, packets, stamps[wanted].tolist(), size)
    clip = dict(zip(wanted.tolist(), made))
    rate = stream.average_rate or stream.guessed_rate or 1
    return _stacked([clip[i] for i in index.tolist()]), times, index, float(rate)


def _stamp(packet: Any) -> int:
  stamp = packet.dts if packet.pts is None else packet.pts
  if stamp is None:
    raise BadExample("broken video", "frames without times")
  return stamp


def _check_pixels(width: int, height: int) -> None:
  if width * height > _MAX_PIXELS:
    raise BadExample("video too large", f"{width} x {height} pixels a frame")


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[tuple[list[Any], Any]]:
  """The packets of the first video stream, in the order of decoding, and the stream."""
  av = media.library("av", "video", "op decode_video")
  kind = "not a video"
  options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
  try:
    with av.open(io.BytesIO(data), options=options, metadata_errors="replace") as container:
      if not container.streams.video:
        raise BadExample("not a video", "no video stream")
      stream = container.streams.video[0]
      context = stream.codec_context
      if context is None:
        raise BadExample("not a video", "its codec is unknown")
      _check_pixels(context.width, context.height)
      context.thread_count = 1  # examples are spread over threads already
      context.options = {"max_pixels": str(_MAX_PIXELS)}  # frames may grow on the way
      kind = "broken video"
      yield [p for p in container.demux(stream) if p.size], stream
  except av.error.FFmpegError as e:
    raise BadExample(kind, str(e)) from None


def _at(
  context: Any, packets: list[Any], wanted: list[int], size: int | None
) -> Iterator[np.ndarray]:
  """The frames shown at the stamps `wanted`, ascending."""
  keys = [(_stamp(p), i) for i, p in enumerate(packets) if p.is_keyframe]
  before = lambda stamp: max((i for at, i in keys if at <= stamp), default=0)
  started = False
  for start, group in itertools.groupby(wanted, key=before):
    if started:
      context.flush_buffers()
    started = True
    yield from _from(_frames_of(context, packets[start:]), collections.deque(group), size)


def _from(frames: Iterator[Any], due: collections.deque, size: int | None) -> Iterator[np.ndarray]:
  shown = None
  for frame in frames:
    while due and frame.pts > due[0]:  # a packet that shows nothing of its own
      yield _rgb(shown or frame, size)
      due.popleft()
    if due and frame.pts == due[0]:
      yield _rgb(frame, size)
      due.popleft()
    if not due:
      return
    shown = frame
  if shown is None:
    raise BadExample("broken video", "its packets hold no frames")
  for _ in due:
    yield _rgb(shown, size)


def _frames_of(context: Any, packets: list[Any]) -> Iterator[Any]:
  for packet in [*packets, None]:
    for frame in context.decode(packet):
      if frame.pts is not None:
        yield frame


def _rgb(frame: Any, size: int | None) -> np.ndarray:
  scale = size / min(frame.width, frame.height) if size else 1
  width, height = round(frame.width * scale), round(frame.height * scale)
  _check_pixels(width, height)  # a line of pixels grows beyond all bounds
  return frame.to_ndarray(
    format="rgb24", width=width, height=height, interpolation="BILINEAR", threads=1
  )
