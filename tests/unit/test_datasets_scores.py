"""Scores on a set: what the fields mean, the known pitfalls of such graders, and the judge as a column of its own."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from medvista_ray import cli
from medvista_ray.config import BenchConfig
from medvista_ray.errors import JudgeError, UnknownNameError, UserError
from medvista_ray.tasks.datasets.commands import read_answers
from medvista_ray.tasks.judge import OpenAiJudge, judge_open
from medvista_ray.tasks.scoring import grade_characters, grade_words, is_right, load_grader, score_set
from medvista_ray.tasks.source import load_source
from medvista_ray.types import AnswerKind, Split, Task
from tests.unit.dataset_files import WRITERS, opened, put, shade
from tests.unit.scripted_engine import make_task


def open_task(answer: str, identifier: str = "o", **fields: Any) -> Task:
    return make_task(id=identifier, answer=answer, facts={"form": "open"}, family="open_all", **fields)


def yes_no(answer: str, identifier: str = "c") -> Task:
    return make_task(id=identifier, answer=answer, kind=AnswerKind.CHOICE, choices=("yes", "no"), family="closed_all")


def test_f1_and_recall_are_of_words_and_exact_match_is_of_the_whole_answer() -> None:
    score = grade_words(open_task("left lower lobe"), "the lower lobe of the left lung")
    assert not score.correct
    assert score.recall == 1.0
    assert score.f1 == pytest.approx(2 * 3 / (3 + 5))  # lower lobe of left lung
    assert grade_words(open_task("5.6cm"), "5.6 cm").f1 == 1.0
    assert grade_words(open_task("spleen"), "Spleen.").correct


def test_a_repeated_right_word_earns_no_more() -> None:
    assert grade_words(open_task("liver"), "liver liver liver liver").f1 == pytest.approx(2 / 5)


def test_nothing_scores_0_in_every_field_and_never_raises() -> None:
    for answer in (None, "", "  ", "...", "the"):
        score = grade_words(open_task("liver"), answer)
        assert (score.correct, score.f1, score.recall) == (False, 0.0, 0.0)
    assert grade_words(open_task("the"), "the").f1 == 0.0


def test_the_best_of_several_gold_answers_counts() -> None:
    task = open_task("femur", aliases=("thigh bone",))
    assert grade_words(task, "thigh bone").correct
    assert grade_words(task, "a thigh bone").f1 == 1.0


def test_characters_count_where_words_are_not_spaced() -> None:
    assert grade_words(open_task("左肺"), "右肺").f1 == 0.0
    assert grade_characters(open_task("左肺"), "右肺").f1 == 0.5


@pytest.mark.parametrize("gold", ["yes", "no", "right"])
def test_a_closed_right_answer_is_right_and_hedging_is_wrong(gold: str) -> None:
    task = yes_no(gold) if gold != "right" else make_task(answer="right", facts={"form": "closed"})
    table = score_set([task], {task.id: gold.upper()}, grade_words)
    assert (table.closed_accuracy, table.num_closed, table.overall) == (1.0, 1, 1.0)
    for answer in ("yes and no", "no, yes", "left or right", "right left", "nope", "yes?no"):
        assert score_set([task], {task.id: answer}, grade_words).overall == 0.0


def test_a_table_keeps_its_columns_apart_and_overall_is_of_all_questions() -> None:
    tasks = [yes_no("yes", "1"), yes_no("no", "2"), yes_no("no", "3"), open_task("liver", "4"), open_task("left lung", "5")]
    table = score_set(tasks, {"1": "yes", "2": "no", "3": "yes", "4": "liver", "5": "lung"}, grade_words)
    assert table.closed_accuracy == pytest.approx(2 / 3)
    assert table.open_exact == pytest.approx(1 / 2)
    assert table.open_f1 == pytest.approx((1 + 2 / 3) / 2)
    assert table.open_recall == pytest.approx((1 + 1 / 2) / 2)
    assert table.overall == pytest.approx(3 / 5)
    assert (table.num_closed, table.num_open, table.num_tasks, table.num_unanswered) == (3, 2, 5, 0)
    assert table.by_family == {"closed_all": pytest.approx(2 / 3), "open_all": 0.5}


def test_an_unanswered_question_is_wrong_and_counted_and_an_empty_group_has_no_score() -> None:
    table = score_set([yes_no("yes", "1"), yes_no("no", "2")], {"1": "yes", "2": " "}, grade_words)
    assert (table.overall, table.num_unanswered) == (0.5, 1)
    assert table.open_exact is table.open_f1 is table.open_recall is None
    assert score_set([], {}, grade_words).overall is None


def test_the_rewards_verdict_and_the_tables_are_the_same(tmp_path: Path) -> None:
    from medvista_ray.tasks.graders import grade

    for name in WRITERS:
        source = opened(name, tmp_path / name)
        for split in Split:
            for task in source.tasks(split):
                for answer in (task.answer, "A", "yes", "liver", ""):
                    assert load_grader(source.grader)(task, answer).correct == grade(task, answer)


def test_a_third_partys_grader_is_found_by_its_path_and_a_typo_named() -> None:
    assert load_grader("medvista_ray.tasks.scoring:grade_words") is grade_words
    with pytest.raises(UnknownNameError, match="did you mean 'words'"):
        load_grader("word")


class _Server:
    """A chat-completions server that says what it is told to, and keeps what it was sent."""

    def __init__(self) -> None:
        self.says = "CORRECT"
        self.codes: list[int] = []
        """Status codes of the next replies, before all is well."""
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []


@contextmanager
def judge_server() -> Iterator[tuple[_Server, str]]:
    state = _Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.requests.append({"path": self.path, **json.loads(body)})
            state.headers.append(dict(self.headers))
            self.send_response(state.codes.pop(0) if state.codes else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": state.says}}]}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_judge_asks_a_real_server_and_takes_only_its_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with judge_server() as (server, url):
        judge = OpenAiJudge(url, "m", pause_s=0.01)
        verdicts = {"CORRECT": True, " correct.": True, "INCORRECT": False, "It is CORRECT": None, "": None, "yes": None}
        for server.says, verdict in verdicts.items():
            assert judge(open_task("liver"), "hepar") is verdict
        sent = server.requests[0]
        assert (sent["path"], sent["model"], sent["temperature"]) == ("/v1/chat/completions", "m", 0)
        assert "liver" in sent["messages"][0]["content"]
        assert "hepar" in sent["messages"][0]["content"]
        assert server.headers[0]["Authorization"] == "Bearer k"


def test_a_busy_judge_is_asked_again_and_a_refusing_one_is_an_error() -> None:
    with judge_server() as (server, url):
        judge = OpenAiJudge(url, "m", pause_s=0.01)
        server.codes = [429, 503]
        assert judge(open_task("liver"), "hepar") is True
        server.codes = [401]
        with pytest.raises(JudgeError, match="401"):
            judge(open_task("liver"), "hepar")
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge(open_task("liver"), "hepar")
    with pytest.raises(JudgeError, match="file:"):
        OpenAiJudge("file:///etc/passwd", "m")


def test_the_judge_sees_open_questions_only_and_blank_answers_are_wrong_unasked() -> None:
    tasks = [yes_no("yes", "1"), open_task("liver", "2"), open_task("spleen", "3"), open_task("heart", "4")]
    with judge_server() as (server, url):
        column = judge_open(tasks, {"1": "yes", "2": "hepar", "3": ""}, OpenAiJudge(url, "m"))
        assert len(server.requests) == 1
    assert (column.num_judged, column.num_not_judged, column.open_judged) == (3, 0, pytest.approx(1 / 3))


def test_data_score_prints_the_table_and_a_judge_changes_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder, answers = tmp_path / "set", tmp_path / "answers.jsonl"
    WRITERS["vqa_rad"](folder)
    put(answers, '{"id": "vqa_rad/4", "answer": "CT"}\n{"task_id": "vqa_rad/5", "answer": "liver"}\n')
    command = ["data", "score", str(folder), str(answers), "--set", "vqa_rad", "--json", str(tmp_path / "a.json")]
    assert cli.main(command) == 0
    alone = json.loads((tmp_path / "a.json").read_text())
    assert (alone["closed_accuracy"], alone["open_exact"], alone["open_recall"], alone["overall"]) == (1.0, 0.0, 0.5, 0.5)
    assert (alone["judge"], alone["language"], len(alone["revision"])) == (None, "English", 16)
    with judge_server() as (_, url):
        assert cli.main([*command, "--judge-url", url, "--judge-model", "m"]) == 0
    judged = json.loads((tmp_path / "a.json").read_text())
    assert judged.pop("judge") == {"judge": "m", "num_judged": 1, "num_not_judged": 0, "open_judged": 1.0}
    assert judged == {key: value for key, value in alone.items() if key != "judge"}
    assert "by judge m" in capsys.readouterr().out
    assert cli.main([*command, "--judge-url", "http://127.0.0.1:1"]) == 2


def test_answers_to_unknown_or_repeated_questions_are_refused(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    for text, what in (
        ('{"id": "a", "answer": "x"}\n{"id": "a", "answer": "y"}', "second answer"),
        ('{"answer": "x"}', "expected text"),
        ('{"id": "a", "answer": 3}', "expected text"),
        ("[1]", "expected an object"),
        ("{", "not JSON"),
    ):
        put(answers, text)
        with pytest.raises(UserError, match=what):
            read_answers(answers)
    WRITERS["path_vqa"](tmp_path / "set")
    put(answers, '{"id": "path_vqa/nowhere", "answer": "x"}')
    assert cli.main(["data", "score", str(tmp_path / "set"), str(answers), "--set", "path_vqa"]) == 2


def test_the_set_and_the_grader_of_the_readme_run_as_they_stand(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (root / "medvista_ray/tasks/datasets/README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert all(len(block.splitlines()) <= 15 for block in blocks)
    put(tmp_path / "code" / "my_set.py", "\n".join(blocks))
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    rows = [{"id": str(i), "patient": f"p{i}", "image": "a.png", "question": "What?", "answer": "liver"} for i in range(40)]
    put(tmp_path / "data" / "questions.jsonl", "\n".join(map(json.dumps, rows)))
    put(tmp_path / "data" / "a.png", shade(3))
    source = load_source(BenchConfig(source="my_set:MySet", path=tmp_path / "data"))
    tasks = source.tasks(Split.TEST)
    assert tasks
    assert source.open(tasks[0])[0].pixels[0, 0] == 3
    put(tmp_path / "answers.jsonl", "\n".join(json.dumps({"id": task.id, "answer": "Liver"}) for task in tasks))
    assert cli.main(["data", "score", str(tmp_path / "data"), str(tmp_path / "answers.jsonl"), "--set", "my_set:MySet"]) == 0
    assert "my_set:one_word" in capsys.readouterr().out
    assert is_right(replace(tasks[0], grader="words", answer="left lung"), "Left lung")
    assert not is_right(replace(tasks[0], answer="left lung"), "Left lung"), "the set's own grader decides the reward too"
    sys.modules.pop("my_set", None)
