"""`plan`: what is read from a compiled text, the roofline, the search, what is stored, the command, what is refused."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import make_config
from jax.sharding import AxisType, PartitionSpec

from idrid_jax import cli
from idrid_jax.errors import UserError
from idrid_jax.models import build_networks, convolution
from idrid_jax.plan import collectives, hlo, largest, roofline, run, store, target, topology, traffic
from idrid_jax.plan import compile as compile_lib
from idrid_jax.training import build

ROOT = Path(__file__).parents[1]
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu: bash launch/install.sh tpu-plan")


# -- Exchanges, read from a text written by hand in the forms that XLA's compilers use

TEXT = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}, num_partitions=8

FileNames
1 "all-reduce(x).py"

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%wrapped (p: f32[16,4]) -> f32[2,4] {
  %p = f32[16,4]{1,0} parameter(0)
  ROOT %rs = f32[2,4]{1,0} reduce-scatter(%p), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0}) parameter(0)
  %v = f32[10]{0} get-tuple-element(%s), index=1
  %in = f32[10]{0} all-reduce(%v), channel_id=4, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[10]{0}) tuple(%v, %in)
}

%condition (s.1: (s32[], f32[10])) -> pred[] {
  %s.1 = (s32[], f32[10]{0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

%fused (q: bf16[4,8]) -> bf16[32,8] {
  %q = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag = bf16[32,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%q), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
}

%never (r: f32[999]) -> f32[999] {
  %r = f32[999]{0} parameter(0)
  ROOT %dead = f32[999]{0} all-reduce(%r), channel_id=99, replica_groups={}, to_apply=%add
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0:T(8,128)} parameter(0)
  %both = (f32[8,16]{1,0:T(8,128)}, bf16[6]{0}) all-reduce(%x, %y), channel_id=1, replica_groups={}, to_apply=%add
  %start = f32[100]{0} all-reduce-start(%z), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %done = f32[100]{0} all-reduce-done(%start)
  %async = ((f32[16,4]{1,0}), f32[2,4]{1,0}, u32[]{:S(2)}) async-start(%w), calls=%wrapped
  %update = ((f32[16,4]{1,0}), f32[2,4]{1,0}, u32[]{:S(2)}) async-update(%async), calls=%wrapped
  %end = f32[2,4]{1,0} async-done(%update), calls=%wrapped
  %gather = (f32[3]{0}, f32[24]{0}) all-gather-start(%g), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %gathered = f32[24]{0} all-gather-done(%gather)
  %halo = (u8[2,5]{1,0}, u8[2,5]{1,0}, u32[], u32[]) collective-permute-start(%h), source_target_pairs={{0,1},{1,2}}
  %moved = u8[2,5]{1,0} collective-permute-done(%halo)
  %still = u8[7]{0} collective-permute(%h), channel_id=7, source_target_pairs={{0,0}}
  %turned = (f32[2]{0}, /*index=1*/f32[2]{0}) all-to-all(%k, %l), channel_id=8, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %alone = f32[50]{0} all-reduce(%m), channel_id=10, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %five = (s32[], f32[10]{0}) while(%n), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %fusion = bf16[32,8]{1,0} fusion(%o), kind=kCustom, calls=%fused, metadata={op_name="all-reduce(%x)"}
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%both), index=0
}
"""


def test_exchanges_of_a_text_are_counted_once_with_their_bytes():
    found = [(one.kind, one.bytes, one.members, one.times) for one in collectives.read(hlo.parse(TEXT), 8)]
    assert sorted(found) == sorted(
        [
            ("all-reduce", 8 * 16 * 4 + 6 * 2, 8, 1),
            ("all-reduce", 400, 4, 1),
            ("reduce-scatter", 16 * 4 * 4, 8, 1),
            ("all-reduce", 40, 4, 5),
            ("all-gather", 24 * 4, 8, 1),
            ("collective-permute", 10, 2, 1),
            ("all-to-all", 16, 2, 1),
            ("all-gather", 32 * 8 * 2, 8, 1),
        ]
    )
    told = collectives.summary(collectives.read(hlo.parse(TEXT), 8))
    assert told["all-reduce"]["count"] == 7
    assert told["all-reduce"]["bytes"] == 524 + 400 + 5 * 40
    assert told["all-reduce"]["wire_bytes"] == pytest.approx(2 * 7 / 8 * 524 + 2 * 3 / 4 * 400 + 5 * 2 * 3 / 4 * 40)
    assert told["reduce-scatter"]["wire_bytes"] == pytest.approx(7 / 8 * 256)
    assert told["all-gather"]["wire_bytes"] == pytest.approx(7 / 8 * (96 + 512))
    assert told["all-to-all"]["wire_bytes"] == 8 and told["collective-permute"]["wire_bytes"] == 10


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    text = TEXT.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    assert [one.times for one in collectives.read(hlo.parse(text), 8) if not one.known] == [1]


