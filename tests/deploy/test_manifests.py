"""What is in deploy/: whether Kubernetes would take it, and whether it fits the program."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import shim
from oci.runtime import SpecError
from shim.engines.limits import limit_memory
from shim.guest import annotations as known
from shim.node import crio, pod
from shim.node.containerd_config import RUNTIME_TYPE, File, Runtime, block
from shim.node.main import _parser
from tests.guests.build import build

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
VERSIONS = ("1.30", kubernetes_validate.latest_version())
IMAGE = "pywasm-installer"

Document = dict[str, Any]


def documents(path: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


ALL = [document for path in FILES for document in documents(path)]


def of_kind(kind: str) -> list[Document]:
    return [document for document in ALL if document["kind"] == kind]


def walk(value: Any) -> Iterator[Document]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from walk(item)


def pod_templates(document: Document) -> Iterator[Document]:
    for mapping in walk(document):
        if "containers" in mapping.get("spec", {}):
            yield mapping


SAMPLES = [
    template
    for path in FILES
    if path.parent.name == "samples"
    for document in documents(path)
    for template in pod_templates(document)
]


def render(directory: str) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl to render with")
    command = [kubectl, "kustomize", str(DEPLOY / directory)]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_kubernetes_knows_every_field(path: Path, version: str) -> None:
    found = documents(path)
    assert found
    for document in found:
        if document["kind"] == "Kustomization":
            continue  # kustomize's own, see below
        kubernetes_validate.validate(document, version, strict=True)


def test_the_check_is_strict() -> None:
    (runtime_class,) = of_kind("RuntimeClass")
    with pytest.raises(kubernetes_validate.ValidationError, match="Additional properties"):
        kubernetes_validate.validate({**runtime_class, "handlers": "x"}, VERSIONS[0], strict=True)


def test_kustomize_makes_the_same_of_it() -> None:
    rendered = list(yaml.safe_load_all(render("install")))
    for document in rendered:
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)
    names = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    there = documents(DEPLOY / "install/runtimeclass.yaml") + documents(
        DEPLOY / "install/installer.yaml"
    )
    assert names == {(document["kind"], document["metadata"]["name"]) for document in there}


def test_uninstalling_differs_in_one_word() -> None:
    install, uninstall = (render(directory).splitlines() for directory in ("install", "uninstall"))
    differing = [pair for pair in zip(install, uninstall, strict=True) if pair[0] != pair[1]]
    assert [(a.strip(), b.strip()) for a, b in differing] == [("- install", "- uninstall")]


def test_names_agree() -> None:
    (runtime_class,) = of_kind("RuntimeClass")
    assert runtime_class["handler"] == Runtime().handler
    assert runtime_class["scheduling"]["nodeSelector"] == {pod.LABEL: "true"}
    assert SAMPLES
    for template in SAMPLES:
        assert template["spec"]["runtimeClassName"] == runtime_class["metadata"]["name"]
    (daemon_set,) = of_kind("DaemonSet")
    (template,) = pod_templates(daemon_set)
    containers = template["spec"]["initContainers"] + template["spec"]["containers"]
    assert {container["image"] for container in containers} == {IMAGE}
    assert "runtimeClassName" not in template["spec"]
    for kustomization in of_kind("Kustomization"):
        for image in kustomization.get("images", []):
            assert image == {"name": IMAGE, "newTag": shim.__version__}
    assert f"-t {IMAGE}:{shim.__version__} " in (DEPLOY / "Containerfile").read_text()


def test_the_installers_arguments_are_the_commands() -> None:
    (daemon_set,) = of_kind("DaemonSet")
    (template,) = pod_templates(daemon_set)
    (node,), (wait,) = template["spec"]["initContainers"], template["spec"]["containers"]
    for action in ("install", "uninstall"):
        arguments = [action if word == "install" else word for word in node["args"]]
        parsed, rest = _parser().parse_known_args(arguments)
        assert (parsed.command, parsed.action) == ("pod", action)
        assert _parser().parse_args([action, *rest]).restart == "auto"
    assert _parser().parse_args(wait["args"]).action == "wait"
    assert {variable["name"] for variable in node["env"]} == {"NODE_NAME"}
    # It patches nodes, which is all that it may.
    (role,) = of_kind("ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]
    (binding,), (account,) = of_kind("ClusterRoleBinding"), of_kind("ServiceAccount")
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    assert template["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert template["spec"]["hostPID"]
    assert node["securityContext"] == {"privileged": True}


def test_annotations_mean_something() -> None:
    used = 0
    for template in SAMPLES:
        given = template.get("metadata", {}).get("annotations", {})
        known.read(given)
        used += len(given)
    assert used
    with pytest.raises(SpecError):
        known.read({"dev.pywasm.listten": "tcp://0.0.0.0:8080"})


def test_the_samples_modules_may_begin() -> None:
    dockerfile = (DEPLOY / "samples/Containerfile").read_text()
    modules = re.findall(r"(\w+)\.wasm\b", re.findall(r"^COPY .*", dockerfile, re.MULTILINE)[0])
    key = "dev.pywasm.memory-pages"
    annotations = [sample.get("metadata", {}).get("annotations", {}) for sample in SAMPLES]
    bounds = [int(given[key]) for given in annotations if key in given]
    assert modules
    assert bounds
    for name, pages in itertools.product(modules, bounds):
        limit_memory(build(name).read_bytes(), pages)  # or it is refused


def test_cri_o_is_told_what_install_tells_it() -> None:
    text = crio.drop_in("pywasm", f"/usr/local/bin/{crio.SHIM}")
    assert (DEPLOY / "cri-o" / Path(crio.DROP_IN).name).read_text() == text


DOCUMENTS = {path.name: path.read_text() for path in (*ROOT.glob("docs/*.md"), ROOT / "README.md")}


@pytest.mark.parametrize("version", [2, 3])
def test_the_documents_show_what_install_writes(version: int) -> None:
    runtimes: Document = {"containerd": {"runtimes": {"runc": {}}}}
    plugins = {"io.containerd.grpc.v1.cri": runtimes} if version == 2 else {}
    file = File("", "", {"version": version, "plugins": plugins})
    shown = block(file, Runtime(options={})).splitlines()[1:-1]
    assert RUNTIME_TYPE in "".join(shown)
    assert "\n".join(f"    {line}" for line in shown) in DOCUMENTS["kubernetes.md"]


def test_the_documents_name_what_there_is() -> None:
    commands = []
    for name, text in DOCUMENTS.items():
        for path in re.findall(r"\bdeploy/[\w./-]*\w", text):
            assert (ROOT / path).exists(), f"{name}: {path}"
        for line in re.findall(
            r"(?:^    (?:\S*/)?|`)pywasm ([^`#]*?)(?:#|`|$)", text, re.MULTILINE
        ):
            commands.append(line.split())
        for annotation in re.findall(r"dev\.pywasm\.([a-z-]+)\b(?!: unknown)", text):
            assert annotation in known._PARSERS, f"{name}: {annotation}"
    assert len(commands) > 10
    for command in commands:
        _parser().parse_args(command)


def test_what_is_updated_under_load_waits_before_it_ends() -> None:
    listening = [
        template["spec"]
        for deployment in of_kind("Deployment")
        for template in pod_templates(deployment["spec"])
        if any("dev.pywasm.listen" in name for name in template["metadata"]["annotations"])
    ]
    assert listening
    for spec in listening:
        for container in spec["containers"]:
            seconds = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert 0 < seconds < spec.get("terminationGracePeriodSeconds", 30)
