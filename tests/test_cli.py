"""The commands: help, misspelt arguments, the way from a release to an evaluation, and bad input in one line each."""

import errno
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import made_run
import numpy as np
import pytest
from absl import flags
from conftest import LATENT, TinyDiscriminator, TinyGenerator

from idrid_jax import cli
from idrid_jax.cli.command import Group
from idrid_jax.data import layout
from idrid_jax.data.manifest import read_manifest
from idrid_jax.data.masks import encode_mask
from idrid_jax.data.prepare import prepare
from idrid_jax.models import NETWORKS, Network, layer_table
from idrid_jax.training import loop

ROOT = Path(__file__).parents[1]
CGAN = str(ROOT / "configs" / "cgan32.py")
SMALL = [
    "--config.batch_size=8", "--config.snapshot_kimg=0.008", "--config.log_kimg=0.008", "--config.checkpoint.best=",
]  # fmt: skip
TINY_PHANTOM = ["--height=64", "--train=1,0,0,0,0", "--test=0,0,0,0,0", "--segmentation=0,0"]


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
    """Run a command that must fail with status 2; return its one line on stderr. `tmp_path` must stay as it was."""

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


@pytest.fixture
def no_table(monkeypatch):
    """Skip the table of layers, which test_startup tests."""
    monkeypatch.setattr(layer_table, "networks_table", lambda config: "layers")


def tree(folder):
    return {path: path.stat().st_size for path in folder.rglob("*")}


# -- Help

GROUPS = {name: group.commands for name, group in cli.COMMANDS.items() if isinstance(group, Group)}
COMMANDS = {name: command for name, command in cli.COMMANDS.items() if name not in GROUPS}
COMMANDS |= {f"{group} {name}": command for group, commands in GROUPS.items() for name, command in commands.items()}


