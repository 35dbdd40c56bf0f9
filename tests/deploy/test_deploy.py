"""What stands in deploy/ names only what there is: metrics, labels, ports, paths, flags, keys, files."""

import argparse
import json
import re
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml

from abi_jax.cli import serve
from abi_jax.config import load
from abi_jax.serve.config import ServeConfig
from abi_jax.serve.http.metrics import Metrics
from abi_jax.serve.http.routes import RULES
from abi_jax.serve.http.rule import Rule

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
SCRAPED = {"job", "instance", "namespace", "pod"}  # labels that Prometheus adds
FUNCTIONS = {"avg", "avg_over_time", "by", "changes", "deriv", "histogram_quantile", "rate", "resets", "sum"}


def read(path: str) -> Any:
    """A file's one document."""
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


@cache
def objects() -> dict[str, Any]:
    """What kustomization.yaml applies, by kind."""
    made = [read(path) for path in read("kustomization.yaml")["resources"]]
    assert len({each["kind"] for each in made}) == len(made)
    return {each["kind"]: each for each in made}


@cache
def pod() -> Any:
    """What a pod is."""
    return objects()["Deployment"]["spec"]["template"]["spec"]


@cache
def container() -> Any:
    """The only one of a pod."""
    (found,) = pod()["containers"]
    return found


@cache
def config(*overrides: str) -> ServeConfig:
    """What the image serves."""
    return load(ServeConfig, DEPLOY / "serve.yaml", overrides, env={})


@cache
def series() -> dict[str, set[str]]:
    """The metrics there are, with their labels."""
    usage, load = SimpleNamespace(used=1, pages=2, cached=0), SimpleNamespace(waiting=0, reading=0, speaking=0)
    metrics = Metrics(cast(Any, SimpleNamespace(usage=usage, load=load, steps=1, failure=None)), "model")
    found: dict[str, set[str]] = {}
    for family in metrics._registry.collect():
        collector = cast(Any, metrics._registry._names_to_collectors[family.name])
        labels = set(collector._labelnames)
        suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",)}.get(family.type, ("",))
        found |= {family.name + end: labels | ({"le"} if end == "_bucket" else set()) for end in suffixes}
    return found


def route(path: str) -> Rule:
    """The route of a GET."""
    (found,) = [rule for rule in RULES if (rule.method, rule.path) == ("GET", path)]
    return found


def queries() -> Iterator[str]:
    """Everything that is asked of Prometheus."""
    for group in read("prometheus/rules.yaml")["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    board = read("grafana/dashboard.json")
    yield from (target["expr"] for panel in board["panels"] for target in panel.get("targets", ()))
    yield from (each["definition"] for each in board["templating"]["list"] if each["type"] == "query")
    yield from (rule["seriesQuery"] for rule in read("prometheus/adapter.yaml")["rules"]["custom"])


def recorded() -> dict[str, set[str]]:
    """The series that rules make, with their labels."""
    rules = [rule for group in read("prometheus/rules.yaml")["groups"] for rule in group["rules"] if "record" in rule]
    return {rule["record"]: set(re.findall(r"\w+", re.findall(r"by \(([^)]*)\)", rule["expr"])[0])) for rule in rules}


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_a_query_asks_for_what_there_is(query: str) -> None:
    known = {**series(), **recorded(), "up": set[str]()}
    bare = re.sub(r'"[^"]*"', '""', query)
    asked = re.findall(r"abi:[\w:]+|\bup\b", query)
    assert asked and set(asked) <= set(known)
    allowed = set().union(*(known[name] for name in asked)) | SCRAPED
    inside = " ".join(re.findall(r"{([^}]*)}", bare))
    grouped = " ".join(re.findall(r"by \(([^)]*)\)", bare))
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) | set(re.findall(r"\w+", grouped))
    assert used - {"__name__"} <= allowed
    if not query.startswith(("{", "label_values")):
        assert set(re.findall(r"\b([a-z_]+) ?\(", bare)) - {"and"} <= FUNCTIONS
    assert all(bare.count(a) == bare.count(b) for a, b in ("()", "{}", "[]"))
    for counted in re.findall(r"rate\((abi:[\w]+)", query):
        assert counted.endswith(("_total", "_bucket")), "a rate of what is no counter"


