"""Medical tools: one class per file, the same class in-process or behind Ray Serve."""
