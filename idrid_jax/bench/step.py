"""`idrid-jax bench step`: the compiled update that `train` calls, beside the same in PyTorch.

Images/s and their spread come from interleaved rounds of all sides. What the update needs by the compiler's account,
its memory and its arithmetic, is told beside them:

- Memory is that of the very program timed (`memory.needed`), and the most that the device has held where it counts.
- The model's FLOPs are not those of the program timed, which may reach the same with fewer multiplications, but those
  of plain convolutions (`program.model_flops`): the same figure on every platform. Images/s times FLOPs per image, as a
  share of the rate of plain matrix products (`timing.matrix_rate`), could pass 100 % for that reason.

No prepared release is needed: the images are random and lie in device memory, as the resident way in has them.
"""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import ml_collections

from idrid_jax import config as config_lib
from idrid_jax.bench import memory, report, timing
from idrid_jax.bench import peer as peer_lib
from idrid_jax.bench import program as program_lib
from idrid_jax.errors import UserError, suggest_name
from idrid_jax.models import NETWORKS
from idrid_jax.training import ema
from idrid_jax.training import sharding as mesh_lib

BATCHES = {"dcgan28": 128, "cgan32": 128, "dcgan64": 64, "dcgan128": 32}  # without a configuration
ROUND = 0.3  # seconds that a round takes at least: as many updates as it needs
OURS = "idrid_jax"