def test_help_names_every_flag_and_imports_nothing_slow():
    """In a process of its own, as `idrid-jax COMMAND --help` is asked for before anything else."""
    code = (
        "import sys\nfrom idrid_jax import cli\n"
        f"for name in {list(COMMANDS)}:\n    print('COMMAND', name)\n"
        "    assert cli.main([*name.split(), '--help']) == 0\n"
        "print('COMMAND', end='')\nassert cli.main(['--help']) == 0 and cli.main(['smple']) == 2\n"
        "print('LOADED', {'jax', 'tensorflow', 'tensorflow_datasets', 'flax', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LOADED set()" in done.stdout
    texts = dict(text.split("\n", 1) for text in done.stdout.split("COMMAND ")[1:])
    required = {
        "phantom": 1, "prepare": 1, "train": 2, "sample": 2, "evaluate": 1, "interpolate": 2, "report": 1, "sweep": 2,
        "plan": 1, "augment": 1, "grade": 1, "blind sheet": 2, "blind score": 1,
    }  # fmt: skip
    for name, command in COMMANDS.items():
        text, values = texts[name].split("COMMAND")[0], flags.FlagValues()
        command.define(values, [name])
        assert max(map(len, text.splitlines())) <= 120, name
        for flag in values:
            assert f"--{flag} " in text or f"--[no]{flag} " in text, (name, flag)
        assert f"idrid-jax {name} {command.example}" in text
        assert text.count("(needed)") == required.get(name, 0), name
        assert "None" not in text and "[]" not in text, name  # defaults that say nothing


def test_help_wherever_it_stands(capsys):
    assert cli.main(["sample", "--some", "-h"]) == 0
    out = capsys.readouterr().out
    assert "[95]" in out and "[jpg]" in out and "[0]" in out


@pytest.mark.parametrize("group", ["", *GROUPS])
def test_overview(group, capsys):
    words, commands = (group.split(), GROUPS[group]) if group else ([], cli.COMMANDS)
    assert cli.main(words) == 2
    assert cli.main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.count("COMMAND [--flag=value ...]") == 2 and all(f"  {name} " in out for name in commands)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __import__("idrid_jax").__version__


# -- Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["smple"], "did you mean sample?"),
        (["xyzzy"], "phantom, prepare, train, sample, evaluate"),
        (["bench", "stpe"], "did you mean step?"),
        (["bench", "step", "--btch=2"], "did you mean --batch"),
        (["sample", "--workdr=x"], "did you mean --workdir?"),
        (["prepare", "--relese", "x"], "did you mean --release?"),
        (["evaluate", "--zzzz=1"], "no flag --zzzz; choose one of --workdir"),
        (["phantom"], "--out is missing"),
        (["train", "--config", CGAN], "--workdir is missing"),
        (["train", "--workdir=x"], "--config is missing"),
        (["train", "--workdir=x", "--config"], "--config has no value"),
        (["train", "--workdir=x", "--config="], "--config has no value"),
        (["train", "--workdir=x", "--config.seed=1"], "--config.seed: name a file first"),
        (["train", "--workdir=x", "--config.seed=1", "--config", CGAN], "--config.seed=1 stands before --config FILE"),
        (["train", "--workdir=x", "--config", "nowhere.py"], "nowhere.py: no such file"),
        (["train", "--workdir=x", "--config", str(ROOT)], "not a file"),
        (["sample", "--workdir=x", "--out=y", "--grade=7", "--count=1"], "--grade=7"),
        (["sample", "--workdir=x", "--out=y", "--per_grade=x"], "--per_grade=x: not a whole number"),
        (["sample", "--workdir=x", "--out=y", "--per_grade=0"], "--per_grade=0"),
        (["sample", "--workdir=x", "--out=y", "--format=tif"], "--format=tif: value should be one of <jpg|png>"),
        (["sample", "--workdir=x", "--out=y", "--per_grade=1", f"--seed={2**32}"], "--seed=4294967296"),
        (["sample", "--workdir=x", "--out=y", "--per_grade=1", "--balance"], "--per_grade and --balance"),
        (["sample", "--workdir=x", "--out=y", "--per_grade=1", "--count=1"], "--count 1: it goes with --grade"),
        (["sample", "--workdir=x", "--out=y", "--grade=1"], "--count N"),
        (["sample", "--workdir=x", "--out=y", "stray", "words"], "'stray'"),
        (["sample", "--workdir=x", "--out=y", "--truncation=nan"], "--truncation=nan: not a number"),
        (["train", "--workdir=x", "--dry_run=perhaps"], "--dry_run=perhaps: not true or false"),
        (["train", f"--config={CGAN}", "--workdir="], "--workdir is empty"),
        (["evaluate", "--workdir="], "--workdir is empty"),
        (["train", "--config", "--workdir=x"], "--config has no value"),
        (["evaluate", "--workdir=x", "--keep_share=0.3"], "--keep_share goes with --usefulness"),
        (["phantom", "--out=x", "--train=a,b,c,d,e"], "--train=a,b,c,d,e: give whole numbers"),
        (["phantom", "--out=x", "--train=1,2"], "give 5 whole numbers"),
        (["phantom", "--out=x", "--height=10"], "height"),
    ],
)
def test_wrong_arguments_are_refused(refused, monkeypatch, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in refused(*arguments)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.data.flp", "did you mean data.flip?"),
        ("--config.dta.flip=true", "did you mean data.flip?"),
        ("--config.samplng=balanced", "did you mean data.sampling?"),
        ("--noconfig.data.flp", "did you mean data.flip?"),
        ("--config.data=3", "--config.data: a group of fields"),
        ("--config.batch_size=abc", "--config.batch_size=abc: not a whole number"),
        ("--config.batch_size=1.5", "--config.batch_size=1.5: not a whole number"),
        ("--config.batch_size", "--config.batch_size has no value"),
        ("--config.total_kimg=ten", "--config.total_kimg=ten: not a number"),
        ("--config.loss.r1=ten", "config.loss.r1 = 'ten': must be a number or"),
        ("--config.data.flip=maybe", "--config.data.flip=maybe: not true or false"),
        ("--config.total_kimg=inf", "config.total_kimg = inf"),
        ("--config.network=cgan33", "config.network = 'cgan33': did you mean cgan32?"),
        ("--config.checkpoint.best=nonsense", "config.checkpoint.best = 'nonsense'"),
    ],
)
def test_wrong_fields_are_refused(refused, tmp_path, override, named):
    assert named in refused("train", "--config", CGAN, "--workdir", tmp_path / "run", override)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_that_name", "nothing_of_that_name"),
        ("x = 1", "get_config"),
        ("def get_config():\n    raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("def get_config():\n    return {'seed': 1}", "get_config() returned dict"),
        (
            "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'network': 'cgan32'})",
            "is missing: begin the file with",
        ),
        (
            "from idrid_jax.config import default_config as get_config\nnew = get_config\n"
            "def get_config():\n    c = new()\n    c.batch_sze = 2\n    return c",
            "config.batch_sze: no such field; did you mean batch_size?",
        ),
    ],
)
def test_files_that_are_no_configuration_are_refused(refused, tmp_path, text, named):
    path = tmp_path / "mine.py"
    path.write_text(text)
    assert named in refused("train", "--config", path, "--workdir", tmp_path / "run")


