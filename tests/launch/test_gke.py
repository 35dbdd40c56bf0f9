"""The JobSet, against the rules of its API (v1alpha2), and its container's script, run as a kubelet would."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from abi_jax.config import load
from abi_jax.errors import InputError
from abi_jax.launch.config import LaunchConfig
from abi_jax.launch.targets import make_plan
from abi_jax.train.config import TrainConfig
from tests.conftest import ROOT
from tests.launch.cases import IMAGE, job

WHO = f"{sys.executable} -c 'from abi_jax.sharding import detect; print(detect())' #"
LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def rendered(folder: Path, train: dict[str, Any] | None = None, **changes: Any) -> list[dict[str, Any]]:
    """Returns ConfigMap and JobSet."""
    changes["gke"] = IMAGE | changes.pop("gke", {})
    text = make_plan(job(folder, "gke", train, **changes), folder).files["jobset.yaml"]
    return list(yaml.safe_load_all(text))


def address(jobset: dict[str, Any]) -> str:
    """The coordinator's address, as the JobSet controller makes it."""
    asked, subdomain = jobset["spec"]["coordinator"], jobset["spec"]["network"]["subdomain"]
    pod = (jobset["metadata"]["name"], asked["replicatedJob"], asked["jobIndex"], asked["podIndex"])
    return "-".join(map(str, pod)) + f".{subdomain}"


def check_jobset(jobset: dict[str, Any]) -> None:
    """The rules of the JobSet and Job APIs that a rendered JobSet could break."""
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    assert set(spec) <= {"network", "coordinator", "failurePolicy", "replicatedJobs"}
    name, (replicated,) = jobset["metadata"]["name"], spec["replicatedJobs"]
    assert spec["network"]["enableDNSHostnames"] and LABEL.fullmatch(spec["network"]["subdomain"])
    assert spec["coordinator"]["replicatedJob"] == replicated["name"]
    # The controller puts it into a label too.
    assert len(address(jobset)) <= 63 and VALUE.fullmatch(address(jobset))
    jobs = replicated["template"]["spec"]
    assert set(replicated) == {"name", "replicas", "template"}
    assert jobs["completionMode"] == "Indexed" and jobs["completions"] == jobs["parallelism"] >= 1
    longest = f"{name}-{replicated['name']}-{replicated['replicas'] - 1}-{jobs['completions'] - 1}-abcde"
    assert LABEL.fullmatch(longest) and len(longest) <= 63
    for rule in spec["failurePolicy"]["rules"]:
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
    pod = jobs["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    (container,) = pod["containers"]
    for rule in jobs["podFailurePolicy"]["rules"]:
        assert rule["action"] == "FailJob"
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["values"] == [143]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    volumes = {v["name"] for v in pod["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes
    assert len({m["mountPath"] for m in container["volumeMounts"]}) == len(volumes)
    assert all(LABEL.fullmatch(p["name"]) and len(p["name"]) <= 15 for p in container["ports"])
    names = [e["name"] for e in container["env"]]
    assert len(set(names)) == len(names)
    for key, value in pod["nodeSelector"].items():
        assert isinstance(key, str) and isinstance(value, str)


def pods(jobset: dict[str, Any]) -> list[tuple[int, int]]:
    replicated = jobset["spec"]["replicatedJobs"][0]
    completions = replicated["template"]["spec"]["completions"]
    return [(j, p) for j in range(replicated["replicas"]) for p in range(completions)]


def expanded(text: str, env: dict[str, str]) -> str:
    """What kubelet makes of a value or an argument: `$$` is a dollar sign, `$(NAME)` a variable that there is."""
    return re.sub(r"\$\$|\$\((\w+)\)", lambda m: "$" if m[1] is None else env.get(m[1], m[0]), text)


def run_pod(jobset: dict[str, Any], job_index: int, pod_index: int) -> subprocess.CompletedProcess[str]:
    """Runs the container's command with the environment that kubelet, Job and JobSet controllers give it."""
    container = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    annotations = {
        "jobset.sigs.k8s.io/coordinator": address(jobset),
        "jobset.sigs.k8s.io/job-index": str(job_index),
    }
    env: dict[str, str] = {}
    for entry in container["env"]:
        if "value" in entry:
            env[entry["name"]] = expanded(entry["value"], env)
        else:
            field = re.fullmatch(r"metadata\.annotations\['(.*)'\]", entry["valueFrom"]["fieldRef"]["fieldPath"])
            assert field is not None
            env[entry["name"]] = annotations[field[1]]
    env |= {"JOB_COMPLETION_INDEX": str(pod_index), "HOSTNAME": f"tiny-worker-{job_index}-{pod_index}"}
    env |= {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    command = [expanded(part, env) for part in (*container["command"], *container["args"])]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"processes_per_node": 8},
        {"accelerator": "v5e", "nodes": 4},
        {"accelerator": "v4", "nodes": 4, "overrides": ["mesh.slices={data: 2}"]},
        {
            "env": {"ODD": 'it\'s "$HOME" # : \u00e9\n{}'},
            "setup": ["if true; then", "  echo 'a: b'", "fi"],
            "gke": {"spot": True, "queue": "q", "service_account": "s", "node_selector": {"k": "yes"}},
        },
    ],
)
def test_the_jobset_keeps_the_rules(changes: dict[str, Any], tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path, **changes)
    check_jobset(jobset)


def test_the_check_of_the_rules_finds_what_is_wrong(tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path)
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completions"] = 3
    with pytest.raises(AssertionError):
        check_jobset(jobset)


def test_gpus(tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path, processes_per_node=2)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert len(pods(jobset)) == 4
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_tpu_slices_are_jobs_and_their_hosts_pods(tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path, accelerator="v5e", nodes=8, overrides=["mesh.slices={data: 2}"])
    (replicated,) = jobset["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    assert (replicated["replicas"], replicated["template"]["spec"]["completions"]) == (2, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    exclusive = jobset["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"


def test_the_training_configuration_is_in_the_config_map(tmp_path: Path) -> None:
    config_map, jobset = rendered(tmp_path, {"personas": ("abbey", "caf\u00e9: \u2028 it's", "a\n\n\n\nb ")})
    (tmp_path / "again.yaml").write_text(config_map["data"]["train.yaml"])
    wanted = load(TrainConfig, tmp_path / "train.yaml", env={})
    assert load(TrainConfig, tmp_path / "again.yaml", env={}) == wanted
    volumes = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert config_map["metadata"]["namespace"] == jobset["metadata"]["namespace"]


def test_every_pod_learns_who_it_is(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "accelerator": "v4",
        "nodes": 4,
        "overrides": ["mesh.slices={data: 2}"],
        "workdir": str(tmp_path),
    }
    gke = {"volumes": [{"claim": "c", "path": str(tmp_path)}]}
    _, jobset = rendered(tmp_path, command=WHO, gke=gke, **asked)
    said = [run_pod(jobset, j, p) for j, p in pods(jobset)]
    assert [s.returncode for s in said] == [0] * 4, said[0].stderr
    who = "Cluster(coordinator='tiny-worker-0-0.tiny:8476', num_processes=4, process_id={}, source="
    for i, s in enumerate(said):
        assert s.stdout.startswith(who.format(i))


def test_setup_and_variables_reach_the_program(tmp_path: Path) -> None:
    odd = 'it\'s "$HOME" $$ $(JOB_INDEX) # : \u00e9\U0001f600\x85\n{}'
    gke = {"volumes": [{"claim": "c", "path": str(tmp_path)}]}
    setup = ["if true; then", "  echo 'a: b' '$$' '$(JOB_INDEX)' $(echo c)", "fi"]
    _, jobset = rendered(
        tmp_path, env={"ODD": odd}, setup=setup, command="printenv ODD #", gke=gke, workdir=str(tmp_path)
    )
    assert run_pod(jobset, 0, 0).stdout == f"a: b $$ $(JOB_INDEX) c\n{odd}\n"


def test_a_key_of_the_training_configuration_does_not_reach_it(tmp_path: Path) -> None:
    gke = {"volumes": [{"claim": "c", "path": str(tmp_path)}]}
    setup = ["export ABI_STEPS=3 ABI_DATA__LENGTH=9"]
    _, jobset = rendered(tmp_path, setup=setup, command="env #", gke=gke, workdir=str(tmp_path))
    names = {line.split("=")[0] for line in run_pod(jobset, 0, 1).stdout.splitlines()}
    mine = {name for name in names if name.startswith("ABI_")}
    assert mine == {"ABI_COORDINATOR", "ABI_NUM_PROCESSES", "ABI_PROCESS_ID", "ABI_START_TIMEOUT"}


def test_secrets_are_variables_whose_values_no_file_has(tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path, gke={"secrets": ["keys", "more.keys"]})
    (container,) = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}, {"secretRef": {"name": "more.keys"}}]


