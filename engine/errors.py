"""The error that means: the user can mend this. Commands print it as one line and exit with status 2."""


class InputError(Exception):
    """One line that says what is wrong with the input and what to do about it."""
