"""Depth: leave out whole blocks, those that change what passes through them least.

Block influence (ShortGPT, Men et al. 2024, arXiv:2403.03853): 1 - cos(x, f(x)) between what enters and what leaves a
block, averaged over tokens; a block that hardly turns its input is hardly needed.
Contiguous (Gromov et al. 2024, arXiv:2403.17887): of all runs of n blocks, leave out the one between whose ends the
hidden state of a window's last token turns by the smallest angle.
The last block stays in both: it turns little and is needed most.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from sizewise.core.errors import UsageError
from sizewise.core.params import Range, Search
from sizewise.load.layers import Layout
from sizewise.make.method import structure_method
from sizewise.make.packed import Reshaped
from sizewise.make.reshape import Tensors, keep_blocks, renamed

if TYPE_CHECKING:
    from torch import Tensor


@structure_method
def depth(
    layout: Layout,
    config: dict[str, Any],
    tensors: Tensors,
    block_influence: "Tensor",
    angular: "Tensor",
    *,
    share: Annotated[float, Range(0, 1), Search(0.1, 0.2, 0.3)] = 0.25,
    by: Literal["influence", "angular"] = "influence",
) -> Reshaped:
    """Prune: leave out the blocks that change what passes through them least.

    Args:
        layout: the network's parts.
        config: its config.json.
        tensors: its tensors.
        block_influence: (n,), 1 - mean cosine of what enters and what leaves each block.
        angular: (n + 1, n + 1), mean angle / pi between two boundaries.
        share: share of the blocks to leave out, rounded down; 0 returns the network untouched.
        by: influence = any blocks, by their influence; angular = neighbours, by the angle across all of them.

    Returns:
        A network of the same kind with fewer blocks, which stock transformers loads.

    Raises:
        UsageError: no block would stay.
    """
    count = len(layout.blocks)
    drop = int(share * count + 1e-9)
    if drop >= count:
        raise UsageError(f"all {count} blocks would go; leave at least one with a smaller --share")
    gone = least_influence(block_influence, drop) if by == "influence" else least_angle(angular, drop)
    kept = [index for index in range(count) if index not in gone]
    figures = {"blocks_left_out": sorted(gone), "blocks": len(kept)}
    return Reshaped(keep_blocks(config, layout, kept), renamed(layout, tensors, kept), figures)


def least_influence(influence: "Tensor", drop: int) -> set[int]:
    """The `drop` blocks of least influence, the last one only when no other is left; of equals the later."""
    count = len(influence)
    order = sorted(range(count - 1), key=lambda index: (float(influence[index]), -index))
    return set(order[:drop])


def least_angle(angular: "Tensor", drop: int) -> set[int]:
    """The run of `drop` neighbours, the last block not among them, across which the state turns least."""
    count = len(angular) - 1
    starts = range(count - drop) if drop else range(1)
    start = min(starts, key=lambda begin: float(angular[begin, begin + drop]))
    return set(range(start, start + drop))
