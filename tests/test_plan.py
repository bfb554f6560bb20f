"""`plan`: collectives of a compiled program, roofline, cache, batch per chip, what does not fit, and the command."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from conftest import make_config
from jax.sharding import AxisType, PartitionSpec

from idrid_jax import cli
from idrid_jax.bench import memory
from idrid_jax.errors import UserError
from idrid_jax.models import NETWORKS
from idrid_jax.plan import cache, run, topology
from idrid_jax.plan import compile as compile_lib
from idrid_jax.plan import target as target_lib
from idrid_jax.plan.collectives import summarize_collectives
from idrid_jax.training import sharding

ROOT = Path(__file__).parents[1]
LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="needs libtpu: bash launch/install.sh tpu-plan")
TINY = """
from idrid_jax.config import default_config

def get_config():
    config = default_config()
    config.network, config.batch_size = "tiny", 4
    return config
"""
STATS = compile_lib.CompiledStats(True, 100, {"state": 100, "temporaries": 0}, 1.0, 2.0, {}, 0, 0.5)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def plan(tiny, tmp_path, capsys):
    """Runs `idrid-jax plan` on the tiny network at batch size 4; returns status, rows, text and stderr."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)

    def command(*arguments):
        capsys.readouterr()
        status = cli.main(["plan", f"--config={path}", *arguments])
        out, err = capsys.readouterr()
        lines = out.splitlines()
        rows = [json.loads(line) for line in lines if line.startswith("{")]
        return status, rows, "\n".join(line for line in lines if not line.startswith("{")), err

    return command


