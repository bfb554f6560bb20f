"""`idrid-jax bench step`: images/s of the compiled train step, optionally compared with the same update in PyTorch.

Images/s and quartiles come from interleaved rounds of all sides. The images are random and lie in device memory, as in
the resident input pipeline, so no prepared release is needed. Each row also has the compiler's figures:

- `memory_bytes`: of the program that is timed; `device_peak_bytes`: the most that the device held, where it counts.
- `flops_per_image`: of plain convolutions (`program.model_flops`), the same on every platform. The timed program may
  need fewer. `matrix_rate_fraction` is images/s times these FLOPs, as a share of the rate of matrix products
  (`timing.matrix_flops_per_s`); it can exceed 1 for that reason.
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
from idrid_jax.training import sharding
from idrid_jax.training.optimizers import ema_decay

BATCH_SIZES = {"dcgan28": 128, "cgan32": 128, "dcgan64": 64, "dcgan128": 32}  # without a configuration
MIN_ROUND_S = 0.3  # a round has as many updates as this takes
OURS = "idrid_jax"


def run(
    config: ml_collections.ConfigDict | None,
    *,
    batches: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    peer: str = "",
    rounds: int = 9,
) -> None:
    """Print a JSON line for every network, batch size, dtype and side, and a table at the end.

    Args:
      config: None measures the four networks of BATCH_SIZES.
      batches: batch sizes, or "max" for the largest that fits; empty: the configuration's.
      dtypes: empty: the configuration's.
      peer: "torch", or "" for none.

    Raises UserError for invalid values, a peer that is not installed, and a batch that does not fit.
    """
    cases = list(_cases(config, batches, dtypes))
    if peer and config is not None:
        peer_lib.check_loss(peer, config.loss, config_lib.default_config().loss)
        if config.augment.mode != "none":
            raise UserError(f"--peer {peer}: has no augmentation; set config.augment.mode = 'none'")
    with contextlib.ExitStack() as stack:
        stack.enter_context(program_lib.no_persistent_cache())
        process = stack.enter_context(_start_peer(peer)) if peer else None
        machine = report.describe_machine()
        report.log(", ".join(f"{name} {value}" for name, value in machine.items()))
        peer_machine = _set_up_peer(peer, process) if process else {}
        rates, results = {}, []
        for case in cases:
            dtype = case.config.dtype
            if dtype not in rates:
                rates[dtype] = timing.matrix_flops_per_s(dtype)
                report.log(f"matrix products of {dtype}: {rates[dtype] / 1e9:,.0f} GFLOP/s")
            rows = _measure(case, process, rounds, rates[dtype])
            for row in rows:
                report.print_row({"benchmark": "step"} | row | machine | (peer_machine if row["side"] != OURS else {}))
            results.append(rows)
    print("\n" + _table(results, bool(peer)))


@dataclasses.dataclass(frozen=True)
class Case:
    """A configuration to measure; its batch size is 0 for the largest that fits. `batch_flag` names it in messages."""

    config: ml_collections.ConfigDict
    batch_flag: str


def _cases(config, batches, dtypes) -> Iterator[Case]:
    for dtype in dtypes:
        if dtype not in config_lib.DTYPES:
            raise UserError(f"--dtype {dtype}: {suggest_name(dtype, config_lib.DTYPES)}")
    sizes = [_batch_size(text) for text in batches]
    for base in [config] if config is not None else [_default_config(network) for network in BATCH_SIZES]:
        base = config_lib.validated(base)
        for size in sizes or [base.batch_size]:
            for dtype in dtypes or [base.dtype]:
                changed = base.copy_and_resolve_references()
                with changed.unlocked():
                    changed.batch_size, changed.dtype = size, dtype
                    changed.init_from, changed.data.pipeline = "", "resident"
                yield Case(changed, f"--batch {size}" if sizes else f"config.batch_size = {size}")


def _batch_size(text: str) -> int:
    if text == "max":
        return 0
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--batch {text}: must be a number above 0, several with commas between, or max")
    return int(text)


def _default_config(network: str) -> ml_collections.ConfigDict:
    config = config_lib.default_config()
    config.network, config.batch_size = network, BATCH_SIZES[network]
    return config


def _compile_case(
    case: Case, *, shared: bool
) -> tuple[ml_collections.ConfigDict, program_lib.TrainProgram, jax.stages.Compiled, float]:
    """Return the configuration with its batch size, its program, the executable, and the seconds of compiling.

    shared: a peer runs on the same device, so each side may use half of its memory.

    Raises UserError if the batch does not fit.
    """
    config = case.config
    num_devices = sharding.make_mesh(config.mesh.data, config.mesh.rows).size
    limit = memory.available_bytes(num_devices)
    if shared and limit is not None and jax.default_backend() == "cpu":  # elsewhere JAX has half by `_start_peer`
        limit //= 2
    if not config.batch_size:
        if limit is None:
            raise UserError("--batch max: this device does not report its memory: choose a number")
        report.log(f"{config.network} {config.dtype}: searching for the largest batch in {_mebibytes(limit)}")
        config = _with_batch(config, _largest_batch(config, limit, start=64 * num_devices, multiple=num_devices))
        if not config.batch_size:
            raise UserError(f"--batch max: not even {num_devices} images of {config.network} fit {_mebibytes(limit)}")
    program = program_lib.make_program(config)
    compiled, seconds = program.compile()
    needed = memory.program_bytes(compiled)
    if limit is not None and needed is not None and needed > limit:
        largest = _largest_batch(config, limit, start=config.batch_size, multiple=num_devices)
        raise UserError(
            f"{case.batch_flag}: {config.network} in {config.dtype} needs {_mebibytes(needed)}, and the device has "
            f"{_mebibytes(limit)}{' for each side' if shared else ''}; the largest batch known to fit is {largest}"
        )
    return config, program, compiled, seconds


def _largest_batch(config, limit: int, *, start: int, multiple: int) -> int:
    def need(batch_size: int) -> memory.Need:
        return program_lib.memory_need(_with_batch(config, batch_size))

    return memory.largest_batch(need, limit, start=start, multiple=multiple).batch_size


def _with_batch(config, batch_size: int) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    return config


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


class _OurSide:
    """Our side of the comparison: a call runs a round of updates."""

    def __init__(self, program: program_lib.TrainProgram):
        self.step, self.state, self.calls_per_round = program.step, program.initial_state(), 1

    @property
    def updates_per_round(self) -> int:
        return self.calls_per_round * self.step.updates

    def __call__(self) -> None:
        for _ in range(self.calls_per_round):
            self.state, metrics = self.step(self.state)
        jax.block_until_ready((self.state, metrics))


def _measure(case: Case, process: peer_lib.Peer | None, rounds: int, matrix_rate: float) -> list[dict]:
    """Return a row for each side, this project's first."""
    device = jax.local_devices()[0]
    peak_before = memory.peak_bytes(device)
    report.log(f"{case.config.network} {case.config.dtype}: compiling")
    config, program, compiled, compile_s = _compile_case(case, shared=process is not None)

    ours = _OurSide(program)
    ours()
    ours.calls_per_round = _calls_per_round(ours)
    sides, updates = {OURS: ours}, {OURS: ours.updates_per_round}
    for variant in peer_lib.VARIANTS if process else ():
        try:
            seconds = process.make(variant, peer_options(config), program_lib.NUM_PHOTOGRAPHS)
            updates[variant] = _calls_per_round(lambda: process.run(variant, 1))
            sides[variant] = lambda variant=variant: process.run(variant, updates[variant])
            report.log(f"torch {variant}: ready after {seconds:.1f} s")
        except peer_lib.PeerError as error:
            report.log(f"torch {variant}: skipped ({error})")
    times = timing.time_interleaved(sides, rounds)
    if process:
        process.drop()

    rows = [_side_row(config, name, side, rounds, updates[name], program.step.updates) for name, side in times.items()]
    flops = program_lib.model_flops(config)
    flops_per_image = flops and flops / config.batch_size
    peak = memory.peak_bytes(device)
    rows[0] |= {
        "compile_s": compile_s,
        "memory_bytes": memory.program_bytes(compiled),
        "device_peak_bytes": peak if peak != peak_before else None,  # it counts the whole process
        "flops_per_image": flops_per_image,
        "matrix_flops_per_s": matrix_rate,
        "matrix_rate_fraction": flops and flops_per_image * rows[0]["images_per_s"] / (matrix_rate * program.mesh.size),
    }
    if len(rows) > 1:
        rows[0]["ratio_to_peer"] = rows[0]["images_per_s"] / max(row["images_per_s"] for row in rows[1:])
    return rows


