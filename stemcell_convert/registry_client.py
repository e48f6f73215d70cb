"""Requests to a registry: the OCI distribution protocol, through oras.

oras has credentials, tokens and references. This adds what layers of a gigabyte need: streamed
bodies, timeouts, and errors that say what to do.
"""

import functools
import json
import logging
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import oras.container
import oras.provider
import oras.utils
import requests
import urllib3

from stemcell_convert.destinations import Destinations, RegistryAdapter
from stemcell_convert.proxies import Proxies, redacted, without_credentials
from stemcell_convert.reference import Reference
from stemcell_convert.stemcell_errors import RegistryUnreachable, StemcellError

_HUB, _HUB_HOST, _HUB_KEY = "docker.io", "registry-1.docker.io", "https://index.docker.io/v1/"
_PIECE = 64 << 10  # bytes; the most that is lost when a connection breaks
_TIMEOUTS = (15, 60)  # seconds to connect, and between two pieces of an answer
_CERTIFICATES = Path("/etc/docker/certs.d")  # docker's, a folder for each registry
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError)

_REJECTED = (
    "rejected the credentials; put a user and password in its URL (registry.https_proxy, "
    "registry.http_proxy, or HTTPS_PROXY and HTTP_PROXY)"
)

_UNREACHED = (
    "it cannot be reached, or is not public, or leads to what is not; the host's "
    "registry.allowed names those that need not be public"
)

logging.getLogger("oras.logger").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Access:
    """How registries are reached.

    plain_http: those without TLS, as host:port. ca_file: certificates to trust, "" for docker's and
    the system's. docker_config: the file with credentials, "" for the user's own. destinations:
    where connections may go, None for anywhere.
    """

    plain_http: tuple[str, ...] = ()
    ca_file: str = ""
    docker_config: str = ""
    proxies: Proxies = field(default_factory=Proxies)
    destinations: Destinations | None = None


