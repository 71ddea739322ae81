"""Fixtures, and the one rule for skipping: a test that needs CUDA is skipped where there is none.

With DPT_REQUIRE_CUDA=1 in the environment that skip is a failure.
"""

from __future__ import annotations

import os

import pytest
import torch


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
def _seed() -> None:
    torch.manual_seed(0)
