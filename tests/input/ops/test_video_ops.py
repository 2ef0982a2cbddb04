"""Video ops on files made here, whose frames tell their numbers."""

import concurrent.futures
import io

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from big_vision_like.config import UserError
from big_vision_like.input import ops
from big_vision_like.input.bad import BadExample
from tests.input.clips import numbers, sound, striped, video

N = 40
FORMATS = {
  "mp4": dict(),
  "mp4 with B frames": dict(b_frames=2),
  "h264": dict(codec="libx264", b_frames=2),
  "avi": dict(container="avi", b_frames=2),
  "mkv": dict(container="matroska", codec="libx264"),
  "webm": dict(container="webm", codec="libvpx"),
  "vp9": dict(container="webm", codec="libvpx-vp9"),
  "gif": dict(container="gif", codec="gif", pixels="rgb8"),
  "ts": dict(container="mpegts", codec="mpeg2video", rate=25),
}


class Files(dict):
  def __repr__(self):  # hypothesis shows its arguments
    return "files"


@pytest.fixture(scope="module")
def files():
  return Files({name: video(striped(N), **kwargs) for name, kwargs in FORMATS.items()})


def decode(data, spec, seed=0, **example):
  return ops.build(spec)({"video": data, **example}, np.random.default_rng(seed))


@pytest.mark.parametrize("name", FORMATS)
def test_the_right_frames_of_every_format(files, name):
  out = decode(files[name], "decode_video(5, stride=3, at='center')")
  first = (N - 1 - 4 * 3) // 2
  assert numbers(out["video"]) == [first + 3 * k for k in range(5)]
  rate = FORMATS[name].get("rate", 20)
  assert out["video"].shape == (5, 48, 64, 3) and out["video"].dtype == np.uint8
  assert out["fps"] == pytest.approx(rate / 3) and out["frame_times"].dtype == np.float32
  np.testing.assert_allclose(out["frame_times"], (first + 3 * np.arange(5)) / rate, atol=2e-3)


@pytest.mark.parametrize("name", ["mp4 with B frames", "h264", "vp9"])
def test_every_frame_alone_is_that_of_the_whole(files, name):
  whole = decode(files[name], f"decode_video({N}, at='start')")["video"]
  assert numbers(whole) == list(range(N))
  seen = set()
  for seed in range(30):
    one = decode(files[name], "decode_video(1)", seed)["video"]
    [number] = numbers(one)
    np.testing.assert_array_equal(one[0], whole[number])
    seen.add(number)
  assert len(seen) > 12