@pytest.fixture
def slices(monkeypatch):
    """TPU slices without a TPU compiler: the mesh is checked, and memory grows with a chip's share of the batch."""

    def mesh(self, config):
        shards = run.num_shards(config, self.num_chips)
        sharding.check_divisible(config.batch_size, NETWORKS[config.network].size, shards, config.mesh.rows)
        return shards

    def compile_stats(config, shards, effort):
        kinds = {"state": 2**20, "temporaries": 2**20 * config.batch_size // shards}
        reduced = {"all-reduce": {"count": 1, "bytes": 10**6, "interconnect_bytes": 2e6}} if shards > 1 else {}
        fits = sum(kinds.values()) < 2**40
        return compile_lib.CompiledStats(fits, sum(kinds.values()), kinds, 1e12, 5e9, reduced, 0, 0.5)

    monkeypatch.setattr(target_lib, "compiler_version", lambda: "libtpu 0")
    monkeypatch.setattr(target_lib.Target, "mesh", mesh)
    monkeypatch.setattr(compile_lib, "compile_stats", compile_stats)


# Collectives, from a module written by hand in the forms that XLA's compilers use

HLO = """
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


def test_collectives_of_a_module_are_counted_once_with_their_bytes():
    found, in_unknown_loops = summarize_collectives(HLO, 8)
    all_reduce = {"count": 7, "bytes": 524 + 400 + 5 * 40}  # five in the loop
    all_reduce["interconnect_bytes"] = pytest.approx(2 * 7 / 8 * 524 + 2 * 3 / 4 * 400 + 5 * 2 * 3 / 4 * 40)
    assert in_unknown_loops == 0 and found == {
        "all-gather": {
            "count": 2,
            "bytes": 24 * 4 + 32 * 8 * 2,
            "interconnect_bytes": pytest.approx(7 / 8 * (96 + 512)),
        },
        "all-reduce": all_reduce,
        "all-to-all": {"count": 1, "bytes": 16, "interconnect_bytes": 8},
        "collective-permute": {"count": 1, "bytes": 10, "interconnect_bytes": 10},
        "reduce-scatter": {"count": 1, "bytes": 16 * 4 * 4, "interconnect_bytes": pytest.approx(7 / 8 * 256)},
    }


def test_a_collective_in_a_loop_of_unknown_length_counts_once():
    text = HLO.replace(', backend_config={"known_trip_count":{"n":"5"}}', "")
    found, in_unknown_loops = summarize_collectives(text, 8)
    assert in_unknown_loops == 1 and found["all-reduce"]["count"] == 3


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError):
        summarize_collectives("nothing", 8)


# Collectives, from what the CPU's compiler makes of known ones


def compiled_collectives(function, in_specs, out_specs, shape):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    text = jax.jit(mapped).lower(jax.ShapeDtypeStruct(shape, jnp.float32)).compile().as_text()
    found, _ = summarize_collectives(text, 8)
    return {
        kind: (figures["count"], figures["bytes"], figures["interconnect_bytes"]) for kind, figures in found.items()
    }


SPLIT, WHOLE = PartitionSpec("d"), PartitionSpec()


@pytest.mark.parametrize(
    "function, out_specs, shape, kind, size, wire",
    [
        (lambda x: jax.lax.psum(x, "d"), WHOLE, (8, 1000), "all-reduce", 4000, 2 * 7 / 8 * 4000),
        (lambda x: jax.lax.all_gather(x, "d"), WHOLE, (8, 30), "all-gather", 960, 7 / 8 * 960),
        (
            lambda x: jax.lax.psum_scatter(x, "d", scatter_dimension=1, tiled=True),
            PartitionSpec(None, "d"),
            (8, 64),
            "reduce-scatter",
            256,
            7 / 8 * 256,
        ),
        (lambda x: jax.lax.ppermute(x, "d", [(0, 1), (1, 0)]), SPLIT, (8, 50), "collective-permute", 200, 200),
        (lambda x: jax.lax.all_to_all(x, "d", 1, 1), SPLIT, (8, 8, 16), "all-to-all", 512, 7 / 8 * 512),
    ],
    ids=["psum", "all_gather", "psum_scatter", "ppermute", "all_to_all"],
)
def test_collectives_that_the_compiler_made(function, out_specs, shape, kind, size, wire):
    found = compiled_collectives(function, SPLIT, out_specs, shape)
    assert found == {kind: (1, size, pytest.approx(wire))}


def test_a_collective_in_a_scan_counts_for_every_iteration():
    def loop(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.psum(x, "d")), None), x, length=6)[0]

    found = compiled_collectives(loop, SPLIT, SPLIT, (8, 25))
    assert found == {"all-reduce": (6, 600, pytest.approx(6 * 2 * 7 / 8 * 100))}


# The train step


def state_bytes(config):
    """Bytes of (parameters, statistics, all of the state)."""
    mesh = target_lib.local_target(8).mesh(config)
    _, state, _ = compile_lib.train_step.abstract_train_step(config, mesh)
    size = lambda tree: sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return size((state.g.params, state.d.params)), size((state.g.stats, state.d.stats)), size(state)


def test_gradients_are_reduced_once_and_memory_adds_up():
    """Eight devices exchange every parameter's gradient and the sums of BatchNorm and of the metrics."""
    config = run.prepared_config(make_config("", "dcgan28", mesh__data=8, batch_size=16), [])
    mesh = target_lib.local_target(8).mesh(config)
    stats = compile_lib.compile_stats(config, mesh)
    params, statistics, state = state_bytes(config)
    d_params = 212_865 * 4  # real and fake images pass D separately: its gradient may be summed before or after
    assert set(stats.collectives) == {"all-reduce"} and stats.collectives_in_unknown_loops == 0
    reduced = stats.collectives["all-reduce"]
    assert params < reduced["bytes"] <= params + d_params + 4 * statistics + 1000
    assert stats.interconnect_bytes == pytest.approx(2 * 7 / 8 * reduced["bytes"])
    assert stats.memory_by_kind["state"] == state
    assert stats.memory_by_kind["photographs"] == 406 * 28 * 28  # the program drops unused grades
    assert stats.memory_bytes == sum(stats.memory_by_kind.values())
    assert stats.flops > 0 and stats.bytes_accessed > state


@pytest.mark.slow  # two compilations of dcgan64
def test_split_rows_exchange_halos_and_split_parameters_are_gathered():
    def stats(**mesh):
        changes = {f"mesh__{name}": value for name, value in mesh.items()}
        config = run.prepared_config(make_config("", "dcgan64", batch_size=8, **changes), [])
        return compile_lib.compile_stats(config, target_lib.local_target(8).mesh(config)), config

    (rows, _), (split, config) = stats(data=2, rows=4), stats(data=8, fsdp=True)
    params, _, state = state_bytes(config)
    assert set(rows.collectives) == {"all-reduce", "all-gather", "collective-permute"}
    assert rows.collectives["all-reduce"]["bytes"] > params
    assert 0 < rows.collectives["collective-permute"]["bytes"] < params / 10
    assert rows.collectives["all-gather"]["bytes"] < params / 5
    assert set(split.collectives) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert split.collectives["all-gather"]["bytes"] > 0.5 * params
    assert state / 8 <= split.memory_by_kind["state"] < 1.1 * state / 8


# The command


def test_each_chip_gets_the_batch_of_the_configuration(plan):
    """Eight devices and a configuration's batch of 4, which eight devices cannot share."""
    status, (row,), page, err = plan("--devices=8", "--nolargest")
    assert status == 0, err
    assert (row["batch_size"], row["batch_per_chip"], row["num_chips"]) == (32, 4, 8)
    assert "4 images per device (the configuration's batch_size, per chip), 32 in all" in page
    assert row["fits"] and row["roofline"] is None and "all-reduce" in page and "images/s" not in page
    assert ": compiling" in err and "(cached)" not in err
    _, (again,), page_again, err = plan("--devices=8", "--nolargest")
    row.pop("memory_limit_bytes"), again.pop("memory_limit_bytes")  # what the system has free now
    assert again == row and page_again.count("\n") == page.count("\n")
    assert ": compiling" not in err and "(cached)" in err
    _, (row,), page, _ = plan("--devices=8", "--nolargest", "--batch_per_chip=2")
    assert (row["batch_size"], row["batch_per_chip"]) == (16, 2) and "(--batch_per_chip), 16 in all" in page
    _, (row,), page, _ = plan("--devices=8", "--nolargest", "--batch_size=16")
    assert (row["batch_size"], row["batch_per_chip"]) == (16, 2) and "(--batch_size), 16 in all" in page
    status, rows, _, err = plan("--devices=8", "--nolargest", "--batch_size=4")
    assert status == 2 and not rows and "batch_size" in err


def test_a_pod_gets_the_batch_of_the_configuration_on_each_chip(slices, capsys):
    """A configuration's batch of 16, which 256 chips cannot share."""
    config = f"--config={ROOT / 'configs/dcgan1024.py'}"
    assert cli.main(["plan", config, "--topology=v5e:16x16", "--nolargest"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (row["batch_size"], row["batch_per_chip"], row["num_chips"]) == (4096, 16, 256)
    assert cli.main(["plan", config, "--topology=v5e:16x16", "--batch_size=16"]) == 2
    assert "batch_size" in capsys.readouterr().err


def test_a_slice_has_a_roofline(plan, slices):
    status, (row,), page, err = plan("--topology=v5e:2x2", "--nolargest")
    assert status == 0, err
    line = row["roofline"]
    assert line["compute_s"] == pytest.approx(row["flops"] / 197e12)
    assert line["memory_s"] == pytest.approx(row["bytes_accessed"] / 819e9)
    assert line["interconnect_s"] == pytest.approx(row["interconnect_bytes"] / 100e9) and row["interconnect_bytes"] > 0
    times = [line[f"{name}_s"] for name in ("compute", "memory", "interconnect")]
    assert row["images_per_s_roofline"] == pytest.approx(16 / max(times)) and line["serial_s"] == sum(times)
    assert "published peaks" in page and "nothing was measured" in page


def test_weak_scaling_is_a_table_and_a_picture(plan, slices, tmp_path):
    out = tmp_path / "scaling.png"
    status, rows, table, err = plan("--scaling=v5e,v6e", "--chips=1,8", "--nolargest", f"--out={out}")
    assert status == 0, err
    assert [(row["target"], row["batch_size"]) for row in rows] == [
        ("v5e:1x1", 4), ("v5e:2x4", 32), ("v6e:1x1", 4), ("v6e:2x4", 32)
    ]  # fmt: skip
    assert rows[0]["collectives"] == {} and all(row["fits"] for row in rows)
    assert out.read_bytes().startswith(b"\x89PNG") and "v6e:2x4" in table


def test_a_step_that_does_not_fit_is_refused_with_the_largest_that_does(plan, slices):
    status, (row,), _, err = plan("--topology=v5e:2x2", "--batch_size=400000")
    assert status == 2 and not row["fits"] and row["batch_per_chip"] == 100_000
    assert "does not fit v5e:2x2" in err and f"largest batch known to fit is {row['largest_batch_size']}" in err
    chip = 15.75 * 1024 - 1  # images of a MiB beside a state of one
    assert 0.9 * chip < row["largest_batch_size"] / 4 <= chip < row["refused_batch_size"] / 4
    status, (row,), page, _ = plan("--topology=v5e:2x2")
    assert status == 0 and f"largest batch known to fit: {row['largest_batch_size']:,}" in page


def test_the_mesh_can_be_changed(tiny):
    config = make_config("", "tiny", mesh__data=8, batch_size=8)

    def shape(*changes):
        return dict(target_lib.local_target(8).mesh(run.prepared_config(config, changes)).shape)

    assert shape() == {"data": 8, "rows": 1} and shape("data=4", "rows=2") == {"data": 4, "rows": 2}
    assert config.mesh.data == 8  # a copy was changed
    for change, message in (
        ("row=2", "row=2: no field 'row'; did you mean rows"),
        ("rows=two", "rows=two: config.mesh.rows"),
        ("fsdp=2", "fsdp=2: config.mesh.fsdp"),
        ("data=16", "config.mesh.data = 16"),
    ):
        with pytest.raises(UserError, match=message):
            shape(change)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v5e:3x5"], "--topology v5e:3x5"),
        (["--topology=v9:2x2"], "--topology v9:2x2"),
        (["--topology=pod"], "--topology pod"),
        ([], "--topology v5e:16x16, --devices 8 or --scaling all"),
        (["--topology=v5e:2x2", "--devices=8"], "one of them"),
        (["--devices=8", "--batch_size=8", "--batch_per_chip=8"], "--batch_size and --batch_per_chip exclude"),
        (["--scaling=v7"], "--scaling v7"),
        (["--scaling=all", "--batch_size=8"], "choose --batch_per_chip"),
        (["--scaling=v5p", "--chips=5"], "--chips 5"),
        (["--scaling=v5p", "--chips=one"], "--chips one"),
        (["--scaling=v5p", "--chips=1,3", "--mesh=rows=2"], "--mesh rows=2"),
        (["--devices=8", "--out=x.png"], "--out goes with --scaling"),
        (["--devices=9"], "--devices 9"),
    ],
)
def test_a_mistake_is_one_line(arguments, message, plan):
    assert len(jax.devices()) == 8  # JAX has started before the command does
    status, rows, _, err = plan(*arguments)
    assert status == 2 and not rows and message in err and err.count("\n") == 1


def test_without_libtpu_the_extra_is_named(monkeypatch, plan):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a))
    for arguments in (["--topology=v5e:2x2"], ["--scaling=all"]):
        status, _, _, err = plan(*arguments)
        assert status == 2 and "needs libtpu" in err and f"install.sh {topology.EXTRA}" in err
    assert f"{topology.EXTRA} = [" in (ROOT / "pyproject.toml").read_text()