def test_what_is_no_module_is_no_answer():
    with pytest.raises(ValueError, match="no optimized HLO module"):
        hlo.parse("nothing")


# -- Main memory's traffic, by hand

TRAFFIC = """
HloModule jit_step, is_scheduled=true

%picked (p: u8[100,8], i: s32[2]) -> u8[2,8] {
  %p = u8[100,8]{1,0} parameter(0)
  %i = s32[2]{0} parameter(1)
  ROOT %g = u8[2,8]{1,0} gather(%p, %i), offset_dims={1}, collapsed_slice_dims={0}, slice_sizes={1,8}
}

%body (s: (s32[], f32[10])) -> (s32[], f32[10]) {
  %s = (s32[], f32[10]{0:S(1)}) parameter(0)
  %v = f32[10]{0:S(1)} get-tuple-element(%s), index=1
  %w = f32[10]{0} negate(%v)
  ROOT %t = (s32[], f32[10]{0}) tuple(%v, %w)
}

ENTRY %main (x: f32[50], y: u8[100,8]) -> f32[50] {
  %x = f32[50]{0:T(128)} parameter(0)
  %y = u8[100,8]{1,0} parameter(1)
  %near = s32[2]{0:S(1)} custom-call(), custom_call_target="index"
  %in = (f32[50]{0:T(128)S(1)}, f32[50]{0:T(128)}, u32[]{:S(2)}) copy-start(%x)
  %there = f32[50]{0:T(128)S(1)} copy-done(%in)
  %work = (f32[50]{0:T(128)S(1)}, f32[4]{0}) custom-call(%there, %there), custom_call_target="work"
  %part = ((f32[50]{0}), f32[5]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:5]}
  %parted = f32[5]{0:S(1)} slice-done(%part)
  %some = u8[2,8]{1,0} fusion(%y, %near), kind=kLoop, calls=%picked
  %loop = (s32[], f32[10]{0:S(1)}) while(%n), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %square = f32[50]{0} multiply(%x, %x)
}
"""


def test_what_stays_on_the_chip_costs_no_traffic():
    copied_in, worked, part, gathered, loop, square = 200, 16, 20, 2 * 16, 3 * 40, 2 * 200
    assert traffic.read(hlo.parse(TRAFFIC)) == copied_in + worked + part + gathered + loop + square


# -- and from what the CPU's compiler makes of known exchanges


def exchanged(function, inside, outside, *shapes):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=inside, out_specs=outside, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    text = jax.jit(mapped).lower(*arguments).compile().as_text()
    return {
        kind: (said["count"], said["bytes"], said["wire_bytes"])
        for kind, said in collectives.summary(collectives.read(hlo.parse(text), 8)).items()
    }


D, WHOLE = PartitionSpec("d"), PartitionSpec()


@pytest.mark.parametrize(
    "function, inside, outside, shape, kind, size, wire",
    [
        (lambda x: jax.lax.psum(x, "d"), D, WHOLE, (8, 1000), "all-reduce", 4000, 2 * 7 / 8 * 4000),
        (lambda x: jax.lax.all_gather(x, "d"), D, WHOLE, (8, 30), "all-gather", 960, 7 / 8 * 960),
        (
            lambda x: jax.lax.psum_scatter(x, "d", scatter_dimension=1, tiled=True),
            D,
            PartitionSpec(None, "d"),
            (8, 64),
            "reduce-scatter",
            256,
            7 / 8 * 256,
        ),
        (lambda x: jax.lax.ppermute(x, "d", [(0, 1), (1, 0)]), D, D, (8, 50), "collective-permute", 200, 200),
        (lambda x: jax.lax.all_to_all(x, "d", 1, 1), D, D, (8, 8, 16), "all-to-all", 512, 7 / 8 * 512),
    ],
    ids=["psum", "all_gather", "psum_scatter", "ppermute", "all_to_all"],
)
def test_exchanges_that_the_compiler_made(function, inside, outside, shape, kind, size, wire):
    assert exchanged(function, inside, outside, shape) == {kind: (1, size, pytest.approx(wire))}