class RegistryClient(oras.provider.Registry):  # type: ignore[misc]
    """oras' client for one repository, with timeouts, log-ins and StemcellErrors."""

    def __init__(self, reference: Reference, access: Access) -> None:
        host = _HUB_HOST if reference.host == _HUB else reference.host
        self._host, self._name = reference.host, reference.name
        self._plain = reference.host in access.plain_http
        verify = _certificates(reference.host, access.ca_file)
        self._base = f"{'http' if self._plain else 'https'}://{host}/v2/"
        self._place = oras.container.Container(f"{host}/{reference.repository}")
        self._proxy = access.proxies.of(self._base)
        self._limited = access.destinations is not None
        adapter = RegistryAdapter(access.proxies, self._plain, access.destinations)
        backend = self._backend(adapter, verify)
        super().__init__(host, insecure=self._plain, tls_verify=verify, auth_backend=backend)
        _mount(self.session, adapter)
        self.session.request = functools.partial(self.session.request, timeout=_TIMEOUTS)
        self.auth._auth_config = _credentials(access.docker_config)
        names = (_HUB_KEY, _HUB) if host == _HUB_HOST else (host, f"https://{host}")
        self._known = any(self.auth._load_auth(name) for name in names)

    def _backend(self, adapter: RegistryAdapter, verify: bool | str) -> str:
        """Ask the registry which log-in it wants, for oras."""
        with self._errors("GET"), requests.Session() as session:
            _mount(session, adapter)
            answer = session.get(self._base, timeout=_TIMEOUTS, verify=verify)
        if answer.status_code == requests.codes.proxy_authentication_required:
            raise StemcellError(f"{self._host}: {self._via} {_REJECTED}")
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status_code == 400 and self._plain and b"HTTPS" in answer.content[:200]:
            raise StemcellError(f"{self._host} speaks TLS: it is not one for plain HTTP")
        return "basic" if challenge.lower().startswith("basic") else "token"

    @contextmanager
    def answer(self, method: str, path: str, **options: Any) -> Iterator[requests.Response]:
        """Ask for `path` of the repository, or a whole URL; the answer's body is a stream."""
        url = path if "://" in path else f"{self._base}{self._place.api_prefix}/{path}"
        with self._errors(method), self._send(method, url, options) as response:
            status = response.status_code
            if status >= 400:
                later = status >= 500 or status == requests.codes.too_many_requests
                error_class = RegistryUnreachable if later else StemcellError
                raise error_class(self._refusal(response, method, path))
            yield response

    def require(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise StemcellError if the repository does not give `path` with these credentials."""
        with self.answer("HEAD", path, headers=headers):
            pass

    def has_blob(self, digest: str) -> bool:
        """Tell whether the repository has a blob."""
        url = f"{self._base}{self._place.api_prefix}/blobs/{digest}"
        with self._errors("HEAD"), self._send("HEAD", url, {}) as response:
            return bool(response.status_code == 200)

    @contextmanager
    def blob(self, digest: str, offset: int) -> Iterator[Iterator[bytes]]:
        """Give the bytes of a blob from an offset on."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self.answer("GET", f"blobs/{digest}", headers=headers) as response:
            # What has come, however little: `stream` would wait for a whole piece.
            pieces: Iterator[bytes] = iter(
                functools.partial(response.raw.read1, _PIECE, decode_content=False), b""
            )
            yield pieces if response.status_code == 206 or not offset else _after(pieces, offset)

    def upload(self, body: Iterable[bytes], digest: str) -> None:
        """Send a blob in one piece."""
        with self.answer("POST", "blobs/uploads/", headers={"Content-Length": "0"}) as response:
            place = self._get_location(response, self._place)
        if not place:
            raise StemcellError(f"{self._host} does not say where to send the layer")
        url = oras.utils.append_url_params(place, {"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        with self.answer("PUT", url, headers=headers, data=body):
            pass

    def _send(
        self, method: str, url: str, options: Mapping[str, Any]
    ) -> AbstractContextManager[requests.Response]:
        """Make a request, logging in if the registry asks for it."""
        headers = dict(options.get("headers", {}))
        # Credentials go only to the registry: an upload may go to another's store.
        if url.startswith(self._base) and (self._known or getattr(self.auth, "token", None)):
            headers |= self._first_header()

        def send(headers: dict[str, str]) -> requests.Response:
            answer: requests.Response = self.session.request(
                method,
                url,
                headers=headers,
                data=options.get("data"),
                stream=True,
                verify=self._tls_verify,
            )
            return answer

        response = send(headers)
        # What it redirects to may answer as well, and would name a realm of its own.
        own = url.startswith(self._base) and response.url.startswith(self._base)
        if response.status_code == 401 and own and self._may_log_in():
            headers.pop("Authorization", None)
            headers, changed = self.auth.authenticate_request(response, headers, refresh=True)
            if changed:
                response.close()
                response = send(headers)
        return response

    def _first_header(self) -> dict[str, str]:
        header: dict[str, str] = self.auth.get_auth_header()
        return header

    def _may_log_in(self) -> bool:
        """Tell whether to log in: without credentials there are tokens, but no passwords."""
        return self._known or hasattr(self.auth, "token")

    @contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        """Translate errors of a connection into StemcellErrors."""
        try:
            yield
        except requests.exceptions.SSLError as error:
            raise StemcellError(f"{self._host}: {_tls_trouble(error)}") from None
        except _BROKEN as error:
            reason = redacted(_innermost(error), self._proxy)
            asked = f"{method} to the registry {self._host}"
            if self._limited:  # a reason would tell a client what listens where
                raise RegistryUnreachable(f"{asked}: {_UNREACHED}") from None
            if not self._proxy:
                raise RegistryUnreachable(f"{asked}: {reason}") from None
            if "407" in reason:
                raise StemcellError(f"{asked}: {self._via} {_REJECTED}") from None
            raise RegistryUnreachable(f"{asked} through {self._via}: {reason}") from None
        except ValueError as error:  # oras' error for a failed log-in
            raise StemcellError(f"{self._host}: {error}") from None

    @property
    def _via(self) -> str:
        return f"the proxy {without_credentials(self._proxy)}"

    def _refusal(self, response: requests.Response, method: str, path: str) -> str:
        reason = _errors_of(response)
        asked = f"{method} {path.split('?')[0]}"
        text = f"{self._name}: the registry answered {response.status_code} to {asked}"
        text = f"{text}: {reason}" if reason else text
        if response.status_code in (401, 403):
            hint = "the docker config's credentials do not do" if self._known else "not logged in"
            return f"{text} ({hint}; `docker login {self._host}` mends that)"
        return text


def _mount(session: requests.Session, adapter: RegistryAdapter) -> None:
    for scheme in ("http://", "https://"):
        session.mount(scheme, adapter)


def _after(pieces: Iterator[bytes], offset: int) -> Iterator[bytes]:
    """Skip the bytes before an offset, from a registry that ignores Range."""
    for data in pieces:
        skipped = min(offset, len(data))
        offset -= skipped
        if data[skipped:]:
            yield data[skipped:]


def _errors_of(response: requests.Response) -> str:
    """Return the registry's own errors (distribution-spec, error codes)."""
    try:
        errors = json.loads(response.raw.read(64 << 10, decode_content=True))["errors"]
        return "; ".join(str(entry.get("message") or entry.get("code")) for entry in errors)[:300]
    except (*_BROKEN, ValueError, KeyError, TypeError, AttributeError):
        return ""


def _tls_trouble(error: Exception) -> str:
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text or "record layer failure" in text:
        return (
            "it does not speak TLS; if it is yours, allow plain HTTP (registry.plain_http, "
            "--plain-http)"
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        reason = text.rsplit("certificate verify failed:", 1)[-1].split("(_ssl")[0].strip()
        return (
            f"its certificate is not trusted ({reason}); name its CA (registry.ca_file, "
            f"--ca-file), or put it where docker looks, {_CERTIFICATES}/HOST/ca.crt"
        )
    return f"TLS failed: {_innermost(error)}"


def _innermost(error: BaseException) -> str:
    """Return the text of the original error below those of the libraries."""
    reason = error.args[0] if error.args else None
    inner = getattr(reason, "reason", None) or error.__context__
    if isinstance(inner, BaseException) and not isinstance(inner, ssl.SSLError):
        return _innermost(inner)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _certificates(host: str, ca_file: str) -> bool | str:
    """Return what to trust: the given CA, docker's own for this registry, or the system's."""
    own = _CERTIFICATES / host / "ca.crt"
    if ca_file or own.is_file():
        return ca_file or str(own)
    system = ssl.get_default_verify_paths().cafile
    return os.environ.get("REQUESTS_CA_BUNDLE") or system or True


def _credentials(path: str) -> dict[str, Any]:
    """Return the credentials of a docker config."""
    folder = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    file = Path(path or f"{folder}/config.json")
    try:
        document = json.loads(file.read_bytes() or b"{}")  # /dev/null: no credentials
    except FileNotFoundError:
        if path:
            raise StemcellError(f"there is no docker config {path}") from None
        document = {}
    except (OSError, ValueError) as error:
        raise StemcellError(f"cannot read the docker config {file}: {error}") from None
    config = document if isinstance(document, dict) else {}
    return {
        "auths": config.get("auths") or {},
        "credsStore": config.get("credsStore"),
        "credHelpers": config.get("credHelpers") or {},
    }
