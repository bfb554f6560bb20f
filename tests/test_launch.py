"""Scripts that a shell accepts, and configurations that load, are valid, and say how they are run."""

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from idrid_jax import config as config_lib
from idrid_jax.models import NETWORKS

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    for named in re.findall(r"(?:launch|configs)/[\w.]+", text):
        assert (ROOT / named).is_file(), f"{script.name} names {named}"
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def fake_python(folder, old: bool):
    """An interpreter that says which Python it is, and writes down what else it is asked."""
    path = folder / "python-fake"
    path.write_text(f"""#!/usr/bin/env bash
case "$1" in
  -c) exit {int(old)} ;;
  --version) echo "Python 3.9.1" ;;
  -m) [ "$2 $3" != "pip --version" ] || exit 0 ;;&
  *) echo "$*" >> "{folder}/calls"
     if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; fi ;;
esac
""")
    path.chmod(0o755)
    return path


def install(tmp_path, old, *arguments):
    environment = os.environ | {"PYTHON": str(fake_python(tmp_path, old)), "VENV": str(tmp_path / "venv")}
    return subprocess.run(["bash", ROOT / "launch" / "install.sh", *arguments], env=environment, capture_output=True,
                          text=True)


def test_install_refuses_another_python_in_one_line(tmp_path):
    done = install(tmp_path, old=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    for words in ("Python 3.9.1", "3.11 to 3.13 is needed", "PYTHON="):
        assert words in done.stderr
    assert not (tmp_path / "venv").exists()


def test_install_refuses_a_python_that_is_not_there_in_one_line(tmp_path):
    environment = os.environ | {"PYTHON": str(tmp_path / "python9"), "VENV": str(tmp_path / "venv")}
    done = subprocess.run(["bash", ROOT / "launch" / "install.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "python9" in done.stderr, done.stderr
    assert not (tmp_path / "venv").exists()


def test_install_installs_once_and_again_for_other_extras(tmp_path):
    calls = tmp_path / "calls"
    lines = lambda: calls.read_text().splitlines()
    assert install(tmp_path, False).returncode == 0
    assert len(lines()) == 2 and lines()[0] == f"-m venv {tmp_path / 'venv'} --clear" and lines()[1].endswith("-e .")
    assert "constraints.txt" in lines()[1]
    again = install(tmp_path, False)
    assert (again.returncode, again.stdout, len(lines())) == (0, "", 2)
    assert install(tmp_path, False, "test,peer").returncode == 0
    assert lines()[-1].endswith("-e .[test,peer]")
    for extras in ("test", "peer", "peer,test", ""):
        assert install(tmp_path, False, *filter(None, [extras])).returncode == 0
    assert len(lines()) == 3


def test_install_and_the_package_want_the_same_python():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    script = (ROOT / "launch" / "install.sh").read_text()
    assert wanted == ">=3.11,<3.14" and "(3, 11) <= sys.version_info[:2] <= (3, 13)" in script


# -- configurations

def test_there_is_one_for_each_network():
    assert {path.stem for path in CONFIGS} >= set(NETWORKS)
    family = [f"{name}{size}" for name in ("dcgan", "retina") for size in (64, 128, 256, 512, 1024)]
    assert set(NETWORKS) == {"cgan32", "dcgan28", *family}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs(path):
    module = load(path)
    config = module.get_config()
    config_lib.check(config)
    name = f"configs/{path.name}"
    assert f"idrid-jax train --config {name} --workdir runs/{path.stem}" in module.__doc__
    assert (ROOT / name).is_file() and config.network == path.stem
    if not path.stem.startswith("retina"):
        assert "3.3" in module.__doc__, "the thesis's section"
    for field in re.findall(r"--config\.([\w.]+)", module.__doc__):
        assert field in dict(config_lib.fields(config)), field
    assert module.get_config() is not config  # nobody's change is anybody else's


def test_the_faithful_configurations_have_none_of_the_options():
    for path in CONFIGS:
        config = load(path).get_config()
        if config.network in ("dcgan256", "dcgan512", "dcgan1024") or "retina" in config.network:  # not the thesis's
            continue
        options = config.ema_kimg, config.loss.label_smoothing, config.optimizer.clip_norm, config.init_from
        assert options == (0, 0, 0, "")


@pytest.mark.parametrize(("field", "value", "says"), [
    ("total_kimg", float("inf"), "must be above 0 and finite"),
    ("total_kimg", float("nan"), "must be above 0"),
    ("snapshot_kimg", 0.0, "must be above 0"),
    ("batch_size", 0, "at least 1"),
    ("batch_size", True, "a whole number"),
    ("batch_size", 12.0, "a whole number"),
    ("seed", 2**32, r"in \[0, 2\*\*32\)"),
    ("seed", -1, r"in \[0, 2\*\*32\)"),
    ("ema_kimg", float("nan"), "finite and not negative"),
    ("ema_kimg", "1", "must be a number"),
    ("optimizer.b1", 1.0, r"must be in \[0, 1\)"),
    ("optimizer.b2", -0.1, r"must be in \[0, 1\)"),
    ("optimizer.clip_norm", -1.0, "not negative"),
    ("loss.label_smoothing", 1.0, r"must be in \[0, 1\)"),
    ("checkpoint.keep_last", 0, "at least 1"),
    ("data.flip", 1, "True or False"),
    ("data.crop", "fov", "field_of_view"),
    ("data.pipeline", "residnt", "did you mean resident"),
    ("network", "dcgan_128", "did you mean dcgan128"),
    ("network", 3, "must be text"),
    ("dtype", "float16", "did you mean"),
])
def test_values_that_no_run_can_have(field, value, says):
    config = config_lib.default_config()
    config.network = "cgan32"
    config.unlock()
    *groups, leaf = field.split(".")
    group = config
    for name in groups:
        group = group[name]
    with group.ignore_type():
        group[leaf] = value
    with pytest.raises(config_lib.UserError, match=says) as caught:
        config_lib.check(config)
    assert f"config.{field} = " in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_number_may_stand_for_a_fraction():
    config = config_lib.default_config()
    config.network = "cgan32"
    config.total_kimg = 5
    config_lib.check(config)


@pytest.mark.parametrize("field", ["dtype", "data.crop", "optimizer.b1"])
def test_a_missing_or_unknown_field_is_named(field):
    config = config_lib.default_config()
    config.network = "cgan32"
    *groups, leaf = field.split(".")
    group = config[groups[0]] if groups else config
    with group.unlocked():
        del group[leaf]
    with pytest.raises(config_lib.UserError, match=f"config.{field} is missing"):
        config_lib.check(config)
    with group.unlocked():
        group[leaf + "x"] = 1
    with pytest.raises(config_lib.UserError, match=f"config.{field}x: no such field; did you mean {field}"):
        config_lib.check(config)
