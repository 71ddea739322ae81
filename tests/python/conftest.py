"""Fixtures, and the one rule for skipping: a test that needs CUDA is skipped where there is none.

With DPT_REQUIRE_CUDA=1 in the environment that skip is a failure.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

# What cuBLAS needs to be deterministic; it reads it once.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Helpers that assert: their failures show values as those of tests do.
pytest.register_assert_rewrite("checkpoints", "loss_cases", "narrow", "parity", "reference", "reference_family")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        if os.environ.get("DPT_REQUIRE_CUDA") == "1":
            pytest.fail("DPT_REQUIRE_CUDA=1, and there is no CUDA device")
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True, scope="session")
def _empty_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    # torch.compile keeps graphs on disk under the names of our operators, whatever these compute today.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))


@pytest.fixture(autouse=True)
def _seed(request: pytest.FixtureRequest) -> None:
    """The random numbers of a test do not depend on which tests ran before it."""
    torch.manual_seed(0)
    if hasattr(request.module, "RNG"):
        request.module.RNG = np.random.default_rng(0)


@pytest.fixture
def no_numpy_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a division by zero, say
        yield


# Helpers are imported in the fixtures: most tests do without transformers.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the model that tests of the command run."""
    from commands import CONFIG

    from torchdpt import DPTModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    DPTModel(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def narrow() -> torch.nn.Module:
    """The peer of parity.py; shared by tests that do not change it."""
    from parity import NARROW, make_peer

    return make_peer(**NARROW)


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    """The tensors of isl-org's smallest network in checkpoints.py."""
    from checkpoints import isl_org, peer

    return isl_org(peer("base").state_dict(), "v1")
