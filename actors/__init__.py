"""Thin Ray shells: generator, learner, coordinator."""
