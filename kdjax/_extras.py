"""Packages that only some parts need: where one is missing, a line says how to install it."""

import contextlib
import importlib.util
from collections.abc import Iterator

# What a run imports in its course, some of it at the end.
_OF_A_RUN = ("tensorflow_datasets", "grain", "sklearn", "PIL", "orbax", "rich", "matplotlib")


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
        command = f"python -m pip install 'kdjax[{extra}]'"
        raise MissingPackage(f"{package} is not installed: {command}", name=error.name) from None


def check_run() -> None:
    """Raise at once what would end a run later, for want of a package.

    Raises:
        MissingPackage: if a package of the extra `train` is not installed.
    """
    for package in _OF_A_RUN:
        with needs("train"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(name=package)