def test_without_a_configuration(capsys):
    assert cli.main(["plan", "--devices=8"]) == 2
    assert "--config is missing" in capsys.readouterr().err


# The cache


def test_only_the_same_step_is_read_from_the_cache(tiny, monkeypatch):
    compiled = []
    monkeypatch.setattr(
        compile_lib, "compile_stats", lambda config, mesh, effort: compiled.append(config.batch_size) or STATS
    )
    target = target_lib.local_target(8)
    config = run.prepared_config(make_config("", "tiny", mesh__data=8), [])
    assert target.compile_stats(config) == STATS == target.compile_stats(config) and compiled == [8]
    config.total_kimg, config.seed = 5.0, 3  # they do not change the step
    target.compile_stats(config)
    assert compiled == [8]
    config.batch_size = 16
    target.compile_stats(config)
    config.mesh.data = 4
    target.compile_stats(config)
    dataclasses.replace(target, name="other").compile_stats(config)
    dataclasses.replace(target, compiler="libtpu 9").compile_stats(config)
    dataclasses.replace(target, effort="low").compile_stats(config)
    monkeypatch.setattr(jax, "__version__", "99")
    target.compile_stats(config)
    monkeypatch.setattr(cache, "source_hash", lambda: "another")
    target.compile_stats(config)
    assert compiled == [8] + [16] * 7
    target.compile_stats(config, use_cache=False)
    for path in cache.cache_folder().iterdir():
        path.write_text('{"half')
    target.compile_stats(config)
    assert len(compiled) == 10


