"""Every rule of access, named by the attack that it stops."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from optimizer.service.app import make_app
from optimizer.service.server import serve as serve_for_good
from optimizer.service.settings import Settings
from search_spaces.errors import InputError
from storage.store import Store

PUBLIC = {"/healthz", "/readyz", "/login", "/v1/session"}
Serve = Callable[..., TestClient]
Token = Callable[[str], dict[str, str]]


def problem(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["detail"])


def operations(client: TestClient, headers: dict[str, str]) -> list[tuple[str, str]]:
    """Every method and path of the API as served, with a name in its places."""
    paths = client.get("/openapi.json", headers=headers).json()["paths"]
    return [(m.upper(), re.sub(r"\{\w+\}", "tiny", path)) for path, item in paths.items() for m in item]


def test_nobody_without_a_token_gets_at_anything(serve: Serve, token: Token) -> None:
    viewer = token("viewer")
    client = serve()
    found = [o for o in operations(client, viewer) if o[1] not in PUBLIC]
    assert len(found) >= 12
    for method, path in [*found, ("GET", "/openapi.json"), ("GET", "/no-such-path")]:
        response = client.request(method, path)
        assert "a token is needed" in problem(response, 401), (method, path)
        assert response.headers["www-authenticate"].startswith("Bearer")


def test_a_guessed_token_opens_nothing(serve: Serve, token: Token) -> None:
    token("operator")
    for guess in ("mf_guess", "", "Bearer", "x" * 5000):
        response = serve().get("/v1/studies", headers={"authorization": f"Bearer {guess}"})
        assert response.status_code == 401


def test_a_viewer_that_writes_is_refused_on_every_path(serve: Serve, token: Token, store: Store) -> None:
    viewer = token("viewer")
    client = serve()
    writes = [(m, p) for m, p in operations(client, viewer) if m != "GET" and p not in PUBLIC]
    assert len(writes) >= 6
    before = len(store.access.audit())
    for method, path in [*writes, ("PUT", "/v1/studies/tiny"), ("PATCH", "/v1/studies/tiny")]:
        assert "changes take the role operator" in problem(client.request(method, path, headers=viewer), 403)
    assert len(store.access.audit()) == before
    assert client.get("/v1/studies", headers=viewer).status_code == 200


def test_a_revoked_token_opens_nothing_from_the_next_request_on(serve: Serve, token: Token, store: Store) -> None:
    operator = token("operator")
    client = serve()
    assert client.get("/v1/studies", headers=operator).status_code == 200
    store.access.revoke("a-operator")
    assert client.get("/v1/studies", headers=operator).status_code == 401


def test_revoking_the_last_token_does_not_open_the_service_again(serve: Serve, token: Token, store: Store) -> None:
    token("operator")
    store.access.revoke("a-operator")
    assert serve().get("/v1/studies").status_code == 401


def test_a_service_that_others_can_reach_does_not_start_without_tokens(settings: Settings, store: Store) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        reachable = Settings(storage=settings.storage, host=host)
        with pytest.raises(InputError, match=f"needs tokens, but there is none in force and --host is {host}"):
            serve_for_good(reachable)
    store.access.create("gone", "operator")
    store.access.revoke("gone")
    with pytest.raises(InputError, match="needs tokens"):
        serve_for_good(Settings(storage=settings.storage, host="0.0.0.0"))


def test_a_service_that_others_can_reach_is_never_open(settings: Settings, store: Store) -> None:
    """Also where its tokens went after it had started."""
    app = make_app(Settings(storage=settings.storage, host="0.0.0.0", roots=settings.roots), store)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/v1/studies").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_dns_rebinding_does_not_reach_an_open_service(client: TestClient, host: str) -> None:
    assert "the Host must be this machine" in problem(client.get("/v1/studies", headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["localhost", "localhost:8642", "127.0.0.1:1", "[::1]:8642"])
def test_an_open_service_answers_to_the_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/v1/studies", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8642"])
@pytest.mark.parametrize("path", ["/v1/studies", "/v1/studies/tiny/pause", "/v1/session"])
def test_another_sites_page_cannot_make_a_change(client: TestClient, origin: str, path: str) -> None:
    assert "the service's own pages" in problem(client.post(path, headers={"origin": origin}), 403)


def test_a_cross_site_form_without_an_origin_cannot_make_a_change(client: TestClient) -> None:
    response = client.post("/v1/studies/tiny/pause", headers={"sec-fetch-site": "cross-site"})
    assert "another site's" in problem(response, 403)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
@pytest.mark.parametrize("path", ["/v1/studies", "/v1/checks"])
def test_what_a_cross_site_form_can_send_is_no_study(client: TestClient, kind: str, path: str) -> None:
    response = client.post(path, content=b"study: x", headers={"content-type": kind})
    assert "must be application/json or application/yaml" in problem(response, 415)


def test_a_form_is_no_export(client: TestClient, measured: Store) -> None:
    body = b'{"trial": 1, "out": "x"}'
    for kind in ({"content-type": "text/plain"}, {}):
        assert client.post("/v1/studies/tiny/exports", content=body, headers=kind).status_code == 422
    assert measured.jobs.waiting() == []


def test_other_sites_are_not_told_anything(client: TestClient) -> None:
    """CORS is off: neither an answer nor a preflight says that a foreign page may read."""
    headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    for response in (client.get("/v1/studies", headers=headers), client.options("/v1/studies", headers=headers)):
        assert not [h for h in response.headers if h.startswith("access-control-")]


def test_an_oversized_body_is_refused_unread(client: TestClient) -> None:
    kind = {"content-type": "application/yaml"}
    assert client.post("/v1/studies", content=b"#" * 1_000_001, headers=kind).status_code == 413

    def endless() -> Any:
        for _ in range(1000):
            yield b"#" * 10_000

    assert client.post("/v1/studies", content=endless(), headers=kind).status_code == 413


def test_half_of_a_study_is_none(client: TestClient) -> None:
    """A text that breaks off is often YAML still."""
    parts = iter([{"type": "http.request", "body": b"study: half\n", "more_body": True}, {"type": "http.disconnect"}])
    said: list[dict[str, Any]] = []
    headers = [(b"host", b"127.0.0.1:8642"), (b"content-type", b"application/yaml")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/studies",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8642),
        "scheme": "http",
    }

    async def receive() -> dict[str, Any]:
        return next(parts)

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]  # Starlette's types are those of MutableMapping
    assert said[0]["status"] == 400
    assert b"it broke off" in said[1]["body"]


def test_guessing_tokens_is_slowed_down_for_the_guesser_alone(serve: Serve, token: Token) -> None:
    operator = token("operator")
    client = serve()
    assert client.get("/v1/studies", headers=operator).status_code == 200
    wrong = {"authorization": "Bearer mf_wrong"}
    assert [client.get("/v1/studies", headers=wrong).status_code for _ in range(10)] == [401] * 10
    slowed = client.get("/v1/studies", headers=wrong)
    assert "too many wrong tokens" in problem(slowed, 429)
    assert 1 <= int(slowed.headers["retry-after"]) <= 61
    assert client.post("/v1/session", json={"token": "mf_more"}).status_code == 429
    assert client.get("/v1/studies", headers=operator).status_code == 200, "who was right before goes on"
    assert client.get("/v1/studies").status_code == 401, "no token is no guess"


def test_a_right_token_is_not_found_out_by_a_guesser_who_is_slowed_down(serve: Serve, token: Token) -> None:
    client = serve()
    right = token("operator")
    for _ in range(10):
        client.get("/v1/studies", headers={"authorization": "Bearer mf_wrong"})
    assert client.get("/v1/studies", headers=right).status_code == 429


def test_the_database_holds_no_token(store: Store, storage: str) -> None:
    from pathlib import Path

    made = store.access.create("me", "operator")
    store.close()
    for file in Path(storage.removeprefix("sqlite:///")).parent.glob("study.db*"):
        assert made.encode() not in file.read_bytes()
        assert made.removeprefix("mf_").encode() not in file.read_bytes()


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(serve: Serve, token: Token) -> None:
    bearer = token("operator")["authorization"].removeprefix("Bearer ")
    client = serve()
    assert client.post("/v1/session", json={"token": "mf_wrong"}).status_code == 401
    signed_in = client.post("/v1/session", json={"token": bearer})
    assert signed_in.status_code == 204
    cookie = signed_in.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert client.get("/v1/studies").status_code == 200
    assert client.post("/v1/studies/x/pause", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.delete("/v1/session").status_code == 204
    assert client.get("/v1/studies").status_code == 401


def test_over_https_the_cookie_stays_there(serve: Serve, token: Token) -> None:
    bearer = token("viewer")["authorization"].removeprefix("Bearer ")
    signed_in = serve(base_url="https://127.0.0.1").post("/v1/session", json={"token": bearer})
    assert "; secure" in signed_in.headers["set-cookie"].lower()


def test_no_page_can_be_framed_or_run_foreign_scripts(client: TestClient) -> None:
    for path in ("/healthz", "/v1/studies", "/nowhere"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_health_needs_no_token_and_tells_nothing(serve: Serve, token: Token) -> None:
    token("operator")
    client = serve()
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ok"}
    assert client.get("/metrics").status_code == 401
