"""The files that bring raybroker up elsewhere, checked without any cloud: by Ray's own validators and by
the published schemas of Kubernetes and KubeRay."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CLUSTERS = ("cluster.yaml", "docs/operations/aws.yaml", "docs/operations/gcp.yaml")
KUBERNETES = "1.30"  # whose published schemas the manifests must pass, strictly
CRD = "RAYBROKER_RAYSERVICE_CRD"  # a file: ray.io_rayservices.yaml of a KubeRay release
KUBERAY = "github.com/ray-project/kuberay/ray-operator@v1.6.1"  # the module that has it


def loaded(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "docs/operations/rayservice.yaml").read_text()))


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_file_passes_rays_own_validator(name: str) -> None:
    validate_config(prepare_config(loaded(name)))


def test_rays_validator_refuses_a_word_that_it_does_not_know() -> None:
    tree = loaded("docs/operations/aws.yaml")
    tree["available_node_types"]["worker"]["most_workers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="most_workers"):
        validate_config(prepare_config(tree))


@pytest.mark.parametrize("name", CLUSTERS)
def test_every_node_starts_with_the_token_the_secrets_and_fixed_ports(name: str) -> None:
    tree = loaded(name)
    assert tree["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [command for command in tree[key] if "ray start" in command]
        assert "RAY_AUTH_MODE=token" in start
        assert ". ~/raybroker/site/raybroker.env" in start
        assert start.index("RAY_AUTH_MODE") < start.index("ray start")
        assert set(re.findall(r"--([a-z-]+-port)=\d+", start)) >= {
            *("node-manager-port", "object-manager-port", "metrics-export-port", "runtime-env-agent-port"),
            *(
                "dashboard-agent-grpc-port",
                "dashboard-agent-listen-port",
                "min-worker-port",
                "max-worker-port",
            ),
        }


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_dashboard_listens_on_loopback_and_what_is_sent_exists(name: str) -> None:
    tree = loaded(name)
    (head,) = [command for command in tree["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    mounts = [source for source in tree["file_mounts"].values() if not source.startswith(("~", "site"))]
    assert len(mounts) == 6
    assert all((ROOT / source).exists() for source in mounts)


def test_the_three_cluster_files_start_the_same_things() -> None:
    own, aws, gcp = (loaded(name) for name in CLUSTERS)
    for key in ("worker_start_ray_commands", "file_mounts", "rsync_exclude"):
        assert own[key] == aws[key] == gcp[key]
    assert aws["head_start_ray_commands"] == gcp["head_start_ray_commands"]
    v1 = [command.replace(" RAY_enable_autoscaler_v2=0", "") for command in own["head_start_ray_commands"]]
    assert v1 == aws["head_start_ray_commands"]


def test_the_rayservice_runs_one_cluster_behind_a_token() -> None:
    service, *_ = manifests()
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    assert service["spec"]["upgradeStrategy"]["type"] == "None"
    assert service["spec"]["rayClusterConfig"]["authOptions"]["mode"] == "token"


def pods() -> list[dict[str, Any]]:
    """The pods of head and workers, as Kubernetes knows them."""
    cluster = manifests()[0]["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [{"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]} for group in groups]


def test_all_that_is_kubernetes_own_passes_its_published_schemas() -> None:
    for manifest in [*pods(), *manifests()[1:]]:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_field_that_kubernetes_does_not_know_is_found() -> None:
    head, _ = pods()
    head["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="volumeMount"):
        kubernetes_validate.validate(head, KUBERNETES, strict=True)


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")  # Ray's own, as it is imported
def test_the_serve_part_is_what_serve_takes_and_names_a_builder_of_ours() -> None:
    from ray.serve.schema import ServeDeploySchema

    import raybroker.cluster.serve

    service, *_ = manifests()
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    module, _, name = config.applications[0].import_path.partition(":")
    assert module == raybroker.cluster.serve.__name__
    assert callable(getattr(raybroker.cluster.serve, name))
    assert config.applications[0].args == {"settings": "/site/raybroker.toml"}


def test_the_versions_in_the_manifest_are_those_that_are_locked() -> None:
    service, *_ = manifests()
    locked = re.search(
        r"^ray(?:\[\w+(?:,\w+)*\])?==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    assert locked
    assert service["spec"]["rayClusterConfig"]["rayVersion"] == locked[1]


def test_the_run_leaves_the_service_to_kuberay_and_uses_the_same_token() -> None:
    _, run, _ = manifests()
    (container,) = run["spec"]["template"]["spec"]["containers"]
    assert "--no-service" in container["args"][0]
    (token,) = [one for one in container["env"] if one["name"] == "RAY_AUTH_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "raybroker-ray", "key": "auth_token"}


@pytest.fixture(scope="module")
def definition() -> Any:
    """KubeRay's own schema of a RayService, strict: of the file that the environment names, or of its Go module."""
    found = os.environ.get(CRD) or _of_go_module()
    if not found:
        why = (
            f"{CRD} names no file (ray.io_rayservices.yaml of a KubeRay release), and Go cannot get {KUBERAY}"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    versions = yaml.safe_load(Path(found).read_text())["spec"]["versions"]
    (schema,) = [one["schema"] for one in versions if one["name"] == "v1"]
    return strict(schema["openAPIV3Schema"])


def _of_go_module() -> str:
    command = ("go", "mod", "download", "-json", KUBERAY)
    if not shutil.which("go"):
        return ""
    with tempfile.TemporaryDirectory() as elsewhere:
        got = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=elsewhere)
    folder = json.loads(got.stdout or "{}").get("Dir")
    return f"{folder}/config/crd/bases/ray.io_rayservices.yaml" if folder else ""


def test_the_rayservice_is_valid_by_the_published_definition(definition: Any) -> None:
    jsonschema.validate(manifests()[0], definition)


@pytest.mark.parametrize("group", ["headGroupSpec", "authOptions", "autoscalerOptions"])
def test_the_published_definition_refuses_a_word_that_it_does_not_know(definition: Any, group: str) -> None:
    service, *_ = manifests()
    service["spec"]["rayClusterConfig"][group]["mostWorkers"] = 3
    with pytest.raises(jsonschema.ValidationError, match="mostWorkers"):
        jsonschema.validate(service, definition)


def strict(schema: Any) -> Any:
    """The schema with unknown fields refused where it names fields, as `kubectl --validate=strict` does."""
    if isinstance(schema, list):
        return [strict(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(inner) for key, inner in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and not schema.get(
        "x-kubernetes-preserve-unknown-fields"
    )
    if closed and schema.get("type") == "object" and "kind" not in schema["properties"]:
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made
