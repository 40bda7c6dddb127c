"""Packages that only some parts need: where one is missing, a line says how to install it."""

import contextlib
from collections.abc import Iterator


class MissingPackage(ImportError):
    """A package of an extra is not installed; the message holds the command that installs it."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what belongs to an extra.

    Args:
        extra: its name in `pip install 'kdjax[extra]'`.

    Raises:
        MissingPackage: if a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingPackage(
            f"{package} is not installed: python -m pip install 'kdjax[{extra}]'", name=error.name
        ) from None