def test_alerts_say_what_to_do() -> None:
    alerts = [rule for group in read("prometheus/rules.yaml")["groups"] for rule in group["rules"] if "alert" in rule]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 5
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning") and rule["for"]
        assert set(rule["annotations"]) == {"summary", "description"}
        given = set().union(
            *({**series(), **recorded()}.get(n, set()) for n in re.findall(r"abi:[\w:]+", rule["expr"]))
        )
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert told <= given | SCRAPED
        for key in re.findall(r"limits\.(\w+)", str(rule["annotations"])):
            assert hasattr(config().limits, key)


def test_the_dashboard() -> None:
    board = json.loads((DEPLOY / "grafana/dashboard.json").read_text(encoding="utf-8"))
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    variables = {each["name"] for each in board["templating"]["list"]} | {"__rate_interval"}
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 and panel["title"]
        if panel["type"] != "row":
            assert panel["description"] and panel["targets"] and panel["datasource"]["uid"] == "${datasource}"
        for target in panel.get("targets", ()):
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= variables
            asked = set().union(*(series()[name] for name in re.findall(r"abi:[\w]+", target["expr"])))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= asked | SCRAPED


def test_ports_and_paths() -> None:
    port = config().port
    assert re.findall(r"^EXPOSE (\d+)", DOCKERFILE, re.M) == [str(port)]
    ((asked, path),) = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", DOCKERFILE)
    assert int(asked) == port and route(path).role is None
    assert container()["ports"] == [{"name": "http", "containerPort": port}]
    for probe, wanted in {"startupProbe": "/ready", "readinessProbe": "/ready", "livenessProbe": "/health"}.items():
        assert container()[probe]["httpGet"] == {"path": wanted, "port": "http"} and route(wanted).role is None
    assert [each["targetPort"] for each in objects()["Service"]["spec"]["ports"]] == ["http"]
    (endpoint,) = objects()["ServiceMonitor"]["spec"]["endpoints"]
    assert endpoint["port"] == objects()["Service"]["spec"]["ports"][0]["name"]
    # whoever scrapes needs a key, since the route asks for one
    assert route(endpoint["path"]).role is not None and endpoint["authorization"]["credentials"]
    (job,) = read("prometheus/prometheus.yaml")["scrape_configs"]
    assert job["metrics_path"] == endpoint["path"] and job["authorization"]["credentials_file"]
    compose = read("compose.yaml")["services"]
    assert [each["targets"] for each in job["static_configs"]] == [[f"abi:{port}"]] and "abi" in compose
    assert compose["abi"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    # nothing but this machine reaches what asks for no key
    assert all(each.startswith("127.0.0.1:") for one in compose.values() for each in one["ports"])
    # who reads the dashboard needs no password, and nobody has the one that Grafana comes with
    assert compose["grafana"]["environment"]["GF_AUTH_BASIC_ENABLED"] == "false"


def test_flags_and_keys() -> None:
    assert re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M) == ['["abi", "serve"]']
    (command,) = re.findall(r"^CMD (\[.*)$", DOCKERFILE, re.M)
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    for arguments in (json.loads(command), container()["args"], read("compose.yaml")["services"]["abi"]["command"]):
        options = parser.parse_args(arguments)
        made = config(*options.overrides, *([f"keys={options.keys}"] if options.keys else []))
        assert made.keys and not made.open and options.config.name == "serve.yaml"
    assert config().host == "0.0.0.0"
    for name in re.findall(r"ABI_[A-Z]+", (DEPLOY / "serve.yaml").read_text(encoding="utf-8")):
        assert hasattr(config(), name.removeprefix("ABI_").lower())


def test_keys_are_mounted_with_their_folder() -> None:
    """A file alone would stay the one that was mounted: whoever changes it puts another in its place."""
    service = read("compose.yaml")["services"]["abi"]
    (keys,) = (Path(each.removeprefix("--keys=")) for each in service["command"] if each.startswith("--keys="))
    (mount,) = (each for each in service["volumes"] if each["target"] == str(keys.parent))
    assert (mount["source"], mount["read_only"], keys.name) == ("../secrets", True, "keys.yaml")
    assert "secrets" not in service
    for name in ("compose.yaml", "../docs/deploy.md"):
        assert "abi key secrets/keys.yaml" in (DEPLOY / name).read_text(encoding="utf-8")


