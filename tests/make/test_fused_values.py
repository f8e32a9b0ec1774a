"""Matrices that hold q, k and v: errors of q and k are made up for, those of values are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.doors import link_files
from sizewise.load.layers import layout_of
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import load_calibration
from sizewise.make.method import methods
from sizewise.make.recorded import Recorded

Family = Callable[[str], Path]
SMALL: dict[str, Any] = {"tokens": 240, "window": 40}


@pytest.mark.parametrize("which", ["gpt2", "phi3", "falcon"])
@pytest.mark.parametrize("method", ["gptq", "sparsegpt"])
def test_in_a_fused_matrix_only_the_rows_of_values_go_without_repairs(method: str, which: str, family: Family) -> None:
    """They are what they would be alone, and so are the others."""
    base = family(which)
    options = {"bits": 3, "group": 16} if method == "gptq" else {"pattern": "2:4"}
    model = make(method, str(base), name="made", options={**options, **SMALL}, store=Store())
    source = DenseSource(link_files(model.files, base.parent / f"{which}-{method}"))
    layout = layout_of(base)
    linear = next(each for each in layout.blocks[0].linears if each.role == "qkv")
    found = source.form(linear.name).dense() if method == "gptq" else source.get(linear.weight).float()
    found = found.T if linear.transposed and method != "gptq" else found
    recorded = Recorded(find_model(str(base)).digest, load_calibration(None, base, **SMALL).digest, layout)
    seen = next(each for each in recorded.block(0, hessian=True) if linear.name in each.names)
    weight = TensorSource(base).get(linear.weight).float()
    weight = weight.T.contiguous() if linear.transposed else weight
    hessian, function = seen.mean("hessian"), methods().get(method)
    for values, metric in ((False, hessian), (True, hessian.diagonal().diag())):
        rows = torch.cat([torch.full((count,), (part == "v") == values) for part, count in linear.rows])
        alone = function(weight[rows], metric, **options)
        alone = alone.stored().dense() if method == "gptq" else alone
        assert torch.allclose(found[rows], alone.to(found.dtype), atol=1e-6), values
