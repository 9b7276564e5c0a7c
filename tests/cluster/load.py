"""Clients of a service, who are told of its endpoints a little late. Library.

They stand in for a kube-proxy, which is no more of a client: it hears of an endpoint's end from the
API server, too, and until then sends requests there.
"""

from __future__ import annotations

import http.client
import itertools
import random
import threading
import time
from collections import Counter
from types import TracebackType

from tests.cluster.control_plane import Kubectl
from tests.integration.containerd import eventually

_CLIENTS = 3
_PAUSE = 0.02  # seconds between a client's requests
_LAG = 0.3  # seconds between two looks at the endpoints
_TIMEOUT = 5.0


class Load:
    """Requests to the pods of a service for as long as the context lasts."""

    def __init__(self, kubectl: Kubectl, service: str, port: int, path: str) -> None:
        self._kubectl, self._service = kubectl, service
        self._port, self._path = port, path
        self._endpoints: list[str] = []
        self._end = threading.Event()
        self._answered: Counter[str] = Counter()  # by address
        self._failed: list[str] = []
        tasks = [self._follow, *itertools.repeat(self._ask, _CLIENTS)]
        self._threads = [threading.Thread(target=task, daemon=True) for task in tasks]

    def __enter__(self) -> Load:
        self._endpoints = addresses(self._kubectl, self._service)
        for thread in self._threads:
            thread.start()
        eventually(lambda: self._answered or self._failed)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _follow(self) -> None:
        while not self._end.wait(_LAG):
            self._endpoints = addresses(self._kubectl, self._service)

    def _ask(self) -> None:
        while not self._end.wait(_PAUSE):
            address = "no endpoint"
            try:
                address = random.choice(self._endpoints)
                get(address, self._port, self._path)
            except (OSError, http.client.HTTPException, AssertionError, IndexError) as error:
                self._failed.append(f"{time.strftime('%X')} {address}: {error!r}")
            else:
                self._answered[address] += 1

    def check(self, pods: int) -> str:
        """What came of it. Raises AssertionError unless so many pods have answered everything."""
        total = self._answered.total() + len(self._failed)
        assert not self._failed, f"{len(self._failed)} of {total} lost, as {self._failed[:3]}"
        assert len(self._answered) >= pods, f"only {dict(self._answered)} have answered"
        return f"{total} requests, none lost"


def addresses(kubectl: Kubectl, service: str) -> list[str]:
    """The pods that a service sends requests to."""
    slices = kubectl.get("endpointslices", "-l", f"kubernetes.io/service-name={service}")
    return [
        address
        for part in slices["items"]
        for endpoint in part["endpoints"] or []
        if endpoint["conditions"]["ready"]
        for address in endpoint["addresses"]
    ]


def get(address: str, port: int, path: str) -> str:
    """The body of an answer. Raises OSError, HTTPException; AssertionError for another than 200."""
    connection = http.client.HTTPConnection(address, port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    assert answer.status == 200, f"{answer.status}: {body}"
    return body
