"""The tests, in rooms that mirror the source; what several of them use lies in support/."""
