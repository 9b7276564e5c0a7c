"""Run critest, Kubernetes' tests of a CRI runtime, with runc and with ours: scripts/critest.

critest is Go's, and belongs to the repository kubernetes-sigs/cri-tools. It pulls images of public
registries; here containerd asks one of ours for all of them, and has images there that are made
of busybox, and of two programs of the tests: under the names, and with the behaviour, that critest
expects. Its last word is a comparison, per spec.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.cri.node import REGISTRY_PORT, Node, pause_image
from tests.guests.build import build
from tests.integration import images, keeper
from tests.integration.images import File, Link

_CONFIG = """\
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{directory}/registry"
"""
_HOST = """\
[host."http://127.0.0.1:{port}"]
  capabilities = ["pull", "resolve"]
"""

_PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www-data:/var/www:/bin/false
default-user:x:1000:1000::/:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = b"""\
root:x:0:
www-data:x:33:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
nogroup:x:65534:
"""
_SERVE = """\
echo "{words}"
echo $$ >/var/run/{name}.pid
exec -a "{name}: master process" /bin/{name} {port}
"""
_APPLETS = {  # that Debian's busybox does not have, as far as critest uses them
    "ipcs": "cat /proc/sysvipc/shm",
    "pgrep": "pidof $1",
}


class CritestNode(Node):
    """A node that has a registry, and host ports where there is iptables."""

    def __enter__(self) -> CritestNode:
        return self

    def configuration(self) -> str:
        """What its configuration file says."""
        hosts = Path(f"{self.directory}/registry/_default")
        hosts.mkdir(parents=True, exist_ok=True)
        (hosts / "hosts.toml").write_text(_HOST.format(port=REGISTRY_PORT))
        ours = _CONFIG.format(directory=self.directory)
        return super().configuration() + ours

    def _make_network(self) -> None:
        super()._make_network()
        if shutil.which("iptables", path=self.env["PATH"]):
            (path,) = Path(f"{self.directory}/cni").iterdir()
            network = json.loads(path.read_text())
            network["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}})
            path.write_text(json.dumps(network))

    def critest(self, binary: str, handler: str, report: str, options: Sequence[str]) -> None:
        """Run critest to its end, which is no verdict."""
        scratch = f"{self.directory}/scratch"
        os.makedirs(scratch, exist_ok=True)
        socket = f"unix://{self.address}"
        arguments = [
            f"-runtime-endpoint={socket}",
            f"-image-endpoint={socket}",
            f"-runtime-handler={handler}",
            f"-ginkgo.junit-report={report}",
            "-ginkgo.no-color",
            "-ginkgo.succinct",
            "-test.timeout=1h",
            *options,
        ]
        environment = {**self.env, "TMPDIR": scratch}
        subprocess.run([*self._inside(), binary, *arguments], env=environment, check=False)


def make_images(busybox: str) -> dict[str, images.Image]:
    """The images that critest asks for, by repository and tag; `busybox` is a static one."""
    program = Path(busybox).read_bytes()
    applets = subprocess.run([busybox, "--list"], stdout=subprocess.PIPE, text=True, check=True)
    base: dict[str, File | Link | bytes] = {
        **{f"bin/{applet}": Link("bin/busybox") for applet in applets.stdout.split()},
        "bin/busybox": File(program, mode=0o755),
        **{
            f"bin/{applet}": File(f"#!/bin/sh\nexec {command}\n".encode(), mode=0o755)
            for applet, command in _APPLETS.items()
        },
        "etc/passwd": _PASSWD,
        "etc/group": _GROUP,
        "tmp/keep": b"",
        "var/run/keep": b"",
    }

    def image(
        extra: Mapping[str, File] | None = None, command: Sequence[str] = ("sh",), user: str = ""
    ) -> images.Image:
        path = ["PATH=/bin"]
        return images.build(
            "localhost/any:1", {**base, **(extra or {})}, entrypoint=command, env=path, user=user
        )

    def server(name: str, port: int, words: str) -> images.Image:
        program = File(build("http_native", native=True).read_bytes(), mode=0o755)
        script = _SERVE.format(name=name, port=port, words=words)
        return image({f"bin/{name}": program}, ["/bin/sh", "-c", script])

    escalating = File(build("euid", native=True).read_bytes(), mode=0o4755)
    machine = images.ARCHITECTURE
    made = {
        "e2e-test-images/busybox:1.29-2": image(),
        "e2e-test-images/nginx:1.14-2": server("nginx", 80, "nginx"),
        "e2e-test-images/httpd:2.4.39-4": server("httpd-server", 80, "httpd -D FOREGROUND"),
        "e2e-test-images/nonewprivs:1.3": image({"bin/euid": escalating}, ["/bin/euid"]),
    }
    tests = {
        f"hostnet-nginx-{machine}:latest": server("nginx", 12003, "nginx"),
        "test-image-predefined-group:latest": image(user="1000"),
        "test-image-user-uid:latest": image(user="1002"),
        "test-image-user-username:latest": image(user="www-data"),
        "test-image-user-uid-group:latest": image(user="1003:1004"),
        "test-image-user-username-group:latest": image(user="www-data:1004"),
        **{f"test-image-tags:{tag}": image({"same-image": File(b"")}) for tag in "123"},
        **{
            f"{name}:{tag}": image({name: File(tag.encode())})
            for name, tag in (
                *((f"test-image-{which}", "latest") for which in ("1", "2", "3", "latest")),
                *(("test-image-tag", tag) for tag in ("test", "all")),
            )
        },
    }
    return made | {f"k8s-staging-cri-tools/{name}": image for name, image in tests.items()}


def read(report: str) -> dict[str, tuple[str, str]]:
    """Every spec that was chosen: how it ended, and why so."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = " ".join(case.attrib["name"].split())
        if not name.startswith("[It]"):
            continue
        reasons = [e.get("message", "") for e in case if e.tag in ("failure", "error", "skipped")]
        if reasons[:1] == ["skipped"]:
            continue  # not chosen
        found[name.removeprefix("[It] ")] = (case.attrib["status"], " ".join(reasons))
    return found


