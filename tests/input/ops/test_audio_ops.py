"""Audio and spectrogram ops on sounds made here."""

import concurrent.futures
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from big_vision_like.config import UserError
from big_vision_like.input import mel, ops
from big_vision_like.input.bad import BadExample
from tests.input.clips import sound, tone


def run(spec, data, seed=0, **example):
  return ops.build(spec)({"audio": data, **example}, np.random.default_rng(seed))


RAMP = (np.arange(16000) / 32768).astype(np.float32)  # each sample tells its place, exactly


@pytest.mark.parametrize(
  "format, subtype, atol",
  [("WAV", "PCM_16", 0), ("WAV", "FLOAT", 0), ("FLAC", "PCM_16", 0), ("AIFF", "PCM_16", 0)]
  + [("OGG", "VORBIS", 0.05), ("OGG", "OPUS", 0.1)],
)
def test_formats(format, subtype, atol):
  wave = tone(440) if atol else RAMP
  out = run("decode_audio(16000)", sound(wave, format=format, subtype=subtype))
  assert out["audio"].dtype == np.float32 and out["sample_rate"] == 16000
  assert out["audio_length"] == len(out["audio"]) == 16000
  np.testing.assert_allclose(out["audio"][200:-200], wave[200:-200], atol=atol)


def test_part_of_it():
  data = sound(RAMP)
  place = lambda out: round(out["audio"][0] * 32768)
  out = run("decode_audio(16000, length=0.25, at='start')", data)
  np.testing.assert_array_equal(out["audio"], RAMP[:4000])
  assert place(run("decode_audio(16000, length=0.25, at='center')", data)) == 6000
  outs = [run("decode_audio(16000, length=0.25)", data, seed) for seed in range(20)]
  for out in outs:
    np.testing.assert_array_equal(out["audio"], RAMP[place(out) : place(out) + 4000])
  assert len({place(out) for out in outs}) > 15
  long = run("decode_audio(16000, length=1.5)", data)
  assert long["audio"].shape == (24000,) and long["audio_length"] == 16000
  np.testing.assert_array_equal(long["audio"], np.append(RAMP, np.zeros(8000)))


def test_channels():
  stereo = np.stack([RAMP, -RAMP / 2], 1)
  np.testing.assert_allclose(run("decode_audio()", sound(stereo))["audio"], RAMP / 4, atol=1e-4)
  both = run("decode_audio(mono=False, length=2)", sound(stereo))
  assert both["audio"].shape == (32000, 2) and both["audio_length"] == 16000


@pytest.mark.parametrize("old, new", [(8000, 16000), (44100, 16000), (48000, 16000), (16000, 8000)])
def test_resampled_tones_are_the_tones(old, new):
  out = run(f"decode_audio({new})", sound(tone(440, rate=old), old, subtype="FLOAT"))
  assert out["sample_rate"] == new and out["audio"].shape == (new,)
  middle = slice(new // 10, -new // 10)
  np.testing.assert_allclose(out["audio"][middle], tone(440, rate=new)[middle], atol=5e-3)
  part = run(f"decode_audio({new}, length=0.3)", sound(tone(440, rate=old), old))
  assert part["audio"].shape == (round(0.3 * new),) and part["audio_length"] == round(0.3 * new)


def test_no_alias():
  """A tone above half of the new rate is gone, not mirrored."""
  out = run("decode_audio(16000)", sound(tone(12000, rate=48000), 48000))["audio"]
  assert np.abs(out[500:-500]).max() < 0.01


def test_own_rate_and_arrays():
  assert run("decode_audio(rate=None)", sound(tone(440, rate=22050), 22050))["sample_rate"] == 22050
  out = run("decode_audio(8000)", tone(440), sample_rate=16000)
  assert out["audio"].shape == (8000,) and out["sample_rate"] == 8000
  np.testing.assert_array_equal(run("decode_audio(16000)", RAMP)["audio"], RAMP)


def test_threads_decode_alike():
  data = [sound(tone(100 + 50 * i, rate=22050), 22050, "FLAC") for i in range(16)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for one, got in zip(data, pool.map(lambda d: run("decode_audio()", d)["audio"], data)):
      np.testing.assert_array_equal(got, run("decode_audio()", one)["audio"])


# ------------------------------------------------------------------------------------------- bad


def kind(data, spec="decode_audio()"):
  with pytest.raises(BadExample) as e:
    run(spec, data)
  return e.value.kind


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "AIFF"])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
def test_cut_files(format, part):
  data = sound(tone(440) + 0.01 * np.random.default_rng(0).normal(size=16000), format=format)
  assert kind(data[: int(len(data) * part)]) == "truncated audio"


