"""The errors of a run that are neither a wrong value nor a file system's."""

__all__ = ["StatedError"]


class StatedError(Exception):
    """Its sentence says all there is to say: people are shown that, and no traceback."""
