"""medvista_ray: asynchronous agentic RL of vision-language models that think with medical images, on Ray."""

__version__ = "0.1.0"

__all__ = ["MedVistaTaskset", "MedVistaVerifiersEnv", "__version__"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    """verifiers finds a taskset by the names that a top-level package lists; nothing is imported before it asks."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("medvista_ray.envs.adapters.verifiers"), name)
