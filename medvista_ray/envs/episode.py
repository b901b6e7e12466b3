"""The environment: one episode of one task, its budget of calls, its pictures and its masks.

Owns the numbering of pictures and masks and the error codes E1..E5, all decided mechanically. Invariant: the gold
answer is never read here, so nothing the environment says can disclose it; rewards live elsewhere. Called by the
rollout loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medvista_ray.envs.lineage import lineage
from medvista_ray.errors import InvariantError
from medvista_ray.protocol import ToolCall, parse
from medvista_ray.tools.base import Tool, ToolClient, ToolContext
from medvista_ray.types import ErrorCode, Mask, MedImage, Observation, StepResult, Task, ToolOutcome, ToolResult

NO_CALLS_LEFT = "No calls left: answer now."
NO_TOOL = "no tool is on offer: answer in <answer>...</answer>"


class MedEnv:
    """An episode. `client` None is the arm without tools: there every call is error E1.

    `open_images` opens a task's pictures; it runs in a thread, so it must be thread-safe. Not shared between episodes.
    """

    def __init__(self, client: ToolClient | None, open_images: Callable[[Task], Sequence[MedImage]], max_calls: int) -> None:
        self.images: list[MedImage] = []
        self.masks: list[Mask] = []
        self.observation = Observation("")
        """What the policy was shown last."""
        self._client = client
        self._open_images = open_images
        self._max_calls = max_calls
        self._calls_used = 0
        self._running = False

    @property
    def specs(self) -> tuple[type[Tool], ...]:
        """The tools on offer."""
        return self._client.specs if self._client else ()

    async def reset(self, task: Task) -> Observation:
        """Start `task`: the question and its pictures, numbered from 0."""
        images = await asyncio.to_thread(self._open_images, task)
        self.images, self.masks = list(images), []
        self._calls_used, self._running = 0, True
        self.observation = Observation(task.question, tuple(images))
        return self.observation

    async def step(self, text: str) -> StepResult:
        """Take one turn of the policy.

        A turn that breaks the grammar counts as a call and is told what was wrong. Raises ToolInfrastructureError if
        a tool stays out of reach, InvariantError if the episode is over.
        """
        if not self._running:
            raise InvariantError("step on an episode that is over; call reset first")
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

    def _end(self, *, answer: str | None = None, message: str = "", call: ToolCall | None = None) -> StepResult:
        """The last step: an answer, or a turn beyond the budget (E1: no tool is on offer any more)."""
        self._running = False
        answered = answer is not None
        outcome = ToolOutcome(None, None if answered else ErrorCode.E1, message)
        return StepResult(
            observation=Observation("" if answered else f"error {ErrorCode.E1}: {message}"),
            terminated=answered,
            truncated=not answered,
            info={**self._info(call, outcome), "answer": answer, "images": [], "data": {}},
        )

    def _info(self, call: ToolCall | None, outcome: ToolOutcome) -> dict[str, Any]:
        return {
            "calls_used": self._calls_used,
            "calls_left": self._max_calls - self._calls_used,
            "tool_name": call.name if call else None,
            "tool_ok": outcome.result is not None,
            "error_code": outcome.error,
            "message": outcome.message,
            "latency_s": outcome.latency_s,
            "num_retries": outcome.num_retries,
            "arguments": call.arguments if call else {},
            "answer": None,
        }

    def _lineage(self, result: ToolResult, call: ToolCall | None) -> list[Mapping[str, Any]]:
        if call is None:
            return []
        spec = next((spec for spec in self.specs if spec.name == call.name), None)
        return lineage(call, spec, self.masks, len(self.images), result.images)
