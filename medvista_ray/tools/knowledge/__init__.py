"""Tools that look something up."""
