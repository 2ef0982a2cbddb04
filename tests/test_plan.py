"""`python -m tools.plan`: on simulated devices, by shape analysis; TPU compiles need libtpu."""

import importlib
import importlib.util
import json
import sys

import jax
import pytest

from big_vision_like import train as trainer
from big_vision_like.config import UserError
from tests import tiny
from tools.plan import aot, chips, estimate, hlo, report, roofline, search
from tools.plan.__main__ import main, prepare
from tools.plan.hlo import Collective

# ml_collections' own way to load a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
TPU = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
SMALL = [
  "--config",
  "configs/siglip.py:smoke",
  "--config.model.image.depth=2",
  "--config.model.image.scan=True",
  "--config.model.text.depth=1",
]


@pytest.fixture
def command(monkeypatch):
  """The command line; ml_collections looks for overrides in sys.argv itself."""

  def call(*args):
    monkeypatch.setattr(sys, "argv", ["plan", *args])
    return main()

  return call


def printed(capsys):
  return json.loads(capsys.readouterr().out)


def split_bytes(plan, below=""):
  """Of the parameters that fsdp splits among 8, whole."""
  rows = [r for r in plan["sharding"]["rows"] if r["path"].startswith(f"params/{below}")]
  return sum(r["bytes_per_device"] * 8 for r in rows if "fsdp" in r["spec"])


def total(plan, kind):
  return sum(c["bytes"] * c["count"] for c in plan["collectives"] if c["kind"] == kind)


def two_layers():
  """One layer in each tower, with a remat policy to turn."""
  config = tiny.config().to_dict()
  for tower in config["model"].values():
    if isinstance(tower, dict):
      tower.update(depth=1, remat="none")
  return config


# ----------------------------------------------------------------------------------- whole plans


@pytest.fixture(scope="module")
def compiled():
  config = tiny.config().to_dict()
  config["model"]["image"].update(width=64, mlp_dim=256, scan=True)
  config["model"]["text"].update(width=64, mlp_dim=256, depth=1)
  topology = chips.parse("cpu:8")
  return report.make(config, topology, chips.devices(topology), aot.Progress())


def test_compiled_for_simulated_devices(compiled):
  plan = compiled
  assert plan["compiled"] and plan["memory"]["by"] == "compiler" and plan["memory"]["fits"]
  # A scanned block's kernels are gathered in the loop of the forward pass and again in that of the
  # backward pass; everything else is gathered once and kept.
  blocks = split_bytes(plan, "image/encoder/blocks")
  assert blocks == 2 * (4 * 64 * 64 + 2 * 64 * 256) * 4
  assert total(plan, "all-gather") == split_bytes(plan) + blocks
  assert {tuple(c["axes"]) for c in plan["collectives"]} == {("fsdp",)}
  # The ring hands on 16 / 8 texts of 64 float32 and their gradients, 7 hops or a few more.
  assert 14 * 2 * 64 * 4 <= total(plan, "collective-permute") <= 18 * 2 * 64 * 4
  assert plan["loops_of_unknown_length"] == 0
  assert 0 < plan["loss_alone"]["temporaries"] < plan["memory"]["temporaries"]
  held = plan["sharding"]["totals"]
  assert plan["memory"]["params"] == held["params"] and plan["memory"]["opt"] == held["opt"]
  # An image of 8 x 16 and 12 tokens, each of 4 bytes, and the index: 16 of them on 8 devices.
  assert plan["memory"]["batch"] == 2 * 4 * (8 * 16 + 12 + 1)


def test_text_says_it_all(compiled):
  text = report.render(compiled)
  for words in ("cpu:8", "fits", "all-gather", "fsdp", "roofline", "chip-hours", "the loss alone"):
    assert words in text
  assert text.count("\n") < 80


def test_by_shape_analysis(command, capsys):
  assert command(*SMALL, "--topology", "h100:1x8", "--json") == 0
  plan = printed(capsys)
  assert not plan["compiled"] and plan["memory"]["by"] == "estimate"
  assert total(plan, "all-gather") == 2 * split_bytes(plan)  # forward and backward
  assert total(plan, "reduce-scatter") == split_bytes(plan)
  # 7 hops of 128 / 8 texts of 64 float32, and as many of their gradients.
  assert total(plan, "collective-permute") == 14 * 16 * 64 * 4
  assert plan["flops"]["hardware"] >= plan["flops"]["model"]
  memory = plan["memory"]
  assert memory["peak"] == sum(memory[k] for k in ("params", "opt", "aux", "batch", "temporaries"))


