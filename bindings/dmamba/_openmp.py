"""Imports torch such that its idle OpenMP threads soon sleep instead of spinning.

libgomp lets a thread that waits for the others spin for milliseconds. Where a core is busy with
another program, the waiting threads burn the time slices that the late one needs, and training
slows down many times. How long they spin is read from the environment once, when torch loads the
library.
"""

import os
import sys

# Turns of the spin loop, half a millisecond at most; libgomp's own choice is 300,000. Measured on
# two cores: as fast as that where they are quiet (no spinning at all is a third slower); 1.4 times
# as fast beside one busy program, four times at a load of 8.
SPIN_COUNT = "10000"
_SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def import_torch() -> None:
    """Imports torch; the environment is as before afterwards.

    What the user has set stands, and a torch that is already imported stays as it is.
    """
    if "torch" in sys.modules or any(name in os.environ for name in _SETTINGS):
        return
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    try:
        import torch  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"]
