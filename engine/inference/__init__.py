"""A trained model and the pictures that go through it."""