def test_bad_data():
  broken = tone(440)
  broken[700] = np.nan
  infinite = tone(440)
  infinite[3] = np.inf
  assert kind(b"") == "empty file"
  assert kind(b"no sound at all" * 20) == "not audio"
  assert kind(sound(np.zeros(0))) == "empty audio"
  assert kind(np.zeros(0, np.float32)) == "empty audio"
  assert kind(sound(broken, subtype="FLOAT")) == "NaN audio"
  assert kind(sound(infinite, subtype="DOUBLE")) == "NaN audio"
  assert kind(broken) == "NaN audio"


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
  format=strategies.sampled_from(["WAV", "FLAC", "OGG", "AIFF"]),
  at=strategies.floats(0, 1),
  noise=strategies.binary(min_size=1, max_size=60),
)
def test_damage_is_bad_or_decodes(format, at, noise):
  """Never another exception, and never NaN."""
  data = bytearray(sound(tone(440, 0.2), format=format))
  first = int(at * (len(data) - len(noise)))
  data[first : first + len(noise)] = noise
  try:
    out = run("decode_audio(length=0.1)", bytes(data))["audio"]
  except BadExample:
    return
  assert out.shape == (1600,) and np.isfinite(out).all()


def test_a_part_without_the_nan_is_good():
  broken = tone(440)
  broken[-1] = np.nan
  data = sound(broken, subtype="FLOAT")
  assert run("decode_audio(length=0.5, at='start')", data)["audio"].shape == (8000,)


def test_too_large(monkeypatch):
  monkeypatch.setattr("big_vision_like.input.ops.audio._MAX_SAMPLES", 15000)
  assert kind(sound(RAMP)) == "audio too large"
  assert run("decode_audio(length=0.5)", sound(RAMP))["audio"].shape == (8000,)
  slow = sound(RAMP[:4000], 1000)  # 16 times as many after resampling
  assert kind(slow) == "audio too large"


def test_absurd_rates():
  assert kind(sound(RAMP, 2**31 - 1)) == "not audio"
  assert kind(sound(RAMP, 7)) == "not audio"


def test_mistakes():
  for spec, message in (
    ("decode_audio(0)", "rate = 0"),
    ("decode_audio(10)", "rate = 10; expected 1000 to 384000 Hz"),
    ("decode_audio(length=-1)", "length = -1; expected seconds above 0"),
    ("decode_audio(at='end')", "at 'end' is unknown"),
    ("decode_audio(mono=2)", "mono = 2"),
    ("pad_audio(0)", "samples = 0"),
    ("crop_audio(4, at='end')", "at 'end' is unknown"),
    ("log_mel(bins=0)", "bins = 0"),
    ("log_mel(scale='bark')", "scale 'bark' is unknown"),
    ("log_mel(fft=200)", "fft = 200; expected a whole number >= 400"),
    ("log_mel(fmin=900, fmax=800)", "fmax = 800; expected a number above 900"),
    ("log_mel(floor=0)", "floor = 0"),
    ("whisper_mel(frames=-1)", "frames = -1"),
    ("kaldi_mel(std=0)", "std = 0"),
    ("spec_augment(freq=-1)", "freq = -1"),
    ("spec_augment(value='median')", "value = 'median'"),
  ):
    with pytest.raises(UserError, match=message):
      ops.build(spec)
  with pytest.raises(UserError, match=r"sample_rate = 8000; expected 16000: decode_audio\(16000\)"):
    run("whisper_mel()", RAMP, sample_rate=8000)
  with pytest.raises(UserError, match="expected mono"):
    run("log_mel()", np.zeros((100, 2), np.float32))
  with pytest.raises(UserError, match="sample_rate is 8000"):
    run("log_mel(fmax=8000)", RAMP, sample_rate=8000)


