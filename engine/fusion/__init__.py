"""How engine.fuse finds, trusts and replaces chains of operations."""
