import asyncio
import socket
import threading
from ipaddress import ip_address
from typing import Any

import httpx2
import pytest

from einlayers.errors import FieldError
from service import addresses
from service.addresses import CheckedTransport, is_public, parse, resolve
from tests.receivers import answering, receiving

PUBLIC = [
    *("8.8.8.8", "1.1.1.1", "193.0.14.129", "99.255.255.255", "172.15.0.1", "172.32.0.1", "100.128.0.1"),
    *("2606:4700:4700::1111", "2a00:1450:4001::200e"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"),
]

PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.0.200", "192.0.2.1", "192.88.99.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.2.3", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1"),
    *("3fff::1", "100::1", "4000::1", "5f00::1", "::127.0.0.1", "::8.8.8.8"),
    # IPv4 within IPv6: mapped, translated (RFC 2765), NAT64, 6to4, Teredo.
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::10.0.0.1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a00:1::1", "2002:c0a8:101::1"),
    *("2001:0:4136:e378:8000:63bf:3fff:fdd2",),
]


def _resolve(url: str, *, allow_private: bool = False) -> list[str]:
    return list(map(str, asyncio.run(resolve(parse(url), allow_private=allow_private))))


def _answer_with(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have the first look-up of a name answered with these addresses, the next one with those; the names looked up."""
    names: list[str] = []
    left = list(answers)

    def look_up(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


async def _post(url: str, *, allow_private: bool) -> httpx2.Response:
    transport = CheckedTransport(httpx2.create_ssl_context(), allow_private=allow_private)
    async with httpx2.AsyncClient(transport=transport, trust_env=False, timeout=10) as client:
        return await client.post(url, content=b"body")


class TestIsPublic:
    @pytest.mark.parametrize("address", PUBLIC)
    def test_holds_for_addresses_of_the_internet(self, address: str) -> None:
        assert is_public(ip_address(address))

    @pytest.mark.parametrize("address", PRIVATE)
    def test_does_not_hold_for_any_other(self, address: str) -> None:
        assert not is_public(ip_address(address))


class TestParse:
    @pytest.mark.parametrize(
        "url",
        ["http://example.org", "HTTPS://Example.org:8443/a/b?c=d", "https://bücher.example/", "http://[2a00::1]/x"],
    )
    def test_takes_http_and_https(self, url: str) -> None:
        assert parse(url).host

    @pytest.mark.parametrize(
        "url",
        [
            *("", "x", "example.org", "//example.org", "/path", "http://", "http:///path", "https://:443/", "http:x"),
            *("ftp://example.org", "file:///etc/passwd", "gopher://example.org", "javascript:alert(1)", "unix:///x"),
            *("http://example.org:0/", "http://example.org:65536/", "http://example.org:x/", "http://[::1/"),
            *("http://example.org/\n", "http://exam\0ple.org", "http://\ud800/", f"http://example.org/{'x' * 2000}"),
        ],
    )
    def test_refuses_everything_else(self, url: str) -> None:
        with pytest.raises(FieldError, match="expected a URL such as https://host/path"):
            parse(url)

    @pytest.mark.parametrize(
        "url", ["http://me@example.org/", "https://me:word@example.org/", "http://:word@example.org/"]
    )
    def test_refuses_passwords_without_repeating_them(self, url: str) -> None:
        with pytest.raises(FieldError, match="without a user and a password") as refused:
            parse(url)
        assert "word@" not in str(refused.value)


class TestResolve:
    @pytest.mark.parametrize(
        "host",
        [
            *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0"),
            *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[fe80::1]", "169.254.169.254"),
        ],
    )
    def test_refuses_private_addresses_however_they_are_written(self, host: str) -> None:
        with pytest.raises(FieldError, match="expected a host with public addresses only"):
            _resolve(f"http://{host}/")

    def test_refuses_octal_parts(self) -> None:
        with pytest.raises(FieldError):
            _resolve("http://0177.0.0.1/")

    def test_lets_them_pass_where_the_operator_says_so(self) -> None:
        assert _resolve("http://127.1/", allow_private=True) == ["127.0.0.1"]

    def test_refuses_a_name_of_which_any_address_is_private(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _answer_with(monkeypatch, ["8.8.8.8", "10.0.0.1"])
        with pytest.raises(FieldError) as refused:
            _resolve("http://receiver.example/")
        assert "10.0.0.1" not in str(refused.value), "that would be a look into the operator's network"

    def test_gives_every_address_once_in_their_order(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _answer_with(monkeypatch, ["8.8.8.8", "1.1.1.1", "8.8.8.8"])
        assert _resolve("http://receiver.example/") == ["8.8.8.8", "1.1.1.1"]

    @pytest.mark.parametrize("host", ["a..b", f"{'x' * 70}.example"])
    def test_refuses_what_is_no_name(self, host: str) -> None:
        with pytest.raises(FieldError, match="expected a host that has an address"):
            _resolve(f"http://{host}/")

    def test_does_not_wait_for_a_name_that_takes_for_ever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(addresses, "LOOK_UP_SECONDS", 0.05)
        answered = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: answered.wait() and [])

        async def look_up() -> None:
            try:
                await resolve(parse("http://receiver.example/"), allow_private=False)
            finally:
                answered.set()

        with pytest.raises(FieldError, match="expected a host that has an address"):
            asyncio.run(look_up())


class TestCheckedTransport:
    def test_goes_to_the_address_that_was_checked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as receiver:
            port = receiver.url.rpartition(":")[2]
            # The second answer, and any after it, would be a connection refused.
            names = _answer_with(monkeypatch, ["127.0.0.1"], ["127.9.9.9"])
            response = asyncio.run(_post(f"http://receiver.example:{port}/hook?a=b", allow_private=True))
        assert response.status_code == 200
        assert names == ["receiver.example"]
        (request,) = receiver.requests
        assert (request.path, request.body) == ("/hook?a=b", b"body")
        assert request.headers["Host"] == f"receiver.example:{port}"

    def test_tries_the_next_address_where_one_cannot_be_reached(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with receiving() as receiver:
            port = receiver.url.rpartition(":")[2]
            _answer_with(monkeypatch, ["127.9.9.9", "127.0.0.1"])
            assert asyncio.run(_post(f"http://receiver.example:{port}/", allow_private=True)).status_code == 200

    def test_does_not_connect_to_a_private_address(self) -> None:
        with receiving() as receiver:
            with pytest.raises(httpx2.ConnectError, match="public addresses only"):
                asyncio.run(_post(receiver.url, allow_private=False))
            assert receiver.requests == []

    def test_asks_for_the_certificate_of_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        greetings: list[bytes] = []
        with answering(lambda connection: greetings.append(connection.recv(4096))) as url:
            port = url.rpartition(":")[2]
            _answer_with(monkeypatch, ["127.0.0.1"])
            with pytest.raises(httpx2.HTTPError):
                asyncio.run(_post(f"https://receiver.example:{port}/", allow_private=True))
        assert b"receiver.example" in greetings[0]
