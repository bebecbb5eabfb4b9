"""The layouts that a data set can have, and where its files come from."""
