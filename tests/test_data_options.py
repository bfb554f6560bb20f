"""Options of `config.data` that change what networks are shown: checked, resumed bit for bit, the same both ways in."""

import os
import signal

import pytest
from conftest import assert_same, changed, make_config

from idrid_jax import config as config_lib
from idrid_jax.errors import UserError
from idrid_jax.training.loop import train

pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::RuntimeWarning")]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data__sampling": "temperd"}, "config.data.sampling = 'temperd': did you mean tempered"),
        ({"data__sampling": "tempered", "data__temperature": 0.0}, "config.data.temperature = 0.0: must be above 0"),
        ({"data__temperature": 3.0}, "config.data.temperature = 3.0: natural sampling has none, set config.data.sampl"),
    ],
)
def test_mistakes_are_one_line(changes, words):
    with pytest.raises(UserError, match=words) as error:
        config_lib.check(make_config("", "cgan32", **changes))
    assert "\n" not in str(error.value)


def interrupt(*_):
    """A measure that interrupts the run at its first snapshot."""
    os.kill(os.getpid(), signal.SIGTERM)
    return {}


@pytest.mark.parametrize("options", [{"data__sampling": "tempered", "data__temperature": 3.0}], ids=["tempered"])
def test_resumed_is_uninterrupted_and_the_way_in_does_not_matter(config, tmp_path, options):
    resident, stream = (changed(config, data__way=way, **options) for way in ("resident", "stream"))
    whole = train(resident, tmp_path / "whole")
    assert int(train(resident, tmp_path / "parts", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(resident, tmp_path / "parts"), whole)
    assert int(train(stream, tmp_path / "stream", on_snapshot=(interrupt,)).step) == 5
    assert_same(train(stream, tmp_path / "stream"), train(stream, tmp_path / "streamed"))
