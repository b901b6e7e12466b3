"""Tools that find where something is."""