def test_traces_go_to_a_service_that_takes_them() -> None:
    services = read("compose.yaml")["services"]
    given = services["abi"]["environment"]
    host, port = re.findall(r"http://(\w+):(\d+)", given["OTEL_EXPORTER_OTLP_ENDPOINT"])[0]
    assert services[host]["profiles"] == ["traces"] and port == "4318"
    assert "otel" in services["abi"]["build"]["args"]["EXTRAS"].split(",")
    made = load(ServeConfig, DEPLOY / "serve.yaml", (), env={"ABI_TRACING": "true"})
    assert made.tracing and not config().tracing and "ABI_TRACING" in given


def test_what_runs_is_finished() -> None:
    drain = config().limits.drain_seconds
    grace, before = pod()["terminationGracePeriodSeconds"], container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    readiness = container()["readinessProbe"]
    assert grace >= drain + before + 10
    assert before >= readiness["periodSeconds"] * readiness["failureThreshold"]
    assert int(read("compose.yaml")["services"]["abi"]["stop_grace_period"].removesuffix("s")) >= drain + 10
    assert re.findall(r"^STOPSIGNAL (\w+)", DOCKERFILE, re.M) == ["SIGTERM"]


def test_files_of_the_image() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists() and f"!{source}" in ignored, source
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for group in re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE):
        assert all(re.search(rf"^{extra} = \[", project, re.M) for extra in group.split(","))
    # what the wheel is made of is there where it is made
    needed = re.findall(r'^"(\w+)[\w/-]*" = "abi_jax/_', project, re.M)
    assert needed and all(f"!{folder}" in ignored for folder in needed)
    assert DOCKERFILE.rindex("USER 10001") > DOCKERFILE.rindex("FROM")
    compose = read("compose.yaml")
    places = [each["source"] for one in compose["services"].values() for each in one.get("volumes", ())]
    for place in [*places, *(each["file"] for each in compose["secrets"].values())]:
        if place.startswith("./"):
            assert (DEPLOY / place).exists(), place
        elif place in compose["volumes"]:
            assert compose["volumes"][place] is None
        else:
            assert "runs/" in place or f"{place}/".startswith("../secrets/")
    assert set(compose["secrets"]) == {name for one in compose["services"].values() for name in one.get("secrets", ())}
    images = [one["image"] for one in compose["services"].values() if "build" not in one]
    assert all(re.search(r":v?\d+\.\d+\.\d+$", image) for image in images)


def test_the_pods() -> None:
    labels = objects()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects()[kind]["spec"]["selector"] for kind in ("Deployment", "PodDisruptionBudget", "ServiceMonitor")
    ]
    assert [each["matchLabels"] for each in selectors] == [labels] * 3
    assert objects()["Service"]["spec"]["selector"] == labels == objects()["Service"]["metadata"]["labels"]
    assert {file.name for file in (DEPLOY / "kubernetes").iterdir()} == {
        Path(path).name for path in read("kustomization.yaml")["resources"]
    }
    assert {each["name"] for each in container()["volumeMounts"]} == {each["name"] for each in pod()["volumes"]}
    generated = {each["name"]: each["files"] for each in read("kustomization.yaml")["configMapGenerator"]}
    assert generated == {"abi-serve": ["serve.yaml"]}
    # a service's variables would be taken for keys of the configuration
    assert pod()["enableServiceLinks"] is False
    assert pod()["securityContext"]["runAsNonRoot"] and container()["securityContext"]["readOnlyRootFilesystem"]
    mounts = {each["mountPath"] for each in container()["volumeMounts"]}
    for path in (config().keys, config().model):
        assert any(path.startswith(f"{mount}/") for mount in mounts), path
    assert re.findall(r"XDG_CACHE_HOME=(\S+)", DOCKERFILE)[0] in mounts


def test_replicas_follow_the_queue() -> None:
    spec = objects()["HorizontalPodAutoscaler"]["spec"]
    scaled = objects()["Deployment"]
    target = {"apiVersion": scaled["apiVersion"], "kind": "Deployment", "name": scaled["metadata"]["name"]}
    assert spec["scaleTargetRef"] == target and "replicas" not in scaled["spec"]
    (rule,) = read("prometheus/adapter.yaml")["rules"]["custom"]
    (asked,) = re.findall(r'__name__="([^"]+)"', rule["seriesQuery"])
    found = re.fullmatch(rule["name"]["matches"], asked)
    assert found and rule["name"]["as"].replace("${1}", found[1]) == spec["metrics"][0]["pods"]["metric"]["name"]
    assert spec["minReplicas"] > objects()["PodDisruptionBudget"]["spec"]["maxUnavailable"]
