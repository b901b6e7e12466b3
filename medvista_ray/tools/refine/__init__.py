"""Tools that change what is seen."""