def test_what_xla_refuses_is_told_with_what_would_help(monkeypatch):
  gib = 2**30
  refused = aot.Refused(int(31.14 * gib), int(15.75 * gib), True, 1.0)
  monkeypatch.setattr(aot, "compile_step", lambda built, progress: refused)
  monkeypatch.setattr(aot, "compile_loss", lambda built, progress: None)
  config = two_layers()
  topology = chips.parse("cpu:8")
  plan = report.make(config, topology, chips.devices(topology), aot.Progress())
  assert not plan["memory"]["fits"] and plan["memory"]["peak"] > 31 * gib
  text = report.render(plan)
  assert "DOES NOT FIT: needs 31.14 GiB of 15.75 GiB" in text and "ESTIMATED" in text
  frees = {k["knob"]: k["frees"] for k in plan["knobs"]}
  full, some = frees["remat = full on every tower"], frees["remat = dots_no_batch on every tower"]
  assert full > some > 0
  assert frees["config.grad_cache = 2"] == plan["memory"]["estimated_activations"] // 2


@pytest.mark.parametrize(
  "message, expected",
  [
    (
      "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
      "required for HLO temporaries (31.50G) exceeds available HBM (15.75G). HLO module: jit_f.",
      (int(31.5 * 2**30), int(15.75 * 2**30), True),
    ),
    (
      "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 256.00M hbm.",
      (512 * 2**20, 256 * 2**20, False),
    ),
    ("INVALID_ARGUMENT: something else", None),
  ],
)
def test_refusals_of_the_compiler(message, expected):
  found = aot.refusal(message)
  assert (found and found[:3]) == expected


# -------------------------------------------------------------------------------------- roofline


def test_roofline_by_hand():
  topology = chips.parse("v5e:2x4")
  mesh = {"replica": 1, "fsdp": 8, "tensor": 1, "sequence": 1}
  sent = [
    Collective("all-gather", ("fsdp",), 8, 8 * 10**9, 2),
    Collective("collective-permute", ("fsdp",), 2, 10**9, 3),
  ]
  at = roofline.times(topology, mesh, 8 * 197e12, 819e9 / 2, sent)
  assert at.compute == pytest.approx(1.0) and at.hbm == pytest.approx(0.5)
  # 2 x 7/8 of 8 GB over 4 links of 50 GB/s; 3 GB over one of them.
  assert at.interconnect == pytest.approx(14 / 200 + 3 / 50)
  assert at.network == 0 and at.step == at.compute and at.bound == "compute"
  run = roofline.run(topology, 2.0, 32, 43_200, 8 * 197e12)
  assert run.examples_per_second == 16 and run.mfu == pytest.approx(0.5)
  assert run.days == 1 and run.chip_hours == 24 * 8


def test_what_crosses_slices_and_nodes_runs_on_the_network():
  sent = [Collective("all-reduce", ("replica",), 2, 10**9, 1)]
  mesh = {"replica": 2, "fsdp": 8, "tensor": 1, "sequence": 1}
  slices = chips.parse("v5e:2x4", 2)
  at = roofline.times(slices, mesh, 0, 0, sent)
  assert at.network == pytest.approx(1e9 / slices.chip.network) and at.interconnect == 0
  inside = [Collective("all-gather", ("fsdp",), 8, 10**9, 1)]
  assert roofline.times(slices, mesh, 0, 0, inside).network == 0
  nodes = chips.parse("h100:2x8")
  assert chips.crosses(nodes, {**mesh, "replica": 1, "fsdp": 16}, ("fsdp",))
  assert not chips.crosses(nodes, mesh, ("fsdp",)) and chips.crosses(nodes, mesh, ("replica",))


def test_every_chip_says_where_its_numbers_come_from():
  for chip in chips.CHIPS.values():
    assert chip.source and chip.peak > 0 and chip.hbm > 8 * chips.GIB and chip.network < chip.link


# ---------------------------------------------------------------------------------------- search


def test_search_ranks_what_fits():
  config = two_layers()
  topology = chips.parse("h100:2x4")
  found = search.search(config, topology, None, 3, aot.Progress())
  assert [c.rate for c in found] == sorted((c.rate for c in found), reverse=True)
  for c in found:
    sizes = c.mesh
    assert sizes["replica"] * sizes["fsdp"] * sizes["tensor"] == 8
    assert c.batch_size % (sizes["replica"] * sizes["fsdp"]) == 0 and not c.compiled
  assert {c.remat for c in found} >= {"none", "full"} and {c.mesh["tensor"] for c in found} >= {
    1,
    2,
  }
  assert {c.batch_size for c in found} == {8, 16, 32, 64}
  text = search.render(found, topology)
  assert text.splitlines()[-1] == found[0].overrides() and "estimate" in text


def test_search_lets_the_compiler_have_the_last_word(monkeypatch):
  """Of the first two the faster one is refused."""
  verdicts = iter([aot.Refused(2**40, 2**34, False, 0.0), None])
  memory, cost = aot.Memory(1, 2, 3, 4), hlo.Cost(10**6, [], 0)
  done = aot.Compiled(memory, cost, 0.0)
  monkeypatch.setattr(aot, "compile_step", lambda built, progress: next(verdicts) or done)
  config = tiny.config().to_dict()
  topology = chips.parse("cpu:8")
  found = search.search(config, topology, chips.devices(topology), 1, aot.Progress())
  assert found[0].compiled and found[0].fits and found[0].peak == 1 + 2 + 3 + 4
  assert found[-1].compiled and not found[-1].fits and found[-1].peak == 2**40
  assert not any(c.compiled for c in found[1:-1])