def test_names_that_yaml_would_take_for_something_else(tmp_path: Path) -> None:
    gke = {"namespace": "1e3", "volumes": [{"claim": "123", "path": "/shared"}]}
    config_map, jobset = rendered(tmp_path, name="true", env={"NO": "yes"}, gke=gke)
    check_jobset(jobset)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert (config_map["metadata"]["namespace"], jobset["metadata"]["name"], claims) == ("1e3", "true", ["123"])
    assert {"name": "NO", "value": "yes"} in pod["containers"][0]["env"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"gke": {"image": ""}},
            "gke.image is empty; gke needs it: set it in the launch file or with --set gke.image=",
        ),
        ({"name": "a" * 26}, "the coordinator's address, a+-worker-0-0.a+, has 64 characters; expected at most 63"),
        ({"accelerator": "cpu"}, "accelerator = 'cpu' for gke"),
        ({"accelerator": "v5e", "nodes": 3}, "a slice of 12 v5litepod chips; expected 1, 4, 8, 16"),
        ({"accelerator": "v4", "gke": {"topology": "2x2x2x2"}}, "topology '2x2x2x2'; expected sides"),
    ],
)
def test_what_gke_would_refuse(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        rendered(tmp_path, **changes)


def test_the_longest_name_that_fits(tmp_path: Path) -> None:
    _, jobset = rendered(tmp_path, name="a" * 25)
    check_jobset(jobset)
    assert isinstance(load(LaunchConfig, tmp_path / "launch.yaml", env={}), LaunchConfig)
