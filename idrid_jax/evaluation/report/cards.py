"""The data card and the model card."""

import statistics

from idrid_jax import config as config_lib
from idrid_jax.data.folds import NO_FOLD
from idrid_jax.data.layout import GRADES
from idrid_jax.evaluation.report.gather import PHOTOGRAPHS, Run
from idrid_jax.evaluation.report.results import is_number
from idrid_jax.evaluation.report.sections import Cell, Table

HIDDEN_FIELDS = ("data.data_dir", "data.release", "log.console")  # of this machine and not of the model
MAX_EXCLUSIONS = 40  # listed


def data(runs: list[Run]) -> list[dict]:
    """A data card for each release and held-out fold: its kind, photographs by grade, exclusions and duplicates."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault((run.record["data"]["fingerprint"], run.config.data.held_out_fold), []).append(run)
    cards = []
    for (_, held_out_fold), group in groups.items():
        run = next((run for run in group if run.manifest), group[0])
        training, held_out = (run.record["data"]["counts"][name] for name in ("training", "held_out"))
        rows = [[f"{g} {name}", training[g], held_out[g]] for g, name in enumerate(GRADES)]
        rows.append(["all", sum(training), sum(held_out)])
        heading = "held out (test)" if held_out_fold == NO_FOLD else f"held out (fold {held_out_fold})"
        cards.append({
            "run": run,
            "runs": group if len(groups) > 1 else [],
            "counts": Table(["grade", "training", heading], rows, "Photographs after exclusions"),
            "held_out_fold": None if held_out_fold == NO_FOLD else held_out_fold,
            "validation_folds": run.config.data.validation_folds,
            "exclusions": run.manifest.exclusions[:MAX_EXCLUSIONS] if run.manifest else [],
        })  # fmt: skip
    return cards


def model(runs: list[Run]) -> dict:
    """Facts about each network and its training, and the configuration that differs from the defaults."""
    head = ["", *runs] if len(runs) > 1 else None
    facts = [_facts(run) for run in runs]
    configs = [config_lib.flatten(run.config) for run in runs]
    default = config_lib.flatten(config_lib.default_config())
    changed = []
    for name in dict.fromkeys(name for config in configs for name in config):
        if name not in HIDDEN_FIELDS and any(config.get(name) != default.get(name) for config in configs):
            changed.append([Cell(name, code=True), *(_field_text(name, config.get(name, "")) for config in configs)])
    counts = (run.num_training or sum(run.record["data"]["counts"]["training"]) for run in runs
              if run.kind == PHOTOGRAPHS)  # fmt: skip
    return {
        "facts": Table(head, [[key, *(fact[key] for fact in facts)] for key in facts[0]], kind="facts"),
        "config": Table(head, changed, kind="facts") if changed else None,
        "photographs": " and ".join(dict.fromkeys(map(str, counts))),
    }


def _facts(run):
    network, record = run.network, run.record
    rates = [row["images_per_s"] for row in run.stats if is_number(row.get("images_per_s")) and row["images_per_s"] > 0]
    last = run.stats[-1]["kimg"] if run.stats else 0
    return {
        "network": f"{run.config.network}, {'conditioned on grades' if network.conditional else 'unconditional'}",
        "images": f"{network.size} × {network.size} pixels, {'RGB' if network.channels == 3 else 'grey'}, "
        f"{run.config.data.crop.replace('_', ' ')}",
        "parameters": f"generator {run.parameters[0]:,}, discriminator {run.parameters[1]:,}",
        "trained": f"{last:g} of {run.config.total_kimg:g} kimg, {run.config.batch_size} images per update",
        "checkpoint": "none" if run.step is None else f"step {run.step}, {run.kimg(run.step):g} kimg",
        "BatchNorm statistics": run.results("run").get("batch_statistics") or "not recorded",
        "images/s": f"{statistics.median(rates):,.0f} (median of training)" if rates else "not logged",
        "devices": ", ".join(map(str, record.get("devices") or [])) or "not recorded",
        "processes": record.get("processes", "not recorded"),
        "revision": record.get("revision") or "not recorded",
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        "trained on": f"{record['data']['name']} ({record['data']['fingerprint'][:12]})",
    }


def _field_text(name, value):
    return str(value).rstrip("/").rpartition("/")[2] if name == "init_from" else str(value)
