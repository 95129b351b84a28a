"""A served Lectern as other computers see it: TLS, users who sign in in a browser, what each of them finds there."""

import datetime
import json
import os
import ssl
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.sync_api import Page, expect

from app.settings import SMALL_MODEL
from tests.browser import Visit, chromium, find_chromium
from tests.serving import ROOT, serving

TEXT = "The keeper of the harbour is Quillfeather. " * 30


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-made certificate for 127.0.0.1, and its key, as PEM files."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
    here = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    signed = made.add_extension(here, critical=True).sign(key, hashes.SHA256())
    paths = folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


def command(home: Path, *words: str) -> list[str]:
    return ["-P", "-m", "app.cli", *words, "--home", str(home)]


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, *command(home, *words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    """Lectern on all addresses with TLS, and the keys of two users."""
    folder = tmp_path_factory.mktemp("beyond")
    home = folder / "home"
    cert, cert_key = certificate(folder)
    keys = [json.loads(run(home, "users", "add", name, "--json").stdout)["key"] for name in ("ann", "ben")]
    words = ["--host", "0.0.0.0", "--certificate", str(cert), "--certificate-key", str(cert_key), "--port", "0"]
    with serving(command(home, "serve", "--no-browser", "--model", str(SMALL_MODEL), *words), folder, 300) as server:
        base = server.url.replace("0.0.0.0", "127.0.0.1").removesuffix("/v1")
        trust = ssl.create_default_context(cafile=cert)
        with httpx.Client(base_url=base, verify=trust, timeout=120) as client:
            while client.get("/health").json()["model"]["state"] == "loading":
                pass
            yield SimpleNamespace(base=base, client=client, trust=trust, ann=keys[0], ben=keys[1], home=home)


def test_the_openai_client_over_tls(served: SimpleNamespace) -> None:
    with httpx.Client(verify=served.trust) as http:
        program = openai.OpenAI(base_url=f"{served.base}/v1", api_key=served.ann, http_client=http)
        stream = program.chat.completions.create(
            model="lectern", messages=[{"role": "user", "content": "Who?"}], max_tokens=4, stream=True
        )
        assert list(stream)[-1].usage.completion_tokens > 0
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{served.base}/v1", api_key="wrong", http_client=http).models.list()
    with pytest.raises(httpx.ConnectError):  # nobody vouches for the certificate but the one who made it
        httpx.get(served.base)


def test_without_tls_or_a_user_nothing_listens_beyond(tmp_path: Path) -> None:
    told = run(tmp_path, "serve", "--no-browser", "--host", "0.0.0.0", "--port", "0")
    assert told.returncode and "keys would cross the network" in told.stdout + told.stderr
    told = run(tmp_path, "serve", "--no-browser", "--behind-proxy", "--port", "0", "--model", str(SMALL_MODEL))
    assert told.returncode and "there is no user" in told.stdout + told.stderr


def test_signing_in_and_out(served: SimpleNamespace) -> None:
    client = served.client
    form = client.get("/")
    assert form.status_code == 401 and 'action="/sign-in"' in form.text
    wrong = client.post("/sign-in", data={"key": "wrong"})
    assert wrong.status_code == 401 and "No user has this key" in wrong.text and not wrong.cookies
    assert client.get("/config").status_code == 404
    crossed = client.post("/sign-in", data={"key": served.ann}, headers={"Origin": "https://evil.example"})
    assert crossed.status_code == 403
    signed = client.post("/sign-in", data={"key": served.ann})
    cookie = signed.headers["set-cookie"].lower()
    assert signed.status_code == 303 and served.ann not in cookie
    assert all(word in cookie for word in ("httponly", "secure", "samesite=strict", "path=/"))
    token = signed.cookies["lectern-session"]
    assert client.get("/config").status_code == 200
    assert client.get("/v1/files").status_code == 401  # a cookie is no key for programs
    assert client.post("/sign-out").status_code == 303
    assert client.get("/config", headers={"Cookie": f"lectern-session={token}"}).status_code == 404


def sign_in(page: Page, base: str, key: str) -> Visit:
    page.goto(base)
    page.get_by_label("Your key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("tab", name="Ask", exact=True)).to_be_visible()
    return Visit(page)


@pytest.mark.skipif(find_chromium() is None, reason="Chromium is not installed")
def test_each_user_finds_their_own_library_and_what_was_shared(served: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "harbour.txt").write_text(TEXT, encoding="utf-8")
    with chromium() as browser:
        ann = sign_in(browser.new_context(ignore_https_errors=True).new_page(), served.base, served.ann)
        expect(ann.page.locator(".lt-user")).to_contain_text("ann")
        expect(ann.page.get_by_role("tab", name="Models", exact=True)).to_have_count(0)
        ann.add(tmp_path / "harbour.txt", timeout_s=120)
        ann.tab("Ask")
        ann.ask("Who keeps the harbour?", timeout_s=120)
        page = browser.new_context(ignore_https_errors=True).new_page()
        page.goto(served.base)
        page.get_by_label("Your key").fill("guess")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("No user has this key")
        ben = sign_in(page, served.base, served.ben)
        ben.tab("Library")
        expect(page.get_by_text("No documents yet")).to_be_visible()
        ben.tab("Chats")
        expect(page.locator("body")).not_to_contain_text("Who keeps the harbour")
        own = {"Authorization": f"Bearer {served.ann}"}
        (file,) = served.client.get("/v1/files", headers=own).json()["data"]
        assert served.client.post(f"/v1/files/{file['id']}/share", json={"user": "ben"}, headers=own).is_success
        ben.tab("Library")
        expect(ben.row("harbour")).to_contain_text("shared by ann, read-only")
        expect(ben.row("harbour").locator(".lt-read")).to_have_count(1)
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Your key")).to_be_visible()
        page.go_back()
        page.reload()
        expect(page.get_by_label("Your key")).to_be_visible()