def test_dry_run_prints_layers_and_configuration(capsys, tmp_path):
    assert cli.main(["train", "--config", CGAN, "--workdir", str(tmp_path / "run"), "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "1,382,077" in out and "212,987" in out and '"network": "cgan32"' in out
    assert not (tmp_path / "run").exists()


def test_every_form_of_an_override(capsys, tmp_path, no_table):
    for arguments, expected in (
        (["--config.data.flip"], {"flip": True}),
        (["--config.data.flip=true"], {"flip": True}),
        (["--noconfig.data.flip"], {"flip": False}),
        (["--config.data.flip=False"], {"flip": False}),
        (
            ["--config.data.pipeline", "tfdata", "-config.data.crop=letterbox"],
            {"pipeline": "tfdata", "crop": "letterbox"},
        ),
        (["--config.data.resident_mib=5"], {"resident_mib": 5.0}),
    ):
        assert cli.main(["train", f"--config={CGAN}", f"--workdir={tmp_path / 'run'}", "--dry_run", *arguments]) == 0
        out = capsys.readouterr().out
        config = json.loads(out[out.index("\n{\n") :])
        assert config["data"] | expected == config["data"]


def test_home_is_expanded_in_every_path(capsys, tmp_path, monkeypatch, no_table):
    """A shell expands no ~ after "=", as in --config=~/mine.py."""
    shutil.copy(CGAN, tmp_path / "mine.py")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(["train", "--config=~/mine.py", "--workdir=~/run", "--dry_run"]) == 0
    assert cli.main(["train", "--config", "~/mine.py", "--workdir=~/run", "--dry_run"]) == 0
    assert cli.main(["phantom", "--out=~/phantom", *TINY_PHANTOM]) == 0
    assert (tmp_path / "phantom").is_dir()


# -- From a release to an evaluation


class Generator16(TinyGenerator):
    """Images of 16 pixels a side: SSIM needs 11."""

    def __call__(self, z, grades):
        return jnp.repeat(jnp.repeat(super().__call__(z, grades), 2, axis=1), 2, axis=2)


class Discriminator16(TinyDiscriminator):
    def features(self, images, grades, *, rngs=None):
        return super().features(images[:, ::2, ::2], grades, rngs=rngs)


def test_from_a_release_to_an_evaluation(folder, capsys, monkeypatch, no_table):
    """phantom, prepare, train, resume, sample, prepare the samples, evaluate: a command each, with a space in paths."""
    out = folder / "all commands"
    monkeypatch.setitem(
        NETWORKS, "tiny16", Network(Generator16, Discriminator16, 16, 3, conditional=True, latent_size=LATENT)
    )
    monkeypatch.setenv("TFDS_DATA_DIR", str(out / "data"))

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out + printed.err

    def next_command(text):
        """The arguments of the command that `text` names as the next one, as a shell reads it."""
        program, *arguments = shlex.split(text.rpartition("next: ")[2].splitlines()[0])
        assert program == "idrid-jax"
        return arguments

    text = run("phantom", "--out", out / "phantom", "--height=64", "--train=3,1,2,1,1", "--test=1,1,0,0,0",
               "--segmentation=1,0")  # fmt: skip
    assert next_command(text) == ["prepare", "--release", str(out / "phantom")]
    text = run(*next_command(text), "--notfds", "--overlap")
    assert "PROLIFERATIVE" in text and "part A photographs that are in part B: 0" in text
    assert next_command(text)[:2] == ["train", "--config"]
    train = ["train", "--config", CGAN, "--workdir", out / "run", *SMALL, "--config.data.flip",
             "--config.network=tiny16", "--config.data.min_images_per_class=0"]  # fmt: skip
    text = run(*train, "--config.total_kimg", "0.008")
    for words in ("layers", "release phantom (", "by grade: [3, 1, 2, 1, 1]", "step 1 (0.008 kimg)"):
        assert words in text, words
    text = run(*train, "--config.total_kimg", "0.016")
    assert "resuming from step 1" in text and "step 2 (0.016 kimg)" in text
    assert [json.loads(line)["step"] for line in (out / "run" / "stats.jsonl").read_text().splitlines()] == [1, 2]
    evaluate = next_command(text)
    assert evaluate == ["evaluate", "--workdir", str(out / "run")]
    text = run("sample", "--workdir", out / "run", "--out", out / "balanced", "--balance", "--format=png")
    assert "7 images by grade [0, 2, 1, 2, 2]" in text
    text = run(*next_command(text), "--data_dir", out / "other", "--notfds", "--keep_contradictions")
    assert f"--config.data.data_dir={out / 'other'}" in next_command(text)
    text = run(*evaluate, "--count=4", "--weights=")
    assert "tiny16" in text and "step 2 (0.016 kimg" in text
    assert (out / "run" / "evaluation.json").is_file()


def test_sample_by_an_unconditional_generator(unconditional, capsys, tmp_path):
    assert cli.main(["sample", "--workdir", str(unconditional), "--out", str(tmp_path / "out"), "--count=3"]) == 0
    assert "3 images in" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3


# -- Releases with faults


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


def climb_out(release):
    folder = release / layout.PARTS["B"]
    with zipfile.ZipFile(release / f"{folder.name}.zip", "w") as archive:
        for path in folder.rglob("*"):
            archive.write(path, path.relative_to(release))
        archive.writestr("../../out.txt", "out")
    shutil.rmtree(folder)


MASK = Path(
    layout.PARTS["A"], layout.TRUTHS["A"], layout.SPLIT_FOLDERS["train"], layout.LESIONS["MA"], "IDRiD_01_MA.tif"
)
BAD = {
    "empty folder": (lambda r: shutil.rmtree(r) or r.mkdir(), ["10.21227/H25W98", "CC BY 4.0"]),
    "no folder": (shutil.rmtree, ["no such file or folder", "10.21227/H25W98"]),
    "row without a file": (lambda r: (photographs(r) / "IDRiD_004.jpg").unlink(), ["IDRiD_004", ".csv"]),
    "file without a row": (
        lambda r: shutil.copy(photographs(r) / "IDRiD_004.jpg", photographs(r) / "IDRiD_099.jpg"),
        ["IDRiD_099.jpg", ".csv"],
    ),
    "grade 5": (
        lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,5"),
        ["IDRiD_004", "'Retinopathy grade' '5'", "0 to 4"],
    ),
    "grade -1": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,-1"), ["IDRiD_004", "'-1'", "0 to 4"]),
    "grade 1.5": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,1.5"), ["IDRiD_004", "'1.5'", "0 to 4"]),
    "no grade": (lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,"), ["IDRiD_004", "''", "0 to 4"]),
    "a word for a grade": (
        lambda r: replace(labels(r), b"IDRiD_004,0", b"IDRiD_004,mild"),
        ["IDRiD_004", "'mild'", "0 to 4"],
    ),
    "truncated JPEG": (lambda r: truncate(photographs(r) / "IDRiD_004.jpg"), ["IDRiD_004.jpg"]),
    "not an image": (lambda r: (photographs(r) / "IDRiD_004.jpg").write_text("hello"), ["IDRiD_004.jpg"]),
    "empty image": (lambda r: (photographs(r) / "IDRiD_004.jpg").write_bytes(b""), ["IDRiD_004.jpg"]),
    "decompression bomb": (lambda r: bomb(photographs(r) / "IDRiD_004.jpg"), ["IDRiD_004.png", "decompression bomb"]),
    "zip that climbs out": (climb_out, [".zip", "../../out.txt"]),
    "mask of another size": (
        lambda r: (r / MASK).write_bytes(encode_mask(np.eye(32, 48, dtype=bool))),
        ["IDRiD_01_MA.tif", "48", "96"],
    ),
    "truncated mask": (lambda r: (r / MASK).write_bytes((r / MASK).read_bytes()[:60]), ["IDRiD_01_MA.tif"]),
    "no label file": (lambda r: labels(r).unlink(), ["Training Labels.csv"]),
    "empty label file": (lambda r: labels(r).write_bytes(b""), ["Training Labels.csv"]),
}


@pytest.mark.parametrize("what", BAD)
def test_a_release_with_a_fault_is_refused(manifest, refused, tmp_path, what):
    release = tmp_path / "release"
    shutil.copytree(manifest.release, release)
    damage, words = BAD[what]
    damage(release)
    message = refused("prepare", "--release", release, "--data_dir", tmp_path / "data", "--notfds")
    for word in words:
        assert word in message, message
    assert not (tmp_path / "data" / "idrid_jax" / "latest").exists()
    assert not (tmp_path.parent / "out.txt").exists()


def test_two_releases_in_one_folder_are_refused(manifest, refused, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(manifest.release, tmp_path / name)
    message = refused("prepare", "--release", tmp_path, "--data_dir", tmp_path / "data")
    assert str(tmp_path / "one") in message and str(tmp_path / "two") in message


# -- Places that cannot be written


def unwritable(tmp_path):
    (tmp_path / "file").write_text("a file where a folder should be")
    return [tmp_path / "file" / "below", "/proc/idrid_jax"]


def test_places_that_cannot_be_written(manifest, workdir, refused, tmp_path):
    for place in unwritable(tmp_path):
        for arguments in (
            ["phantom", "--out", place, *TINY_PHANTOM],
            ["prepare", "--notfds", "--release", manifest.release, "--data_dir", place],
            ["sample", "--workdir", workdir, "--out", place, "--per_grade=1"],
        ):
            assert "data_dir" not in refused(*arguments)
        message = refused(
            "train",
            "--config",
            CGAN,
            "--workdir",
            place,
            *SMALL,
            f"--config.data.data_dir={manifest.folder.parent.parent}",
            prints=True,
        )
        assert f"--workdir {place}: " in message


@pytest.mark.parametrize(
    "arguments", [["phantom", *TINY_PHANTOM], ["sample", "--per_grade=1"]], ids=lambda arguments: arguments[0]
)
def test_a_full_disk(workdir, refused, tmp_path, monkeypatch, arguments):
    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    more = ["--workdir", workdir] if arguments[0] == "sample" else []
    message = refused(*arguments, *more, "--out", tmp_path / "out")
    assert str(tmp_path) in message and "No space left on device" in message


@pytest.fixture
def tiny_disk(tmp_path):
    place = tmp_path / "tiny"
    place.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64k", "none", place], capture_output=True).returncode
    ):
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_small_disk_that_fills(workdir, tiny_disk, refused):
    for arguments in (["phantom", "--height=178"], ["sample", "--per_grade=99", "--workdir", workdir]):
        assert "No space left on device" in refused(*arguments, "--out", tiny_disk / "out")
        assert not list(tiny_disk.iterdir())


def test_a_disk_that_fills_while_training(manifest, refused, tmp_path, monkeypatch, no_table):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "train", full)
    message = refused(
        "train",
        "--config",
        CGAN,
        "--workdir",
        tmp_path / "run",
        f"--config.data.data_dir={manifest.folder.parent.parent}",
        prints=True,
    )
    assert f"{tmp_path / 'run'}: No space left on device; make room" in message


def test_pillow_s_warnings_are_not_a_second_line(manifest, tmp_path, refused, recwarn):
    release = tmp_path / "release"
    shutil.copytree(manifest.release, release)
    BAD["truncated mask"][0](release)
    refused("prepare", "--release", release, "--data_dir", tmp_path / "data", "--notfds")
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


# -- Runs that cannot start, or are not there


def test_train_before_prepare(refused, tmp_path):
    message = refused(
        "train", "--config", CGAN, "--workdir", tmp_path / "run", f"--config.data.data_dir={tmp_path / 'data'}"
    )
    assert "no release has been prepared under" in message and "prepare --release PATH first" in message


def test_a_release_of_another_name(manifest, refused, tmp_path):
    message = refused(
        "train",
        "--config",
        CGAN,
        "--workdir",
        tmp_path / "run",
        "--config.data.release=deadbeef",
        f"--config.data.data_dir={manifest.folder.parent.parent}",
    )
    assert "'deadbeef'" in message and manifest.fingerprint[:8] in message


def test_a_batch_that_the_devices_cannot_share(manifest, refused, tmp_path, no_table):
    message = refused(
        "train",
        "--config",
        CGAN,
        "--workdir",
        tmp_path / "run",
        "--config.batch_size=12",
        *SMALL[1:],
        f"--config.data.data_dir={manifest.folder.parent.parent}",
        prints=True,
    )
    assert "config.batch_size = 12 is not divisible by 8 devices" in message


def test_another_configuration_in_the_same_workdir(workdir, refused):
    data_dir = json.loads((workdir / "config.json").read_text())["config"]["data"]["data_dir"]
    message = refused(
        "train",
        "--config",
        CGAN,
        "--workdir",
        workdir,
        "--config.seed=5",
        f"--config.data.data_dir={data_dir}",
        prints=True,
    )
    assert "config.seed: 0 -> 5" in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--count=2"], "--per_grade N, --grade G --count N, or --balance"),
        ([], "--per_grade N, --grade G --count N, or --balance"),
        (["--per_grade=1", "--step=9"], "step 9"),
    ],
)
def test_sample_without_a_number_or_a_checkpoint(workdir, refused, tmp_path, arguments, named):
    assert named in refused("sample", "--workdir", workdir, "--out", tmp_path / "out", *arguments)


