import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import einlayers


class TestPublicFace:
    @pytest.mark.parametrize("name", einlayers.__all__)
    def test_is_what_the_modules_hold(self, name: str) -> None:
        homes = [home for home, names in einlayers._HOMES.items() if name in names]
        assert len(homes) == 1
        assert getattr(einlayers, name) is getattr(import_module(homes[0]), name)

    def test_lists_all_that_it_loads(self) -> None:
        assert sorted(einlayers.__all__) == sorted(name for names in einlayers._HOMES.values() for name in names)
        assert set(einlayers.__all__) <= set(dir(einlayers))

    def test_has_no_name_that_a_module_has(self) -> None:
        # Importing a module sets its name on the package, which would replace a function of the same name.
        modules = {path.stem for path in Path(einlayers.__file__).parent.glob("*.py")}
        assert not modules & set(einlayers.__all__)

    def test_names_what_it_does_not_have(self) -> None:
        with pytest.raises(AttributeError, match="module 'einlayers' has no attribute 'EinsumLinaer'"):
            einlayers.EinsumLinaer  # noqa: B018  # the point of the test

    @pytest.mark.parametrize("use", ["Theta.parse('btt')", "resolve(einlayers.NAMED['btt'], 64, 64)", "classify"])
    def test_gives_values_without_torch(self, use: str) -> None:
        code = f"import sys, einlayers; einlayers.{use}; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