def run(
    config: ml_collections.ConfigDict | None,
    *,
    batches: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    peer: str = "",
    rounds: int = 9,
) -> None:
    """Prints a JSON line for every network, batch, dtype and side, and at the end a table.

    config: None takes all four networks, at batches of `BATCHES`.
    batches: numbers, or "max" for the largest that fits; empty: the configuration's.
    dtypes: empty: the configuration's.
    peer: "torch" or none.

    Raises UserError for words and values that are none, a peer that is not there, and a batch that does not fit.
    """
    cases = list(_cases(config, batches, dtypes))
    if peer and config is not None:
        peer_lib.check_loss(peer, config.loss, config_lib.default_config().loss)
        if config.accumulate > 1:
            raise UserError(f"--peer {peer}: it makes an update at once, not config.accumulate = {config.accumulate}")
        if config.augment.mode != "none":
            raise UserError(f"--peer {peer}: it shows D what is, not config.augment.mode = {config.augment.mode!r}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(program_lib.no_persistent_cache())
        peers = stack.enter_context(_start(peer)) if peer else None
        machine = report.machine()
        report.note(", ".join(f"{name} {value}" for name, value in machine.items()))
        theirs = _set_up(peer, peers) if peers else {}
        rates, shown = {}, []
        for case in cases:
            dtype = case.config.dtype
            if dtype not in rates:
                rates[dtype] = timing.matrix_rate(dtype)
                report.note(f"matrix products of {dtype}: {rates[dtype] / 1e9:,.0f} GFLOP/s")
            rows = _measure(case, peers, rounds, rates[dtype])
            for row in rows:
                report.emit({"bench": "step"} | row | machine | (theirs if row["side"] != OURS else {}))
            shown.append(rows)
    print("\n" + _table(shown, bool(peer)))


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure. batch_size of the configuration is 0 where the largest is asked for."""

    config: ml_collections.ConfigDict
    flag: str  # that named the batch, for messages


def _cases(config, batches, dtypes) -> Iterator[Case]:
    for dtype in dtypes:
        if dtype not in config_lib.DTYPES:
            raise UserError(f"--dtype {dtype}: {suggest_name(dtype, config_lib.DTYPES)}")
    sizes = [_batch_size(text) for text in batches]
    configs = [config] if config is not None else [_default(name) for name in BATCHES]
    for one in configs:
        config_lib.check(one)
        for size in sizes or [one.batch_size]:
            for dtype in dtypes or [one.dtype]:
                changed = one.copy_and_resolve_references()
                with changed.unlocked():
                    changed.batch_size, changed.dtype = size, dtype
                    changed.init_from, changed.data.pipeline = "", "resident"
                yield Case(changed, f"--batch {size}" if sizes else f"config.batch_size = {size}")


def _batch_size(text: str) -> int:
    if text == "max":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch {text}: give a number above 0, several with commas between, or max")
    return int(text)


def _default(network: str) -> ml_collections.ConfigDict:
    config = config_lib.default_config()
    config.network, config.batch_size = network, BATCHES[network]
    return config


def _fitting(case: Case, *, shared: bool) -> tuple[Case, program_lib.Program, jax.stages.Compiled, float]:
    """The case with its batch settled, its program, compiled, and in how many seconds.

    Raises UserError where the batch does not fit.

    shared: a peer is on the same device; each side may take half of what is there.
    """
    config = case.config
    devices = mesh_lib.make_mesh(config.mesh.data, config.mesh.rows).size
    limit = memory.available(devices)
    if shared and limit is not None and jax.default_backend() == "cpu":  # elsewhere JAX was given half at its start
        limit //= 2
    largest = lambda: memory.largest_batch(
        lambda batch: program_lib.bytes_needed(_with_batch(config, batch)), limit, devices * config.accumulate
    )
    room = "the device" + (" for it beside the peer" if shared else "")
    if not config.batch_size:
        if limit is None:
            raise UserError("--batch max: this device does not tell its memory: give a number")
        report.note(f"{config.network} {config.dtype}: looking for the largest batch in {_mebibytes(limit)}")
        config = _with_batch(config, largest())
        if not config.batch_size:
            raise UserError(f"--batch max: not even {devices} images of {config.network} fit {_mebibytes(limit)}")
        case = dataclasses.replace(case, config=config)
    program = program_lib.make(config)
    compiled, seconds = program.compile()
    needed = memory.needed(compiled)
    if limit is not None and needed > limit:
        raise UserError(
            f"{case.flag}: {config.network} in {config.dtype} needs {_mebibytes(needed)}, and {room} has "
            f"{_mebibytes(limit)}; the largest batch that fits is {largest()}, by the compiler's figures"
        )
    return case, program, compiled, seconds


def _with_batch(config, batch):
    config = config.copy_and_resolve_references()
    config.batch_size = batch
    return config


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


class _Ours:
    """Our side: a call is a round."""

    def __init__(self, program: program_lib.Program):
        self.step, self.state, self.calls = program.step, program.start(), 1

    @property
    def updates(self) -> int:
        """In a round."""
        return self.calls * self.step.steps

    def __call__(self) -> None:
        for _ in range(self.calls):
            self.state, metrics = self.step(self.state)
        jax.block_until_ready((self.state, metrics))


def _measure(case: Case, peers: peer_lib.Peer | None, rounds: int, rate: float) -> list[dict]:
    """A row for each side, ours first."""
    device = jax.local_devices()[0]
    before = memory.peak(device)
    report.note(f"{case.config.network} {case.config.dtype}: compiling")
    case, program, compiled, compile_s = _fitting(case, shared=peers is not None)
    config = case.config
    flops = program_lib.model_flops(config)
    what = {"network": config.network, "batch": config.batch_size, "dtype": config.dtype}
    what |= {"dispatch_steps": program.step.steps, "accumulate": config.accumulate}

    ours = _Ours(program)
    ours()
    ours.calls = _calls_per_round(ours)
    sides, updates = {OURS: ours}, {OURS: ours.updates}
    for variant in peer_lib.VARIANTS if peers else ():
        try:
            made_s = peers.make(variant, _options(config), program_lib.PHOTOGRAPHS)
            updates[variant] = _calls_per_round(lambda: peers.run(variant, 1))
            sides[variant] = lambda variant=variant: peers.run(variant, updates[variant])
            report.note(f"torch {variant}: ready after {made_s:.1f} s")
        except peer_lib.PeerError as error:
            report.note(f"torch {variant} is left out: {error}")
    times = timing.interleaved(sides, rounds)
    if peers:
        peers.drop()

    rows = []
    for name, side in times.items():
        per_update = [seconds / updates[name] for seconds in (side.median, *side.quartiles)]
        rows.append(
            what
            | {
                "side": OURS if name == OURS else f"torch {name}",
                "images_per_s": config.batch_size / per_update[0],
                "s_per_kimg": 1000 * per_update[0] / config.batch_size,
                "ms_per_step": 1e3 * per_update[0],
                "ms_per_step_quartiles": [1e3 * seconds for seconds in per_update[1:]],
                "rounds": rounds,
                "steps_per_round": updates[name],
            }
        )
    after = memory.peak(device)
    rows[0] |= {
        "compile_s": compile_s,
        "memory_bytes": memory.needed(compiled),
        "device_peak_bytes": after if after != before else None,  # it is of the whole process: an earlier case's
        "flops_per_image": flops and flops / config.batch_size,
        "matrix_flops_per_s": rate,
        "matrix_share": flops and flops / config.batch_size * rows[0]["images_per_s"] / (rate * program.mesh.size),
    }
    if len(rows) > 1:
        rows[0]["ratio_to_peer"] = rows[0]["images_per_s"] / max(row["images_per_s"] for row in rows[1:])
    return rows


def _calls_per_round(call: Callable[[], object]) -> int:
    start = time.perf_counter()
    call()
    return max(1, math.ceil(ROUND / (time.perf_counter() - start)))


def _options(config) -> dict[str, object]:
    """What `torch_step.Options` needs of the configuration."""
    optimizer = config.optimizer
    return dict(
        network=config.network,
        batch_size=config.batch_size,
        dtype=config.dtype,
        g_learning_rate=optimizer.g_learning_rate,
        d_learning_rate=optimizer.d_learning_rate,
        b1=optimizer.b1,
        b2=optimizer.b2,
        clip_norm=optimizer.clip_norm,
        label_smoothing=config.loss.label_smoothing,
        flip=config.data.flip,
        ema_decay=ema.decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        latent=NETWORKS[config.network].latent_size,
    )


def _start(peer: str) -> peer_lib.Peer:
    """The peer's process, with room for it on the device. Call it before JAX touches a device."""
    peer_lib.check(peer)
    # On a GPU JAX would else take three quarters of the memory at once
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    return peer_lib.Peer()


def _set_up(peer: str, peers: peer_lib.Peer) -> dict[str, object]:
    """The peer on our device with as many threads -> what it says of itself."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in ("cpu", "cuda"):
        raise UserError(f"--peer {peer}: there is none for {platform}")
    try:
        theirs = peers.start(report.threads(), platform)
    except peer_lib.PeerError as error:
        raise UserError(f"--peer {peer}: {error}") from error
    report.note("peer: " + ", ".join(f"{name} {value}" for name, value in theirs.items()))
    return theirs


def _table(shown: list[list[dict]], peer: bool) -> str:
    header = ["network", "batch", "dtype", "images/s", "ms/step", "quartiles", "s/kimg", "compile s", "MiB",
              "MFLOP/image", "of matrix rate"]  # fmt: skip
    header += [*(f"torch {variant}" for variant in peer_lib.VARIANTS), "ratio"] if peer else []
    table = []
    for ours, *others in shown:
        low, high = ours["ms_per_step_quartiles"]
        cells = [
            ours["network"],
            ours["batch"],
            ours["dtype"],
            f"{ours['images_per_s']:.1f}",
            f"{ours['ms_per_step']:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{ours['s_per_kimg']:.2f}",
            f"{ours['compile_s']:.1f}",
            f"{ours['memory_bytes'] / 2**20:.0f}" if ours["memory_bytes"] is not None else None,
            ours["flops_per_image"] and f"{ours['flops_per_image'] / 1e6:.1f}",
            ours["matrix_share"] and f"{ours['matrix_share']:.0%}",
        ]
        if peer:
            rates = {row["side"]: f"{row['images_per_s']:.1f}" for row in others}
            cells += [rates.get(f"torch {variant}") for variant in peer_lib.VARIANTS]
            cells += [f"{ours['ratio_to_peer']:.2f}" if others else None]
        table.append(cells)
    return report.table(header, table)
