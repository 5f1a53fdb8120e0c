"""The kernels of these tests run on a GPU where there is one for them, and are interpreted on the CPU where there is none.

Triton reads its variable when a kernel is loaded, and no other module of the tests loads these; so it is set for as long as
that takes, and neither other tests nor the processes that they start see it. Triton's own library comes first: part of it
loads at the first launch, when the variable is gone, and would not find the rest interpreted.
"""

from importlib.util import find_spec

import pytest

from tests.einlayers.fused.layers import HAS_GPU

if find_spec("triton") is None:  # it is there for Linux alone
    collect_ignore = ["test_kernels.py", "test_ops.py", "test_layers.py"]
else:
    import triton  # noqa: F401

    with pytest.MonkeyPatch.context() as _environment:
        if not HAS_GPU:
            _environment.setenv("TRITON_INTERPRET", "1")
        from einlayers.fused import launch

    assert launch.IS_INTERPRETED is not HAS_GPU, "something loaded the kernels before their tests did"
