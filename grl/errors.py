"""The base class of every error that a caller may want to catch."""

__all__ = ["GrlError"]


class GrlError(Exception):
    """Base of every error that `grl` defines. One that reports a wrong value is also a ValueError.

    Example:
        >>> from grl.experiment.config import Config
        >>> try:
        ...     Config(steps=-1)
        ... except GrlError as error:
        ...     print(type(error).__name__)
        ConfigError
    """
