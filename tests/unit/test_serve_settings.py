"""What Ray Serve is told, without starting it: the shipped configurations, the families, the autoscaling rule."""

from __future__ import annotations

import ast
import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from medvista_ray.config import ToolsConfig, load_config
from medvista_ray.errors import ConfigError, UnknownNameError
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.client import LocalToolClient
from tests.serve.tool_doubles import BATCHES

SERVE_FILES = ("cpu", "gpu", "cluster")
USES = dict.fromkeys(("segment_prompt", "segment_text"), ("ground", "segment_prompt"))
"""Tools that load the backends chosen for others, too."""
DOUBLES = "tests.serve.tool_doubles"


@pytest.mark.parametrize("name", SERVE_FILES)
def test_a_shipped_configuration_is_valid_for_ray_and_for_us(name: str, root: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.args import ToolsAppArgs, deployment_options

    schema = ServeDeploySchema.model_validate(yaml.safe_load((root / f"configs/serve/{name}.yaml").read_text()))
    assert (schema.proxy_location, schema.http_options.host) == ("Disabled", "127.0.0.1")
    assert [app.name for app in schema.applications] == [
        f"medvista-tools-{f}" for f in ("refine", "localize", "parse", "knowledge")
    ]
    total_gpus = 0.0
    for app in schema.applications:
        assert app.route_prefix is None
        args = ToolsAppArgs.model_validate(app.args)
        specs = args.specs()
        args.check_keys(specs)
        assert args.family == app.name.rpartition("-")[2]
        for spec in specs:
            options = deployment_options(args, spec.name)
            total_gpus += options["ray_actor_options"]["num_gpus"]
            devices = {args.backends[tool].device for tool in USES.get(spec.name, (spec.name,)) if tool in args.backends}
            assert (devices == {"cuda"}) == (options["ray_actor_options"]["num_gpus"] > 0), spec.name
    assert (total_gpus > 0) == (name != "cpu")
    assert name == "cluster" or total_gpus <= 1.0


def test_the_shipped_files_are_all_tested(root: Path) -> None:
    assert {path.stem for path in (root / "configs/serve").iterdir()} == set(SERVE_FILES)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"family": "parse", "max_ongoin": 3}, "max_ongoin"),
        ({"family": "pars"}, "parse"),
        ({"family": "parse", "backends": {"ground": {"nam": "x"}}}, "nam"),
        ({"family": "parse", "scaling": {"min_replicas": 3, "max_replicas": 2}}, "at most max_replicas"),
    ],
)
def test_a_wrong_argument_of_an_application_is_refused(values: dict[str, Any], words: str) -> None:
    from serve_apps.args import ToolsAppArgs

    with pytest.raises(ValueError, match=words):
        ToolsAppArgs.model_validate(values)


def test_a_tool_of_another_family_is_refused() -> None:
    from serve_apps.args import ToolsAppArgs

    with pytest.raises(ConfigError, match="'zoom_in' is of the family 'refine'"):
        ToolsAppArgs(family="parse", names=("measure", "zoom_in")).specs()


def test_a_job_gets_one_application_per_family_with_its_settings() -> None:
    from serve_apps.args import deployment_options, family_args

    config = load_config(
        None,
        [
            "tools.names=[zoom_in, super_resolve, ground, 'tests.serve.tool_doubles:SleepTool']",
            "tools.backends={ground: {name: grounding_dino, weights: /w, device: cuda}}",
            "tools.num_gpus={ground: 0.25}",
            "tools.tool_timeout_s={sleep: 3}",
            "tools.scaling={max_replicas: 3, target_wait_s: 0.2}",
        ],
    ).tools
    apps = {args.family: args for args in family_args(config)}
    assert {family: args.names for family, args in apps.items()} == {
        "refine": ("zoom_in", "super_resolve"),
        "localize": ("ground",),
        "parse": (f"{DOUBLES}:SleepTool",),
    }
    assert apps["localize"].options().backends["ground"].weights == Path("/w")
    options = deployment_options(apps["localize"], "ground")
    assert options["ray_actor_options"]["num_gpus"] == 0.25
    assert options["autoscaling_config"].policy.policy_kwargs == {"target_wait_s": 0.2, "max_busy": 0.8}
    assert (apps["parse"].limit_s("sleep"), apps["parse"].limit_s("other")) == (3.0, 30.0)


@pytest.mark.parametrize("field", ["backends", "num_gpus", "tool_timeout_s"])
def test_a_setting_for_a_tool_that_does_not_exist_is_told(field: str) -> None:
    value: Any = {"name": "sam2"} if field == "backends" else 1.0
    config = ToolsConfig.model_validate({field: {"segment_promt": value}})
    with pytest.raises(UnknownNameError, match=rf"{field}: unknown tool 'segment_promt'; did you mean 'segment_prompt'"):
        config.check_keys(())


def test_a_wrong_key_of_a_backend_in_a_run_is_told_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"tools\.backends\.ground\.nam.*did you mean 'name'"):
        load_config(None, ["tools.backends={ground: {nam: sam2, name: x}}"])


def test_an_installed_third_party_tool_is_served_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_apps.args import ToolsAppArgs
    from serve_apps.tools import build_tools_app

    info = tmp_path / "their_tools-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-tools\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medvista_ray.tools]\nsleepy = {DOUBLES}:SleepTool\n")
    assert "sleep" not in [spec.name for spec in ToolsAppArgs(family="parse").specs()]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    args = ToolsAppArgs(family="parse")
    assert "sleep" in [spec.name for spec in args.specs()]
    app = build_tools_app(ToolsAppArgs(family="parse", names=("sleepy",)))
    assert app._bound_deployment.init_args[0] == f"{DOUBLES}:SleepTool"


