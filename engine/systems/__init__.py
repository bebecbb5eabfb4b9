"""The systems that can be trained, one file for each, and what they share."""