@pytest.mark.parametrize("arguments", [["--per_grade=1"], ["--grade=0", "--count=1"], ["--balance"], []])
def test_an_unconditional_generator_has_no_grades(unconditional, refused, tmp_path, arguments):
    message = refused("sample", "--workdir", unconditional, "--out", tmp_path / "out", *arguments)
    assert "dcgan28 is unconditional" in message and "--count N" in message


@pytest.mark.parametrize("name", ["sample", "evaluate"])
def test_an_empty_or_damaged_workdir(workdir, refused, tmp_path, name):
    rest = ["--out", tmp_path / "out", "--per_grade=1"] if name == "sample" else []
    empty = tmp_path / "empty"
    assert "no run is there (no config.json)" in refused(name, "--workdir", empty, *rest)
    empty.mkdir()
    assert "no run is there (no config.json)" in refused(name, "--workdir", empty, *rest)
    (empty / "config.json").write_text('{"config": ')
    assert str(empty / "config.json") in refused(name, "--workdir", empty, *rest)
    for damaged in ('{"config": {}, "data": 3}', '{"config": {"loss": 3}}', '{"config": []}', "[]"):
        (empty / "config.json").write_text(damaged)
        assert str(empty / "config.json") in refused(name, "--workdir", empty, *rest)


def test_out_that_holds_something(workdir, refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    message = refused("sample", "--workdir", workdir, "--out", tmp_path, "--per_grade=1")
    assert str(tmp_path) in message


def test_evaluate_when_the_release_is_no_longer_prepared(folder, manifest, refused, tmp_path):
    shutil.copytree(manifest.folder.parent.parent, tmp_path / "data")
    there = read_manifest(tmp_path / "data" / "idrid_jax" / manifest.fingerprint)
    moved = made_run.make_run(tmp_path / "run", there)
    shutil.rmtree(tmp_path / "data" / "idrid_jax" / manifest.fingerprint)
    message = refused("evaluate", "--workdir", moved)
    assert "made up" in message and manifest.fingerprint[:12] in message and "--data_dir" in message


# -- The terminal


def test_ctrl_c_is_one_line(tmp_path):
    """While a release is written; nothing of it remains."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "idrid_jax", "phantom", "--out", out, "--height=712"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's "&" ignores it
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".partial-*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "idrid-jax: interrupted\n"
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_is_no_error(monkeypatch, tmp_path):
    """As in `idrid-jax phantom ... | head -0`: the command does its work, and nothing is left for Python to flush."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert cli.main(["phantom", "--out", str(tmp_path / "phantom"), *TINY_PHANTOM]) == 0
        stream.flush()
    assert (tmp_path / "phantom").is_dir()


def test_a_terminal_that_cannot_encode_a_path(monkeypatch, tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["phantom", "--out", str(tmp_path / "\u7f51"), *TINY_PHANTOM]) == 0
    assert b"\\u7f51" in stream.buffer.getvalue()


def test_a_platform_that_is_not_there_is_named(monkeypatch, workdir, refused, tmp_path):
    def no_backend(*_):  # as JAX does where JAX_PLATFORMS=cuda finds no GPU
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", no_backend)
    assert "JAX_PLATFORMS=cuda" in refused("sample", "--workdir", workdir, "--out", tmp_path / "out", "--per_grade=1")


def test_a_progress_bar_is_cleared_before_other_output(monkeypatch, capsys):
    """On a terminal; also where an error ends the stages."""
    from idrid_jax.cli.progress import StageProgress

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with pytest.raises(ValueError), StageProgress() as progress:
        progress("first", 2)
        progress("second", 2)
        progress.close()
        shown = capsys.readouterr().err
        raise ValueError("wrong")
    assert "second" in shown and shown.rpartition("\r")[2].strip() == "" and not capsys.readouterr().err.strip()
