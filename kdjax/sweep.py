"""The old name of what is in `kdjax.many`, for one release."""

from kdjax._renamed import moved

__all__, __getattr__ = moved(__name__)
