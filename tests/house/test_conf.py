"""Every file of conf/ names a settings class that exists, and holds settings that this class accepts."""

import pytest

from pipeline.core.settings import Settings, SettingsError, build
from pipeline.sweeps import compose
from tests.house.tree import ROOT, files

FILES = [path for path in files("*.yaml", under=("conf",)) if path.parent != ROOT / "conf"]


def test_every_folder_is_a_group():
    assert {path.parent.name for path in FILES} == set(compose.GROUPS)
    assert len(FILES) >= 25


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_file_is_accepted(path):
    group, name = path.parent.name, path.stem
    node = compose.tasks([name])[name] if group == "task" else compose.composed(((group, name),))[group]
    missing = [key for key, value in node.items() if value == compose.MISSING]
    assert isinstance(build(node | dict.fromkeys(missing, "given"), group), Settings)
    with pytest.raises(SettingsError, match="lerning_rate"):
        build(node | {"lerning_rate": 1}, group)