def test_where_frames_lie(files):
  data = files["mp4"]
  take = lambda spec, seed=0: numbers(decode(data, spec, seed)["video"])
  assert take("decode_video(4, at='start')") == [0, 1, 2, 3]
  assert take("decode_video(4, stride=5, at='center')") == [12, 17, 22, 27]
  assert take("decode_video(4, at='uniform')") == [5, 15, 25, 35]  # the middles of four tens
  for seed in range(5):
    found = take("decode_video(4, at='segments')", seed)
    assert [f // 10 for f in found] == [0, 1, 2, 3]
  starts = {take("decode_video(3, stride=2)", seed)[0] for seed in range(40)}
  assert len(starts) > 15 and max(starts) <= N - 5
  assert take("decode_video(3, stride=2)", 7) == take("decode_video(3, stride=2)", 7)


def test_at_another_rate(files):
  out = decode(files["mp4"], "decode_video(6, fps=5, at='start')")  # every 4th of 20 a second
  assert numbers(out["video"]) == [0, 4, 8, 12, 16, 20] and out["fps"] == 5
  np.testing.assert_allclose(out["frame_times"], np.arange(6) / 5, atol=1e-6)
  faster = decode(files["mp4"], "decode_video(6, fps=40, at='start')")
  assert numbers(faster["video"]) == [0, 0, 1, 1, 2, 2]
  slow = decode(files["mp4"], "decode_video(3, fps=10, stride=5, at='center')")
  assert numbers(slow["video"]) == [9, 19, 29] and slow["fps"] == 2


@hypothesis.given(
  n=strategies.integers(1, 200),
  frames=strategies.integers(1, 40),
  stride=strategies.integers(1, 9),
  at=strategies.sampled_from(["random", "center", "start", "uniform", "segments"]),
  fps=strategies.none() | strategies.floats(0.5, 100),
  seed=strategies.integers(0, 9),
)
def test_chosen_frames_are_in_order_and_there(n, frames, stride, at, fps, seed):
  from big_vision_like.input.ops.video import _chosen

  index = _chosen(np.arange(n) / 25, frames, stride, fps, at, np.random.default_rng(seed))
  steps = np.diff(index)
  assert index.shape == (frames,) and index[0] >= 0 and index[-1] < n and (steps >= 0).all()
  if fps is None and at in ("random", "center", "start"):
    if (frames - 1) * stride < n:
      assert (steps == stride).all()
    else:
      assert index[0] == 0 and index[-1] == n - 1 and (steps <= stride).all()
  if at in ("uniform", "segments") and frames <= n:
    assert (index * frames // n == np.arange(frames)).all() or n % frames


def test_short_clips_repeat_their_last_frame(files):
  short = video(striped(3))
  assert numbers(decode(short, "decode_video(5)")["video"]) == [0, 1, 2, 2, 2]
  assert numbers(decode(short, "decode_video(4, stride=2)")["video"]) == [0, 2, 2, 2]
  assert numbers(decode(short, "decode_video(6, at='uniform')")["video"]) == [0, 0, 1, 1, 2, 2]
  assert numbers(decode(short, "decode_video(4, fps=10)")["video"]) == [0, 2, 2, 2]


def test_only_what_is_needed_is_decoded(files, monkeypatch):
  from big_vision_like.input.ops import video as module

  fed = []
  frames_of = module._frames_of

  def count(context, packets):
    class Counted:
      def decode(self, packet):
        fed.append(packet)
        return context.decode(packet)

    return frames_of(Counted(), packets)

  monkeypatch.setattr(module, "_frames_of", count)
  data = video(striped(N), container="matroska", codec="libx264", gop=5)
  out = decode(data, "decode_video(2, stride=30, at='center')")  # frames 4 and 34, of 5 each
  assert numbers(out["video"]) == [4, 34]
  assert len(fed) < 20


def test_smaller_frames(files):
  out = decode(files["mp4"], "decode_video(2, size=24, at='start')")["video"]
  assert out.shape == (2, 24, 32, 3) and numbers(out) == [0, 1]


def png(array):
  out = io.BytesIO()
  Image.fromarray(array).save(out, "PNG")
  return out.getvalue()


def test_frame_images_and_arrays():
  clip = striped(10)
  for data in ([png(f) for f in clip], clip):
    out = decode(data, "decode_video(3, stride=2, at='center')", fps=10.0)
    np.testing.assert_array_equal(out["video"], clip[[2, 4, 6]])
    assert out["fps"] == 5
    np.testing.assert_allclose(out["frame_times"], [0.2, 0.4, 0.6], atol=1e-6)
  assert decode(clip, "decode_video(10)")["fps"] == 1
  small = decode([png(f) for f in clip], "decode_video(2, size=24)")["video"]
  assert small.shape == (2, 24, 32, 3)


def test_threads_decode_alike(files):
  op = ops.build("decode_video(4, stride=2)")
  jobs = [(name, seed) for name in files for seed in range(3)]
  one = lambda job: op({"video": files[job[0]]}, np.random.default_rng(job[1]))["video"]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for job, got in zip(jobs, pool.map(one, jobs)):
      np.testing.assert_array_equal(got, one(job))


# ------------------------------------------------------------------------------------------- bad


def kind(data, spec="decode_video(4)", **example):
  with pytest.raises(BadExample) as e:
    decode(data, spec, **example)
  return e.value.kind


@pytest.mark.parametrize("name", [n for n in FORMATS if n != "ts"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_cut_files(files, name, part):
  data = files[name]
  assert kind(data[: max(5 if name != "mp4" else 9, int(len(data) * part))]) == "truncated video"


def test_cut_where_the_index_comes_first():
  data = video(striped(N), options={"movflags": "frag_keyframe+empty_moov"})
  assert len(decode(data, "decode_video(2)")["video"]) == 2
  assert kind(data[:-100]) == "truncated video"


def test_not_a_video(files):
  assert kind(b"") == "empty file"
  assert kind(b"hello, this is text" * 50) == "not a video"
  assert kind(png(striped(1)[0])) == "not a video"
  assert kind(sound(np.zeros(800))) == "not a video"
  assert kind([]) == "empty video"


def test_a_playlist_opens_nothing(tmp_path, files):
  (tmp_path / "a.ts").write_bytes(files["ts"])
  lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:2", "#EXTINF:2,", f"{tmp_path}/a.ts", "#EXT-X-ENDLIST"]
  assert kind("\n".join(lines).encode()) == "not a video"
  assert kind(f"ffconcat version 1.0\nfile '{tmp_path}/a.ts'\n".encode()) == "not a video"


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  name=strategies.sampled_from(list(FORMATS)),
  at=strategies.floats(0, 1),
  noise=strategies.binary(min_size=1, max_size=60),
)
def test_damage_is_bad_or_decodes(files, name, at, noise):
  """Never another exception, and never another shape."""
  data = bytearray(files[name])
  first = int(at * (len(data) - len(noise)))
  data[first : first + len(noise)] = noise
  try:
    out = decode(bytes(data), "decode_video(4, stride=5, size=24)")["video"]
  except BadExample:
    return
  assert out.shape[0] == 4 and out.dtype == np.uint8 and min(out.shape[1:3]) == 24


def test_too_large(files, monkeypatch):
  monkeypatch.setattr("big_vision_like.input.ops.video._MAX_PIXELS", 64 * 48 - 1)
  assert kind(files["mp4"]) == "video too large"


def test_too_large_after_scaling():
  line = video(striped(2, (4096, 16)))
  assert kind(line, "decode_video(2, size=4096)") == "video too large"


def test_sizes_differ():
  frames = [png(striped(1)[0]), png(striped(1, (32, 48))[0])]
  assert kind(frames, "decode_video(2)") == "sizes differ"


def test_mistakes():
  for spec, message in (
    ("decode_video(0)", "frames = 0; expected a positive whole number"),
    ("decode_video(4, stride=0.5)", "stride = 0.5"),
    ("decode_video(4, at='middle')", "at 'middle' is unknown"),
    ("decode_video(4, at='uniform', stride=2)", "no stride, no fps"),
    ("decode_video(4, fps=0)", "fps = 0; expected a number above 0"),
    ("decode_video(4, size=-1)", "size = -1"),
  ):
    with pytest.raises(UserError, match=message):
      ops.build(spec)


# ----------------------------------------------------------------------------------------- clips


CLIP = np.random.default_rng(0).integers(0, 256, (3, 12, 16, 3)).astype(np.uint8)


@pytest.mark.parametrize(
  "args", ["resize(5, 7)", "resize_small(6)", "central_crop(8, 6)", "random_crop(8, 6)"]
  + ["random_resized_crop(6)", "random_resized_crop(6, 8, area=(0.2, 0.5))", "flip_lr()"],
)  # fmt: skip
def test_clip_ops_are_the_image_ops_of_every_frame(args):
  """With the same random numbers for all: one box, one flip."""
  clip, one = ops.build(f"video_{args}"), ops.build(args)
  for seed in range(4):
    got = clip({"video": CLIP, "label": 1}, np.random.default_rng(seed))
    frames = [one({"image": f}, np.random.default_rng(seed))["image"] for f in CLIP]
    np.testing.assert_array_equal(got["video"], np.stack(frames))
    assert got["label"] == 1


def test_clip_to_float():
  op = ops.build("video_flip_lr|value_range(0, 1, key='video')")
  out = op({"video": CLIP}, np.random.default_rng(0))["video"]
  assert out.dtype == np.float32 and out.shape == CLIP.shape and 0 <= out.min() <= out.max() <= 1
