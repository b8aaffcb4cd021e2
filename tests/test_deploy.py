"""What lies in deploy/ against schemas: Kubernetes', Compose's, and of KubeRay's what we use. Nothing is started."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimizer.spec import from_document

DEPLOY = Path(__file__).parents[1] / "deploy"
KUBERNETES = "1.35"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Group(_Strict):
    rayStartParams: dict[str, str] = {}
    template: dict[str, Any]


class _Workers(_Group):
    groupName: str
    replicas: int = Field(ge=0)
    minReplicas: int = Field(ge=0)
    maxReplicas: int = Field(ge=1)


class _Auth(_Strict):
    mode: Literal["disabled", "token"]
    secretName: str


class _ClusterSpec(_Strict):
    rayVersion: str
    enableInTreeAutoscaling: bool = False
    authOptions: _Auth
    headGroupSpec: _Group
    workerGroupSpecs: list[_Workers]


class _RayCluster(_Strict):
    """The part of KubeRay's ray.io/v1 RayCluster that we use; a key that is not in it is a mistake."""

    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: dict[str, Any]
    spec: _ClusterSpec


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.name}-{document['kind']}-{i}")
        for path in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
        for i, document in enumerate(yaml.safe_load_all(path.read_text()))
    ]


def check(document: dict[str, Any]) -> None:
    """Raises where a manifest does not keep to its schema; KubeRay's pods are Kubernetes' own."""
    if document["kind"] != "RayCluster":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    cluster = _RayCluster.model_validate(document)
    for group in [cluster.spec.headGroupSpec, *cluster.spec.workerGroupSpecs]:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": group.template["spec"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("document", documents())
def test_every_manifest_keeps_to_its_schema(document: dict[str, Any]) -> None:
    check(document)


def test_the_example_of_a_cluster_has_room_for_the_engines_of_its_study() -> None:
    example = DEPLOY.parent / "examples" / "cluster"
    cluster = yaml.safe_load((example / "raycluster.yaml").read_text())
    check(cluster)
    spec = from_document(yaml.safe_load((example / "study.yaml").read_text()))
    assert spec.workers.engine == "vllm"
    assert all(source.staged for source in spec.sources)
    (group,) = cluster["spec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) % spec.workers.tensor_parallel == 0
    assert int(container["resources"]["requests"]["cpu"]) >= spec.workers.tensor_parallel, "a thread for each process"
    names = {e["name"] for e in container["env"]}
    assert "MERGEFRONT_CACHE" in names
    assert cluster["spec"]["authOptions"]["secretName"] in {
        d.values[0]["metadata"]["name"] for d in documents() if d.values[0]["kind"] == "Secret"
    }


def test_the_commands_beside_the_example_of_a_cluster_are_ones_that_the_program_has() -> None:
    from optimizer.cli import _parser

    text = (DEPLOY.parent / "examples" / "cluster" / "study.yaml").read_text()
    found = re.findall(r"-- mergefront ([^\n]*)", text)
    assert [_parser().parse_args(command.split()).spec for command in found] == ["/data/study.yaml"] * 2


def _find(kind: str) -> dict[str, Any]:
    return next(d.values[0] for d in documents() if d.values[0]["kind"] == kind)


def test_the_check_can_fail() -> None:
    deployment = _find("Deployment")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(deployment)
    cluster = _find("RayCluster")
    cluster["spec"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValidationError, match="maxReplica"):
        check(cluster)
    cluster = _find("RayCluster")
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "gcs"
    with pytest.raises(kubernetes_validate.ValidationError):
        check(cluster)


def test_what_manifests_refer_to_is_there() -> None:
    """Claims, secrets with their keys, and the head's service by the name that KubeRay gives it."""
    found = [d.values[0] for d in documents()]
    claims = {d["metadata"]["name"] for d in found if d["kind"] == "PersistentVolumeClaim"}
    keys = {(d["metadata"]["name"], k) for d in found if d["kind"] == "Secret" for k in d["stringData"]}
    text = yaml.safe_dump_all(found)
    assert set(re.findall(r"claimName: (\S+)", text)) <= claims
    references = [r for d in found for r in _secret_references(d)]
    assert len(references) >= 3
    assert set(references) <= keys
    cluster = _find("RayCluster")
    assert f"--address={cluster['metadata']['name']}-head-svc:6379" in text
    assert (cluster["spec"]["authOptions"]["secretName"], "auth_token") in keys


def _secret_references(value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        return [r for v in value for r in _secret_references(v)]
    if not isinstance(value, dict):
        return []
    own = [(value["secretKeyRef"]["name"], value["secretKeyRef"]["key"])] if "secretKeyRef" in value else []
    return own + [r for v in value.values() for r in _secret_references(v)]


def test_the_compose_file_keeps_to_the_compose_specification(tmp_path: Path) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    wrong = tmp_path / "compose.yaml"
    compose["services"]["service"]["stop_grace_time"] = "30s"
    wrong.write_text(yaml.safe_dump(compose))
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, DEPLOY / "compose.yaml"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    refused = subprocess.run([*command, wrong], capture_output=True, text=True, check=False)
    assert "'stop_grace_time' was unexpected" in refused.stdout


def test_the_compose_file_names_its_own_services_and_hides_its_secrets() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"database", "ray", "service"}
    assert set(services["service"]["depends_on"]) == {"database", "ray"}
    assert "@database/" in services["service"]["environment"]["MERGEFRONT_STORAGE"]
    assert "--address=ray:6379" in services["service"]["command"][0]
    assert all("healthcheck" in services[name] for name in services["service"]["depends_on"])
    published = [p for s in services.values() for p in s.get("ports", [])]
    assert published == ["127.0.0.1:8642:8642"], "nothing else is reachable from outside"
    wanted = set(re.findall(r"\$\{(\w+):\?", (DEPLOY / "compose.yaml").read_text()))
    assert wanted == set(re.findall(r"(?m)^(\w+)=$", (DEPLOY / "example.env").read_text()))


def test_commands_in_deploy_are_ones_that_the_program_has() -> None:
    from optimizer.cli import _parser

    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "kubernetes" / "service.yaml").read_text()
    found = re.findall(r"exec mergefront (serve[^\n]*)", text)
    assert len(found) == 2
    docker = (DEPLOY.parent / "Dockerfile").read_text()
    found.append(" ".join(re.findall(r'"([^"]+)"', docker.rpartition("CMD ")[2])))
    for command in found:
        options = _parser().parse_args(command.split())
        assert (options.host, options.first_token) == ("0.0.0.0", True)
