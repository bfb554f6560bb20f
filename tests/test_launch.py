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
