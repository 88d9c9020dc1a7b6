"""A figure of its own: no pyplot, no global state, no window system looked for."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

_SCREEN_DPI = 80  # at which a notebook shows it; the picture itself is twice as fine


class Picture(Figure):
    """A matplotlib figure that a notebook shows where it is a cell's last value.

    Args:
        width: Inches.
        height: Inches.

    Example:
        >>> picture = dmamba.Run("runs/hopper-sample-seed0").plot()
        >>> picture.axes[0].set_yscale("log")
        >>> picture.savefig("loss.pdf")
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), dpi=120, layout="constrained")

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        data = io.BytesIO()
        self.savefig(data, format="png", dpi=2 * _SCREEN_DPI)
        width, height = (round(_SCREEN_DPI * inches) for inches in self.get_size_inches())
        return data.getvalue(), {"width": width, "height": height}