def test_an_exchange_in_a_scan_counts_for_every_turn():
    def many(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "d")), None), x, length=6)[0]

    assert exchanged(many, D, D, (8, 25)) == {"all-reduce": (6, 600, pytest.approx(6 * 2 * 7 / 8 * 100))}


# -- The step that train runs


def params_bytes(name):
    init = build.make_update(make_config("", name), *build_networks(make_config("", name)))[1]
    state = jax.eval_shape(init, jax.random.key(0))
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return size((state.g.params, state.d.params)), size((state.g.stats, state.d.stats)), size(state)


def command(*words, **environment):
    """`idrid-jax plan` in a process of its own -> exit status, JSON rows, what people read, stderr."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    done = subprocess.run(
        [sys.executable, "-m", "idrid_jax", "plan", *words],
        env=env | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    lines = done.stdout.splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("{")]
    return done.returncode, rows, "\n".join(line for line in lines if not line.startswith("{")), done.stderr


DCGAN28 = "--config=configs/dcgan28.py"


def test_the_gradients_are_reduced_once():
    """With plain convolutions, as a TPU has them: what eight devices exchange is every parameter's gradient, and the
    sums of BatchNorm and of the metrics."""
    config = run.prepared(make_config("", "dcgan28", mesh__data=-1, batch_size=16), [])
    with convolution.lowering("native"):
        facts = compile_lib.facts(config, target.of_devices(8).mesh(config))
    params, stats, _ = params_bytes("dcgan28")
    d_params = 212_865 * 4  # real and fake images pass D apart: its gradient may be summed before or after
    assert set(facts.collectives) == {"all-reduce"} and facts.loops == 0
    assert params < facts.collectives["all-reduce"]["bytes"] <= params + d_params + 4 * stats + 1000


def test_split_rows_exchange_halos_and_a_split_state_is_gathered():
    """Halos are little beside the gradients, and small layers are gathered whole; under fsdp a device holds an eighth
    of the state, and what it lacks of parameters comes to it."""
    def facts(**layout):
        layout = {f"mesh__{name}": value for name, value in layout.items()}
        config = run.prepared(make_config("", "dcgan64", batch_size=8, **{"mesh__data": -1} | layout), [])
        with convolution.lowering("native"):
            return compile_lib.facts(config, target.of_devices(8).mesh(config))

    params, _, state = params_bytes("dcgan64")
    rows, split = facts(rows=4), facts(fsdp=True)
    assert set(rows.collectives) == {"all-reduce", "all-gather", "collective-permute"} and rows.loops == 0
    assert rows.collectives["all-reduce"]["bytes"] > params
    assert 0 < rows.collectives["collective-permute"]["bytes"] < params / 10
    assert rows.collectives["all-gather"]["bytes"] < params / 5
    assert set(split.collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert split.collectives["all-gather"]["bytes"] > 0.5 * params
    assert state / 8 <= split.memory["state"] < 1.1 * state / 8


def test_dcgan28_on_eight_devices_and_again_from_disk(tmp_path):
    """The second call compiles nothing."""
    words = (DCGAN28, "--devices=8", "--batch=64", "--nolargest")
    quick = {"XDG_CACHE_HOME": str(tmp_path), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    code, (row,), page, err = command(*words, **quick)
    assert code == 0, err
    params, _, state = params_bytes("dcgan28")
    reduced = row["collectives"]["all-reduce"]
    # Some of a CPU's convolutions (Winograd's) sum their kernels' gradients in a larger form
    assert params < reduced["bytes"] < 3 * params
    assert reduced["wire_bytes"] == pytest.approx(2 * 7 / 8 * reduced["bytes"])
    assert row["memory_by_kind"]["state"] == state
    assert row["memory_by_kind"]["photographs"] == 406 * 28 * 28  # it has no use for grades
    assert row["memory_bytes"] == sum(row["memory_by_kind"].values())
    assert row["chips"] == 8 and row["fits"] and row["roofline"] is None
    assert "fits" in page and "all-reduce" in page and "images/s" not in page
    assert ": compiling" in err and "as compiled before" not in err

    code, (again,), page_again, err = command(*words, **quick)
    row.pop("memory_limit_bytes"), again.pop("memory_limit_bytes")  # what the system could give now
    assert code == 0 and again == row and page_again.count("\n") == page.count("\n")
    assert ": compiling" not in err and "as compiled before" in err


def test_what_does_not_fit_is_refused_with_what_does(tiny, monkeypatch, tmp_path, capsys):
    """One line, and the batch that it names is the largest: one more a device needs more than is there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(target.memory, "available", lambda devices: 2**22)
    config = make_config("", "tiny", mesh__data=-1, batch_size=2**15)
    with pytest.raises(UserError) as refused:
        run.one(config, devices=8)
    line = str(refused.value)
    assert line.startswith("config.batch_size = 32768: tiny in float32 does not fit 8 x cpu: ")
    assert "\n" not in line and "largest batch known to fit" in line
    batch = int(line.rpartition(" ")[2])
    row = json.loads(capsys.readouterr().out)
    assert not row["fits"] and row["largest_batch"] == batch and batch % 8 == 0
    here = target.of_devices(8)
    need = lambda batch: here.facts(run._with_batch(run.prepared(config, []), batch)).needed
    assert need(batch) <= 2**22 < need(row["refused_batch"]) and batch > 2000