def _side_row(config, name: str, side: timing.Times, rounds: int, updates: int, dispatch_steps: int) -> dict:
    median, *quartiles = (seconds / updates for seconds in (side.median, *side.quartiles))
    return {
        "network": config.network,
        "batch_size": config.batch_size,
        "dtype": config.dtype,
        "dispatch_steps": dispatch_steps,
        "side": OURS if name == OURS else f"torch {name}",
        "images_per_s": config.batch_size / median,
        "s_per_kimg": 1000 * median / config.batch_size,
        "ms_per_step": 1e3 * median,
        "ms_per_step_quartiles": [1e3 * seconds for seconds in quartiles],
        "rounds": rounds,
        "steps_per_round": updates,
    }


def _calls_per_round(call: Callable[[], object]) -> int:
    start = time.perf_counter()
    call()
    return max(1, math.ceil(MIN_ROUND_S / (time.perf_counter() - start)))


def peer_options(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Return the fields of `torch_step.Options` for a configuration."""
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
        ema_decay=ema_decay(config.batch_size, config.ema_kimg) if config.ema_kimg else None,
        latent=NETWORKS[config.network].latent_size,
    )


def _start_peer(peer: str) -> peer_lib.Peer:
    """Start the peer's process and reserve memory for it. Call this before JAX uses a device."""
    peer_lib.check_peer(peer)
    # Without these JAX takes three quarters of a GPU's memory at its start
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    return peer_lib.Peer()


def _set_up_peer(peer: str, process: peer_lib.Peer) -> dict[str, object]:
    """Set the peer up on our device with as many threads; return its version, device and threads."""
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if platform not in ("cpu", "cuda"):
        raise UserError(f"--peer {peer}: does not run on {platform}; omit --peer")
    try:
        peer_machine = process.start(report.num_threads(), platform)
    except peer_lib.PeerError as error:
        raise UserError(f"--peer {peer}: {error}") from error
    report.log("peer: " + ", ".join(f"{name} {value}" for name, value in peer_machine.items()))
    return peer_machine


def _table(results: list[list[dict]], peer: bool) -> str:
    header = ["network", "batch", "dtype", "images/s", "ms/step", "quartiles", "s/kimg", "compile s", "MiB",
              "MFLOP/image", "of matrix rate"]  # fmt: skip
    header += [*(f"torch {variant}" for variant in peer_lib.VARIANTS), "ratio"] if peer else []
    table = []
    for ours, *others in results:
        low, high = ours["ms_per_step_quartiles"]
        cells = [
            ours["network"],
            ours["batch_size"],
            ours["dtype"],
            f"{ours['images_per_s']:.1f}",
            f"{ours['ms_per_step']:.1f}",
            f"{low:.1f}-{high:.1f}",
            f"{ours['s_per_kimg']:.2f}",
            f"{ours['compile_s']:.1f}",
            f"{ours['memory_bytes'] / 2**20:.0f}" if ours["memory_bytes"] is not None else None,
            ours["flops_per_image"] and f"{ours['flops_per_image'] / 1e6:.1f}",
            ours["matrix_rate_fraction"] and f"{ours['matrix_rate_fraction']:.0%}",
        ]
        if peer:
            rates = {row["side"]: f"{row['images_per_s']:.1f}" for row in others}
            cells += [rates.get(f"torch {variant}") for variant in peer_lib.VARIANTS]
            cells += [f"{ours['ratio_to_peer']:.2f}" if others else None]
        table.append(cells)
    return report.format_table(header, table)
