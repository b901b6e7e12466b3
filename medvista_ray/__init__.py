"""medvista_ray: asynchronous agentic RL of vision-language models that think with medical images, on Ray."""

__version__ = "0.1.0"