# --------------------------------------------------------------------------------- fixed lengths


def test_pad_and_crop():
  out = run("pad_audio(20000)", RAMP)
  assert out["audio"].shape == (20000,) and out["audio_length"] == 16000
  assert not out["audio"][16000:].any()
  with pytest.raises(ValueError, match="longer than 100"):
    run("pad_audio(100)", RAMP)
  cut = run("crop_audio(100, at='center')", RAMP)
  np.testing.assert_array_equal(cut["audio"], RAMP[7950:8050])
  assert cut["audio_length"] == 100
  assert run("crop_audio(100, at='center')", RAMP, audio_length=7980)["audio_length"] == 30
  assert run("crop_audio(99999)", RAMP)["audio"].shape == RAMP.shape
  starts = {run("crop_audio(100)", RAMP, seed)["audio"][0] for seed in range(20)}
  assert len(starts) > 15


def test_standardize():
  padded = run("pad_audio(20000)|standardize_audio", RAMP + 0.2)
  own = padded["audio"][:16000]
  assert abs(own.mean()) < 1e-5 and abs(own.std() - 1) < 1e-4
  assert not padded["audio"][16000:].any() and padded["audio"].dtype == np.float32
  silence = run("standardize_audio", np.zeros(50, np.float32))["audio"]
  assert not silence.any()


# ----------------------------------------------------------------------------------- spectrograms


def test_scales():
  """Round trips, and values of the definitions."""
  hertz = np.array([0.0, 500, 1000, 4000, 8000])
  for scale in mel.SCALES:
    np.testing.assert_allclose(mel.to_hertz(mel.to_mel(hertz, scale), scale), hertz, atol=1e-9)
  assert mel.to_mel(1000, "slaney") == 15 and mel.to_mel(6400, "slaney") == pytest.approx(42)
  assert mel.to_mel(700, "htk") == pytest.approx(2595 * np.log10(2))


def test_filters():
  """Neighbours' triangles add up to one between the first and last peak; areas are equal."""
  bank = mel.filters(20, 4096, 16000, 100.0, 7000.0, "htk")
  hertz = np.arange(2049) * 16000 / 4096
  peaks = mel.to_hertz(np.linspace(*mel.to_mel([100, 7000], "htk"), 22), "htk")[1:-1]
  between = (hertz >= peaks[0]) & (hertz <= peaks[-1])
  np.testing.assert_allclose(bank.sum(1)[between], 1, atol=1e-9)
  assert not bank[(hertz < 100) | (hertz > 7000)].any()
  area = mel.filters(20, 4096, 16000, 100.0, 7000.0, "htk", equal_area=True).sum(0) * 16000 / 4096
  np.testing.assert_allclose(area, 1, rtol=0.01)


@pytest.mark.parametrize("hertz", [300, 1000, 3000, 6000])
@pytest.mark.parametrize(
  "spec, scale, low",
  [("whisper_mel(frames=100)", "slaney", 0), ("kaldi_mel(frames=100)", "htk", 20)]
  + [("log_mel(bins=64, scale='htk', fft=1024)", "htk", 0)],
)
def test_a_tone_peaks_in_its_band(spec, scale, low, hertz):
  out = run(spec, tone(hertz), sample_rate=16000)
  assert "audio" not in out and out["spectrogram"].dtype == np.float32
  bins = out["spectrogram"].shape[1]
  corners = mel.to_hertz(np.linspace(*mel.to_mel([low, 8000], scale), bins + 2), scale)
  expected = np.abs(corners[1:-1] - hertz).argmin()
  found = out["spectrogram"][5:-5].argmax(1)
  assert np.abs(found - expected).max() <= 1


