"""Policy versions and how they travel from the learner to running engines."""
