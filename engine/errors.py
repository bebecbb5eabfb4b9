"""The errors that commands print as one line: InputError with exit status 2, LostRank with 1."""


class InputError(Exception):
    """One line that says what is wrong with the input and what to do about it."""


class SharedError(InputError):
    """An InputError that all ranks leave with; the first tells the user."""


class LostRank(Exception):
    """Another of the processes that train together is gone."""
