"""The policy: loading, picture preprocessing, batching and the log-probability forward.

transformers imports torchvision with its processors, so the hook must be in place before any module here is read.
"""

from medvista_ray import torchvision_shim

torchvision_shim.hook()
