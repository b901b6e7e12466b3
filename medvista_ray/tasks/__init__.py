"""Task sources, their graders, and the splits by subject."""
