"""What an episode is worth; separate from the environment."""
