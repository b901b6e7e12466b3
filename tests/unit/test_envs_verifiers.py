"""The verifiers adapter inside the real verifiers: its env, agent, trace and scoring, over a scripted model endpoint."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from medvista_ray.protocol import ToolCall, render_turn

vf = pytest.importorskip("verifiers.v1")

HARNESS = '''
"""Chats in the test's own process; verifiers allows it as long as every model call goes through its endpoint."""
import httpx
import verifiers.v1 as vf
from verifiers.v1.dialects.chat import message_to_wire

__all__ = ["InProcessHarness"]


class InProcessConfig(vf.HarnessConfig):
    pass


class InProcessHarness(vf.Harness[InProcessConfig]):
    APPENDS_SYSTEM_PROMPT = SUPPORTS_RESUME = True
    EXECUTES_CODE = NEEDS_CONTAINER = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data, tool_interception_url=None):
        system, prompt = self.resolve_prompt(data)
        messages = [message_to_wire(message) for message in prompt]
        if system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        async with httpx.AsyncClient(timeout=30) as http:
            reply = await http.post(
                f"{endpoint}/chat/completions",
                json={"model": ctx.model, "messages": messages},
                headers={"Authorization": f"Bearer {secret}"},
            )
        reply.raise_for_status()
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")
'''


class ScriptedModel(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint that writes the given turns, by the number of user turns so far."""

    turns: tuple[str, ...] = ()
    seen: tuple[list[dict[str, Any]], ...] = ()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        ScriptedModel.seen += (body["messages"],)
        number = sum(message["role"] == "user" for message in body["messages"])
        message = {"role": "assistant", "content": self.turns[number - 1]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
                 "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}  # fmt: skip
        data = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScriptedModel)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "in_process_harness.py").write_text(HARNESS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SCRIPTED_KEY", "none")
    from verifiers.v1.utils.loaders import environment_class

    from medvista_ray.envs.adapters.verifiers import MedVistaConfig, MedVistaEnvConfig, MedVistaVerifiersEnv

    assert environment_class("", "medvista_ray") is MedVistaVerifiersEnv, "found by the package's name alone"
    settings = {
        "bench": {"source": "tests.unit.test_envs_verifiers:OneTask"},
        "tools": ["zoom_in"],
        "image_side": 32,
        "max_calls": 2,
    }
    player = vf.AgentConfig(harness={"id": "in_process_harness"}, runtime={"type": "subprocess"})
    yield MedVistaVerifiersEnv(MedVistaEnvConfig(taskset=MedVistaConfig(id="medvista_ray", settings=settings), player=player))
    sys.modules.pop("in_process_harness", None)


class OneTask:
    """A source of one question, made from a configuration."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def tasks(self, split: Any) -> list[Any]:
        return [light_task()]

    def open(self, task: Any) -> list[Any]:
        import numpy as np

        from medvista_ray.types import MedImage

        return [MedImage(pixels=np.arange(4800, dtype=np.int16).reshape(60, 80), modality="CT")]


def light_task() -> Any:
    from medvista_ray.types import AnswerKind, Split, Task

    return Task(
        id="t1", source="test", family="organ", split=Split.TRAIN, subject="s1", modality="CT",
        question="Which organ is bright?", answer="spleen", kind=AnswerKind.TEXT,
    )  # fmt: skip


def play(env: Any, endpoint: str, *turns: str) -> Any:
    ScriptedModel.turns, ScriptedModel.seen = turns, ()
    client = vf.EvalClientConfig(base_url=endpoint, api_key_var="SCRIPTED_KEY")

    async def run() -> Any:
        (task,) = env.taskset
        async with env.serving():
            return await env.run_episode(task, vf.ModelContext(model="m", client=client))

    return asyncio.run(run())


ZOOM = render_turn("closer", ToolCall("zoom_in", {"bbox": [100, 100, 600, 700]}))


def test_verifiers_plays_scores_and_records_an_episode(env: Any, endpoint: str) -> None:
    episode = play(env, endpoint, ZOOM, render_turn("seen", "spleen"))
    assert episode.ok, episode.errors
    (trace,) = episode.traces
    assert trace.reward == pytest.approx(1.4)
    assert (trace.metrics["correct"], trace.metrics["num_calls"]) == (1.0, 1.0)
    assert trace.info["error_codes"] == []
    first, second = ScriptedModel.seen
    assert "zoom_in(" in first[0]["content"]
    assert [part["type"] for part in second[-1]["content"]] == ["image_url", "text"], "the tool's picture came back"
    assert "spleen" not in json.dumps(second), "nor the gold answer in reach"


def test_error_codes_reach_the_trace(env: Any, endpoint: str) -> None:
    (trace,) = play(env, endpoint, ZOOM, render_turn("seen", "liver")).traces
    assert trace.info["error_codes"] == ["E6"]
    (trace,) = play(env, endpoint, "no tags", render_turn("seen", "spleen")).traces
    assert trace.info["error_codes"] == ["E1"]
    assert trace.reward == pytest.approx(0.8)


def test_the_wire_data_of_a_task_hold_no_answer(env: Any) -> None:
    (task,) = env.taskset
    assert task.key == "t1"
    assert "spleen" not in task.data.model_dump_json()
