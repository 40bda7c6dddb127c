"""A hostile environment: eight devices, no silent rank promotion, warnings are errors."""

import os

from xla import EIGHT_DEVICES, QUICK_COMPILATION

os.environ.setdefault("JAX_PLATFORMS", "cpu")
flags = os.environ.get("XLA_FLAGS", ""), QUICK_COMPILATION, EIGHT_DEVICES
os.environ["XLA_FLAGS"] = " ".join(flags)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
