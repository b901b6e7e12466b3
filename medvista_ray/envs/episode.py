"""The environment: one episode of one task, its budgets of calls, tokens and time, its pictures and its masks.

Owns the numbering of pictures and masks and the error codes E1..E5, all decided mechanically. Invariant: the gold
answer is never read here, so nothing the environment says can disclose it; rewards live elsewhere. Called by the
rollout loop, and through `session` by the Gymnasium facade and the adapters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvista_ray.envs.lineage import lineage
from medvista_ray.errors import InvariantError
from medvista_ray.protocol import ToolCall, parse
from medvista_ray.tools.base import Tool, ToolClient, ToolContext
from medvista_ray.types import ErrorCode, Mask, MedImage, Observation, StepResult, Task, ToolOutcome, ToolResult

NO_CALLS_LEFT = "No calls left: answer now."
NO_TOOL = "no tool is on offer: answer in <answer>...</answer>"


@dataclass(frozen=True)
class Budget:
    """What an episode may spend beside its calls; None is without bound. A turn that exceeds one ends the episode."""

    tokens: int | None = None
    """Sampled tokens, as `step` is told them."""
    seconds: float | None = None
    """Wall clock since `reset`."""


class MedEnv:
    """An episode. `client` None is the arm without tools: there every call is error E1.

    `open_images` opens a task's pictures; it runs in a thread, so it must be thread-safe. Not shared between episodes.
    """

    def __init__(
        self,
        client: ToolClient | None,
        open_images: Callable[[Task], Sequence[MedImage]],
        max_calls: int,
        budget: Budget | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.images: list[MedImage] = []
        self.masks: list[Mask] = []
        self.observation = Observation("")
        """What the policy was shown last."""
        self._client = client
        self._open_images = open_images
        self._max_calls = max_calls
        self._budget = budget or Budget()
        self._clock = clock
        self._calls_used = self._tokens_used = self._turn = 0
        self._start_s = 0.0
        self._running = False

    @property
    def max_calls(self) -> int:
        """Tool calls that an episode may make."""
        return self._max_calls

    @property
    def specs(self) -> tuple[type[Tool], ...]:
        """The tools on offer."""
        return self._client.specs if self._client else ()

    async def reset(self, task: Task) -> Observation:
        """Start `task`: the question and its pictures, numbered from 0."""
        images = await asyncio.to_thread(self._open_images, task)
        self.images, self.masks = list(images), []
        self._calls_used = self._tokens_used = self._turn = 0
        self._start_s, self._running = self._clock(), True
        self.observation = Observation(task.question, tuple(images))
        return self.observation

    async def step(self, text: str, num_tokens: int = 0) -> StepResult:
        """Take one turn of the policy, of `num_tokens` sampled tokens (they count only against a budget of tokens).

        A turn that breaks the grammar counts as a call and is told what was wrong. Raises ToolInfrastructureError if
        a tool stays out of reach, InvariantError if the episode is over.
        """
        if not self._running:
            raise InvariantError("step on an episode that is over; call reset first")
        self._turn += 1
        self._tokens_used += num_tokens
        if spent := self._overspent():
            return self._end(message=spent, code=None)
        turn = parse(text)
        if turn.answer is not None:
            return self._end(answer=turn.answer)
        if self._calls_used >= self._max_calls:
            return self._end(message=f"the budget of {self._max_calls} calls is spent", call=turn.call)
        self._calls_used += 1
        if turn.call is None:
            return self._observe(ToolOutcome(None, turn.error, turn.message), None)
        if self._client is None:
            return self._observe(ToolOutcome(None, ErrorCode.E1, NO_TOOL), turn.call)
        context = ToolContext(images=dict(enumerate(self.images)), masks=dict(enumerate(self.masks)))
        outcome = await self._client.call(turn.call.name, turn.call.arguments, context)
        return self._observe(outcome, turn.call)

    def _overspent(self) -> str:
        """Which budget of tokens or time this turn exceeds, in words; "" if none."""
        budget = self._budget
        if budget.tokens is not None and self._tokens_used > budget.tokens:
            return f"the budget of {budget.tokens} tokens is spent"
        if budget.seconds is not None and self._clock() - self._start_s > budget.seconds:
            return f"the budget of {budget.seconds:g} s is spent"
        return ""

    def _observe(self, outcome: ToolOutcome, call: ToolCall | None) -> StepResult:
        result = outcome.result
        if result is None:
            result = ToolResult(f"error {outcome.error}: {outcome.message}")
        images = self._lineage(result, call)
        self.images.extend(result.images)
        self.masks.extend(result.masks)
        spent = self._calls_used >= self._max_calls
        text = f"{result.text}\n{NO_CALLS_LEFT}" if spent else result.text
        self.observation = Observation(text, result.images)
        return StepResult(
            observation=self.observation,
            terminated=False,
            truncated=False,
            info={**self._info(call, outcome), "images": images, "data": result.data},
        )

    def _end(
        self,
        *,
        answer: str | None = None,
        message: str = "",
        call: ToolCall | None = None,
        code: ErrorCode | None = ErrorCode.E1,
    ) -> StepResult:
        """The last step: an answer, or a turn beyond a budget (of calls: E1, no tool is on offer any more)."""
        self._running = False
        answered = answer is not None
        outcome = ToolOutcome(None, None if answered else code, message)
        shown = f"error {code}: {message}" if code else message
        return StepResult(
            observation=Observation("" if answered else shown),
            terminated=answered,
            truncated=not answered,
            info={**self._info(call, outcome), "answer": answer, "images": [], "data": {}},
        )

    def _info(self, call: ToolCall | None, outcome: ToolOutcome) -> dict[str, Any]:
        return {
            "turn": self._turn,
            "tokens_used": self._tokens_used,
            "calls_used": self._calls_used,
            "calls_left": self._max_calls - self._calls_used,
            "tool_name": call.name if call else None,
            "tool_ok": outcome.result is not None,
            "error_code": outcome.error,
            "message": outcome.message,
            "latency_s": outcome.latency_s,
            "num_retries": outcome.num_retries,
            "arguments": dict(call.arguments) if call else {},
            "answer": None,
        }

    def _lineage(self, result: ToolResult, call: ToolCall | None) -> list[Mapping[str, Any]]:
        if call is None:
            return []
        spec = next((spec for spec in self.specs if spec.name == call.name), None)
        return lineage(call, spec, self.masks, len(self.images), result.images)
