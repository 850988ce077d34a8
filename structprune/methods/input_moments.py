"""Second moments of what each run of inputs brings to a layer, and the whitening that they give.

A block whose inputs are large, or alike, has a large gradient without being of more use. In the coordinates
``C^(-1/2)`` of its inputs' second moments ``C`` the gradient's norm is the descent that a step on the block promises,
and ``||W C^(1/2)||`` is the root mean square of what the block adds to its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from structprune.methods.masked import Masked
from structprune.methods.parts import Grid
from structprune.methods.ranks import sum_over_ranks

__all__ = ["InputMoments"]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class InputMoments:
    """Running second moments of the runs of inputs of every layer of blocks, ``(runs, width, width)`` each.

    Parameters
    ----------
    model
        Whose layers are watched, through forward hooks that :meth:`remove` takes away.
    decay
        Weight of what was there at each update.
    damping
        Added to the diagonal, as a fraction of its mean.

    Raises
    ------
    ValueError
        If the structures are no blocks of linear or convolution weights.
    """

    def __init__(self, model: Masked, decay: float = 0.9, damping: float = 0.1) -> None:
        self.decay, self.damping = decay, damping
        self.watching = False
        self.moments: dict[str, Tensor] = {}
        self.grids: dict[str, Grid] = {}
        self.handles: list[RemovableHandle] = []
        for place in model.places:
            owner = model.inner.get_submodule(place.tensor.rpartition(".")[0])
            if not isinstance(place.part, Grid) or not isinstance(owner, WEIGHTED):
                raise ValueError(
                    f"Expected blocks of linear and convolution weights for whitening. Got {place.tensor!r}. "
                    "Pass whiten=False."
                )
            self.grids[place.tensor] = place.part
            # Channels of a grouped convolution are read group by group: a weight's column meets inputs of all groups.
            columns = model.inner.get_parameter(place.tensor).shape[1]
            self.handles.append(owner.register_forward_pre_hook(self._watch(place.tensor, place.part, columns)))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _watch(self, name: str, grid: Grid, columns: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if self.watching and module.training:
                rows = inputs[0].detach() if isinstance(module, nn.Linear) else inputs[0].detach().movedim(1, -1)
                self._add(name, grid, rows.reshape(-1, columns).float())

        return hook

    @torch.no_grad()
    def _add(self, name: str, grid: Grid, rows: Tensor) -> None:
        columns = rows.shape[1]
        runs, width = grid.tiles.shape[1], grid.width
        rows = F.pad(rows, (0, runs * width - columns)).view(-1, runs, width)
        moment = torch.einsum("nrb,nrc->rbc", rows, rows)
        # Ranks may see batches of different sizes: sums and counts go together.
        total = sum_over_ranks(torch.cat([moment.flatten(), moment.new_tensor([float(len(rows))])]))
        moment = total[:-1].view_as(moment) / total[-1]
        before = self.moments.get(name)
        self.moments[name] = moment if before is None else self.decay * before + (1 - self.decay) * moment

    def powered(self, name: str, weight: Tensor, exponent: float) -> Tensor:
        """Return ``weight`` with each block times ``C^exponent`` of its run of inputs, in the weight's shape."""
        if name not in self.moments:
            return weight
        grid, moment = self.grids[name], self.moments[name].double()
        runs, width = grid.tiles.shape[1], grid.width
        scale = moment.diagonal(dim1=1, dim2=2).mean().clamp(min=1e-12)
        eye = torch.eye(width, dtype=moment.dtype, device=moment.device)
        values, vectors = torch.linalg.eigh(moment + self.damping * scale * eye)
        power = (vectors * values.clamp(min=1e-12).pow(exponent)[:, None, :]) @ vectors.mT
        outputs, inputs = weight.shape[:2]
        flat = F.pad(weight.reshape(outputs, inputs, -1).double(), (0, 0, 0, runs * width - inputs))
        turned = torch.einsum("orbt,rbc->orct", flat.view(outputs, runs, width, -1), power)
        return turned.reshape(outputs, runs * width, -1)[:, :inputs].reshape(weight.shape).to(weight.dtype)
