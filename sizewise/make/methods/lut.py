"""A codebook for every row: values where the weights are, not evenly spaced (SqueezeLLM, Kim et al. 2023).

arXiv:2306.07629. One-dimensional k-means on the weights of a row, each weighing as much as its input is loud: the grid
row of layer-wise compression with the diagonal of H, and with the grid itself free. In one dimension clusters are
intervals, so that rows are sorted once and every later step is a search for borders and a difference of running sums.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.load.forms import narrow
from sizewise.make.grids import MOST_BITS, fit
from sizewise.make.method import weight_method
from sizewise.make.packed import Codebook

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def lut(
    weight: "Tensor",
    input_norm: "Tensor",
    *,
    bits: Annotated[int, Range(1, 16), Search(3, 4)] = 4,
    steps: Annotated[int, Range(0, 1000)] = 50,
) -> "Tensor | Codebook":
    """Quantize: each row gets a table of values of its own, placed where its weights are.

    Args:
        weight: (out, in).
        input_norm: (in,), root mean square of each input feature over the calibration tokens.
        bits: of each code, so that a table has 2^bits values; above 8 the matrix is left as it is.
        steps: of k-means; 0 leaves evenly spaced values.
    """
    import torch

    if bits > MOST_BITS:
        return weight
    importance = input_norm.to(torch.float64).square()
    if not float(importance.sum()) > 0:
        importance = torch.ones_like(importance)
    values, order = weight.to(torch.float64).sort(dim=1)
    rows = _Rows(values, importance[order])
    grid = fit(weight.to(torch.float64)[:, None, :], bits, symmetric=False)
    even = grid.decode(torch.arange(2**bits, dtype=torch.float64))[:, 0]
    # a row of few values, such as one that a table was made for before, gets them all: k-means might merge two
    best, least = even, rows.cost(even)
    tables = [rows.settled(start, steps) for start in (even, rows.quantiles(2**bits))]
    for table in (*tables, rows.distinct(2**bits)):
        cost = rows.cost(table)
        best = torch.where((cost < least)[:, None], table, best)
        least = torch.minimum(cost, least)
    table = narrow(best).float()  # as it will be stored: the nearest value is sought among those
    codes = _nearest(weight.float(), table)
    return Codebook(codes.to(torch.uint8), table, bits)


class _Rows:
    """Sorted rows (out, in) and running sums of their importance, by which the mean of any interval is at hand."""

    def __init__(self, values: "Tensor", importance: "Tensor") -> None:
        import torch

        self.values, self.importance = values, importance
        pad = values.new_zeros(values.shape[0], 1)
        self.mass = torch.cat([pad, importance.cumsum(1)], 1)
        self.moment = torch.cat([pad, (importance * values).cumsum(1)], 1)

    def step(self, table: "Tensor") -> "Tensor":
        """Each value of the sorted `table` (out, k) moved to the mean of the weights that are nearest to it."""
        import torch

        cuts = torch.searchsorted(self.values, _borders(table))
        first, last = torch.zeros_like(cuts[:, :1]), torch.full_like(cuts[:, :1], self.values.shape[1])
        cuts = torch.cat([first, cuts, last], 1)
        mass = self.mass.gather(1, cuts).diff(dim=1)
        mean = self.moment.gather(1, cuts).diff(dim=1) / mass
        return torch.where(mass > 0, mean, table).sort(dim=1).values

    def settled(self, table: "Tensor", steps: int) -> "Tensor":
        """`table` after so many steps."""
        for _ in range(steps):
            table = self.step(table)
        return table

    def distinct(self, number: int) -> "Tensor":
        """(out, number) the first values that differ, the last of them as often as there is room."""
        import torch

        new = torch.cat([torch.zeros_like(self.values[:, :1]), self.values.diff(dim=1) != 0], 1)
        place = new.cumsum(1).long()
        table = self.values[:, -1:].repeat(1, max(number, self.values.shape[1]))
        return table.scatter(1, place, self.values)[:, :number].contiguous()

    def quantiles(self, number: int) -> "Tensor":
        """(out, number) values with equal importance between each two."""
        import torch

        share = (torch.arange(number, dtype=torch.float64) + 0.5) / number
        wanted = (self.mass[:, -1:] * share).contiguous()
        place = torch.searchsorted(self.mass[:, 1:].contiguous(), wanted).clamp(max=self.values.shape[1] - 1)
        return self.values.gather(1, place)

    def cost(self, table: "Tensor") -> "Tensor":
        """(out,) weighted square error with every weight at its nearest value."""
        rounded = table.gather(1, _nearest(self.values, table))
        return ((self.values - rounded).square() * self.importance).sum(1)


def _borders(table: "Tensor") -> "Tensor":
    return ((table[:, 1:] + table[:, :-1]) / 2).contiguous()


def _nearest(weight: "Tensor", table: "Tensor") -> "Tensor":
    """The number of the nearest value in each row's sorted table."""
    import torch

    return torch.searchsorted(_borders(table), weight.contiguous())
