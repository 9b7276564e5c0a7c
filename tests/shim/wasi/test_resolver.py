"""The resolver against a DNS server of our own."""

from __future__ import annotations

import os
from socket import AF_INET, AF_INET6

import pytest

from shim.wasi import resolver
from shim.wasi.resolver import Answer, NoAddress, NoSuchName, TryAgain, numeric, resolve

from .dns import MANY, ONE, SIX, TWO, World, text

FAMILIES = (AF_INET, AF_INET6)


def test_addresses_in_text() -> None:
    assert numeric(b"192.0.2.1", FAMILIES) == (AF_INET, ONE)
    assert numeric(b"2001:db8::1", FAMILIES) == (AF_INET6, SIX)
    assert numeric(b"2001:db8::1", (AF_INET,)) is None
    for other in (b"", b"a.test", b"1.2.3", b"1.2.3.4.", b"\xff", b"1.2.3.4\0"):
        assert numeric(other, FAMILIES) is None


def test_asking(world: World) -> None:
    def check() -> None:
        assert resolve(b"a.test", (AF_INET,)) == Answer([(AF_INET, ONE), (AF_INET, TWO)], b"a.test")
        assert resolve(b"A.TEST.", (AF_INET6,)).addresses == [(AF_INET6, SIX)]
        both = [(AF_INET, ONE), (AF_INET, TWO), (AF_INET6, SIX)]
        assert resolve(b"alias.test", FAMILIES) == Answer(both, b"a.test")
        assert resolve(b"v6.test", FAMILIES).addresses == [(AF_INET6, SIX)]
        for name, error in (
            (b"v6.test", NoAddress),
            (b"circle.test", NoAddress),
            (b"nowhere.test", NoSuchName),
            (b"fail.test", TryAgain),
            (b"refused.test", TryAgain),
            (b"garbage.test", TryAgain),
            (b"short.test", TryAgain),
        ):
            with pytest.raises(error) as caught:
                resolve(name, (AF_INET,))
            assert caught.type is error, name

    world(check)


def test_more_than_fits_a_datagram(world: World) -> None:
    def check() -> None:
        assert [address for _, address in resolve(b"big.test", (AF_INET,)).addresses] == MANY

    world(check)


def test_only_the_answer_to_the_question_is_taken(world: World) -> None:
    def check() -> None:
        assert resolve(b"spoof.test", (AF_INET,)).addresses == [(AF_INET, ONE)]

    world(check)


def test_servers_that_say_nothing(world: World) -> None:
    def check() -> None:
        with pytest.raises(TryAgain):
            resolve(b"silent.test", (AF_INET,))
        assert resolve(b"half.test", FAMILIES).addresses == [(AF_INET, ONE)]

    # The first two are nobody's.
    servers = "nameserver 127.0.0.2\nnameserver fe80::9\nnameserver 127.0.0.1\n"
    world(check, resolv_conf=servers + "options timeout:1 attempts:1\n")


def test_domains_that_are_searched(world: World) -> None:
    def check() -> None:
        assert resolve(b"svc", (AF_INET,)) == Answer([(AF_INET, TWO)], b"svc.ns.svc.cluster.local")
        assert resolve(b"svc.ns.svc", (AF_INET,)).addresses == [(AF_INET, TWO)]
        assert resolve(b"a.test", (AF_INET,)).addresses[0] == (AF_INET, ONE)
        with pytest.raises(NoSuchName):
            resolve(b"svc.", (AF_INET,))

    search = "search x.test ns.svc.cluster.local cluster.local.\noptions ndots:5 edns0\n"
    world(check, resolv_conf="# comment\n" + search + "nameserver 127.0.0.1 ; comment\n")
    asked = world.asked()
    assert asked.index(text(b"a.test.x.test")) < asked.index(text(b"a.test"))


def test_hosts_come_first(world: World) -> None:
    def check() -> None:
        assert resolve(b"a.test", FAMILIES) == Answer(
            [(AF_INET, bytes((10, 0, 0, 1))), (AF_INET6, SIX)], b"a.test"
        )
        assert resolve(b"Second", (AF_INET,)).addresses == [(AF_INET, bytes((10, 0, 0, 1)))]
        local = [(AF_INET, b"\x7f\0\0\1"), (AF_INET6, bytes(15) + b"\1")]
        assert resolve(b"localhost", FAMILIES).addresses == local

    hosts = "2001:db8::1 a.test\n10.0.0.1\tA.test second # third\nnonsense second\n"
    world(check, hosts=hosts)
    assert world.asked() == b""


def test_names_that_are_none(world: World) -> None:
    def check() -> None:
        for name in (b"", b".", b"a..b", b".a", b"a" * 64, b"a." * 127 + b"b", b"\xc3\xa4.test"):
            with pytest.raises(NoSuchName):
                resolve(name, FAMILIES)

    world(check)
    assert world.asked() == b""


def test_an_image_without_configuration(world: World) -> None:
    def check() -> None:
        assert resolve(b"a.test", (AF_INET,)).addresses[0] == (AF_INET, ONE)
        os.unlink("/etc/resolv.conf")
        assert resolve(b"a.test", (AF_INET,)).addresses[0] == (AF_INET, ONE)
        os.mkfifo("/etc/resolv.conf")
        assert resolve(b"a.test", (AF_INET,)).addresses[0] == (AF_INET, ONE)

    world(
        check, resolv_conf="nonsense\nnameserver\nnameserver dns.test\noptions timeout:x ndots:\n"
    )


def test_the_image_brings_no_native_code(world: World) -> None:
    """libc would load libnss_evil.so.2 for this."""

    def mapped() -> set[str]:
        with open("/proc/self/maps") as file:
            return {line.split()[-1] for line in file if ".so" in line}

    def check() -> None:
        before = mapped()
        assert resolve(b"a.test", (AF_INET,)).addresses
        assert mapped() == before

    world(check, nsswitch_conf="hosts: evil files dns\n")


def test_services(world: World) -> None:
    def check() -> None:
        assert resolver.service(b"http", b"tcp") == 80
        assert resolver.service(b"www", b"tcp") == 80
        assert resolver.service(b"http", b"udp") is None
        assert resolver.service(b"odd", b"tcp") is None

    world(check, services="http 80/tcp www # web\nodd x/tcp\nodd 5\n")