def test_attention_of_a_gpu_keeps_no_scores():
  from big_vision_like.layers import attention

  shape = jax.ShapeDtypeStruct((2, 32, 4, 64), "bfloat16")
  plain = attention.attention

  def kept():
    fn = lambda q, k, v: jax.vjp(lambda *x: attention.attention(*x).sum(), q, k, v)[1]
    leaves = jax.tree.leaves(jax.eval_shape(fn, shape, shape, shape))
    return max(x.size for x in leaves)

  with estimate.kernels_of("tpu"):
    assert attention.attention is plain
  with estimate.kernels_of("gpu"):
    assert kept() == shape.size
  assert attention.attention is plain and kept() >= 2 * 4 * 32 * 32


# -------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
  "args, message",
  [
    ((), "--config is missing"),
    (SMALL, "--topology is missing"),
    ((*SMALL, "--topology", "v5x:16x16"), "did you mean v5"),
    ((*SMALL, "--topology", "v5e"), "such as v5e:4x8"),
    ((*SMALL, "--topology", "v5e:4x4x4"), "expected v5e:2 dimension"),
    ((*SMALL, "--topology", "h100:64"), "nodes x GPUs"),
    ((*SMALL, "--topology", "h100:4x8", "--slices", "2"), "--slices is for TPUs"),
    ((*SMALL, "--topology", "v5e:4x4", "--slices", "0"), "--slices = 0"),
    ((*SMALL, "--topology", "cpu:512"), "JAX_NUM_CPU_DEVICES=512"),
    ((*SMALL, "--topology", "h100:4x8", "--config.input.batch_size=33"), "does not divide"),
    ((*SMALL, "--topology", "h100:4x8", "--config.mesh.tensor=3"), "does not use all 32"),
    ((*SMALL, "--topology", "h100:4x8", "--config.optim.lrr=1"), "lr"),
    ((*SMALL, "--topolgy", "h100:4x8"), "topolgy"),
    ((*SMALL, "v5e:16x16"), "unknown argument 'v5e:16x16'"),
  ],
)
def test_mistakes(args, message, command):
  with pytest.raises(UserError) as e:
    command(*args)
  assert message in str(e.value)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_it_says_what_to_install(command):
  with pytest.raises(UserError, match=r'pip install -e "\.\[tpu\]"'):
    command(*SMALL, "--topology", "v5e:4x4")


# ------------------------------------------------------------------------------------------ TPUs


@TPU
def test_tpu_compile(command, capsys):
  assert command(*SMALL, "--topology", "v5e:2x4", "--json") == 0
  plan = printed(capsys)
  assert plan["compiled"] and plan["memory"]["fits"] and plan["loops_of_unknown_length"] == 0
  assert plan["chip"]["name"] == "v5e" and plan["collectives"]


@TPU
@pytest.mark.slow  # a minute or more each
@pytest.mark.parametrize(
  "name, topology",
  [
    ("classify", "v5e:4x4"),
    ("clip", "v5p:4x4x4"),
    ("coca", "v5p:4x4x4"),
    ("context_encoder", "v5e:2x4"),
    ("ddpm", "v4:2x2x4"),
    ("dino", "v6e:4x4"),
    ("dreamfusion", "v5e:1x1"),
    ("linear_probe", "v5e:4x4"),
    ("mae", "v5p:4x4x4"),
    ("moco", "v5e:2x4"),
    ("siglip", "v5e:16x16"),
  ],
)
def test_every_default_compiles_or_is_told_not_to_fit(name, topology):
  prepare()
  config = importlib.import_module(f"configs.{name}").get_config().to_dict()
  parsed = chips.parse(topology)
  plan = report.make(config, parsed, chips.devices(parsed), aot.Progress())
  print(report.render(plan))  # pytest -s shows it
  assert plan["compiled"] or plan["memory"]["peak"] > plan["memory"]["limit"]


@TPU
@pytest.mark.slow
def test_the_loss_alone_stays_flat_up_to_a_million():
  """1,024 pairs a chip on 16 to 1,024 chips: temporaries of value and gradient do not grow."""
  prepare()
  sizes = []
  for topology in ("v5p:2x2x4", "v5p:4x4x4", "v5p:8x8x16"):
    parsed = chips.parse(topology)
    config = importlib.import_module("configs.siglip").get_config().to_dict()
    config["input"]["batch_size"] = 1024 * parsed.size
    mesh = report.make_mesh(config, parsed, chips.devices(parsed))
    built = trainer.build(config, num_examples=None, mesh=mesh)
    sizes.append(aot.compile_loss(built, aot.Progress()).memory.temporaries)
    print(f"{topology} batch {1024 * parsed.size:,}: {report.size(sizes[-1])}")
  embeddings = 2 * 1024 * 768 * 4  # images and texts of one chip
  assert max(sizes) <= 1.02 * min(sizes) and max(sizes) <= 3 * embeddings
