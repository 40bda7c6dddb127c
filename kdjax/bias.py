"""The old name of what is in `kdjax.specialists`, for one release."""

from kdjax._renamed import moved

__all__, __getattr__ = moved(__name__)
