"""Where `kdjax.models.load_network` was; older code imports it from here."""

from kdjax._renamed import moved

__all__, __getattr__ = moved(__name__)
