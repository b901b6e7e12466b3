"""Every exception of the library, as one flat list under one base.

Invariant: each class takes one plain message, so that it pickles and crosses Ray unchanged. A user's mistake is a
`UserError` (also a ValueError) whose message names the field, the value, the rule and the nearest valid name. What goes
wrong inside an episode is not an exception but data (see `types.ErrorCode`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MedVistaError(Exception):
    """Base of all errors raised on purpose."""


class UserError(MedVistaError, ValueError):
    """The user can mend this: a wrong value, file or option."""


class ConfigError(UserError):
    """A configuration key or value breaks a rule."""


class UnknownNameError(UserError):
    """A registry has no entry of that name."""


class AssetError(UserError):
    """A data package is absent, corrupt or cannot be stored."""


class DatasetError(UserError):
    """A public data set is not in the folder, or not in its published format."""


class JudgeError(UserError):
    """The judge model cannot be reached or refuses to answer."""


class ImageError(UserError):
    """A picture or volume cannot be read."""


class RunFolderError(UserError):
    """The output folder holds another run, or a checkpoint does not fit this run."""


class ToolArgumentError(MedVistaError):
    """A tool refuses its arguments: schema-valid, but not usable on these images (error code E4). Becomes an observation."""


class ToolInfrastructureError(MedVistaError):
    """A tool could not be reached or died: retried and counted, never scored."""


class WeightUpdateError(MedVistaError):
    """An engine could not load a published policy version; the old version keeps serving."""


class NotReadyError(MedVistaError):
    """An actor did not come up in time."""


class GeneratorDiedError(MedVistaError):
    """A generator process is gone, with whatever it was sampling; its groups are sampled again elsewhere."""


class LearnerGroupError(MedVistaError):
    """A process of a learner of several failed or is gone; the others cannot go on without it."""


class StarvationError(MedVistaError):
    """Groups come back, but none that could be trained: the run would wait for ever."""


class InvariantError(MedVistaError):
    """An invariant of the design does not hold: a bug, never a user's mistake."""


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """A message tail: the nearest valid name, or all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"valid: {', '.join(names)}"
