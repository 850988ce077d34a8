"""Images as planes in which every column of a convolution is one contiguous run of memory.

A padded image is split by stride phase and channel: plane ``(py, px, c)`` holds the pixels ``(sy*i + py, sx*j + px)``
of channel ``c``, all images of the batch behind each other. A tap ``(ty, tx)`` of an output at ``(oy, ox)`` then is
the pixel ``(oy + ty // sy, ox + tx // sx)`` of the plane of phase ``(ty % sy, tx % sx)``: the same run of the plane
for all outputs, shifted by a number that depends on the tap alone. Nothing is unfolded; one copy gathers a column.

The runs also pass over the right and lower edges, where a shift reads the next row or image. Such places are computed
and thrown away forwards, and hold zero gradients backwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from structprune.layers.geometry import Geometry
from structprune.layers.pack import Packed

__all__ = ["Planes"]


@dataclass(frozen=True)
class Planes:
    """Sizes of the planes of a batch of images.

    Attributes
    ----------
    batch, channels
        Of the images.
    size
        ``(H, W)`` of the images, without padding.
    geometry
        The convolution that reads them.
    """

    batch: int
    channels: int
    size: tuple[int, int]
    geometry: Geometry

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of one plane of one image, ``(Hq, Wq)``."""
        padding, stride = self.geometry.padding, self.geometry.stride
        vertical, horizontal = (-(-(self.size[i] + 2 * padding[i]) // stride[i]) for i in range(2))
        return vertical, horizontal

    @property
    def count(self) -> int:
        """Number of planes, phases times channels."""
        return self.geometry.stride[0] * self.geometry.stride[1] * self.channels

    @property
    def run(self) -> int:
        """Length of the run that all outputs read, ``B * Hq * Wq``."""
        return self.batch * self.grid[0] * self.grid[1]

    @property
    def length(self) -> int:
        """Length of a plane: a run, and what the greatest shift reads beyond it."""
        kernel, stride = self.geometry.kernel, self.geometry.stride
        return self.run + (kernel[0] - 1) // stride[0] * self.grid[1] + (kernel[1] - 1) // stride[1]

    def place(self, tap: int) -> tuple[int, int]:
        """Return the first plane of a tap and its shift."""
        tap_y, tap_x = divmod(tap, self.geometry.kernel[1])
        step_y, phase_y = divmod(tap_y, self.geometry.stride[0])
        step_x, phase_x = divmod(tap_x, self.geometry.stride[1])
        phase = phase_y * self.geometry.stride[1] + phase_x
        return phase * self.channels, step_y * self.grid[1] + step_x

    def from_image(self, x: Tensor) -> Tensor:
        """Return the planes ``(count, length)`` of images ``(B, channels, H, W)``."""
        (top, left), (sy, sx), (rows, columns) = self.geometry.padding, self.geometry.stride, self.grid
        below, right = rows * sy - self.size[0] - top, columns * sx - self.size[1] - left
        split = F.pad(x, (left, right, top, below)).reshape(self.batch, self.channels, rows, sy, columns, sx)
        planes = x.new_zeros(self.count, self.length)
        run = planes[:, : self.run].view(sy, sx, self.channels, self.batch, rows, columns)
        run.copy_(split.permute(3, 5, 1, 0, 2, 4))
        return planes

    def to_image(self, planes: Tensor) -> Tensor:
        """Return the images ``(B, channels, H, W)`` of planes, channels innermost; the padding is dropped."""
        (top, left), (sy, sx), (rows, columns) = self.geometry.padding, self.geometry.stride, self.grid
        run = planes[:, : self.run].view(sy, sx, self.channels, self.batch, rows, columns)
        padded = run.permute(3, 2, 4, 0, 5, 1).reshape(self.batch, self.channels, rows * sy, columns * sx)
        image = torch.empty(
            (self.batch, self.channels, *self.size),
            dtype=planes.dtype,
            device=planes.device,
            memory_format=torch.channels_last,
        )
        return image.copy_(padded[:, :, top : top + self.size[0], left : left + self.size[1]])

    def runs(self, planes: Tensor) -> Tensor:
        """Return a view in which row ``p * length + shift`` is the run of plane ``p`` from ``shift`` on."""
        return planes.view(-1).as_strided((planes.numel() - self.run + 1, self.run), (1, 1))

    def rows(self, columns: Tensor) -> Tensor:
        """Return the row of :meth:`runs` that each column of the packed weight is, ``(C,)`` int64."""
        places = [self.place(tap) for tap in range(self.geometry.taps)]
        first = torch.tensor([plane * self.length + shift for plane, shift in places], device=columns.device)
        columns = columns.long()
        return first[columns // self.channels] + columns % self.channels * self.length

    def add(self, total: Tensor, parts: Tensor, columns: Tensor) -> None:
        """Add ``parts (n, run)`` into the runs of ``total (count, length)`` that ``columns (n,)``, ascending, read."""
        taps = torch.div(columns, self.channels, rounding_mode="floor")
        lengths = torch.bincount(taps, minlength=self.geometry.taps).tolist()
        end = 0
        for tap, length in enumerate(lengths):
            start, end = end, end + length
            if length:
                plane, shift = self.place(tap)
                target = total[plane : plane + self.channels, shift : shift + self.run]
                target.index_add_(0, columns[start:end] % self.channels, parts[start:end])

    def from_output(self, grad: Tensor, packed: Packed) -> Tensor:
        """Return ``dY (B, outputs, Ho, Wo)`` as ``(outputs, run)`` in stored rows, zero where there is no output."""
        rows, columns = self.grid
        stored = grad.permute(1, 0, 2, 3)
        if packed.order is not None:
            stored = stored.index_select(0, packed.order)
        padded = F.pad(stored, (0, columns - grad.shape[3], 0, rows - grad.shape[2]))
        return padded.reshape(packed.outputs, self.run)

    def to_output(self, stored: Tensor, packed: Packed) -> Tensor:
        """Return ``Y (B, outputs, Ho, Wo)``, channels innermost, of ``(outputs, run)`` in stored rows."""
        height, width = self.geometry.output_size(*self.size)
        by_image = stored.view(packed.outputs, self.batch, *self.grid)[:, :, :height, :width]
        if packed.order is not None:
            by_image = torch.empty_like(by_image).index_copy_(0, packed.order.long(), by_image)
        size = (self.batch, packed.outputs, height, width)
        y = torch.empty(size, dtype=stored.dtype, device=stored.device, memory_format=torch.channels_last)
        return y.copy_(by_image.transpose(0, 1))
