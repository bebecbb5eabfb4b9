"""How a time is taken and how it is printed."""