def compare(results: Mapping[str, Mapping[str, tuple[str, str]]]) -> bool:
    """Print the specs that not all passed; return whether ours failed none that runc passed."""
    alike: dict[str, list[str]] = defaultdict(list)
    unlike = []
    worse = False
    runc, *_ = results.values()
    for name in sorted(runc):
        outcomes = [found.get(name, ("missing", "")) for found in results.values()]
        statuses = {status for status, _ in outcomes}
        if len(statuses) > 1:
            worse = worse or (outcomes[0][0], outcomes[-1][0]) == ("passed", "failed")
            unlike.append(name)
            unlike += [
                f"    {handler}: {status} {_short(reason)}"
                for handler, (status, reason) in zip(results, outcomes, strict=True)
            ]
        elif statuses != {"passed"}:
            alike[" ".join((outcomes[0][0], _short(outcomes[0][1])))].append(f"    {name}")
    print("\nspecs that end alike, but do not pass:")
    for outcome, names in alike.items():
        print(f"  {outcome}", *names, sep="\n")
    print("\nspecs that end differently:", *unlike, sep="\n  ")
    print()
    for handler, found in results.items():
        counts = Counter(status for status, _ in found.values())
        print(f"{handler}:", ", ".join(f"{counts[s]} {s}" for s in sorted(counts)))
    return not worse


def _short(reason: str) -> str:
    return " ".join(reason.partition("Unexpected error")[0].split())[:400]


def _cgroups() -> list[str]:
    """Those that critest's pods may be in, the innermost first."""
    return [path for group in ("k8s.io", "system.slice") for path in keeper.cgroups_of(group)]


def main() -> None:
    """Run it, and end with 1 where ours fails what runc passes."""
    parser = argparse.ArgumentParser(
        prog="critest", allow_abbrev=False, epilog="Other options are critest's."
    )
    parser.add_argument("binary", help="critest, as `go test -c ./cmd/critest` makes it")
    parser.add_argument("--busybox", required=True, help="a static busybox")
    parser.add_argument("--bin-dir", help="where containerd is; else on PATH")
    parser.add_argument(
        "--handler", default="pywasm-plain", help="or pywasm-shim, which takes the Sandbox API"
    )
    parser.add_argument("--keep", help="a directory for the reports")
    arguments, options = parser.parse_known_args()
    made = make_images(arguments.busybox)
    before = set(_cgroups())
    results = {}
    with CritestNode(arguments.bin_dir) as node:
        node.load(pause_image().tar)
        node.serve(made)
        for handler in ("runc", arguments.handler):
            print(f"== {handler}", flush=True)
            report = f"{node.directory}/{handler}.xml"
            node.critest(os.path.abspath(arguments.binary), handler, report, options)
            results[handler] = read(report)
            if arguments.keep:
                shutil.copy(report, arguments.keep)
                shutil.copy(node.log, arguments.keep)
            if left := node.leftovers():
                print(*left, sep="\n")
    for path in _cgroups():
        if path not in before:
            with contextlib.suppress(OSError):
                os.rmdir(path)
    sys.exit(not compare(results))


if __name__ == "__main__":
    main()
