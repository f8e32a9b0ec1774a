"""Tiny models of every family, written once."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "load"))  # where the families are written

import torch
from families import write_family


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model of a family; nothing may be written into it."""
    torch.set_num_threads(1)  # the tensors are too small to share

    @cache
    def written(name: str) -> Path:
        return write_family(name, tmp_path_factory.mktemp("families") / name)

    return written


@pytest.fixture
def windows() -> torch.Tensor:
    """Six windows of 40 tokens that every tiny vocabulary has."""
    return torch.randint(3, 100, (6, 40), generator=torch.Generator().manual_seed(0))
