"""Errors that a user can act on: each message says what was expected, what was found, and what to do next."""


class InputError(ValueError):
    """A value, file or table is not what the benchmark can work with."""


class MissingError(FileNotFoundError):
    """A file or folder that the benchmark needs is not there."""

    def __str__(self) -> str:
        """Return the message alone (FileNotFoundError would print errno fields)."""
        return str(self.args[0]) if self.args else ""