def test_the_source_code_is_in_the_key(monkeypatch, tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "update.py").write_text("a = 1")
    monkeypatch.setattr(cache.idrid_jax, "__file__", str(tmp_path / "__init__.py"))
    before = cache.source_hash()
    (tmp_path / "training" / "update.py").write_text("a = 2")
    assert cache.source_hash() != before


def test_a_cache_that_cannot_be_written_is_not_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache.store("key", STATS)
    assert cache.load("key") is None


# The search for the largest batch


@dataclasses.dataclass
class Compiler:
    """A step that needs fixed + slope * batch bytes. Up to a factor `saves` it recomputes instead of refusing; it may
    report the bytes of what it refuses or not."""

    fixed: int
    slope: int
    limit: int
    saves: float = 1.0
    reports: bool = True
    asked: list = dataclasses.field(default_factory=list)

    def __call__(self, batch_size):
        self.asked.append(batch_size)
        needed = self.fixed + self.slope * batch_size
        if self.fixed + self.slope * batch_size / self.saves <= self.limit:
            return memory.Need(True, min(needed, self.limit), self.fixed)
        return memory.Need(False, needed if self.reports else None)


@pytest.mark.parametrize("start", [8, 800, 80_000])
@pytest.mark.parametrize("reports", [True, False])
def test_the_search_ends_near_the_limit(start, reports):
    compiler = Compiler(fixed=1000, slope=7, limit=16_000, reports=reports)
    found = memory.largest_batch(compiler, compiler.limit, start=start, multiple=8)
    exact = (16_000 - 1000) / 7
    assert found.batch_size % 8 == 0 and found.batch_size <= exact
    assert len(compiler.asked) <= 1 + memory.MAX_COMPILATIONS
    assert not found.refused or found.refused > exact
    for i, size in enumerate(compiler.asked):  # nothing beyond a refused size, or below one that fits
        assert all((size < other) if other > exact else (size > other) for other in compiler.asked[:i])
    if reports:
        assert found.batch_size >= 0.85 * exact
    if start == 8:
        assert compiler.asked[1:] == [found.batch_size]  # the first answer is enough


