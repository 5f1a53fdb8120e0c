"""Where the service may be made to send requests to: public addresses only, unless the operator allows more.

Who registers a webhook chooses a URL, and the service would knock where its sender cannot: at its own machine, at its
neighbours, at the metadata of a cloud. So the name is resolved, all of its addresses are checked, and the connection goes to
an address that was checked: whoever owns the name cannot answer otherwise the second time. However an address is written
(127.1, 0x7f.1, 2130706433), what counts is what it resolves to.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from ssl import SSLContext

import httpx2

from einlayers.errors import FieldError

Address = IPv4Address | IPv6Address

MAX_URL_LENGTH = 2000
LOOK_UP_SECONDS = 5.0

_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
# What IANA sets aside and not every version of Python knows of: protocol assignments, 6to4 relays, documentation.
_SET_ASIDE = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"), IPv6Network("3fff::/20"))


def parse(url: str) -> httpx2.URL:
    """The URL, if requests can be sent there: http or https, with a host, without a user or a password.

    Raises:
        FieldError: it is another one, or none.
    """
    expected = f"a URL such as https://host/path, of at most {MAX_URL_LENGTH} characters"
    if len(url) > MAX_URL_LENGTH:
        raise FieldError("url", expected=expected, got=f"one of {len(url)}")
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise FieldError("url", expected=expected, got=url) from error
    if parsed.userinfo:  # which is not repeated
        raise FieldError("url", expected="a URL without a user and a password", got="one with them")
    port_fits = parsed.port is None or 1 <= parsed.port <= 65535
    if parsed.scheme not in _PORTS or not parsed.host or not port_fits:
        raise FieldError("url", expected=expected, got=url)
    return parsed


async def resolve(url: httpx2.URL, *, allow_private: bool) -> list[Address]:
    """The addresses of the URL's host, all of them public or private ones allowed, in the order to try them.

    Raises:
        FieldError: the host has no address, or one that requests must not be sent to.
    """
    host = url.raw_host.decode("ascii")
    try:
        async with asyncio.timeout(LOOK_UP_SECONDS):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, url.port or _PORTS[url.scheme], type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FieldError("url", expected="a host that has an address", got=host) from error
    addresses = [ip_address(address[0]) for *_, address in found]
    # Not which address it is: that would be a look into the operator's own network.
    if not allow_private and not all(map(is_public, addresses)):
        raise FieldError("url", expected="a host with public addresses only", got=host)
    return list(dict.fromkeys(addresses))


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, and so is one that it carries within it."""
    if isinstance(address, IPv6Address):
        if (inner := address.ipv4_mapped or _translated(address)) is not None:
            return is_public(inner)
        if address not in _GLOBAL_UNICAST or (address.sixtofour is not None and not is_public(address.sixtofour)):
            return False
    set_aside = any(address in network for network in _SET_ASIDE if network.version == address.version)
    return address.is_global and not (address.is_multicast or address.is_reserved or set_aside)


def _translated(address: IPv6Address) -> IPv4Address | None:
    return IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to addresses that ``resolve`` lets pass, and verifies the certificate for the name all the same."""

    def __init__(self, ssl_context: SSLContext, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        # A kept connection would be found by its address, and be verified for another name than the next request's.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._transport = httpx2.AsyncHTTPTransport(verify=ssl_context, trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the first address that can be reached.

        Raises:
            httpx2.ConnectError: none can, or none may.
        """
        try:
            addresses = await resolve(request.url, allow_private=self._allow_private)
        except FieldError as error:
            raise httpx2.ConnectError(str(error), request=request) from error
        for address in addresses[:-1]:
            try:
                return await self._transport.handle_async_request(_directed(request, address))
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._transport.handle_async_request(_directed(request, addresses[-1]))

    async def aclose(self) -> None:
        """Close what is open."""
        await self._transport.aclose()


def _directed(request: httpx2.Request, address: Address) -> httpx2.Request:
    """The request with the address in place of the name, which stays in ``Host`` and in the TLS handshake."""
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=str(address)),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.raw_host.decode("ascii")},
    )
