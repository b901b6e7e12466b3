"""The environment inside other frameworks: SkyRL-Gym, TRL, verifiers. Each module imports its peer, nothing else does."""
