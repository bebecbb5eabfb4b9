"""A module's forward as a graph, or the reason why no graph stands for it."""
