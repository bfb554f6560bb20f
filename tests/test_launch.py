"""Scripts that a shell accepts and that name files of the tree."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "set -euo pipefail" in text
    for named in re.findall(r"(?:launch|configs)/[\w.]+", text):
        assert (ROOT / named).is_file(), f"{script.name} names {named}"
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def fake_python(folder, old=False, name="python-fake"):
    """An interpreter that claims to be of some version, and logs what else it is asked to `calls`."""
    path = folder / name
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


def install(tmp_path, *arguments, **environment):
    environment = {"VENV": str(tmp_path / "venv"), "PATH": f"{tmp_path}:{os.environ['PATH']}"} | environment
    return subprocess.run(
        ["bash", ROOT / "launch" / "install.sh", *arguments],
        env={name: value for name, value in os.environ.items() if name != "PYTHON"} | environment,
        capture_output=True,
        text=True,
    )


def test_install_refuses_an_unsupported_python_in_one_line(tmp_path):
    for python, found in ((fake_python(tmp_path, old=True), "Python 3.9.1"), (tmp_path / "python9", "not found")):
        done = install(tmp_path, PYTHON=str(python))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert str(python) in done.stderr and found in done.stderr and "PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_install_finds_a_supported_python_by_uv(tmp_path):
    fake_python(tmp_path, old=True, name="python3")
    (tmp_path / "uv").write_text(f'#!/bin/sh\n[ "$1 $2" = "python find" ] && echo {fake_python(tmp_path)}\n')
    (tmp_path / "uv").chmod(0o755)
    assert install(tmp_path).returncode == 0
    assert (tmp_path / "calls").read_text().startswith(f"-m venv {tmp_path / 'venv'}")
    assert install(tmp_path, PYTHON="python3").returncode == 2  # the user's choice is not replaced


def test_install_installs_once_and_again_for_other_extras(tmp_path):
    python = str(fake_python(tmp_path))
    calls = tmp_path / "calls"
    lines = lambda: calls.read_text().splitlines()
    assert install(tmp_path, PYTHON=python).returncode == 0
    assert len(lines()) == 2 and lines()[0] == f"-m venv {tmp_path / 'venv'} --clear" and lines()[1].endswith("-e .")
    assert "constraints.txt" in lines()[1]
    again = install(tmp_path, PYTHON=python)
    assert (again.returncode, again.stdout, len(lines())) == (0, "", 2)
    assert install(tmp_path, "test,peer", PYTHON=python).returncode == 0
    assert lines()[-1].endswith("-e .[test,peer]")
    for extras in ("test", "peer", "peer,test", ""):
        assert install(tmp_path, *filter(None, [extras]), PYTHON=python).returncode == 0
    assert len(lines()) == 3


def test_install_and_the_package_want_the_same_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = (ROOT / "launch" / "install.sh").read_text()
    assert project["requires-python"] == ">=3.11,<3.15" and "(3, 11) <= sys.version_info[:2] <= (3, 14)" in script
    assert project["license"] == "Apache-2.0" and "Apache License" in (ROOT / project["license-files"][0]).read_text()
