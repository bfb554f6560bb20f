"""The commands as a user meets them: help, misspelt words, the whole way once, and bad input in one line each."""

import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import made_run
import numpy as np
import pytest
from absl import flags

from idrid_jax import cli
from idrid_jax.cli.command import Group
from idrid_jax.data import layout
from idrid_jax.data.manifest import read_manifest
from idrid_jax.data.masks import encode_mask
from idrid_jax.data.prepare import prepare
from idrid_jax.evaluation import grader
from idrid_jax.evaluation.features import trained_grader
from idrid_jax.models import layer_table
from idrid_jax.training import loop

ROOT = Path(__file__).parents[1]
CGAN = str(ROOT / "configs" / "cgan32.py")
SMALL = [
    "--config.batch_size=8", "--config.snapshot_kimg=0.008", "--config.log_kimg=0.008", "--config.checkpoint.best=",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def manifest(folder):
    return prepare(made_run.write_release(folder / "made up"), folder / "data", tfds=False)[0]


@pytest.fixture(scope="module")
def workdir(folder, manifest):
    return made_run.make_run(folder / "run", manifest)


@pytest.fixture(scope="module")
def unconditional(folder, manifest):
    return made_run.make_run(folder / "dcgan", manifest, network="dcgan28")


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must fail: status 2, one line on stderr (returned), `tmp_path` as it was."""
    def run(*arguments, prints=False):
        before = tree(tmp_path)
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 2, err
        assert err.count("\n") == 1 and err.startswith("idrid-jax: "), err
        assert prints or not out, out
        assert tree(tmp_path) == before
        return err
    return run


def tree(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


def command(*arguments, **environment):
    """A process of its own: -> status, stdout, stderr."""
    done = subprocess.run([sys.executable, "-m", "idrid_jax", *map(str, arguments)], capture_output=True, text=True,
                          env=os.environ | environment, timeout=300)
    return done.returncode, done.stdout, done.stderr


# -- help

GROUPS = {name: group.commands for name, group in cli.COMMANDS.items() if isinstance(group, Group)}
COMMANDS = {name: command for name, command in cli.COMMANDS.items() if name not in GROUPS}
COMMANDS |= {f"{group} {name}": command for group, commands in GROUPS.items() for name, command in commands.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_every_flag(name, capsys):
    values = flags.FlagValues()
    COMMANDS[name].define(values, [name])
    assert cli.main([*name.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert not err and max(map(len, out.splitlines())) <= 120
    for flag in values:
        assert f"--{flag} " in out or f"--[no]{flag} " in out, flag
    assert f"idrid-jax {name} {COMMANDS[name].example}" in out
    required = {
        "phantom": 1, "prepare": 1, "train": 2, "sample": 2, "evaluate": 1, "interpolate": 2, "report": 1, "sweep": 2,
        "plan": 1, "augment": 1, "blind sheet": 2, "blind score": 1,
    }.get(name, 0)  # fmt: skip
    assert out.count("(needed)") == required
    assert cli.main([*name.split(), "--some", "-h"]) == 0  # wherever it stands


def test_help_of_defaults(capsys):
    cli.main(["sample", "--help"])
    out = capsys.readouterr().out
    assert "[95]" in out and "[jpg]" in out and "[0]" in out and "None" not in out
    cli.main(["bench", "step", "--help"])
    assert "[]" not in capsys.readouterr().out


def test_overview(capsys):
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __import__("idrid_jax").__version__


@pytest.mark.parametrize("group", GROUPS)
def test_overview_of_a_group(group, capsys):
    assert cli.main([group]) == 2
    assert cli.main([group, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.count(f"usage: idrid-jax {group} COMMAND") == 2 and all(f"  {name} " in out for name in GROUPS[group])


def test_help_imports_neither_jax_nor_tensorflow():
    code = ("import sys\nfrom idrid_jax import cli\n"
            f"for name in {list(COMMANDS)}: assert cli.main([*name.split(), '--help']) == 0\n"
            "assert cli.main(['--help']) == 0 and cli.main(['smple']) == 2\n"
            "print('LOADED', {'jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'numpy'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED set()" in done.stdout, done.stdout[-300:]


# -- words

@pytest.mark.parametrize(("arguments", "says"), [
    (["smple"], "smple: no such command; did you mean sample?"),
    (["xyzzy"], "there are phantom, prepare, train, sample, evaluate"),
    (["bench", "stpe"], "bench stpe: no such command; did you mean step?"),
    (["bench", "step", "--btch=2"], "bench step: no flag --btch; did you mean --batch?"),
    (["sample", "--workdr=x"], "no flag --workdr; did you mean --workdir?"),
    (["prepare", "--relese", "x"], "no flag --relese; did you mean --release?"),
    (["train", "--cnfig", CGAN], "no flag --cnfig; did you mean --config?"),
    (["evaluate", "--zzzz=1"], "no flag --zzzz; there are --workdir"),
    (["phantom"], "phantom: --out is missing"),
    (["prepare"], "prepare: --release is missing"),
    (["sample", "--workdir=x"], "sample: --out is missing"),
    (["train", "--config", CGAN], "train: --workdir is missing"),
    (["train", "--workdir=x"], "--config is missing"),
    (["train", "--workdir=x", "--config"], "--config has no value"),
    (["train", "--workdir=x", "--config="], "--config has no value"),
    (["train", "--workdir=x", "--config.seed=1"], "--config.seed: name a file first, such as"),
    (["train", "--workdir=x", "--config.seed=1", "--config", CGAN], "--config.seed=1 stands before --config FILE"),
    (["train", "--workdir=x", "--config", "nowhere.py"], "nowhere.py: no such file"),
    (["train", "--workdir=x", "--config", str(ROOT)], "is no file"),
    (["sample", "--workdir=x", "--out=y", "--grade=7", "--count=1"],
     "--grade=7: 7 is not an integer in the range [0, 4]"),
    (["sample", "--workdir=x", "--out=y", "--per_grade=x"], "--per_grade=x: not a whole number"),
    (["sample", "--workdir=x", "--out=y", "--per_grade=0"], "--per_grade=0"),
    (["sample", "--workdir=x", "--out=y", "--format=tif"], "--format=tif: value should be one of <jpg|png>"),
    (["sample", "--workdir=x", "--out=y", "--quality=101"], "--quality=101"),
    (["sample", "--workdir=x", "--out=y", "--per_grade=1", f"--seed={2**32}"], "--seed=4294967296"),
    (["sample", "--workdir=x", "--out=y", "--per_grade=1", "--balance"],
     "--per_grade and --balance exclude each other"),
    (["sample", "--workdir=x", "--out=y", "--per_grade=1", "--count=1"], "--count goes with --grade"),
    (["sample", "--workdir=x", "--out=y", "--grade=1"], "--count goes with --grade"),
    (["sample", "--workdir=x", "--out=y", "stray", "words"], "'stray' belongs to no flag"),
    (["evaluate", "--workdir=x", "--count=1"], "--count=1"),
    (["phantom", "--out=x", "--train=a,b,c,d,e"], "--train=a,b,c,d,e: give whole numbers"),
    (["sample", "--workdir=x", "--out=y", "--truncation=nan"], "--truncation=nan: not a number"),
    (["phantom", "--out=x", "--train=1,2"], "give 5 whole numbers"),
    (["phantom", "--out=x", "--height=10"], "height is 10"),
])
def test_words_that_are_wrong(refused, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(*arguments)


@pytest.mark.parametrize(("override", "says"), [
    ("--config.data.flp", "--config.data.flp: " + CGAN + " has no such field; did you mean data.flip?"),
    ("--config.dta.flip=true", "did you mean data.flip?"),
    ("--config.samplng=balanced", "did you mean data.sampling?"),
    ("--noconfig.data.flp", "did you mean data.flip?"),
    ("--config.data=3", "--config.data: a group of fields; name one of them: data.crop"),
    ("--config.batch_size=abc", "--config.batch_size=abc: not a whole number"),
    ("--config.batch_size=1.5", "--config.batch_size=1.5: not a whole number"),
    ("--config.batch_size", "--config.batch_size has no value"),
    ("--config.total_kimg=ten", "--config.total_kimg=ten: not a number"),
    ("--config.data.flip=maybe", "--config.data.flip=maybe: not true or false"),
    ("--config.total_kimg=inf", "config.total_kimg = inf: must be above 0 and finite"),
    ("--config.network=cgan33", "config.network = 'cgan33': did you mean cgan32?"),
    ("--config.checkpoint.best=nonsense", "config.checkpoint.best = 'nonsense': there are"),
    ("--dry_run=perhaps", "--dry_run=perhaps: not true or false"),
])
def test_fields_that_are_wrong(refused, tmp_path, override, says):
    assert says in refused("train", "--config", CGAN, "--workdir", tmp_path / "run", override)
    if not override.startswith("--dry_run"):
        assert says in refused("train", "--config", CGAN, "--workdir", tmp_path / "run", "--dry_run", override)


@pytest.mark.parametrize(("text", "says"), [
    ("def get_config(:", "SyntaxError"),
    ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
    ("x = 1", "no attribute 'get_config'"),
    ("def get_config():\n    raise ValueError('two\\nlines')", "ValueError: two lines"),
    ("def get_config():\n    return {'seed': 1}", "get_config() returned dict, not a ConfigDict"),
    ("import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'network': 'cgan32'})",
     "is missing: begin"),
    ("from idrid_jax.config import default_config as get_config\nnew = get_config\n"
     "def get_config():\n    c = new()\n    c.batch_sze = 2\n    return c",
     "config.batch_sze: no such field; did you mean"),
])
def test_files_that_are_no_configuration(refused, tmp_path, text, says):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert says in refused("train", "--config", path, "--workdir", tmp_path / "run")


def test_dry_run_prints_layers_and_configuration(capsys, tmp_path):
    assert cli.main(["train", "--config", CGAN, "--workdir", str(tmp_path / "run"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "1,382,077" in out and "212,987" in out and '"network": "cgan32"' in out
    assert not (tmp_path / "run").exists()


def test_every_way_to_write_an_override(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_table, "networks_table", lambda config: "layers")
    for spelt, expected in (
        (["--config.data.flip"], {"flip": True}), (["--config.data.flip=true"], {"flip": True}),
        (["--noconfig.data.flip"], {"flip": False}), (["--config.data.flip=False"], {"flip": False}),
        (["--config.data.pipeline", "tfdata", "-config.data.crop=letterbox"], {"way": "tfdata", "crop": "letterbox"}),
        (["--config.data.resident_mib=5"], {"resident_mib": 5.0}),
    ):
        assert cli.main(["train", f"--config={CGAN}", "--workdir", str(tmp_path / "run"), "--dry_run", *spelt]) == 0
        out = capsys.readouterr().out
        config = json.loads(out[out.index("\n{\n"):])
        assert config["data"] | expected == config["data"]


# -- the whole way

def test_the_whole_way(folder, capsys, monkeypatch):
    """phantom, prepare, train, resume, sample, prepare what was sampled, evaluate; each by one command."""
    out = folder / "way"
    monkeypatch.setenv("TFDS_DATA_DIR", str(out / "data"))
    monkeypatch.setattr(layer_table, "networks_table", lambda config: "layers")  # seconds of compilation, and tested above
    brief = {"budget": grader.Budget(steps=3, batch_size=4)}
    monkeypatch.setattr(trained_grader.train, "__kwdefaults__", trained_grader.train.__kwdefaults__ | brief)

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out + printed.err

    assert "made up" in run("phantom", "--out", out / "phantom", "--height=64", "--train=3,1,2,1,1", "--test=1,1,0,0,0",
                            "--segmentation=1,0")
    said = run("prepare", "--release", out / "phantom", "--notfds", "--overlap")
    for words in ("PROLIFERATIVE", "excluded: nothing", "part A photographs that are in part B: 0", "prepared as",
                  "next: idrid-jax train --config"):
        assert words in said, words
    train = ["train", "--config", CGAN, "--workdir", out / "run", *SMALL, "--config.data.flip",
             "--config.data.min_images_per_class=0"]
    said = run(*train, "--config.total_kimg", "0.008")
    for words in ("layers", "release phantom (", "by grade: [3, 1, 2, 1, 1]", "step 1 (0.008 kimg)"):
        assert words in said, words
    said = run(*train, "--config.total_kimg", "0.016")
    assert "resuming from step 1" in said and "step 2 (0.016 kimg)" in said
    assert [json.loads(line)["step"] for line in (out / "run" / "stats.jsonl").read_text().splitlines()] == [1, 2]
    assert "8 images by grade" not in run("sample", "--workdir", out / "run", "--out", out / "grade", "--grade=3",
                                          "--count=2")
    said = run("sample", "--workdir", out / "run", "--out", out / "balanced", "--balance", "--format=png")
    assert "7 images by grade [0, 2, 1, 2, 2]" in said and "next: idrid-jax prepare" in said
    said = run("prepare", "--release", out / "balanced", "--data_dir", out / "other", "--notfds",
               "--keep_contradictions")
    assert f"--config.data.data_dir={out / 'other'}" in said
    said = run("evaluate", "--workdir", out / "run", "--count=4", "--weights=")  # slow without optimizations
    subject = "cgan32 at step 2 (0.016 kimg, the newest checkpoint; batch statistics: none) on release phantom ("
    assert subject in said and "Diversity:" in said
    assert json.loads((out / "run" / "evaluation.json").read_text())["quality"]["generated"]["ssim"] < 1


def test_sample_of_an_unconditional_generator(unconditional, capsys, tmp_path):
    assert cli.main(["sample", "--workdir", str(unconditional), "--out", str(tmp_path / "out"), "--count=3"]) == 0
    assert "3 images in" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


# -- bad releases

def labels(release, split="train"):
    return release / layout.PARTS["B"] / layout.TRUTHS["B"] / layout.GRADING_CSV[split]


def photographs(release, part="B"):
    return release / layout.PARTS[part] / layout.IMAGES / layout.SPLIT_FOLDERS["train"]


def replace(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-600])


def bomb(path):
    """A PNG of some kilobytes that unpacks to 400 million pixels."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(2501)) for _ in range(20_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    path.unlink()
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def climbing(release):
    folder = release / layout.PARTS["B"]
    with zipfile.ZipFile(release / f"{folder.name}.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(release))
        archive.writestr("../../out.txt", "out")
    shutil.rmtree(folder)


MASK = Path(layout.PARTS["A"], layout.TRUTHS["A"], layout.SPLIT_FOLDERS["train"], layout.LESIONS["MA"],
            "IDRiD_01_MA.tif")
BAD = {
    "empty folder": (lambda r: shutil.rmtree(r) or r.mkdir(),
                     ["no release at", "10.21227/H25W98", "CC BY 4.0", "IEEE DataPort"]),
    "no folder": (shutil.rmtree, ["no release at", "no such file or folder", "10.21227/H25W98"]),
    "row without a file": (lambda r: (photographs(r) / "IDRiD_004.jpg").unlink(),
                           ["row IDRiD_004 has no photograph", ".csv"]),
    "file without a row": (lambda r: shutil.copy(photographs(r) / "IDRiD_004.jpg", photographs(r) / "IDRiD_099.jpg"),
                           ["IDRiD_099.jpg: no row in", ".csv"]),
    "grade 5": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,5"),
                ["IDRiD_004", "'Retinopathy grade' '5'", "0 to 4"]),
    "grade -1": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,-1"), ["IDRiD_004", "'-1'", "0 to 4"]),
    "grade 1.5": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,1.5"), ["IDRiD_004", "'1.5'", "0 to 4"]),
    "no grade": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,"), ["IDRiD_004", "''", "0 to 4"]),
    "a word for a grade": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,mild"),
                           ["IDRiD_004", "'mild'", "0 to 4"]),
    "truncated JPEG": (lambda r: truncate(photographs(r) / "IDRiD_004.jpg"), ["IDRiD_004.jpg", "truncated"]),
    "not an image": (lambda r: (photographs(r) / "IDRiD_004.jpg").write_text("hello"), ["IDRiD_004.jpg"]),
    "empty image": (lambda r: (photographs(r) / "IDRiD_004.jpg").write_bytes(b""), ["IDRiD_004.jpg"]),
    "decompression bomb": (lambda r: bomb(photographs(r) / "IDRiD_004.jpg"), ["IDRiD_004.png", "decompression bomb"]),
    "zip that climbs out": (climbing, [".zip", "../../out.txt", "climbs out"]),
    "mask of another size": (lambda r: (r / MASK).write_bytes(encode_mask(np.eye(32, 48, dtype=bool))),
                             ["IDRiD_01_MA.tif", "48", "96"]),
    "truncated mask": (lambda r: (r / MASK).write_bytes((r / MASK).read_bytes()[:60]), ["IDRiD_01_MA.tif"]),
    "no label file": (lambda r: labels(r).unlink(), ["Training Labels.csv", "missing"]),
    "empty label file": (lambda r: labels(r).write_bytes(b""), ["Training Labels.csv", "empty"]),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_releases(manifest, refused, tmp_path, what):
    release = tmp_path / "release"
    shutil.copytree(manifest.release, release)
    damage, words = BAD[what]
    damage(release)
    said = refused("prepare", "--release", release, "--data_dir", tmp_path / "data", "--notfds")
    for word in words:
        assert word in said, said
    assert not (tmp_path / "data" / "idrid_jax" / "latest").exists()
    assert not (tmp_path.parent / "out.txt").exists()


def test_two_releases_in_one_folder(manifest, refused, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(manifest.release, tmp_path / name)
    said = refused("prepare", "--release", tmp_path, "--data_dir", tmp_path / "data")
    assert str(tmp_path / "one") in said and str(tmp_path / "two") in said


# -- bad places

def unwritable(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    return [tmp_path / "file" / "below", "/proc/idrid_jax"]


def test_places_that_cannot_be_written(manifest, workdir, refused, tmp_path):
    for place in unwritable(tmp_path):
        for arguments in (["phantom", "--out", place, "--height=64", "--train=1,0,0,0,0", "--test=0,0,0,0,0",
                           "--segmentation=0,0"],
                          ["prepare", "--notfds", "--release", manifest.release, "--data_dir", place],
                          ["sample", "--workdir", workdir, "--out", place, "--per_grade=1"]):
            said = refused(*arguments)
            assert "data_dir" not in said
        said = refused("train", "--config", CGAN, "--workdir", place, *SMALL,
                       f"--config.data.data_dir={manifest.folder.parent.parent}", prints=True)
        assert f"--workdir {place}: cannot be written" in said


@pytest.mark.parametrize("arguments", [["phantom", "--height=64", "--train=1,0,0,0,0", "--test=0,0,0,0,0",
                                        "--segmentation=0,0"],
                                       ["sample", "--per_grade=1"]], ids=lambda arguments: arguments[0])
def test_a_full_disk(workdir, refused, tmp_path, monkeypatch, arguments):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Path, "write_bytes", full)
    more = ["--workdir", workdir] if arguments[0] == "sample" else []
    said = refused(*arguments, *more, "--out", tmp_path / "out")
    assert str(tmp_path / "out") in said and "No space left on device" in said


@pytest.fixture
def tiny_disk(tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    mount = shutil.which("mount")
    if not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "none", place],
                                   capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(workdir, tiny_disk, refused):
    for arguments in (["phantom", "--height=178"], ["sample", "--per_grade=99", "--workdir", workdir]):
        assert "No space left on device" in refused(*arguments, "--out", tiny_disk / "out")
        assert not list(tiny_disk.iterdir())


def test_a_disk_that_fills_while_training(manifest, refused, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(loop, "train", full)
    monkeypatch.setattr(layer_table, "networks_table", lambda config: "layers")
    said = refused("train", "--config", CGAN, "--workdir", tmp_path / "run",
                   f"--config.data.data_dir={manifest.folder.parent.parent}", prints=True)
    assert f"{tmp_path / 'run'}: No space left on device; make room" in said


def test_what_pillow_warns_of_is_not_a_second_line(manifest, tmp_path):
    release = tmp_path / "release"
    shutil.copytree(manifest.release, release)
    BAD["truncated mask"][0](release)
    status, out, err = command("prepare", "--release", release, "--data_dir", tmp_path / "data", "--notfds")
    assert status == 2 and err.count("\n") == 1 and not out, err


# -- bad moments

def test_train_before_prepare(refused, tmp_path):
    said = refused("train", "--config", CGAN, "--workdir", tmp_path / "run",
                   f"--config.data.data_dir={tmp_path / 'data'}")
    assert "no release has been prepared under" in said and "prepare --release PATH first" in said


def test_a_release_of_another_name(manifest, refused, tmp_path):
    said = refused("train", "--config", CGAN, "--workdir", tmp_path / "run", "--config.data.release=deadbeef",
                   f"--config.data.data_dir={manifest.folder.parent.parent}")
    assert "'deadbeef'" in said and manifest.fingerprint[:8] in said


def test_a_batch_that_the_devices_cannot_share(manifest, tmp_path):
    status, _, err = command(
        "train", "--config", CGAN, "--workdir", tmp_path / "run", "--config.batch_size=12",
        f"--config.data.data_dir={manifest.folder.parent.parent}",
        XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    assert status == 2 and err.count("\n") == 1, err
    assert "config.batch_size = 12 is not divisible by 8 devices" in err
    assert not (tmp_path / "run").exists()


def test_another_configuration_in_the_same_workdir(workdir, refused):
    data_dir = json.loads((workdir / "config.json").read_text())["config"]["data"]["data_dir"]
    said = refused("train", "--config", CGAN, "--workdir", workdir, "--config.seed=5",
                   f"--config.data.data_dir={data_dir}",
                   prints=True)
    assert "config.seed: 0 -> 5" in said


@pytest.mark.parametrize(("arguments", "says"), [
    (["--count=2"], "say how many"),
    ([], "say how many"),
    (["--per_grade=1", "--step=9"], "no checkpoint of step 9; there are 3"),
])
def test_sample_asked_wrongly(workdir, refused, tmp_path, arguments, says):
    assert says in refused("sample", "--workdir", workdir, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "arguments", [["--per_grade=1"], ["--grade=0", "--count=1"], ["--grade=2", "--count=1"], ["--balance"], []]
)
def test_a_grade_for_an_unconditional_generator(unconditional, refused, tmp_path, arguments):
    said = refused("sample", "--workdir", unconditional, "--out", tmp_path / "out", *arguments)
    assert "dcgan28 is unconditional" in said and "--count N alone" in said


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_an_empty_or_damaged_workdir(workdir, refused, tmp_path, name):
    rest = ["--out", tmp_path / "out", "--per_grade=1"] if name == "sample" else []
    empty = tmp_path / "empty"
    assert "no run is there (no config.json)" in refused(name, "--workdir", empty, *rest)
    empty.mkdir()
    assert "no run is there (no config.json)" in refused(name, "--workdir", empty, *rest)
    (empty / "config.json").write_text('{"config": ')
    assert "not a run's record" in refused(name, "--workdir", empty, *rest)
    for damaged in ('{"config": {}, "data": 3}', '{"config": {"loss": 3}}', '{"config": []}', "[]"):
        (empty / "config.json").write_text(damaged)
        assert "not a run's record" in refused(name, "--workdir", empty, *rest)


def test_out_that_holds_something(workdir, refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    said = refused("sample", "--workdir", workdir, "--out", tmp_path, "--per_grade=1")
    assert "exists and is not an empty folder" in said


def test_evaluate_when_the_release_is_no_longer_prepared(folder, manifest, refused, tmp_path):
    shutil.copytree(manifest.folder.parent.parent, tmp_path / "data")
    there = read_manifest(tmp_path / "data" / "idrid_jax" / manifest.fingerprint)
    moved = made_run.make_run(tmp_path / "run", there)
    shutil.rmtree(tmp_path / "data" / "idrid_jax" / manifest.fingerprint)
    said = refused("evaluate", "--workdir", moved)
    assert "made up" in said and manifest.fingerprint[:12] in said and "--data_dir" in said


def test_ctrl_c_is_one_line(tmp_path):
    """While a release is drawn; nothing of it stays."""
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-m", "idrid_jax", "phantom", "--out", out, "--height=712"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               # a shell's "&" ignores it
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".partial-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "idrid-jax: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_bar_is_cleared_before_anything_is_printed(monkeypatch, capsys):
    """On a terminal; also where a mistake ends the stages."""
    from idrid_jax.cli.progress import StageProgress

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(ValueError), StageProgress() as stages:
        stages("first", 2)
        stages("second", 2)
        stages.close()
        shown = capsys.readouterr().err
        raise ValueError("wrong")
    assert "second" in shown and shown.rpartition("\r")[2].strip() == "" and not capsys.readouterr().err.strip()
