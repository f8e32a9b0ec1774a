"""What the options of a method demand of matrices' shapes, asked before any work.

Each method refuses what does not fit when it comes to it; that is after minutes of calibration.
"""

from collections.abc import Iterable
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.load.layers import Linear
from sizewise.make.grids import MOST_BITS, group_size
from sizewise.make.lowrank import rank_for
from sizewise.make.sparsity import parse_pattern


def require_fitting(options: dict[str, Any], linears: Iterable[Linear]) -> None:
    """Refuse groups and patterns that do not divide rows, and ranks that save nothing.

    Args:
        options: of a weight method.
        linears: the matrices that it will change.

    Raises:
        UsageError: one does not fit; the message names the matrix.
    """
    for linear in linears:
        try:
            if "group" in options and options.get("bits", 0) <= MOST_BITS:
                group_size(options["group"], linear.shape[1])
            if "pattern" in options:
                parse_pattern(options["pattern"], linear.shape[1])
            rank = options.get("rank")
            if options.get("keep", 1) < 1 or rank is not None:
                rank_for(linear.shape, options["keep"], rank)
        except UsageError as error:
            raise UsageError(f"{linear.name}: {error}") from error