def test_a_mesh_is_taken_and_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = make_config("", "tiny", mesh__data=-1, batch_size=8)
    shape = lambda *words: dict(target.of_devices(8).mesh(run.prepared(config, words)).shape)
    assert shape() == {"data": 8, "rows": 1} and shape("data=4", "rows=2") == {"data": 4, "rows": 2}
    assert config.mesh.data == -1  # it is a copy that changes
    for words, message in (
        (["row=2"], "--mesh row=2: no field 'row'; did you mean rows?"),
        (["rows=two"], "--mesh rows=two: rows takes a whole number"),
        (["fsdp=2"], "--mesh fsdp=2: fsdp takes true or false"),
        (["data=16"], "config.mesh.data = 16: 8 devices are there"),
    ):
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            shape(*words)
    with pytest.raises(UserError, match="config.batch_size = 12 is not divisible by 8 devices"):
        run.one(config, devices=8, batch=12)


# -- What is stored


def test_what_was_said_is_not_asked_again(tiny, monkeypatch, tmp_path):
    """Only for the same step: another batch, network, mesh, target, version or source is asked anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = []
    said = compile_lib.Facts(True, 100, {"state": 100}, 1.0, 2.0, 3.0, {}, 0, 0.5)
    monkeypatch.setattr(
        target.compile_lib, "facts", lambda config, mesh, effort: asked.append(config.batch_size) or said
    )
    here = target.of_devices(8)
    config = run.prepared(make_config("", "tiny", mesh__data=-1), [])
    assert here.facts(config) == said == here.facts(config) and asked == [8]
    config.total_kimg, config.seed = 5.0, 3  # of no consequence for the step
    here.facts(config)
    assert asked == [8]
    config.batch_size = 16
    here.facts(config)
    assert asked == [8, 16]
    config.mesh.data = 4
    here.facts(config)
    dataclasses.replace(here, name="other").facts(config)
    dataclasses.replace(here, compiler="libtpu 9").facts(config)
    dataclasses.replace(here, effort="low").facts(config)
    monkeypatch.setattr(jax, "__version__", "99")
    here.facts(config)
    monkeypatch.setattr(store, "source", lambda: "another")
    here.facts(config)
    assert asked == [8] + [16] * 7
    here.facts(config, fresh=True)
    assert len(asked) == 9
    for path in store.folder().iterdir():
        path.write_text('{"half')
    here.facts(config)
    assert len(asked) == 10


def test_the_source_of_the_step_is_in_the_key(monkeypatch, tmp_path):
    before = store.source()
    copy = tmp_path / "idrid_jax"
    for pattern in store.SOURCES:
        paths = list((ROOT / "idrid_jax").glob(pattern))
        assert paths, pattern
        for path in paths:
            there = copy / path.relative_to(ROOT / "idrid_jax")
            there.parent.mkdir(parents=True, exist_ok=True)
            there.write_bytes(path.read_bytes())
    monkeypatch.setattr(store.idrid_jax, "__file__", str(copy / "__init__.py"))
    assert store.source() == before
    with (copy / "training/step.py").open("a") as file:
        file.write("\n")
    assert store.source() != before


def test_a_folder_that_cannot_be_written_is_no_obstacle(tiny, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = compile_lib.Facts(True, 100, {}, 1.0, 2.0, 3.0, {}, 0, 0.5)
    monkeypatch.setattr(target.compile_lib, "facts", lambda config, mesh, effort: said)
    assert target.of_devices(8).facts(run.prepared(make_config("", "tiny", mesh__data=-1), [])) == said


# -- The search


@dataclasses.dataclass
class Compiler:
    """A step that needs fixed + slope * batch bytes: what a search asks of it. With `saves` it computes again what does
    not fit, up to so much; it may refuse with a figure or without."""

    fixed: int
    slope: int
    limit: int
    saves: float = 1.0
    tells: bool = True
    asked: list = dataclasses.field(default_factory=list)

    def __call__(self, batch):
        self.asked.append(batch)
        needed = self.fixed + self.slope * batch
        fits = self.fixed + self.slope * batch / self.saves <= self.limit
        needed = min(needed, self.limit) if fits else needed
        memory = {"temporaries": needed - self.fixed} if fits else {}
        return compile_lib.Facts(fits, needed if fits or self.tells else None, memory, 0, 0, 0, {}, 0, 0)


@pytest.mark.parametrize("start", [8, 800, 80_000])
@pytest.mark.parametrize("tells", [True, False])
def test_the_search_ends_near_the_limit(start, tells):
    compiler = Compiler(fixed=1000, slope=7, limit=16_000, tells=tells)
    found = largest.search(compiler, compiler.limit, start=start, step=8)
    fits = (16_000 - 1000) / 7
    assert found.batch % 8 == 0 and found.batch <= fits and len(compiler.asked) <= 1 + largest.TRIES
    assert not found.refused or found.refused > fits
    for i, batch in enumerate(compiler.asked):  # nothing beyond what was refused already, or below what fits
        before = compiler.asked[:i]
        assert all((batch < other) if other > fits else (batch > other) for other in before)
    if tells:
        assert found.batch >= 0.85 * fits
    if start == 8:
        assert compiler.asked[1:] == [found.batch]  # the first answer says it all


def test_the_search_stops_where_memory_is_full():
    compiler = Compiler(fixed=0, slope=1, limit=1000, saves=3.0)
    found = largest.search(compiler, 1000, start=990, step=1)
    assert found.batch == 990 and compiler.asked == [990] and found.refused == 0


def test_nothing_fits():
    compiler = Compiler(fixed=2000, slope=1, limit=1000)
    assert largest.search(compiler, 1000, start=64, step=8).batch == 0
    assert len(compiler.asked) <= 1 + largest.TRIES


# -- Slices and the roofline, by hand


def test_links_of_slices():
    rate = lambda name: topology.parse(name).wire_rate
    assert rate("v5e:1x1") == 0
    assert rate("v5e:4x4") == 2 * 50e9 and rate("v5e:8x16") == 3 * 50e9
    assert rate("v5e:16x16") * 256 == 51.2e12  # the published all-reduce rate of a pod
    assert rate("v6e:16x16") * 256 == 102.4e12
    assert rate("v5p:2x2x4") == 3 * 100e9 and rate("v5p:4x4x4") == 6 * 100e9 and rate("v5p:2x2x1") == 2 * 100e9


def test_every_size_of_the_table_is_a_slice():
    for kind in topology.CHIPS:
        assert [topology.of_size(kind, chips).size for chips in run.SIZES] == list(run.SIZES)


def test_the_roofline_is_arithmetic():
    line = roofline.of(topology.parse("v5e:2x2"), flops=197e9, memory_bytes=819e6 * 3, wire_bytes=100e6)
    assert (line.compute_s, line.memory_s, line.interconnect_s) == pytest.approx((1e-3, 3e-3, 1e-3))
    assert line.least_s == pytest.approx(3e-3) and line.serial_s == pytest.approx(5e-3) and line.bound == "memory"
    alone = roofline.of(topology.parse("v6e:1x1"), flops=918e12, memory_bytes=0, wire_bytes=0)
    assert (alone.least_s, alone.interconnect_s, alone.bound) == (1, 0, "compute")


def test_a_compiler_s_refusal_is_read():
    assert compile_lib.refused("... required for HLO temporaries (1.50G) exceeds available HBM (15.75G).") == 3 * 2**29
    assert compile_lib.refused("Ran out of memory. Used 20.25G of 15.75G hbm. Exceeded by 4.5G.") == int(20.25 * 2**30)
    assert compile_lib.refused("no figures") is None


# -- What is refused, in one line


@pytest.mark.parametrize(
    "words, message",
    [
        (["--topology=v5e:3x5"], "no such slice of v5e; there are v5e:1x1, v5e:2x2, v5e:2x4, v5e:4x4"),
        (["--topology=v9:2x2"], "--topology v9:2x2: no such chip; there are v5e, v5p, v6e"),
        (["--topology=pod"], "--topology pod: no such chip"),
        ([], "say what to plan for: --topology v5e:16x16, or --devices 8, or --scaling all"),
        (["--topology=v5e:2x2", "--devices=8"], "one of them"),
        (["--topology=v5e:2x2", "--batch=8", "--per_chip=8"], "--batch and --per_chip exclude each other"),
        (["--scaling=v7"], "--scaling v7: no such chip"),
        (["--scaling=all", "--batch=8"], "--scaling and --batch exclude each other; take --per_chip"),
        (["--scaling=v5p", "--chips=5"], "--chips 5: there is no such slice of v5p; there are those of 1, 4, 8, 16"),
        (["--scaling=v5p", "--chips=one"], "--chips one: give whole numbers"),
        (["--devices=8", "--out=x.png"], "--out goes with --scaling"),
        (["--devices=9"], "--devices 9: 8 cpu devices are here"),
    ],
)
def test_a_mistake_is_one_line(words, message, capsys):
    assert len(jax.devices()) == 8  # JAX has counted them before the command does
    assert cli.main(["plan", f"--config={ROOT / 'configs/dcgan28.py'}", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_without_libtpu_the_extra_is_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a))
    for words in (["--topology=v5e:2x2"], ["--scaling=all"]):
        assert cli.main(["plan", f"--config={ROOT / 'configs/dcgan28.py'}", *words]) == 2
        err = capsys.readouterr().err
        assert "needs libtpu" in err and "install.sh tpu-plan" in err and "v5e:2x2" not in err.split(":")[1]
    assert "tpu-plan = [" in (ROOT / "pyproject.toml").read_text()


def test_without_a_configuration(capsys):
    assert cli.main(["plan", "--devices=8"]) == 2
    assert "--config is missing" in capsys.readouterr().err


# -- With the TPU's compiler


@needs_libtpu
def test_dcgan28_on_four_chips(tmp_path):
    code, (row,), page, err = command(DCGAN28, "--topology=v5e:2x2", "--per_chip=8", "--nolargest",
                                      XDG_CACHE_HOME=str(tmp_path))  # fmt: skip
    assert code == 0, err
    params, stats, state = params_bytes("dcgan28")
    reduced = row["collectives"]["all-reduce"]
    assert params < reduced["bytes"] < 1.1 * params + 4 * stats
    assert row["batch"] == 32 and row["memory_by_kind"]["state"] == state
    line = row["roofline"]
    assert row["main_memory_bytes"] < row["bytes_touched"] and line["memory_s"] == pytest.approx(
        row["main_memory_bytes"] / 819e9
    )
    assert line["compute_s"] == pytest.approx(row["flops"] / 197e12)
    assert line["interconnect_s"] == pytest.approx(row["wire_bytes"] / 100e9)
    assert row["images_per_s_roofline"] == pytest.approx(
        32 / max(line[f"{x}_s"] for x in ("compute", "memory", "interconnect"))
    )
    assert "published peaks" in page and "nothing was measured" in page and "optimal" not in page


@needs_libtpu
def test_a_table_and_a_picture(tmp_path, monkeypatch):
    out = tmp_path / "scaling.png"
    words = ("--scaling=v5e", "--chips=1,256", "--per_chip=8", "--nolargest", f"--out={out}")
    code, rows, table, err = command(DCGAN28, *words, XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, err
    assert [row["chips"] for row in rows] == [1, 256] and all(row["fits"] for row in rows)
    assert rows[0]["collectives"] == {} and rows[-1]["batch"] == 2048
    assert out.read_bytes().startswith(b"\x89PNG") and "v5e:16x16" in table
    # weak scaling: what a chip computes does not grow
    assert all(row["flops"] == pytest.approx(rows[0]["flops"], rel=0.1) for row in rows)


@needs_libtpu
def test_too_large_for_a_chip_is_refused_with_what_fits(tmp_path):
    code, (row,), page, err = command(DCGAN28, "--topology=v5e:1x1", "--batch=200000", XDG_CACHE_HOME=str(tmp_path))
    assert code == 2 and not page.strip() and "Traceback" not in err
    line = err.splitlines()[-1]
    assert "does not fit v5e:1x1" in line and f"largest batch known to fit is {row['largest_batch']}" in line
    assert 0 < row["largest_batch"] < 200_000
