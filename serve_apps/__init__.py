"""Ray Serve applications: the tools."""