def test_energy_of_a_tone():
  """Parseval: a tone of amplitude a in a Hann window of n has the spectral sum 3 a^2 n^2 / 32."""
  window = mel.hann(400)
  spectrum = mel.power(mel.frames(tone(1000, 0.1), 400, 160), window, 400)
  total = 0.5**2 * 3 / 32 * 400**2  # one side of the spectrum
  np.testing.assert_allclose(spectrum.sum(1), total, rtol=1e-4)
  assert (spectrum.argmax(1) == 25).all()  # 1000 Hz / (16000 / 400)


def test_frames_and_shapes():
  assert run("log_mel()", RAMP)["spectrogram"].shape == (101, 80)
  assert run("log_mel(hop=200, fft=512)", RAMP, sample_rate=8000)["spectrogram"].shape == (81, 80)
  assert run("kaldi_mel(frames=None)", RAMP)["spectrogram"].shape == (98, 128)
  assert run("kaldi_mel()", RAMP[:300])["spectrogram"].shape == (1024, 128)
  assert run("whisper_mel()", RAMP)["spectrogram"].shape == (3000, 80)
  assert np.isfinite(run("log_mel()", np.zeros(3, np.float32))["spectrogram"]).all()


def test_silence_is_the_floor():
  np.testing.assert_allclose(
    run("log_mel(floor=0.01)", np.zeros(800, np.float32))["spectrogram"], np.log(0.01), rtol=1e-6
  )
  whisper = run("whisper_mel(frames=5)", np.zeros(800, np.float32))["spectrogram"]
  np.testing.assert_allclose(whisper, (-10 + 4) / 4)


def test_spec_augment():
  ones = np.ones((200, 80), np.float32)
  widths, lengths = set(), set()
  for seed in range(60):
    op = ops.build("spec_augment(freq=10, time=30, count=1)")
    out = op({"spectrogram": ones}, np.random.default_rng(seed))["spectrogram"]
    columns, rows = (out == 0).all(0), (out == 0).all(1)
    np.testing.assert_array_equal(out == 0, columns | rows[:, None])
    for line, seen in ((columns, widths), (rows, lengths)):
      at = np.flatnonzero(line)
      assert not len(at) or at[-1] - at[0] + 1 == len(at)  # one span
      seen.add(len(at))
  assert max(widths) == 10 and max(lengths) <= 30 and len(lengths) > 15 and 0 in widths
  assert (ones == 1).all()


def test_spec_augment_limits():
  x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
  augment = lambda spec, seed=0: ops.build(spec)({"spectrogram": x}, np.random.default_rng(seed))
  same = augment("spec_augment(freq=0, time=0)")["spectrogram"]
  np.testing.assert_array_equal(same, x)
  for seed in range(20):
    out = augment("spec_augment(freq=0, time=100, count=1, fraction=0.2, value='mean')", seed)
    changed = (out["spectrogram"] != x).all(1)
    assert changed.sum() <= 10
    np.testing.assert_allclose(out["spectrogram"][changed], x.mean(), rtol=1e-5)


def test_random_calls_are_none_where_nothing_is_random():
  class Never:
    def __getattr__(self, name):
      raise AssertionError(name)

  spec = "decode_audio(16000, length=0.5, at='start')|crop_audio(100, at='center')|pad_audio(200)"
  ops.build(spec + "|standardize_audio|log_mel|spec_augment(freq=0, time=0)")(
    {"audio": sound(RAMP)}, Never()
  )


@pytest.mark.parametrize("name, extra", [("soundfile", "audio"), ("av", "video")])
def test_libraries_that_are_not_there(monkeypatch, name, extra):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf"op decode_{extra}: .*pip install -e '.\[{extra}\]'"):
    ops.build(f"decode_{extra}(16000)")({extra: b"RIFF" + bytes(4)}, np.random.default_rng(0))
