"""From a saved result to words and plots."""