def context(num_replicas: int, queued: float = 0.0, **metrics: list[float]) -> Any:
    values = {name: dict(enumerate(given)) for name, given in metrics.items()}
    return SimpleNamespace(target_num_replicas=num_replicas, aggregated_metrics=values, total_queued_requests=queued)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (context(2), 2),  # nobody reported yet
        (context(0, queued=3.0), 1),
        (context(1, backlog_s=[0.0], busy=[0.0], service_s=[1.0]), 0),
        (context(1, backlog_s=[0.4], busy=[0.7], service_s=[1.0]), 1),
        (context(1, backlog_s=[0.6], busy=[0.9], service_s=[0.01]), 2),
        (context(1, backlog_s=[5.0], busy=[1.0], service_s=[1.0]), 10),
        (context(1, backlog_s=[0.064], busy=[0.8], service_s=[0.001]), 1),  # 64 calls that take a millisecond each
        (context(3, backlog_s=[0.0] * 3, busy=[0.9] * 3, service_s=[1.0] * 3), 4),  # no queue, but hardly any reserve
        (context(3, backlog_s=[0.1] * 3, busy=[0.5] * 3, service_s=[1.0] * 3), 2),
        (context(1, queued=10.0, backlog_s=[0.0], busy=[0.0], service_s=[0.2]), 4),  # refused by a full replica
    ],
)
def test_replicas_follow_the_work_that_waits(given: Any, expected: int) -> None:
    from serve_apps.autoscaling import QueueDepthPolicy

    assert QueueDepthPolicy(target_wait_s=0.5, max_busy=0.8)(given) == (expected, {})


def test_the_policy_needs_the_standard_library_only_and_survives_the_way_to_the_controller(root: Path) -> None:
    from ray import cloudpickle
    from ray.serve.config import AutoscalingPolicy

    from serve_apps.autoscaling import POLICY

    source = (root / "serve_apps/autoscaling.py").read_text()
    modules = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in ast.walk(ast.parse(source))
               if isinstance(n, ast.Import | ast.ImportFrom)]  # fmt: skip
    assert {str(module).partition(".")[0] for module in modules} <= set(sys.stdlib_module_names)
    sent = AutoscalingPolicy(policy_function=POLICY).get_serialized_policy_def()
    policy = cloudpickle.loads(sent)(target_wait_s=1.0)
    assert policy(context(1, backlog_s=[2.5], busy=[1.0], service_s=[1.0]))[0] == 3


def test_calls_that_wait_are_computed_together_and_a_bad_one_spoils_no_other() -> None:
    client = LocalToolClient([f"{DOUBLES}:BatchTool"])

    async def main() -> list[Any]:
        calls = [client.call("batch", {"value": value}, ToolContext({}, {})) for value in (0, 1, 2, 3, "x", 4, -1, 5, 6)]
        return await asyncio.gather(*calls)

    BATCHES.clear()
    outcomes = asyncio.run(main())
    assert [outcome.result.text if outcome.result else outcome.error.value for outcome in outcomes] == [
        "0", "1", "4", "9", "E3", "16", "E4", "25", "36",
    ]  # fmt: skip
    # The first found a free slot; then four at most, of which "x" is refused before; the last batch held -1 and was split.
    assert BATCHES == [[1, 2, 3], [4, -1, 5, 6]]


def test_a_host_tells_how_much_work_waits() -> None:
    from medvista_ray.tools.hosting import ToolHost
    from tests.serve.tool_doubles import SleepTool

    async def main() -> tuple[Any, Any]:
        host = ToolHost(SleepTool(), 5.0)
        calls = [asyncio.create_task(host.call({"seconds": 0.05}, ToolContext({}, {}))) for _ in range(8)]
        await asyncio.sleep(0)
        busy = host.load()
        await asyncio.gather(*calls)
        return busy, host.load()

    busy, idle = asyncio.run(main())
    assert busy["busy"] == 1.0
    assert busy["backlog_s"] == pytest.approx(4 * busy["service_s"] / 4)
    assert (idle["backlog_s"], idle["busy"]) == (0.0, 0.0)
    assert idle["service_s"] < busy["service_s"]  # 0.05 s a call against a first guess of 0.1 s


def test_a_replica_has_the_environment_of_the_job_that_deploys_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from medvista_ray.allocator import allocator_environment
    from serve_apps import args as served
    from serve_apps.args import ToolsAppArgs, deployment_options

    memory, ours = allocator_environment(), {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}

    def runtime_env() -> dict[str, Any]:
        options = deployment_options(ToolsAppArgs(family="parse"), "measure")
        return options["ray_actor_options"]["runtime_env"]

    monkeypatch.setattr(served.ray, "is_initialized", lambda: False)
    assert runtime_env() == {"env_vars": {**memory, **ours}}
    job = {"working_dir": "gcs://code.zip", "env_vars": {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}}
    monkeypatch.setattr(served.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(served.ray, "get_runtime_context", lambda: SimpleNamespace(runtime_env=job))
    assert runtime_env() == {"working_dir": "gcs://code.zip", "env_vars": {**memory, **job["env_vars"], **ours}}
    assert job["env_vars"] == {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
