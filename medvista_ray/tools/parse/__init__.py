"""Tools that turn a region into numbers or text."""