def test_the_search_stops_where_memory_is_full():
    compiler = Compiler(fixed=0, slope=1, limit=1000, saves=3.0)
    found = memory.largest_batch(compiler, 1000, start=990)
    assert found == memory.LargestBatch(990, 0) and compiler.asked == [990]


def test_a_search_in_which_nothing_fits():
    compiler = Compiler(fixed=2000, slope=1, limit=1000)
    assert memory.largest_batch(compiler, 1000, start=64, multiple=8).batch_size == 0
    assert len(compiler.asked) <= 1 + memory.MAX_COMPILATIONS


# Slices and the roofline


def test_links_of_slices():
    rate = lambda name: topology.parse_topology(name).interconnect_bytes_per_s
    assert rate("v5e:1x1") == 0
    assert rate("v5e:4x4") == 2 * 50e9 and rate("v5e:8x16") == 3 * 50e9
    assert rate("v5e:16x16") * 256 == 51.2e12  # the published all-reduce rate of a pod
    assert rate("v6e:16x16") * 256 == 102.4e12
    assert rate("v5p:2x2x4") == 3 * 100e9 and rate("v5p:4x4x4") == 6 * 100e9 and rate("v5p:2x2x1") == 2 * 100e9


def test_every_size_of_the_scaling_table_is_a_slice():
    for kind in topology.CHIPS:
        for size in run.SCALING_SIZES:
            assert topology.topology_with_chips(kind, size).num_chips == size


def test_the_roofline_is_arithmetic():
    line = topology.roofline(
        topology.parse_topology("v5e:2x2"), flops=197e9, memory_bytes=819e6 * 3, interconnect_bytes=100e6
    )
    assert (line.compute_s, line.memory_s, line.interconnect_s) == pytest.approx((1e-3, 3e-3, 1e-3))
    assert line.overlapped_s == pytest.approx(3e-3) and line.serial_s == pytest.approx(5e-3) and line.bound == "memory"
    alone = topology.roofline(topology.parse_topology("v6e:1x1"), flops=918e12, memory_bytes=0, interconnect_bytes=0)
    assert (alone.overlapped_s, alone.interconnect_s, alone.bound) == (1, 0, "compute")


def test_a_compiler_s_out_of_memory_message_is_read():
    read = compile_lib.requested_bytes
    assert read("... required for HLO temporaries (1.50G) exceeds available HBM (15.75G).") == 3 * 2**29
    assert read("Ran out of memory. Used 20.25G of 15.75G hbm. Exceeded by 4.5G.") == int(20.25 * 2**30)
    assert read("no figures") is None


# With the TPU's compiler


@needs_libtpu
@pytest.mark.slow  # the TPU compiler takes about half a minute per program
def test_dcgan28_on_tpu_slices(capsys):
    config = make_config("", "dcgan28", mesh__data=4, batch_size=8)
    run.plan_one(config, topology_name="v5e:2x2", batch_per_chip=8, find_largest=False)
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    params, statistics, state = state_bytes(run.prepared_config(make_config("", "dcgan28", mesh__data=8), []))
    assert params < row["collectives"]["all-reduce"]["bytes"] < 1.1 * params + 4 * statistics
    assert row["batch_size"] == 32 and row["memory_by_kind"]["state"] == state
    with pytest.raises(UserError, match="does not fit v5e:1x1.*largest batch known to fit is"):
        run.plan_one(make_config("", "dcgan28", mesh__data=1), topology_name="v5e:1x1", batch_size=200_000)
    assert 0 < json.loads(capsys.readouterr().out)["largest_batch_size"] < 200_000
