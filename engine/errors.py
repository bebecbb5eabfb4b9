"""The errors that commands print as one line: InputError exits with status 2, LostRank with 1."""


class InputError(Exception):
    """One line that says what is wrong with the input and what to do about it."""


class SharedError(InputError):
    """An InputError that every rank raises; only rank 0 prints it."""


class LostRank(Exception):
    """Another of the processes that train together has ended, or its machine cannot be reached."""
